//! The callers of a batch's keys.

use std::{collections::HashMap, hash::BuildHasherDefault, sync::Arc, time::Duration};

use keydb_core::Fingerprint;
use tokio::{sync::oneshot, time::timeout};

use super::{Single, Told, Waiting};
use crate::{
    call::FingerprintHasher,
    client::Shared,
    error::NotApplied,
    part::{AnswerReceiver, Progress},
};

/// How long callers of equal keys wait until a `First` has been heard; its caller has gone away, or gets no turn. Shorter than
/// [`GRACE`](super::GRACE), or they would hear nothing themselves.
const HEARD_WITHIN: Duration = Duration::from_secs(1);

/// Each caller until it is told, by position.
#[derive(Debug)]
pub(super) struct Callers<A> {
    waiting: Vec<Option<Waiting<A>>>,
    shared: Arc<Shared>,
}

/// The caller of a `First`, and those of equal keys behind it.
struct First<A> {
    caller: Waiting<A>,
    answer: A,
    others: Vec<(Waiting<A>, A)>,
}

impl<A> Callers<A> {
    pub(super) fn new(batch: Vec<Waiting<A>>, shared: Arc<Shared>) -> Self {
        Self {
            waiting: batch.into_iter().map(Some).collect(),
            shared,
        }
    }
}

impl<A: Single> Callers<A> {
    /// Tells a `First`, and the others when it has been heard.
    fn tell_first(&self, first: First<A>) {
        let (answer, others) = (Ok(first.answer), first.others);
        if others.is_empty() {
            first.caller.tell(answer);
            return;
        }
        let (heard, is_heard) = oneshot::channel();
        // If its caller has gone away, `heard` goes as well.
        let _ = first.caller.reply.send(Told {
            result: answer,
            heard: Some(heard),
        });
        let tell = async move {
            let is_heard = matches!(timeout(HEARD_WITHIN, is_heard).await, Ok(Ok(())));
            for (waiting, answer) in others {
                waiting.tell(Ok(match is_heard {
                    true => answer,
                    false => answer.when_first_is_unheard(),
                }));
            }
        };
        self.shared.tasks.spawn_on(tell, &self.shared.runtime);
    }
}

impl<A: Single> AnswerReceiver for Callers<A> {
    type Answer = A;

    fn answered(&mut self, positions: &[u32], answers: impl Iterator<Item = A> + Clone) {
        // Equal keys come together, so without a `Duplicate` no `First` has one behind it.
        let equal_keys =
            answers.clone().any(Single::follows_first) && answers.clone().any(Single::is_first);
        let mut firsts: HashMap<Fingerprint, First<A>, BuildHasherDefault<FingerprintHasher>> =
            HashMap::default();
        for (position, answer) in positions.iter().zip(answers) {
            let Some(waiting) = self.waiting[*position as usize].take() else {
                continue;
            };
            if equal_keys && answer.is_first() {
                let first = First {
                    caller: waiting,
                    answer,
                    others: Vec::new(),
                };
                firsts.insert(first.caller.key, first);
            } else if answer.follows_first()
                && let Some(first) = firsts.get_mut(&waiting.key)
            {
                first.others.push((waiting, answer));
            } else {
                // Who has gone away needs no answer.
                waiting.tell(Ok(answer));
            }
        }
        for first in firsts.into_values() {
            self.tell_first(first);
        }
    }

    fn failed(
        &mut self,
        positions: &[u32],
        reason: NotApplied,
        progress: &Progress,
    ) -> Result<(), NotApplied> {
        for position in positions {
            if let Some(waiting) = self.waiting[*position as usize].take() {
                let failure = progress.failure_of_key(*position, reason.clone());
                // Who has gone away needs no error.
                waiting.tell(Err(Box::new(failure)));
            }
        }
        Ok(())
    }
}
