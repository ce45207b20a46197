//! The cluster map: the only truth that nodes and clients share.
//!
//! One small JSON object in object storage, changed only by compare-and-swap. It says how keys are hashed, what is durable, and
//! which node owns which hash range. Maps are ordered by `(lineage, epoch)`; nobody goes back to a lower one. Fields that this
//! build does not know are kept when a map is rewritten; features that it would have to know are listed in `required_features`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    ClusterId, HashRange, HashSeed, Incarnation, NodeId, OperationId, RangeCountError, RangeId,
    UnixMillis, place,
};

const FORMAT: u32 = 1;
const HASH_ALGORITHM: &str = "xxh3-128";
const HASH_BITS: u32 = 96;

/// What a crash may cost. Fixed when the cluster is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Durability {
    /// Nothing that was acknowledged is ever lost: replies wait until the journal is synced. The default.
    Journal,
    /// A crash loses at most what came since the last snapshot, and says so.
    Snapshot,
    /// Nothing is kept: a node that stops forgets its keys. For tests and pure caches.
    Memory,
}

impl Durability {
    /// Every mode, the default first.
    pub const ALL: [Self; 3] = [Self::Journal, Self::Snapshot, Self::Memory];

    /// Whether a node of such a cluster has a disk.
    pub const fn has_disk(self) -> bool {
        !matches!(self, Self::Memory)
    }
}

impl std::fmt::Display for Durability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Journal => "journal",
            Self::Snapshot => "snapshot",
            Self::Memory => "memory",
        })
    }
}

impl std::str::FromStr for Durability {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.to_string() == text)
            .ok_or_else(|| {
                format!("durability {text:?} is not one of journal, snapshot and memory")
            })
    }
}

/// How keys become fingerprints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashSpec {
    /// Always `xxh3-128`.
    pub algorithm: String,
    /// The cluster's seed.
    pub seed: HashSeed,
    /// How many of the hash's top bits are kept: always 96.
    pub bits: u32,
    /// Fields that this build does not know.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// Whether a member takes part or is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Owns ranges, may get more.
    Active,
    /// Hands its ranges over and gets none.
    Leaving,
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// The node's number.
    pub id: NodeId,
    /// Which memory or disk holds its keys, as the node registered it at its first start; in `memory` mode a new one each start.
    pub disk_id: Option<Incarnation>,
    /// `host:port` of its gRPC service.
    pub address: String,
    /// Failure zone; empty when there is only one.
    #[serde(default)]
    pub zone: String,
    /// Whether it takes part or leaves.
    pub state: NodeState,
    /// How often this node lost the keys that it had acknowledged (a restart in `memory` mode).
    #[serde(default)]
    pub loss_count: u32,
    /// When it last did, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub last_loss_ms: Option<UnixMillis>,
    /// Fields that this build does not know.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// How far a follower is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FollowerState {
    /// Still loading or behind the stream.
    CatchingUp,
    /// Has all that was acknowledged.
    InSync,
}

/// What a follower is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FollowerRole {
    /// The range's next owner.
    Successor,
    /// A copy that may take over.
    Replica,
}

