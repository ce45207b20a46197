use proptest::{collection, prelude::*};

use super::*;
use crate::placement::tests::fewest_moves;

#[test]
fn new_members_become_active_others_leave_and_ranges_get_successors() {
    let map = cluster(3, 12);
    let operation = OperationId::random();
    let plan = plan_scale(&map, &members([2, 3, 0]), operation, NOW).unwrap();
    let next = plan.map.unwrap();
    check_next(&map, &next);

    assert_eq!(ids(&next), [0, 1, 2, 3]);
    assert_eq!(state(&next, 1), NodeState::Leaving);
    assert_eq!(state(&next, 3), NodeState::Active);
    let new = next.node(NodeId(3)).unwrap();
    assert_eq!(
        (new.address.as_str(), new.zone.as_str(), new.disk_id),
        ("keydb-3:50051", "zone-0", None)
    );
    let target = next.target.as_ref().unwrap();
    assert_eq!(
        (target.operation_id, target.phase),
        (operation, Phase::Copy)
    );
    assert_eq!(target.addresses, [address(2), address(3), address(0)]);
    assert_eq!(target.started_ms, NOW);
    assert_eq!(
        (plan.joins, plan.leaves),
        (vec![NodeId(3)], vec![NodeId(1)])
    );

    assert_eq!(owners(&next), owners(&map));
    let mut moves = plan.moves.iter();
    for range in &next.ranges {
        let replaced = range.owner == NodeId(1);
        assert_eq!(range.successor, replaced.then_some(NodeId(3)));
        if replaced {
            let planned = PlannedMove {
                range: range.id,
                from: NodeId(1),
                to: NodeId(3),
            };
            assert_eq!(moves.next(), Some(&planned));
        }
    }
    assert_eq!(moves.next(), None);
}

#[test]
fn a_balanced_cluster_with_the_same_members_has_nothing_to_do() {
    let map = cluster(3, 128);
    let plan = plan(&map, [1, 0, 2]);
    assert_eq!(plan.map, None);
    assert_eq!(
        (plan.moves, plan.joins, plan.leaves),
        (vec![], vec![], vec![])
    );
}

#[test]
fn an_unbalanced_cluster_with_the_same_members_is_balanced() {
    let mut map = cluster(2, 8);
    for range in &mut map.ranges[..7] {
        range.owner = NodeId(0);
    }
    let plan = plan(&map, [0, 1]);
    assert_eq!(plan.moves.len(), 3);
    assert!(plan.map.unwrap().target.is_some());
}

#[test]
fn repeating_a_call_changes_nothing_and_tells_what_is_still_to_be_done() {
    let first = plan(&cluster(3, 12), [0, 2, 3]);
    let mut map = first.map.unwrap();
    let again = plan(&map, [3, 0, 2]);
    assert_eq!(again.map, None);
    assert_eq!(again.moves, first.moves);
    assert_eq!((again.joins, again.leaves), (vec![], vec![NodeId(1)]));

    let index = map
        .ranges
        .iter()
        .position(|range| range.successor.is_some());
    publish(&mut map.ranges[index.unwrap()]);
    assert_eq!(plan(&map, [0, 2, 3]).moves, first.moves[1..]);
}

#[test]
fn a_leaving_node_that_is_listed_again_stays() {
    let mut map = cluster(3, 12);
    map.nodes[1].state = NodeState::Leaving;
    let plan = plan(&map, [0, 1, 2]);
    assert_eq!(state(&plan.map.unwrap(), 1), NodeState::Active);
    assert_eq!((plan.moves, plan.leaves), (vec![], vec![]));
}

#[test]
fn a_range_that_is_being_handed_over_gets_no_successor() {
    let mut map = plan(&cluster(2, 8), [0, 1, 2]).map.unwrap();
    let index = map
        .ranges
        .iter()
        .position(|range| range.successor.is_some());
    publish(&mut map.ranges[index.unwrap()]);
    let map = abort(&map).unwrap();
    assert_eq!(map.ranges[index.unwrap()].owner, NodeId(2));

    // Node 2 has one range now, which has to leave again; it is left for later.
    let back = plan(&map, [0, 1]);
    assert_eq!(back.moves, []);
    let next = back.map.unwrap();
    assert_eq!(next.ranges[index.unwrap()], map.ranges[index.unwrap()]);
    assert_eq!(state(&next, 2), NodeState::Leaving);
}

#[test]
fn while_a_range_is_being_handed_over_an_operation_waits_for_it() {
    let mut map = plan(&cluster(1, 2), [0, 1]).map.unwrap();
    let index = map
        .ranges
        .iter()
        .position(|range| range.successor.is_some());
    publish(&mut map.ranges[index.unwrap()]);
    let map = abort(&map).unwrap();
    // Balanced, but only if node 0 does not take the range back.
    let mut map = plan(&map, [0, 1]).map.unwrap();
    take_back(&mut map.ranges[index.unwrap()], None);
    let map = finish(&hand_over(&map, None).unwrap().unwrap()).unwrap();
    assert_eq!(map.ranges[index.unwrap()].successor, Some(NodeId(1)));
}

