//! Why snapshots are not made, or not uploaded.

use std::{fmt::Display, io, path::PathBuf};

use keydb_core::{ClusterId, Incarnation, NodeId};
use keydb_storage::{ManifestReadError, MapStoreError, StorageError};
use tokio::task::JoinError;

use crate::{DataDirError, JournalError};

/// Why a round was not made, or a part of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum RoundError {
    #[error("the node is stopping")]
    Stopping,
    #[error("the node does not serve")]
    NotServing,
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A delta, or a record that is kept for one, is not what it should be.
    #[error("{what}: {reason}")]
    Unreadable { what: String, reason: String },
    #[error(
        "the journal has writes of a closed range that did not fit into memory, and is not cut before they do"
    )]
    NotMerged,
}

impl RoundError {
    pub(super) fn unreadable(what: impl Display, reason: &dyn Display) -> Self {
        Self::Unreadable {
            what: what.to_string(),
            reason: reason.to_string(),
        }
    }
}

/// Why object storage does not have what the local files have.
#[derive(Debug, thiserror::Error)]
pub(super) enum UploadError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Manifest(#[from] ManifestReadError),
    #[error(transparent)]
    Map(#[from] MapStoreError),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Task(#[from] JoinError),
    #[error(
        "the disk is full, and what is being uploaded takes room that the next snapshot needs; newer files take its place"
    )]
    NeededRoom,
    /// The node is about to end for it.
    #[error("{0}")]
    RolledBack(String),
    #[error("it does not have the map of cluster {0}: it is not this cluster's storage")]
    OtherCluster(ClusterId),
    #[error(
        "object {key:?} was written by disk {by}, and this disk, {disk_id}, is not node {node} in the cluster map any more: it was replaced"
    )]
    Replaced {
        key: String,
        by: Incarnation,
        disk_id: Incarnation,
        node: NodeId,
    },
    #[error("object {key:?} is written by others again and again")]
    Contended { key: String },
    #[error("{} has {found} bytes, and the manifest says {expected}", path.display())]
    OtherSize {
        path: PathBuf,
        found: u64,
        expected: u64,
    },
    #[error("cannot read {}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error(
        "object {key:?} exists with another size than the file's, {size_bytes} bytes, and does not go away"
    )]
    Occupied { key: String, size_bytes: u64 },
}
