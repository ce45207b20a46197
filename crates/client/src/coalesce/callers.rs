//! The callers of a batch.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use keydb_core::{Fingerprint, OperationId};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout_at},
};

use super::{
    coalescer::{Coalesced, Coalescer},
    no_room::NoRoom,
    queue::{Batch, Waiting},
    repeat::Travelled,
    told::{Answers, HEARD_WITHIN, Told},
};
use crate::{
    call::{AnswerReceiver, FingerprintMap, Kind, Outcome, PartProgress, result_of},
    error::{ErrorKind, NotApplied},
};

/// Each caller until it is told.
#[derive(Debug)]
pub(super) struct Callers<A> {
    keys: Arc<Vec<Fingerprint>>,
    /// By position: which call the key is of.
    call_of: Vec<u32>,
    /// By position: what became of the key, as soon as that is known.
    outcomes: Vec<Option<Outcome<A>>>,
    calls: Vec<Call<A>>,
    /// What the batch is claimed as.
    claim: Option<OperationId>,
    /// Until when a node may still come by the batch, as far as calls that failed have to know.
    valid_until: Option<Instant>,
    /// Whether calls that a node has no room for are taken back, and those that were.
    takes_back: bool,
    taken_back: Vec<NoRoom<A>>,
    /// Told when keys wait for a hand-over.
    waiting: Arc<Notify>,
    coalescer: Arc<Coalescer>,
}

#[derive(Debug)]
struct Call<A> {
    /// `None` when it has been told.
    waiting: Option<Waiting<A>>,
    /// The position of its first key.
    start: usize,
    /// How many of its keys are not known about yet.
    open: usize,
    /// Why keys have no answer, the first time that it happened.
    failed: Option<NotApplied>,
    /// Its keys that another call was told to have been first with.
    follows: Vec<Follows>,
    /// Tells the calls with such keys that this one has heard.
    heard: Option<watch::Sender<bool>>,
}

#[derive(Debug)]
struct Follows {
    position: usize,
    first_heard: watch::Receiver<bool>,
}

impl<A> Callers<A> {
    pub(super) fn new(batch: Batch<A>, kind: Kind, coalescer: Arc<Coalescer>) -> Self {
        let mut call_of = Vec::with_capacity(batch.keys.len());
        let mut calls = Vec::with_capacity(batch.calls.len());
        for (index, waiting) in (0..).zip(batch.calls) {
            let (start, open) = (call_of.len(), waiting.keys);
            call_of.resize(start + open, index);
            calls.push(Call {
                waiting: Some(waiting),
                start,
                open,
                failed: None,
                follows: Vec::new(),
                heard: None,
            });
        }
        let mut outcomes = Vec::new();
        outcomes.resize_with(batch.keys.len(), || None);
        Self {
            keys: Arc::new(batch.keys),
            call_of,
            outcomes,
            calls,
            claim: kind.operation(),
            valid_until: None,
            takes_back: false,
            taken_back: Vec::new(),
            waiting: Arc::default(),
            coalescer,
        }
    }

    /// Takes calls back that a node has no room for, see [`NoRoom`].
    pub(super) fn taking_back(self) -> Self {
        Self {
            takes_back: true,
            ..self
        }
    }

    /// Tells of waits for hand-overs.
    pub(super) fn telling(self, waiting: Arc<Notify>) -> Self {
        Self { waiting, ..self }
    }

    pub(super) fn keys(&self) -> Arc<Vec<Fingerprint>> {
        Arc::clone(&self.keys)
    }

    /// The calls that were taken back.
    pub(super) fn into_taken_back(self) -> Vec<NoRoom<A>> {
        self.taken_back
    }
}

impl<A: Coalesced> Callers<A> {
    /// Notes what became of a key that nothing was known of. True when its call is complete.
    fn note(&mut self, position: usize, outcome: Outcome<A>) -> bool {
        self.outcomes[position] = Some(outcome);
        let call = &mut self.calls[self.call_of[position] as usize];
        call.open -= 1;
        call.open == 0
    }

    /// Tells a call that is complete.
    fn tell(&mut self, index: usize) {
        let call = &mut self.calls[index];
        let Some(waiting) = call.waiting.take() else {
            return;
        };
        let (start, end) = (call.start, call.start + waiting.keys);
        let failed = call.failed.take();
        let heard = call.heard.take();
        let follows = std::mem::take(&mut call.follows);
        let repeatable = failed.is_some() || waiting.is_piece;
        let travelled = repeatable.then(|| self.travelled(start..end)).flatten();
        if waiting.keys == 1
            && follows.is_empty()
            && let Some(Outcome::Answered(answer)) = self.outcomes[start]
        {
            return waiting.tell(Told {
                result: Ok(Answers::One(answer)),
                heard,
                travelled,
            });
        }
        let outcomes: Vec<Outcome<A>> = self.outcomes[start..end]
            .iter()
            .map(|outcome| outcome.unwrap_or(Outcome::MaybeApplied))
            .collect();
        let tell = move |outcomes| {
            let result = result_of(failed, outcomes).map(Answers::Many);
            waiting.tell(Told {
                result: result.map_err(Box::new),
                heard,
                travelled,
            });
        };
        if follows.is_empty() {
            return tell(outcomes);
        }
        let tell_later = async move { tell(when_heard(outcomes, start, follows).await) };
        let shared = &self.coalescer.shared;
        shared.tasks.spawn_on(tell_later, &shared.runtime);
    }

