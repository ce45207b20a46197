//! Small calls of many tasks become one batch.
//!
//! Calls that ask the same (operation and TTL) gather in one queue. While a queue has something in it, or a batch of it is on its
//! way, a task of its own, the *driver*, cuts batches from it. A batch goes when no other is on its way, or it is full, or its
//! first call has waited long enough; a few can be on their way at a time. When nothing is left the driver ends and the queue
//! goes, so an idle client has neither. Drivers run where the client was connected, whoever calls: a caller's runtime may end
//! while others' calls wait.
//!
//! Each caller is told as soon as all its keys have been answered, so a node that is down, slow or full fails the calls with keys
//! of its own only. A batch that is slow for that reason holds up no others.
//!
//! When the caller of a `First` has gone away, nobody was told `First`, so the `Duplicate`s of equal keys in later calls become
//! `Unknown`. A caller can go away between the delivery of its answer and its next turn, so these `Duplicate`s wait until the
//! `First` has been heard. Of equal keys the first in the batch is the one that can be `First`; so calls wait only for earlier
//! ones, never in a circle.

mod callers;
mod coalescer;
mod driver;
mod queue;
mod repeat;
mod told;

use std::sync::Arc;

use keydb_core::{Fingerprint, Ttl};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

pub(crate) use self::{
    coalescer::{Coalesced, Coalescer},
    told::Answers,
};
use self::{
    driver::{Driver, runtime_stopped},
    queue::{Queue, Waiting},
    told::{GRACE, Told},
};
use crate::{
    call::{Failure, Outcome},
    config::Coalescing,
    error::{ErrorKind, NotApplied},
    shared::Shared,
};

/// How many TTLs can have a queue at a time; calls with further ones are sent by themselves.
const QUEUES_MAX: usize = 64;

/// Runs a call of few keys together with others; `None` when it has to go by itself.
pub(crate) async fn run_together<A: Coalesced>(
    coalescer: &Arc<Coalescer>,
    ttl: Option<Ttl>,
    keys: &[Fingerprint],
) -> Option<Result<Answers<A>, Failure<A>>> {
    let config = &coalescer.shared.config;
    let coalescing = config.coalescing.as_ref()?;
    let keys_max = coalescing.keys_max.min(config.keys_per_request_max);
    if keys.is_empty() || keys.len() > coalescing.call_keys_max.min(keys_max) {
        return None;
    }
    let since = Instant::now();
    let reply = match enqueue(coalescer, coalescing, ttl, keys, since) {
        Ok(reply) => reply?,
        Err(reason) => return Some(Err(Failure::not_applied(reason, keys.len()))),
    };
    Some(hear(&coalescer.shared, reply, since, keys.len()).await)
}

/// Waits for what becomes of a call in a queue.
async fn hear<A: Coalesced>(
    shared: &Shared,
    reply: Reply<A>,
    since: Instant,
    keys: usize,
) -> Result<Answers<A>, Failure<A>> {
    let timeout = shared.config.call_timeout;
    let reason = match timeout_at(since + timeout + GRACE, reply).await {
        Ok(Ok(told)) => return told.hear(),
        // Keys that have not been sent are told so, see `Driver::close`; these were in a batch.
        Ok(Err(_)) => runtime_stopped(1),
        Err(_) => NotApplied::DeadlineExceeded {
            kind: ErrorKind::Deadline,
            timeout,
            waiting_for: "nothing was heard of the batch that has the keys; the runtime that the client was connected in may be stuck"
                .into(),
        },
    };
    Err(Failure::new(reason, vec![Outcome::MaybeApplied; keys]))
}

type Reply<A> = oneshot::Receiver<Told<A>>;

/// Puts a call into its queue; `None` when it has to go by itself.
fn enqueue<A: Coalesced>(
    coalescer: &Arc<Coalescer>,
    coalescing: &Coalescing,
    ttl: Option<Ttl>,
    keys: &[Fingerprint],
    since: Instant,
) -> Result<Option<Reply<A>>, NotApplied> {
    let (reply, answer) = oneshot::channel();
    let waiting = Waiting {
        keys: keys.len(),
        since,
        reply,
    };
    let mut queues = A::queues(coalescer).lock();
    if let Some(queue) = queues.iter_mut().find(|queue| queue.ttl == ttl) {
        let before = queue.keys.len();
        queue.add(keys, waiting)?;
        let is_full = before < coalescing.keys_max && queue.keys.len() >= coalescing.keys_max;
        let news = (before == 0 || is_full).then(|| Arc::clone(&queue.news));
        drop(queues);
        if let Some(news) = news {
            news.notify_one();
        }
        return Ok(Some(answer));
    }
    if queues.len() >= QUEUES_MAX {
        return Ok(None);
    }
    let mut queue = Queue::new(ttl);
    queue.add(keys, waiting)?;
    let driver = Driver {
        coalescer: Arc::clone(coalescer),
        queues: Arc::clone(A::queues(coalescer)),
        ttl,
        news: Arc::clone(&queue.news),
        coalescing: coalescing.clone(),
    };
    queues.push(queue);
    drop(queues);
    let shared = &coalescer.shared;
    shared.tasks.spawn_on(driver.run(), &shared.runtime);
    Ok(Some(answer))
}
