//! Single keys of many tasks become one batch.
//!
//! Keys that ask the same (operation and TTL) gather in one queue. While a queue has something in it, or a batch of it is on its
//! way, a task of its own, the *driver*, cuts batches from it. A batch goes when no other is on its way, or it is full, or its
//! first key has waited long enough; a few can be on their way at a time. When nothing is left the driver ends and the queue
//! goes, so an idle client has neither. Drivers run where the client was connected, whoever calls: a caller's runtime may end
//! while keys of others wait.
//!
//! Answers are delivered in the batch's order. When the caller of a `First` has gone away, nobody was told `First`, so the
//! `Duplicate`s of equal keys behind it become `Unknown`.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use keydb_core::{Claim, Fingerprint, OperationId, Ttl};
use tokio::{
    sync::{Notify, oneshot},
    task::{JoinSet, yield_now},
    time::{Instant, sleep_until, timeout_at},
};

use crate::{
    Coalescing,
    call::{Answer, Failure, Kind, run},
    client::Shared,
    error::NotApplied,
};

/// How many batches of one queue can be on their way at a time.
const BATCHES_IN_FLIGHT_MAX: usize = 4;
/// How many TTLs can have a queue at a time; calls with further ones are sent by themselves.
const QUEUES_MAX: usize = 64;
/// How many keys can wait in a queue: more than tasks that a program would run.
const QUEUE_KEYS_MAX: usize = 1 << 20;
/// A batch ends when its first caller's time is up, so it takes only callers that came not much later: within the call timeout
/// divided by this.
const DEADLINE_SPREAD_DIVISOR: u32 = 8;

/// A batch ends by its callers' deadlines; whoever has heard nothing for this long after it never will.
const GRACE: Duration = Duration::from_secs(2);

/// An answer of a single-key call.
pub(crate) trait Single: Answer {
    /// What to ask of a batch.
    fn kind(ttl: Option<Ttl>) -> Kind;
    /// Whether its caller must hear it, or equal keys' answers change.
    fn is_first(self) -> bool;
    /// What an equal key is told when nobody heard that the first one was first.
    fn when_first_is_unheard(self) -> Self;
}

impl Single for bool {
    fn kind(_: Option<Ttl>) -> Kind {
        Kind::Get
    }
    fn is_first(self) -> bool {
        false
    }
    fn when_first_is_unheard(self) -> Self {
        self
    }
}

impl Single for () {
    fn kind(ttl: Option<Ttl>) -> Kind {
        Kind::Put {
            ttl: ttl.expect("a put has a TTL"),
        }
    }
    fn is_first(self) -> bool {
        false
    }
    fn when_first_is_unheard(self) {}
}

impl Single for Claim {
    fn kind(ttl: Option<Ttl>) -> Kind {
        Kind::Claim {
            ttl: ttl.expect("a claim has a TTL"),
            id: OperationId::random(),
            attempts_before: 0,
        }
    }
    fn is_first(self) -> bool {
        self == Self::First
    }
    fn when_first_is_unheard(self) -> Self {
        match self {
            Self::Duplicate => Self::Unknown,
            other => other,
        }
    }
}

/// The queues of one operation.
#[derive(Debug)]
pub(crate) struct Coalescer<A> {
    queues: Mutex<Vec<Queue<A>>>,
}

#[derive(Debug)]
struct Queue<A> {
    ttl: Option<Ttl>,
    /// In the order in which they came; it can be long, so what stays when a batch is cut must not be moved.
    waiting: VecDeque<Waiting<A>>,
    /// Told when the first key comes, and when a batch is full.
    news: Arc<Notify>,
}

