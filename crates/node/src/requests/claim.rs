//! Claims: the keys that are absent are stored, and the reply says which those were.
//!
//! Before anything is applied, a claim may wait for memory, for room in the journal, and for the end of a claim that it repeats; at
//! its end, for its commit.

use std::{collections::HashSet, ops::ControlFlow, time::Duration};

use keydb_core::{
    Bitmap, Expiry, Fingerprint, KeySet, OperationId, PackedFingerprints, Times, Ttl,
};
use keydb_proto::{
    refusal_status,
    shard::{ClaimReply, ClaimRequest, ErrorCode, RangeRefusal},
};
use tokio::sync::watch;
use tonic::Status;

use crate::{
    cluster::membership_state::MembershipState,
    node::Node,
    ranges::owned::{OwnedRange, OwnedRanges},
    requests::admit::{Moment, admit, plan, still_in_time, table},
    requests::answers::{Begin, ClaimedKeys, Operation, Recall},
    requests::commit::Commit,
    requests::memory_limit,
    requests::plan::{self, Group, Plan},
    requests::read_only_claim::{claim_known, recall},
    requests::steps::{Work, full, owned, work_on},
};

/// How often a request that waits for another one looks at the clock.
const WAIT_STEP: Duration = Duration::from_millis(50);

/// Inserts the keys that are absent, and says which those were.
pub(crate) async fn claim(node: &Node, request: &ClaimRequest) -> Result<ClaimReply, Status> {
    let _permit = node.in_flight.enter()?;
    let id = plan::operation_id(&request.operation_id)?;
    plan::check_ranges_once(&request.ranges)?;
    loop {
        // After a wait, this may have become another one.
        let (membership_state, now) = admit(node, request.header.as_ref())?;
        let table = table(node, &membership_state)?;
        let ttl = plan::ttl(request.ttl_seconds)?;
        let plan = plan(node, table, &request.ranges, &request.fingerprints)?;
        if request.only_remembered {
            match node
                .answers
                .begin(id, now, Moment::new(node, now, ttl)?.expiry)
            {
                Begin::Registered(operation) => {
                    let recalled = recall(node, table, plan, operation).await?;
                    return Ok(recalled.reply(node, &membership_state));
                }
                Begin::InFlight(ended) => wait(ended).await,
            }
            continue;
        }
        memory_limit::check(node, table, &plan, node.clock.times_at(now)).await?;
        let commit = Commit::of_plan(node.journal(), &plan, 1).await;
        let now = still_in_time(node, request.header.as_ref())?;
        let moment = Moment::new(node, now, ttl)?;
        match node.answers.begin(id, now, moment.expiry) {
            Begin::Registered(operation) => {
                check_unused(&operation, table, &plan)?;
                let commit = match commit {
                    Ok(commit) => commit,
                    Err(full) => {
                        let known = claim_known(node, table, plan, operation, moment.times).await?;
                        return known
                            .map(|known| known.reply(node, &membership_state))
                            .ok_or(full);
                    }
                };
                let mut claiming = Claiming {
                    node,
                    id,
                    operation,
                    fingerprints: plan.fingerprints,
                    commit: commit.recorded_by(node.recorder()).await,
                    ttl,
                    moment,
                    first: Bitmap::new(plan.fingerprints.len()),
                    unknown: None,
                    expects_present: true,
                    group: None,
                    repeated_ranges: Vec::new(),
                    refused: Vec::new(),
                    partially_applied: Vec::new(),
                };
                work_on(node, table, &plan, &mut claiming).await;
                return claiming.reply(&membership_state, plan.refused).await;
            }
            Begin::InFlight(ended) => {
                drop(commit);
                wait(ended).await;
            }
        }
    }
}

