use super::*;

/// A cluster of two nodes with an operation to nodes 0, 2 and 3 that may hand over.
fn handing_over() -> ClusterMap {
    let map = plan(&cluster(2, 12), [0, 2, 3]).map.unwrap();
    hand_over(&map, None).unwrap().unwrap()
}

fn first_to_move(map: &mut ClusterMap) -> &mut RangeEntry {
    map.ranges
        .iter_mut()
        .find(|range| range.successor.is_some())
        .unwrap()
}

#[test]
fn handing_over_is_let_begin_once_and_only_for_the_operation_that_was_meant() {
    let map = cluster(2, 8);
    assert_eq!(hand_over(&map, None), Err(ScaleError::NotUnderWay));

    let map = plan(&map, [0, 1, 2]).map.unwrap();
    let under_way = map.target.as_ref().unwrap().operation_id;
    let asked = OperationId::random();
    assert_eq!(
        hand_over(&map, Some(asked)),
        Err(ScaleError::OtherOperation { asked, under_way })
    );
    let next = hand_over(&map, Some(under_way)).unwrap().unwrap();
    check_next(&map, &next);
    assert_eq!(next.target.as_ref().unwrap().phase, Phase::HandOver);
    assert_eq!(hand_over(&next, Some(under_way)), Ok(None));
}

#[test]
fn an_abort_before_anything_moved_goes_back_to_the_map_before() {
    let before = cluster(2, 8);
    let planned = plan(&before, [0, 2, 3]).map.unwrap();
    let after = abort(&planned).unwrap();
    check_next(&planned, &after);
    assert_eq!(
        (after.nodes.clone(), after.ranges.clone(), &after.target),
        (before.nodes, before.ranges, &None)
    );
    assert_eq!(abort(&after), None);
}

#[test]
fn an_abort_keeps_owners_and_hand_overs_and_every_node_that_they_name() {
    let mut map = handing_over();
    // One range of node 1 is being handed over to a new node. All others of node 1 have gone to node 0.
    let range = first_to_move(&mut map);
    let new = range.successor.unwrap();
    publish(range);
    for range in &mut map.ranges {
        if range.owner == NodeId(1) {
            range.owner = NodeId(0);
            range.successor = None;
        }
    }
    let next = abort(&map).unwrap();
    check_next(&map, &next);
    assert_eq!(owners(&next), owners(&map));
    let from = |map: &ClusterMap| {
        map.ranges
            .iter()
            .map(|range| range.from.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(from(&next), from(&map));
    assert!(next.ranges.iter().all(|range| range.successor.is_none()));
    assert_eq!(ids(&next), [0, 1, new.0]);
    assert!(
        next.nodes
            .iter()
            .all(|node| node.state == NodeState::Active)
    );
}

#[test]
fn a_node_that_was_to_leave_stays_after_an_abort_even_without_a_range() {
    let mut map = handing_over();
    move_all(&mut map);
    assert!(!owners(&map).contains(&NodeId(1)));
    let next = abort(&map).unwrap();
    assert_eq!(ids(&next), [0, 1, 2, 3]);
    assert_eq!(state(&next, 1), NodeState::Active);
}

#[test]
fn an_operation_ends_when_nothing_moves_any_more() {
    let mut map = handing_over();
    assert_eq!(finish(&map), None);
    let range = first_to_move(&mut map).id;
    move_all(&mut map);
    let mut still_moving = map.clone();
    let last = still_moving
        .ranges
        .iter_mut()
        .find(|other| other.id == range)
        .unwrap();
    last.from = Some(HandedFrom {
        node: NodeId(1),
        generation: 1,
        copy: CopyId::random(),
        unknown: serde_json::Map::new(),
    });
    assert_eq!(finish(&still_moving), None);

    let next = finish(&map).unwrap();
    check_next(&map, &next);
    check_settled(&next, &[0, 2, 3]);
    assert_eq!(finish(&next), None);
}

#[test]
fn an_operation_does_not_end_in_phase_copy() {
    // More members than ranges: nothing is to move.
    let map = plan(&cluster(2, 2), [0, 1, 2]).map.unwrap();
    assert_eq!(finish(&map), None);
    let map = hand_over(&map, None).unwrap().unwrap();
    check_settled(&finish(&map).unwrap(), &[0, 1, 2]);
}

#[test]
fn ranges_that_are_not_where_they_should_be_get_successors_before_an_operation_ends() {
    let mut map = handing_over();
    let range = first_to_move(&mut map);
    publish(range);
    take_back(range, None);
    let (id, owner) = (range.id, range.owner);
    move_all(&mut map);

    let next = finish(&map).unwrap();
    check_next(&map, &next);
    assert_eq!(next.target, map.target);
    for range in &next.ranges {
        let expected = (range.id == id).then_some(owner);
        assert_eq!(range.successor.map(|_| range.owner), expected);
    }
    let mut map = next;
    move_all(&mut map);
    check_settled(&finish(&map).unwrap(), &[0, 2, 3]);
}

#[test]
fn without_an_operation_a_leaving_node_is_removed_when_no_range_names_it() {
    let mut map = cluster(3, 2);
    assert_eq!(finish(&map), None);
    for id in [1, 2] {
        map.node_mut(NodeId(id)).unwrap().state = NodeState::Leaving;
    }
    let next = finish(&map).unwrap();
    check_next(&map, &next);
    assert_eq!(ids(&next), [0, 1]);
    assert_eq!(finish(&next), None);
}
