//! The journal: what was applied, in order, on disk before it is told of.
//!
//! **Writing.** A request that writes is [admitted](Journal::admit) first: room for its records is promised, so that what is
//! applied can always be written. Each chunk of it then takes an LSN ([`Space::begin`]), is applied, and
//! [appends](Reservation::append) its record. Records are put in LSN order, and one thread, the `writer`, takes all that wait,
//! writes them at once and syncs them at once: group commit. Whoever waits for an LSN is woken when it is synced. An LSN that was
//! taken and not used becomes an empty record, so LSNs have no gaps.
//!
//! **Files.** A journal is a row of segments, named by their first LSN, filled with zeros ahead of need by a second thread, the
//! `preparer`, which removes them as well: a sync of space that exists already is about twice as fast as one that makes a file
//! longer, and a full disk is met there, where nothing is lost yet. While the disk is full, nothing more is admitted than was
//! promised room for.
//!
//! **Failure.** When a write or a sync of a segment fails, nobody knows what is on disk. The journal has failed then for good:
//! nothing is acknowledged any more, and the node ends.
//!
//! **Reading** is `replay`'s. **Recent records** are kept in memory for a while, as what a delta snapshot is made of; in `snapshot`
//! mode that is all that there is: no files, no threads, and every record is committed as soon as it is appended.

#[doc(hidden)]
pub mod bench;
mod files;
mod inspect;
mod prepare;
mod queue;
mod recent;
mod replay;
mod segment;
mod tap;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use keydb_core::{
    Clock, ClusterId, Incarnation, Lsn, NodeId,
    metrics::{Durations, Histogram},
};

pub use inspect::{Found, inspect};
pub(crate) use queue::{Reservation, Space};
pub(crate) use recent::{Recent, RecentRecords};
pub(crate) use replay::replay;
pub(crate) use tap::{Tap, TapNotes, Tapped};

use crate::lock::lock;
use prepare::Room;
use queue::Queue;

/// A segment's size, unless told otherwise.
const SEGMENT_BYTES: u64 = 64 << 20;

/// Recent records are kept in memory, for the next delta snapshot, up to this size.
pub(crate) const RECENT_BYTES_MAX: usize = 16 << 20;

/// So many bytes may wait in taps before those who write have to wait.
const TAPPED_BYTES_MAX: usize = 32 << 20;

/// How often it is looked whether they still do.
const TAP_PAUSE: Duration = Duration::from_millis(1);

/// Where the journal is and what it goes by.
#[derive(Debug, Clone)]
pub(crate) struct JournalConfig {
    /// Its directory.
    pub(crate) dir: PathBuf,
    /// Whose journal it is.
    pub(crate) identity: Identity,
    /// Whether records are written to disk and synced before they count as committed.
    pub(crate) synced: bool,
    /// How large a segment is.
    pub(crate) segment_bytes: u64,
    /// How much of the disk is left to snapshots until [`Journal::reserve`] says otherwise, besides what the journal has by then.
    pub(crate) reserved_bytes: u64,
    /// What records are dated by.
    pub(crate) clock: Arc<dyn Clock>,
}

/// How large its parts are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JournalSizes {
    /// A segment.
    pub(crate) segment_bytes: u64,
    /// The recent records at most.
    pub(crate) recent_bytes_max: usize,
}

impl Default for JournalSizes {
    fn default() -> Self {
        Self {
            segment_bytes: SEGMENT_BYTES,
            recent_bytes_max: RECENT_BYTES_MAX,
        }
    }
}

/// Whose journal it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) cluster_id: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) disk_id: Incarnation,
}

/// A journal cannot be read or written.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// A file could not be read or written.
    #[error("cannot {action} {}: {reason}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        reason: String,
    },
    /// What was synced cannot be read back, so what was acknowledged is not complete.
    #[error("journal {} is damaged at byte {offset}: {reason}; see docs/operations.md, \"A damaged journal\"", path.display())]
    Damaged {
        /// The segment's file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// Segments are missing, or belong to another journal.
    #[error("journal {} is not complete: {reason}; see docs/operations.md, \"A damaged journal\"", path.display())]
    Incomplete {
        /// The journal's directory, or the segment's file.
        path: PathBuf,
        /// What is missing or foreign.
        reason: String,
    },
}

/// There is no room on the disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the disk has no room for the journal: {reason}")]
pub(crate) struct Full {
    reason: String,
}

