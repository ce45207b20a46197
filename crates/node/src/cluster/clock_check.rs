//! Whether the node's clock can be trusted: it is compared with the object storage's.
//!
//! **A start that object storage does not confirm** goes by what the disk knows of the time: the clock as it was confirmed last, and
//! the time that the machine has run since. Where it has booted in between, a clock that is ahead by more than an hour is not gone by:
//! by a clock that is years ahead every key would be over.
//!
//! A clock that is off by more than the cluster allows must not decide that keys are over. A node does not start with one. One
//! that finds out later goes on answering, says so loudly, and reclaims nothing until the clocks agree again. Nothing is reclaimed
//! either before the storage has told its time for the first time, nor after a clock's step that it has not confirmed. A storage
//! that only stops to tell its time changes nothing.

use std::{path::Path, time::Duration};

use keydb_core::{Clock, SinceBoot, UnixMillis};
use keydb_storage::ObjectStorage;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::{DataDirError, NodeError, disk::data_dir, node::Node};

/// How often the clock is compared with the storage's, by either clock.
const INTERVAL: Duration = Duration::from_secs(60);

/// Object storage tells its time in whole seconds.
const GRAIN_MS: u64 = 1000;

/// How long the storage may take to tell its time. An answer that took long says little.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// After another boot a clock that nobody confirms may be ahead of the last known time by this much. So much earlier may keys be over,
/// and no more.
const UNCONFIRMED_AHEAD_MAX_MS: u64 = 3_600_000;

/// The file in the data directory that has the clock as it was confirmed last.
const KNOWN: &str = "clock.json";

/// The clock as object storage has confirmed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KnownClock {
    now_ms: UnixMillis,
    since_boot: Option<SinceBoot>,
}

impl KnownClock {
    /// What `clock`, which was just confirmed, shows.
    pub(crate) fn of(clock: &dyn Clock) -> Self {
        Self {
            now_ms: clock.now(),
            since_boot: clock.since_boot(),
        }
    }

    /// Keeps it in the data directory `root`.
    pub(crate) fn save(&self, root: &Path) -> Result<(), DataDirError> {
        data_dir::replace_json(&root.join(KNOWN), self)
    }

    fn load(root: &Path) -> Option<Self> {
        data_dir::read_json(&root.join(KNOWN)).unwrap_or_else(|error| {
            warn!("when the clock was right last is not known: {error}");
            None
        })
    }

    /// The earliest and the latest time that a right clock of a machine that tells this of its boot may show now.
    fn bounds(
        &self,
        since_boot: Option<&SinceBoot>,
        error_max_ms: u64,
    ) -> (UnixMillis, UnixMillis) {
        let same_boot = self
            .since_boot
            .as_ref()
            .zip(since_boot)
            .filter(|(then, now)| then.boot_id == now.boot_id);
        let (at_least, allowance) = match same_boot {
            Some((then, now)) => {
                let elapsed = now.elapsed_ms.saturating_sub(then.elapsed_ms);
                // Clocks do not run quite alike.
                (self.now_ms.0.saturating_add(elapsed), elapsed / 1000)
            }
            None => (self.now_ms.0, UNCONFIRMED_AHEAD_MAX_MS),
        };
        let earliest = at_least.saturating_sub(error_max_ms);
        let latest = at_least
            .saturating_add(error_max_ms)
            .saturating_add(allowance);
        (UnixMillis(earliest), UnixMillis(latest))
    }
}

/// Whether a clock that object storage has not confirmed can be gone by, as far as the data directory `root` knows.
///
/// # Errors
/// When it cannot.
pub(crate) fn check_unconfirmed(
    clock: &dyn Clock,
    root: &Path,
    error_max_ms: u64,
) -> Result<(), NodeError> {
    let Some(known) = KnownClock::load(root) else {
        return Ok(());
    };
    let (earliest, latest) = known.bounds(clock.since_boot().as_ref(), error_max_ms);
    let now = clock.now();
    if (earliest..=latest).contains(&now) {
        return Ok(());
    }
    if now.0.saturating_add(error_max_ms) < known.now_ms.0 {
        return Err(NodeError::ClockWentBack {
            clock: now,
            written: known.now_ms,
        });
    }
    Err(NodeError::ClockUnconfirmed {
        clock: now,
        earliest,
        latest,
    })
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
                node.clock.trust(true);
                node.warnings.set(SUBJECT, None);
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
                if node.membership.state().table().is_none() {
                    return Err(error);
                }
                self.agreed = None;
                node.clock.trust(false);
                // The next look would say the same with other times.
                if !std::mem::replace(&mut self.is_off, true) {
                    let text = format!("{error}; nothing is reclaimed until it is");
                    node.warnings.set(SUBJECT, Some(text));
                }
            }
            Comparison::Unknown => self.cannot_look(node),
        }
        Ok(())
    }

    /// When the storage has confirmed the clock last, unless it was found to be off since.
    pub(crate) fn confirmed(&self) -> Option<UnixMillis> {
        self.agreed.map(|(_, clock)| clock)
    }

    /// The storage does not answer.
    pub(crate) fn cannot_look(&self, node: &Node) {
        node.clock.cannot_compare();
        if !node.clock.is_trusted() && !self.is_off {
            let text = "object storage does not tell its time, so this machine's clock is not checked; nothing is reclaimed until it is";
            node.warnings.set(SUBJECT, Some(text.to_owned()));
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
    fn without_the_storage_a_clock_is_measured_by_the_last_known_time_and_the_time_since_boot() {
        let since = |boot_id: &str, elapsed_ms| {
            Some(SinceBoot {
                boot_id: boot_id.to_owned(),
                elapsed_ms,
            })
        };
        let known = KnownClock {
            now_ms: UnixMillis(100_000_000),
            since_boot: since("a", 50_000),
        };
        let bounds = |since_boot: Option<SinceBoot>| {
            let (earliest, latest) = known.bounds(since_boot.as_ref(), 2000);
            (earliest.0, latest.0)
        };
        // By a thousandth of the ten million milliseconds that have passed.
        assert_eq!(bounds(since("a", 10_050_000)), (109_998_000, 110_012_000));
        let other_boot = (99_998_000, 103_602_000);
        assert_eq!(bounds(since("b", 10_050_000)), other_boot);
        assert_eq!(bounds(None), other_boot);
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
