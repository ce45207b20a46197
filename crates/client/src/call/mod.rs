//! One call: cut into parts, each part split by node, sent, and what got no answer sent again.
//!
//! Each part keeps count of what may have been applied ([`PartProgress`]), so that whatever ends it (a refusal, the deadline, the
//! client's end) is told apart into "nothing applied" and "maybe".

mod hand_over;
mod kind;
mod outcome;
mod part;
mod repeated_keys;
mod request;

use std::sync::Arc;

use keydb_core::{Entry, Expiry, Fingerprint};
use keydb_proto::trace;
use tokio::task::JoinSet;
use tracing::Instrument;

use self::repeated_keys::RepeatedKeys;
pub(crate) use self::{
    kind::Kind,
    outcome::{Answer, Failure, Outcome, outcomes_of, result_of},
    part::{AnswerReceiver, PartProgress, run_part, run_part_for},
    repeated_keys::FingerprintMap,
};
use crate::{
    error::NotApplied,
    shared::{Deadline, Shared},
};

/// Runs a call to its end; the answers are in the order of `keys`.
pub(crate) async fn run<A: Answer>(
    shared: &Arc<Shared>,
    kind: Kind,
    keys: Vec<Fingerprint>,
    deadline: Deadline,
) -> Result<Vec<A>, Failure<A>> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let result = if keys.len() <= shared.config.keys_per_request_max {
        run_part(shared, kind.part(0), &keys, &[], deadline).await
    } else {
        run_parts(shared, kind, &keys, deadline).await
    };
    result.map_err(|failure| failure.repeatable_as(kind.operation()))
}

/// Puts entries, part by part.
pub(crate) async fn run_entries(
    shared: &Shared,
    entries: &[Entry],
    deadline: Deadline,
) -> Result<(), Failure<()>> {
    let mut outcomes = Vec::new();
    for part in entries.chunks(shared.config.keys_per_request_max) {
        let keys: Vec<Fingerprint> = part.iter().map(|entry| entry.fingerprint()).collect();
        let expiries: Vec<Expiry> = part.iter().map(|entry| entry.expiry()).collect();
        let done = run_part(shared, Kind::PutEach, &keys, &expiries, deadline).await;
        let (failed, of_part) = outcomes_of(done);
        outcomes.extend(of_part);
        if let Some(reason) = failed {
            outcomes.resize(entries.len(), Outcome::NotApplied);
            return Err(Failure::new(reason, outcomes));
        }
    }
    Ok(())
}

/// Runs a call of several parts, a bounded number of them at a time. Each is a task, so that they are hashed out on several
/// cores; dropping the set stops them.
async fn run_parts<A: Answer>(
    shared: &Arc<Shared>,
    kind: Kind,
    keys: &[Fingerprint],
    deadline: Deadline,
) -> Result<Vec<A>, Failure<A>> {
    let part_keys = shared.config.keys_per_request_max;
    let mut outcomes: Vec<Outcome<A>> = vec![Outcome::NotApplied; keys.len()];
    let mut repeated = RepeatedKeys::default();
    let mut failed: Option<NotApplied> = None;
    let mut parts = keys.chunks(part_keys).enumerate();
    let mut running = JoinSet::new();
    loop {
        while failed.is_none()
            && running.len() < shared.config.requests_in_flight_max
            && let Some((index, part)) = parts.next()
        {
            let start = index * part_keys;
            // Equal keys in different parts would race: only the first occurrence goes to a node.
            let positions = match kind.is_claim() {
                true => repeated.without(part, start),
                false => (start..start + part.len()).collect(),
            };
            if positions.is_empty() {
                continue;
            }
            let batch: Vec<Fingerprint> = positions.iter().map(|at| keys[*at]).collect();
            let shared = Arc::clone(shared);
            let part = async move {
                let done = run_part(&shared, kind.part(index), &batch, &[], deadline).await;
                (positions, outcomes_of(done))
            };
            running.spawn(part.instrument(trace::current()));
        }
        let Some(done) = running.join_next().await else {
            break;
        };
        // Nothing here aborts a part, so the only other end is a panic, which goes on to the caller.
        let (positions, (reason, of_part)) =
            done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        failed = failed.or(reason);
        for (position, outcome) in positions.into_iter().zip(of_part) {
            outcomes[position] = outcome;
        }
    }
    repeated.fill_in(&mut outcomes);
    result_of(failed, outcomes)
}
