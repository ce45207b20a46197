//! Whether a snapshot file is the one that a manifest names.

use crate::{ClusterId, ClusterMap, ManifestFile, SnapshotHeader, Totals};

/// What the snapshot files of a cluster have in common.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    /// Which cluster.
    pub cluster_id: ClusterId,
    /// [`HashSeed::digest`](crate::HashSeed::digest) of the cluster's seed.
    pub seed_digest: u64,
}

/// A file is not the one that a manifest names: in what it differs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OtherFile(String);

impl From<&ClusterMap> for Origin {
    fn from(map: &ClusterMap) -> Self {
        Self {
            cluster_id: map.cluster_id,
            seed_digest: map.hash.seed.digest(),
        }
    }
}

impl Origin {
    /// Checks that a file of this cluster is the one that is expected: `header` is the file's.
    ///
    /// # Errors
    /// When it is another one.
    pub fn check_header(
        &self,
        header: &SnapshotHeader,
        expected: &ManifestFile,
    ) -> Result<(), OtherFile> {
        if header.cluster_id != self.cluster_id {
            return Err(OtherFile(format!(
                "it belongs to cluster {}, not to {}",
                header.cluster_id, self.cluster_id
            )));
        }
        if header.seed_digest != self.seed_digest {
            return Err(OtherFile(
                "its fingerprints were made with another hash seed".to_owned(),
            ));
        }
        let same = header.kind.snapshot() == Some(expected.kind)
            && header.disk_id == expected.disk_id
            && header.lsn_from == expected.lsn_from
            && header.lsn_to == expected.lsn_to;
        if same {
            return Ok(());
        }
        Err(OtherFile(format!(
            "it is {:?} of LSN {} to {} of disk {}, not what the manifest says",
            header.kind, header.lsn_from, header.lsn_to, header.disk_id
        )))
    }
}

impl ManifestFile {
    /// Checks that a file has as much in it as the manifest says.
    ///
    /// # Errors
    /// When it has not.
    pub fn check_totals(&self, totals: Totals) -> Result<(), OtherFile> {
        if (totals.bytes, totals.entries) == (self.size_bytes, self.entries) {
            return Ok(());
        }
        Err(OtherFile(format!(
            "it has {} entries in {} bytes, and the manifest says {} in {}",
            totals.entries, totals.bytes, self.entries, self.size_bytes
        )))
    }
}
