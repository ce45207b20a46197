//! One part of a call: split by node, sent, and what got no answer sent again until the deadline.
//!
//! Every node's share goes its own way: one that has to be sent again, or that waits for a newer map, holds up no other. What was
//! refused is split anew by the newest map, so it does not matter how ranges have moved in the meantime.
//!
//! **A claim that is sent again.** All sendings of a claim have its operation id and, range by range, the same keys in the same
//! order, so a node that remembers one of them gives the others its answers; only the last sending's are read, as the ones before
//! have been given up. A sending that comes after its repeat was answered and forgotten would be taken for a new claim. But by
//! then its `not_after` has passed: the repeat is not sent before. A caller that repeats an operation itself does not wait like
//! that, and a node that nothing was heard of yet may have a slower clock than it was thought to have; there it is the nodes'
//! memory that must outlast a sending, minutes against [`CLAIM_VALID_MAX`] and the difference of two clocks.

mod outcome;
mod progress;
mod receiver;

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use keydb_core::{Expiry, Fingerprint};
use tokio::time::{Instant, sleep_until, timeout_at};

use self::receiver::All;
pub(crate) use self::{progress::Progress, receiver::AnswerReceiver};
use crate::{
    ClientConfig, ErrorKind, backoff,
    call::{Answer, Deadline, Failure, Kind},
    client::Shared,
    error::NotApplied,
    node::Node,
    request::{Reply, RequestFailure, exchange},
    routing::MapVersion,
    split::{Share, split},
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
    let progress = run(shared, kind, batch, expiries, deadline, &mut all).await;
    let Some(reason) = all.failed else {
        return Ok(all.answers);
    };
    let answers = all.answers.into_iter().enumerate();
    Err(Failure {
        reason,
        outcomes: answers
            .map(|(position, answer)| progress.outcome(position, answer))
            .collect(),
    })
}

/// Runs a part whose `receiver` is told the answers as they come, and of every other key why it has none. Returns what is known of
/// it at its end.
pub(crate) async fn run(
    shared: &Shared,
    kind: Kind,
    batch: &[Fingerprint],
    expiries: &[Expiry],
    deadline: Deadline,
    receiver: &mut impl AnswerReceiver,
) -> Progress {
    let part = Part {
        shared,
        kind,
        batch,
        expiries,
        deadline,
        progress: Progress::new(batch.len()),
    };
    if let Err(reason) = part.run(receiver).await {
        let all: Vec<u32> = (0..batch.len() as u32).collect();
        receiver.failed(&all, reason, &part.progress);
    }
    part.progress
}

struct Part<'a> {
    shared: &'a Shared,
    kind: Kind,
    batch: &'a [Fingerprint],
    /// By position, or empty.
    expiries: &'a [Expiry],
    deadline: Deadline,
    progress: Progress,
}

/// Something that a part waits for.
enum Step {
    Send(Sending),
    /// Following the map: `node` goes by a newer one than the request did.
    Follow {
        keys: Retry,
        node: Arc<Node>,
        routed_by: MapVersion,
        known_to_node: MapVersion,
    },
    /// A pause before trying again.
    Pause(Retry),
}

/// A request to one node.
struct Sending {
    share: Share,
    node: Arc<Node>,
    routed_by: MapVersion,
    retries: u32,
}

/// Keys that have to be sent again.
struct Retry {
    positions: Vec<u32>,
    /// How many retries these keys have had.
    retries: u32,
    error: (ErrorKind, Arc<str>),
    /// Until then a node may still come by the sending that failed.
    not_before: Option<Instant>,
}

/// How long a node may take to come by a claim, whatever the call's deadline is.
///
/// A node that came by it after it has answered the repeat, and forgotten about it, would take it for a new operation, and
/// remember that its keys were there. So a sending is valid for a share of the call's time only, and a repeat waits until the
/// sending before it is not valid any more.
fn claim_valid_for(config: &ClientConfig, call_timeout: Duration) -> Duration {
    (call_timeout / config.retry_count.unwrap_or(3).saturating_add(1))
        .clamp(CLAIM_VALID_MIN, CLAIM_VALID_MAX)
}

/// Longer than an answer is on its way, by which a node's clock is known too early.
const CLAIM_VALID_MIN: Duration = Duration::from_millis(250);
/// More than what the clocks of a cluster's nodes may differ by: a node that nothing has been heard of yet is given another's.
const CLAIM_VALID_MAX: Duration = Duration::from_millis(2500);

/// How a step ended.
enum Stepped {
    Sent(Sending, Result<Reply, Failed>),
    Ready(Retry),
    GivenUp(Retry),
}

/// A request that failed as a whole.
struct Failed {
    request_failure: RequestFailure,
    /// When the sending was valid no longer.
    valid_until: Instant,
}