impl<A> Queue<A> {
    /// Takes out the first keys, at most so many, that came not much later than the very first.
    fn cut(&mut self, keys_max: usize, spread: Duration) -> Vec<Waiting<A>> {
        let waiting = &mut self.waiting;
        let latest = waiting.front().map(|first| first.since + spread);
        let in_time = |next: &Waiting<A>| latest.is_some_and(|latest| next.since <= latest);
        let all = waiting.len() <= keys_max && waiting.back().is_none_or(in_time);
        let count = if all {
            waiting.len()
        } else {
            let first = waiting.iter().take(keys_max);
            first.take_while(|next| in_time(next)).count().max(1)
        };
        waiting.drain(..count).collect()
    }
}

/// A caller and its key.
#[derive(Debug)]
struct Waiting<A> {
    key: Fingerprint,
    since: Instant,
    reply: oneshot::Sender<Result<A, Box<Failure>>>,
}

impl<A> Default for Coalescer<A> {
    fn default() -> Self {
        Self {
            queues: Mutex::new(Vec::new()),
        }
    }
}

/// Which of an operation's coalescers; each is a field of the client's shared state.
pub(crate) type Pick<A> = fn(&Shared) -> &Coalescer<A>;

/// Runs a single-key call, together with others where that is switched on.
pub(crate) async fn one<A: Single>(
    shared: &Arc<Shared>,
    pick: Pick<A>,
    ttl: Option<Ttl>,
    key: Fingerprint,
) -> Result<A, Failure> {
    let since = Instant::now();
    if let Some(coalescing) = &shared.config.coalescing {
        if shared.closed.is_cancelled() {
            return Err(not_applied(NotApplied::Closed));
        }
        if let Some(reply) = enqueue(shared, pick, coalescing, ttl, key, since)? {
            return hear(shared, reply, since).await;
        }
    }
    let deadline = since + shared.config.call_timeout;
    let answers = run(shared, A::kind(ttl), vec![key], deadline).await?;
    Ok(answers[0])
}

/// Waits for what becomes of a key in a queue.
async fn hear<A: Single>(shared: &Shared, reply: Reply<A>, since: Instant) -> Result<A, Failure> {
    let timeout = shared.config.call_timeout;
    match timeout_at(since + timeout + GRACE, reply).await {
        Ok(Ok(result)) => result.map_err(|failure| *failure),
        // A key that has not been sent is told so, see `Driver::close`; this one was in a batch.
        Ok(Err(_)) => Err(maybe_applied(runtime_stopped(1))),
        Err(_) => Err(maybe_applied(NotApplied::DeadlineExceeded {
            timeout,
            waiting_for: "nothing was heard of the batch that has the key; the runtime that the client was connected in may be stuck"
                .into(),
        })),
    }
}

fn runtime_stopped(attempts: u32) -> NotApplied {
    NotApplied::Unavailable {
        attempts,
        last_error: "the runtime that the client was connected in has stopped".into(),
    }
}

fn not_applied(reason: NotApplied) -> Failure {
    Failure {
        reason,
        keys: 1,
        answered: 0,
        uncertain: 0,
    }
}

fn maybe_applied(reason: NotApplied) -> Failure {
    Failure {
        uncertain: 1,
        ..not_applied(reason)
    }
}

type Reply<A> = oneshot::Receiver<Result<A, Box<Failure>>>;

