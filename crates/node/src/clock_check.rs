//! Whether the node's clock can be trusted: it is compared with the object storage's.
//!
//! A clock that is off by more than the cluster allows must not decide that keys are over. A node does not start with one. One
//! that finds out later goes on answering, says so loudly, and reclaims nothing until the clocks agree again. While the storage
//! does not tell its time, nothing is reclaimed either.

use std::time::Duration;

use keydb_core::{Clock, UnixMillis};
use keydb_storage::ObjectStorage;
use tokio::time::timeout;

/// Object storage tells its time in whole seconds.
const GRAIN_MS: u64 = 1000;

/// How long the storage may take to tell its time. An answer that took long says little.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What a comparison has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// The clocks agree.
    Agrees,
    /// This clock is ahead of the storage's by so many milliseconds, or behind it where that is negative.
    Off {
        ahead_ms: i64,
        storage: UnixMillis,
        clock: UnixMillis,
    },
    /// The storage did not tell.
    Unknown,
}

/// Compares the clock with the storage's, which may differ by `error_max_ms`.
pub(crate) async fn compare(
    clock: &dyn Clock,
    storage: &dyn ObjectStorage,
    error_max_ms: u64,
) -> Comparison {
    let before = clock.now();
    let answer = timeout(ANSWER_TIMEOUT, storage.now()).await;
    let after = clock.now();
    match answer {
        Ok(Ok(storage)) => judge(before, after, storage, error_max_ms),
        Ok(Err(_)) | Err(_) => Comparison::Unknown,
    }
}

/// The storage read its clock at some time between `before` and `after` of this one.
fn judge(
    before: UnixMillis,
    after: UnixMillis,
    storage: UnixMillis,
    error_max_ms: u64,
) -> Comparison {
    let earliest = storage.0.saturating_sub(error_max_ms);
    let latest = storage.0.saturating_add(GRAIN_MS + error_max_ms);
    if before.0 > latest || after.0 < earliest {
        Comparison::Off {
            ahead_ms: (before.0 as i64).saturating_sub(storage.0 as i64),
            storage,
            clock: before,
        }
    } else {
        Comparison::Agrees
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(clock: u64, storage: u64) -> Comparison {
        judge(
            UnixMillis(clock),
            UnixMillis(clock + 10),
            UnixMillis(storage),
            2000,
        )
    }

    #[test]
    fn clocks_agree_within_the_allowed_error_and_the_storages_grain() {
        for clock in [98_000, 100_000, 100_999, 103_000] {
            assert_eq!(at(clock, 100_000), Comparison::Agrees, "{clock}");
        }
    }

    #[test]
    fn a_clock_that_is_ahead_or_behind_is_off_by_so_much() {
        let ahead_ms = |clock| match at(clock, 100_000) {
            Comparison::Off { ahead_ms, .. } => ahead_ms,
            other => panic!("{other:?}"),
        };
        assert_eq!(ahead_ms(103_001), 3001);
        assert_eq!(ahead_ms(97_000), -3000);
    }

    #[test]
    fn a_slow_answer_is_no_proof_that_a_clock_is_off() {
        let slow = judge(
            UnixMillis(90_000),
            UnixMillis(99_000),
            UnixMillis(100_000),
            2000,
        );
        assert_eq!(slow, Comparison::Agrees);
    }
}
