//! What ends a node.

use std::{path::PathBuf, time::Duration};

use keydb_core::{ClusterId, Incarnation, MapError, NodeId, UnixMillis};

use crate::{DataDirError, JournalError};

/// Why a node ended without being asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// A setting cannot be what it is.
    #[error("{setting} is 0; it must be more than 0")]
    Setting {
        /// The setting's name.
        setting: &'static str,
    },
    /// Another process runs under this node's id: stop that one first, or give this one another id.
    #[error(
        "node {node} of cluster {cluster} is already running at {address} (incarnation {incarnation}); stop it first, or start this one under another id"
    )]
    AlreadyRunning {
        /// The id that both have.
        node: NodeId,
        /// The cluster that both belong to.
        cluster: ClusterId,
        /// Where the other one answered.
        address: String,
        /// Which life of the node the other one is.
        incarnation: Incarnation,
    },
    /// Somebody answers at the node's address, and one of the two does not let the other in: perhaps another process of this node.
    #[error(
        "somebody answers at {address}, the address of node {node}, and cannot be asked who it is: {reason}; stop it if it is another process of this node, and give both the same CA and tokens"
    )]
    UnknownPeer {
        /// This node.
        node: NodeId,
        /// Its address in the cluster map.
        address: String,
        /// What stands between them.
        reason: String,
    },
    /// Another process has registered under this node's id while this one ran. This one must not answer any more.
    #[error(
        "node {node} of cluster {cluster} was replaced by another process: the cluster map (epoch {epoch}) has {} under this id",
        in_the_map(*by)
    )]
    Replaced {
        /// The id that both have.
        node: NodeId,
        /// The cluster that both belong to.
        cluster: ClusterId,
        /// Which life of the node the other one is, if it has registered yet.
        by: Option<Incarnation>,
        /// The epoch of the map that says so.
        epoch: u64,
    },
    /// The map has another disk under this node's id, whose keys this one does not have. Start the node with that disk, or give
    /// it up with `keydb recover`.
    #[error(
        "node {node} of cluster {cluster} is the disk {found}, but {} is the disk {disk_id}: what that one acknowledged is not here. Start the node with its own disk; or, if that is lost, give up what object storage does not have of it: keydb recover --node {node} --accept-loss",
        path.display()
    )]
    OtherDisk {
        /// This node.
        node: NodeId,
        /// Its cluster.
        cluster: ClusterId,
        /// The disk that it was started with.
        disk_id: Incarnation,
        /// The disk that the map names.
        found: Incarnation,
        /// The data directory.
        path: PathBuf,
    },
    /// The clock differs from the object storage's by more than the cluster allows.
    #[error(
        "this machine's clock is off: it shows {clock}, the object storage's {storage}, a difference of {ahead_ms} ms, and clock_error_max_ms is {error_max_ms}; set the clock right (NTP)"
    )]
    Clock {
        /// How far it is ahead; negative when it is behind.
        ahead_ms: i64,
        /// What the storage's clock shows.
        storage: UnixMillis,
        /// What this one shows.
        clock: UnixMillis,
        /// How far they may differ.
        error_max_ms: u64,
    },
    /// Object storage does not confirm the clock, and it does not fit what the disk knows of the time.
    #[error(
        "this machine's clock shows {clock}; object storage does not answer to confirm that, and by what this disk knows it is between {earliest} and {latest}; set the clock right (NTP), or start the node when object storage answers"
    )]
    ClockUnconfirmed {
        /// What the clock shows.
        clock: UnixMillis,
        /// The earliest time that would be gone by.
        earliest: UnixMillis,
        /// The latest one.
        latest: UnixMillis,
    },
    /// The clock shows a time before one at which this node has already written.
    #[error(
        "this machine's clock has gone back: it shows {clock}, but the node wrote at {written} before; set the clock right (NTP)"
    )]
    ClockWentBack {
        /// What the clock shows.
        clock: UnixMillis,
        /// When the node last wrote, by its own clock.
        written: UnixMillis,
    },
    /// The map has another disk under this node's id, or has had one since: this one's keys are older than those that object
    /// storage has.
    #[error(
        "{} is an earlier disk of node {node}, {disk_id}: object storage has snapshots of a later one, {later}, up to {complete_to}. Start the node with that disk, or with an empty data directory",
        path.display()
    )]
    EarlierDisk {
        /// This node.
        node: NodeId,
        /// The disk that it was started with.
        disk_id: Incarnation,
        /// The disk that has made snapshots since.
        later: Incarnation,
        /// How far those reach.
        complete_to: UnixMillis,
        /// The data directory.
        path: PathBuf,
    },
    /// The data directory is a copy from an earlier time.
    #[error(
        "{} is a copy of the disk from an earlier time: object storage has snapshots of the same disk (complete to {complete_to}) that this copy knows nothing of. What was acknowledged in between is not here; see docs/operations.md, \"An older copy of a disk\"",
        path.display()
    )]
    RolledBack {
        /// The data directory.
        path: PathBuf,
        /// How far those in object storage reach.
        complete_to: UnixMillis,
    },
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The journal is damaged, or could not be written: what was acknowledged may not be complete.
    #[error("{0}")]
    Journal(#[from] JournalError),
    /// The disk does not answer. Whoever started the node ends the process: its threads may never end.
    #[error(
        "the disk of {} has not answered for {} s: a write or sync of the journal does not end. What it has got, the next start finds out",
        path.display(),
        elapsed.as_secs()
    )]
    DiskHangs {
        /// The data directory.
        path: PathBuf,
        /// How long it has not.
        elapsed: Duration,
    },
    /// The cluster map does not list this node any more. Started again, it waits to be listed.
    #[error(
        "node {node} is not a member of cluster {cluster} any more (cluster map epoch {epoch})"
    )]
    Removed {
        /// This node.
        node: NodeId,
        /// The cluster that it was a member of.
        cluster: ClusterId,
        /// The epoch of the map that says so.
        epoch: u64,
    },
    /// The storage holds another cluster's map than before: the settings point to the wrong place, or somebody replaced it.
    #[error(
        "the storage holds the map of cluster {found}, but this node belongs to cluster {expected}"
    )]
    OtherCluster {
        /// The cluster that this node belongs to.
        expected: ClusterId,
        /// The cluster whose map the storage holds.
        found: ClusterId,
    },
    /// The cluster map that the node would start with cannot be used.
    #[error("the cluster map cannot be used: {0}")]
    UnusableMap(#[source] MapError),
    /// The object storage refuses access; a repeat would not help.
    #[error("the cluster map cannot be read or written: {0}")]
    Storage(String),
    /// The gRPC server failed.
    #[error("the server failed: {0}")]
    Server(#[source] tonic::transport::Error),
    /// A part of the node panicked: a defect.
    #[error("the node's {task} failed: {reason}")]
    Task {
        /// Which part.
        task: &'static str,
        /// What it said.
        reason: String,
    },
}

fn in_the_map(by: Option<Incarnation>) -> String {
    by.map_or_else(
        || "no process registered".to_owned(),
        |by| format!("incarnation {by}"),
    )
}
