use super::{
    ScaleError,
    placing::{named, set_successors},
};
use crate::{ClusterMap, NodeEntry, NodeState, OperationId, Phase, RangeEntry};

/// Lets the successors take their ranges over. `None` when they may already.
///
/// With `operation`, only that one goes on, not one that has been started after it.
///
/// # Errors
/// When no operation is under way, or another one than `operation`.
pub fn hand_over(
    map: &ClusterMap,
    operation: Option<OperationId>,
) -> Result<Option<ClusterMap>, ScaleError> {
    let target = map.target.as_ref().ok_or(ScaleError::NotUnderWay)?;
    if let Some(asked) = operation
        && asked != target.operation_id
    {
        return Err(ScaleError::OtherOperation {
            asked,
            under_way: target.operation_id,
        });
    }
    if target.phase == Phase::HandOver {
        return Ok(None);
    }
    let mut next = map.successor();
    if let Some(target) = &mut next.target {
        target.phase = Phase::HandOver;
    }
    Ok(Some(next))
}

/// Drops what the operation under way has not done: its target, all successors and the marks of those that were to leave. `None`
/// when no operation is under way.
///
/// Owners stay as they are, and so do ranges that are being handed over.
///
/// - A node that owns ranges by now stays an active member, also when it was new. Going back is an operation of its own: to scale to
///   the members that there were before.
/// - A node that was to leave is an active member again, even if it has no range left.
/// - An active node that no range names is removed, for it has nothing. Where there are more members than ranges, that may also be
///   one that was a member before the operation; it can be scaled to again.
pub fn abort(map: &ClusterMap) -> Option<ClusterMap> {
    map.target.as_ref()?;
    let mut next = map.successor();
    next.target = None;
    for range in &mut next.ranges {
        range.successor = None;
    }
    let named = named(&next);
    next.nodes
        .retain(|node| node.state == NodeState::Leaving || named.contains(&node.id));
    for node in &mut next.nodes {
        node.state = NodeState::Active;
    }
    Some(next)
}

/// The last change of an operation, or its next round. `None` when it is not time for either.
///
/// It is not before phase [`Phase::HandOver`], nor while ranges move. After that, where all ranges are with the nodes that the
/// placement over the active members calls for, the target goes, and with it the nodes that have left. Where some are not, these get
/// successors, and the operation goes on: ranges that were being handed over when a plan was made may still have to move, and others
/// may have been taken back.
///
/// Where no operation is under way, it removes nodes that are marked as leaving and that no range names.
pub fn finish(map: &ClusterMap) -> Option<ClusterMap> {
    let moves = |range: &RangeEntry| range.successor.is_some() || range.from.is_some();
    let is_leaving = |node: &NodeEntry| node.state == NodeState::Leaving;
    let is_time = match &map.target {
        Some(target) => target.phase == Phase::HandOver && !map.ranges.iter().any(moves),
        None => map.nodes.iter().any(is_leaving),
    };
    if !is_time {
        return None;
    }
    let mut next = map.successor();
    // No plan marks all members as leaving. In a map that came to be so in another way, nothing can be placed.
    if next.target.is_some() && set_successors(&mut next).ok()? {
        return Some(next);
    }
    next.target = None;
    let named = named(&next);
    next.nodes
        .retain(|node| !is_leaving(node) || named.contains(&node.id));
    let changed = map.target.is_some() || next.nodes.len() < map.nodes.len();
    changed.then_some(next)
}
