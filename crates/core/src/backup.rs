//! What a backup of a cluster consists of: the objects, and what they are a state of.
//!
//! The same file tells how far a backup is while it is made: it lists the objects that were copied. It is `complete` when everything is
//! there that it lists, and never changes after that.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    ClusterId, ClusterMap, Durability, HashSpec, Incarnation, Lsn, Manifest, NodeId, OperationId,
    UnixMillis,
    checked_json::{self, JsonError},
};

const FORMAT: u32 = 1;

/// One object of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupObject {
    /// Its key, the same as in the cluster's storage.
    pub key: String,
    /// Its size.
    pub size_bytes: u64,
    /// The XXH3-64 of its bytes.
    #[serde(with = "crate::hex_u64")]
    pub xxh3: u64,
}

/// What a backup has of one node, as that node's manifest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupNode {
    /// Which node.
    pub id: NodeId,
    /// The disk that wrote the manifest.
    pub disk_id: Incarnation,
    /// Everything up to this LSN of `disk_id` is there.
    pub lsn: Lsn,
    /// What the node acknowledged before this time is there.
    pub complete_to_ms: UnixMillis,
    /// How many hash ranges the manifest names.
    pub ranges: u64,
    /// How many snapshot files.
    pub files: u64,
    /// How many entries these have. A key that is in several of them counts as often.
    pub entries: u64,
    /// How many bytes these have.
    pub size_bytes: u64,
    /// Fields that this build does not know.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// A backup of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// The format's version: 1.
    pub format: u32,
    /// Features that a reader must know, or refuse the backup.
    pub required_features: Vec<String>,
    /// Drawn by each write, so that no two are the same.
    pub write_nonce: OperationId,
    /// Whether everything is there.
    pub complete: bool,
    /// Its name.
    pub name: String,
    /// The call that makes it, or made it.
    pub operation_id: OperationId,
    /// When it was completed, or before that, begun.
    pub created_ms: UnixMillis,
    /// Which cluster.
    pub cluster_id: ClusterId,
    /// The lineage of the cluster map in it.
    pub lineage: u64,
    /// The epoch of the cluster map in it.
    pub epoch: u64,
    /// How the cluster's keys became fingerprints.
    pub hash: HashSpec,
    /// What a crash might have cost.
    pub durability: Durability,
    /// The nodes, ordered by id.
    pub nodes: Vec<BackupNode>,
    /// The objects, ordered by key.
    pub objects: Vec<BackupObject>,
    /// Fields that this build does not know.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// Why a backup cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    /// Not JSON, or not of a backup's shape.
    #[error("it does not parse: {0}")]
    Malformed(String),
    /// Written by a build that is newer in a way that matters.
    #[error("it needs {what}, which this build does not have; upgrade it")]
    Unsupported {
        /// The unknown format or feature.
        what: String,
    },
    /// Its bytes are not those that were written, or contradict themselves.
    #[error("it is damaged: {0}")]
    Damaged(String),
}

impl BackupNode {
    /// What a node's manifest says.
    pub fn of(manifest: &Manifest) -> Self {
        let files = manifest.files.iter();
        Self {
            id: manifest.node,
            disk_id: manifest.disk_id,
            lsn: manifest.lsn,
            complete_to_ms: manifest.complete_to_ms,
            ranges: manifest.ranges.len() as u64,
            files: manifest.files.len() as u64,
            entries: files.clone().map(|file| file.entries).sum(),
            size_bytes: files.map(|file| file.size_bytes).sum(),
            unknown: Map::new(),
        }
    }
}

impl Backup {
    /// A backup of the cluster of this map that has nothing as yet.
    pub fn new(
        name: &str,
        operation_id: OperationId,
        map: &ClusterMap,
        created_ms: UnixMillis,
    ) -> Self {
        Self {
            format: FORMAT,
            required_features: Vec::new(),
            write_nonce: OperationId::random(),
            complete: false,
            name: name.to_owned(),
            operation_id,
            created_ms,
            cluster_id: map.cluster_id,
            lineage: map.lineage,
            epoch: map.epoch,
            hash: map.hash.clone(),
            durability: map.durability,
            nodes: Vec::new(),
            objects: Vec::new(),
            unknown: Map::new(),
        }
    }

