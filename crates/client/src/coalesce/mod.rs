//! Small calls of many tasks become batches.
//!
//! Calls that ask the same (operation and TTL) of the same node gather in one queue; a call with keys of several nodes is cut into
//! pieces, one for each of them. While a queue has something in it, or a batch of it is on its way, a task of its own, the *driver*,
//! cuts batches from it. A batch goes when no other is on its way, or it is full, or its first call has waited long enough; a few
//! can be on their way at a time. When nothing is left the driver ends and the queue goes, so an idle client has neither. Drivers
//! run where the client was connected, whoever calls: a caller's runtime may end while others' calls wait.
//!
//! So a node that is down or silent holds up no calls but those with keys of its own, and for a second those of equal keys behind them. Each caller is told as soon as all its keys
//! have been answered: a range that is closed or full fails the calls with keys of its own only.
//!
//! A node without room for new keys refuses a batch that has one as a whole. Its calls are looked at again then: those whose keys
//! are all there are answered for, see [`no_room`].
//!
//! When the caller of a `First` has gone away, nobody was told `First`, so the `Duplicate`s of equal keys in later calls become
//! `Unknown`. A caller can go away between the delivery of its answer and its next turn, so these `Duplicate`s wait until the
//! `First` has been heard. Of equal keys the first in the batch is the one that can be `First`, and all pieces of a call come into
//! their queues at once; so calls wait only for earlier ones, never in a circle.

mod callers;
mod coalescer;
mod driver;
mod no_room;
mod queue;
mod repeat;
mod small_call;
mod told;

use std::sync::Arc;

use keydb_core::{Fingerprint, Ttl};
use tokio::time::Instant;

use self::small_call::SmallCall;
pub(crate) use self::{
    coalescer::{Coalesced, Coalescer},
    told::Answers,
};
use crate::call::Failure;

/// Runs a call of few keys together with others; `None` when it has to go by itself.
pub(crate) async fn run_together<A: Coalesced>(
    coalescer: &Arc<Coalescer>,
    ttl: Option<Ttl>,
    keys: &[Fingerprint],
) -> Option<Result<Answers<A>, Failure<A>>> {
    let config = &coalescer.shared.config;
    let coalescing = config.coalescing.as_ref()?;
    let keys_max = coalescing.keys_max.min(config.keys_per_request_max);
    if keys.is_empty() || keys.len() > coalescing.call_keys_max.min(keys_max) {
        return None;
    }
    let call = SmallCall {
        coalescer,
        coalescing,
        ttl,
        since: Instant::now(),
    };
    call.run(keys).await
}
