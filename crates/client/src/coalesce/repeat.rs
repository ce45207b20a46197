//! Claims that travelled with others and may have been applied: how they are repeated.
//!
//! Nodes remember the batch's operation, range by range, with all keys of the range. So a caller's claim is repeated in two steps:
//! nodes are asked what the batch's keys in the caller's ranges were told, which applies nothing; and the caller's keys that
//! nothing is remembered of are claimed as the repeat of an operation of the caller's own.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use keydb_core::{Claim, Fingerprint, OperationId, Ttl};
use tokio::time::Instant;

use crate::{
    call::{Failure, Kind, Outcome, outcomes_of, result_of, run_part},
    shared::{Deadline, Shared},
};

/// How many claims are remembered at most, and for how long: longer than nodes remember theirs by default.
const CLAIMS_MAX: usize = 1 << 16;
const AGE_MAX: Duration = Duration::from_secs(600);

/// A claim that travelled with others.
#[derive(Debug, Clone)]
pub(super) struct Coalition {
    /// What the batch was sent as.
    pub(super) operation: OperationId,
    pub(super) ttl: Ttl,
    /// The keys of the whole batch.
    pub(super) keys: Arc<Vec<Fingerprint>>,
    /// Which of them are the claim's.
    pub(super) own: Range<usize>,
}

/// The claims that may have been applied, by the ids that their callers were given.
#[derive(Debug, Default)]
pub(crate) struct RepeatableClaims(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    claims: HashMap<OperationId, Coalition>,
    oldest_first: VecDeque<(Instant, OperationId)>,
}

impl RepeatableClaims {
    /// Remembers a claim, and draws an id for it.
    pub(super) fn add(&self, coalition: Coalition) -> OperationId {
        let (id, now) = (OperationId::random(), Instant::now());
        let mut state = self.lock();
        while let Some((since, oldest)) = state.oldest_first.front().copied()
            && (state.oldest_first.len() >= CLAIMS_MAX || now.duration_since(since) > AGE_MAX)
        {
            state.oldest_first.pop_front();
            state.claims.remove(&oldest);
        }
        state.claims.insert(id, coalition);
        state.oldest_first.push_back((now, id));
        id
    }

    fn of(&self, id: OperationId, keys: &[Fingerprint]) -> Option<Coalition> {
        let state = self.lock();
        let claim = state.claims.get(&id)?;
        (claim.keys[claim.own.clone()] == *keys).then(|| claim.clone())
    }

    /// Repeats a claim that travelled with others under the id that its caller was given; `None` when the id is of none, or of
    /// other keys.
    pub(crate) async fn repeat(
        &self,
        shared: &Shared,
        id: OperationId,
        keys: &[Fingerprint],
        deadline: Deadline,
    ) -> Option<Result<Vec<Claim>, Failure<Claim>>> {
        let claim = self.of(id, keys)?;
        let told = claim.repeat(shared, id, deadline).await;
        Some(told.map_err(|failure| failure.repeatable_as(Some(id))))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Coalition {
    async fn repeat(
        &self,
        shared: &Shared,
        id: OperationId,
        deadline: Deadline,
    ) -> Result<Vec<Claim>, Failure<Claim>> {
        let answers = self.recall(shared, deadline).await?;
        let unknown: Vec<usize> = (0..answers.len())
            .filter(|at| answers[*at] == Claim::Unknown)
            .collect();
        if unknown.is_empty() {
            return Ok(answers);
        }
        let key_at = |at: &usize| self.keys[self.own.start + at];
        let keys: Vec<Fingerprint> = unknown.iter().map(key_at).collect();
        let kind = Kind::Claim {
            ttl: self.ttl,
            id: id.part(0),
            attempts_before: 1,
        };
        let claimed = run_part(shared, kind, &keys, &[], deadline).await;
        let (failed, claimed) = outcomes_of(claimed);
        let mut outcomes: Vec<_> = answers.into_iter().map(Outcome::Answered).collect();
        for (at, outcome) in unknown.into_iter().zip(claimed) {
            outcomes[at] = outcome;
        }
        result_of(failed, outcomes)
    }

    /// What nodes remember that the claim's keys were told; `Unknown` where they do not.
    async fn recall(
        &self,
        shared: &Shared,
        deadline: Deadline,
    ) -> Result<Vec<Claim>, Failure<Claim>> {
        let routing = shared.router.current();
        let slot = |key: &Fingerprint| routing.table.slot_of(key.top());
        let own_slots: HashSet<u32> = self.keys[self.own.clone()].iter().map(slot).collect();
        let positions: Vec<usize> = (0..self.keys.len())
            .filter(|at| own_slots.contains(&slot(&self.keys[*at])))
            .collect();
        let keys: Vec<Fingerprint> = positions.iter().map(|at| self.keys[*at]).collect();
        let kind = Kind::Recall {
            ttl: self.ttl,
            id: self.operation,
        };
        let told = run_part::<Claim>(shared, kind, &keys, &[], deadline).await;
        let told = told.map_err(|failure| {
            Failure::new(failure.reason, vec![Outcome::MaybeApplied; self.own.len()])
        })?;
        // Whether another caller of the batch ever heard that it was first with an equal key, nobody knows here.
        let firsts_of_others: HashSet<Fingerprint> = positions
            .iter()
            .zip(&told)
            .filter(|(at, answer)| **answer == Claim::First && !self.own.contains(at))
            .map(|(at, _)| self.keys[*at])
            .collect();
        let own = positions.iter().zip(told);
        let own = own.filter(|(at, _)| self.own.contains(at));
        Ok(own
            .map(|(at, answer)| match answer {
                Claim::Duplicate if firsts_of_others.contains(&self.keys[*at]) => Claim::Unknown,
                answer => answer,
            })
            .collect())
    }
}
