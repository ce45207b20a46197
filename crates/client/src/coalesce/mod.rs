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
mod driver;
mod repeat;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use keydb_core::{Claim, Fingerprint, OperationId, Ttl};
use tokio::{
    sync::{Notify, oneshot, watch},
    time::{Instant, timeout_at},
};

use self::driver::Driver;
pub(crate) use self::repeat::{Repeats, repeat};
use crate::{
    Coalescing, ErrorKind,
    call::{Answer, Failure, Kind, Outcome},
    client::Shared,
    error::{NotApplied, WriteError},
};

/// How many TTLs can have a queue at a time; calls with further ones are sent by themselves.
const QUEUES_MAX: usize = 64;
/// How many keys can wait in a queue: more than those of all tasks that a program would run.
const QUEUE_KEYS_MAX: usize = 1 << 20;

/// A batch ends by its callers' deadlines; whoever has heard nothing for this long after it never will.
const GRACE: Duration = Duration::from_secs(2);

/// An answer of a call that can travel with others.
pub(crate) trait Coalesced: Answer {
    /// What to ask of a batch.
    fn kind(ttl: Option<Ttl>) -> Kind;
    /// Whether its caller must hear it, or equal keys' answers change.
    fn is_first(self) -> bool;
    /// Whether it may mean that another caller in the batch was told that it is first.
    fn follows_first(self) -> bool;
    /// What an equal key is told when nobody heard that the first one was first.
    fn when_first_is_unheard(self) -> Self;
}

impl Coalesced for bool {
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

impl Coalesced for () {
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

impl Coalesced for Claim {
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

/// Calls in the order in which they came. There can be many, so what stays when a batch is cut must not be moved.
#[derive(Debug)]
struct Queue<A> {
    ttl: Option<Ttl>,
    /// The keys of all calls.
    keys: VecDeque<Fingerprint>,
    waiting: VecDeque<Waiting<A>>,
    /// Told when the first call comes, when a batch is full, and when one has become slow.
    news: Arc<Notify>,
}

/// Calls that travel together.
#[derive(Debug)]
struct Batch<A> {
    /// The keys of all calls, in their order.
    keys: Vec<Fingerprint>,
    calls: Vec<Waiting<A>>,
}

impl<A> Queue<A> {
    /// Takes out the first calls, at most so many keys unless the very first has more, that came not much later than that one.
    fn cut(&mut self, keys_max: usize, spread: Duration) -> Batch<A> {
        let latest = self.waiting.front().map(|first| first.since + spread);
        let (mut calls, mut keys) = (0, 0);
        for next in &self.waiting {
            let fits = calls == 0 || keys + next.keys <= keys_max;
            if !fits || latest.is_some_and(|latest| next.since > latest) {
                break;
            }
            calls += 1;
            keys += next.keys;
        }
        if calls == self.waiting.len() {
            return Batch {
                keys: std::mem::take(&mut self.keys).into(),
                calls: std::mem::take(&mut self.waiting).into(),
            };
        }
        Batch {
            keys: self.keys.drain(..keys).collect(),
            calls: self.waiting.drain(..calls).collect(),
        }
    }
}

impl<A> Batch<A> {
    /// Leaves out the calls that nobody waits for any more. Nothing of them has been sent.
    fn without_gone(self) -> Self {
        if !self.calls.iter().any(|call| call.reply.is_closed()) {
            return self;
        }
        let mut left = Self {
            keys: Vec::new(),
            calls: Vec::new(),
        };
        let mut keys = self.keys.into_iter();
        for call in self.calls {
            let own = keys.by_ref().take(call.keys);
            if call.reply.is_closed() {
                own.for_each(drop);
            } else {
                left.keys.extend(own);
                left.calls.push(call);
            }
        }
        left
    }
}

/// A call, and who waits for it.
#[derive(Debug)]
struct Waiting<A> {
    /// How many keys it has.
    keys: usize,
    since: Instant,
    reply: oneshot::Sender<Told<A>>,
}

impl<A> Waiting<A> {
    /// Tells the caller. One that has gone away needs nothing.
    fn tell(self, result: Result<Answers<A>, Box<Unanswered<A>>>) {
        let told = Told {
            result,
            heard: None,
        };
        let _ = self.reply.send(told);
    }
}

/// The answers to a call's keys, in their order.
#[derive(Debug)]
pub(crate) enum Answers<A> {
    /// To a single key.
    One(A),
    /// To any number of keys.
    Many(Vec<A>),
}

impl<A: Copy> Answers<A> {
    /// The answer to the first key.
    pub(crate) fn first(&self) -> A {
        match self {
            Self::One(answer) => *answer,
            Self::Many(answers) => answers[0],
        }
    }