/// A first sending has an operation id that nobody has used: its answers would be those of somebody else, who was told them.
fn check_unused(
    operation: &Operation<'_>,
    table: &OwnedRanges,
    plan: &Plan<'_>,
) -> Result<(), Status> {
    if !operation.is_remembered() {
        return Ok(());
    }
    let is_used = |group: &Group| {
        let claimed = ClaimedKeys::new(owned(table, *group).id, plan.keys(*group));
        // What the key set refused half-way was not applied as far as its sender knows, who may send it again like this.
        group.attempt == 0 && matches!(operation.recall(claimed), Recall::Same(_) | Recall::Doubt)
    };
    if plan.groups.iter().any(is_used) {
        return Err(refusal_status(
            ErrorCode::OperationIdUsed,
            "the operation id was used before: to repeat that claim, say that it is a repeat; for another claim take another id. Nothing was applied",
        ));
    }
    Ok(())
}

async fn wait(mut ended: watch::Receiver<()>) {
    // Either way the caller looks again.
    let _ = tokio::time::timeout(WAIT_STEP, ended.changed()).await;
}

/// One claim while it is being worked on.
struct Claiming<'a> {
    node: &'a Node,
    id: OperationId,
    operation: Operation<'a>,
    fingerprints: PackedFingerprints<'a>,
    commit: Commit<'a>,
    ttl: Ttl,
    moment: Moment,
    first: Bitmap,
    unknown: Option<Bitmap>,
    /// The last step has found all of its keys. The next one may as well, and then it needs not keep others from reading.
    expects_present: bool,
    /// The group that is being worked on; nothing where all of it was remembered.
    group: Option<GroupState>,
    repeated_ranges: Vec<u32>,
    refused: Vec<RangeRefusal>,
    /// The groups that the key set refused half-way: this reply tells nothing of them. What the keys before the refused one would
    /// have been told is remembered for a repeat.
    partially_applied: Vec<Group>,
}

/// The group that is being worked on.
#[derive(Debug)]
struct GroupState {
    claimed: ClaimedKeys,
    /// What is not remembered begins here, and what was applied ends there.
    new: usize,
    applied: usize,
    /// An earlier sending may have stored some of it.
    in_doubt: bool,
    is_refused: bool,
    /// When the first of the keys that were told `First` are over, and with them the answers.
    until: Expiry,
}

impl Work for Claiming<'_> {
    fn begin(&mut self, _: usize, range: &OwnedRange, group: Group) -> Group {
        let keys = self.fingerprints.slice(group.start, group.end);
        let claimed = ClaimedKeys::new(range.id, keys);
        let mut state = GroupState {
            claimed,
            new: group.start,
            applied: group.end,
            in_doubt: group.attempt > 0,
            is_refused: false,
            until: self.moment.expiry,
        };
        match self.operation.recall(claimed) {
            Recall::Same(answers) | Recall::Prefix(answers) => {
                answers.answer(&mut self.first, &mut self.unknown, group.start);
                self.commit.wait_for(self.operation.remembered_lsn());
                state.new += answers.count();
                state.in_doubt = true;
                state.until = state.until.min(answers.expiry());
            }
            Recall::Doubt => state.in_doubt = true,
            Recall::Nothing => {}
        }
        let rest = group.rest_from(state.new);
        self.group = (state.new < group.end).then_some(state);
        if self.group.is_none() {
            self.repeated_ranges.push(range.id.0);
        }
        rest
    }

    fn step(
        &mut self,
        range: &OwnedRange,
        keys: PackedFingerprints<'_>,
        start: usize,
    ) -> ControlFlow<()> {
        let times = self.moment.times;
        self.operation.apply(range.id);
        self.commit.begin();
        if self.expects_present {
            let set = range.read();
            if set.has_all(keys, times) {
                self.commit.found(range, keys, |_| true);
                return ControlFlow::Continue(());
            }
        }
        let mut set = range.write();
        let stored = set.claim(keys, self.moment.expiry, times, &mut self.first, start);
        let any_stored = self.commit.claimed(range, keys, &self.first, start);
        self.expects_present = !any_stored;
        let Err(error) = stored else {
            return ControlFlow::Continue(());
        };
        let applied = start + present_prefix(&set, keys, times);
        drop(set);
        if let Some(state) = &mut self.group {
            state.applied = applied;
            state.is_refused = true;
        }
        self.refused.push(full(range, error));
        ControlFlow::Break(())
    }

    fn refuse(&mut self, refusal: RangeRefusal) {
        self.refused.push(refusal);
    }

    fn end(&mut self, _: &OwnedRange, group: Group) {
        let Some(state) = self.group.take() else {
            return;
        };
        if state.is_refused {
            self.partially_applied.push(group);
        }
        if state.applied == state.new {
            // The first new key was refused: what is remembered is still all that there is.
            self.operation.nothing_applied();
            return;
        }
        if state.in_doubt {
            self.doubt(group.start, state.new, state.applied);
        }
        self.operation.expire_by(state.until);
        let answered = state.claimed.prefix(state.applied - group.start);
        self.operation
            .record(answered, &self.first, self.unknown.as_ref(), group.start);
    }

    /// Ends a chunk: its answers go into the memory of answers, and what was applied into the journal. In this order: a snapshot
    /// round cuts what the journal has when it begins, and by then its file of answers must find those of all these records.
    fn pause(&mut self) {
        let part = self.operation.part();
        self.operation
            .remember(part.clone(), self.commit.answers_lsn());
        self.commit.append(
            self.moment.expiry,
            Some(self.id),
            part.as_bytes(),
            self.moment.now,
        );
    }

    fn resume(&mut self) {
        self.moment.renew(self.node, Some(self.ttl));
        self.operation.expire_at(self.moment.expiry);
    }
}

