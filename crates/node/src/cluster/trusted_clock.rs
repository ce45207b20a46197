//! The node's clock, and whether it may decide that keys are over for good.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use keydb_core::{Clock, SinceBoot, Times, UnixMillis, UnixSeconds};

/// A clock that moves further than this between two looks at it has made a step. Looks are seconds apart, and a minute where the
/// storage makes them wait.
const STEP_MAX_MS: u64 = 180_000;

/// A clock that is compared with object storage's now and then.
#[derive(Debug)]
pub(crate) struct TrustedClock {
    clock: Arc<dyn Clock>,
    /// The two agreed.
    agreed: AtomicBool,
    /// When that was looked at last, by the clock itself.
    looked_ms: AtomicU64,
}

impl Clock for TrustedClock {
    fn now(&self) -> UnixMillis {
        self.now()
    }

    fn since_boot(&self) -> Option<SinceBoot> {
        self.clock.since_boot()
    }
}

impl TrustedClock {
    /// A clock that has not been compared yet.
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            agreed: AtomicBool::new(false),
            looked_ms: AtomicU64::new(0),
        }
    }

    /// The time now.
    #[inline]
    pub(crate) fn now(&self) -> UnixMillis {
        self.clock.now()
    }

    /// Whether the clocks agreed, and this one has not made a step since.
    pub(crate) fn is_trusted(&self) -> bool {
        self.is_trusted_at(self.now())
    }

    #[inline]
    fn is_trusted_at(&self, now: UnixMillis) -> bool {
        let looked_ms = self.looked_ms.load(Ordering::Relaxed);
        self.agreed.load(Ordering::Relaxed) && now.0.abs_diff(looked_ms) <= STEP_MAX_MS
    }

    /// The clocks were compared: says whether they agree.
    pub(crate) fn trust(&self, agree: bool) {
        self.set(agree, self.now());
    }

    /// The clocks could not be compared. What is known stays so, unless this one has made a step meanwhile.
    pub(crate) fn cannot_compare(&self) {
        let now = self.now();
        self.set(self.is_trusted_at(now), now);
    }

    fn set(&self, agree: bool, now: UnixMillis) {
        self.looked_ms.store(now.0, Ordering::Relaxed);
        self.agreed.store(agree, Ordering::Relaxed);
    }

    /// The time now, as key sets go by it.
    pub(crate) fn times(&self) -> Times {
        self.times_at(self.now())
    }

    /// The time `now`, as key sets go by it. A clock that is not trusted lets none of them reclaim anything.
    pub(crate) fn times_at(&self, now: UnixMillis) -> Times {
        if self.is_trusted_at(now) {
            Times::at(now)
        } else {
            Times {
                now: now.seconds(),
                purge_before: UnixSeconds(0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use keydb_core::ManualClock;

    use super::*;

    const START: UnixMillis = UnixMillis(1_000_000_000);
    const STEP_MAX: Duration = Duration::from_millis(STEP_MAX_MS);
    const GRAIN: Duration = Duration::from_millis(1);

    fn clock() -> (Arc<ManualClock>, TrustedClock) {
        let manual = Arc::new(ManualClock::new(START));
        (manual.clone(), TrustedClock::new(manual))
    }

    #[test]
    fn a_clock_is_trusted_from_a_comparison_on_until_it_is_off_or_makes_a_step() {
        let (manual, clock) = clock();
        assert!(!clock.is_trusted());
        clock.cannot_compare();
        assert!(!clock.is_trusted());
        clock.trust(true);
        for (now, is_trusted) in [
            (START.plus(STEP_MAX), true),
            (START.plus(STEP_MAX + GRAIN), false),
            (UnixMillis(START.0 - STEP_MAX_MS), true),
            (UnixMillis(START.0 - STEP_MAX_MS - 1), false),
        ] {
            manual.set(now);
            assert_eq!(clock.is_trusted(), is_trusted, "{now}");
        }
        manual.set(START);
        clock.trust(false);
        assert!(!clock.is_trusted());
    }

    #[test]
    fn silence_costs_no_trust_unless_the_clock_has_made_a_step_meanwhile() {
        let (manual, clock) = clock();
        clock.trust(true);
        for _ in 0..1000 {
            manual.advance(STEP_MAX);
            clock.cannot_compare();
            assert!(clock.is_trusted());
        }
        manual.advance(STEP_MAX + GRAIN);
        clock.cannot_compare();
        assert!(!clock.is_trusted());
        clock.cannot_compare();
        assert!(!clock.is_trusted(), "only a comparison wins it again");
        clock.trust(true);
        assert!(clock.is_trusted());
    }
}
