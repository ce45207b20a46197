//! What a new disk takes from object storage.

use std::{io::ErrorKind, time::Duration};

use futures_util::StreamExt;
use keydb_core::{ClusterMap, Lsn, Manifest, ManifestFile};
use keydb_storage::{ManifestReadError, StorageError, StorageErrorKind, object_key};
use tokio::{
    fs::File,
    io::AsyncWriteExt,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{Recovery, STORAGE_PAUSE};
use crate::{
    DataDirError, NodeError,
    disk::data_dir,
    disk::snapshot::{self, Published},
    ranges::owned::OwnedRanges,
};

/// How long a start with an intact disk may be held up by object storage, which it does not need.
const GLANCE_TIMEOUT: Duration = Duration::from_secs(3);

impl Recovery {
    /// The manifest of a disk that is new: an empty one, or what the node's former disk had put into object storage.
    pub(super) async fn adopt(&self, map: &ClusterMap) -> Result<Manifest, NodeError> {
        let node = self.node.config.id;
        let disk_id = self.data_dir.disk_id();
        match self.remote_manifest(map).await? {
            None => {
                let manifest = Manifest::new(map.cluster_id, map.lineage, node, disk_id);
                snapshot::save(&self.data_dir, &manifest)?;
                Ok(manifest)
            }
            Some(manifest) if manifest.disk_id == disk_id => {
                Err(NodeError::DataDir(DataDirError::Damaged {
                    path: snapshot::manifest_path(&self.data_dir),
                    reason: format!(
                        "it is missing, though this disk has made snapshots (object storage has them up to {})",
                        manifest.complete_to_ms
                    ),
                }))
            }
            Some(manifest) => {
                warn!(
                    %node,
                    complete_to = %manifest.complete_to_ms,
                    files = manifest.files.len(),
                    "this disk is new: taking over what object storage has of the node"
                );
                self.take_over(manifest)
            }
        }
    }

    /// Object storage does not have the file `gone` of `manifest`: another manifest that it has now, if that was taken over. This
    /// one's objects may have been removed as garbage since it was read.
    pub(super) async fn adopt_again(
        &self,
        table: &OwnedRanges,
        manifest: &Manifest,
        gone: &str,
    ) -> Result<Option<Manifest>, NodeError> {
        let node = self.node.config.id;
        let disk_id = self.data_dir.disk_id();
        if !self.is_taken_over(manifest) {
            return Ok(None);
        }
        let map = &table.current_map.map;
        let newer = self.remote_manifest(map).await?;
        let Some(newer) = newer.filter(|it| it.disk_id != disk_id && it.file(gone).is_none())
        else {
            return Ok(None);
        };
        warn!(
            %node,
            complete_to = %newer.complete_to_ms,
            files = newer.files.len(),
            "object storage does not have {gone} any more: going by the manifest that it has now"
        );
        self.check_clock(map, newer.complete_to_ms)?;
        self.take_over(newer).map(Some)
    }

    /// Whether this is another disk's manifest as it was taken over: nothing has come from this disk to it yet.
    pub(super) fn is_taken_over(&self, manifest: &Manifest) -> bool {
        let own = self.data_dir.disk_id();
        let mut files = manifest.files.iter();
        manifest.lsn == Lsn::ZERO && files.all(|file| file.disk_id != own)
    }

    /// Makes the manifest of the node's former disk this one's.
    fn take_over(&self, mut manifest: Manifest) -> Result<Manifest, NodeError> {
        manifest.disk_id = self.data_dir.disk_id();
        // The new disk counts from the beginning; the files keep the name of the disk that they come from.
        manifest.lsn = Lsn::ZERO;
        snapshot::save(&self.data_dir, &manifest)?;
        Ok(manifest)
    }

    /// A copy of the disk from an earlier time must not answer. When object storage does not answer at once, the start goes on without
    /// it, and whoever uploads finds out later.
    pub(super) async fn check_not_rolled_back(&self, own: &Manifest) -> Result<(), NodeError> {
        let look = self.store.manifest(own.cluster_id, own.node);
        let Ok(Ok(Some((remote, _)))) = timeout(GLANCE_TIMEOUT, look).await else {
            return Ok(());
        };
        let published = Published::load(&self.data_dir)?;
        published.check(&remote, own.disk_id, self.data_dir.root())
    }

    /// Waits as long as the storage does not answer: that there is nothing is not to be guessed.
    async fn remote_manifest(&self, map: &ClusterMap) -> Result<Option<Manifest>, NodeError> {
        let node = self.node.config.id;
        loop {
            let look = self.store.manifest_or_proof_of_none(map.cluster_id, node);
            match look.await {
                Ok(found) => {
                    self.node.warnings.set("recovery", None);
                    return Ok(found.map(|(manifest, _)| manifest));
                }
                Err(ManifestReadError::Storage(error))
                    if error.kind() != StorageErrorKind::Refused =>
                {
                    self.node.warnings.set(
                        "recovery",
                        Some(format!("waiting for object storage: {error}")),
                    );
                    sleep(STORAGE_PAUSE).await;
                }
                Err(error) => {
                    self.node.warnings.set("recovery", None);
                    return Err(NodeError::Storage(error.to_string()));
                }
            }
        }
    }

    /// Fetches a snapshot file from object storage. While that does not answer, or the disk is full, it is tried again.
    pub(super) async fn fetch(&self, file: &ManifestFile) -> Result<(), FetchError> {
        let key = object_key(self.node.config.id, &file.name);
        loop {
            match self.try_fetch(&key, file).await {
                Err(FetchError::Storage(error))
                    if error.kind() == StorageErrorKind::Unavailable =>
                {
                    let text = format!("waiting for object storage: {error}");
                    self.node.warnings.set("recovery", Some(text));
                    sleep(STORAGE_PAUSE).await;
                }
                Err(FetchError::NoRoom(error)) => {
                    let text = format!("waiting for room on the disk: {error}");
                    self.node.warnings.set("recovery", Some(text));
                    sleep(STORAGE_PAUSE).await;
                }
                Err(error) => return Err(error),
                Ok(()) => {
                    self.node.warnings.set("recovery", None);
                    debug!(key, bytes = file.size_bytes, "fetched a snapshot file");
                    return Ok(());
                }
            }
        }
    }

    async fn try_fetch(&self, key: &str, file: &ManifestFile) -> Result<(), FetchError> {
        let path = snapshot::file_path(&self.data_dir, &file.name);
        let dir = path.parent().unwrap_or(&path).to_owned();
        let temporary = path.with_extension("tmp");
        let io = |error: std::io::Error| {
            let text = format!("{}: {error}", path.display());
            // What it takes may be just what is missing elsewhere.
            let _ = std::fs::remove_file(&temporary);
            match error.kind() {
                ErrorKind::StorageFull => FetchError::NoRoom(text),
                _ => FetchError::Io(text),
            }
        };
        tokio::fs::create_dir_all(&dir).await.map_err(io)?;
        let storage = self.store.storage();
        let mut object = storage
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
pub(super) enum FetchError {
    #[error("there is no object {0:?}")]
    Missing(String),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error("{0}")]
    NoRoom(String),
    #[error("{0}")]
    Io(String),
}
