//! What the node tells of itself.

use std::sync::Arc;

use keydb_core::ClusterMap;
use keydb_proto::shard::{
    GetMapReply, GetMapRequest, NodeStatusReply, NodeStatusRequest, OperationCounts, RangeState,
    RangeStatus,
};
use tonic::Status;

use crate::{
    cluster::membership_state::MembershipState,
    disk::Disk,
    node::Node,
    ranges::owned::{OwnedRange, Readiness},
    requests::plan,
    server::http::StatusSnapshot,
};

/// The map that the node goes by, if it is newer than the caller's.
pub(crate) fn map(node: &Node, request: &GetMapRequest) -> Result<GetMapReply, Status> {
    let membership_state = node.membership.state();
    check_cluster(&membership_state, &request.cluster_id)?;
    let newer = membership_state
        .current_map()
        .filter(|current_map| current_map.map.version() > (request.lineage, request.epoch));
    Ok(GetMapReply {
        header: Some(node.reply_header(membership_state.map())),
        map_json: newer
            .map(|current_map| current_map.json.clone())
            .unwrap_or_default(),
    })
}

/// What the node holds.
pub(crate) fn status(node: &Node, request: &NodeStatusRequest) -> Result<NodeStatusReply, Status> {
    let membership_state = node.membership.state();
    check_cluster(&membership_state, &request.cluster_id)?;
    Ok(reply(node, &membership_state))
}

fn reply(node: &Node, membership_state: &MembershipState) -> NodeStatusReply {
    let owned = membership_state
        .table()
        .map_or(&[][..], |table| table.ranges());
    let copies = node.moves.copies();
    let mut keys = 0;
    let ranges: Vec<RangeStatus> = owned
        .iter()
        .map(|range| {
            let readiness = range.readiness();
            let state = match (copies.get(&range.id), readiness) {
                (Some(true), _) => RangeState::Secured,
                (Some(false), _) => RangeState::Arriving,
                (None, None) => RangeState::Loading,
                (None, Some(_)) if !range.is_answered_for() => RangeState::HandedOver,
                (None, Some(Readiness::Ready)) => RangeState::Ready,
                (None, Some(Readiness::Closed(_))) => RangeState::Closed,
            };
            let reason = match readiness {
                Some(Readiness::Closed(reason)) => reason.clone(),
                _ => String::new(),
            };
            let keys_here = range.read().len() as u64;
            if range.is_answered_for() {
                keys += keys_here;
            }
            RangeStatus {
                range_id: range.id.0,
                generation: range.generation,
                keys: keys_here,
                state: state.into(),
                reason,
            }
        })
        .collect();
    let map = membership_state.map();
    let [gets, puts, claims] = node
        .request_counters
        .operations()
        .map(|(_, requests, keys)| Some(OperationCounts { requests, keys }));
    NodeStatusReply {
        gets,
        puts,
        claims,
        header: Some(node.reply_header(map)),
        cluster_id: map
            .map(|map| map.cluster_id.to_bytes().to_vec())
            .unwrap_or_default()
            .into(),
        durability: map.map(durability).unwrap_or_default(),
        started_unix_ms: node.started.0,
        keys,
        key_bytes: node.arena.resident_bytes() as u64,
        process_bytes: process_bytes(),
        answer_bytes: node.answers.bytes() as u64,
        answer_operations: node.answers.operations() as u64,
        requests_in_flight: node.in_flight.count() as u64,
        ranges,
        disk: node.disk().map(Disk::status),
        memory_limit_bytes: node.config.limits.memory_bytes as u64,
        shed_keys: node.reclaiming.shed_keys(),
        warnings: node.warnings.all(),
        has_left: membership_state
            .table()
            .is_some_and(|table| table.current_map.map.node(node.config.id).is_none()),
    }
}

/// What probes and metrics go by. Of the ranges, both parts of it see the same.
pub(crate) fn snapshot(node: &Node) -> StatusSnapshot {
    let membership_state = node.membership.state();
    let not_serving = membership_state
        .table()
        .is_none()
        .then(|| node.not_serving(&membership_state).message().to_owned());
    let owned = membership_state
        .table()
        .map_or(&[][..], |table| table.ranges());
    let of_range = |range: &Arc<OwnedRange>| range.read().memory_bytes() as u64;
    StatusSnapshot {
        reply: reply(node, &membership_state),
        range_bytes: owned.iter().map(of_range).collect(),
        not_serving,
        stopping: node.in_flight.is_stopping(),
        disk_hangs: node.disk_hangs(),
        request_counters: Arc::clone(&node.request_counters),
        storage_calls: Arc::clone(&node.storage_calls),
        disk: node.disk().map(Disk::counters),
        moves: node.moves.counts(),
        copied_bytes: node.moves.budget.spent_bytes(),
    }
}

fn durability(map: &ClusterMap) -> String {
    map.durability.to_string()
}

/// Callers that do not know their cluster yet leave the id out; so may those that ask a node without a map.
pub(crate) fn check_cluster(
    membership_state: &MembershipState,
    cluster_id: &[u8],
) -> Result<(), Status> {
    match membership_state.map() {
        Some(map) if !cluster_id.is_empty() => plan::check_cluster(map.cluster_id, cluster_id),
        _ => Ok(()),
    }
}

/// Bytes of the process that are in memory, shared ones included; 0 where the system does not tell.
fn process_bytes() -> u64 {
    // The kernel makes this file's some hundred bytes up from its counters: reading it does not wait for anything.
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| resident_bytes(&status))
        .unwrap_or(0)
}

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_bytes_are_read_from_the_kernels_text() {
        let status = "Name:\tkeydb\nVmPeak:\t  900 kB\nVmRSS:\t    1234 kB\nThreads:\t4\n";
        assert_eq!(resident_bytes(status), Some(1234 * 1024));
        assert_eq!(resident_bytes("Name:\tkeydb\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_takes_memory() {
        assert!(process_bytes() > 0);
    }
}
