//! A cluster's snapshots in object storage, as they are there.

use std::sync::Arc;

use futures_util::StreamExt;
use keydb_core::{
    ClusterMap, Event, Manifest, ManifestFile, NodeId, SnapshotDecoder, SnapshotError,
    SnapshotHeader, Totals,
};
use keydb_storage::{MapStore, ObjectInfo, ObjectStorage, StorageError};

use crate::{
    exit::{Code, Failure},
    settings::Settings,
};

/// The folder of all manifests.
const MANIFESTS: &str = "manifests/";

/// Up to when a manifest's files have everything, for people.
pub(super) fn complete_to_text(manifest: &Manifest) -> String {
    manifest.complete_to().map_or_else(
        || "nothing: there has been no snapshot".to_owned(),
        |time| time.to_string(),
    )
}

/// The object storage of one cluster.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) storage: Arc<dyn ObjectStorage>,
    /// How it is called in messages.
    pub(super) text: String,
}

/// Why an object cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ObjectError {
    #[error("it is missing")]
    Missing,
    #[error("{0}")]
    Damaged(String),
    /// Nothing is known about the object.
    #[error("it cannot be read: {0}")]
    Storage(#[from] StorageError),
}

impl From<SnapshotError> for ObjectError {
    fn from(error: SnapshotError) -> Self {
        Self::Damaged(error.to_string())
    }
}

impl Store {
    pub(super) fn open(settings: &Settings) -> Result<Self, Failure> {
        Ok(Self {
            storage: settings.open_storage()?,
            text: settings.storage_text(),
        })
    }

    /// A failure of the storage itself.
    pub(super) fn failure(&self, error: &dyn std::fmt::Display) -> Failure {
        Failure::new(
            Code::Unreachable,
            format!("cannot read {}: {error}", self.text),
        )
    }

    /// The cluster's map.
    pub(super) async fn map(&self) -> Result<ClusterMap, Failure> {
        let maps = MapStore::new(Arc::clone(&self.storage));
        let map = maps.load().await.map_err(|error| self.failure(&error))?;
        map.ok_or_else(|| {
            Failure::failed(format!(
                "there is no cluster in {}: no cluster map is there; KEYDB_STORAGE_URL or KEYDB_STORAGE_BUCKET says where to look",
                self.text
            ))
        })
    }

    /// The manifest in the object `key`.
    pub(super) async fn manifest(&self, key: &str) -> Result<Manifest, ObjectError> {
        let object = self.storage.get(key).await?.ok_or(ObjectError::Missing)?;
        Manifest::from_json(&object.bytes).map_err(|error| ObjectError::Damaged(error.to_string()))
    }

    /// Every manifest by its key, in the order of the nodes; or only that of `node`.
    pub(super) async fn manifests(
        &self,
        node: Option<NodeId>,
    ) -> Result<Vec<(String, Result<Manifest, ObjectError>)>, Failure> {
        let listed = self.list(MANIFESTS).await?;
        let mut keys: Vec<String> = listed.into_iter().map(|object| object.key).collect();
        if let Some(node) = node {
            let own = keydb_node::manifest_key(node);
            keys.retain(|key| *key == own);
        }
        let mut manifests = Vec::new();
        for key in keys {
            let manifest = self.manifest(&key).await;
            if let Err(ObjectError::Storage(error)) = &manifest {
                return Err(self.failure(error));
            }
            manifests.push((key, manifest));
        }
        manifests.sort_by_key(|(_, manifest)| {
            manifest
                .as_ref()
                .map_or(u32::MAX, |manifest| manifest.node.0)
        });
        Ok(manifests)
    }

    /// All objects whose keys begin with `prefix`.
    pub(super) async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, Failure> {
        let mut all: Vec<ObjectInfo> = Vec::new();
        loop {
            let after = all.last().map(|object| object.key.clone());
            let page = self.storage.list(prefix, after.as_deref()).await;
            let page = page.map_err(|error| self.failure(&error))?;
            all.extend(page.objects);
            if !page.more {
                return Ok(all);
            }
        }
    }

    /// Reads the snapshot object `key` from front to back, and shows `each` what is in it. Without an error nothing is missing.
    pub(super) async fn read(
        &self,
        key: &str,
        mut each: impl FnMut(Event<'_>) -> Result<(), ObjectError>,
    ) -> Result<Totals, ObjectError> {
        let stream = self.storage.get_range(key, 0..u64::MAX).await?;
        let mut stream = stream.ok_or(ObjectError::Missing)?;
        let mut decoder = new_decoder()?;
        while let Some(chunk) = stream.bytes.next().await {
            decoder.feed(&chunk?);
            while let Some(event) = decoder.next_event()? {
                each(event)?;
            }
        }
        Ok(decoder.finish()?)
    }
}

pub(super) fn new_decoder() -> Result<SnapshotDecoder, ObjectError> {
    SnapshotDecoder::new()
        .map_err(|error| ObjectError::Damaged(format!("no memory to read it: {error}")))
}

/// Checks that an object is what the manifest says: `header` is the object's.
pub(super) fn check_header(
    header: &SnapshotHeader,
    file: &ManifestFile,
    map: &ClusterMap,
) -> Result<(), ObjectError> {
    let foreign = |what: String| Err(ObjectError::Damaged(what));
    if header.cluster_id != map.cluster_id {
        return foreign(format!("it belongs to cluster {}", header.cluster_id));
    }
    if header.seed_digest != map.hash.seed.digest() {
        return foreign("its fingerprints were made with another hash seed".to_owned());
    }
    let same = header.kind.snapshot() == Some(file.kind)
        && header.disk_id == file.disk_id
        && header.lsn_from == file.lsn_from
        && header.lsn_to == file.lsn_to;
    if same {
        return Ok(());
    }
    foreign(format!(
        "it is {:?} of LSN {} to {} of disk {}, not what the manifest says",
        header.kind, header.lsn_from, header.lsn_to, header.disk_id
    ))
}

/// Checks that an object has as much in it as the manifest says.
pub(super) fn check_totals(totals: Totals, file: &ManifestFile) -> Result<(), ObjectError> {
    if (totals.bytes, totals.entries) == (file.size_bytes, file.entries) {
        return Ok(());
    }
    Err(ObjectError::Damaged(format!(
        "it has {} entries in {} bytes, and the manifest says {} in {}",
        totals.entries, totals.bytes, file.entries, file.size_bytes
    )))
}
