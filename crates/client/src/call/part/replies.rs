//! What the end of a request means for its keys: answered, to be sent again, or given up.

use std::{collections::HashMap, sync::Arc};

use super::{
    receiver::AnswerReceiver,
    step::{Failed, Part, Retry, Step, UncertainSendings},
};
use crate::{
    call::{
        outcome::Answer,
        request::{Reply, RequestFailure, Sending},
    },
    error::ErrorKind,
};

impl Part<'_> {
    /// Takes the answers out of a reply; what is left to do for the ranges that were refused.
    pub(super) fn take_in(
        &self,
        sending: Sending,
        reply: Reply,
        uncertain: &mut UncertainSendings,
        receiver: &mut impl AnswerReceiver,
    ) -> Vec<Step> {
        let knows_newer = reply.map_version > sending.routed_by;
        if knows_newer {
            self.shared
                .router
                .request_version(&sending.node, reply.map_version);
        }
        if reply.refused.is_empty() {
            self.answered(&sending.share.positions, &reply, 0, receiver);
            return Vec::new();
        }

        let of_range = |refusal| RequestFailure::of_range(refusal, &sending.node);
        let refused: HashMap<u32, RequestFailure> = reply
            .refused
            .iter()
            .map(|refusal| (refusal.range_id, of_range(refusal)))
            .collect();
        let mut next = 0;
        let (mut moved, mut later) = (None, None);
        for (range, positions) in sending.share.positions_by_range() {
            let first = next;
            next += positions.len();
            let Some(request_failure) = refused.get(&range.range_id) else {
                self.answered(positions, &reply, first, receiver);
                continue;
            };
            self.account(request_failure, positions, range.attempt, uncertain);
            if request_failure.permanent {
                receiver.failed(positions, request_failure.refused(), &self.progress);
                continue;
            }
            let retry = match request_failure.moved && knows_newer {
                true => &mut moved,
                false => &mut later,
            };
            // The node has answered, so it does not come by this sending again: nothing to wait for before the next.
            retry
                .get_or_insert_with(|| retry_after(request_failure, sending.retries))
                .positions
                .extend_from_slice(positions);
        }
        let follow = moved.map(|keys| Step::Follow {
            keys: ordered(keys),
            node: sending.node,
            routed_by: sending.routed_by,
            known_to_node: reply.map_version,
        });
        let pause = later.map(|keys| Step::Pause(ordered(keys)));
        follow.into_iter().chain(pause).collect()
    }

    /// Takes in the answers to keys, whose bits in the reply begin at `first`.
    fn answered<S: AnswerReceiver>(
        &self,
        positions: &[u32],
        reply: &Reply,
        first: usize,
        receiver: &mut S,
    ) {
        let answers = (first..first + positions.len())
            .map(|at| S::Answer::from_bits(reply.first.get(at), reply.unknown.get(at)));
        self.progress.answered(positions);
        receiver.answered(positions, answers);
    }

    /// Notes what a failed sending means for the keys of a range, which it carried as this attempt.
    fn account(
        &self,
        request_failure: &RequestFailure,
        positions: &[u32],
        attempt: u32,
        uncertain: &mut UncertainSendings,
    ) {
        tracing::debug!(
            keys = positions.len(),
            maybe_applied = request_failure.maybe_applied,
            "no answer: {}",
            request_failure.message
        );
        self.progress
            .error(request_failure.kind, &request_failure.message);
        if request_failure.maybe_applied {
            uncertain.add(positions, self.batch.len());
        } else if attempt == self.kind.attempts_before() {
            // No sending before this one left them uncertain.
            self.progress.not_applied(positions);
        }
    }

    /// What to do about a request that failed as a whole.
    pub(super) fn failed(
        &self,
        sending: Sending,
        failed: Failed,
        uncertain: &mut UncertainSendings,
        receiver: &mut impl AnswerReceiver,
    ) -> Option<Step> {
        let request_failure = failed.request_failure;
        for (range, positions) in sending.share.positions_by_range() {
            self.account(&request_failure, positions, range.attempt, uncertain);
        }
        let positions = sending.share.positions;
        let refused = request_failure.refused();
        let no_room = matches!(refused.kind(), ErrorKind::MemoryLimit | ErrorKind::DiskFull);
        if no_room && receiver.takes_back(&positions, &refused, &self.progress) {
            return None;
        }
        if request_failure.permanent {
            receiver.failed(&positions, refused, &self.progress);
            return None;
        }
        // The node may have left, moved, or have another clock than we thought: look around while waiting.
        self.shared.router.request(&sending.node);
        Some(Step::Pause(ordered(Retry {
            positions,
            not_before: (request_failure.maybe_applied && self.kind.is_claim())
                .then_some(failed.valid_until),
            ..retry_after(&request_failure, sending.retries)
        })))
    }
}

/// Of no keys yet, after a request that had so many retries before.
fn retry_after(request_failure: &RequestFailure, retries: u32) -> Retry {
    Retry {
        positions: Vec::new(),
        retries,
        error: (request_failure.kind, Arc::clone(&request_failure.message)),
        not_before: None,
    }
}

/// Equal keys keep their order however they are split next.
fn ordered(mut keys: Retry) -> Retry {
    keys.positions.sort_unstable();
    keys
}
