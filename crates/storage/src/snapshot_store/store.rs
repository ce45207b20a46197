//! Manifests and objects.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use keydb_core::{ClusterId, Manifest, ManifestFile, NodeId};

use super::{
    error::{ManifestReadError, SnapshotReadError},
    names::{MANIFESTS, is_object_key, manifest_key, object_key},
};
use crate::{ObjectInfo, ObjectStorage, Put, StorageError, Version};

/// The snapshots of all nodes in one object storage.
#[derive(Debug, Clone)]
pub struct SnapshotStore {
    storage: Arc<dyn ObjectStorage>,
}

impl SnapshotStore {
    /// The snapshots in this storage.
    pub fn new(storage: Arc<dyn ObjectStorage>) -> Self {
        Self { storage }
    }

    /// The storage that the snapshots are in.
    pub fn storage(&self) -> &Arc<dyn ObjectStorage> {
        &self.storage
    }

    /// The manifest of `node`, if there is one, and its object's version.
    ///
    /// # Errors
    /// When it cannot be read, or belongs to another node or cluster.
    pub async fn manifest(
        &self,
        cluster: ClusterId,
        node: NodeId,
    ) -> Result<Option<(Manifest, Version)>, ManifestReadError> {
        let key = manifest_key(node);
        let Some(object) = self.storage.get(&key).await? else {
            return Ok(None);
        };
        let reason = match Manifest::from_json(&object.bytes) {
            Ok(manifest) if manifest.cluster_id == cluster && manifest.node == node => {
                return Ok(Some((manifest, object.version)));
            }
            Ok(other) => format!(
                "it belongs to node {} of cluster {}",
                other.node, other.cluster_id
            ),
            Err(error) => error.to_string(),
        };
        Err(ManifestReadError::Unusable { key, reason })
    }

    /// [`manifest`](Self::manifest) for whoever goes by it that there is none. A node's first manifest is written before its first
    /// object; so where there are objects, it was there.
    ///
    /// # Errors
    /// Also when it was removed.
    pub async fn manifest_or_proof_of_none(
        &self,
        cluster: ClusterId,
        node: NodeId,
    ) -> Result<Option<(Manifest, Version)>, ManifestReadError> {
        let found = self.manifest(cluster, node).await?;
        if found.is_none()
            && let Some(object) = self.first_object(node).await?
        {
            return Err(ManifestReadError::Removed {
                node,
                manifest: manifest_key(node),
                object,
            });
        }
        Ok(found)
    }

    /// Every manifest by its key, whichever cluster it belongs to, in the order of the nodes.
    ///
    /// # Errors
    /// When the storage fails.
    pub async fn manifests(
        &self,
    ) -> Result<Vec<(String, Result<Manifest, SnapshotReadError>)>, StorageError> {
        let mut manifests = Vec::new();
        for info in self.list(MANIFESTS).await? {
            let manifest = match self.manifest_at(&info.key).await {
                Err(SnapshotReadError::Storage(error)) => return Err(error),
                manifest => manifest,
            };
            manifests.push((info.key, manifest));
        }
        let node = |manifest: &Manifest| manifest.node.0;
        manifests.sort_by_key(|(_, manifest)| manifest.as_ref().map_or(u32::MAX, node));
        Ok(manifests)
    }

    /// The manifest that is the object `key`, whichever node and cluster it belongs to.
    ///
    /// # Errors
    /// When there is none that can be read.
    pub async fn manifest_at(&self, key: &str) -> Result<Manifest, SnapshotReadError> {
        let object = self.storage.get(key).await?;
        let object = object.ok_or(SnapshotReadError::Missing)?;
        Manifest::from_json(&object.bytes)
            .map_err(|error| SnapshotReadError::Damaged(error.to_string()))
    }

    /// Writes a node's manifest in the place of the one of version `replaced`, or where there is none.
    ///
    /// # Errors
    /// When the storage fails, and the manifest may be written or not, as the error says.
    pub async fn put_manifest(
        &self,
        manifest: &Manifest,
        replaced: Option<&Version>,
    ) -> Result<Put, StorageError> {
        let key = manifest_key(manifest.node);
        let json = Bytes::from(manifest.to_json());
        match replaced {
            None => self.storage.put_if_absent(&key, json).await,
            Some(version) => self.storage.put_if_match(&key, json, version).await,
        }
    }

    /// Uploads the file at `path` as `node`'s snapshot file `name`.
    ///
    /// # Errors
    /// When the storage fails or the file cannot be read.
    pub async fn put_file(
        &self,
        node: NodeId,
        name: &str,
        path: &Path,
    ) -> Result<Put, StorageError> {
        self.storage.put_file(&object_key(node, name), path).await
    }

    /// Whether the object of `node`'s snapshot file is there, in the file's size.
    ///
    /// # Errors
    /// When the storage fails.
    pub async fn has(&self, node: NodeId, file: &ManifestFile) -> Result<bool, StorageError> {
        let info = self.storage.head(&object_key(node, &file.name)).await?;
        Ok(info.is_some_and(|info| info.size_bytes == file.size_bytes))
    }

    /// All objects of `node`, those included that cannot be snapshot files.
    ///
    /// # Errors
    /// When the storage fails.
    pub async fn objects(&self, node: NodeId) -> Result<Vec<ObjectInfo>, StorageError> {
        self.list(&object_key(node, "")).await
    }

    /// The key of a snapshot object of `node`; `None` when it has none.
    ///
    /// # Errors
    /// When the storage fails.
    pub async fn first_object(&self, node: NodeId) -> Result<Option<String>, StorageError> {
        let mut after: Option<String> = None;
        loop {
            let folder = object_key(node, "");
            let page = self.storage.list(&folder, after.as_deref()).await?;
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

    /// All objects whose keys begin with `prefix`.
    ///
    /// # Errors
    /// When the storage fails.
    pub async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StorageError> {
        let mut all: Vec<ObjectInfo> = Vec::new();
        loop {
            let after = all.last().map(|object| object.key.clone());
            let page = self.storage.list(prefix, after.as_deref()).await?;
            all.extend(page.objects);
            if !page.more {
                return Ok(all);
            }
        }
    }
}
