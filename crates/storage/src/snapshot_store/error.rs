//! What can be wrong with snapshots in object storage.

use keydb_core::{ManifestError, NodeId, OtherFile, SnapshotError};

use crate::StorageError;

/// Why a node's manifest could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestReadError {
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// It is damaged, or another node's.
    #[error("object {key:?}: {reason}")]
    Unusable {
        /// The manifest.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It is not there, and objects that it must have named are.
    #[error(
        "there is no manifest {manifest:?}, but there are snapshot objects of node {node}, such as {object:?}: it was removed. Put it back (a bucket with versioning has it); or, if that cannot be, give up the node's keys: keydb recover --node {node} --accept-loss"
    )]
    Removed {
        /// Whose manifest.
        node: NodeId,
        /// The manifest's key.
        manifest: String,
        /// One of the objects.
        object: String,
    },
}

/// Why a snapshot object, or a manifest as an object among others, cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotReadError {
    /// There is no such object.
    #[error("it is missing")]
    Missing,
    /// It is not what was written, or not what was expected.
    #[error("{0}")]
    Damaged(String),
    /// Nothing is known about the object.
    #[error("it cannot be read: {0}")]
    Storage(#[from] StorageError),
}

impl From<ManifestReadError> for SnapshotReadError {
    fn from(error: ManifestReadError) -> Self {
        match error {
            ManifestReadError::Storage(error) => Self::Storage(error),
            ManifestReadError::Unusable { reason, .. } => Self::Damaged(reason),
            ManifestReadError::Removed { .. } => Self::Missing,
        }
    }
}

impl From<SnapshotError> for SnapshotReadError {
    fn from(error: SnapshotError) -> Self {
        Self::Damaged(error.to_string())
    }
}

impl From<OtherFile> for SnapshotReadError {
    fn from(error: OtherFile) -> Self {
        Self::Damaged(error.to_string())
    }
}

/// Why no more garbage was removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GarbageError {
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// What a manifest names is not known, so nothing is garbage for certain.
    #[error("manifest {key:?} cannot be read, so nothing is removed: {error}")]
    Manifest {
        /// The manifest.
        key: String,
        /// What is wrong with it.
        error: ManifestError,
    },
    /// A node has objects and no manifest. Each has one before its first object, so it was removed, and its objects may be all
    /// that is left of the node's keys.
    #[error(
        "there is no manifest {key:?}, but there are objects that it must have named, such as {object:?}; nothing is removed until it is back"
    )]
    NoManifest {
        /// The manifest.
        key: String,
        /// One of the objects.
        object: String,
    },
}
