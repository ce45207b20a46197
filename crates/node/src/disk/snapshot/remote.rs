//! A node's manifest in object storage, as whoever needs it reads it.

use keydb_core::{ClusterId, Manifest, NodeId};
use keydb_storage::{ObjectStorage, StorageError, Version};

use super::{
    manifest_key,
    names::{is_object_key, object_key},
};

/// Why a node's manifest could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// It is damaged, or another node's.
    #[error("{0}")]
    Unusable(String),
    /// It is not there, and objects that it must have named are.
    #[error(
        "there is no manifest {manifest:?}, but there are snapshot objects of node {node}, such as {object:?}: it was removed. Put it back (a bucket with versioning has it); or, if that cannot be, give up the node's keys: keydb recover --node {node} --accept-loss"
    )]
    Removed {
        node: NodeId,
        manifest: String,
        object: String,
    },
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

/// [`remote_manifest`] for whoever goes by it that there is none. A node's first manifest is written before its first object; so
/// where there are objects, it was there.
///
/// # Errors
/// Also when it was removed.
pub(crate) async fn manifest_or_proof_of_none(
    storage: &dyn ObjectStorage,
    cluster: ClusterId,
    node: NodeId,
) -> Result<Option<(Manifest, Version)>, RemoteError> {
    let found = remote_manifest(storage, cluster, node).await?;
    if found.is_none()
        && let Some(object) = first_object(storage, node).await?
    {
        return Err(RemoteError::Removed {
            node,
            manifest: manifest_key(node),
            object,
        });
    }
    Ok(found)
}

/// The key of a snapshot object of `node`; `None` when it has none.
///
/// # Errors
/// When the storage fails.
pub async fn first_object(
    storage: &dyn ObjectStorage,
    node: NodeId,
) -> Result<Option<String>, StorageError> {
    let mut after: Option<String> = None;
    loop {
        let page = storage
            .list(&object_key(node, ""), after.as_deref())
            .await?;
        let mut keys: Vec<String> = page.objects.into_iter().map(|it| it.key).collect();
        if let Some(at) = keys.iter().position(|key| is_object_key(key)) {
            return Ok(Some(keys.swap_remove(at)));
        }
        if !page.more {
            return Ok(None);
        }
        after = keys.pop();
    }
}
