//! Where a part's answers go: to one caller, who gets all of them or none, or to a caller for each key.

use super::Progress;
use crate::{call::Answer, error::NotApplied};

/// Takes what becomes of a part's keys, by their positions.
pub(crate) trait AnswerReceiver: Send {
    type Answer: Answer;

    /// These keys have answers. Equal keys come together, in the order of the part.
    fn answered(&mut self, positions: &[u32], answers: impl Iterator<Item = Self::Answer> + Clone);

    /// These keys, as far as they have no answer, will not get one.
    ///
    /// # Errors
    /// The reason, when the rest of the part is of no use then.
    fn failed(
        &mut self,
        positions: &[u32],
        reason: NotApplied,
        progress: &Progress,
    ) -> Result<(), NotApplied>;
}

/// All answers for one caller.
#[derive(Debug)]
pub(super) struct All<A>(pub(super) Vec<A>);

impl<A: Answer> AnswerReceiver for All<A> {
    type Answer = A;

    #[inline]
    fn answered(&mut self, positions: &[u32], answers: impl Iterator<Item = A> + Clone) {
        for (position, answer) in positions.iter().zip(answers) {
            self.0[*position as usize] = answer;
        }
    }

    fn failed(&mut self, _: &[u32], reason: NotApplied, _: &Progress) -> Result<(), NotApplied> {
        Err(reason)
    }
}
