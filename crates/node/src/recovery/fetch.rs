//! What a new disk takes from object storage.

use std::sync::Arc;

use futures_util::StreamExt;
use keydb_core::{ClusterMap, Lsn, Manifest, ManifestFile};
use keydb_storage::StorageErrorKind;
use tokio::{fs::File, io::AsyncWriteExt, time::sleep};
use tracing::{info, warn};

use super::{Recovery, STORAGE_PAUSE};
use crate::{
    DataDirError, NodeError, data_dir,
    snapshot::{self, manifest_key, object_key},
};

impl Recovery {
    /// The manifest of a disk that is new: an empty one, or what the node's former disk had put into object storage.
    pub(super) async fn adopt(&self, map: &ClusterMap) -> Result<Manifest, NodeError> {
        let node = self.node.config.id;
        let disk_id = self.data_dir.disk_id();
        let mut manifest = match self.remote_manifest().await? {
            None => Manifest::new(map.cluster_id, map.lineage, node, disk_id),
            Some(manifest) => {
                if manifest.cluster_id != map.cluster_id || manifest.node != node {
                    return Err(NodeError::Storage(format!(
                        "object {:?} belongs to node {} of cluster {}",
                        manifest_key(node),
                        manifest.node,
                        manifest.cluster_id
                    )));
                }
                warn!(
                    %node,
                    complete_to = %manifest.complete_to_ms,
                    files = manifest.files.len(),
                    "this disk is new: taking over what object storage has of the node"
                );
                manifest
            }
        };
        manifest.disk_id = disk_id;
        // The new disk counts from the beginning; the files keep the name of the disk that they come from.
        manifest.lsn = Lsn::ZERO;
        snapshot::save(&self.data_dir, &manifest)?;
        Ok(manifest)
    }

    /// Waits as long as the storage does not answer: that there is nothing is not to be guessed.
    async fn remote_manifest(&self) -> Result<Option<Manifest>, NodeError> {
        let key = manifest_key(self.node.config.id);
        loop {
            match self.storage.get(&key).await {
                Ok(None) => return Ok(None),
                Ok(Some(object)) => {
                    return Manifest::from_json(&object.bytes)
                        .map(Some)
                        .map_err(|error| NodeError::Storage(format!("object {key:?}: {error}")));
                }
                Err(error) if error.kind() == StorageErrorKind::Refused => {
                    return Err(NodeError::Storage(error.to_string()));
                }
                Err(error) => {
                    self.node.warn_of(
                        "recovery",
                        Some(format!("waiting for object storage: {error}")),
                    );
                    sleep(STORAGE_PAUSE).await;
                }
            }
        }
    }

    /// Fetches a snapshot file from object storage. While that does not answer it is asked again.
    pub(super) async fn fetch(self: &Arc<Self>, file: &ManifestFile) -> Result<(), String> {
        let key = object_key(self.node.config.id, &file.name);
        loop {
            match self.try_fetch(&key, file).await {
                Err(FetchError::Storage(error))
                    if error.kind() == StorageErrorKind::Unavailable =>
                {
                    self.node.warn_of(
                        "recovery",
                        Some(format!("waiting for object storage: {error}")),
                    );
                    sleep(STORAGE_PAUSE).await;
                }
                Err(error) => return Err(error.to_string()),
                Ok(()) => {
                    self.node.warn_of("recovery", None);
                    info!(key, bytes = file.size_bytes, "fetched a snapshot file");
                    return Ok(());
                }
            }
        }
    }

    async fn try_fetch(&self, key: &str, file: &ManifestFile) -> Result<(), FetchError> {
        let path = snapshot::file_path(&self.data_dir, &file.name);
        let dir = path.parent().unwrap_or(&path).to_owned();
        let temporary = path.with_extension("tmp");
        let io = |error: std::io::Error| FetchError::Io(format!("{}: {error}", path.display()));
        tokio::fs::create_dir_all(&dir).await.map_err(io)?;
        let mut object = self
            .storage
            .get_range(key, 0..file.size_bytes)
            .await?
            .ok_or_else(|| FetchError::Missing(key.to_owned()))?;
        let mut target = File::create(&temporary).await.map_err(io)?;
        while let Some(chunk) = object.bytes.next().await {
            target.write_all(&chunk?).await.map_err(io)?;
        }
        target.sync_all().await.map_err(io)?;
        drop(target);
        tokio::fs::rename(&temporary, &path).await.map_err(io)?;
        data_dir::sync_dir(&dir)?;
        Ok(())
    }
}

/// Why a file was not fetched.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("there is no object {0:?}")]
    Missing(String),
    #[error(transparent)]
    Storage(#[from] keydb_storage::StorageError),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error("{0}")]
    Io(String),
}
