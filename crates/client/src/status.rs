//! What a node says of itself.

use keydb_core::{Durability, Incarnation, Lsn, NodeId, RangeId, UnixMillis};
use keydb_proto::{id_field, shard};

/// What one node holds, as it says itself.
///
/// ```
/// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
/// # cluster::example(async |client: keydb_client::Client| {
/// client.put(["a", "b"], "30d".parse().unwrap()).await.unwrap();
/// for (member, status) in client.node_statuses().await {
///     let status = status.unwrap();
///     println!("{} at {}: {} keys in {} ranges", status.node, member.address, status.keys, status.ranges.len());
///     assert_eq!(status.keys, 2);
/// }
/// # });
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeStatus {
    /// The node's number.
    pub node: NodeId,
    /// Drawn anew at every start of the node.
    pub incarnation: Incarnation,
    /// The lineage of the map that the node goes by.
    pub lineage: u64,
    /// The epoch of the map that the node goes by.
    pub epoch: u64,
    /// The node's clock when it answered.
    pub time: UnixMillis,
    /// What a crash may cost.
    pub durability: Durability,
    /// When the node was started.
    pub started: UnixMillis,
    /// Keys held, those that have expired but are not reclaimed yet included.
    pub keys: u64,
    /// Bytes that the keys take from the system.
    pub key_bytes: u64,
    /// Bytes resident of the whole process; 0 where the system does not tell.
    pub process_bytes: u64,
    /// Bytes that the memory of recent claims' answers takes.
    pub answer_bytes: u64,
    /// How many recent claims are remembered.
    pub answer_operations: u64,
    /// Requests that the node is working on.
    pub requests_in_flight: u64,
    /// Requests to get keys since the node's start.
    pub gets: OperationCounts,
    /// The same to put keys.
    pub puts: OperationCounts,
    /// The same to claim keys.
    pub claims: OperationCounts,
    /// The hash ranges that the node owns.
    pub ranges: Vec<RangeStatus>,
    /// What the node has on its disk and in object storage; `None` with durability `memory`.
    pub disk: Option<DiskStatus>,
    /// The limit on the memory of the node's keys; 0 when there is none.
    pub memory_limit_bytes: u64,
    /// Keys that were dropped before their time because of that limit, since the node's start. Each is a loss.
    pub shed_keys: u64,
    /// What the node wants somebody to know: a clock that is off, a storage that cannot be reached, a full disk.
    pub warnings: Vec<String>,
}

/// Requests of one kind since a node's start, refused ones included.
///
/// ```
/// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
/// # cluster::example(async |client: keydb_client::Client| {
/// client.put(["a", "b"], "30d".parse().unwrap()).await.unwrap();
/// let (_, status) = client.node_statuses().await.remove(0);
/// let puts = status.unwrap().puts;
/// assert_eq!((puts.requests, puts.keys), (1, 2));
/// # });
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct OperationCounts {
    /// How many there were.
    pub requests: u64,
    /// How many keys they had.
    pub keys: u64,
}

impl OperationCounts {
    /// A build that does not count says nothing.
    fn from_reply(counts: Option<shard::OperationCounts>) -> Self {
        let shard::OperationCounts { requests, keys } = counts.unwrap_or_default();
        Self { requests, keys }
    }
}

/// What a node has on its disk and in object storage.
///
/// ```
/// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
/// # cluster::example(async |client: keydb_client::Client| {
/// let (_, status) = client.node_statuses().await.remove(0);
/// // With durability `memory` there is no disk.
/// assert!(status.unwrap().disk.is_none());
/// # });
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskStatus {
    /// Which disk, as the cluster map knows it.
    pub disk_id: Incarnation,
    /// The last write.
    pub lsn: Lsn,
    /// The last write that the journal has for certain.
    pub synced_lsn: Lsn,
    /// The last write in local snapshot files.
    pub local_lsn: Lsn,
    /// The last write in object storage.
    pub uploaded_lsn: Lsn,
    /// What was acknowledged before this time is in local snapshot files; `None`: nothing is.
    pub local_complete_to: Option<UnixMillis>,
    /// What was acknowledged before this time is in object storage; `None`: nothing is.
    pub uploaded_complete_to: Option<UnixMillis>,
    /// Bytes of the journal's files.
    pub journal_bytes: u64,
    /// Bytes of the local snapshot files.
    pub snapshot_bytes: u64,
    /// Whether the disk has no room for the journal, so that writes are refused.
    pub full: bool,
    /// How many bytes must be free on the disk before the node takes writes again; 0: it does.
    pub room_wanted_bytes: u64,
}

/// Whether a node answers for a hash range.
///
/// ```
/// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
/// # cluster::example(async |client: keydb_client::Client| {
/// use keydb_client::RangeState;
///
/// let (_, status) = client.node_statuses().await.remove(0);
/// assert!(status.unwrap().ranges.iter().all(|range| range.state == RangeState::Ready));
/// # });
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RangeState {
    /// It does.
    Ready,
    /// Not yet: its keys are being loaded.
    Loading,
    /// Not until somebody helps: the node cannot prove that it has all of the range's keys.
    Closed {
        /// What is missing.
        reason: String,
    },
    /// Another node does: it is on its way to this one.
    Arriving,
    /// Another node does. This one has all of it, also on its disk and in object storage, and could take over.
    Secured,
    /// It is being handed over to another node, or was. What is here is kept until that is certain.
    HandedOver,
}

/// What a node holds of one hash range.
///
/// ```
/// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
/// # cluster::example(async |client: keydb_client::Client| {
/// let (_, status) = client.node_statuses().await.remove(0);
/// assert!(status.unwrap().ranges.iter().all(|range| range.keys == 0));
/// # });
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RangeStatus {
    /// The range.
    pub id: RangeId,
    /// The generation of its ownership.
    pub generation: u64,
    /// Keys held, those that have expired but are not reclaimed yet included.
    pub keys: u64,
    /// Whether the node answers for it.
    pub state: RangeState,
}