impl Claiming<'_> {
    /// Marks those of the keys `new..end` that were present before as unknown. A key that this claim stored, the keys from `start`
    /// on included, is not, wherever else it occurs.
    fn doubt(&mut self, start: usize, new: usize, end: usize) {
        let indexed = || (start..).zip(self.fingerprints.slice(start, end).iter());
        let stored: HashSet<Fingerprint> = indexed()
            .filter(|(index, _)| self.first.get(*index))
            .map(|(_, key)| key)
            .collect();
        for (index, key) in indexed().skip(new - start) {
            if !stored.contains(&key) {
                self.unknown
                    .get_or_insert_with(|| Bitmap::new(self.first.len()))
                    .or(index, true);
            }
        }
    }

    async fn reply(
        self,
        membership_state: &MembershipState,
        mut refused: Vec<RangeRefusal>,
    ) -> Result<ClaimReply, Status> {
        // From here on a repeat finds the answers.
        drop(self.operation);
        self.commit.committed().await?;
        let mut first = self.first.into_bytes();
        let mut unknown = self.unknown.map_or_else(Vec::new, Bitmap::into_bytes);
        for group in self.partially_applied {
            clear_bits(&mut first, group.start, group.end);
            if !unknown.is_empty() {
                clear_bits(&mut unknown, group.start, group.end);
            }
        }
        refused.extend(self.refused);
        Ok(ClaimReply {
            header: Some(self.node.reply_header(membership_state.map())),
            first: first.into(),
            unknown: unknown.into(),
            refused,
            repeated_ranges: self.repeated_ranges,
        })
    }
}

/// How many of `keys`, from the first on, are in `set`, which refused one of them: it is the first one that is not.
fn present_prefix(set: &KeySet, keys: PackedFingerprints<'_>, times: Times) -> usize {
    let mut present = Bitmap::new(keys.len());
    set.get(keys, times, &mut present, 0);
    (0..keys.len())
        .find(|index| !present.get(*index))
        .unwrap_or(keys.len())
}

fn clear_bits(bytes: &mut [u8], start: usize, end: usize) {
    for index in start..end {
        bytes[index / 8] &= !(1 << (index % 8));
    }
}

#[cfg(test)]
mod tests;
