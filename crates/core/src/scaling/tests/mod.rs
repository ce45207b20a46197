mod plan;
mod simulation;
mod steps;

use super::*;
use crate::{
    ClusterMap, CopyId, Durability, HandedFrom, NewCluster, NodeId, NodeState, OperationId, Phase,
    RangeEntry, UnixMillis, placement::tests::loads,
};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

fn address(id: u32) -> String {
    format!("keydb-{id}:50051")
}

fn member(id: u32) -> Member {
    Member {
        id: NodeId(id),
        address: address(id),
        zone: format!("zone-{}", id % 3),
    }
}

fn members(ids: impl IntoIterator<Item = u32>) -> Vec<Member> {
    ids.into_iter().map(member).collect()
}

/// A balanced cluster with nodes 0 to `nodes - 1`.
fn cluster(nodes: u32, ranges: u32) -> ClusterMap {
    ClusterMap::create(&NewCluster {
        addresses: (0..nodes).map(address).collect(),
        range_count: ranges,
        durability: Durability::Journal,
    })
    .unwrap()
}

/// The plan, whose map is a good successor of the map.
fn plan(map: &ClusterMap, ids: impl IntoIterator<Item = u32>) -> ScalePlan {
    let plan = plan_scale(map, &members(ids), OperationId::random(), NOW).unwrap();
    if let Some(next) = &plan.map {
        check_next(map, next);
    }
    plan
}

/// Checks what holds for every change.
fn check_next(map: &ClusterMap, next: &ClusterMap) {
    assert_eq!(next.version(), (map.lineage, map.epoch + 1));
    assert_ne!(next.write_nonce, map.write_nonce);
    assert_eq!(ClusterMap::from_json(&next.to_json()).as_ref(), Ok(next));
}

fn owners(map: &ClusterMap) -> Vec<NodeId> {
    map.ranges.iter().map(|range| range.owner).collect()
}

fn ids(map: &ClusterMap) -> Vec<u32> {
    map.nodes.iter().map(|node| node.id.0).collect()
}

fn state(map: &ClusterMap, id: u32) -> NodeState {
    map.node(NodeId(id)).unwrap().state
}

/// What the successor's node writes when it has everything.
fn publish(range: &mut RangeEntry) {
    let successor = range.successor.take().unwrap();
    range.from = Some(HandedFrom {
        node: range.owner,
        generation: range.generation,
        copy: CopyId::random(),
        unknown: serde_json::Map::new(),
    });
    range.owner = successor;
    range.generation += 1;
}

/// What the owner before writes when it decided not to hand over.
fn take_back(range: &mut RangeEntry, successor: Option<NodeId>) {
    let from = range.from.take().unwrap();
    range.owner = from.node;
    range.generation += 1;
    range.successor = successor;
}

/// Lets every planned move end, as far as the new owner's word that it has begun.
fn move_all(map: &mut ClusterMap) {
    for range in &mut map.ranges {
        if range.successor.is_some() {
            publish(range);
        }
        range.from = None;
    }
}

/// Checks that nothing is under way and that exactly these nodes share the ranges evenly.
fn check_settled(map: &ClusterMap, wanted: &[u32]) {
    assert_eq!(map.target, None);
    assert_eq!(ids(map), wanted);
    for node in &map.nodes {
        assert_eq!(node.state, NodeState::Active, "node {}", node.id);
    }
    for range in &map.ranges {
        assert_eq!((range.successor, &range.from), (None, &None));
    }
    let wanted: Vec<NodeId> = wanted.iter().copied().map(NodeId).collect();
    let loads = loads(&owners(map), &wanted);
    assert_eq!(loads.iter().sum::<usize>(), map.ranges.len());
    assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1);
}
