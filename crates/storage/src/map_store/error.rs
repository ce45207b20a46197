//! Why the cluster map could not be read, changed or created.

use keydb_core::{ClusterId, MapError};

use crate::{MAP_KEY, StorageError};

/// The cluster map could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapStoreError {
    /// The storage failed.
    #[error("cannot read the cluster map: {0}")]
    Storage(#[from] StorageError),
    /// What is stored is not a map that this build can use. Trying again does not help.
    #[error("object {MAP_KEY:?} in the storage cannot be used: {0}")]
    Map(#[from] MapError),
}

/// The cluster map was not changed, or perhaps was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError<E> {
    /// The current map could not be read; nothing was changed.
    #[error(transparent)]
    Load(#[from] MapStoreError),
    /// There is no map to change.
    #[error(
        "there is no cluster map in the storage (no object {MAP_KEY:?}); `keydb init` creates one"
    )]
    NoMap,
    /// The caller's own error, for the map that was current then; nothing was changed.
    #[error("{0}")]
    Change(E),
    /// The next map does not come after the current one; nothing was changed.
    #[error(
        "the next cluster map (lineage {}, epoch {}) is not newer than the current one (lineage {}, epoch {})",
        next.0, next.1, current.0, current.1
    )]
    NotNewer {
        /// The current map's lineage and epoch.
        current: (u64, u64),
        /// The refused map's lineage and epoch.
        next: (u64, u64),
    },
    /// The next map is not one that could be read again; nothing was changed.
    #[error("the next cluster map is refused: {0}")]
    Invalid(MapError),
    /// Others changed the map each time in between; nothing was changed. Trying again later helps.
    #[error("the cluster map was not changed: others were faster {attempts} times in a row")]
    Contended {
        /// How many writes met a conflict.
        attempts: u32,
    },
    /// The storage did not take the map; nothing was changed.
    #[error("the cluster map was not changed: {0}")]
    NotWritten(StorageError),
    /// The map may have been changed, or may yet be.
    #[error("it is not known whether the cluster map was changed: {0}")]
    OutcomeUnknown(StorageError),
}

/// The storage has the map of another cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the map that is there is that of another cluster, {found}")]
pub struct OtherCluster {
    /// That cluster.
    pub found: ClusterId,
}

/// The cluster was not created, or perhaps was. Running it again is harmless.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InitError {
    /// There cannot be such a cluster; nothing was written.
    #[error(transparent)]
    Invalid(#[from] MapError),
    /// It could not be found out whether there is a map already.
    #[error(transparent)]
    Load(#[from] MapStoreError),
    /// The storage cannot keep two writers apart; no map was written.
    #[error(
        "conditional writes of this object storage are not exclusive: {found}. Two nodes could own the same keys, so no cluster was created"
    )]
    NotExclusive {
        /// What was seen.
        found: String,
    },
    /// Nodes of a cluster have written there, whose map was removed; nothing was written.
    #[error(
        "there is no cluster map, but there are objects of a cluster, such as {object:?}: its map was removed. Put it back with `keydb recover --map`, or from the bucket's versions. For another cluster take another bucket or prefix"
    )]
    MapRemoved {
        /// One of the objects.
        object: String,
    },
    /// The storage failed; no map was written.
    #[error("the cluster was not created: {0}")]
    Storage(#[from] StorageError),
    /// The map may have been written, or may yet be.
    #[error("it is not known whether the cluster was created: {0}; run it again to find out")]
    OutcomeUnknown(StorageError),
}