    pub(crate) fn into_vec(self) -> Vec<A> {
        match self {
            Self::One(answer) => vec![answer],
            Self::Many(answers) => answers,
        }
    }
}

/// Why a call has not all of its answers.
#[derive(Debug)]
pub(crate) struct Unanswered<A> {
    pub(crate) failure: Failure<A>,
    /// Of a claim that may have been applied: what it can be repeated as.
    pub(crate) operation: Option<OperationId>,
}

impl Unanswered<Claim> {
    pub(crate) fn of_claim(self) -> WriteError {
        self.failure.of_claim(self.operation)
    }
}

/// What a caller is told.
#[derive(Debug)]
struct Told<A> {
    result: Result<Answers<A>, Box<Unanswered<A>>>,
    /// Tells whoever waits for it that the caller has it. Unread, it is dropped with the rest.
    heard: Option<watch::Sender<bool>>,
}

impl<A> Told<A> {
    /// The caller takes it.
    fn hear(self) -> Result<Answers<A>, Unanswered<A>> {
        if let Some(heard) = self.heard {
            heard.send_replace(true);
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

/// Runs a call of few keys together with others; `None` when it has to go by itself.
pub(crate) async fn run_together<A: Coalesced>(
    shared: &Arc<Shared>,
    pick: Pick<A>,
    ttl: Option<Ttl>,
    keys: &[Fingerprint],
) -> Option<Result<Answers<A>, Unanswered<A>>> {
    let coalescing = shared.config.coalescing.as_ref()?;
    let keys_max = coalescing.keys_max.min(shared.config.keys_per_request_max);
    if keys.is_empty() || keys.len() > coalescing.call_keys_max.min(keys_max) {
        return None;
    }
    let since = Instant::now();
    let reply = match enqueue(shared, pick, coalescing, ttl, keys, since) {
        Ok(reply) => reply?,
        Err(reason) => return Some(Err(not_applied(reason, keys.len()))),
    };
    Some(hear(shared, reply, since, keys.len()).await)
}

/// Waits for what becomes of a call in a queue.
async fn hear<A: Coalesced>(
    shared: &Shared,
    reply: Reply<A>,
    since: Instant,
    keys: usize,
) -> Result<Answers<A>, Unanswered<A>> {
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
    Err(Unanswered {
        failure: Failure {
            reason,
            outcomes: vec![Outcome::MaybeApplied; keys],
        },
        operation: None,
    })
}

fn runtime_stopped(attempts: u32) -> NotApplied {
    NotApplied::Unavailable {
        kind: ErrorKind::Closed,
        attempts,
        last_error: "the runtime that the client was connected in has stopped".into(),
    }
}

fn not_applied<A: Copy>(reason: NotApplied, keys: usize) -> Unanswered<A> {
    Unanswered {
        failure: Failure::not_applied(reason, keys),
        operation: None,
    }
}

type Reply<A> = oneshot::Receiver<Told<A>>;

/// Puts a call into its queue; `None` when it has to go by itself.
fn enqueue<A: Coalesced>(
    shared: &Arc<Shared>,
    pick: Pick<A>,
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
    let mut queues = pick(shared).lock();
    if let Some(queue) = queues.iter_mut().find(|queue| queue.ttl == ttl) {
        let before = queue.keys.len();
        let after = before + keys.len();
        if after > QUEUE_KEYS_MAX {
            return Err(NotApplied::Unavailable {
                kind: ErrorKind::Overloaded,
                attempts: 0,
                last_error: format!(
                    "{before} keys of small calls are waiting already, and {QUEUE_KEYS_MAX} are the most that can"
                )
                .into(),
            });
        }
        queue.keys.extend(keys);
        queue.waiting.push_back(waiting);
        let is_full = before < coalescing.keys_max && after >= coalescing.keys_max;
        let news = (before == 0 || is_full).then(|| Arc::clone(&queue.news));
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
            keys: keys.iter().copied().collect(),
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

    /// A queue with a call each so many milliseconds after the first, and of so many keys.
    fn queue(calls: impl IntoIterator<Item = (u64, usize)>) -> Queue<Claim> {
        let start = Instant::now();
        let mut queue = Queue {
            ttl: None,
            keys: VecDeque::new(),
            waiting: VecDeque::new(),
            news: Arc::default(),
        };
        for (ms, keys) in calls {
            let of_call = (0..keys).map(|key| Fingerprint::from_parts(ms, key as u32));
            queue.keys.extend(of_call);
            queue.waiting.push_back(Waiting {
                keys,
                since: start + Duration::from_millis(ms),
                reply: oneshot::channel().0,
            });
        }
        queue
    }

    fn cut(queue: &mut Queue<Claim>, keys_max: usize) -> (usize, usize) {
        let batch = queue.cut(keys_max, Duration::from_millis(20));
        let keys: usize = batch.calls.iter().map(|call| call.keys).sum();
        assert_eq!(batch.keys.len(), keys);
        (batch.calls.len(), keys)
    }

    #[test]
    fn a_batch_is_cut_without_moving_the_calls_that_stay() {
        let mut queue = queue((0..100).map(|ms| (ms, 1)));
        let stays = std::ptr::from_ref(&queue.waiting[10]);
        assert_eq!(cut(&mut queue, 10), (10, 10));
        assert!(std::ptr::eq(&queue.waiting[0], stays));
    }

    #[test]
    fn a_batch_has_no_call_that_came_much_later_than_its_first() {
        let mut queue = queue([(0, 1), (10, 1), (20, 1), (21, 1), (50, 1)]);
        assert_eq!(cut(&mut queue, 10), (3, 3));
        assert_eq!(cut(&mut queue, 1), (1, 1));
        assert_eq!(cut(&mut queue, 10), (1, 1));
        assert_eq!(cut(&mut queue, 10), (0, 0));
    }

    #[test]
    fn a_batch_has_whole_calls() {
        let mut queue = queue([(0, 3), (0, 4), (0, 9), (0, 1)]);
        assert_eq!(cut(&mut queue, 8), (2, 7));
        assert_eq!(queue.keys[0], Fingerprint::from_parts(0, 0));
        assert_eq!(cut(&mut queue, 8), (1, 9));
        assert_eq!(cut(&mut queue, 8), (1, 1));
    }

    #[test]
    fn calls_that_nobody_waits_for_are_left_out_with_their_keys() {
        let mut queue = queue([(0, 2), (1, 3), (2, 1)]);
        let (reply, _waits) = oneshot::channel();
        queue.waiting[1].reply = reply;
        let batch = queue.cut(100, Duration::from_secs(1)).without_gone();
        let keys = (0..3).map(|key| Fingerprint::from_parts(1, key));
        assert_eq!(batch.keys, keys.collect::<Vec<_>>());
        assert_eq!(batch.calls.len(), 1);
    }
}
