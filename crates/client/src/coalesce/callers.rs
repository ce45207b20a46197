//! The callers of a batch's keys.

use keydb_core::Fingerprint;

use super::{Single, Waiting};
use crate::{
    error::NotApplied,
    part::{Progress, Sink},
};

/// Each caller until it is told, by position.
#[derive(Debug)]
pub(super) struct Callers<A>(Vec<Option<Waiting<A>>>);

impl<A> Callers<A> {
    pub(super) fn new(batch: Vec<Waiting<A>>) -> Self {
        Self(batch.into_iter().map(Some).collect())
    }

    fn take(&mut self, position: u32) -> Option<Waiting<A>> {
        self.0[position as usize].take()
    }
}

impl<A: Single> Sink for Callers<A> {
    type Answer = A;

    fn answered(&mut self, positions: &[u32], answers: impl Iterator<Item = A>) {
        // Keys whose First nobody heard; nearly always empty.
        let mut unheard: Vec<Fingerprint> = Vec::new();
        for (position, answer) in positions.iter().zip(answers) {
            let Some(waiting) = self.take(*position) else {
                continue;
            };
            let answer = if !unheard.is_empty() && unheard.contains(&waiting.key) {
                answer.when_first_is_unheard()
            } else {
                answer
            };
            if waiting.reply.send(Ok(answer)).is_err() && answer.is_first() {
                unheard.push(waiting.key);
            }
        }
    }

    fn failed(
        &mut self,
        positions: &[u32],
        reason: NotApplied,
        progress: &Progress,
    ) -> Result<(), NotApplied> {
        for position in positions {
            if let Some(waiting) = self.take(*position) {
                let failure = progress.failure_of_key(*position, reason.clone());
                // An error means that the caller has gone away; it needs no error.
                let _ = waiting.reply.send(Err(Box::new(failure)));
            }
        }
        Ok(())
    }
}
