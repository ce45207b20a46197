//! What a node writes to: its journal, and the snapshots of its keys.

pub(crate) mod data_dir;
pub(crate) mod failpoint;
pub(crate) mod journal;
pub(crate) mod load;
pub(crate) mod recovery;
pub(crate) mod snapshot;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use keydb_core::{Incarnation, NodeId, metrics::Durations};
use keydb_proto::shard::DiskStatus;
use tokio::time::Instant;
use tracing::{error, info};

use crate::{
    disk::data_dir::DataDir,
    disk::journal::Journal,
    disk::snapshot::{SnapshotCounters, Snapshotter},
};

/// How long the last snapshot's upload may hold up a node that stops.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(5);

/// A disk in use.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) journal: Arc<Journal>,
    /// Makes snapshots from the time on when it is known which files there are.
    snapshots: Mutex<Option<Arc<Snapshotter>>>,
    id: Incarnation,
    /// Held as long as something may be written.
    _data_dir: Arc<DataDir>,
}

/// What a disk's journal and snapshots have done since the start.
#[derive(Debug, Clone, Default)]
pub(crate) struct DiskCounters {
    pub(crate) journal_syncs: Durations,
    pub(crate) snapshots: SnapshotCounters,
}

impl Disk {
    pub(crate) fn new(data_dir: Arc<DataDir>, journal: Arc<Journal>) -> Self {
        Self {
            journal,
            snapshots: Mutex::default(),
            id: data_dir.disk_id(),
            _data_dir: data_dir,
        }
    }

    /// It is known which files there are, so snapshots can be made.
    pub(crate) fn start_snapshots(&self, snapshots: Snapshotter) {
        *self.lock() = Some(Arc::new(snapshots));
    }

    /// What makes snapshots, until the disk is closed.
    pub(crate) fn snapshots(&self) -> Option<Arc<Snapshotter>> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Snapshotter>>> {
        self.snapshots
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The end of a node that fails or is dropped: nothing more is written than what the journal has taken in.
    pub(crate) fn abandon(&self) {
        let snapshots = self.lock().take();
        if let Some(snapshots) = snapshots {
            snapshots.abandon();
        }
        // What went wrong with it was said where it did.
        let _ = self.journal.close();
    }

    /// Has the journal leave the room that the next snapshot needs.
    pub(crate) fn reserve_room(&self) {
        if let Some(snapshots) = self.snapshots() {
            snapshots.reserve_room();
        }
    }

    /// Since when the same write or sync is under way, of the journal and of snapshots.
    pub(crate) fn busy_since(&self) -> [Option<std::time::Instant>; 2] {
        let snapshots = self.snapshots();
        [
            self.journal.busy_since(),
            snapshots.and_then(|snapshots| snapshots.busy_since()),
        ]
    }

    /// The end of a node whose disk does not answer: nobody waits for what is under way.
    pub(crate) fn leave(&self) {
        self.journal.leave();
        if let Some(snapshots) = self.lock().take() {
            snapshots.leave();
        }
    }

    /// What there was to count since the start.
    pub(crate) fn counters(&self) -> DiskCounters {
        let snapshots = self.snapshots().map(|snapshots| snapshots.status());
        DiskCounters {
            journal_syncs: self.journal.syncs(),
            snapshots: snapshots.unwrap_or_default().counters,
        }
    }

    pub(crate) fn status(&self) -> DiskStatus {
        let snapshots = self.snapshots().map(|snapshots| snapshots.status());
        let snapshots = snapshots.unwrap_or_default();
        DiskStatus {
            disk_id: self.id.to_bytes().to_vec().into(),
            lsn: self.journal.appended().0,
            synced_lsn: self.journal.committed().0,
            local_lsn: snapshots.local.lsn.0,
            uploaded_lsn: snapshots.uploaded.lsn.0,
            local_complete_to_unix_ms: snapshots.local.complete_to.0,
            uploaded_complete_to_unix_ms: snapshots.uploaded.complete_to.0,
            journal_bytes: self.journal.bytes(),
            snapshot_bytes: snapshots.file_bytes,
            full: self.journal.is_full().is_some(),
            room_wanted_bytes: self.journal.wanted_bytes(),
        }
    }

    /// The end of a node that was asked to stop, after its last request: everything goes to local files, and to object storage
    /// where that is quick.
    pub(crate) async fn close(&self, id: NodeId, deadline: Instant) {
        let snapshots = self.lock().take();
        if let Some(snapshots) = snapshots {
            info!(node = %id, "making the last snapshot");
            match snapshots
                .close(deadline.max(Instant::now() + UPLOAD_TIMEOUT))
                .await
            {
                Ok(()) => info!(node = %id, "the last snapshot is made"),
                // The journal has what the snapshot lacks.
                Err(reason) => error!(node = %id, "the last snapshot is not complete: {reason}"),
            }
        }
        let journal = Arc::clone(&self.journal);
        match tokio::task::spawn_blocking(move || journal.close()).await {
            Ok(Ok(())) => {
                info!(node = %id, lsn = %self.journal.committed(), "the journal is closed")
            }
            Ok(Err(error)) => error!(node = %id, "the journal is not closed cleanly: {error}"),
            Err(error) => error!(node = %id, "the journal is not closed cleanly: {error}"),
        }
    }
}