    /// How these keys travelled, if they are claimed.
    fn travelled(&self, own: Range<usize>) -> Option<Box<Travelled>> {
        let operation = self.claim?;
        let is_uncertain = |outcome| matches!(outcome, &Some(Outcome::MaybeApplied));
        let uncertain = self.outcomes[own.clone()].iter().any(is_uncertain);
        Some(Box::new(Travelled {
            operation,
            keys: Arc::clone(&self.keys),
            own,
            valid_until: self.valid_until.filter(|_| uncertain),
        }))
    }
}

/// Waits until the calls that were first with equal keys have heard it. Where they have not, nobody may know of the first.
async fn when_heard<A: Coalesced>(
    mut outcomes: Vec<Outcome<A>>,
    start: usize,
    follows: Vec<Follows>,
) -> Vec<Outcome<A>> {
    let until = Instant::now() + HEARD_WITHIN;
    for Follows {
        position,
        mut first_heard,
    } in follows
    {
        let heard = timeout_at(until, first_heard.wait_for(|heard| *heard)).await;
        if !matches!(heard, Ok(Ok(_)))
            && let Outcome::Answered(answer) = &mut outcomes[position - start]
        {
            *answer = answer.when_first_is_unheard();
        }
    }
    outcomes
}

impl<A: Coalesced> AnswerReceiver for Callers<A> {
    type Answer = A;

    fn answered(&mut self, positions: &[u32], answers: impl Iterator<Item = A> + Clone) {
        // Equal keys come together, so without a `Duplicate` no `First` has one behind it.
        let equal_keys = answers.clone().any(Coalesced::follows_first)
            && answers.clone().any(Coalesced::is_first);
        let mut firsts = FingerprintMap::<usize>::default();
        let mut complete = Vec::new();
        for (position, answer) in positions.iter().zip(answers) {
            let position = *position as usize;
            let index = self.call_of[position] as usize;
            if equal_keys && answer.is_first() {
                firsts.insert(self.keys[position], index);
            } else if answer.follows_first()
                && let Some(first) = firsts.get(&self.keys[position])
                && *first != index
            {
                let heard = &mut self.calls[*first].heard;
                let heard = heard.get_or_insert_with(|| watch::Sender::new(false));
                let first_heard = heard.subscribe();
                self.calls[index].follows.push(Follows {
                    position,
                    first_heard,
                });
            }
            if self.note(position, Outcome::Answered(answer)) {
                complete.push(index);
            }
        }
        for index in complete {
            self.tell(index);
        }
    }

    fn waits(&mut self) {
        self.waiting.notify_one();
    }

    fn takes_back(
        &mut self,
        positions: &[u32],
        reason: &NotApplied,
        progress: &PartProgress,
    ) -> bool {
        // A put is refused by a full disk whether its keys are there or not.
        if !self.takes_back || (self.claim.is_none() && reason.kind() == ErrorKind::DiskFull) {
            return false;
        }
        let mut keys_of_call = BTreeMap::<usize, usize>::new();
        for position in positions {
            let position = *position as usize;
            let is_applied = progress.outcome(position, A::from_bits(false, false));
            if !matches!(is_applied, Outcome::NotApplied) {
                // It has to be repeated under the same operation.
                return false;
            }
            let call = self.call_of[position] as usize;
            *keys_of_call.entry(call).or_default() += 1;
        }
        let is_whole = |(index, keys): (&usize, &usize)| {
            let waiting = self.calls[*index].waiting.as_ref();
            waiting.is_some_and(|waiting| waiting.keys == *keys)
        };
        // A single call is refused for keys of its own.
        if keys_of_call.len() == 1 || !keys_of_call.iter().all(is_whole) {
            return false;
        }
        let mut batch = Batch::empty();
        for (index, keys) in keys_of_call {
            let call = &mut self.calls[index];
            let own = call.start..call.start + keys;
            call.open = 0;
            self.outcomes[own.clone()].fill(Some(Outcome::NotApplied));
            if let Some(waiting) = call.waiting.take() {
                batch.push(waiting, self.keys[own].iter().copied());
            }
        }
        self.taken_back.push(NoRoom {
            batch,
            reason: reason.clone(),
        });
        true
    }

    fn failed(&mut self, positions: &[u32], reason: NotApplied, progress: &PartProgress) {
        self.valid_until = progress.valid_until();
        for position in positions {
            let position = *position as usize;
            if self.outcomes[position].is_some() {
                continue;
            }
            let index = self.call_of[position] as usize;
            self.calls[index]
                .failed
                .get_or_insert_with(|| reason.clone());
            let outcome = progress.outcome(position, A::from_bits(false, false));
            if self.note(position, outcome) {
                self.tell(index);
            }
        }
    }
}
