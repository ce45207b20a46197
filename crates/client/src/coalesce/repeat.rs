//! Claims that travelled with others and may have been applied: how they are repeated.
//!
//! Nodes remember the operation of each batch, range by range, with all keys of the range. So what travelled in one batch is repeated
//! in two steps: nodes are asked what the batch's keys in these ranges were told, which applies nothing; and the keys that nothing
//! is remembered of are claimed as the repeat of an operation of the caller's own. The pieces of a call, which travelled in batches
//! of their own, are repeated side by side.
//!
//! A sending of the batch that came after a repeat had claimed its keys would find them present, and have them remembered as
//! duplicates that the next repeat is told. So nobody is asked before the batch's last sending is valid no longer.
//!
//! A range that does not say what it remembers leaves its own keys without an answer.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use keydb_core::{Claim, Fingerprint, OperationId, Ttl};
use tokio::time::{Instant, sleep_until};

use crate::{
    call::{Failure, Kind, Outcome, outcomes_of, result_of, run_part},
    error::NotApplied,
    shared::{Deadline, Shared},
};

/// How many claims are remembered at most, and for how long: longer than nodes remember theirs by default.
const CLAIMS_MAX: usize = 1 << 16;
const AGE_MAX: Duration = Duration::from_secs(600);

/// A claim that travelled with others.
#[derive(Debug, Clone)]
pub(super) struct Coalition {
    pub(super) ttl: Ttl,
    /// All keys of the call.
    pub(super) keys: Vec<Fingerprint>,
    pub(super) pieces: Vec<ClaimPiece>,
}

/// The keys of a claim that were in one batch.
#[derive(Debug, Clone)]
pub(super) struct ClaimPiece {
    /// Which keys of the call they are.
    pub(super) positions: Vec<usize>,
    /// `None` when that is not known, or they were in none.
    pub(super) travelled: Option<Box<Travelled>>,
}

/// How keys of a claim travelled.
#[derive(Debug, Clone)]
pub(super) struct Travelled {
    /// What the batch was sent as.
    pub(super) operation: OperationId,
    /// The keys of the whole batch.
    pub(super) keys: Arc<Vec<Fingerprint>>,
    /// Which of them are the claim's.
    pub(super) own: Range<usize>,
    /// Until when a node may still come by these keys; `None`: all sendings with them have been answered.
    pub(super) valid_until: Option<Instant>,
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
        (claim.keys == keys).then(|| claim.clone())
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
        Some(claim.repeat(shared, id, deadline).await)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of keys, in their order, and why some have no answer.
type Outcomes = (Option<NotApplied>, Vec<Outcome<Claim>>);

impl Coalition {
    async fn repeat(
        &self,
        shared: &Shared,
        id: OperationId,
        deadline: Deadline,
    ) -> Result<Vec<Claim>, Failure<Claim>> {
        let pieces = (0..).zip(&self.pieces);
        let repeated =
            pieces.map(|(index, piece)| self.repeat_piece(shared, id.part(index), piece, deadline));
        let mut outcomes = vec![Outcome::MaybeApplied; self.keys.len()];
        let mut failed = None;
        for (piece, (reason, of_piece)) in self.pieces.iter().zip(join_all(repeated).await) {
            failed = failed.or(reason);
            for (position, outcome) in piece.positions.iter().zip(of_piece) {
                outcomes[*position] = outcome;
            }
        }
        result_of(failed, outcomes)
    }

    /// Repeats a piece; what is not remembered of it is claimed as the operation `id`.
    async fn repeat_piece(
        &self,
        shared: &Shared,
        id: OperationId,
        piece: &ClaimPiece,
        deadline: Deadline,
    ) -> Outcomes {
        let (failed, mut outcomes) = match &piece.travelled {
            Some(travelled) => travelled.recall(shared, self.ttl, deadline).await,
            None => {
                let unknown = Outcome::Answered(Claim::Unknown);
                (None, vec![unknown; piece.positions.len()])
            }
        };
        let unknown: Vec<usize> = (0..outcomes.len())
            .filter(|at| outcomes[*at] == Outcome::Answered(Claim::Unknown))
            .collect();
        if unknown.is_empty() {
            return (failed, outcomes);
        }
        let key_at = |at: &usize| self.keys[piece.positions[*at]];
        let keys: Vec<Fingerprint> = unknown.iter().map(key_at).collect();
        let kind = Kind::Claim {
            ttl: self.ttl,
            id,
            attempts_before: 1,
        };
        let claimed = run_part(shared, kind, &keys, &[], deadline).await;
        let (reason, claimed) = outcomes_of(claimed);
        for (at, outcome) in unknown.into_iter().zip(claimed) {
            outcomes[at] = outcome;
        }
        (failed.or(reason), outcomes)
    }
}

impl Travelled {
    /// What nodes remember that the claim's keys were told: `Unknown` where they do not, no answer where they did not say.
    async fn recall(&self, shared: &Shared, ttl: Ttl, deadline: Deadline) -> Outcomes {
        if let Some(valid_until) = self.valid_until {
            let wait = sleep_until(valid_until.min(deadline.at));
            let _ = shared.unless_closed(wait).await;
        }
        let routing = shared.router.current();
        let slot = |key: &Fingerprint| routing.table.slot_of(key.top());
        let own_slots: HashSet<u32> = self.keys[self.own.clone()].iter().map(slot).collect();
        let positions: Vec<usize> = (0..self.keys.len())
            .filter(|at| own_slots.contains(&slot(&self.keys[*at])))
            .collect();
        let keys: Vec<Fingerprint> = positions.iter().map(|at| self.keys[*at]).collect();
        let kind = Kind::Recall {
            ttl,
            id: self.operation,
        };
        let told = run_part::<Claim>(shared, kind, &keys, &[], deadline).await;
        let (failed, told) = outcomes_of(told);
        let first = Outcome::Answered(Claim::First);
        // Whether another caller of the batch ever heard that it was first with an equal key, nobody knows here.
        let firsts_of_others: HashSet<Fingerprint> = positions
            .iter()
            .zip(&told)
            .filter(|(at, told)| **told == first && !self.own.contains(at))
            .map(|(at, _)| self.keys[*at])
            .collect();
        let own = positions.iter().zip(told);
        let own = own.filter(|(at, _)| self.own.contains(at));
        let outcomes = own.map(|(at, told)| match told {
            Outcome::Answered(Claim::Duplicate) if firsts_of_others.contains(&self.keys[*at]) => {
                Outcome::Answered(Claim::Unknown)
            }
            Outcome::Answered(answer) => Outcome::Answered(answer),
            // Recalling applies nothing; what the batch did is not known.
            Outcome::NotApplied | Outcome::MaybeApplied => Outcome::MaybeApplied,
        });
        (failed, outcomes.collect())
    }
}