/// Puts a key into its queue; `None` when it has to go by itself.
fn enqueue<A: Single>(
    shared: &Arc<Shared>,
    pick: Pick<A>,
    coalescing: &Coalescing,
    ttl: Option<Ttl>,
    key: Fingerprint,
    since: Instant,
) -> Result<Option<Reply<A>>, Failure> {
    let (reply, answer) = oneshot::channel();
    let waiting = Waiting { key, since, reply };
    let mut queues = pick(shared).lock();
    if let Some(queue) = queues.iter_mut().find(|queue| queue.ttl == ttl) {
        if queue.waiting.len() >= QUEUE_KEYS_MAX {
            return Err(not_applied(NotApplied::Unavailable {
                attempts: 0,
                last_error: format!(
                    "{QUEUE_KEYS_MAX} single-key calls are waiting already, the most that can"
                )
                .into(),
            }));
        }
        queue.waiting.push_back(waiting);
        let count = queue.waiting.len();
        let news = (count == 1 || count == coalescing.keys_max).then(|| Arc::clone(&queue.news));
        drop(queues);
        if let Some(news) = news {
            news.notify_one();
        }
    } else {
        if queues.len() >= QUEUES_MAX {
            return Ok(None);
        }
        let news = Arc::new(Notify::new());
        queues.push(Queue {
            ttl,
            waiting: VecDeque::from([waiting]),
            news: Arc::clone(&news),
        });
        drop(queues);
        let driver = Driver {
            shared: Arc::clone(shared),
            pick,
            ttl,
            news,
            coalescing: coalescing.clone(),
        };
        shared.tasks.spawn_on(driver.run(), &shared.runtime);
    }
    Ok(Some(answer))
}

impl<A> Coalescer<A> {
    fn lock(&self) -> MutexGuard<'_, Vec<Queue<A>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Cuts batches from one queue until nothing is left.
struct Driver<A> {
    shared: Arc<Shared>,
    pick: Pick<A>,
    ttl: Option<Ttl>,
    news: Arc<Notify>,
    coalescing: Coalescing,
}

/// What a queue holds.
struct Gathered {
    keys: usize,
    /// When the first of them came.
    since: Option<Instant>,
}

impl<A: Single> Driver<A> {
    async fn run(self) {
        let mut in_flight = JoinSet::new();
        let closed = self.shared.closed.clone();
        loop {
            // Those that are ready to run may have keys for this batch.
            yield_now().await;
            if closed.is_cancelled() {
                self.close(&NotApplied::Closed);
                while in_flight.join_next().await.is_some() {}
                return;
            }
            let gathered = self.gathered();
            let full = gathered.keys >= self.coalescing.keys_max;
            let due = gathered.since.map(|since| since + self.coalescing.wait_max);
            let now_due = due.is_some_and(|due| due <= Instant::now());
            let may_go = in_flight.is_empty()
                || (in_flight.len() < BATCHES_IN_FLIGHT_MAX && (full || now_due));
            if gathered.keys > 0 && may_go {
                let batch = self.cut();
                in_flight.spawn(run_batch(Arc::clone(&self.shared), self.ttl, batch));
                continue;
            }
            if gathered.keys == 0 && in_flight.is_empty() {
                if self.close_if_idle() {
                    return;
                }
                continue;
            }
            let room = in_flight.len() < BATCHES_IN_FLIGHT_MAX;
            tokio::select! {
                () = closed.cancelled() => {}
                Some(_) = in_flight.join_next() => {}
                () = self.news.notified() => {}
                () = sleep_until(due.unwrap_or_else(Instant::now)), if room && due.is_some() => {}
            }
        }
    }

    fn with_queue<T>(&self, with: impl FnOnce(&mut Vec<Queue<A>>, usize) -> T) -> T {
        let mut queues = (self.pick)(&self.shared).lock();
        let index = self.index(&queues);
        with(&mut queues, index.expect("a running driver has a queue"))
    }

    fn gathered(&self) -> Gathered {
        self.with_queue(|queues, index| {
            let waiting = &queues[index].waiting;
            Gathered {
                keys: waiting.len(),
                since: waiting.front().map(|first| first.since),
            }
        })
    }

    /// Takes the next batch out of the queue.
    fn cut(&self) -> Vec<Waiting<A>> {
        let spread = self.shared.config.call_timeout / DEADLINE_SPREAD_DIVISOR;
        let keys_max = self.coalescing.keys_max;
        self.with_queue(|queues, index| queues[index].cut(keys_max, spread))
    }