/// What earlier sendings leave to say in later ones.
struct State {
    /// By position: after how many sendings nobody knows whether they were applied. Empty as long as that is 0 for all.
    uncertain_sendings: Vec<u32>,
}

impl State {
    fn uncertain_sendings(&self, positions: &[u32]) -> u32 {
        if self.uncertain_sendings.is_empty() {
            return 0;
        }
        let of_each = positions
            .iter()
            .map(|position| self.uncertain_sendings[*position as usize]);
        of_each.max().unwrap_or(0)
    }
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
        let mut state = State {
            uncertain_sendings: Vec::new(),
        };
        let mut steps = FuturesUnordered::new();
        for sending in self.route(None, 0, &state) {
            steps.push(self.step(Step::Send(sending)));
        }
        while let Some(stepped) = steps.next().await {
            match stepped {
                Stepped::Sent(sending, Ok(reply)) => {
                    for step in self.take_in(sending, reply, &mut state, receiver) {
                        steps.push(self.step(step));
                    }
                }
                Stepped::Sent(sending, Err(failed)) => {
                    if let Some(step) = self.failed(sending, failed, &mut state, receiver) {
                        steps.push(self.step(step));
                    }
                }
                Stepped::Ready(retry) => {
                    let keys = retry.positions.len();
                    self.shared.observe(|it| it.retry(retry.error.0, keys));
                    for sending in self.route(Some(&retry.positions), retry.retries, &state) {
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

    /// Splits keys by the newest map.
    fn route(
        &self,
        positions: Option<&[u32]>,
        retries: u32,
        state: &State,
    ) -> impl Iterator<Item = Sending> {
        let routing = self.shared.router.current();
        let attempts_before = self.kind.attempts_before();
        let mut shares = split(&routing.table, self.batch, positions);
        for share in &mut shares {
            let mut rest = share.positions.as_slice();
            for range in &mut share.ranges {
                let (of_range, others) = rest.split_at(range.key_count as usize);
                range.attempt = attempts_before + state.uncertain_sendings(of_range);
                rest = others;
            }
        }
        shares.into_iter().map(move |share| Sending {
            node: Arc::clone(routing.node(share.node)),
            routed_by: routing.map.version(),
            share,
            retries,
        })
    }

    async fn step(&self, step: Step) -> Stepped {
        match step {
            Step::Send(sending) => {
                let result = self.send(&sending).await;
                Stepped::Sent(sending, result)
            }
            Step::Follow {
                keys,
                node,
                routed_by,
                known_to_node,
            } => {
                let router = &self.shared.router;
                if router.version() <= routed_by {
                    let round = router.request_version(&node, known_to_node);
                    router.finished(round).await;
                }
                if router.version() > routed_by {
                    Stepped::Ready(keys)
                } else {
                    self.pause(keys).await
                }
            }
            Step::Pause(keys) => self.pause(keys).await,
        }
    }

    async fn pause(&self, keys: Retry) -> Stepped {
        let config = &self.shared.config;
        if config.retry_count.is_some_and(|max| keys.retries >= max) {
            return Stepped::GivenUp(keys);
        }
        let random = keydb_core::random::u64();
        let pause = backoff::delay(config.retry_delay, keys.retries, random);
        let until = Instant::now() + pause;
        sleep_until(
            keys.not_before
                .map_or(until, |earliest| until.max(earliest)),
        )
        .await;
        Stepped::Ready(Retry {
            retries: keys.retries + 1,
            ..keys
        })
    }

    /// When the next sending is valid no longer.
    fn valid_until(&self) -> Instant {
        match self.kind {
            Kind::Claim { .. } => {
                let valid_for = claim_valid_for(&self.shared.config, self.deadline.timeout);
                self.deadline.at.min(Instant::now() + valid_for)
            }
            // Whenever these are applied, they do no harm.
            Kind::Get | Kind::Put { .. } | Kind::PutEach | Kind::Recall { .. } => self.deadline.at,
        }
    }

    async fn send(&self, sending: &Sending) -> Result<Reply, Failed> {
        let node = &sending.node;
        let _permit = node
            .in_flight
            .acquire()
            .await
            .expect("this semaphore is never closed");
        let valid_until = self.valid_until();
        // From here on the request may be applied, whatever becomes of this future.
        self.progress.sent(&sending.share.positions);
        self.progress.request_begins(node);
        let result = exchange(
            self.shared,
            self.kind,
            node,
            &sending.share,
            self.expiries,
            sending.routed_by,
            node.clock().at(valid_until),
        )
        .await;
        self.progress.request_ends(node);
        result.map_err(|request_failure| Failed {
            request_failure,
            valid_until,
        })
    }
}
