//! Where small calls wait for a batch.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use keydb_core::{Fingerprint, NodeId, Ttl};
use keydb_proto::trace;
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};
use tracing::Span;

use super::told::Told;
use crate::error::{ErrorKind, NotApplied};

/// How many keys can wait in a queue: more than those of all tasks that a program would run.
const QUEUE_KEYS_MAX: usize = 1 << 20;

/// What the calls of a queue have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct QueueId {
    pub(super) ttl: Option<Ttl>,
    /// Whom their keys were for when they came. A batch goes by what is known when it goes.
    pub(super) node: NodeId,
}

/// The queues of one operation.
#[derive(Debug)]
pub(crate) struct Queues<A>(Mutex<BTreeMap<QueueId, Queue<A>>>);

impl<A> Default for Queues<A> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<A> Queues<A> {
    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<QueueId, Queue<A>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Calls in the order in which they came. There can be many, so what stays when a batch is cut must not be moved.
#[derive(Debug)]
pub(super) struct Queue<A> {
    /// The keys of all calls.
    pub(super) keys: VecDeque<Fingerprint>,
    pub(super) waiting: VecDeque<Waiting<A>>,
    /// That of the first call that is traced, of those that came since a batch was cut: the next batch is in its trace.
    pub(super) span: Span,
    /// Told when the first call comes, when a batch is full, and when one has become slow.
    pub(super) news: Arc<Notify>,
}

impl<A> Queue<A> {
    pub(super) fn new() -> Self {
        Self {
            keys: VecDeque::new(),
            waiting: VecDeque::new(),
            span: Span::none(),
            news: Arc::default(),
        }
    }

    /// Puts a call in, if there is room.
    pub(super) fn add(
        &mut self,
        keys: &[Fingerprint],
        waiting: Waiting<A>,
    ) -> Result<(), NotApplied> {
        let before = self.keys.len();
        if before + keys.len() > QUEUE_KEYS_MAX {
            return Err(NotApplied::Unavailable {
                kind: ErrorKind::Overloaded,
                attempts: 0,
                last_error: format!(
                    "{before} keys of small calls are waiting already, and {QUEUE_KEYS_MAX} are the most that can"
                )
                .into(),
            });
        }
        self.keys.extend(keys);
        self.waiting.push_back(waiting);
        if self.span.is_none() {
            self.span = trace::current();
        }
        Ok(())
    }

    /// Takes out the first calls, at most so many keys unless the very first has more, that came not much later than that one.
    pub(super) fn cut(&mut self, keys_max: usize, spread: Duration) -> Batch<A> {
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
        let span = std::mem::replace(&mut self.span, Span::none());
        if calls == self.waiting.len() {
            return Batch {
                span,
                keys: std::mem::take(&mut self.keys).into(),
                calls: std::mem::take(&mut self.waiting).into(),
            };
        }
        Batch {
            span,
            keys: self.keys.drain(..keys).collect(),
            calls: self.waiting.drain(..calls).collect(),
        }
    }
}

/// Calls that travel together.
#[derive(Debug)]
pub(super) struct Batch<A> {
    /// The keys of all calls, in their order.
    pub(super) keys: Vec<Fingerprint>,
    pub(super) calls: Vec<Waiting<A>>,
    /// That of one of them.
    pub(super) span: Span,
}

impl<A> Batch<A> {
    /// Of no calls.
    pub(super) fn empty() -> Self {
        Self {
            keys: Vec::new(),
            calls: Vec::new(),
            span: Span::none(),
        }
    }

    /// Adds a call with these keys.
    pub(super) fn push(&mut self, call: Waiting<A>, keys: impl IntoIterator<Item = Fingerprint>) {
        self.keys.extend(keys);
        self.calls.push(call);
    }

    /// Leaves out the calls that nobody waits for any more. Nothing of them has been sent.
    pub(super) fn without_gone(self) -> Self {
        if !self.calls.iter().any(|call| call.reply.is_closed()) {
            return self;
        }
        let mut left = Self {
            span: self.span,
            ..Self::empty()
        };
        let mut keys = self.keys.into_iter();
        for call in self.calls {
            let own = keys.by_ref().take(call.keys);
            if call.reply.is_closed() {
                own.for_each(drop);
            } else {
                left.push(call, own);
            }
        }
        left
    }
}

/// A call, or a piece of one, and who waits for it.
#[derive(Debug)]
pub(super) struct Waiting<A> {
    /// How many keys it has.
    pub(super) keys: usize,
    /// Whether the call has other keys elsewhere.
    pub(super) is_piece: bool,
    pub(super) since: Instant,
    pub(super) reply: oneshot::Sender<Told<A>>,
}

impl<A> Waiting<A> {
    /// Tells the caller. One that has gone away needs nothing.
    pub(super) fn tell(self, told: Told<A>) {
        let _ = self.reply.send(told);
    }
}

#[cfg(test)]
mod tests {
    use keydb_core::Claim;

    use super::*;

    /// A queue with a call each so many milliseconds after the first, and of so many keys.
    fn queue(calls: impl IntoIterator<Item = (u64, usize)>) -> Queue<Claim> {
        let start = Instant::now();
        let mut queue = Queue::new();
        for (ms, keys) in calls {
            let of_call = (0..keys).map(|key| Fingerprint::from_parts(ms, key as u32));
            let waiting = Waiting {
                keys,
                is_piece: false,
                since: start + Duration::from_millis(ms),
                reply: oneshot::channel().0,
            };
            queue.add(&of_call.collect::<Vec<_>>(), waiting).unwrap();
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
