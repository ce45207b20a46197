//! What moving ranges may take of a node, so that requests hardly notice it.

use std::{sync::Mutex, time::Duration};

use tokio::time::{Instant, sleep_until};

use crate::lock::lock;

/// Moving takes this part of one core.
const CORE_SHARE: u32 = 4;
/// And so many bytes a second.
const BYTES_PER_SECOND: u64 = 32 << 20;

/// What all moves of a node share.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// Until then it is used up.
    used_until: Mutex<Option<Instant>>,
}

impl Budget {
    /// Work has just been done that took `work` of a core and moved `bytes`. Waits until there may be more of it.
    pub(super) async fn spend(&self, work: Duration, bytes: u64) {
        let by_bytes = Duration::from_micros(bytes * 1_000_000 / BYTES_PER_SECOND);
        let cost = (work * CORE_SHARE).max(by_bytes).saturating_sub(work);
        let until = {
            let mut used_until = lock(&self.used_until);
            let now = Instant::now();
            let until = used_until.map_or(now, |until| until.max(now)) + cost;
            *used_until = Some(until);
            until
        };
        sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_and_bytes_of_all_moves_are_paid_for_with_time() {
        let budget = Budget::default();
        let begun = Instant::now();
        budget.spend(Duration::from_millis(100), 0).await;
        assert_eq!(begun.elapsed().as_millis(), 300);
        let half = budget.spend(Duration::ZERO, BYTES_PER_SECOND / 2);
        tokio::join!(half, budget.spend(Duration::ZERO, BYTES_PER_SECOND / 2));
        assert_eq!(begun.elapsed().as_millis(), 1300);
    }
}
