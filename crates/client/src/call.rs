//! One call: cut into parts, each part split by node, sent, and what got no answer sent again.
//!
//! Each part keeps count of what may have been applied ([`Progress`]), so that whatever ends it (a refusal, the deadline, the
//! client's end) is told apart into "nothing applied" and "maybe".

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
    time::Duration,
};

use keydb_core::{Claim, Entry, Expiry, Fingerprint, OperationId, Ttl};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    client::Shared,
    error::{GetError, KeyOutcome, MaybeApplied, NotApplied, PartialGet, WriteError},
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
    /// What a claim was told, where nodes remember it; nothing is applied. Of what they do not remember, every key is unknown.
    Recall {
        ttl: Ttl,
        id: OperationId,
    },
}

/// When a call ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    pub(crate) at: Instant,
    /// How long the call may take altogether.
    pub(crate) timeout: Duration,
}

impl Deadline {
    /// Of a call that began at `since`.
    pub(crate) fn new(since: Instant, timeout: Duration) -> Self {
        Self {
            at: since + timeout,
            timeout,
        }
    }
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
pub(crate) trait Answer: Copy + Send + Sync + 'static {
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

/// What became of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome<A> {
    Answered(A),
    /// Nothing was done for it, for certain.
    NotApplied,
    MaybeApplied,
}

/// Why a call, or a part of it, did not come to its end.
#[derive(Debug, Clone)]
pub(crate) struct Failure<A> {
    /// The first reason, if there were several.
    pub(crate) reason: NotApplied,
    /// Of each key, in their order.
    pub(crate) outcomes: Vec<Outcome<A>>,
}

impl<A: Copy> Failure<A> {
    /// Of a call of `keys` keys of which nothing was sent.
    pub(crate) fn not_applied(reason: NotApplied, keys: usize) -> Self {
        Self {
            reason,
            outcomes: vec![Outcome::NotApplied; keys],
        }
    }
}

impl From<Failure<bool>> for GetError {
    fn from(failure: Failure<bool>) -> Self {
        let answer = |outcome: &Outcome<bool>| match outcome {
            Outcome::Answered(present) => Some(*present),
            Outcome::NotApplied | Outcome::MaybeApplied => None,
        };
        let answers: Vec<Option<bool>> = failure.outcomes.iter().map(answer).collect();
        if answers.iter().all(Option::is_none) {
            return failure.reason.into();
        }
        Self::Partial(PartialGet {
            answers: answers.into(),
            kind: failure.reason.kind(),
            cause: Self::from(failure.reason).to_string().into(),
        })
    }
}

impl From<Failure<()>> for WriteError {
    fn from(failure: Failure<()>) -> Self {
        failure.of_write(|()| KeyOutcome::Stored, None)
    }
}

impl Failure<Claim> {
    /// As the caller of a claim gets to see it.
    pub(crate) fn of_claim(self, operation: impl Into<Option<OperationId>>) -> WriteError {
        self.of_write(KeyOutcome::Claimed, operation.into())
    }
}

impl<A: Copy> Failure<A> {
    fn of_write(
        self,
        answered: impl Fn(A) -> KeyOutcome,
        operation: Option<OperationId>,
    ) -> WriteError {
        let outcome = |outcome: &Outcome<A>| match outcome {
            Outcome::Answered(answer) => answered(*answer),
            Outcome::NotApplied => KeyOutcome::NotApplied,
            Outcome::MaybeApplied => KeyOutcome::MaybeApplied,
        };
        let outcomes: Vec<KeyOutcome> = self.outcomes.iter().map(outcome).collect();
        let count = |which| outcomes.iter().filter(|it| **it == which).count();
        let not_applied = count(KeyOutcome::NotApplied);
        if not_applied == outcomes.len() {
            return self.reason.into();
        }
        let keys_uncertain = count(KeyOutcome::MaybeApplied);
        WriteError::MaybeApplied(MaybeApplied {
            keys: outcomes.len(),
            keys_answered: outcomes.len() - keys_uncertain - not_applied,
            keys_uncertain,
            outcomes: outcomes.into(),
            operation,
            kind: self.reason.kind(),
            cause: GetError::from(self.reason).to_string().into(),
        })
    }
}

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
    if keys.len() <= shared.config.keys_per_request_max {
        return run_part(shared, kind.part(0), &keys, &[], deadline).await;
    }
    run_parts(shared, kind, keys, deadline).await
}

/// Puts entries, part by part.
pub(crate) async fn run_entries(
    shared: &Arc<Shared>,
    entries: &[Entry],
    deadline: Deadline,
) -> Result<(), Failure<()>> {
    let mut outcomes = Vec::new();
    for part in entries.chunks(shared.config.keys_per_request_max) {
        let keys: Vec<Fingerprint> = part.iter().map(|entry| entry.fingerprint()).collect();
        let expiries: Vec<Expiry> = part.iter().map(|entry| entry.expiry()).collect();
        let done = run_part(shared, Kind::PutEach, &keys, &expiries, deadline).await;
        if let Err(failure) = done {
            outcomes.extend(failure.outcomes);
            outcomes.resize(entries.len(), Outcome::NotApplied);
            return Err(Failure {
                reason: failure.reason,
                outcomes,
            });
        }
        outcomes.resize(outcomes.len() + part.len(), Outcome::Answered(()));
    }
    Ok(())
}

/// What a part that ran on its own brings back.
struct PartDone<A> {
    start: usize,
    keys: usize,
    /// Which positions of the part were sent; `None`: all.
    sent: Option<Vec<u32>>,
    result: Result<Vec<A>, Failure<A>>,
}

/// Runs a call of several parts, a bounded number of them at a time. Each is a task, so that they are hashed out on several
/// cores; dropping the set stops them.
async fn run_parts<A: Answer>(
    shared: &Arc<Shared>,
    kind: Kind,
    keys: Vec<Fingerprint>,
    deadline: Deadline,
) -> Result<Vec<A>, Failure<A>> {
    let part_keys = shared.config.keys_per_request_max;
    let mut outcomes: Vec<Outcome<A>> = vec![Outcome::NotApplied; keys.len()];
    let mut repeats = Repeats::default();
    let mut failed: Option<NotApplied> = None;
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
                    keys: batch.len(),
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
        let of_part: Vec<Outcome<A>> = match done.result {
            Ok(answers) => answers.into_iter().map(Outcome::Answered).collect(),
            Err(failure) => {
                failed.get_or_insert(failure.reason);
                failure.outcomes
            }
        };
        match done.sent {
            None => outcomes[done.start..done.start + done.keys].copy_from_slice(&of_part),
            Some(sent) => {
                for (at, outcome) in sent.into_iter().zip(of_part) {
                    outcomes[done.start + at as usize] = outcome;
                }
            }
        }
    }
    for (position, first) in repeats.found {
        outcomes[position] = match outcomes[first] {
            Outcome::Answered(answer) => Outcome::Answered(answer.of_repeat()),
            other => other,
        };
    }
    match failed {
        Some(reason) => Err(Failure { reason, outcomes }),
        None => Ok(outcomes
            .into_iter()
            .map(|outcome| match outcome {
                Outcome::Answered(answer) => answer,
                Outcome::NotApplied | Outcome::MaybeApplied => {
                    unreachable!("without a failure every key is answered")
                }
            })
            .collect()),
    }
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
