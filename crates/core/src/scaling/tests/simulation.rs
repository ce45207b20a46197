//! Operations with everything that may come between, in random order.

use proptest::{collection, prelude::*};

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Plan(Vec<u32>),
    HandOver,
    Abort,
    Finish,
    /// A successor becomes the owner.
    Publish(usize),
    /// A new owner says that it has begun.
    Begun(usize),
    /// An owner before takes its range back.
    TakeBack(usize),
}

const NODES_MAX: u32 = 9;

fn listed() -> impl Strategy<Value = Vec<u32>> {
    collection::btree_set(0..NODES_MAX, 1..7).prop_map(|ids| ids.into_iter().collect())
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => listed().prop_map(Step::Plan),
        2 => Just(Step::HandOver),
        1 => Just(Step::Abort),
        2 => Just(Step::Finish),
        12 => any::<usize>().prop_map(Step::Publish),
        6 => any::<usize>().prop_map(Step::Begun),
        3 => any::<usize>().prop_map(Step::TakeBack),
    ]
}

/// A map as it is stored.
struct Stored(ClusterMap);

impl Stored {
    fn store(&mut self, next: Option<ClusterMap>) -> bool {
        let Some(next) = next else {
            return false;
        };
        check_next(&self.0, &next);
        self.0 = next;
        true
    }

    fn take(&mut self, step: &Step) {
        let map = &self.0;
        match step {
            Step::Plan(ids) => {
                match plan_scale(
                    map,
                    &members(ids.iter().copied()),
                    OperationId::random(),
                    NOW,
                ) {
                    Ok(plan) => {
                        self.store(plan.map);
                    }
                    Err(error) => assert!(matches!(error, ScaleError::UnderWay { .. }), "{error}"),
                }
            }
            Step::HandOver => match hand_over(map, None) {
                Ok(next) => {
                    self.store(next);
                }
                Err(error) => assert_eq!(error, ScaleError::NotUnderWay),
            },
            Step::Abort => {
                self.store(abort(map));
            }
            Step::Finish => {
                self.store(finish(map));
            }
            Step::Publish(at) => {
                let may = map
                    .target
                    .as_ref()
                    .is_some_and(|target| target.phase == Phase::HandOver);
                if may {
                    self.change(*at, |range| range.successor.is_some(), publish);
                }
            }
            Step::Begun(at) => {
                self.change(*at, |range| range.from.is_some(), |range| range.from = None);
            }
            Step::TakeBack(at) => {
                // The owner before plans the move again itself, while there is an operation in which that node gets ranges.
                let receivers: Vec<NodeId> = map
                    .nodes
                    .iter()
                    .filter(|node| map.target.is_some() && node.state == NodeState::Active)
                    .map(|node| node.id)
                    .collect();
                self.change(
                    *at,
                    |range| range.from.is_some(),
                    |range| {
                        let again = Some(range.owner).filter(|node| receivers.contains(node));
                        take_back(range, again);
                    },
                );
            }
        }
    }

    /// Changes the `at`-th of the ranges that `which` is true for, as a node does. Whether there is one.
    fn change(
        &mut self,
        at: usize,
        which: impl Fn(&RangeEntry) -> bool,
        change: impl FnOnce(&mut RangeEntry),
    ) -> bool {
        let mut next = self.0.successor();
        let mut ranges: Vec<&mut RangeEntry> = next
            .ranges
            .iter_mut()
            .filter(|range| which(range))
            .collect();
        if ranges.is_empty() {
            return false;
        }
        let at = at % ranges.len();
        change(ranges.swap_remove(at));
        self.store(Some(next))
    }

    /// Brings the cluster to these members, whatever is under way, with `steps` of the nodes between.
    fn settle(&mut self, wanted: &[u32], steps: &[Step]) {
        if plan_scale(
            &self.0,
            &members(wanted.iter().copied()),
            OperationId::random(),
            NOW,
        )
        .is_err()
        {
            self.take(&Step::Abort);
        }
        self.take(&Step::Plan(wanted.to_vec()));
        self.take(&Step::HandOver);
        for step in steps {
            if !matches!(step, Step::Plan(_) | Step::Abort) {
                self.take(step);
            }
        }
        let moves = |range: &RangeEntry| range.successor.is_some() || range.from.is_some();
        // Each round moves what is to move; a second one what was left out of the first.
        for _ in 0..3 {
            while self.0.ranges.iter().any(moves) {
                self.take(&Step::Publish(0));
                self.take(&Step::Begun(0));
            }
            self.take(&Step::Finish);
        }
        check_settled(&self.0, wanted);
    }
}

proptest! {
    #[test]
    fn an_operation_ends_with_its_members_whatever_came_before_and_between(
        nodes in 1_u32..6,
        ranges in 1_u32..40,
        before in collection::vec(step(), 0..120),
        wanted in listed(),
        between in collection::vec(step(), 0..60),
        at_last in listed(),
    ) {
        let mut stored = Stored(cluster(nodes, ranges));
        for step in &before {
            stored.take(step);
        }
        stored.settle(&wanted, &between);
        stored.settle(&at_last, &[]);
    }

    #[test]
    fn after_an_abort_everything_can_be_planned_again(
        before in collection::vec(step(), 0..80),
        wanted in listed(),
    ) {
        let mut stored = Stored(cluster(3, 16));
        for step in &before {
            stored.take(step);
        }
        stored.take(&Step::Abort);
        let map = &stored.0;
        prop_assert_eq!(&map.target, &None);
        prop_assert!(map.nodes.iter().all(|node| node.state == NodeState::Active));
        prop_assert!(map.ranges.iter().all(|range| range.successor.is_none()));
        let planned = plan(map, wanted.iter().copied());
        if let Some(next) = &planned.map {
            let to_move = next.ranges.iter().filter(|range| range.successor.is_some());
            prop_assert_eq!(to_move.count(), planned.moves.len());
            prop_assert_eq!(owners(next), owners(map));
        }
    }
}
