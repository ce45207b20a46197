//! What moving ranges may take of a node, so that requests hardly notice it.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use crate::{background::ThreadUse, config::MoveBudget, lock::lock};

/// A thread goes on until it is so far ahead.
const THREAD_AHEAD_MAX: Duration = Duration::from_micros(500);

/// What all moves of a node share.
#[derive(Debug)]
pub(crate) struct Budget {
    limits: MoveBudget,
    /// Until then it is used up.
    used_until: Mutex<Option<Instant>>,
    /// Bytes that were moved so far.
    bytes: AtomicU64,
}

impl Budget {
    pub(super) fn new(limits: MoveBudget) -> Self {
        Self {
            limits,
            used_until: Mutex::default(),
            bytes: AtomicU64::new(0),
        }
    }

    /// Bytes of keys that were moved so far, and of backups.
    pub(crate) fn spent_bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Work has just been done that took `work` of a core and moved `bytes`. Waits until there may be more of it.
    pub(crate) async fn spend(&self, work: Duration, bytes: u64) {
        sleep_until(self.charge(work, bytes)).await;
    }

    /// The same for work on a thread of its own.
    pub(super) fn on_this_thread(&self) -> ThreadBudget<'_> {
        ThreadBudget {
            budget: self,
            used: ThreadUse::start(),
        }
    }

    /// Returns when there may be more work.
    fn charge(&self, work: Duration, bytes: u64) -> Instant {
        self.bytes.fetch_add(bytes, Relaxed);
        let by_work = work * 100 / self.limits.cpu_percent;
        let by_bytes = Duration::from_secs_f64(bytes as f64 / self.limits.bytes_per_second as f64);
        let cost = by_work.max(by_bytes).saturating_sub(work);
        let mut used_until = lock(&self.used_until);
        let now = Instant::now();
        let until = used_until.map_or(now, |until| until.max(now)) + cost;
        *used_until = Some(until);
        until
    }
}

/// What one thread takes of the budget.
#[derive(Debug)]
pub(super) struct ThreadBudget<'a> {
    budget: &'a Budget,
    used: ThreadUse,
}

impl ThreadBudget<'_> {
    /// What the thread has done since the last time moved `bytes`. Waits until there may be more of it.
    pub(super) fn spend(&mut self, bytes: u64) {
        let until = self.charge(bytes);
        let ahead = until.saturating_duration_since(Instant::now());
        if ahead > THREAD_AHEAD_MAX {
            std::thread::sleep(ahead);
        }
    }

    /// Takes it from the budget, and does not wait.
    pub(super) fn charge(&mut self, bytes: u64) -> Instant {
        self.budget.charge(self.used.taken(), bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: MoveBudget = MoveBudget {
        cpu_percent: 25,
        bytes_per_second: 1 << 20,
    };

    #[tokio::test(start_paused = true)]
    async fn work_and_bytes_of_all_moves_are_paid_for_with_time() {
        let budget = Budget::new(LIMITS);
        let begun = Instant::now();
        budget.spend(Duration::from_millis(100), 0).await;
        assert_eq!(begun.elapsed().as_millis(), 300);
        let half = budget.spend(Duration::ZERO, 1 << 19);
        tokio::join!(half, budget.spend(Duration::ZERO, 1 << 19));
        assert_eq!(begun.elapsed().as_millis(), 1300);
    }

    #[tokio::test(start_paused = true)]
    async fn a_larger_share_of_the_cores_costs_less_time() {
        let limits = MoveBudget {
            cpu_percent: 200,
            ..LIMITS
        };
        let begun = Instant::now();
        let budget = Budget::new(limits);
        budget.spend(Duration::from_millis(100), 0).await;
        assert_eq!(begun.elapsed().as_millis(), 0);
        let budget = Budget::new(MoveBudget {
            cpu_percent: 1,
            ..LIMITS
        });
        budget.spend(Duration::from_millis(1), 0).await;
        assert_eq!(begun.elapsed().as_millis(), 99);
    }
}
