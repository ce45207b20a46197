//! Puts whose keys live until an expiry of their own each: what `keydb snapshot import` brings.
//!
//! A record of the journal has one expiry, so the keys are worked on in the order of their expiries, and each run of equal ones
//! is a chunk of its own.

use keydb_core::{Expiry, PackedFingerprints, TTL_MAX, Ttl, UnixMillis};
use keydb_proto::{
    refusal_status,
    shard::{ErrorCode, PutReply, PutRequest},
};
use tonic::Status;

use crate::{
    node::{MembershipState, Node},
    ranges::owned::OwnedRanges,
    requests::commit::Commit,
    requests::keys::{Pace, STEP_KEYS, full, owned, plan, still_in_time},
    requests::memory_limit,
};

/// What a key's expiry takes on the wire.
const EXPIRY_BYTES: usize = 4;

/// One key, in the order in which they are worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    expiry: Expiry,
    group: usize,
    index: usize,
}

/// The keys exist until their expiries at least.
pub(crate) async fn put_each(
    node: &Node,
    membership_state: &MembershipState,
    table: &OwnedRanges,
    request: &PutRequest,
    now: UnixMillis,
) -> Result<PutReply, Status> {
    let mut plan = plan(node, table, &request.ranges, &request.fingerprints)?;
    let expiries = expiries(request, plan.fingerprints.len(), now)?;
    memory_limit::check(node, table, &plan, node.times_at(now)).await?;
    let mut order: Vec<Place> = Vec::with_capacity(expiries.len());
    for (group, of_group) in plan.groups.iter().enumerate() {
        order.extend((of_group.start..of_group.end).map(|index| Place {
            expiry: expiries[index],
            group,
            index,
        }));
    }
    order.sort_unstable();
    // Of one expiry and one range.
    let runs = || order.chunk_by(|a, b| (a.expiry, a.group) == (b.expiry, b.group));
    let lives = order.chunk_by(|a, b| a.expiry == b.expiry).count();
    // A pause ends a chunk as well.
    let chunks = 1 + lives + 2 * order.len() / STEP_KEYS;
    let mut commit = Commit::of_write(node.journal(), order.len(), runs().count(), chunks).await?;
    let mut now = still_in_time(node, request.header.as_ref())?;
    let mut pace = Pace::default();
    let mut open: Option<Expiry> = None;
    let mut keys = Vec::new();
    let mut refused_groups = vec![false; plan.groups.len()];
    for run in runs() {
        for part in run.chunks(STEP_KEYS) {
            let (expiry, group) = (part[0].expiry, part[0].group);
            let is_others_turn = pace.spend(part.len());
            if let Some(before) = open.filter(|before| is_others_turn || *before != expiry) {
                commit.append(before, None, &[], now);
            }
            open = Some(expiry);
            if is_others_turn {
                tokio::task::yield_now().await;
                now = node.clock.now();
            }
            if refused_groups[group] {
                continue;
            }
            keys.clear();
            for place in part {
                let key = plan.fingerprints.get(place.index);
                keys.extend_from_slice(&key.to_bytes());
            }
            let keys = PackedFingerprints::new(&keys).expect("whole fingerprints were put there");
            let range = owned(table, plan.groups[group]);
            let times = node.times_at(now);
            commit.begin();
            let mut set = range.write();
            let stored = set.put(keys, expiry, times);
            commit.put(range, &set, keys, times, &stored);
            drop(set);
            // The caller hears that any may have been stored.
            if let Err(error) = stored {
                refused_groups[group] = true;
                plan.refused.push(full(range, error));
            }
        }
    }
    if let Some(expiry) = open {
        commit.append(expiry, None, &[], now);
    }
    commit.committed().await?;
    Ok(PutReply {
        header: Some(node.reply_header(membership_state.map())),
        refused: plan.refused,
    })
}

/// The expiries of a request with so many keys.
fn expiries(request: &PutRequest, keys: usize, now: UnixMillis) -> Result<Vec<Expiry>, Status> {
    let invalid = |message: String| refusal_status(ErrorCode::InvalidRequest, message);
    let bytes = &request.expiries;
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
