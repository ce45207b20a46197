//! What a part waits for: requests, a newer map, and pauses.

use std::{sync::Arc, time::Duration};

use keydb_core::{Expiry, Fingerprint};
use tokio::time::{Instant, sleep, sleep_until};

use super::progress::PartProgress;
use crate::{
    call::{
        hand_over::HandOver,
        kind::Kind,
        request::{Reply, RequestFailure, Sending, exchange},
    },
    cluster::{MapVersion, Node},
    config::ClientConfig,
    error::ErrorKind,
    shared::{Deadline, Shared},
};

pub(super) struct Part<'a> {
    pub(super) shared: &'a Shared,
    pub(super) kind: Kind,
    pub(super) batch: &'a [Fingerprint],
    /// By position, or empty.
    pub(super) expiries: &'a [Expiry],
    pub(super) deadline: Deadline,
    pub(super) progress: PartProgress,
}

/// After how many sendings of each key, by position, nobody knows whether they were applied: what later sendings have to say.
/// Empty as long as that is 0 for all.
#[derive(Default)]
pub(super) struct UncertainSendings(Vec<u32>);

impl UncertainSendings {
    /// One more of these keys, in a part of so many.
    pub(super) fn add(&mut self, positions: &[u32], keys: usize) {
        self.0.resize(keys, 0);
        for position in positions {
            self.0[*position as usize] += 1;
        }
    }

    /// Of the key that has the most of them.
    pub(super) fn most(&self, positions: &[u32]) -> u32 {
        let of_each = positions.iter().map(|at| self.0.get(*at as usize));
        of_each.flatten().copied().max().unwrap_or(0)
    }
}

/// Something that a part waits for.
pub(super) enum Step {
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
    /// Once more, after so long: a range is being handed over. That is no retry.
    Again(Retry, Duration),
}

/// Keys that have to be sent again.
pub(super) struct Retry {
    pub(super) positions: Vec<u32>,
    /// How many retries these keys have had.
    pub(super) retries: u32,
    pub(super) hand_over: HandOver,
    pub(super) error: (ErrorKind, Arc<str>),
    /// Until then a node may still come by the sending that failed.
    pub(super) not_before: Option<Instant>,
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
pub(super) enum Stepped {
    Sent(Sending, Result<Reply, Failed>),
    Ready(Retry),
    GivenUp(Retry),
}

/// A request that failed as a whole.
pub(super) struct Failed {
    pub(super) request_failure: RequestFailure,
    /// When the sending was valid no longer.
    pub(super) valid_until: Instant,
}

impl Part<'_> {
    pub(super) async fn step(&self, step: Step) -> Stepped {
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
            Step::Again(keys, pause) => {
                if !pause.is_zero() {
                    sleep(pause).await;
                }
                Stepped::Ready(keys)
            }
        }
    }

    async fn pause(&self, keys: Retry) -> Stepped {
        let config = &self.shared.config;
        if config.retry_count.is_some_and(|max| keys.retries >= max) {
            return Stepped::GivenUp(keys);
        }
        let until = Instant::now() + config.pause_before(keys.retries);
        sleep_until(keys.not_before.map_or(until, |it| until.max(it))).await;
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
        self.progress.request_begins(node, valid_until);
        let not_after = node.clock().at(valid_until);
        let result = exchange(self.shared, self.kind, sending, self.expiries, not_after).await;
        self.progress.request_ends(node);
        result.map_err(|request_failure| Failed {
            request_failure,
            valid_until,
        })
    }
}