#[test]
fn a_list_that_cannot_be_is_refused_by_name() {
    let map = cluster(2, 8);
    let refused =
        |members: &[Member]| plan_scale(&map, members, OperationId::random(), NOW).unwrap_err();
    let at = |id: u32, address: &str| Member {
        id: NodeId(id),
        address: address.to_owned(),
        zone: String::new(),
    };
    assert_eq!(refused(&[]), ScaleError::NoMembers);
    assert_eq!(
        refused(&[member(0), at(0, "alias:1")]),
        ScaleError::SameId {
            id: NodeId(0),
            first: address(0),
            second: "alias:1".to_owned(),
        }
    );
    assert_eq!(
        refused(&[at(7, "new:1"), at(8, "new:1")]),
        ScaleError::SameAddress {
            address: "new:1".to_owned(),
            first: NodeId(7),
            second: NodeId(8),
        }
    );
    assert_eq!(
        refused(&[member(0), at(7, &address(1))]),
        ScaleError::OtherId {
            address: address(1),
            answered: NodeId(7),
            member: NodeId(1),
        }
    );
    // Two members that answer at each other's addresses.
    assert!(matches!(
        refused(&[at(0, &address(1)), at(1, &address(0))]),
        ScaleError::OtherId { .. }
    ));
    assert_eq!(
        refused(&[member(0), at(1, "moved:1")]),
        ScaleError::OtherAddress {
            id: NodeId(1),
            answered: "moved:1".to_owned(),
            member: address(1),
        }
    );
}

#[test]
fn another_operation_is_refused_while_one_is_under_way() {
    let map = plan(&cluster(2, 8), [0, 1, 2]).map.unwrap();
    let target = map.target.as_ref().unwrap();
    let refused = plan_scale(&map, &members([0, 1]), OperationId::random(), NOW).unwrap_err();
    assert_eq!(
        refused,
        ScaleError::UnderWay {
            operation: target.operation_id,
            addresses: target.addresses.clone(),
        }
    );
    let text = refused.to_string();
    for part in ["keydb-2:50051", "abort", "complete"] {
        assert!(text.contains(part), "{text}");
    }
}

proptest! {
    #[test]
    fn a_plan_moves_as_few_ranges_as_can_be_and_ends_balanced(
        owner_of in collection::vec(0_u32..8, 1..200),
        listed in collection::btree_set(0_u32..12, 1..12),
        balanced in any::<bool>(),
    ) {
        let mut map = cluster(8, owner_of.len() as u32);
        if !balanced {
            for (range, owner) in map.ranges.iter_mut().zip(owner_of) {
                range.owner = NodeId(owner);
            }
        }
        let wanted: Vec<u32> = listed.into_iter().collect();
        let wanted_ids: Vec<NodeId> = wanted.iter().copied().map(NodeId).collect();
        let current: Vec<Option<NodeId>> = owners(&map).into_iter().map(Some).collect();
        let planned = plan(&map, wanted.iter().copied());
        prop_assert_eq!(planned.moves.len(), fewest_moves(&current, &wanted_ids));
        prop_assert!(planned.moves.iter().all(|planned| planned.from != planned.to));
        let Some(next) = planned.map else {
            prop_assert_eq!(planned.moves.len(), 0);
            prop_assert_eq!(wanted, ids(&map));
            return Ok(());
        };
        let again = plan(&next, wanted.iter().copied());
        prop_assert_eq!((&again.map, &again.moves), (&None, &planned.moves));

        let mut next = hand_over(&next, None).unwrap().unwrap();
        move_all(&mut next);
        check_settled(&finish(&next).unwrap(), &wanted);
    }
}

#[test]
fn joins_leaves_and_replacements_of_a_balanced_cluster_move_the_lower_bound() {
    for (nodes, ranges) in [(1, 128), (3, 128), (10, 128), (7, 1000)] {
        let map = cluster(nodes, ranges);
        let moved = |ids: Vec<u32>| plan(&map, ids).moves.len() as u32;
        // A new node gets its share of all ranges, rounded down, and nobody else gets any.
        assert_eq!(moved((0..=nodes).collect()), ranges / (nodes + 1));
        // What a node owned moves when it leaves or is replaced, and nothing else.
        let owned = loads(&owners(&map), &[NodeId(0)])[0] as u32;
        assert_eq!(moved((1..=nodes).collect()), owned);
        if nodes > 1 {
            assert_eq!(moved((1..nodes).collect()), owned);
        }
    }
}
