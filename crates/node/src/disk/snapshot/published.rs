//! What this disk has published in object storage, kept on the disk.
//!
//! A copy of a disk from an earlier time, as a volume that was restored is, lacks what the disk has acknowledged since. It gives itself
//! away by the manifest in object storage: that is this disk's, and the copy knows nothing of it. So the nonce of each manifest is
//! written down here before the manifest is written there.

use std::path::Path;

use keydb_core::{Incarnation, Lsn, Manifest, OperationId, UnixMillis};
use serde::{Deserialize, Serialize};

use super::shared::Reach;
use crate::{
    DataDirError, NodeError,
    disk::data_dir::{self, DataDir},
};

/// The file in the data directory.
const PUBLISHED: &str = "published.json";

/// What object storage has of this disk, as far as is known.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Published {
    /// How far the manifest reached that was there last.
    lsn: Lsn,
    complete_to_ms: UnixMillis,
    /// The manifests that may be there: the last one that was there for certain, and those that were tried since.
    nonces: Vec<OperationId>,
}

impl Published {
    /// Reads it; nothing was published where there is no file.
    pub(crate) fn load(data_dir: &DataDir) -> Result<Self, DataDirError> {
        let read = data_dir::read_json(&data_dir.root().join(PUBLISHED))?;
        Ok(read.unwrap_or_default())
    }

    /// How far object storage reaches.
    pub(super) fn reach(&self) -> Reach {
        Reach {
            lsn: self.lsn,
            complete_to: self.complete_to_ms,
        }
    }

    /// This, with a manifest of this nonce about to be published; to be saved before that. `None` where it knows of it already.
    pub(super) fn announcing(&self, nonce: OperationId) -> Option<Self> {
        let is_new = !self.nonces.contains(&nonce);
        is_new.then(|| {
            let mut announcing = self.clone();
            announcing.nonces.push(nonce);
            announcing
        })
    }

    /// The manifest with this nonce is there: none that was tried before can get there any more.
    pub(super) fn confirm(&mut self, nonce: OperationId, reach: Reach) {
        self.nonces = vec![nonce];
        self.lsn = reach.lsn;
        self.complete_to_ms = reach.complete_to;
    }

    /// Writes it to the data directory `root`, for good.
    pub(super) fn save(&self, root: &Path) -> Result<(), DataDirError> {
        data_dir::replace_json(&root.join(PUBLISHED), self)
    }

    /// Checks that this disk, `disk_id`, knows of the manifest `remote` in object storage, if that is its own.
    ///
    /// # Errors
    /// When it does not: it is a copy of the disk from an earlier time.
    pub(crate) fn check(
        &self,
        remote: &Manifest,
        disk_id: Incarnation,
        root: &Path,
    ) -> Result<(), NodeError> {
        if remote.disk_id != disk_id || self.nonces.contains(&remote.write_nonce) {
            return Ok(());
        }
        Err(NodeError::RolledBack {
            path: root.to_owned(),
            complete_to: remote.complete_to_ms,
        })
    }
}