/// A node that follows a range's owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follower {
    /// Which node.
    pub node: NodeId,
    /// How far it is.
    pub state: FollowerState,
    /// What it is for.
    pub role: FollowerRole,
    /// Fields that this build does not know.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// One hash range and who answers for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeEntry {
    /// The range's stable id.
    pub id: RangeId,
    /// The first top-64-bits value that belongs to it; it ends where the next range starts.
    #[serde(with = "crate::hex_u64")]
    pub start: u64,
    /// Goes up by one each time the owner changes.
    #[serde(rename = "gen")]
    pub generation: u64,
    /// The node that answers for the range.
    pub owner: NodeId,
    /// The nodes that follow the owner.
    #[serde(default)]
    pub followers: Vec<Follower>,
    /// Fields that this build does not know.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// The membership that a scaling operation is on its way to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The scaling operation.
    pub id: OperationId,
    /// The members when it is done.
    pub nodes: Vec<NodeEntry>,
    /// How many ranges have already moved.
    pub moved_ranges: u32,
    /// Fields that this build does not know.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// The cluster map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMap {
    /// The format's version: 1.
    pub format: u32,
    /// Features that a reader must know, or refuse the map.
    pub required_features: Vec<String>,
    /// Goes up when a cluster is rebuilt from an older state; outranks the epoch.
    pub lineage: u64,
    /// Goes up by one with each change.
    pub epoch: u64,
    /// Drawn by each writer, so that it recognises its own write after a lost reply.
    pub write_nonce: OperationId,
    /// Which cluster.
    pub cluster_id: ClusterId,
    /// How keys become fingerprints.
    pub hash: HashSpec,
    /// What a crash may cost.
    pub durability: Durability,
    /// How many copies of a range there are besides the owner's.
    pub replicas: u32,
    /// How far clocks may differ, in milliseconds.
    pub clock_error_max_ms: u64,
    /// How long a follower's acknowledgement lets the owner answer, in milliseconds.
    pub lease_ms: u64,
    /// The members.
    pub nodes: Vec<NodeEntry>,
    /// Where a scaling operation is going, while one runs.
    pub target: Option<Target>,
    /// The hash ranges, ordered by start.
    pub ranges: Vec<RangeEntry>,
    /// Fields that this build does not know.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// Why a map cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// Not JSON, or not of the map's shape.
    #[error("the cluster map does not parse: {0}")]
    Malformed(String),
    /// Written by a build that is newer in a way that matters.
    #[error("the cluster map needs {what}, which this build does not have; upgrade it")]
    Unsupported {
        /// The unknown format, algorithm or feature.
        what: String,
    },
    /// It contradicts itself.
    #[error("the cluster map is inconsistent: {0}")]
    Inconsistent(String),
    /// A new cluster was described in a way that cannot be.
    #[error(transparent)]
    RangeCount(#[from] RangeCountError),
    /// A new cluster has no nodes.
    #[error("a cluster needs at least one node address")]
    NoNodes,
}

/// What a new cluster looks like.
#[derive(Debug, Clone)]
pub struct NewCluster {
    /// `host:port` of each node; its place in the list is its id.
    pub addresses: Vec<String>,
    /// How many hash ranges.
    pub range_count: u32,
    /// What a crash may cost.
    pub durability: Durability,
}

impl ClusterMap {
    /// The first map of a new cluster: random id and seed, ranges spread evenly over the nodes.
    ///
    /// # Errors
    /// When there are no addresses, two are the same, or the range count is not possible.
    pub fn create(new: &NewCluster) -> Result<Self, MapError> {
        let nodes: Vec<NodeEntry> = (0..)
            .zip(&new.addresses)
            .map(|(id, address)| NodeEntry::new(NodeId(id), address))
            .collect();
        let members: Vec<NodeId> = nodes.iter().map(|node| node.id).collect();
        let ranges = HashRange::split_evenly(new.range_count)?;
        let owners = place(&vec![None; ranges.len()], &members).map_err(|_| MapError::NoNodes)?;
        let ranges = (0..)
            .zip(ranges.iter().zip(owners))
            .map(|(id, (range, owner))| RangeEntry {
                id: RangeId(id),
                start: range.start(),
                generation: 1,
                owner,
                followers: Vec::new(),
                unknown: Map::new(),
            });
        let map = Self {
            format: FORMAT,
            required_features: Vec::new(),
            lineage: 1,
            epoch: 1,
            write_nonce: OperationId::random(),
            cluster_id: ClusterId::random(),
            hash: HashSpec {
                algorithm: HASH_ALGORITHM.to_owned(),
                seed: HashSeed::new(crate::random::u64()),
                bits: HASH_BITS,
                unknown: Map::new(),
            },
            durability: new.durability,
            replicas: 0,
            clock_error_max_ms: 2000,
            lease_ms: 2000,
            nodes,
            target: None,
            ranges: ranges.collect(),
            unknown: Map::new(),
        };
        map.check()?;
        Ok(map)
    }

