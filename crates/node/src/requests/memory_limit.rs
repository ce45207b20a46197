//! The limit on the key sets' memory.
//!
//! Below it nothing is looked at. At it, expired keys are reclaimed first; then a request with new keys is refused as a whole, and
//! one whose keys are all there is answered as ever. Or, where that was chosen, the keys that would expire soonest are shed.

use keydb_core::{Bitmap, Entry, Fingerprint, Times, UnixMillis, UnixSeconds};
use keydb_proto::{refusal_status, shard::ErrorCode};
use tonic::Status;
use tracing::warn;

use crate::{
    MemoryPolicy, node::Node, ranges::owned::OwnedRanges, ranges::sweep, requests::plan::Plan,
};

/// A pass over all keys is made at most this often by the node's clock.
const PASS_INTERVAL_MS: u64 = 1000;

/// Shedding takes this share of the keys at once.
const SHED_DIVISOR: usize = 20;

/// How many keys of each range are looked at to find out when the soonest expire.
const SAMPLE_KEYS: usize = 2048;

/// Checks that the keys to be written are welcome.
///
/// # Errors
/// When the limit is reached and some of them are new. Nothing was applied.
pub(crate) async fn check(
    node: &Node,
    table: &OwnedRanges,
    plan: &Plan<'_>,
    times: Times,
) -> Result<(), Status> {
    if !is_reached(node) || all_present(table, plan, times) {
        return Ok(());
    }
    make_room(node, table).await;
    if !is_reached(node) {
        return Ok(());
    }
    Err(refusal_status(
        ErrorCode::OverMemoryLimit,
        format!(
            "over memory limit: the keys of node {} take {} bytes, and the limit is {}; keys that are there are answered for, new ones are not taken; nothing was applied",
            node.config.id,
            node.arena.used_bytes(),
            node.config.limits.memory_bytes
        ),
    ))
}

/// Whether the key sets take all the memory that they may.
pub(crate) fn is_reached(node: &Node) -> bool {
    let limit_bytes = node.config.limits.memory_bytes;
    limit_bytes > 0 && node.arena.used_bytes() >= limit_bytes
}

fn all_present(table: &OwnedRanges, plan: &Plan<'_>, times: Times) -> bool {
    plan.groups.iter().all(|group| {
        let keys = plan.keys(*group);
        let mut present = Bitmap::new(keys.len());
        table.ranges()[group.range]
            .read()
            .get(keys, times, &mut present, 0);
        present.count() == keys.len()
    })
}

/// Reclaims expired keys, and sheds others where that was chosen. Whoever comes while that is done waits for it.
async fn make_room(node: &Node, table: &OwnedRanges) {
    let mut last_pass = node.reclaiming.last_pass.lock().await;
    let now = node.clock.now();
    let recent = |last: UnixMillis| now.0 < last.0.saturating_add(PASS_INTERVAL_MS);
    let sheds = node.config.limits.memory_policy == MemoryPolicy::ShedSoonest;
    if !is_reached(node) || (last_pass.is_some_and(recent) && !sheds) {
        return;
    }
    // A wrong clock must not cost keys.
    if !node.clock.is_trusted() {
        return;
    }
    sweep::reclaim(table, node.clock.times_at(now), || false).await;
    // A share of the keys need not free memory: that comes back in pieces of some hundred keys.
    for _ in 0..SHED_DIVISOR {
        if !sheds || !is_reached(node) {
            break;
        }
        shed(node, table, now).await;
    }
    *last_pass = Some(node.clock.now());
}

async fn shed(node: &Node, table: &OwnedRanges, now: UnixMillis) {
    let now = now.seconds();
    // What has expired is no loss.
    let expired = Times {
        now,
        purge_before: now,
    };
    sweep::reclaim(table, expired, || false).await;
    let Some(purge_before) = soonest(table) else {
        return;
    };
    // Many keys may expire in that very second: no more than needed are dropped.
    let limit_bytes = node.config.limits.memory_bytes;
    let enough = || node.arena.used_bytes() < limit_bytes - limit_bytes / SHED_DIVISOR;
    let shed = sweep::reclaim(table, Times { now, purge_before }, enough).await as u64;
    let all = node.reclaiming.shed(shed);
    warn!(
        node = %node.config.id,
        "over memory limit: {shed} keys that would have expired by Unix time {} were dropped before their time, {all} since the start",
        purge_before.0
    );
}

/// The time until which about one in [`SHED_DIVISOR`] keys expires, by a sample.
fn soonest(table: &OwnedRanges) -> Option<UnixSeconds> {
    let mut sample: Vec<Entry> = Vec::new();
    for range in table.ranges() {
        // Fingerprints are hashes: the first ones expire as all do.
        let from = Fingerprint::from_parts(range.bounds.start(), 0);
        range.read().scan(from, SAMPLE_KEYS, &mut sample);
    }
    let mut expiries: Vec<u32> = sample
        .iter()
        .map(|entry| entry.expiry().as_unix_seconds())
        .collect();
    let place = expiries.len() / SHED_DIVISOR;
    (!expiries.is_empty()).then(|| UnixSeconds(*expiries.select_nth_unstable(place).1))
}
