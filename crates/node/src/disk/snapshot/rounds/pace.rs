//! How fast snapshots are made: slowly enough to leave the machine to requests.

use std::time::{Duration, Instant};

use crate::{
    background::ThreadUse,
    disk::snapshot::{error::RoundError, shared::Shared},
};

/// After so much work in a row it rests, [`REST_FACTOR`] times as long as it has worked: a quarter of one core at most.
const WORK_SLICE: Duration = Duration::from_micros(300);
const REST_FACTOR: u32 = 3;
const REST_MAX: Duration = Duration::from_millis(50);

/// Keeps the work on snapshots within its share of a core, and ends it when the node does.
#[derive(Debug)]
pub(super) struct Pace<'a> {
    shared: &'a Shared,
    since: Instant,
    /// While the thread waits for the disk, it does not work.
    used: ThreadUse,
}

impl<'a> Pace<'a> {
    pub(super) fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            since: Instant::now(),
            used: ThreadUse::start(),
        }
    }

    /// To be called after each small piece of work, without a lock. There is no rest when the node waits for the last snapshot.
    ///
    /// # Errors
    /// When the node ends without one.
    pub(super) fn rest(&mut self) -> Result<(), RoundError> {
        if self.since.elapsed() < WORK_SLICE {
            return Ok(());
        }
        let (hurries, is_over) = {
            let state = self.shared.state();
            (state.closing, state.abandoned)
        };
        if is_over {
            return Err(RoundError::Stopping);
        }
        if !hurries {
            self.shared.is_idle();
            std::thread::sleep((self.used.taken() * REST_FACTOR).min(REST_MAX));
        }
        self.shared.is_busy();
        self.since = Instant::now();
        self.used.taken();
        Ok(())
    }
}
