//! One part of a call: split by node, sent, and what got no answer sent again until the deadline.
//!
//! Every node's share goes its own way: one that has to be sent again, or that waits for a newer map, holds up no other. What was
//! refused is split anew by the newest map, so it does not matter how ranges have moved in the meantime.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use keydb_core::{Expiry, Fingerprint, NodeId};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::{
    ClientConfig, backoff,
    call::{Answer, Failure, Kind},
    client::Shared,
    error::NotApplied,
    node::Node,
    request::{Reply, Trouble, exchange},
    routing::MapVersion,
    split::{Share, split},
};

/// Runs a part, whose positions fit 32 bits, to its end; the answers are in the order of `batch`, and so are `expiries`, where
/// keys have their own.
pub(crate) async fn run_part<A: Answer>(
    shared: &Shared,
    kind: Kind,
    batch: &[Fingerprint],
    expiries: &[Expiry],
    deadline: Instant,
) -> Result<Vec<A>, Failure> {
    let part = Part {
        shared,
        kind,
        batch,
        expiries,
        deadline,
        progress: Progress::default(),
    };
    // Polled at least once by the timeout, the part would be sent however late it is.
    let in_time = async {
        match Instant::now() < deadline {
            true => timeout_at(deadline, part.answers()).await.ok(),
            false => None,
        }
    };
    let reason = match shared.unless_closed(in_time).await {
        Some(Some(Ok(answers))) => return Ok(answers),
        Some(Some(Err(reason))) => reason,
        Some(None) => NotApplied::DeadlineExceeded {
            timeout: shared.config.call_timeout,
            waiting_for: part.progress.waiting_for().into(),
        },
        None => NotApplied::Closed,
    };
    Err(Failure {
        reason,
        keys: batch.len(),
        answered: part.progress.answered.load(Relaxed),
        uncertain: part.progress.uncertain.load(Relaxed),
    })
}

/// What is known of a part whenever it ends.
#[derive(Debug, Default)]
struct Progress {
    /// Keys that nodes have answered for.
    answered: AtomicUsize,
    /// Other keys that were sent and not refused for certain.
    uncertain: AtomicUsize,
    talk: Mutex<Talk>,
}

#[derive(Debug, Default)]
struct Talk {
    /// Requests on their way, by node.
    sent: BTreeMap<NodeId, (usize, String)>,
    last_error: Option<Arc<str>>,
}

impl Progress {
    fn talk<T>(&self, with: impl FnOnce(&mut Talk) -> T) -> T {
        with(&mut self.talk.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What a call whose time is up was waiting for.
    fn waiting_for(&self) -> String {
        self.talk(|talk| {
            let mut text = match talk.sent.values().next() {
                Some(_) => {
                    let nodes: Vec<&str> =
                        talk.sent.values().map(|(_, node)| node.as_str()).collect();
                    format!("no answer from {}", nodes.join(", "))
                }
                None => "it was waiting to send a request".to_owned(),
            };
            if let Some(error) = &talk.last_error {
                text.push_str("; the last error: ");
                text.push_str(error);
            }
            text
        })
    }
}

struct Part<'a> {
    shared: &'a Shared,
    kind: Kind,
    batch: &'a [Fingerprint],
    /// By position, or empty.
    expiries: &'a [Expiry],
    deadline: Instant,
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
    error: Arc<str>,
    /// Until then a node may still come by the sending that failed.
    not_before: Option<Instant>,
}

/// How long a node may take to come by a claim, whatever the call's deadline is.
///
/// A claim that is sent again must not be overtaken by its repeat: a node that has answered the repeat, and forgotten about it,
/// would take the first sending for a new operation, and remember that its keys were there. So a sending is valid for a share of
/// the call's time only, and a repeat waits until the sending before it is not valid any more.
fn claim_valid_for(config: &ClientConfig) -> Duration {
    (config.call_timeout / config.retry_count.saturating_add(1))
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
    GivenUp(NotApplied),
}

/// A request that failed as a whole.
struct Failed {
    trouble: Trouble,
    /// When the sending was valid no longer.
    valid_until: Instant,
}

/// What the answers so far leave to do.
struct State<A> {
    answers: Vec<A>,
    /// By position: after how many sendings nobody knows whether they were applied. Empty as long as that is 0 for all.
    uncertain_sendings: Vec<u32>,
}

impl<A> State<A> {
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
    async fn answers<A: Answer>(&self) -> Result<Vec<A>, NotApplied> {
        let mut state = State {
            answers: vec![A::from_bits(false, false); self.batch.len()],
            uncertain_sendings: Vec::new(),
        };
        let mut steps = FuturesUnordered::new();
        for sending in self.route(None, 0, &state) {
            steps.push(self.step(Step::Send(sending)));
        }
        while let Some(stepped) = steps.next().await {
            match stepped {
                Stepped::Sent(sending, Ok(reply)) => {
                    for step in self.take_in(sending, reply, &mut state)? {
                        steps.push(self.step(step));
                    }
                }
                Stepped::Sent(sending, Err(failed)) => {
                    steps.push(self.step(self.failed(sending, failed, &mut state)?));
                }
                Stepped::Ready(retry) => {
                    for sending in self.route(Some(&retry.positions), retry.retries, &state) {
                        steps.push(self.step(Step::Send(sending)));
                    }
                }
                Stepped::GivenUp(reason) => return Err(reason),
            }
        }
        Ok(state.answers)
    }

