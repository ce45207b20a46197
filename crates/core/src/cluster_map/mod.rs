//! The cluster map: the only truth that nodes and clients share.
//!
//! One small JSON object in object storage, changed only by compare-and-swap. It says how keys are hashed, what is durable, and
//! which node owns which hash range. Maps are ordered by `(lineage, epoch)`; nobody goes back to a lower one. Fields that this
//! build does not know are kept when a map is rewritten; features that it would have to know are listed in `required_features`.

mod check;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    ClusterId, CopyId, HashRange, HashSeed, Incarnation, NodeId, OperationId, RangeCountError,
    RangeId, UnixMillis, place,
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

/// Whom a range came from, as long as the new owner has not said that it has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedFrom {
    /// The owner before, which goes on answering until it hands over.
    pub node: NodeId,
    /// The generation of its ownership.
    #[serde(rename = "gen")]
    pub generation: u64,
    /// The copy that the new owner has of the range.
    pub copy: CopyId,
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
    /// The node that the range is to move to: a scaling operation wants it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor: Option<NodeId>,
    /// The owner before, while the range is being handed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<HandedFrom>,
    /// Fields that this build does not know.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// How far a scaling operation may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Successors copy their ranges; no range changes its owner.
    Copy,
    /// Ranges change their owners as soon as their successors have everything.
    HandOver,
}

/// The membership that a scaling operation is on its way to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The scaling operation.
    pub operation_id: OperationId,
    /// The addresses of the members when it is done.
    pub addresses: Vec<String>,
    /// How far it may go.
    pub phase: Phase,
    /// When it was planned, in milliseconds since the Unix epoch.
    pub started_ms: UnixMillis,
    /// How many ranges the plan moves, so that it can be told how far it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moves: Option<u32>,
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
                successor: None,
                from: None,
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

    /// The map as JSON, unknown fields included. Without white space: two fifths less where there are many ranges.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a map has only string keys, so it always serialises")
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
}

impl NodeEntry {
    /// An active member that no node has registered as yet.
    pub(crate) fn new(id: NodeId, address: &str) -> Self {
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
