//! Claims that write nothing: questions for remembered answers, and, while the disk is full, those that need nothing written.
//!
//! The latter is a claim whose every range is a repeat with remembered answers, or has only keys that are there. What it is told is not
//! remembered, as that would have to be written as well: its repeat is told `Unknown` where it was told `Duplicate`.

use std::ops::ControlFlow;

use keydb_core::{Bitmap, PackedFingerprints, Times};
use keydb_proto::shard::{ClaimReply, RangeRefusal};
use tonic::Status;

use crate::{
    cluster::membership_state::MembershipState,
    node::Node,
    ranges::owned::{OwnedRange, OwnedRanges},
    requests::answers::{ClaimedKeys, Operation, Recall},
    requests::commit::Commit,
    requests::plan::{Group, Plan},
    requests::steps::{Work, work_on},
};

/// What a claim is told that stores nothing.
#[derive(Debug)]
pub(super) struct Known {
    first: Bitmap,
    unknown: Option<Bitmap>,
    repeated_ranges: Vec<u32>,
    refused: Vec<RangeRefusal>,
}

/// Answers a claim without writing anything; `None` where a key is new.
///
/// # Errors
/// When the journal has failed, and the node is about to end.
pub(super) async fn claim_known(
    node: &Node,
    table: &OwnedRanges,
    plan: Plan<'_>,
    operation: Operation<'_>,
    times: Times,
) -> Result<Option<Known>, Status> {
    look_up(node, table, plan, operation, Some(times)).await
}

/// What is remembered of an operation. All keys that nothing is remembered of are unknown.
///
/// # Errors
/// When the journal has failed, and the node is about to end.
pub(super) async fn recall(
    node: &Node,
    table: &OwnedRanges,
    plan: Plan<'_>,
    operation: Operation<'_>,
) -> Result<Known, Status> {
    let known = look_up(node, table, plan, operation, None).await?;
    Ok(known.expect("no key is looked at, so none is new"))
}

async fn look_up(
    node: &Node,
    table: &OwnedRanges,
    plan: Plan<'_>,
    operation: Operation<'_>,
    times: Option<Times>,
) -> Result<Option<Known>, Status> {
    let mut looking_up = LookingUp {
        commit: Commit::of_read(node.journal()),
        fingerprints: plan.fingerprints,
        operation,
        times,
        in_doubt: false,
        any_new: false,
        known: Known {
            first: Bitmap::new(plan.fingerprints.len()),
            unknown: None,
            repeated_ranges: Vec::new(),
            refused: Vec::new(),
        },
    };
    work_on(node, table, &plan, &mut looking_up).await;
    drop(looking_up.operation);
    if looking_up.any_new {
        return Ok(None);
    }
    looking_up.commit.committed().await?;
    looking_up.known.refused.extend(plan.refused);
    Ok(Some(looking_up.known))
}

struct LookingUp<'a> {
    commit: Commit<'a>,
    fingerprints: PackedFingerprints<'a>,
    operation: Operation<'a>,
    /// When keys are looked for; nothing where only answers are recalled.
    times: Option<Times>,
    /// An earlier sending may have stored what is not remembered of the group.
    in_doubt: bool,
    /// A key is not there, so the claim would have to write.
    any_new: bool,
    known: Known,
}

impl Work for LookingUp<'_> {
    fn begin(&mut self, _: usize, range: &OwnedRange, group: Group) -> Group {
        if self.any_new {
            return group.rest_from(group.end);
        }
        let keys = self.fingerprints.slice(group.start, group.end);
        let claimed = ClaimedKeys::new(range.id, keys);
        let mut rest = group;
        self.in_doubt = self.times.is_none() || group.attempt > 0;
        match self.operation.recall(claimed) {
            Recall::Same(answers) | Recall::Prefix(answers) => {
                answers.answer(&mut self.known.first, &mut self.known.unknown, group.start);
                self.commit.wait_for(self.operation.remembered_lsn());
                rest.start += answers.count();
                self.in_doubt = true;
            }
            Recall::Doubt => self.in_doubt = true,
            Recall::Nothing => {}
        }
        if rest.start == rest.end {
            self.known.repeated_ranges.push(range.id.0);
        }
        rest
    }

    fn step(
        &mut self,
        range: &OwnedRange,
        keys: PackedFingerprints<'_>,
        start: usize,
    ) -> ControlFlow<()> {
        if let Some(times) = self.times {
            let set = range.read();
            if !set.has_all(keys, times) {
                self.any_new = true;
                return ControlFlow::Break(());
            }
            self.commit.found(range, keys, |_| true);
        }
        if self.in_doubt {
            let key_count = self.known.first.len();
            let unknown = self
                .known
                .unknown
                .get_or_insert_with(|| Bitmap::new(key_count));
            (start..start + keys.len()).for_each(|index| unknown.or(index, true));
        }
        ControlFlow::Continue(())
    }

    fn refuse(&mut self, refusal: RangeRefusal) {
        self.known.refused.push(refusal);
    }
}

impl Known {
    pub(super) fn reply(self, node: &Node, membership_state: &MembershipState) -> ClaimReply {
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
