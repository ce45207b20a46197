//! Room on the disk: prepared ahead of need, and promised to requests before they apply anything.

use std::{
    collections::VecDeque,
    fs::File,
    path::PathBuf,
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

use keydb_core::Lsn;
use tokio::sync::Notify;
use tracing::{info, warn};

use super::{
    Full, Shared,
    files::{self, SegmentFile},
};
use crate::lock::lock;

/// As long as nobody waits for it, a preparation rests this many times as long as it works: the disk is for the writer.
const REST_FACTOR: u32 = 2;

/// It does not rest longer than that at once, so that a segment is there before the one that is written to is full.
const REST_MAX: Duration = Duration::from_millis(10);

/// How long after a failure it is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// What of a segment is never promised: the end that the next record does not fit into, its header, and marks.
const MARGIN_BYTES_MAX: u64 = 1 << 20;

/// Room on the disk.
#[derive(Debug)]
pub(super) struct Room {
    /// When less may be promised, another segment is prepared.
    low_bytes: u64,
    state: Mutex<State>,
    /// Told when there is more of it, or none to be had: for those who wait to be promised some.
    changed: Notify,
    /// The same, for the writer.
    prepared: Condvar,
    /// Told when more is needed.
    needed: Condvar,
}

/// A file full of zeros.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) path: PathBuf,
    pub(super) file: File,
}

/// What may still be promised and what is promised are together the [`budget`]s of the segment that is written to, as far as it is
/// not used, and of the prepared ones.
#[derive(Debug, Default)]
struct State {
    /// What may still be promised.
    available: u64,
    /// What somebody waits for.
    wanted: u64,
    prepared: VecDeque<Prepared>,
    /// Why there is none to be had.
    full: Option<String>,
    /// The writer has no segment to go on with.
    writer_waits: bool,
    /// What else must be free on the disk for another segment to be prepared.
    reserved_bytes: u64,
    /// A cut up to here is to be made again when a segment is prepared.
    cut_waits: Option<Lsn>,
    /// Segments that are not needed any more, the oldest first, and whether they are to be removed now.
    superseded: VecDeque<SegmentFile>,
    removes: bool,
    stopping: bool,
}

/// How much of a segment may be promised.
pub(super) fn budget(segment_bytes: u64) -> u64 {
    segment_bytes - MARGIN_BYTES_MAX.min(segment_bytes / 4)
}

impl Room {
    pub(super) fn new(segment_bytes: u64) -> Self {
        Self {
            low_bytes: segment_bytes / 2,
            state: Mutex::default(),
            changed: Notify::new(),
            prepared: Condvar::new(),
            needed: Condvar::new(),
        }
    }

