//! How often and how soon a call is tried again.

use std::time::Duration;

use keydb_core::random;
use tokio::time::sleep;

const ATTEMPTS_MAX: u32 = 4;
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// The attempts of one call.
#[derive(Debug)]
pub(super) struct Attempts {
    made: u32,
    backoff: Duration,
}

impl Attempts {
    pub(super) const fn new() -> Self {
        Self {
            made: 1,
            backoff: BACKOFF_MIN,
        }
    }

    /// Waits until the next attempt is due; false when there is to be none.
    pub(super) async fn again(&mut self) -> bool {
        if self.made >= ATTEMPTS_MAX {
            return false;
        }
        self.made += 1;
        // From half of the backoff to all of it, so that those who failed together do not come again together.
        let half = self.backoff / 2;
        let spread_us = u64::try_from(half.as_micros()).unwrap_or(u64::MAX).max(1);
        sleep(half + Duration::from_micros(random::u64() % spread_us)).await;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        true
    }
}
