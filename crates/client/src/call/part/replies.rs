//! What the end of a request means for its keys: answered, to be sent again, or given up.

use std::{collections::HashMap, sync::Arc};

use keydb_core::RangeId;
use keydb_proto::shard::RangeKeys;

use super::{
    receiver::AnswerReceiver,
    step::{Failed, Part, Retry, Step, UncertainSendings},
};
use crate::{
    call::{
        hand_over::HandOver,
        outcome::Answer,
        request::{Moving, Reply, RequestFailure, Sending},
    },
    cluster::{Holder, Redirect},
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
            for range in &sending.share.ranges {
                self.waits_no_more(&sending, range);
            }
            self.answered(&sending.share.positions, &reply, 0, receiver);
            return Vec::new();
        }

        let of_range = |refusal| RequestFailure::of_range(refusal, &sending.node);
        let refused: HashMap<u32, RequestFailure> = reply
            .refused
            .iter()
            .map(|refusal| (refusal.range_id, of_range(refusal)))
            .collect();
        let redirected = self.redirect(&sending, |range| {
            match refused.get(&range.range_id)?.moving? {
                Moving::NotOwner(Some(named)) => Some(Some(named)),
                Moving::NotOwner(None) | Moving::Held => None,
            }
        });
        let counters = &self.shared.counters;
        redirected.into_iter().for_each(|it| counters.switched(it));
        let routing = self.shared.router.current();
        let is_elsewhere = |range: &RangeKeys, positions: &[u32]| {
            let holder = routing.holder_of(self.top(positions));
            holder != asked(&sending, range)
        };
        // The node has answered, so it does not come by this sending again: nothing to wait for before the next.
        let add = |keys: &mut Option<Retry>, request_failure: &RequestFailure, more: &[u32]| {
            keys.get_or_insert_with(|| retry_after(request_failure, sending.retries))
                .positions
                .extend_from_slice(more);
        };
        let mut next = 0;
        let (mut switched, mut held, mut follow, mut later) = (None, None, None, None);
        for (range, positions) in sending.share.positions_by_range() {
            let first = next;
            next += positions.len();
            let Some(request_failure) = refused.get(&range.range_id) else {
                self.waits_no_more(&sending, range);
                self.answered(positions, &reply, first, receiver);
                continue;
            };
            self.account(request_failure, positions, range.attempt, uncertain);
            let is_held = matches!(request_failure.moving, Some(Moving::Held));
            let is_not_owner = matches!(request_failure.moving, Some(Moving::NotOwner(_)));
            let goes_elsewhere = is_not_owner && is_elsewhere(range, positions);
            if is_held || goes_elsewhere {
                if is_held {
                    counters.held(RangeId(range.range_id));
                }
                let message = &request_failure.message;
                self.progress.waits(RangeId(range.range_id), message);
                // Nodes that name each other know more in a moment.
                let at_once = goes_elsewhere && !sending.hand_over.switched;
                let again = if at_once { &mut switched } else { &mut held };
                add(again, request_failure, positions);
                if !at_once {
                    receiver.waits();
                }
                continue;
            }
            self.has_failed(&sending, range, request_failure);
            if request_failure.permanent {
                receiver.failed(positions, request_failure.refused(), &self.progress);
                continue;
            }
            let retry = match is_not_owner && knows_newer {
                true => &mut follow,
                false => &mut later,
            };
            add(retry, request_failure, positions);
        }
        let again = |keys: Retry, (hand_over, pause)| {
            let keys = Retry { hand_over, ..keys };
            Step::Again(ordered(keys), pause)
        };
        let switched = switched.map(|keys| again(keys, sending.hand_over.switched()));
        let held = held.map(|keys| again(keys, sending.hand_over.paused()));
        let follow = follow.map(|keys| Step::Follow {
            keys: ordered(keys),
            node: sending.node,
            routed_by: sending.routed_by,
            known_to_node: reply.map_version,
        });
        let pause = later.map(|keys| Step::Pause(ordered(keys)));
        let steps = [switched, held, follow, pause];
        steps.into_iter().flatten().collect()
    }

    /// Has ranges of a sending asked for elsewhere, where `to` says so: see [`Redirect::to`].
    fn redirect(
        &self,
        sending: &Sending,
        to: impl Fn(&RangeKeys) -> Option<Option<Holder>>,
    ) -> Vec<RangeId> {
        let redirect = |(range, positions): (&RangeKeys, &[u32])| {
            Some(Redirect {
                range: RangeId(range.range_id),
                top: self.top(positions),
                asked: asked(sending, range),
                to: to(range)?,
            })
        };
        let redirects = sending.share.positions_by_range().filter_map(redirect);
        let redirects: Vec<Redirect> = redirects.collect();
        self.shared.router.redirect(&redirects)
    }

    /// Of a key of the range whose keys these are.
    fn top(&self, positions: &[u32]) -> u64 {
        self.batch[positions[0] as usize].top()
    }

    /// Keys of a range have got an answer, or an error, so they do not wait for its hand-over.
    fn waits_no_more(&self, sending: &Sending, range: &RangeKeys) {
        let id = RangeId(range.range_id);
        if sending.hand_over != HandOver::NONE
            && let Some(waited) = self.progress.waits_no_more(id)
        {
            self.shared.counters.waited(id, waited);
        }
    }

    /// Notes an error, which a hand-over is not.
    fn has_failed(&self, sending: &Sending, range: &RangeKeys, request_failure: &RequestFailure) {
        self.waits_no_more(sending, range);
        self.progress
            .error(request_failure.kind, &request_failure.message);
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
            self.has_failed(&sending, range, &request_failure);
        }
        if request_failure.is_of_node() {
            self.redirect(&sending, |_| Some(None));
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
        hand_over: HandOver::NONE,
        error: (request_failure.kind, Arc::clone(&request_failure.message)),
        not_before: None,
    }
}

/// Who was asked for a range.
fn asked(sending: &Sending, range: &RangeKeys) -> Holder {
    Holder {
        node: sending.node.id(),
        generation: range.generation,
    }
}

/// Equal keys keep their order however they are split next.
fn ordered(mut keys: Retry) -> Retry {
    keys.positions.sort_unstable();
    keys
}
