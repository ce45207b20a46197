//! What the caller of a small call is told.

use std::time::Duration;

use tokio::sync::watch;

use super::repeat::Travelled;
use crate::{
    call::{Failure, Outcome},
    error::NotApplied,
};

/// A batch ends by its callers' deadlines; whoever has heard nothing for this long after it never will.
pub(super) const GRACE: Duration = Duration::from_secs(2);
/// How long callers of equal keys wait until a `First` has been heard; its caller has gone away, or gets no turn. Shorter than
/// [`GRACE`], or they would hear nothing themselves.
pub(super) const HEARD_WITHIN: Duration = Duration::from_secs(1);

/// The answers to a call's keys, in their order.
#[derive(Debug)]
pub(crate) enum Answers<A> {
    /// To a single key.
    One(A),
    /// To any number of keys.
    Many(Vec<A>),
}

impl<A: Copy> Answers<A> {
    /// The answer to the first key.
    pub(crate) fn first(&self) -> A {
        match self {
            Self::One(answer) => *answer,
            Self::Many(answers) => answers[0],
        }
    }

    pub(crate) fn into_vec(self) -> Vec<A> {
        match self {
            Self::One(answer) => vec![answer],
            Self::Many(answers) => answers,
        }
    }
}

#[derive(Debug)]
pub(super) struct Told<A> {
    pub(super) result: Result<Answers<A>, Box<Failure<A>>>,
    /// Tells whoever waits for it that the caller has it. Unread, it is dropped with the rest.
    pub(super) heard: Option<watch::Sender<bool>>,
    /// Of a claim that may have to be repeated: how it travelled.
    pub(super) travelled: Option<Box<Travelled>>,
}

impl<A> Told<A> {
    /// What it was, to the caller who takes it.
    pub(super) fn hear(self) -> Heard<A> {
        if let Some(heard) = self.heard {
            heard.send_replace(true);
        }
        (self.result.map_err(|failure| *failure), self.travelled)
    }
}

impl<A: Copy> Told<A> {
    /// That `keys` keys have become this, without an answer.
    pub(super) fn failed(reason: NotApplied, outcome: Outcome<A>, keys: usize) -> Self {
        Self {
            result: Err(Box::new(Failure::new(reason, vec![outcome; keys]))),
            heard: None,
            travelled: None,
        }
    }
}

/// What a caller has taken.
pub(super) type Heard<A> = (Result<Answers<A>, Failure<A>>, Option<Box<Travelled>>);
