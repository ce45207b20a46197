//! The keys exist until at least now + TTL; or, as `keydb snapshot import` has it, until an expiry of their own each.
//!
//! A record of the journal has one expiry. So keys with expiries of their own are worked on in the order of those, and each run of
//! equal ones is a chunk of its own.

use std::{collections::HashMap, ops::ControlFlow};

use keydb_core::{
    Expiry, FINGERPRINT_BYTES, PackedFingerprints, RangeId, TTL_MAX, Ttl, UnixMillis,
};
use keydb_proto::{
    refusal_status,
    shard::{ErrorCode, PutReply, PutRequest, RangeRefusal},
};
use tonic::Status;

use crate::{
    node::Node,
    ranges::owned::OwnedRange,
    requests::admit::{Moment, admit, plan, still_in_time, table},
    requests::commit::Commit,
    requests::memory_limit,
    requests::plan::{self, Group, Plan},
    requests::steps::{Work, full, work_on},
};

/// What a key's expiry takes on the wire.
const EXPIRY_BYTES: usize = 4;

/// How long the keys of a put live.
enum Life {
    Ttl(Ttl),
    /// Until then, each group of the plan.
    Until(Vec<Expiry>),
}

/// The keys exist until at least now + TTL, or until their own expiries.
pub(crate) async fn put(node: &Node, request: &PutRequest) -> Result<PutReply, Status> {
    let _permit = node.in_flight.enter()?;
    let (membership_state, now) = admit(node, request.header.as_ref())?;
    let table = table(node, &membership_state)?;
    let packed;
    let mut plan = plan(node, table, &request.ranges, &request.fingerprints)?;
    let expiries = expiries(request, plan.fingerprints.len(), now)?;
    let life = if expiries.is_empty() {
        Life::Ttl(plan::ttl(request.ttl_seconds)?)
    } else {
        let until;
        (packed, until) = by_expiry(&mut plan, &expiries);
        plan.fingerprints =
            PackedFingerprints::new(&packed).expect("whole fingerprints were put there");
        Life::Until(until)
    };
    memory_limit::check(node, table, &plan, node.clock.times_at(now)).await?;
    let lives = match &life {
        Life::Ttl(_) => 1,
        Life::Until(until) => until.chunk_by(|a, b| a == b).count(),
    };
    let commit = Commit::of_plan(node.journal(), &plan, lives).await?;
    let now = still_in_time(node, request.header.as_ref())?;
    let moment = match &life {
        Life::Ttl(ttl) => Moment::new(node, now, *ttl)?,
        Life::Until(_) => Moment::until(node, now, expiries[0]),
    };
    let mut putting = Putting {
        node,
        commit: commit.recorded_by(node.recorder()).await,
        life,
        moment,
        refused: plan.refused.split_off(0),
    };
    work_on(node, table, &plan, &mut putting).await;
    putting.commit.committed().await?;
    Ok(PutReply {
        header: Some(node.reply_header(membership_state.map())),
        refused: putting.refused,
    })
}

struct Putting<'a> {
    node: &'a Node,
    commit: Commit<'a>,
    life: Life,
    moment: Moment,
    refused: Vec<RangeRefusal>,
}

impl Putting<'_> {
    fn is_refused(&self, range: RangeId) -> bool {
        self.refused.iter().any(|it| it.range_id == range.0)
    }
}

