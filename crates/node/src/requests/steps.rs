//! Working on a request's keys: range by range, in steps, between which others have their turn.
//!
//! No lock is held then: each range's lock is held for one step at most.

use std::ops::ControlFlow;

use keydb_core::{InsertError, PackedFingerprints};
use keydb_proto::shard::{RangeRefusal, RefusalCode};

use crate::{
    node::Node,
    ranges::owned::{OwnedRange, OwnedRanges},
    requests::plan::{self, Group, Plan},
};

/// So many keys are worked on before others get their turn.
pub(super) const STEP_KEYS: usize = 4096;

/// A group's memory is fetched while the one before it is worked on. With groups of eight keys and tens of millions resident,
/// one group ahead was measured best; two to four ahead cost more than they gained.
const PREFETCH_GROUPS: usize = 1;

/// So many keys of a group are fetched ahead; more would push each other out of the first-level cache.
const PREFETCH_KEYS: usize = 32;

/// What a request does with its keys.
pub(super) trait Work {
    /// Begins with the group at `position` of the plan. Returns what of it the steps are to work on, which may be nothing.
    fn begin(&mut self, _position: usize, _range: &OwnedRange, group: Group) -> Group {
        group
    }

    /// Works on `keys` of `range`, the first of which is at `start` in the request. `Break` ends the work on the group.
    fn step(
        &mut self,
        range: &OwnedRange,
        keys: PackedFingerprints<'_>,
        start: usize,
    ) -> ControlFlow<()>;

    /// The range of a group is not answered for any more. Nothing was applied to it.
    fn refuse(&mut self, refusal: RangeRefusal);

    /// Ends the work on a group: on all of it but where a step has broken off.
    fn end(&mut self, _range: &OwnedRange, _group: Group) {}

    /// Others have their turn next, or all is done.
    fn pause(&mut self) {}

    /// They have had it.
    fn resume(&mut self) {}
}

/// Does `work` with all keys of `plan`. Ranges that were shut since it was made are refused.
pub(super) async fn work_on(
    node: &Node,
    table: &OwnedRanges,
    plan: &Plan<'_>,
    work: &mut impl Work,
) {
    // Until all that is applied is in the journal. A group that was begun is ended, also if its range is shut meanwhile.
    let _inside = node.grace.enter();
    let mut pace = Pace::default();
    for (position, group) in plan.groups.iter().enumerate() {
        prefetch(table, plan, position + PREFETCH_GROUPS);
        let range = owned(table, *group);
        if !range.is_open(group.generation) {
            work.refuse(shut(node, table, range, *group));
            continue;
        }
        for (start, end) in steps(work.begin(position, range, *group)) {
            if pace.spend(end - start) {
                work.pause();
                tokio::task::yield_now().await;
                work.resume();
            }
            let keys = plan.fingerprints.slice(start, end);
            if work.step(range, keys, start).is_break() {
                break;
            }
        }
        work.end(range, *group);
    }
    work.pause();
}

pub(super) fn owned(table: &OwnedRanges, group: Group) -> &OwnedRange {
    &table.ranges()[group.range]
}

/// Starts fetching the memory that the group at `position` is going to touch.
#[inline]
fn prefetch(table: &OwnedRanges, plan: &Plan<'_>, position: usize) {
    let Some(group) = plan.groups.get(position) else {
        return;
    };
    let end = group.end.min(group.start + PREFETCH_KEYS);
    if let Some(keys) = owned(table, *group).try_read() {
        keys.prefetch(plan.fingerprints.slice(group.start, end));
    }
}

/// The parts of a group that are worked on under one lock, as `(start, end)`.
fn steps(group: Group) -> impl Iterator<Item = (usize, usize)> {
    (group.start..group.end)
        .step_by(STEP_KEYS)
        .map(move |start| (start, group.end.min(start + STEP_KEYS)))
}

/// Why a group is refused whose range was open when the request came in.
fn shut(node: &Node, table: &OwnedRanges, range: &OwnedRange, group: Group) -> RangeRefusal {
    let now = node.membership.state();
    plan::not_owner(now.table().unwrap_or(table), range.id, group.generation)
}

/// Says when others are to have their turn: after every [`STEP_KEYS`] keys.
#[derive(Default)]
struct Pace {
    keys: usize,
}

impl Pace {
    /// To be called, without a lock, before `keys` are worked on. True when it is the others' turn first.
    #[inline]
    fn spend(&mut self, keys: usize) -> bool {
        self.keys += keys;
        let over = self.keys > STEP_KEYS;
        if over {
            self.keys = keys;
        }
        over
    }
}

/// The answer for a range that has no room for more of the request's keys.
pub(super) fn full(range: &OwnedRange, error: InsertError) -> RangeRefusal {
    RangeRefusal {
        range_id: range.id.0,
        code: RefusalCode::Full.into(),
        owner_node: None,
        owner_address: String::new(),
        generation: range.generation,
        message: format!(
            "range {} cannot take more of these keys, part of which may have been stored: {error}",
            range.id
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_worked_on_in_steps_that_cover_it() {
        let group = Group {
            range: 0,
            start: 10,
            end: 10 + 2 * STEP_KEYS + 1,
            attempt: 0,
            generation: 1,
        };
        let steps: Vec<_> = steps(group).collect();
        assert_eq!(
            steps,
            [
                (10, 10 + STEP_KEYS),
                (10 + STEP_KEYS, 10 + 2 * STEP_KEYS),
                (10 + 2 * STEP_KEYS, group.end)
            ]
        );
    }

    #[test]
    fn others_get_their_turn_after_a_step_of_keys() {
        let mut pace = Pace::default();
        let turns = (0..10).filter(|_| pace.spend(STEP_KEYS / 2)).count();
        assert_eq!(turns, 4);
    }
}
