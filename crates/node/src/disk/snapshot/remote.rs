//! A node's manifest in object storage, as whoever needs it reads it.

use keydb_core::{ClusterId, Manifest, NodeId};
use keydb_storage::{ObjectStorage, StorageError, Version};

use super::manifest_key;

/// Why a node's manifest could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// It is damaged, or another node's.
    #[error("{0}")]
    Unusable(String),
}

/// The manifest of `node`, if there is one, and its object's version.
pub(crate) async fn remote_manifest(
    storage: &dyn ObjectStorage,
    cluster: ClusterId,
    node: NodeId,
) -> Result<Option<(Manifest, Version)>, RemoteError> {
    let key = manifest_key(node);
    let Some(object) = storage.get(&key).await? else {
        return Ok(None);
    };
    let manifest = Manifest::from_json(&object.bytes)
        .map_err(|error| RemoteError::Unusable(format!("object {key:?}: {error}")))?;
    if manifest.cluster_id != cluster || manifest.node != node {
        return Err(RemoteError::Unusable(format!(
            "object {key:?} belongs to node {} of cluster {}",
            manifest.node, manifest.cluster_id
        )));
    }
    Ok(Some((manifest, object.version)))
}
