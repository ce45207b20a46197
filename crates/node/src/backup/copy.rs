//! Copying one snapshot file.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use keydb_core::{BackupObject, ManifestFile, NodeId, Origin};
use keydb_storage::{CopyError, SnapshotReadError, SnapshotStore, StorageError, object_key};

use super::obstacle::Obstacle;
use crate::node::Node;

/// How often a file is looked for and copied, where what is there is not right, or others write it, too.
const ATTEMPTS_MAX: u32 = 3;

/// Copies snapshot files of a cluster from one storage to another.
#[derive(Debug, Clone)]
pub(super) struct Copier {
    pub(super) node: Arc<Node>,
    pub(super) from: SnapshotStore,
    pub(super) to: SnapshotStore,
    pub(super) origin: Origin,
}

/// Why a file is not there.
#[derive(Debug)]
pub(super) enum NotCopied {
    /// The cluster's storage does not have it any more.
    Gone(String),
    Obstacle(Obstacle),
}

impl From<Obstacle> for NotCopied {
    fn from(obstacle: Obstacle) -> Self {
        Self::Obstacle(obstacle)
    }
}

impl From<StorageError> for NotCopied {
    fn from(error: StorageError) -> Self {
        Obstacle::from(error).into()
    }
}

impl Copier {
    /// Has `owner`'s file at the destination, where there is one of this size already, perhaps.
    pub(super) async fn copy(
        self,
        owner: NodeId,
        file: ManifestFile,
        mut there: Option<u64>,
    ) -> Result<BackupObject, NotCopied> {
        let key = object_key(owner, &file.name);
        let object = |xxh3| BackupObject {
            key: key.clone(),
            size_bytes: file.size_bytes,
            xxh3,
        };
        for _ in 0..ATTEMPTS_MAX {
            if let Some(size_bytes) = there {
                if size_bytes == file.size_bytes {
                    let read = self.to.checksum(owner, &file, self.origin, self.pace());
                    match read.await {
                        Ok(checksum) => return Ok(object(checksum)),
                        Err(SnapshotReadError::Storage(error)) => return Err(error.into()),
                        Err(_) => {}
                    }
                }
                self.to.storage().delete(&key).await?;
            }
            let to = &**self.to.storage();
            let copied = self.from.copy(owner, &file, self.origin, to, self.pace());
            match copied.await {
                Ok(Some(checksum)) => return Ok(object(checksum)),
                // Another node was faster.
                Ok(None) => there = Some(file.size_bytes),
                Err(CopyError::Source(SnapshotReadError::Missing)) => {
                    return Err(NotCopied::Gone(key));
                }
                Err(CopyError::Source(SnapshotReadError::Storage(error))) => {
                    return Err(error.into());
                }
                Err(CopyError::Source(error)) => {
                    let what = format!(
                        "object {key:?} of the cluster's storage: {error}; keydb snapshot verify shows what else is damaged"
                    );
                    return Err(Obstacle::not_possible(what).into());
                }
                Err(CopyError::Destination(error)) => return Err(error.into()),
            }
        }
        let what = format!("object {key:?} of the backup is written by others, or changed");
        Err(Obstacle::unavailable(what).into())
    }

    /// Stays within the budget of moves.
    fn pace(&self) -> impl Fn(Duration, u64) -> BoxFuture<'static, ()> + Send + 'static {
        let node = Arc::clone(&self.node);
        move |work, bytes| {
            let node = Arc::clone(&node);
            Box::pin(async move { node.moves.budget.spend(work, bytes).await })
        }
    }
}
