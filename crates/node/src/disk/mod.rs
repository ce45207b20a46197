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

use keydb_core::{Incarnation, RangeId};
use keydb_proto::{
    refusal_status,
    shard::{
        CreateSnapshotsReply, CreateSnapshotsRequest, DiskStatus, ErrorCode, OpenRangeReply,
        OpenRangeRequest,
    },
};
use tokio::time::Instant;
use tonic::Status;
use tracing::{error, info};

use crate::{
    disk::data_dir::DataDir, disk::journal::Journal, disk::snapshot::Snapshotter, node::Node,
    server::status::check_cluster,
};

/// How long the last snapshot's upload may hold up a node that stops.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a snapshot that was asked for is waited for where the caller says nothing else.
pub(crate) const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(3600);

/// The answer needs a part of a caller's patience to get there, up to this.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(1);

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
    fn snapshots(&self) -> Option<Arc<Snapshotter>> {
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
    pub(crate) async fn close(&self, node: &Node, deadline: Instant) {
        let id = node.config.id;
        // Taken out: it knows the node, which knows this disk.
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

/// When to answer a caller that has this patience.
fn answer_by(patience: Option<Duration>) -> Instant {
    let patience = patience.map_or(SNAPSHOT_TIMEOUT, |it| it.min(SNAPSHOT_TIMEOUT));
    Instant::now() + patience - ANSWER_TIME_MAX.min(patience / 4)
}

fn not_possible(why: &str) -> Status {
    refusal_status(ErrorCode::NotPossible, why)
}

/// What makes snapshots of the node's ranges.
fn snapshotter(node: &Node) -> Result<Arc<Snapshotter>, Status> {
    let snapshots = node.disk().and_then(Disk::snapshots);
    snapshots.ok_or_else(|| not_possible("the node is still loading its keys; try again"))
}

/// Answers for a closed range with what is left of it, and waits until local files say so.
pub(crate) async fn open_range(
    node: &Node,
    request: &OpenRangeRequest,
    patience: Option<Duration>,
) -> Result<OpenRangeReply, Status> {
    let deadline = answer_by(patience);
    let membership_state = node.membership_state();
    check_cluster(&membership_state, &request.cluster_id)?;
    let table = membership_state
        .table()
        .ok_or_else(|| node.not_serving(&membership_state))?;
    let id = RangeId(request.range_id);
    let index = table.find(id, 0).ok_or_else(|| {
        not_possible(&format!(
            "node {} does not own hash range {id}",
            node.config.id
        ))
    })?;
    let range = &table.ranges()[index];
    if table.are_loading() {
        return Err(not_possible(
            "the node is still loading its keys, also those of this range that it has; try again when no range is loading",
        ));
    }
    let snapshots = snapshotter(node)?;
    if range.is_ready() && !range.is_given_up() {
        return Err(not_possible(&format!(
            "hash range {id} is not closed: nothing of it is missing"
        )));
    }
    // Before anybody is answered without the lost keys.
    let opened = range.give_up();
    let reason = opened.unwrap_or("it was given up before").to_owned();
    if opened.is_some() {
        let text = format!("hash range {id} was opened without what is missing of it: {reason}");
        node.warn_of("loss", Some(text));
        node.count_loss();
    }
    snapshots.request_local(deadline).await.map_err(|reason| {
        not_possible(&format!(
            "hash range {id} is open, but no snapshot says so yet, and a node that is restarted before that closes it again: {reason}"
        ))
    })?;
    Ok(OpenRangeReply {
        header: Some(node.reply_header(membership_state.map())),
        reason,
        keys: range.read().len() as u64,
    })
}

/// Makes a snapshot, and waits until object storage has it; as long as the caller does at most.
pub(crate) async fn create_snapshots(
    node: &Node,
    request: &CreateSnapshotsRequest,
    patience: Option<Duration>,
) -> Result<CreateSnapshotsReply, Status> {
    let deadline = answer_by(patience);
    let membership_state = node.membership_state();
    check_cluster(&membership_state, &request.cluster_id)?;
    let map = membership_state
        .table()
        .map(|table| &table.current_map.map)
        .ok_or_else(|| node.not_serving(&membership_state))?;
    if !map.durability.has_disk() {
        return Err(not_possible(
            "durability is memory: there is nothing to make snapshots of",
        ));
    }
    let made = snapshotter(node)?
        .request(request.full, deadline)
        .await
        .map_err(|reason| not_possible(&format!("no snapshot is in object storage: {reason}")))?;
    Ok(CreateSnapshotsReply {
        header: Some(node.reply_header(membership_state.map())),
        complete_to_unix_ms: made.reach.complete_to.0,
        lsn: made.reach.lsn.0,
        objects: made.objects,
        object_bytes: made.object_bytes,
    })
}