    /// Reads and checks a map.
    ///
    /// # Errors
    /// When it is malformed, needs a feature that this build lacks, or contradicts itself.
    pub fn from_json(json: &[u8]) -> Result<Self, MapError> {
        // A map of another format may have another shape: say that rather than which field is missing.
        #[derive(Deserialize)]
        struct Head {
            format: u32,
            #[serde(default)]
            required_features: Vec<String>,
        }
        let malformed = |error: serde_json::Error| MapError::Malformed(error.to_string());
        let head: Head = serde_json::from_slice(json).map_err(malformed)?;
        if head.format != FORMAT {
            return Err(MapError::Unsupported {
                what: format!("format {}", head.format),
            });
        }
        if let Some(feature) = head.required_features.first() {
            return Err(MapError::Unsupported {
                what: format!("feature {feature:?}"),
            });
        }
        let map: Self = serde_json::from_slice(json).map_err(malformed)?;
        map.check()?;
        Ok(map)
    }

    /// The map as JSON, unknown fields included.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self)
            .expect("a map has only string keys, so it always serialises")
    }

    /// What orders maps: a higher lineage, then a higher epoch, is newer.
    pub const fn version(&self) -> (u64, u64) {
        (self.lineage, self.epoch)
    }

    /// A copy for the next compare-and-swap: one epoch up, with a nonce of its own.
    pub fn successor(&self) -> Self {
        Self {
            epoch: self.epoch + 1,
            write_nonce: OperationId::random(),
            ..self.clone()
        }
    }

    /// The member with this id.
    pub fn node(&self, id: NodeId) -> Option<&NodeEntry> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// The member with this id, to change.
    pub fn node_mut(&mut self, id: NodeId) -> Option<&mut NodeEntry> {
        self.nodes.iter_mut().find(|node| node.id == id)
    }

    /// The bounds of the range at `index` in [`ranges`](Self::ranges).
    pub fn bounds(&self, index: usize) -> HashRange {
        let last = self
            .ranges
            .get(index + 1)
            .map_or(u64::MAX, |next| next.start - 1);
        HashRange::new(self.ranges[index].start, last)
            .expect("a checked map has ranges in ascending order")
    }

    /// The index in [`ranges`](Self::ranges) of the range that a fingerprint with these top 64 bits belongs to.
    pub fn range_index_of(&self, top: u64) -> usize {
        self.ranges.partition_point(|range| range.start <= top) - 1
    }

    fn check(&self) -> Result<(), MapError> {
        let inconsistent = |what: String| Err(MapError::Inconsistent(what));
        if self.hash.algorithm != HASH_ALGORITHM || self.hash.bits != HASH_BITS {
            return Err(MapError::Unsupported {
                what: format!("hash {} with {} bits", self.hash.algorithm, self.hash.bits),
            });
        }
        if self.nodes.is_empty() {
            return Err(MapError::NoNodes);
        }
        let mut addresses = BTreeMap::new();
        let mut ids = BTreeSet::new();
        for node in &self.nodes {
            if !ids.insert(node.id) {
                return inconsistent(format!("node {} is listed twice", node.id));
            }
            if let Some(other) = addresses.insert(&node.address, node.id) {
                return inconsistent(format!(
                    "nodes {other} and {} have the same address {:?}",
                    node.id, node.address
                ));
            }
        }
        if self.ranges.first().is_none_or(|first| first.start != 0) {
            return inconsistent("the first range does not start at 0".to_owned());
        }
        if let Some(pair) = self
            .ranges
            .windows(2)
            .find(|pair| pair[0].start >= pair[1].start)
        {
            return inconsistent(format!(
                "range {} does not start after range {}",
                pair[1].id, pair[0].id
            ));
        }
        let mut range_ids = BTreeSet::new();
        for range in &self.ranges {
            if !range_ids.insert(range.id) {
                return inconsistent(format!("range {} is listed twice", range.id));
            }
            if !ids.contains(&range.owner) {
                return inconsistent(format!(
                    "range {} is owned by node {}, which is not a member",
                    range.id, range.owner
                ));
            }
        }
        Ok(())
    }
}