impl RangeStatus {
    fn from_reply(range: shard::RangeStatus) -> Self {
        Self {
            id: RangeId(range.range_id),
            generation: range.generation,
            keys: range.keys,
            state: match range.state() {
                shard::RangeState::Loading => RangeState::Loading,
                shard::RangeState::Closed => RangeState::Closed {
                    reason: range.reason,
                },
                shard::RangeState::Arriving => RangeState::Arriving,
                shard::RangeState::Secured => RangeState::Secured,
                shard::RangeState::HandedOver => RangeState::HandedOver,
                // A build that has no states has nothing to load.
                shard::RangeState::Ready | shard::RangeState::Unspecified => RangeState::Ready,
            },
        }
    }
}

impl DiskStatus {
    fn from_reply(disk: shard::DiskStatus) -> Result<Self, String> {
        let disk_id = id_field("disk_id", &disk.disk_id).map_err(|error| error.to_string())?;
        let time = |unix_ms: u64| (unix_ms > 0).then_some(UnixMillis(unix_ms));
        Ok(Self {
            disk_id: Incarnation::from_bytes(disk_id),
            lsn: Lsn(disk.lsn),
            synced_lsn: Lsn(disk.synced_lsn),
            local_lsn: Lsn(disk.local_lsn),
            uploaded_lsn: Lsn(disk.uploaded_lsn),
            local_complete_to: time(disk.local_complete_to_unix_ms),
            uploaded_complete_to: time(disk.uploaded_complete_to_unix_ms),
            journal_bytes: disk.journal_bytes,
            snapshot_bytes: disk.snapshot_bytes,
            full: disk.full,
            room_wanted_bytes: disk.room_wanted_bytes,
        })
    }
}

impl NodeStatus {
    /// From a reply; the error says which field breaks the contract.
    pub(crate) fn from_reply(reply: shard::NodeStatusReply) -> Result<Self, String> {
        let header = reply.header.ok_or("the reply has no header")?;
        if reply.durability.is_empty() {
            return Err("the node waits for its cluster's map".to_owned());
        }
        let incarnation =
            id_field("incarnation", &header.incarnation).map_err(|error| error.to_string())?;
        let ranges = reply.ranges.into_iter().map(RangeStatus::from_reply);
        Ok(Self {
            node: NodeId(header.node_id),
            incarnation: Incarnation::from_bytes(incarnation),
            lineage: header.lineage,
            epoch: header.epoch,
            time: UnixMillis(header.node_time_unix_ms),
            durability: reply.durability.parse()?,
            started: UnixMillis(reply.started_unix_ms),
            keys: reply.keys,
            key_bytes: reply.key_bytes,
            process_bytes: reply.process_bytes,
            answer_bytes: reply.answer_bytes,
            answer_operations: reply.answer_operations,
            requests_in_flight: reply.requests_in_flight,
            gets: OperationCounts::from_reply(reply.gets),
            puts: OperationCounts::from_reply(reply.puts),
            claims: OperationCounts::from_reply(reply.claims),
            ranges: ranges.collect(),
            disk: reply.disk.map(DiskStatus::from_reply).transpose()?,
            memory_limit_bytes: reply.memory_limit_bytes,
            shed_keys: reply.shed_keys,
            warnings: reply.warnings,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply() -> shard::NodeStatusReply {
        shard::NodeStatusReply {
            header: Some(shard::ReplyHeader {
                incarnation: vec![1; 16].into(),
                ..Default::default()
            }),
            durability: "journal".to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn what_object_storage_has_is_a_time_or_nothing() {
        let disk = shard::DiskStatus {
            disk_id: vec![7; 16].into(),
            lsn: 9,
            local_complete_to_unix_ms: 5,
            ..Default::default()
        };
        let status = NodeStatus::from_reply(shard::NodeStatusReply {
            disk: Some(disk),
            ..reply()
        });
        let disk = status.unwrap().disk.unwrap();
        assert_eq!(
            (disk.lsn, disk.local_complete_to),
            (Lsn(9), Some(UnixMillis(5)))
        );
        assert_eq!(disk.uploaded_complete_to, None);
        let broken = shard::NodeStatusReply {
            disk: Some(shard::DiskStatus::default()),
            ..reply()
        };
        let error = NodeStatus::from_reply(broken).unwrap_err();
        assert!(error.contains("disk_id"), "{error}");
    }

    #[test]
    fn a_closed_range_says_why() {
        let range = |state: shard::RangeState| shard::RangeStatus {
            state: state.into(),
            reason: "a file is damaged".to_owned(),
            ..Default::default()
        };
        let ranges = vec![
            range(shard::RangeState::Closed),
            range(shard::RangeState::Loading),
            range(shard::RangeState::Unspecified),
        ];
        let status = NodeStatus::from_reply(shard::NodeStatusReply { ranges, ..reply() }).unwrap();
        let states: Vec<RangeState> = status.ranges.into_iter().map(|range| range.state).collect();
        let closed = RangeState::Closed {
            reason: "a file is damaged".to_owned(),
        };
        assert_eq!(states, [closed, RangeState::Loading, RangeState::Ready]);
    }

    #[test]
    fn a_node_without_a_map_says_that_it_waits_for_one() {
        let error = NodeStatus::from_reply(shard::NodeStatusReply {
            durability: String::new(),
            ..reply()
        })
        .unwrap_err();
        assert!(error.contains("waits"), "{error}");
    }
}