    /// Splits keys by the newest map.
    fn route<A>(
        &self,
        positions: Option<&[u32]>,
        retries: u32,
        state: &State<A>,
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
        if keys.retries >= config.retry_count {
            return Stepped::GivenUp(NotApplied::Unavailable {
                attempts: keys.retries + 1,
                last_error: keys.error,
            });
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
                let valid_for = claim_valid_for(&self.shared.config);
                self.deadline.min(Instant::now() + valid_for)
            }
            // Whenever these are applied, they do no harm.
            Kind::Get | Kind::Put { .. } | Kind::PutEach => self.deadline,
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
        self.uncertain_add(self.newly_uncertain(&sending.share));
        self.progress.talk(|talk| {
            let entry = talk.sent.entry(node.id());
            entry.or_insert_with(|| (0, node.to_string())).0 += 1;
        });
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
        self.progress.talk(|talk| {
            if let Some((count, _)) = talk.sent.get_mut(&node.id()) {
                *count -= 1;
                if *count == 0 {
                    talk.sent.remove(&node.id());
                }
            }
        });
        result.map_err(|trouble| Failed {
            trouble,
            valid_until,
        })
    }

    /// How many of a share's keys count as uncertain through this sending, and did not before.
    fn newly_uncertain(&self, share: &Share) -> usize {
        let before = self.kind.attempts_before();
        let fresh = share.ranges.iter().filter(|range| range.attempt == before);
        fresh.map(|range| range.key_count as usize).sum()
    }

    fn uncertain_add(&self, keys: usize) {
        self.progress.uncertain.fetch_add(keys, Relaxed);
    }

    fn uncertain_sub(&self, keys: usize) {
        self.progress.uncertain.fetch_sub(keys, Relaxed);
    }

    /// Takes the answers out of a reply; what is left to do for the ranges that were refused.
    fn take_in<A: Answer>(
        &self,
        sending: Sending,
        reply: Reply,
        state: &mut State<A>,
    ) -> Result<Vec<Step>, NotApplied> {
        if reply.map_version > sending.routed_by {
            self.shared
                .router
                .request_version(&sending.node, reply.map_version);
        }
        let positions = &sending.share.positions;
        if reply.refused.is_empty() {
            for (at, position) in positions.iter().enumerate() {
                state.answers[*position as usize] =
                    A::from_bits(reply.first.get(at), reply.unknown.get(at));
            }
            self.answered(positions.len());
            return Ok(Vec::new());
        }

        let refused: HashMap<u32, Trouble> = reply
            .refused
            .iter()
            .map(|refusal| (refusal.range_id, Trouble::of_range(refusal, &sending.node)))
            .collect();
        let mut at = 0;
        let (mut moved, mut later) = (None, None);
        let mut permanent = None;
        for range in &sending.share.ranges {
            let of_range = at..at + range.key_count as usize;
            at = of_range.end;
            let Some(trouble) = refused.get(&range.range_id) else {
                for at in of_range.clone() {
                    state.answers[positions[at] as usize] =
                        A::from_bits(reply.first.get(at), reply.unknown.get(at));
                }
                self.answered(of_range.len());
                continue;
            };
            let range_positions = &positions[of_range];
            let fresh = range.attempt == self.kind.attempts_before();
            self.account(trouble, range_positions, fresh, state);
            if trouble.permanent {
                permanent = Some(Arc::clone(&trouble.message));
            }
            let follow = trouble.moved && reply.map_version > sending.routed_by;
            let retry = if follow { &mut moved } else { &mut later };
            retry
                .get_or_insert_with(|| Retry {
                    positions: Vec::new(),
                    retries: sending.retries,
                    error: Arc::clone(&trouble.message),
                    // The node has answered: it does not come by this sending again.
                    not_before: None,
                })
                .positions
                .extend_from_slice(range_positions);
        }
        if let Some(message) = permanent {
            return Err(NotApplied::Refused { message });
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
        Ok(steps)
    }

    fn answered(&self, keys: usize) {
        self.uncertain_sub(keys);
        self.progress.answered.fetch_add(keys, Relaxed);
    }

    /// Notes what a failed sending means for keys that it carried; `fresh` if this was the first that they are uncertain by.
    fn account<A>(&self, trouble: &Trouble, positions: &[u32], fresh: bool, state: &mut State<A>) {
        tracing::debug!(
            keys = positions.len(),
            maybe_applied = trouble.maybe_applied,
            "no answer: {}",
            trouble.message
        );
        self.progress
            .talk(|talk| talk.last_error = Some(Arc::clone(&trouble.message)));
        if trouble.maybe_applied {
            state.uncertain_sendings.resize(self.batch.len(), 0);
            for position in positions {
                state.uncertain_sendings[*position as usize] += 1;
            }
        } else if fresh {
            self.uncertain_sub(positions.len());
        }
    }

    /// What to do about a request that failed as a whole.
    fn failed<A>(
        &self,
        sending: Sending,
        failed: Failed,
        state: &mut State<A>,
    ) -> Result<Step, NotApplied> {
        let trouble = failed.trouble;
        let before = self.kind.attempts_before();
        let mut rest = sending.share.positions.as_slice();
        for range in &sending.share.ranges {
            let (of_range, others) = rest.split_at(range.key_count as usize);
            self.account(&trouble, of_range, range.attempt == before, state);
            rest = others;
        }
        if trouble.permanent {
            return Err(NotApplied::Refused {
                message: trouble.message,
            });
        }
        // The node may have left, moved, or have another clock than we thought: look around while waiting.
        self.shared.router.request(&sending.node);
        Ok(Step::Pause(ordered(Retry {
            positions: sending.share.positions,
            retries: sending.retries,
            error: trouble.message,
            not_before: (trouble.maybe_applied && matches!(self.kind, Kind::Claim { .. }))
                .then_some(failed.valid_until),
        })))
    }
}

/// Equal keys keep their order however they are split next.
fn ordered(mut keys: Retry) -> Retry {
    keys.positions.sort_unstable();
    keys
}
