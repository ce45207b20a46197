//! Placement: which member owns which range.

use std::collections::BTreeMap;

use crate::NodeId;

/// There is nobody to place ranges on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no members to place hash ranges on")]
pub struct PlacementError;

/// The owner of each range after a change of membership.
///
/// `current` has one entry a range: its owner today, `None` if it has none. In the result the loads of any two `members` differ
/// by at most one range, and no fewer ranges could have moved to get there. The same input gives the same result.
///
/// # Errors
/// When `members` is empty.
pub fn place(
    current: &[Option<NodeId>],
    members: &[NodeId],
) -> Result<Vec<NodeId>, PlacementError> {
    let mut loads: BTreeMap<NodeId, usize> = members.iter().map(|member| (*member, 0)).collect();
    if loads.is_empty() {
        return Err(PlacementError);
    }
    for owner in current.iter().flatten() {
        if let Some(load) = loads.get_mut(owner) {
            *load += 1;
        }
    }
    // Everybody gets `base` ranges, and `extra` members one more: those that own the most today, who would else have to give
    // one up. That is what makes the movement minimal.
    let (base, extra) = (current.len() / loads.len(), current.len() % loads.len());
    let mut by_load: Vec<NodeId> = loads.keys().copied().collect();
    by_load.sort_by_key(|member| std::cmp::Reverse(loads[member]));
    let mut room: BTreeMap<NodeId, usize> = by_load
        .iter()
        .enumerate()
        .map(|(rank, member)| (*member, base + usize::from(rank < extra)))
        .collect();

    let kept: Vec<Option<NodeId>> = current
        .iter()
        .map(|owner| {
            let owner = (*owner)?;
            let room = room.get_mut(&owner).filter(|room| **room > 0)?;
            *room -= 1;
            Some(owner)
        })
        .collect();
    // Deal the rest out in turns, so that neighbouring ranges go to different nodes.
    let mut receivers =
        std::collections::VecDeque::from_iter(room.into_iter().filter(|(_, room)| *room > 0));
    let owners = kept.into_iter().map(|owner| {
        owner.unwrap_or_else(|| {
            let (member, room) = receivers
                .pop_front()
                .expect("the room of all members adds up to the number of ranges");
            if room > 1 {
                receivers.push_back((member, room - 1));
            }
            member
        })
    });
    Ok(owners.collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::{collection, prelude::*};

    use super::*;

    /// How many ranges each of the members owns.
    pub(crate) fn loads(owners: &[NodeId], members: &[NodeId]) -> Vec<usize> {
        members
            .iter()
            .map(|member| owners.iter().filter(|owner| *owner == member).count())
            .collect()
    }

    /// The fewest moves that give balanced loads: every member keeps what it may, `extra` of them one more than the others.
    pub(crate) fn fewest_moves(current: &[Option<NodeId>], members: &[NodeId]) -> usize {
        let (base, extra) = (current.len() / members.len(), current.len() % members.len());
        let owned = members.iter().map(|member| {
            current
                .iter()
                .filter(|owner| **owner == Some(*member))
                .count()
        });
        let over = owned
            .clone()
            .filter(|owned| *owned > base)
            .count()
            .min(extra);
        let kept: usize = owned.map(|owned| owned.min(base)).sum::<usize>() + over;
        current.len() - kept
    }

    proptest! {
        #[test]
        fn loads_differ_by_at_most_one_and_movement_is_minimal(
            current in collection::vec(proptest::option::of((0_u32..12).prop_map(NodeId)), 0..300),
            members in collection::btree_set((0_u32..12).prop_map(NodeId), 1..12),
        ) {
            let members: Vec<NodeId> = members.into_iter().collect();
            let owners = place(&current, &members).unwrap();
            let loads = loads(&owners, &members);
            prop_assert_eq!(loads.iter().sum::<usize>(), current.len(), "every range has a member as its owner");
            prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1);
            let moved = current.iter().zip(&owners).filter(|(before, after)| **before != Some(**after)).count();
            prop_assert_eq!(moved, fewest_moves(&current, &members));
        }
    }

    #[test]
    fn without_members_there_is_no_placement() {
        assert_eq!(place(&[None], &[]), Err(PlacementError));
    }
}
