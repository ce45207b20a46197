//! One part of a call: split by node, sent, and what got no answer sent again until the deadline.
//!
//! Every node's share goes its own way: one that has to be sent again, or that waits for a newer map, holds up no other. What was
//! refused is split anew by who is asked for each range by then, so it does not matter how ranges have moved in the meantime. A range
//! that is being handed over is sent again within milliseconds; that is neither a retry nor an error.
//!
//! **A claim that is sent again.** All sendings of a claim have its operation id and, range by range, the same keys in the same
//! order, so a node that remembers one of them gives the others its answers; only the last sending's are read, as the ones before
//! have been given up. A sending that comes after its repeat was answered and forgotten would be taken for a new claim. But by
//! then its `not_after` has passed: the repeat is not sent before. A caller that repeats an operation itself does not wait like
//! that (where its claim travelled with others, its repeat does), and a node that nothing was heard of yet may have a slower clock than it was thought to have; there it is the nodes'
//! memory that must outlast a sending, minutes against [`CLAIM_VALID_MAX`](step::CLAIM_VALID_MAX) and the difference of two
//! clocks.

mod progress;
mod receiver;
mod replies;
mod step;

use std::sync::Arc;

use futures_util::{StreamExt, stream::FuturesUnordered};
use keydb_core::{Expiry, Fingerprint};
use tokio::time::{Instant, timeout_at};

pub(crate) use self::{progress::PartProgress, receiver::AnswerReceiver};
use self::{
    receiver::All,
    step::{Part, Retry, Step, Stepped, UncertainSendings},
};
use crate::{
    call::{
        hand_over::HandOver,
        kind::Kind,
        outcome::{Answer, Failure},
        request::Sending,
    },
    cluster::split,
    error::NotApplied,
    shared::{Deadline, Shared},
};

/// Runs a part, whose positions fit 32 bits, to its end; the answers are in the order of `batch`, and so are `expiries`, where
/// keys have their own. What one node refuses, or never answers, changes nothing for the keys of the others.
pub(crate) async fn run_part<A: Answer>(
    shared: &Shared,
    kind: Kind,
    batch: &[Fingerprint],
    expiries: &[Expiry],
    deadline: Deadline,
) -> Result<Vec<A>, Failure<A>> {
    let mut all = All {
        answers: vec![A::from_bits(false, false); batch.len()],
        failed: None,
    };
    let progress = run_part_for(&mut all, shared, kind, batch, expiries, deadline).await;
    let Some(reason) = all.failed else {
        return Ok(all.answers);
    };
    let answers = all.answers.into_iter().enumerate();
    let outcomes = answers.map(|(position, answer)| progress.outcome(position, answer));
    Err(Failure::new(reason, outcomes.collect()))
}

/// Runs a part whose `receiver` is told the answers as they come, and of every other key why it has none. Returns what is known of
/// it at its end.
pub(crate) async fn run_part_for(
    receiver: &mut impl AnswerReceiver,
    shared: &Shared,
    kind: Kind,
    batch: &[Fingerprint],
    expiries: &[Expiry],
    deadline: Deadline,
) -> PartProgress {
    let part = Part {
        shared,
        kind,
        batch,
        expiries,
        deadline,
        progress: PartProgress::new(batch.len()),
    };
    if let Err(reason) = part.run(receiver).await {
        for (range, waited) in part.progress.still_waiting() {
            shared.counters.waited(range, waited);
        }
        let all: Vec<u32> = (0..batch.len() as u32).collect();
        receiver.failed(&all, reason, &part.progress);
    }
    part.progress
}

impl Part<'_> {
    /// Works on the part until every key has its answer or none, the time is up, or the client is closed.
    async fn run(&self, receiver: &mut impl AnswerReceiver) -> Result<(), NotApplied> {
        // Polled at least once by the timeout, the part would be sent however late it is.
        let in_time = async {
            match Instant::now() < self.deadline.at {
                true => timeout_at(self.deadline.at, self.work(receiver)).await.ok(),
                false => None,
            }
        };
        match self.shared.unless_closed(in_time).await {
            Some(Some(())) => Ok(()),
            Some(None) => {
                let (kind, waiting_for) = self.progress.waiting_for();
                Err(NotApplied::DeadlineExceeded {
                    kind,
                    timeout: self.deadline.timeout,
                    waiting_for: waiting_for.into(),
                })
            }
            None => Err(NotApplied::Closed),
        }
    }

    async fn work(&self, receiver: &mut impl AnswerReceiver) {
        let mut uncertain = UncertainSendings::default();
        let mut steps = FuturesUnordered::new();
        for sending in self.route(None, &uncertain) {
            steps.push(self.step(Step::Send(sending)));
        }
        while let Some(stepped) = steps.next().await {
            match stepped {
                Stepped::Sent(sending, Ok(reply)) => {
                    for step in self.take_in(sending, reply, &mut uncertain, receiver) {
                        steps.push(self.step(step));
                    }
                }
                Stepped::Sent(sending, Err(failed)) => {
                    if let Some(step) = self.failed(sending, failed, &mut uncertain, receiver) {
                        steps.push(self.step(step));
                    }
                }
                Stepped::Ready(retry) => {
                    if retry.hand_over == HandOver::NONE {
                        let keys = retry.positions.len();
                        self.shared.observe(|it| it.retry(retry.error.0, keys));
                    }
                    for sending in self.route(Some(&retry), &uncertain) {
                        steps.push(self.step(Step::Send(sending)));
                    }
                }
                Stepped::GivenUp(retry) => {
                    let (kind, last_error) = retry.error;
                    let reason = NotApplied::Unavailable {
                        kind,
                        attempts: retry.retries + 1,
                        last_error,
                    };
                    receiver.failed(&retry.positions, reason, &self.progress);
                }
            }
        }
    }

    /// Splits keys, all of the part at first, by who is asked for their ranges now. All keys that the part has of a range stay
    /// together, in its order.
    fn route(
        &self,
        retry: Option<&Retry>,
        uncertain: &UncertainSendings,
    ) -> impl Iterator<Item = Sending> {
        let routing = self.shared.router.current();
        let attempts_before = self.kind.attempts_before();
        let positions = retry.map(|retry| retry.positions.as_slice());
        let (retries, hand_over) =
            retry.map_or((0, HandOver::NONE), |it| (it.retries, it.hand_over));
        let mut shares = split(&routing.table, self.batch, positions);
        for share in &mut shares {
            let mut rest = share.positions.as_slice();
            for range in &mut share.ranges {
                let (of_range, others) = rest.split_at(range.key_count as usize);
                range.attempt = attempts_before + uncertain.most(of_range);
                rest = others;
            }
        }
        shares.into_iter().map(move |share| Sending {
            node: Arc::clone(routing.node(share.node)),
            routed_by: routing.map.version(),
            share,
            retries,
            hand_over,
        })
    }
}
