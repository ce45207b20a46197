//! One call: cut into parts, each part split by node, sent, and what got no answer sent again.
//!
//! Each part keeps count of what may have been applied ([`Progress`]), so that whatever ends it (a refusal, the deadline, the
//! client's end) is told apart into "nothing applied" and "maybe".

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

use keydb_core::{Claim, Entry, Expiry, Fingerprint, OperationId, Ttl};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    client::Shared,
    error::{GetError, MaybeApplied, NotApplied, WriteError},
    part::run_part,
};

/// What a call asks of its keys.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Get,
    Put {
        ttl: Ttl,
    },
    /// Each key until an expiry of its own, which the part knows.
    PutEach,
    Claim {
        ttl: Ttl,
        id: OperationId,
        /// How many earlier sendings may have been applied before this call.
        attempts_before: u32,
    },
}

impl Kind {
    /// The same for part `index` of a call.
    fn part(self, index: usize) -> Self {
        match self {
            Self::Claim {
                ttl,
                id,
                attempts_before,
            } => Self::Claim {
                ttl,
                id: id.part(index as u64),
                attempts_before,
            },
            other => other,
        }
    }

    pub(crate) fn attempts_before(self) -> u32 {
        match self {
            Self::Claim {
                attempts_before, ..
            } => attempts_before,
            _ => 0,
        }
    }
}

/// What one key's two reply bits mean.
pub(crate) trait Answer: Copy + Send + 'static {
    /// From the first bitmap (present, or first) and the second (unknown).
    fn from_bits(first: bool, unknown: bool) -> Self;
    /// What a later occurrence of a key gets whose first occurrence got `self`.
    fn of_repeat(self) -> Self;
}

impl Answer for bool {
    #[inline]
    fn from_bits(first: bool, _: bool) -> Self {
        first
    }
    fn of_repeat(self) -> Self {
        self
    }
}

impl Answer for () {
    #[inline]
    fn from_bits(_: bool, _: bool) {}
    fn of_repeat(self) {}
}

impl Answer for Claim {
    #[inline]
    fn from_bits(first: bool, unknown: bool) -> Self {
        match (first, unknown) {
            (true, _) => Self::First,
            (false, true) => Self::Unknown,
            (false, false) => Self::Duplicate,
        }
    }
    fn of_repeat(self) -> Self {
        match self {
            Self::First | Self::Duplicate => Self::Duplicate,
            Self::Unknown => Self::Unknown,
        }
    }
}

/// Why a call, or a part of it, did not come to its end.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) reason: NotApplied,
    /// How many keys the call has.
    pub(crate) keys: usize,
    /// How many keys nodes have answered for.
    pub(crate) answered: usize,
    /// How many keys were sent, and nobody knows what became of them.
    pub(crate) uncertain: usize,
}

impl From<Failure> for GetError {
    fn from(failure: Failure) -> Self {
        failure.reason.into()
    }
}

impl Failure {
    /// As the caller of a write gets to see it.
    pub(crate) fn of_write(self, operation: Option<OperationId>) -> WriteError {
        if self.answered == 0 && self.uncertain == 0 {
            return self.reason.into();
        }
        WriteError::MaybeApplied(MaybeApplied {
            keys: self.keys,
            keys_answered: self.answered,
            keys_uncertain: self.uncertain,
            operation,
            operation_id_used: matches!(self.reason, NotApplied::OperationIdUsed { .. }),
            cause: GetError::from(self.reason).to_string().into(),
        })
    }
}

/// Runs a call to its end; the answers are in the order of `keys`.
pub(crate) async fn run<A: Answer>(
    shared: &Arc<Shared>,
    kind: Kind,
    keys: Vec<Fingerprint>,
    deadline: Instant,
) -> Result<Vec<A>, Failure> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    if keys.len() <= shared.config.keys_per_request_max {
        return run_part(shared, kind.part(0), &keys, &[], deadline).await;
    }
    run_parts(shared, kind, keys, deadline).await
}

/// Puts entries, part by part.
pub(crate) async fn run_entries(
    shared: &Arc<Shared>,
    entries: &[Entry],
    deadline: Instant,
) -> Result<(), Failure> {
    let mut answered = 0;
    for part in entries.chunks(shared.config.keys_per_request_max) {
        let keys: Vec<Fingerprint> = part.iter().map(|entry| entry.fingerprint()).collect();
        let expiries: Vec<Expiry> = part.iter().map(|entry| entry.expiry()).collect();
        run_part::<()>(shared, Kind::PutEach, &keys, &expiries, deadline)
            .await
            .map_err(|failure| Failure {
                keys: entries.len(),
                answered: answered + failure.answered,
                ..failure
            })?;
        answered += part.len();
    }
    Ok(())
}

