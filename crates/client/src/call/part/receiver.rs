//! Where a part's answers go: to one caller, or to many whose keys travel together.

use super::progress::PartProgress;
use crate::{call::outcome::Answer, error::NotApplied};

/// Takes what becomes of a part's keys, by their positions.
pub(crate) trait AnswerReceiver: Send {
    type Answer: Answer;

    /// These keys have answers. Equal keys come together, in the order of the part.
    fn answered(&mut self, positions: &[u32], answers: impl Iterator<Item = Self::Answer> + Clone);

    /// These keys will not get an answer.
    fn failed(&mut self, positions: &[u32], reason: NotApplied, progress: &PartProgress);

    /// Keys wait for a hand-over, which nobody else need wait for.
    fn waits(&mut self) {}

    /// A node has refused all these keys together, as there is no room for those of them that are new. Whether the receiver takes
    /// them back, so that the part has no more to do with them.
    fn takes_back(&mut self, _: &[u32], _: &NotApplied, _: &PartProgress) -> bool {
        false
    }
}

/// All answers for one caller.
#[derive(Debug)]
pub(super) struct All<A> {
    pub(super) answers: Vec<A>,
    /// Why keys have none, the first time that it happened.
    pub(super) failed: Option<NotApplied>,
}

impl<A: Answer> AnswerReceiver for All<A> {
    type Answer = A;

    #[inline]
    fn answered(&mut self, positions: &[u32], answers: impl Iterator<Item = A> + Clone) {
        for (position, answer) in positions.iter().zip(answers) {
            self.answers[*position as usize] = answer;
        }
    }

    fn failed(&mut self, _: &[u32], reason: NotApplied, _: &PartProgress) {
        self.failed.get_or_insert(reason);
    }
}
