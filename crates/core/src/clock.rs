//! Where time comes from.

use std::{
    fmt::Debug,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::UnixMillis;

/// A source of the current time.
pub trait Clock: Send + Sync + Debug + 'static {
    /// The time now.
    fn now(&self) -> UnixMillis;

    /// Since when the machine runs; `None` where it does not tell.
    fn since_boot(&self) -> Option<SinceBoot> {
        None
    }
}

/// How long a machine has been running. That goes on evenly, sleep included, whatever happens to the wall clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinceBoot {
    /// Another one after each boot.
    pub boot_id: String,
    /// The time since then, in milliseconds.
    pub elapsed_ms: u64,
}

/// A clock that stands still until it is moved, for tests.
#[derive(Debug)]
pub struct ManualClock {
    now_ms: AtomicU64,
    since_boot: Mutex<Option<SinceBoot>>,
}

impl ManualClock {
    /// A clock that shows `now`, of a machine that does not tell since when it runs.
    pub const fn new(now: UnixMillis) -> Self {
        Self {
            now_ms: AtomicU64::new(now.0),
            since_boot: Mutex::new(None),
        }
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.now_ms.fetch_add(
            u64::try_from(by.as_millis()).unwrap_or(u64::MAX),
            Ordering::SeqCst,
        );
    }

    /// Sets the clock, forward or back.
    pub fn set(&self, now: UnixMillis) {
        self.now_ms.store(now.0, Ordering::SeqCst);
    }

    /// Has the machine run since then.
    pub fn set_since_boot(&self, since_boot: SinceBoot) {
        let own = self.since_boot.lock();
        *own.unwrap_or_else(PoisonError::into_inner) = Some(since_boot);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> UnixMillis {
        UnixMillis(self.now_ms.load(Ordering::SeqCst))
    }

    fn since_boot(&self) -> Option<SinceBoot> {
        let own = self.since_boot.lock();
        own.unwrap_or_else(PoisonError::into_inner).clone()
    }
}
