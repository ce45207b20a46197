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
    requests::plan::{Group, Plan},
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
    let mut known = Known::new(key_count);
    let mut pace = Pace::default();
    for group in &plan.groups {
        let range = owned(table, *group);
        let claimed = ClaimedKeys::new(range.id, plan.keys(*group));
        let (new, in_doubt) = known.recall(&operation, claimed, *group, &mut commit);
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
            known.is_unknown(new);
        }
    }
    drop(operation);
    commit.committed().await?;
    known.refused = plan.refused;
    Ok(Some(known))
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
    let mut commit = Commit::of_read(node.journal());
    let mut known = Known::new(plan.fingerprints.len());
    for group in &plan.groups {
        let claimed = ClaimedKeys::new(owned(table, *group).id, plan.keys(*group));
        let (new, _) = known.recall(&operation, claimed, *group, &mut commit);
        known.is_unknown(new);
    }
    drop(operation);
    commit.committed().await?;
    known.refused = plan.refused;
    Ok(known)
}

impl Known {
    fn new(key_count: usize) -> Self {
        Self {
            first: Bitmap::new(key_count),
            unknown: None,
            repeated_ranges: Vec::new(),
            refused: Vec::new(),
        }
    }

    /// Takes over what is remembered of the keys of `group`. Returns the rest of it, which may be none, and whether an earlier sending
    /// may have stored that.
    fn recall(
        &mut self,
        operation: &Operation<'_>,
        claimed: ClaimedKeys,
        group: Group,
        commit: &mut Commit<'_>,
    ) -> (Group, bool) {
        let mut rest = group;
        let in_doubt = match operation.recall(claimed) {
            Recall::Same(answers) | Recall::Prefix(answers) => {
                answers.answer(&mut self.first, &mut self.unknown, group.start);
                commit.wait_for(operation.remembered_lsn());
                rest.start += answers.count();
                true
            }
            Recall::Doubt => true,
            Recall::Nothing => group.attempt > 0,
        };
        if rest.start == rest.end {
            self.repeated_ranges.push(claimed.range.0);
        }
        (rest, in_doubt)
    }

    fn is_unknown(&mut self, group: Group) {
        if group.start < group.end {
            let key_count = self.first.len();
            let unknown = self.unknown.get_or_insert_with(|| Bitmap::new(key_count));
            (group.start..group.end).for_each(|index| unknown.or(index, true));
        }
    }

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
