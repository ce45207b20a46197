//! What becomes of a call's keys, and what its caller gets to see of that.

use keydb_core::{Claim, OperationId};

use crate::error::{GetError, KeyOutcome, MaybeApplied, NotApplied, PartialGet, WriteError};

/// What one key's two reply bits mean.
pub(crate) trait Answer: Copy + Send + Sync + 'static {
    /// From the first bitmap (present, or first) and the second (unknown).
    fn from_bits(first: bool, unknown: bool) -> Self;
    /// What a later occurrence of a key gets whose first occurrence got `self`.
    fn of_repeat(self) -> Self {
        self
    }
}

impl Answer for bool {
    #[inline]
    fn from_bits(first: bool, _: bool) -> Self {
        first
    }
}

impl Answer for () {
    #[inline]
    fn from_bits(_: bool, _: bool) {}
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
    /// Of a claim that may have been applied: what its caller can repeat it as.
    pub(crate) operation: Option<OperationId>,
}

impl<A: Copy> Failure<A> {
    pub(crate) fn new(reason: NotApplied, outcomes: Vec<Outcome<A>>) -> Self {
        Self {
            reason,
            outcomes,
            operation: None,
        }
    }

    pub(crate) fn repeatable_as(self, operation: Option<OperationId>) -> Self {
        Self { operation, ..self }
    }

    /// Of a call that repeats a claim whose earlier sendings may have stored what this one did not.
    pub(crate) fn of_repeated_claim(mut self, operation: OperationId) -> Self {
        for outcome in &mut self.outcomes {
            if matches!(outcome, Outcome::NotApplied) {
                *outcome = Outcome::MaybeApplied;
            }
        }
        self.repeatable_as(Some(operation))
    }

    /// Of a call of `keys` keys of which nothing was sent.
    pub(crate) fn not_applied(reason: NotApplied, keys: usize) -> Self {
        Self::new(reason, vec![Outcome::NotApplied; keys])
    }
}

/// The answers of a call whose keys became `outcomes`, all answered unless there is a reason why not.
pub(crate) fn result_of<A: Copy>(
    reason: Option<NotApplied>,
    outcomes: Vec<Outcome<A>>,
) -> Result<Vec<A>, Failure<A>> {
    if let Some(reason) = reason {
        return Err(Failure::new(reason, outcomes));
    }
    let answers = outcomes.into_iter().map(|outcome| match outcome {
        Outcome::Answered(answer) => answer,
        Outcome::NotApplied | Outcome::MaybeApplied => {
            unreachable!("without a failure every key is answered")
        }
    });
    Ok(answers.collect())
}

/// What became of each key of a call that ended like this, and why some have no answer.
pub(crate) fn outcomes_of<A>(
    result: Result<Vec<A>, Failure<A>>,
) -> (Option<NotApplied>, Vec<Outcome<A>>) {
    match result {
        Ok(answers) => (None, answers.into_iter().map(Outcome::Answered).collect()),
        Err(failure) => (Some(failure.reason), failure.outcomes),
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
        failure.of_write(|()| KeyOutcome::Stored)
    }
}

impl From<Failure<Claim>> for WriteError {
    fn from(failure: Failure<Claim>) -> Self {
        failure.of_write(KeyOutcome::Claimed)
    }
}

impl<A: Copy> Failure<A> {
    fn of_write(self, answered: impl Fn(A) -> KeyOutcome) -> WriteError {
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
            operation: self.operation,
            kind: self.reason.kind(),
            cause: GetError::from(self.reason).to_string().into(),
        })
    }
}