    /// Reads and checks one.
    ///
    /// # Errors
    /// When it is malformed or damaged, or needs a feature that this build lacks.
    pub fn from_json(json: &[u8]) -> Result<Self, BackupError> {
        let read = checked_json::read(json, FORMAT, |backup: &mut Self| &mut backup.unknown);
        let backup = read.map_err(|error| match error {
            JsonError::Malformed(why) => BackupError::Malformed(why),
            JsonError::Unsupported(what) => BackupError::Unsupported { what },
            JsonError::Damaged(what) => BackupError::Damaged(what.to_owned()),
        })?;
        let damaged = |what: &str| Err(BackupError::Damaged(what.to_owned()));
        if !backup.objects.is_sorted_by(|a, b| a.key < b.key) {
            return damaged("the objects are not in ascending order of their keys");
        }
        if !backup.nodes.is_sorted_by(|a, b| a.id < b.id) {
            return damaged("the nodes are not in ascending order of their ids");
        }
        Ok(backup)
    }

    /// It as JSON, unknown fields included. Its last member is the XXH3-64 of the bytes before that member.
    pub fn to_json(&self) -> Vec<u8> {
        checked_json::write(self)
    }

    /// Up to when it has everything that was acknowledged: by all nodes.
    pub fn complete_to(&self) -> UnixMillis {
        let times = self.nodes.iter().map(|node| node.complete_to_ms);
        times.min().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NewCluster;

    fn backup() -> Backup {
        let map = ClusterMap::create(&NewCluster {
            addresses: ["a:1", "b:1"].map(str::to_owned).to_vec(),
            range_count: 4,
            durability: Durability::Journal,
        })
        .unwrap();
        let mut backup = Backup::new("monday", OperationId::random(), &map, UnixMillis(7));
        for (id, complete_to) in [(0, 30), (1, 20)] {
            let disk_id = Incarnation::random();
            let mut manifest = Manifest::new(map.cluster_id, 1, NodeId(id), disk_id);
            manifest.complete_to_ms = UnixMillis(complete_to);
            backup.nodes.push(BackupNode::of(&manifest));
        }
        for key in ["cluster-map.json", "manifests/node-0.json"] {
            backup.objects.push(BackupObject {
                key: key.to_owned(),
                size_bytes: 5,
                xxh3: 0xFEDC_BA98_7654_3210,
            });
        }
        backup.unknown.insert("later".to_owned(), 1.into());
        backup
    }

    #[test]
    fn it_reads_back_with_fields_of_later_builds() {
        let backup = backup();
        let json = backup.to_json();
        assert_eq!(Backup::from_json(&json).unwrap(), backup);
        let text = String::from_utf8(json).unwrap();
        assert!(text.contains("\"xxh3\": \"fedcba9876543210\""), "{text}");
        assert_eq!(backup.complete_to(), UnixMillis(20));
    }

    #[test]
    fn what_is_not_as_it_was_written_is_refused() {
        let json = backup().to_json();
        for length in 0..json.len() {
            assert!(Backup::from_json(&json[..length]).is_err(), "{length}");
        }
        let text = String::from_utf8(json).unwrap();
        for (written, other, words) in [
            ("\"epoch\": 1", "\"epoch\": 2", "checksum"),
            ("\"format\": 1", "\"format\": 2", "format 2"),
            (
                "\"required_features\": []",
                "\"required_features\": [\"x\"]",
                "feature \"x\"",
            ),
        ] {
            let error = Backup::from_json(text.replace(written, other).as_bytes()).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn objects_and_nodes_are_listed_once_and_in_order() {
        let mut objects = backup();
        objects.objects.reverse();
        let mut nodes = backup();
        nodes.nodes[1].id = NodeId(0);
        for backup in [objects, nodes] {
            let error = Backup::from_json(&backup.to_json()).unwrap_err();
            assert!(error.to_string().contains("ascending"), "{error}");
        }
    }
}
