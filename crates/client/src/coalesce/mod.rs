//! Single keys of many tasks become one batch.
//!
//! Keys that ask the same (operation and TTL) gather in one queue. While a queue has something in it, or a batch of it is on its
//! way, a task of its own, the *driver*, cuts batches from it. A batch goes when no other is on its way, or it is full, or its
//! first key has waited long enough; a few can be on their way at a time. When nothing is left the driver ends and the queue
//! goes, so an idle client has neither. Drivers run where the client was connected, whoever calls: a caller's runtime may end
//! while keys of others wait.
//!
//! Each caller is told as soon as its key's node has answered, so a node that is down, slow or full fails the callers of its own
//! keys only. A batch that is slow for that reason holds up no others.
//!
//! When the caller of a `First` has gone away, nobody was told `First`, so the `Duplicate`s of equal keys behind it become
//! `Unknown`. A caller can go away between the delivery of its answer and its next turn, so these `Duplicate`s wait until the
//! `First` has been heard.

mod callers;
mod driver;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use keydb_core::{Claim, Fingerprint, OperationId, Ttl};
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout_at},
};

use self::driver::Driver;
use crate::{
    Coalescing,
    call::{Answer, Failure, Kind, run},
    client::Shared,
    error::NotApplied,
};

/// How many TTLs can have a queue at a time; calls with further ones are sent by themselves.
const QUEUES_MAX: usize = 64;
/// How many keys can wait in a queue: more than tasks that a program would run.
const QUEUE_KEYS_MAX: usize = 1 << 20;

/// A batch ends by its callers' deadlines; whoever has heard nothing for this long after it never will.
const GRACE: Duration = Duration::from_secs(2);

/// An answer of a single-key call.
pub(crate) trait Single: Answer {
    /// What to ask of a batch.
    fn kind(ttl: Option<Ttl>) -> Kind;
    /// Whether its caller must hear it, or equal keys' answers change.
    fn is_first(self) -> bool;
    /// Whether it may mean that another caller in the batch was told that it is first.
    fn follows_first(self) -> bool;
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
    fn follows_first(self) -> bool {
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
    fn follows_first(self) -> bool {
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
    fn follows_first(self) -> bool {
        self == Self::Duplicate
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
    /// Told when the first key comes, when a batch is full, and when one has become slow.
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
    reply: oneshot::Sender<Told<A>>,
}

impl<A> Waiting<A> {
    /// Tells the caller; false when it has gone away.
    fn tell(self, result: Result<A, Box<Failure>>) -> bool {
        let told = Told {
            result,
            heard: None,
        };
        self.reply.send(told).is_ok()
    }
}

/// What a caller is told.
#[derive(Debug)]
struct Told<A> {
    result: Result<A, Box<Failure>>,
    /// Tells whoever waits for it that the caller has it. Unread, it is dropped with the rest.
    heard: Option<oneshot::Sender<()>>,
}

impl<A> Told<A> {
    /// The caller takes it.
    fn hear(self) -> Result<A, Failure> {
        if let Some(heard) = self.heard {
            // Nobody waits any more when this took too long.
            let _ = heard.send(());
        }
        self.result.map_err(|failure| *failure)
    }
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
        Ok(Ok(told)) => told.hear(),
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

type Reply<A> = oneshot::Receiver<Told<A>>;

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