    /// Promises `bytes`; waits while more is prepared.
    pub(super) async fn promise(&self, bytes: u64) -> Result<u64, Full> {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = lock(&self.state);
                if state.available >= bytes {
                    state.available -= bytes;
                    if state.available < self.low_bytes {
                        self.needed.notify_one();
                    }
                    return Ok(bytes);
                }
                if state.stopping {
                    return Err(Full {
                        reason: "the journal is being closed".to_owned(),
                    });
                }
                if let Some(reason) = &state.full {
                    return Err(Full {
                        reason: reason.clone(),
                    });
                }
                state.wanted = state.wanted.max(bytes);
                self.needed.notify_one();
            }
            changed.await;
        }
    }

    /// Takes `bytes` if they are there.
    pub(super) fn take(&self, bytes: u64) -> bool {
        let mut state = lock(&self.state);
        let enough = state.available >= bytes;
        if enough {
            state.available -= bytes;
        }
        enough
    }

    pub(super) fn give_back(&self, bytes: u64) {
        if bytes > 0 {
            lock(&self.state).available += bytes;
            self.changed.notify_waiters();
        }
    }

    pub(super) fn is_full(&self) -> Option<String> {
        lock(&self.state).full.clone()
    }

    /// Leaves so much of the disk to others.
    pub(super) fn reserve(&self, bytes: u64) {
        lock(&self.state).reserved_bytes = bytes;
    }

    /// How much is prepared and not promised.
    pub(super) fn available_bytes(&self) -> u64 {
        lock(&self.state).available
    }

    pub(super) fn reserved_bytes(&self) -> u64 {
        lock(&self.state).reserved_bytes
    }

    /// Has segments removed that are not needed any more, the oldest first. It may take a while, for which the writer has no time.
    /// One that cannot be removed stays, and all behind it, until the next time.
    pub(super) fn remove(&self, segments: Vec<SegmentFile>) {
        let mut state = lock(&self.state);
        state.superseded.extend(segments);
        state.removes = !state.superseded.is_empty();
        self.needed.notify_one();
    }

    /// The size of those that are still there.
    pub(super) fn superseded_bytes(&self) -> u64 {
        let state = lock(&self.state);
        state.superseded.iter().map(|segment| segment.bytes).sum()
    }

    /// Whether everything that was to be removed is, or could not be.
    #[cfg(test)]
    pub(super) fn has_removed(&self) -> bool {
        !lock(&self.state).removes
    }

    fn remove_superseded(&self) {
        loop {
            let oldest = {
                let mut state = lock(&self.state);
                let Some(oldest) = state.superseded.front().cloned() else {
                    state.removes = false;
                    return;
                };
                oldest
            };
            if let Err(error) = files::remove(&oldest.path) {
                warn!("{error}; it is not needed any more, and the next snapshot tries again");
                lock(&self.state).removes = false;
                return;
            }
            lock(&self.state).superseded.pop_front();
        }
    }

    /// Waits as long as nobody needs more room at once, at most `time`.
    fn rest(&self, time: Duration) {
        let is_unhurried =
            |state: &mut State| !state.stopping && !state.writer_waits && state.wanted == 0;
        drop(
            self.needed
                .wait_timeout_while(lock(&self.state), time, is_unhurried)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    pub(super) fn stop(&self) {
        lock(&self.state).stopping = true;
        self.needed.notify_all();
        self.prepared.notify_all();
        self.changed.notify_waiters();
    }

    /// The next prepared file, for the writer; `None` when the journal ends before there is one. What was promised has its
    /// room, so this waits for the preparer at most.
    pub(super) fn next_segment(&self) -> Option<Prepared> {
        let mut state = lock(&self.state);
        loop {
            if let Some(prepared) = state.prepared.pop_front() {
                state.writer_waits = false;
                return Some(prepared);
            }
            if state.stopping {
                return None;
            }
            state.writer_waits = true;
            self.needed.notify_one();
            state = self
                .prepared
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A segment is left of which `bytes` were used. What of that was more than its budget was taken from the next one's.
    pub(super) fn segment_left(&self, bytes: u64, segment_bytes: u64) {
        self.give_back(bytes.saturating_sub(budget(segment_bytes)));
    }

    /// A prepared file in exchange for the unused end of a segment, `bytes` of what may be promised. `None` when some of them are
    /// promised, or no file is prepared: then one is, and the cut up to `covered` is made again. The writer has no time to wait for it.
    pub(super) fn exchange(&self, bytes: u64, covered: Lsn) -> Option<Prepared> {
        let mut state = lock(&self.state);
        if state.available < bytes {
            return None;
        }
        let prepared = state.prepared.pop_front();
        if prepared.is_some() {
            state.available -= bytes;
        } else if !state.stopping {
            state.cut_waits = Some(covered);
            self.needed.notify_one();
        }
        prepared
    }
}

/// Prepares segments, and removes them, until told to stop.
pub(super) fn run(shared: &Shared) {
    let room = &shared.room;
    let segment_bytes = shared.config.segment_bytes;
    let mut number = 0;
    let mut state = lock(&room.state);
    while !state.stopping {
        // What is removed makes room.
        if state.removes && !state.writer_waits {
            drop(state);
            room.remove_superseded();
            state = lock(&room.state);
            continue;
        }
        // A disk that was full is asked again until it is not.
        let enough = state.full.is_none()
            && !state.writer_waits
            && state.cut_waits.is_none()
            && state.available >= state.wanted.max(room.low_bytes);
        if enough {
            state = room
                .needed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        // What was promised must be written in any case, and a cut gives back more than it takes.
        let reserved_bytes = if state.writer_waits || state.cut_waits.is_some() {
            0
        } else {
            state.reserved_bytes
        };
        drop(state);
        number += 1;
        let made = files::prepare(
            &shared.config.dir,
            number,
            segment_bytes,
            reserved_bytes,
            |worked| {
                room.rest((worked * REST_FACTOR).min(REST_MAX));
            },
        );
        state = lock(&room.state);
        match made {
            Ok((path, file)) => {
                state.prepared.push_back(Prepared { path, file });
                state.available += budget(segment_bytes);
                if state.available >= state.wanted {
                    state.wanted = 0;
                }
                if state.full.take().is_some() {
                    info!(dir = %shared.config.dir.display(), "there is room for the journal again");
                }
                room.prepared.notify_one();
                room.changed.notify_waiters();
                if let Some(covered) = state.cut_waits.take() {
                    drop(state);
                    shared.queue.cut(covered);
                    state = lock(&room.state);
                }
            }
            Err(error) => {
                let reason = format!(
                    "cannot prepare {segment_bytes} bytes in {}: {error} (with {reserved_bytes} bytes that snapshots need, {} must be free)",
                    shared.config.dir.display(),
                    segment_bytes + reserved_bytes
                );
                if state.full.is_none() {
                    warn!(
                        "{reason}; when what was prepared before is used up, writes are refused; trying again every second"
                    );
                }
                state.full = Some(reason);
                // The next snapshot cuts again.
                state.cut_waits = None;
                room.prepared.notify_one();
                room.changed.notify_waiters();
                state = room
                    .needed
                    .wait_timeout_while(state, RETRY_INTERVAL, |state| !state.stopping)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
        }
    }
    drop(state);
    room.remove_superseded();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_that_finds_no_prepared_segment_does_not_wait_for_one() {
        let room = Room::new(4096);
        lock(&room.state).available = 4096;
        assert!(room.exchange(1000, Lsn(7)).is_none());
        let state = lock(&room.state);
        assert_eq!(state.cut_waits, Some(Lsn(7)));
        assert_eq!(state.available, 4096);
    }
}
