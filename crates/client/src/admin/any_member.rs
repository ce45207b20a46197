//! Asking whichever member answers, and going by what it has changed.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use keydb_proto::shard::ScaleReply;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Response, Status};

use super::{AdminClient, AdminError, RETRIES_DEFAULT, reply_of};
use crate::{
    cluster::{MapVersion, Node},
    shared::Deadline,
};

/// A member that is silent for so long makes room for another one.
const ATTEMPT_MIN: Duration = Duration::from_secs(5);
/// How long before a node is asked again that does not go by its own change yet.
const FOLLOW_PAUSE: Duration = Duration::from_millis(20);

impl AdminClient {
    /// Has any member change the map, and goes by the change.
    pub(super) async fn ask_any<F>(
        &self,
        ask: impl Fn(Arc<Node>, Deadline) -> F,
    ) -> Result<ScaleReply, AdminError>
    where
        F: Future<Output = Result<Response<ScaleReply>, Status>>,
    {
        let reply = self.ask_member(ask).await?;
        self.follow((reply.lineage, reply.epoch)).await;
        Ok(reply)
    }

    /// Asks members one after the other, until one answers or refuses, the retries are used up or the time is.
    pub(super) async fn ask_member<R, F>(
        &self,
        ask: impl Fn(Arc<Node>, Deadline) -> F,
    ) -> Result<R, AdminError>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let shared = self.client.shared();
        let end = self.client.deadline().at;
        let retries = shared.config.retry_count.unwrap_or(RETRIES_DEFAULT);
        let mut attempts = 0;
        for round in 0.. {
            let routing = shared.router.current();
            let nodes = routing.nodes();
            let first = self.answering.load(Ordering::Relaxed);
            let mut failure = AdminError::Closed;
            for place in 0..nodes.len() {
                let index = (first + place) % nodes.len();
                let node = &nodes[index];
                let left = end.saturating_duration_since(Instant::now());
                let share = left / u32::try_from(nodes.len() - place).unwrap_or(u32::MAX);
                let deadline = Deadline::new(Instant::now(), share.max(ATTEMPT_MIN).min(left));
                attempts += 1;
                let asked = reply_of(node, ask(Arc::clone(node), deadline), deadline, attempts);
                let asked = shared.unless_closed(asked).await;
                match asked.unwrap_or(Err(AdminError::Closed)) {
                    Ok(reply) => {
                        self.answering.store(index, Ordering::Relaxed);
                        return Ok(reply);
                    }
                    // Another one may do it.
                    Err(error @ AdminError::Unavailable { .. }) => failure = error,
                    // What an earlier one has done is not known any better for it.
                    Err(error @ AdminError::Refused { .. }) => {
                        if !matches!(failure, AdminError::Unavailable { .. }) {
                            failure = error;
                        }
                    }
                    Err(error) => return Err(error),
                }
                if Instant::now() >= end {
                    return Err(failure);
                }
            }
            if round >= retries || matches!(failure, AdminError::Refused { .. }) {
                return Err(failure);
            }
            let pause = sleep(shared.config.pause_before(round));
            if timeout_at(end, pause).await.is_err() {
                return Err(failure);
            }
        }
        unreachable!("the loop above ends at the last retry")
    }

    /// Goes by a map of at least this version, as soon as a member does.
    pub(super) async fn follow(&self, version: MapVersion) {
        let shared = self.client.shared();
        let deadline = self.client.deadline();
        while shared.router.version() < version && Instant::now() < deadline.at {
            let routing = shared.router.current();
            let index = self.answering.load(Ordering::Relaxed) % routing.nodes().len();
            let round = shared
                .router
                .request_version(&routing.nodes()[index], version);
            let done = shared.unless_closed(shared.router.finished(round));
            if !matches!(timeout_at(deadline.at, done).await, Ok(Some(()))) {
                return;
            }
            if shared.router.version() < version {
                sleep(FOLLOW_PAUSE).await;
            }
        }
    }
}