impl Work for Putting<'_> {
    fn begin(&mut self, position: usize, range: &OwnedRange, group: Group) -> Group {
        if let Life::Until(until) = &self.life {
            let expiry = until[position];
            if self.moment.expiry != expiry {
                self.pause();
                self.moment.expiry = expiry;
            }
            // What it had no room for before is in a group of its own.
            if self.is_refused(range.id) {
                return group.rest_from(group.end);
            }
        }
        group
    }

    fn step(
        &mut self,
        range: &OwnedRange,
        keys: PackedFingerprints<'_>,
        _: usize,
    ) -> ControlFlow<()> {
        let times = self.moment.times;
        self.commit.begin();
        let mut set = range.write();
        let stored = set.put(keys, self.moment.expiry, times);
        self.commit.put(range, &set, keys, times, &stored);
        drop(set);
        let Err(error) = stored else {
            return ControlFlow::Continue(());
        };
        // The caller hears that any may have been stored.
        self.refused.push(full(range, error));
        ControlFlow::Break(())
    }

    fn refuse(&mut self, refusal: RangeRefusal) {
        // Keys with expiries of their own come in several groups of one range.
        if !self.is_refused(RangeId(refusal.range_id)) {
            self.refused.push(refusal);
        }
    }

    fn pause(&mut self) {
        let Moment { expiry, now, .. } = self.moment;
        self.commit.append(expiry, None, &[], now);
    }

    fn resume(&mut self) {
        let ttl = match &self.life {
            Life::Ttl(ttl) => Some(*ttl),
            Life::Until(_) => None,
        };
        self.moment.renew(self.node, ttl);
    }
}

/// Puts the groups of `plan` in the order of their keys' expiries. Returns its fingerprints in the new order, and each group's expiry.
fn by_expiry(plan: &mut Plan<'_>, expiries: &[Expiry]) -> (Vec<u8>, Vec<Expiry>) {
    let mut order: Vec<(Expiry, usize, usize)> = Vec::with_capacity(expiries.len());
    for group in &plan.groups {
        order.extend((group.start..group.end).map(|index| (expiries[index], group.range, index)));
    }
    order.sort_unstable();
    let generations: HashMap<usize, u64> = plan
        .groups
        .iter()
        .map(|group| (group.range, group.generation))
        .collect();
    let mut packed = Vec::with_capacity(order.len() * FINGERPRINT_BYTES);
    plan.groups.clear();
    let mut until = Vec::new();
    for run in order.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
        let start = packed.len() / FINGERPRINT_BYTES;
        for (_, _, index) in run {
            packed.extend_from_slice(&plan.fingerprints.get(*index).to_bytes());
        }
        let (expiry, range, _) = run[0];
        plan.groups.push(Group {
            range,
            start,
            end: start + run.len(),
            attempt: 0,
            generation: generations[&range],
        });
        until.push(expiry);
    }
    (packed, until)
}

/// The expiries of a request with so many keys; none where all of them live for the same TTL.
fn expiries(request: &PutRequest, keys: usize, now: UnixMillis) -> Result<Vec<Expiry>, Status> {
    let invalid = |message: String| refusal_status(ErrorCode::InvalidRequest, message);
    let bytes = &request.expiries;
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    if bytes.len() != keys * EXPIRY_BYTES {
        return Err(invalid(format!(
            "expiries has {} bytes; {keys} keys have {}",
            bytes.len(),
            keys * EXPIRY_BYTES
        )));
    }
    if request.ttl_seconds != 0 {
        return Err(invalid(format!(
            "ttl_seconds is {}, and there are expiries; give one of them",
            request.ttl_seconds
        )));
    }
    let latest = Ttl::from_seconds(TTL_MAX.as_secs())
        .map_err(|error| invalid(error.to_string()))
        .and_then(|ttl| Expiry::after(now, ttl).map_err(|error| invalid(error.to_string())))?;
    let (each, _) = bytes.as_chunks::<EXPIRY_BYTES>();
    let read = |(index, bytes): (usize, &[u8; EXPIRY_BYTES])| {
        let seconds = u32::from_le_bytes(*bytes);
        Expiry::from_unix_seconds(seconds)
            .filter(|expiry| *expiry <= latest)
            .ok_or_else(|| {
                invalid(format!(
                    "expiry {index} is {seconds}; it must be 1 to {}, 50 years from now",
                    latest.as_unix_seconds()
                ))
            })
    };
    each.iter().enumerate().map(read).collect()
}
