//! A cluster's snapshots in object storage, as they are there.

use std::sync::Arc;

use keydb_core::{ClusterMap, Manifest};
use keydb_storage::{MapStore, SnapshotStore};

use crate::{
    exit::{Code, Failure},
    settings::Settings,
};

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
    pub(super) snapshots: SnapshotStore,
    /// How it is called in messages.
    pub(super) text: String,
}

impl Store {
    pub(super) fn open(settings: &Settings) -> Result<Self, Failure> {
        Ok(Self {
            snapshots: SnapshotStore::new(settings.open_storage()?),
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
        let maps = MapStore::new(Arc::clone(self.snapshots.storage()));
        let map = maps.load().await.map_err(|error| self.failure(&error))?;
        map.ok_or_else(|| {
            Failure::failed(format!(
                "there is no cluster in {}: no cluster map is there; KEYDB_STORAGE_URL or KEYDB_STORAGE_BUCKET says where to look",
                self.text
            ))
        })
    }
}
