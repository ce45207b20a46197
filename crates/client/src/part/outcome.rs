//! What the end of a request means for its keys: answered, to be sent again, or given up.

use std::{collections::HashMap, ops::Range, sync::Arc};

use super::{AnswerReceiver, Failed, Part, Retry, Sending, State, Step};
use crate::{
    call::{Answer, Kind},
    error::NotApplied,
    request::{Reply, RequestFailure},
};

impl Part<'_> {
    /// Takes the answers out of a reply; what is left to do for the ranges that were refused.
    pub(super) fn take_in<S: AnswerReceiver>(
        &self,
        sending: Sending,
        reply: Reply,
        state: &mut State,
        receiver: &mut S,
    ) -> Vec<Step> {
        if reply.map_version > sending.routed_by {
            self.shared
                .router
                .request_version(&sending.node, reply.map_version);
        }
        let positions = &sending.share.positions;
        let mut answered = |at: Range<usize>| {
            let bits = at.clone();
            let answers =
                bits.map(|at| S::Answer::from_bits(reply.first.get(at), reply.unknown.get(at)));
            self.progress.answered(&positions[at.clone()]);
            receiver.answered(&positions[at], answers);
        };
        if reply.refused.is_empty() {
            answered(0..positions.len());
            return Vec::new();
        }

        let refused: HashMap<u32, RequestFailure> = reply
            .refused
            .iter()
            .map(|refusal| {
                (
                    refusal.range_id,
                    RequestFailure::of_range(refusal, &sending.node),
                )
            })
            .collect();
        let mut at = 0;
        let (mut moved, mut later) = (None, None);
        let mut permanent = Vec::new();
        for range in &sending.share.ranges {
            let of_range = at..at + range.key_count as usize;
            at = of_range.end;
            let Some(request_failure) = refused.get(&range.range_id) else {
                answered(of_range);
                continue;
            };
            let range_positions = &positions[of_range];
            let fresh = range.attempt == self.kind.attempts_before();
            self.account(request_failure, range_positions, fresh, state);
            if request_failure.permanent {
                permanent.push((range_positions, request_failure));
                continue;
            }
            let follow = request_failure.moved && reply.map_version > sending.routed_by;
            let retry = if follow { &mut moved } else { &mut later };
            retry
                .get_or_insert_with(|| Retry {
                    positions: Vec::new(),
                    retries: sending.retries,
                    error: (request_failure.kind, Arc::clone(&request_failure.message)),
                    // The node has answered: it does not come by this sending again.
                    not_before: None,
                })
                .positions
                .extend_from_slice(range_positions);
        }
        for (range_positions, request_failure) in permanent {
            let reason = NotApplied::Refused {
                kind: request_failure.kind,
                message: Arc::clone(&request_failure.message),
            };
            receiver.failed(range_positions, reason, &self.progress);
        }
        let mut steps = Vec::new();
        if let Some(keys) = moved {
            steps.push(Step::Follow {
                keys: ordered(keys),
                node: sending.node,
                routed_by: sending.routed_by,
                known_to_node: reply.map_version,
            });
        }
        if let Some(keys) = later {
            steps.push(Step::Pause(ordered(keys)));
        }
        steps
    }

    /// Notes what a failed sending means for keys that it carried; `fresh` if this was the first that they are uncertain by.
    fn account(
        &self,
        request_failure: &RequestFailure,
        positions: &[u32],
        fresh: bool,
        state: &mut State,
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
            state.uncertain_sendings.resize(self.batch.len(), 0);
            for position in positions {
                state.uncertain_sendings[*position as usize] += 1;
            }
        } else if fresh {
            self.progress.not_applied(positions);
        }
    }

    /// What to do about a request that failed as a whole.
    pub(super) fn failed(
        &self,
        sending: Sending,
        failed: Failed,
        state: &mut State,
        receiver: &mut impl AnswerReceiver,
    ) -> Option<Step> {
        let request_failure = failed.request_failure;
        let before = self.kind.attempts_before();
        for (range, positions) in sending.share.positions_by_range() {
            self.account(&request_failure, positions, range.attempt == before, state);
        }
        if request_failure.permanent {
            let reason = NotApplied::Refused {
                kind: request_failure.kind,
                message: request_failure.message,
            };
            receiver.failed(&sending.share.positions, reason, &self.progress);
            return None;
        }
        // The node may have left, moved, or have another clock than we thought: look around while waiting.
        self.shared.router.request(&sending.node);
        Some(Step::Pause(ordered(Retry {
            positions: sending.share.positions,
            retries: sending.retries,
            error: (request_failure.kind, request_failure.message),
            not_before: (request_failure.maybe_applied && matches!(self.kind, Kind::Claim { .. }))
                .then_some(failed.valid_until),
        })))
    }
}

/// Equal keys keep their order however they are split next.
fn ordered(mut keys: Retry) -> Retry {
    keys.positions.sort_unstable();
    keys
}