impl NodeEntry {
    fn new(id: NodeId, address: &str) -> Self {
        Self {
            id,
            disk_id: None,
            address: address.to_owned(),
            zone: String::new(),
            state: NodeState::Active,
            loss_count: 0,
            last_loss_ms: None,
            unknown: Map::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three_nodes() -> ClusterMap {
        let addresses = (0..3).map(|id| format!("keydb-{id}:50051")).collect();
        ClusterMap::create(&NewCluster {
            addresses,
            range_count: 128,
            durability: Durability::Memory,
        })
        .unwrap()
    }

    fn edited(edit: impl FnOnce(&mut Value)) -> Result<ClusterMap, MapError> {
        let mut json: Value = serde_json::from_slice(&three_nodes().to_json()).unwrap();
        edit(&mut json);
        ClusterMap::from_json(&serde_json::to_vec(&json).unwrap())
    }

    #[test]
    fn a_map_reads_back_from_its_json() {
        let map = three_nodes();
        assert_eq!(ClusterMap::from_json(&map.to_json()), Ok(map));
    }

    #[test]
    fn unknown_fields_are_kept_at_every_level() {
        let map = edited(|json| {
            json["later"] = 1.into();
            json["hash"]["later"] = 2.into();
            json["nodes"][1]["later"] = 3.into();
            json["ranges"][5]["later"] = 4.into();
        })
        .unwrap();
        let back: Value = serde_json::from_slice(&map.successor().to_json()).unwrap();
        assert_eq!(back["later"], 1);
        assert_eq!(back["hash"]["later"], 2);
        assert_eq!(back["nodes"][1]["later"], 3);
        assert_eq!(back["ranges"][5]["later"], 4);
    }

    #[test]
    fn another_format_or_an_unknown_feature_or_mode_is_refused() {
        let unsupported =
            |map: Result<ClusterMap, MapError>| matches!(map, Err(MapError::Unsupported { .. }));
        assert!(unsupported(edited(
            |json| *json = serde_json::json!({"format": 2})
        )));
        assert!(unsupported(edited(
            |json| json["required_features"] = serde_json::json!(["splits"])
        )));
        assert!(unsupported(edited(|json| json["hash"]["bits"] = 64.into())));
        assert!(matches!(
            edited(|json| json["durability"] = "eventually".into()),
            Err(MapError::Malformed(_))
        ));
    }

    #[test]
    fn a_map_that_contradicts_itself_is_refused() {
        let inconsistent =
            |map: Result<ClusterMap, MapError>| matches!(map, Err(MapError::Inconsistent(_)));
        assert!(inconsistent(edited(
            |json| json["ranges"][0]["start"] = "0000000000000001".into()
        )));
        assert!(inconsistent(edited(
            |json| json["ranges"][3]["start"] = json["ranges"][2]["start"].clone()
        )));
        assert!(inconsistent(edited(
            |json| json["ranges"][3]["owner"] = 9.into()
        )));
        assert!(inconsistent(edited(
            |json| json["ranges"][3]["id"] = 4.into()
        )));
        assert!(inconsistent(edited(
            |json| json["nodes"][0]["id"] = 1.into()
        )));
        assert!(inconsistent(edited(
            |json| json["nodes"][0]["address"] = "keydb-1:50051".into()
        )));
        assert!(matches!(
            edited(|json| json["ranges"][3]["start"] = "xyz".into()),
            Err(MapError::Malformed(_))
        ));
    }

    #[test]
    fn every_fingerprint_falls_into_the_range_that_contains_it() {
        let map = three_nodes();
        for top in [
            0,
            1,
            u64::MAX / 128,
            u64::MAX / 2,
            u64::MAX / 2 + 1,
            u64::MAX,
        ] {
            assert!(map.bounds(map.range_index_of(top)).contains(top), "{top:x}");
        }
    }

    #[test]
    fn a_successor_is_newer_and_has_its_own_nonce() {
        let map = three_nodes();
        let next = map.successor();
        assert!(next.version() > map.version());
        assert_ne!(next.write_nonce, map.write_nonce);
    }
}
