//! What a node says of itself.

use keydb_core::{Durability, Incarnation, NodeId, RangeId, UnixMillis};
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
    /// The hash ranges that the node answers for.
    pub ranges: Vec<RangeStatus>,
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
        let ranges = reply.ranges.into_iter().map(|range| RangeStatus {
            id: RangeId(range.range_id),
            generation: range.generation,
            keys: range.keys,
        });
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
            ranges: ranges.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_a_map_says_that_it_waits_for_one() {
        let header = shard::ReplyHeader {
            incarnation: vec![1; 16].into(),
            ..Default::default()
        };
        let reply = shard::NodeStatusReply {
            header: Some(header),
            ..Default::default()
        };
        let error = NodeStatus::from_reply(reply).unwrap_err();
        assert!(error.contains("waits"), "{error}");
    }
}
