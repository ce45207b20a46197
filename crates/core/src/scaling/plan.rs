use std::collections::{BTreeMap, BTreeSet};

use serde_json::Map;

use super::{ScaleError, placing::set_successors};
use crate::{
    ClusterMap, NodeEntry, NodeId, NodeState, OperationId, Phase, RangeId, Target, UnixMillis,
};

/// A node as it answered at one of the addresses that a scaling operation names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its number.
    pub id: NodeId,
    /// The address, `host:port`.
    pub address: String,
    /// Its failure zone; empty when there is only one.
    pub zone: String,
}

/// A range that is to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedMove {
    /// The range.
    pub range: RangeId,
    /// Its owner.
    pub from: NodeId,
    /// Its successor.
    pub to: NodeId,
}

/// What a scaling operation has still to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScalePlan {
    /// The map to store; `None` when there is nothing to do, or when this operation is planned already.
    pub map: Option<ClusterMap>,
    /// The ranges that are to move, in the map's order. Those that are being handed over already are not among them.
    pub moves: Vec<PlannedMove>,
    /// The nodes that are to become members.
    pub joins: Vec<NodeId>,
    /// The members that are to leave.
    pub leaves: Vec<NodeId>,
}

/// Plans the way to a cluster that has exactly these `members`.
///
/// The plan's map has the new members, `active`, the others as `leaving`, a [`Target`] in phase [`Phase::Copy`], and a successor for
/// each range that has to move, which are as few as can be. A member that was leaving and is listed again stays. Ranges that are
/// being handed over count as with their new owners and are left out; [`finish`](super::finish) plans once more where that leaves
/// some where they should not be.
///
/// Repeating it is harmless: with the addresses of the operation under way, whatever their order and whatever `operation` is, the
/// plan has no map and says what that operation has still to do. With the members that the cluster has, balanced and with no range
/// being handed over, there is nothing to do; unbalanced, they are balanced.
///
/// # Errors
/// When the list is empty or has an id or an address twice, when it contradicts the map's members, or when an operation to other
/// addresses is under way.
pub fn plan_scale(
    map: &ClusterMap,
    members: &[Member],
    operation: OperationId,
    now: UnixMillis,
) -> Result<ScalePlan, ScaleError> {
    check_list(members)?;
    if let Some(target) = &map.target {
        check_same(target, members)?;
    }
    let new = new_members(map, members)?;
    if map.target.is_some() {
        return Ok(ScalePlan {
            moves: moves(map),
            joins: Vec::new(),
            leaves: leaving(map),
            map: None,
        });
    }

    let mut next = map.successor();
    let listed: BTreeSet<NodeId> = members.iter().map(|member| member.id).collect();
    let mut changed = !new.is_empty();
    for node in &mut next.nodes {
        let state = if listed.contains(&node.id) {
            NodeState::Active
        } else {
            NodeState::Leaving
        };
        changed |= node.state != state;
        node.state = state;
    }
    next.nodes.extend(new.iter().map(|member| NodeEntry {
        zone: member.zone.clone(),
        ..NodeEntry::new(member.id, &member.address)
    }));
    next.nodes.sort_by_key(|node| node.id);
    // A range that is being handed over may be taken back: only when that has ended is it known where it is.
    changed |= map.ranges.iter().any(|range| range.from.is_some());
    // A list that is not empty leaves active members.
    changed |= set_successors(&mut next).map_err(|_| ScaleError::NoMembers)?;
    let moves = moves(&next);
    next.target = Some(Target {
        operation_id: operation,
        addresses: members
            .iter()
            .map(|member| member.address.clone())
            .collect(),
        phase: Phase::Copy,
        started_ms: now,
        moves: u32::try_from(moves.len()).ok(),
        unknown: Map::new(),
    });
    Ok(ScalePlan {
        moves,
        joins: new.iter().map(|member| member.id).collect(),
        leaves: leaving(&next),
        map: changed.then_some(next),
    })
}

fn check_list(members: &[Member]) -> Result<(), ScaleError> {
    if members.is_empty() {
        return Err(ScaleError::NoMembers);
    }
    let mut by_address = BTreeMap::new();
    let mut by_id = BTreeMap::new();
    for Member { id, address, .. } in members {
        if let Some(first) = by_address.insert(address, *id) {
            return Err(ScaleError::SameAddress {
                address: address.clone(),
                first,
                second: *id,
            });
        }
        if let Some(first) = by_id.insert(*id, address) {
            return Err(ScaleError::SameId {
                id: *id,
                first: first.clone(),
                second: address.clone(),
            });
        }
    }
    Ok(())
}

/// Refuses members that are not those of the operation under way.
fn check_same(target: &Target, members: &[Member]) -> Result<(), ScaleError> {
    let planned: BTreeSet<&String> = target.addresses.iter().collect();
    let listed: BTreeSet<&String> = members.iter().map(|member| &member.address).collect();
    if planned == listed {
        return Ok(());
    }
    Err(ScaleError::UnderWay {
        operation: target.operation_id,
        addresses: target.addresses.clone(),
    })
}

/// Those that the map does not have as yet.
fn new_members<'a>(map: &ClusterMap, members: &'a [Member]) -> Result<Vec<&'a Member>, ScaleError> {
    let ids: BTreeMap<&String, NodeId> = map
        .nodes
        .iter()
        .map(|node| (&node.address, node.id))
        .collect();
    let addresses: BTreeMap<NodeId, &String> = map
        .nodes
        .iter()
        .map(|node| (node.id, &node.address))
        .collect();
    let mut new = Vec::new();
    for member in members {
        match (ids.get(&member.address), addresses.get(&member.id)) {
            (None, None) => new.push(member),
            (Some(id), _) if *id != member.id => {
                return Err(ScaleError::OtherId {
                    address: member.address.clone(),
                    answered: member.id,
                    member: *id,
                });
            }
            (Some(_), _) => {}
            (None, Some(address)) => {
                return Err(ScaleError::OtherAddress {
                    id: member.id,
                    answered: member.address.clone(),
                    member: (*address).clone(),
                });
            }
        }
    }
    Ok(new)
}

fn moves(map: &ClusterMap) -> Vec<PlannedMove> {
    let planned = map.ranges.iter().filter_map(|range| {
        Some(PlannedMove {
            range: range.id,
            from: range.owner,
            to: range.successor?,
        })
    });
    planned.collect()
}

fn leaving(map: &ClusterMap) -> Vec<NodeId> {
    map.nodes
        .iter()
        .filter(|node| node.state == NodeState::Leaving)
        .map(|node| node.id)
        .collect()
}
