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
//! A range that does not say what it remembers leaves its own keys without an answer, and holds up no others.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use keydb_core::{Claim, Fingerprint, OperationId, Ttl};
use tokio::{
    join,
    sync::mpsc,
    time::{Instant, sleep_until},
};

use crate::{
    call::{
        AnswerReceiver, Failure, Kind, Outcome, PartProgress, outcomes_of, result_of, run_part,
        run_part_for,
    },
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

    /// Repeats a piece; what is not remembered of it is claimed as the operation `id`, as soon as that is known.
    async fn repeat_piece(
        &self,
        shared: &Shared,
        id: OperationId,
        piece: &ClaimPiece,
        deadline: Deadline,
    ) -> Outcomes {
        let count = piece.positions.len();
        let (forgotten, mut to_claim) = mpsc::channel::<Vec<usize>>(count);
        let recall = async move {
            let Some(travelled) = &piece.travelled else {
                let _ = forgotten.try_send((0..count).collect());
                return (None, vec![Outcome::MaybeApplied; count]);
            };
            travelled
                .recall(shared, self.ttl, forgotten, deadline)
                .await
        };
        let kind = Kind::Claim {
            ttl: self.ttl,
            id,
            attempts_before: 1,
        };
        let claim = async {
            let mut failed = None;
            let mut claimed = Vec::new();
            while let Some(forgotten) = to_claim.recv().await {
                let key_at = |at: &usize| self.keys[piece.positions[*at]];
                let keys: Vec<Fingerprint> = forgotten.iter().map(key_at).collect();
                let told = run_part(shared, kind, &keys, &[], deadline).await;
                let (reason, outcomes) = outcomes_of(told);
                failed = failed.or(reason);
                claimed.extend(forgotten.into_iter().zip(outcomes));
            }
            (failed, claimed)
        };
        let ((not_recalled, mut outcomes), (not_claimed, claimed)) = join!(recall, claim);
        for (at, outcome) in claimed {
            outcomes[at] = outcome;
        }
        (not_recalled.or(not_claimed), outcomes)
    }
}

impl Travelled {
    /// What nodes remember that the claim's keys were told: `Unknown` where they do not, which `forgotten` hears at once; no answer
    /// where they did not say.
    async fn recall(
        &self,
        shared: &Shared,
        ttl: Ttl,
        forgotten: mpsc::Sender<Vec<usize>>,
        deadline: Deadline,
    ) -> Outcomes {
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
        let mut recalled = Recalled {
            travelled: self,
            positions,
            outcomes: vec![Outcome::MaybeApplied; self.own.len()],
            failed: None,
            forgotten,
        };
        run_part_for(&mut recalled, shared, kind, &keys, &[], deadline).await;
        (recalled.failed, recalled.outcomes)
    }
}

/// Takes what nodes remember of a batch.
#[derive(Debug)]
struct Recalled<'a> {
    travelled: &'a Travelled,
    /// Which keys of the batch they are asked for.
    positions: Vec<usize>,
    /// Of the claim's own keys.
    outcomes: Vec<Outcome<Claim>>,
    /// Why some have no answer, the first time that it happened.
    failed: Option<NotApplied>,
    /// Hears which own keys nothing is remembered of. There is a place for each of them.
    forgotten: mpsc::Sender<Vec<usize>>,
}

impl AnswerReceiver for Recalled<'_> {
    type Answer = Claim;

    fn answered(&mut self, positions: &[u32], answers: impl Iterator<Item = Claim> + Clone) {
        let Travelled { keys, own, .. } = self.travelled;
        let at = |position: &u32| self.positions[*position as usize];
        let told = positions.iter().map(at).zip(answers);
        // Whether another caller of the batch ever heard that it was first with an equal key, nobody knows here.
        let firsts_of_others: HashSet<Fingerprint> = told
            .clone()
            .filter(|(at, answer)| *answer == Claim::First && !own.contains(at))
            .map(|(at, _)| keys[at])
            .collect();
        let mut forgotten = Vec::new();
        for (at, answer) in told.filter(|(at, _)| own.contains(at)) {
            let answer = match answer {
                Claim::Duplicate if firsts_of_others.contains(&keys[at]) => Claim::Unknown,
                answer => answer,
            };
            self.outcomes[at - own.start] = Outcome::Answered(answer);
            if answer == Claim::Unknown {
                forgotten.push(at - own.start);
            }
        }
        if !forgotten.is_empty() {
            let _ = self.forgotten.try_send(forgotten);
        }
    }

    fn failed(&mut self, _: &[u32], reason: NotApplied, _: &PartProgress) {
        self.failed.get_or_insert(reason);
    }
}
