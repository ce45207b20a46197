//! Claims that write nothing: questions for remembered answers, and, while the disk is full, those that need nothing written.
//!
//! The latter is a claim whose every range is a repeat with remembered answers, or has only keys that are there. What it is told is not
//! remembered, as that would have to be written as well: its repeat is told `Unknown` where it was told `Duplicate`.

use keydb_core::{Bitmap, Times};
use keydb_proto::shard::{ClaimReply, RangeRefusal};
use tonic::Status;

use crate::{
    node::{MembershipState, Node},
    ranges::owned::OwnedRanges,
    requests::answers::{ClaimedKeys, Operation, Recall},
    requests::commit::Commit,
    requests::keys::{Pace, owned, steps},
    requests::plan::Plan,
};

/// What a claim is told that stores nothing.
#[derive(Debug)]
pub(crate) struct Known {
    first: Bitmap,
    unknown: Option<Bitmap>,
    repeated_ranges: Vec<u32>,
    refused: Vec<RangeRefusal>,
}

/// Answers a claim without writing anything; `None` where a key is new.
///
/// # Errors
/// When the journal has failed, and the node is about to end.
pub(crate) async fn claim_known(
    node: &Node,
    table: &OwnedRanges,
    plan: Plan<'_>,
    operation: Operation<'_>,
    times: Times,
) -> Result<Option<Known>, Status> {
    let key_count = plan.fingerprints.len();
    let mut commit = Commit::of_read(node.journal());
    let mut first = Bitmap::new(key_count);
    let mut unknown = None;
    let mut repeated_ranges = Vec::new();
    let mut pace = Pace::default();
    for group in &plan.groups {
        let range = owned(table, *group);
        let claimed = ClaimedKeys::new(range.id, plan.keys(*group));
        let mut new = *group;
        let in_doubt = match operation.recall(claimed) {
            Recall::Same(answers) => {
                answers.answer(&mut first, &mut unknown, group.start);
                commit.wait_for(operation.remembered_lsn());
                repeated_ranges.push(range.id.0);
                continue;
            }
            Recall::Prefix(answers) => {
                answers.answer(&mut first, &mut unknown, group.start);
                commit.wait_for(operation.remembered_lsn());
                new.start += answers.count();
                true
            }
            Recall::Doubt => true,
            Recall::Nothing => group.attempt > 0,
        };
        for (start, end) in steps(new) {
            if pace.spend(end - start) {
                tokio::task::yield_now().await;
            }
            let keys = plan.fingerprints.slice(start, end);
            let mut present = Bitmap::new(key_count);
            let set = range.read();
            set.get(keys, times, &mut present, start);
            commit.found(range, keys, &present, start);
            drop(set);
            if present.count() < end - start {
                return Ok(None);
            }
        }
        if in_doubt {
            let unknown = unknown.get_or_insert_with(|| Bitmap::new(key_count));
            (new.start..new.end).for_each(|index| unknown.or(index, true));
        }
    }
    drop(operation);
    commit.committed().await?;
    Ok(Some(Known {
        first,
        unknown,
        repeated_ranges,
        refused: plan.refused,
    }))
}

/// What is remembered of an operation. All keys that nothing is remembered of are unknown.
///
/// # Errors
/// When the journal has failed, and the node is about to end.
pub(crate) async fn recall(
    node: &Node,
    table: &OwnedRanges,
    plan: Plan<'_>,
    operation: Operation<'_>,
) -> Result<Known, Status> {
    let key_count = plan.fingerprints.len();
    let mut commit = Commit::of_read(node.journal());
    let mut first = Bitmap::new(key_count);
    let mut unknown = None;
    let mut repeated_ranges = Vec::new();
    for group in &plan.groups {
        let range = owned(table, *group).id;
        let claimed = ClaimedKeys::new(range, plan.keys(*group));
        let mut new = *group;
        match operation.recall(claimed) {
            Recall::Same(answers) | Recall::Prefix(answers) => {
                answers.answer(&mut first, &mut unknown, group.start);
                commit.wait_for(operation.remembered_lsn());
                new.start += answers.count();
            }
            Recall::Doubt | Recall::Nothing => {}
        }
        if new.start == new.end {
            repeated_ranges.push(range.0);
        } else {
            let unknown = unknown.get_or_insert_with(|| Bitmap::new(key_count));
            (new.start..new.end).for_each(|index| unknown.or(index, true));
        }
    }
    drop(operation);
    commit.committed().await?;
    Ok(Known {
        first,
        unknown,
        repeated_ranges,
        refused: plan.refused,
    })
}

impl Known {
    pub(crate) fn reply(self, node: &Node, membership_state: &MembershipState) -> ClaimReply {
        ClaimReply {
            header: Some(node.reply_header(membership_state.map())),
            first: self.first.into_bytes().into(),
            unknown: self
                .unknown
                .map_or_else(Vec::new, Bitmap::into_bytes)
                .into(),
            refused: self.refused,
            repeated_ranges: self.repeated_ranges,
        }
    }
}