    fn close_if_idle(&self) -> bool {
        self.with_queue(|queues, index| {
            let idle = queues[index].waiting.is_empty();
            if idle {
                queues.swap_remove(index);
            }
            idle
        })
    }
}

impl<A> Driver<A> {
    fn index(&self, queues: &[Queue<A>]) -> Option<usize> {
        let mut queues = queues.iter();
        queues.position(|queue| Arc::ptr_eq(&queue.news, &self.news))
    }

    /// Takes the queue away, if it is still there, and tells its callers that nothing of theirs has been sent.
    fn close(&self, reason: &NotApplied) {
        let queue = {
            let mut queues = (self.pick)(&self.shared).lock();
            let index = self.index(&queues);
            index.map(|index| queues.swap_remove(index))
        };
        for waiting in queue.into_iter().flat_map(|queue| queue.waiting) {
            let failure = Box::new(not_applied(reason.clone()));
            // An error means that the caller has gone away; it needs no error.
            let _ = waiting.reply.send(Err(failure));
        }
    }
}

impl<A> Drop for Driver<A> {
    /// A driver that did not come to its end was dropped with its runtime. Its queue must not stay: nobody would serve it.
    fn drop(&mut self) {
        self.close(&runtime_stopped(0));
    }
}

/// Sends a batch and tells its callers.
async fn run_batch<A: Single>(shared: Arc<Shared>, ttl: Option<Ttl>, batch: Vec<Waiting<A>>) {
    let mut batch = batch;
    // Nobody waits for these any more, and nothing of them has been sent.
    batch.retain(|waiting| !waiting.reply.is_closed());
    let Some(first) = batch.first() else {
        return;
    };
    let deadline = first.since + shared.config.call_timeout;
    let keys: Vec<Fingerprint> = batch.iter().map(|waiting| waiting.key).collect();
    match run::<A>(&shared, A::kind(ttl), keys, deadline).await {
        Ok(answers) => deliver(batch, answers),
        Err(failure) => {
            let failure = Box::new(failure);
            for waiting in batch {
                // An error means that the caller has gone away; it needs no error.
                let _ = waiting.reply.send(Err(failure.clone()));
            }
        }
    }
}

fn deliver<A: Single>(batch: Vec<Waiting<A>>, answers: Vec<A>) {
    // Keys whose First nobody heard; nearly always empty.
    let mut unheard: Vec<Fingerprint> = Vec::new();
    for (waiting, answer) in batch.into_iter().zip(answers) {
        let answer = if !unheard.is_empty() && unheard.contains(&waiting.key) {
            answer.when_first_is_unheard()
        } else {
            answer
        };
        if waiting.reply.send(Ok(answer)).is_err() && answer.is_first() {
            unheard.push(waiting.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue with a key each so many milliseconds after the first.
    fn queue(after_ms: impl IntoIterator<Item = u64>) -> Queue<Claim> {
        let start = Instant::now();
        let waiting = after_ms.into_iter().map(|ms| Waiting {
            key: Fingerprint::from_parts(ms, 0),
            since: start + Duration::from_millis(ms),
            reply: oneshot::channel().0,
        });
        Queue {
            ttl: None,
            waiting: waiting.collect(),
            news: Arc::default(),
        }
    }

    #[test]
    fn a_batch_is_cut_without_moving_the_keys_that_stay() {
        let mut queue = queue(0..100);
        let stays = std::ptr::from_ref(&queue.waiting[10]);
        let batch = queue.cut(10, Duration::from_secs(1));
        assert_eq!(batch.len(), 10);
        assert!(std::ptr::eq(&queue.waiting[0], stays));
    }

    #[test]
    fn a_batch_has_no_key_that_came_much_later_than_its_first() {
        let mut queue = queue([0, 10, 20, 21, 50]);
        let mut cut = |keys_max| queue.cut(keys_max, Duration::from_millis(20)).len();
        assert_eq!([cut(10), cut(1), cut(10), cut(10)], [3, 1, 1, 0]);
    }
}
