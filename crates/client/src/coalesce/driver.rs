//! The task that cuts batches from one queue and sends them.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, Semaphore},
    task::{JoinSet, yield_now},
    time::{Instant, sleep_until, timeout},
};
use tracing::Instrument;

use super::{
    callers::Callers,
    coalescer::{Coalesced, Coalescer},
    queue::{Batch, Queue, QueueId, Queues},
    told::Told,
};
use crate::{
    call::{Outcome, run_part_for},
    config::Coalescing,
    error::{ErrorKind, NotApplied},
    shared::Deadline,
};

/// How many batches of one queue can be on their way at a time; those that are slow do not count.
const BATCHES_IN_FLIGHT_MAX: usize = 4;
/// After so long a batch is slow, or as soon as it waits for a hand-over. What is left of it may wait for a range that its node still
/// loads, and keys of the node's other ranges must not queue behind that.
const SLOW_AFTER: Duration = Duration::from_millis(500);
/// How many batches there can be, the slow ones included: more than become slow within the default call timeout.
const BATCHES_MAX: usize = 128;
/// A batch ends when its first caller's time is up, so it takes only callers that came not much later: within the call timeout
/// divided by this.
const DEADLINE_SPREAD_DIVISOR: u32 = 8;

/// Cuts batches from one queue until nothing is left.
#[derive(Debug)]
pub(super) struct Driver<A: Copy> {
    pub(super) coalescer: Arc<Coalescer>,
    /// One of them is the driver's.
    pub(super) queues: Arc<Queues<A>>,
    pub(super) id: QueueId,
    pub(super) news: Arc<Notify>,
    pub(super) coalescing: Coalescing,
}

impl<A: Coalesced> Driver<A> {
    pub(super) async fn run(self) {
        let mut in_flight = JoinSet::new();
        // A permit for each batch on its way that counts.
        let room = Arc::new(Semaphore::new(BATCHES_IN_FLIGHT_MAX));
        let closed = self.coalescer.shared.closed.clone();
        loop {
            // Those that are ready to run may have keys for this batch.
            yield_now().await;
            if closed.is_cancelled() {
                self.close(&NotApplied::Closed);
                while in_flight.join_next().await.is_some() {}
                return;
            }
            let (keys, since) = self.gathered();
            let full = keys >= self.coalescing.keys_max;
            let due = since.map(|since| since + self.coalescing.wait_max);
            let now_due = due.is_some_and(|due| due <= Instant::now());
            let alone = room.available_permits() == BATCHES_IN_FLIGHT_MAX;
            let may_go = in_flight.len() < BATCHES_MAX && (alone || full || now_due);
            if keys > 0
                && may_go
                && let Ok(permit) = Arc::clone(&room).try_acquire_owned()
            {
                let waiting = Arc::new(Notify::new());
                let told = Arc::clone(&waiting);
                let batch = run_batch(Arc::clone(&self.coalescer), self.id, self.cut(), told);
                let news = Arc::clone(&self.news);
                in_flight.spawn(async move {
                    let mut batch = pin!(batch);
                    tokio::select! {
                        () = &mut batch => return,
                        _ = timeout(SLOW_AFTER, waiting.notified()) => {}
                    }
                    drop(permit);
                    news.notify_one();
                    batch.await;
                });
                continue;
            }
            if keys == 0 && in_flight.is_empty() {
                if self.close_if_idle() {
                    return;
                }
                continue;
            }
            let room = in_flight.len() < BATCHES_MAX && room.available_permits() > 0;
            tokio::select! {
                () = closed.cancelled() => {}
                Some(_) = in_flight.join_next() => {}
                () = self.news.notified() => {}
                () = sleep_until(due.unwrap_or_else(Instant::now)), if room && due.is_some() => {}
            }
        }
    }

    fn with_queue<T>(&self, with: impl FnOnce(&mut Queue<A>) -> T) -> T {
        let mut queues = self.queues.lock();
        let queue = queues.get_mut(&self.id);
        with(queue.expect("a running driver has a queue"))
    }

    /// How many keys the queue holds, and since when.
    fn gathered(&self) -> (usize, Option<Instant>) {
        self.with_queue(|queue| {
            let first = queue.waiting.front();
            (queue.keys.len(), first.map(|first| first.since))
        })
    }

    /// Takes the next batch out of the queue.
    fn cut(&self) -> Batch<A> {
        let config = &self.coalescer.shared.config;
        let spread = config.call_timeout / DEADLINE_SPREAD_DIVISOR;
        // A batch is one part.
        let keys_max = self.coalescing.keys_max.min(config.keys_per_request_max);
        self.with_queue(|queue| queue.cut(keys_max, spread))
    }

    fn close_if_idle(&self) -> bool {
        let mut queues = self.queues.lock();
        let queue = queues.get(&self.id);
        let idle = queue.is_none_or(|queue| queue.waiting.is_empty());
        if idle {
            queues.remove(&self.id);
        }
        idle
    }
}

impl<A: Copy> Driver<A> {
    /// Takes the queue away, if it is still there, and tells its callers that nothing of theirs has been sent.
    fn close(&self, reason: &NotApplied) {
        let queue = {
            let mut queues = self.queues.lock();
            // Another driver may have one of this id by now.
            let own = queues.get(&self.id);
            let own = own.is_some_and(|queue| Arc::ptr_eq(&queue.news, &self.news));
            own.then(|| queues.remove(&self.id)).flatten()
        };
        for waiting in queue.into_iter().flat_map(|queue| queue.waiting) {
            let told = Told::failed(reason.clone(), Outcome::NotApplied, waiting.keys);
            waiting.tell(told);
        }
    }
}

impl<A: Copy> Drop for Driver<A> {
    /// A driver that did not come to its end was dropped with its runtime. Its queue must not stay: nobody would serve it.
    fn drop(&mut self) {
        self.close(&runtime_stopped(0));
    }
}

pub(super) fn runtime_stopped(attempts: u32) -> NotApplied {
    NotApplied::Unavailable {
        kind: ErrorKind::Closed,
        attempts,
        last_error: "the runtime that the client was connected in has stopped".into(),
    }
}

/// Sends a batch and tells its callers.
async fn run_batch<A: Coalesced>(
    coalescer: Arc<Coalescer>,
    id: QueueId,
    batch: Batch<A>,
    waiting: Arc<Notify>,
) {
    let batch = batch.without_gone();
    let Some(first) = batch.calls.first() else {
        return;
    };
    let shared = Arc::clone(&coalescer.shared);
    let deadline = Deadline::new(first.since, shared.config.call_timeout);
    shared.observe(|it| it.batch(batch.calls.len(), batch.keys.len()));
    let kind = A::kind(id.ttl);
    let span = batch.span.clone();
    let callers = Callers::new(batch, kind, Arc::clone(&coalescer));
    let mut callers = callers.taking_back().telling(waiting);
    let keys = callers.keys();
    run_part_for(&mut callers, &shared, kind, &keys, &[], deadline)
        .instrument(span)
        .await;
    for no_room in callers.into_taken_back() {
        no_room.run(&coalescer, id.ttl, deadline).await;
    }
}