/// What a part that ran on its own brings back.
struct PartDone<A> {
    start: usize,
    /// Which positions of the part were sent; `None`: all.
    sent: Option<Vec<u32>>,
    result: Result<Vec<A>, Failure>,
}

/// Runs a call of several parts, a bounded number of them at a time. Each is a task, so that they are hashed out on several
/// cores; dropping the set stops them.
async fn run_parts<A: Answer>(
    shared: &Arc<Shared>,
    kind: Kind,
    keys: Vec<Fingerprint>,
    deadline: Instant,
) -> Result<Vec<A>, Failure> {
    let part_keys = shared.config.keys_per_request_max;
    let mut answers = vec![A::from_bits(false, false); keys.len()];
    let mut repeats = Repeats::default();
    let mut failed: Option<Failure> = None;
    let (mut answered, mut uncertain) = (0, 0);
    let mut parts = keys.chunks(part_keys).enumerate();
    let mut running = JoinSet::new();
    loop {
        while failed.is_none() && running.len() < shared.config.requests_in_flight_max {
            let Some((index, part)) = parts.next() else {
                break;
            };
            let start = index * part_keys;
            // Equal keys in different parts would race: only the first occurrence goes to a node.
            let sent = match kind {
                Kind::Claim { .. } => repeats.without(part, start),
                _ => None,
            };
            let batch: Vec<Fingerprint> = match &sent {
                None => part.to_vec(),
                Some(sent) => sent.iter().map(|at| part[*at as usize]).collect(),
            };
            let shared = Arc::clone(shared);
            running.spawn(async move {
                let result = match batch.is_empty() {
                    true => Ok(Vec::new()),
                    false => run_part(&shared, kind.part(index), &batch, &[], deadline).await,
                };
                PartDone {
                    start,
                    sent,
                    result,
                }
            });
        }
        let Some(done) = running.join_next().await else {
            break;
        };
        // Nothing here aborts a part, so the only other end is a panic, which goes on to the caller.
        let done = done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        match (done.result, done.sent) {
            (Ok(part), None) => {
                answered += part.len();
                answers[done.start..done.start + part.len()].copy_from_slice(&part);
            }
            (Ok(part), Some(sent)) => {
                answered += part.len();
                for (at, answer) in sent.into_iter().zip(part) {
                    answers[done.start + at as usize] = answer;
                }
            }
            (Err(failure), _) => {
                answered += failure.answered;
                uncertain += failure.uncertain;
                failed.get_or_insert(failure);
            }
        }
    }
    if let Some(failure) = failed {
        return Err(Failure {
            keys: keys.len(),
            answered,
            uncertain,
            ..failure
        });
    }
    for (position, first) in repeats.found {
        answers[position] = answers[first].of_repeat();
    }
    Ok(answers)
}

/// Which keys of a call were in an earlier part of it.
#[derive(Default)]
struct Repeats {
    /// Where each key was first.
    first: HashMap<Fingerprint, usize, BuildHasherDefault<FingerprintHasher>>,
    /// Positions of later occurrences in other parts, and of the first.
    found: Vec<(usize, usize)>,
}

impl Repeats {
    /// The positions of `part`, which begins at `start`, that no earlier part had; `None` when that is all of them.
    fn without(&mut self, part: &[Fingerprint], start: usize) -> Option<Vec<u32>> {
        let found_before = self.found.len();
        for (at, fingerprint) in part.iter().enumerate() {
            let first = *self.first.entry(*fingerprint).or_insert(start + at);
            if first < start {
                self.found.push((start + at, first));
            }
        }
        let mut repeated = self.found[found_before..].iter().peekable();
        repeated.peek()?;
        let sent = (0..part.len()).filter(|at| {
            repeated
                .next_if(|(position, _)| *position == start + at)
                .is_none()
        });
        Some(sent.map(|at| at as u32).collect())
    }
}

/// A fingerprint is a hash already.
#[derive(Default)]
pub(crate) struct FingerprintHasher(u64);

impl Hasher for FingerprintHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u128(&mut self, value: u128) {
        self.0 = value as u64;
    }
}
