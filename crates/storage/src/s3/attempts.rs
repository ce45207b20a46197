//! The one retry layer of the S3 backend.
//!
//! The SDK's own is switched off. It cannot be told what this one knows: that a conditional write whose reply was lost, and which
//! then fails its condition, was perhaps the very write that made the condition fail.

use std::time::Duration;

use keydb_core::random;
use tokio::time::{Instant, sleep, timeout};

use super::failure::Failure;

const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// How often, how long and how patiently a call is tried. Together they bound every call but a stream, which lasts as long as its
/// bytes keep coming.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) attempts_max: u32,
    /// The pause before the second attempt; it doubles from there on.
    pub(super) backoff_min: Duration,
    /// No attempt of a call starts later than this, or than two attempts take, after its first.
    pub(super) call: Duration,
    /// How long an attempt without a large body may take.
    pub(super) attempt: Duration,
    /// How long an attempt with a large body may take, or one that lets the server move much.
    pub(super) transfer: Duration,
    /// How long a download may go without a byte.
    pub(super) stall: Duration,
}

impl Limits {
    pub(super) const DEFAULT: Self = Self {
        attempts_max: 5,
        backoff_min: Duration::from_millis(50),
        call: Duration::from_secs(30),
        attempt: Duration::from_secs(10),
        transfer: Duration::from_secs(120),
        stall: Duration::from_secs(20),
    };

    /// The attempts of a call whose single ones may take `attempt`.
    pub(super) fn attempts(&self, attempt: Duration) -> Attempts {
        Attempts {
            limits: *self,
            attempt,
            started: Instant::now(),
            made: 1,
        }
    }
}

/// The attempts of one call.
#[derive(Debug)]
pub(super) struct Attempts {
    limits: Limits,
    attempt: Duration,
    started: Instant,
    made: u32,
}

impl Attempts {
    /// Waits until the next attempt is due; false when there is to be none.
    pub(super) async fn again(&mut self) -> bool {
        // A call of long attempts gets time for several.
        let call = self.limits.call.max(self.attempt * 2);
        if self.made >= self.limits.attempts_max || self.started.elapsed() >= call {
            return false;
        }
        sleep(random::backoff(
            self.limits.backoff_min,
            BACKOFF_MAX,
            self.made - 1,
        ))
        .await;
        self.made += 1;
        true
    }

    /// Starts counting anew, after progress.
    pub(super) fn renew(&mut self) {
        self.started = Instant::now();
        self.made = 1;
    }

    /// One attempt, within its time.
    pub(super) async fn attempt<T, E: Into<Failure>>(
        &self,
        request: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Failure> {
        match timeout(self.attempt, request).await {
            Ok(result) => result.map_err(Into::into),
            Err(_) => Err(Failure::timeout(self.attempt)),
        }
    }

    /// Sends requests until one is answered in a way that another attempt would not change. The failure is in doubt when any
    /// attempt was.
    pub(super) async fn run<T, E: Into<Failure>, F: Future<Output = Result<T, E>>>(
        &mut self,
        request: impl Fn() -> F,
    ) -> Result<T, Failure> {
        let mut in_doubt = false;
        loop {
            let mut failure = match self.attempt(request()).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            in_doubt |= failure.in_doubt;
            failure.in_doubt = in_doubt;
            if !failure.is_transient() || !self.again().await {
                return Err(failure);
            }
            tracing::debug!(reason = failure.reason, "asking object storage again");
        }
    }
}
