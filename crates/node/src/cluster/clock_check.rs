//! Whether the node's clock can be trusted: it is compared with the object storage's.
//!
//! A clock that is off by more than the cluster allows must not decide that keys are over. A node does not start with one. One
//! that finds out later goes on answering, says so loudly, and reclaims nothing until the clocks agree again. Nothing is reclaimed
//! either before the storage has told its time for the first time, nor after a clock's step that it has not confirmed. A storage
//! that only stops to tell its time changes nothing.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use keydb_core::{Clock, UnixMillis};
use keydb_storage::ObjectStorage;
use tokio::time::{Instant, timeout};

use crate::{NodeError, node::Node};

/// How often the clock is compared with the storage's, by either clock.
const INTERVAL: Duration = Duration::from_secs(60);

/// A clock that moves further than this between two looks at it has made a step. Looks are seconds apart, and a minute where the
/// storage makes them wait.
const STEP_MAX_MS: u64 = 180_000;

/// Object storage tells its time in whole seconds.
const GRAIN_MS: u64 = 1000;

/// How long the storage may take to tell its time. An answer that took long says little.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether the clock may decide that keys are over.
#[derive(Debug, Default)]
pub(crate) struct ClockTrust {
    agreed: AtomicBool,
    /// When that was looked at last, by the clock itself.
    looked_ms: AtomicU64,
}

impl ClockTrust {
    /// Whether the clocks agreed, and this one, which shows `now`, has not made a step since.
    #[inline]
    pub(crate) fn holds(&self, now: UnixMillis) -> bool {
        let looked_ms = self.looked_ms.load(Ordering::Relaxed);
        self.agreed.load(Ordering::Relaxed) && now.0.abs_diff(looked_ms) <= STEP_MAX_MS
    }

    /// The clocks were compared.
    pub(crate) fn set(&self, agree: bool, now: UnixMillis) {
        self.looked_ms.store(now.0, Ordering::Relaxed);
        self.agreed.store(agree, Ordering::Relaxed);
    }

    /// They could not be compared.
    pub(crate) fn keep(&self, now: UnixMillis) {
        self.set(self.holds(now), now);
    }
}

/// Compares a node's clock with the storage's now and then.
#[derive(Debug, Default)]
pub(crate) struct ClockWatch {
    /// When they last agreed.
    agreed: Option<(Instant, UnixMillis)>,
    is_off: bool,
}

impl ClockWatch {
    /// Compares the clocks when it is time to.
    ///
    /// # Errors
    /// When they differ by more than `error_max_ms` and the node does not serve yet.
    pub(crate) async fn look(
        &mut self,
        node: &Node,
        storage: &dyn ObjectStorage,
        error_max_ms: u64,
    ) -> Result<(), NodeError> {
        if let Some((when, clock)) = self.agreed
            && when.elapsed() < INTERVAL
            && u128::from(node.clock.now().0.abs_diff(clock.0)) < INTERVAL.as_millis()
        {
            return Ok(());
        }
        match compare(&*node.clock, storage, error_max_ms).await {
            Comparison::Agrees => {
                self.agreed = Some((Instant::now(), node.clock.now()));
                self.is_off = false;
                node.trust_clock(true);
                node.warn_of(SUBJECT, None);
            }
            Comparison::Off {
                ahead_ms,
                storage,
                clock,
            } => {
                let error = NodeError::Clock {
                    ahead_ms,
                    storage,
                    clock,
                    error_max_ms,
                };
                if node.membership_state().table().is_none() {
                    return Err(error);
                }
                self.agreed = None;
                node.trust_clock(false);
                // The next look would say the same with other times.
                if !std::mem::replace(&mut self.is_off, true) {
                    let text = format!("{error}; nothing is reclaimed until it is");
                    node.warn_of(SUBJECT, Some(text));
                }
            }
            Comparison::Unknown => self.cannot_look(node),
        }
        Ok(())
    }

    /// The storage does not answer.
    pub(crate) fn cannot_look(&self, node: &Node) {
        node.cannot_check_clock();
        if !node.clock_is_trusted() && !self.is_off {
            let text = "object storage does not tell its time, so this machine's clock is not checked; nothing is reclaimed until it is";
            node.warn_of(SUBJECT, Some(text.to_owned()));
        }
    }
}

/// What the node's warnings are about.
const SUBJECT: &str = "clock";

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
    fn a_clock_is_trusted_from_a_comparison_on_until_it_is_off_or_makes_a_step() {
        let trust = ClockTrust::default();
        let at = UnixMillis;
        assert!(!trust.holds(at(0)));
        trust.keep(at(1_000_000));
        assert!(!trust.holds(at(1_000_000)));
        trust.set(true, at(1_000_000));
        assert!(trust.holds(at(1_000_000 + STEP_MAX_MS)));
        assert!(trust.holds(at(1_000_000 - STEP_MAX_MS)));
        assert!(!trust.holds(at(1_000_001 + STEP_MAX_MS)));
        assert!(!trust.holds(at(999_999 - STEP_MAX_MS)));
        trust.set(false, at(1_000_000));
        assert!(!trust.holds(at(1_000_000)));
    }

    #[test]
    fn silence_costs_no_trust_unless_the_clock_has_made_a_step_meanwhile() {
        let trust = ClockTrust::default();
        trust.set(true, UnixMillis(1_000_000));
        let mut now = UnixMillis(1_000_000);
        for _ in 0..1000 {
            now = UnixMillis(now.0 + STEP_MAX_MS);
            trust.keep(now);
            assert!(trust.holds(now));
        }
        now = UnixMillis(now.0 + STEP_MAX_MS + 1);
        trust.keep(now);
        assert!(!trust.holds(now));
        trust.keep(now);
        assert!(!trust.holds(now), "only a comparison wins it again");
        trust.set(true, now);
        assert!(trust.holds(now));
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
