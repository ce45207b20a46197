use std::collections::BTreeSet;

use crate::{ClusterMap, NodeId, NodeState, PlacementError, RangeEntry, place};

/// Gives every range that the placement over the active members wants elsewhere its next owner as its successor, and all others
/// none. Whether any range is elsewhere, those that are being handed over included: these get no successor, and count as with their
/// new owners.
pub(super) fn set_successors(map: &mut ClusterMap) -> Result<bool, PlacementError> {
    let active: Vec<NodeId> = map
        .nodes
        .iter()
        .filter(|node| node.state == NodeState::Active)
        .map(|node| node.id)
        .collect();
    let owners: Vec<Option<NodeId>> = map.ranges.iter().map(|range| Some(range.owner)).collect();
    let mut any = false;
    for (range, wanted) in map.ranges.iter_mut().zip(place(&owners, &active)?) {
        let moves = wanted != range.owner;
        any |= moves;
        range.successor = (moves && range.from.is_none()).then_some(wanted);
    }
    Ok(any)
}

/// The nodes that some range names, as its owner, its successor or the owner before.
pub(super) fn named(map: &ClusterMap) -> BTreeSet<NodeId> {
    let of_range = |range: &RangeEntry| {
        let from = range.from.as_ref().map(|from| from.node);
        [Some(range.owner), range.successor, from]
    };
    map.ranges.iter().flat_map(of_range).flatten().collect()
}