/// A journal in use.
#[derive(Debug)]
pub(crate) struct Journal {
    shared: Arc<Shared>,
    /// The writer and the preparer.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What the handle and the threads share.
#[derive(Debug)]
struct Shared {
    config: JournalConfig,
    queue: Queue,
    room: Room,
    /// Since when the writer is at work on the disk.
    busy_since: Mutex<Option<Instant>>,
    /// How long syncs of a segment took.
    syncs: Histogram,
}

impl JournalConfig {
    /// Of a journal in memory, which keeps no record.
    pub(crate) fn in_memory(identity: Identity, clock: Arc<dyn Clock>) -> Self {
        Self::new(PathBuf::new(), identity, false, clock)
    }

    pub(crate) fn new(
        dir: PathBuf,
        identity: Identity,
        synced: bool,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            dir,
            identity,
            synced,
            segment_bytes: SEGMENT_BYTES,
            reserved_bytes: 0,
            clock,
        }
    }
}

impl Journal {
    /// Starts to write behind the last of the records `recent`, which is the last one that [`replay`] found. What it found before is
    /// left as it is, and a new segment begun.
    ///
    /// # Errors
    /// When the directory cannot be used. A full disk is no error: the journal then admits nothing until there is room.
    pub(crate) fn open(config: JournalConfig, recent: Recent) -> Result<Self, JournalError> {
        let (last, synced) = (recent.to(), config.synced);
        let shared = Arc::new(Shared {
            queue: Queue::new(recent, synced),
            room: Room::new(config.segment_bytes),
            busy_since: Mutex::default(),
            syncs: Histogram::default(),
            config,
        });
        let mut threads = Vec::new();
        if synced {
            let closed = files::Segments::open(&shared.config.dir, last)?;
            let reserved_bytes = shared.config.reserved_bytes + closed.bytes();
            shared.room.reserve(reserved_bytes);
            threads = vec![
                spawn("keydb-journal", {
                    let shared = Arc::clone(&shared);
                    move || writer::run(&shared, last, closed)
                })?,
                spawn("keydb-prepare", {
                    let shared = Arc::clone(&shared);
                    move || prepare::run(&shared)
                })?,
            ];
        }
        Ok(Self {
            shared,
            threads: Mutex::new(threads),
        })
    }

    /// Whether what is appended is committed only later.
    #[inline]
    pub(crate) fn is_synced(&self) -> bool {
        self.shared.config.synced
    }

    /// Every record that is committed from here on comes out of the tap as well.
    pub(crate) fn tap(&self) -> (Tap, TapNotes) {
        self.shared.queue.taps().open()
    }

    /// Whether anybody has opened a tap.
    #[inline]
    pub(crate) fn is_tapped(&self) -> bool {
        self.shared.queue.taps().are_open()
    }

    /// Room in a journal that is not written to disk.
    pub(crate) fn free_space(&self) -> Space {
        debug_assert!(!self.is_synced());
        Space::new(Arc::clone(&self.shared), 0)
    }

    /// How many bytes wait in taps.
    pub(crate) fn tapped_bytes(&self) -> usize {
        self.shared.queue.taps().waiting_bytes()
    }

    /// The disk whose records they are.
    pub(crate) fn disk_id(&self) -> Incarnation {
        self.shared.config.identity.disk_id
    }

    /// Waits while other nodes take records more slowly than they come. They have a second for some before their sessions end.
    pub(crate) async fn tapped_records_go(&self) {
        while self.tapped_bytes() > TAPPED_BYTES_MAX {
            tokio::time::sleep(TAP_PAUSE).await;
        }
    }

    /// Promises room for records of `bytes` in total. Waits while more is being prepared.
    ///
    /// # Errors
    /// When the disk is full.
    pub(crate) async fn admit(&self, bytes: usize) -> Result<Space, Full> {
        self.tapped_records_go().await;
        let promised = if self.is_synced() {
            self.shared.room.promise(bytes as u64).await?
        } else {
            0
        };
        Ok(Space::new(Arc::clone(&self.shared), promised))
    }

    /// The last LSN that was taken. What is applied under it may not be appended yet, but will be, without anybody waiting.
    #[inline]
    pub(crate) fn taken(&self) -> Lsn {
        self.shared.queue.taken()
    }

    /// The records up to this one are in order and on their way.
    #[inline]
    pub(crate) fn appended(&self) -> Lsn {
        self.shared.queue.appended()
    }

    /// The records up to this one are safe.
    #[inline]
    pub(crate) fn committed(&self) -> Lsn {
        self.shared.queue.committed()
    }

    /// Waits until the records up to `lsn` are safe.
    ///
    /// # Errors
    /// When the journal has failed before.
    pub(crate) async fn wait_committed(&self, lsn: Lsn) -> Result<(), JournalError> {
        self.shared.queue.wait_committed(lsn).await
    }

    /// The committed records up to `up_to` that no snapshot file has.
    pub(crate) fn recent(&self, up_to: Lsn) -> RecentRecords {
        self.shared.queue.recent().up_to(up_to)
    }

    /// Snapshot files have the records up to `to`.
    pub(crate) fn recent_written(&self, to: Lsn) {
        self.shared.queue.recent().written(to);
    }

    /// The records up to `to` are not kept any more: full files are to have what they say.
    pub(crate) fn lose_recent(&self, to: Lsn) {
        self.shared.queue.recent().lose(to);
    }

    /// Full files that were begun behind `lost` have what the lost records up to there say.
    pub(crate) fn recent_recovered(&self, lost: Lsn) {
        self.shared.queue.recent().recovered(lost);
    }

    /// How many bytes of recent records there are, and how many there may be.
    pub(crate) fn recent_bytes(&self) -> (usize, usize) {
        self.shared.queue.recent().bytes()
    }

    /// The records up to `covered` are not needed any more: segments that have no others are removed, soon.
    pub(crate) fn cut(&self, covered: Lsn) {
        self.shared.queue.cut(covered);
    }

    /// How many bytes the journal's files have, space that was prepared left out.
    pub(crate) fn bytes(&self) -> u64 {
        self.shared.queue.file_bytes() + self.shared.room.superseded_bytes()
    }

    /// What stands in the way of admitting more, if anything.
    pub(crate) fn is_full(&self) -> Option<String> {
        self.shared.room.is_full()
    }

    /// Leaves `bytes` of the disk to snapshots: the journal takes no more room where less would be left.
    pub(crate) fn reserve(&self, bytes: u64) {
        self.shared.room.reserve(bytes);
    }

    /// How many bytes must be free on the disk for more to be admitted; 0 while nothing stands in the way.
    pub(crate) fn wanted_bytes(&self) -> u64 {
        match self.is_full() {
            Some(_) => self.shared.config.segment_bytes + self.shared.room.reserved_bytes(),
            None => 0,
        }
    }

    /// How much may still be written before the journal takes more room than it asks for next, and that.
    pub(crate) fn ahead_bytes(&self) -> u64 {
        match self.is_synced() {
            true => self.shared.room.available_bytes() + self.shared.config.segment_bytes,
            false => 0,
        }
    }

    /// How long the syncs of its records took.
    pub(crate) fn syncs(&self) -> Durations {
        self.shared.syncs.read()
    }

    /// Since when the writer has been at one piece of work on the disk; `None` while it has none.
    pub(crate) fn busy_since(&self) -> Option<Instant> {
        *lock(&self.shared.busy_since)
    }

    /// Leaves the threads to themselves: they do not end while the disk does not answer, and nobody may wait for them.
    pub(crate) fn leave(&self) {
        lock(&self.threads).clear();
    }

    /// Waits until the journal fails.
    pub(crate) async fn failed(&self) -> JournalError {
        self.shared.queue.failed().await
    }

    /// Writes and syncs everything, says so in the journal, and ends the threads. Nothing may be appended afterwards.
    ///
    /// # Errors
    /// When the journal has failed.
    pub(crate) fn close(&self) -> Result<(), JournalError> {
        self.shared.queue.close();
        // The writer first: it may need another segment for what is to be written.
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            // A panic in it was printed; the queue says that it failed.
            let _ = thread.join();
            self.shared.room.stop();
        }
        // Also where the threads were left to themselves.
        self.shared.room.stop();
        self.shared.queue.error().map_or(Ok(()), Err)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // A journal that was closed has no threads any more.
        let _ = self.close();
    }
}

impl JournalError {
    fn io(action: &'static str, path: &Path, error: &io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            reason: error.to_string(),
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, JournalError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(|error| JournalError::io("start a thread for", Path::new("the journal"), &error))
}
