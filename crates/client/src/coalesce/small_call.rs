//! A small call: its way into the queues of its keys' nodes, and what its caller hears.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use futures_util::future::join_all;
use keydb_core::{Fingerprint, NodeId, Ttl};
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout_at},
};

use super::{
    coalescer::{Coalesced, Coalescer},
    driver::{Driver, runtime_stopped},
    queue::{Queue, QueueId, Waiting},
    repeat::{ClaimPiece, Coalition},
    told::{Answers, GRACE, Told},
};
use crate::{
    call::{Failure, Outcome, outcomes_of, result_of},
    cluster::Routing,
    config::Coalescing,
    error::{ErrorKind, NotApplied},
};

/// How many queues there can be at a time for each node of the cluster, one for each TTL; calls with further ones are sent by
/// themselves.
const QUEUES_PER_NODE_MAX: usize = 64;

/// A call of few keys.
#[derive(Debug, Clone, Copy)]
pub(super) struct SmallCall<'a> {
    pub(super) coalescer: &'a Arc<Coalescer>,
    pub(super) coalescing: &'a Coalescing,
    pub(super) ttl: Option<Ttl>,
    pub(super) since: Instant,
}

/// The keys of a call that one node owns.
#[derive(Debug)]
struct Piece {
    node: NodeId,
    keys: Vec<Fingerprint>,
    /// Which keys of the call they are.
    positions: Vec<usize>,
}

type Reply<A> = oneshot::Receiver<Told<A>>;

/// What a queue that has got a call needs.
#[derive(Debug)]
enum Wake<A: Coalesced> {
    Nothing,
    /// Its driver is waiting.
    News(Arc<Notify>),
    /// It is new.
    Driver(Driver<A>),
}

impl SmallCall<'_> {
    /// Runs it together with others; `None` when it has to go by itself.
    pub(super) async fn run<A: Coalesced>(
        self,
        keys: &[Fingerprint],
    ) -> Option<Result<Answers<A>, Failure<A>>> {
        let Some(node) = self.only_node(keys) else {
            return self.run_pieces(keys).await;
        };
        let reply = match self.enqueue(node, keys) {
            Ok(reply) => reply?,
            Err(reason) => return Some(Err(Failure::not_applied(reason, keys.len()))),
        };
        let (result, travelled) = self.told(reply, keys.len()).await.hear();
        Some(result.map_err(|failure| {
            let positions = (0..keys.len()).collect();
            let piece = ClaimPiece {
                positions,
                travelled,
            };
            self.repeatable(failure, keys, vec![piece])
        }))
    }

    /// The node that owns all of the keys, if there is one.
    fn only_node(self, keys: &[Fingerprint]) -> Option<NodeId> {
        let routing = self.coalescer.shared.router.current();
        let mut nodes = keys.iter().map(|key| routing.table.node_of(key.top()));
        let first = nodes.next()?;
        nodes.all(|node| node == first).then_some(first)
    }

    async fn run_pieces<A: Coalesced>(
        self,
        keys: &[Fingerprint],
    ) -> Option<Result<Answers<A>, Failure<A>>> {
        let pieces = pieces_of(&self.coalescer.shared.router.current(), keys);
        let replies = self.enqueue_pieces(&pieces)?;
        let told = pieces.iter().zip(replies).map(async |(piece, reply)| {
            let count = piece.keys.len();
            match reply {
                Ok(reply) => self.told(reply, count).await,
                Err(reason) => Told::failed(reason, Outcome::NotApplied, count),
            }
        });
        let told: Vec<Told<A>> = join_all(told).await;
        let mut outcomes = vec![Outcome::NotApplied; keys.len()];
        let mut failed = None;
        let mut claim_pieces = Vec::with_capacity(pieces.len());
        for (Piece { positions, .. }, told) in pieces.into_iter().zip(told) {
            let (result, travelled) = told.hear();
            let (reason, of_piece) = outcomes_of(result.map(Answers::into_vec));
            failed = failed.or(reason);
            for (position, outcome) in positions.iter().zip(of_piece) {
                outcomes[*position] = outcome;
            }
            claim_pieces.push(ClaimPiece {
                positions,
                travelled,
            });
        }
        let result = result_of(failed, outcomes).map(Answers::Many);
        Some(result.map_err(|failure| self.repeatable(failure, keys, claim_pieces)))
    }

    /// Puts all keys into the queue of `node`; `None` when the call has to go by itself.
    fn enqueue<A: Coalesced>(
        self,
        node: NodeId,
        keys: &[Fingerprint],
    ) -> Result<Option<Reply<A>>, NotApplied> {
        let mut queues = A::queues(self.coalescer).lock();
        if !self.is_room_for(&queues, [node].into_iter()) {
            return Ok(None);
        }
        let (reply, wake) = self.add(&mut queues, node, keys, false)?;
        drop(queues);
        self.wake(wake);
        Ok(Some(reply))
    }

    /// Puts each piece into its queue, all at once; `None` when the call has to go by itself.
    fn enqueue_pieces<A: Coalesced>(
        self,
        pieces: &[Piece],
    ) -> Option<Vec<Result<Reply<A>, NotApplied>>> {
        let mut queues = A::queues(self.coalescer).lock();
        if !self.is_room_for(&queues, pieces.iter().map(|piece| piece.node)) {
            return None;
        }
        let added: Vec<_> = pieces
            .iter()
            .map(|piece| self.add(&mut queues, piece.node, &piece.keys, true))
            .collect();
        drop(queues);
        let woken = added.into_iter().map(|added| {
            added.map(|(reply, wake)| {
                self.wake(wake);
                reply
            })
        });
        Some(woken.collect())
    }

    /// Whether these nodes have queues, or can have them.
    fn is_room_for<A>(
        self,
        queues: &BTreeMap<QueueId, Queue<A>>,
        nodes: impl Iterator<Item = NodeId>,
    ) -> bool {
        let new = nodes.filter(|node| !queues.contains_key(&self.queue_id(*node)));
        match new.count() {
            0 => true,
            new => {
                let nodes = self.coalescer.shared.router.current().nodes().len();
                queues.len() + new <= QUEUES_PER_NODE_MAX * nodes
            }
        }
    }

    fn queue_id(self, node: NodeId) -> QueueId {
        QueueId {
            ttl: self.ttl,
            node,
        }
    }

    /// Puts keys into the queue of `node`.
    fn add<A: Coalesced>(
        self,
        queues: &mut BTreeMap<QueueId, Queue<A>>,
        node: NodeId,
        keys: &[Fingerprint],
        is_piece: bool,
    ) -> Result<(Reply<A>, Wake<A>), NotApplied> {
        let (sender, reply) = oneshot::channel();
        let waiting = Waiting {
            keys: keys.len(),
            is_piece,
            since: self.since,
            reply: sender,
        };
        let id = self.queue_id(node);
        let wake = match queues.entry(id) {
            Entry::Occupied(mut queue) => {
                let queue = queue.get_mut();
                let (before, full) = (queue.keys.len(), self.coalescing.keys_max);
                queue.add(keys, waiting)?;
                let is_news = before == 0 || (before < full && queue.keys.len() >= full);
                match is_news {
                    true => Wake::News(Arc::clone(&queue.news)),
                    false => Wake::Nothing,
                }
            }
            Entry::Vacant(place) => {
                let mut queue = Queue::new();
                queue.add(keys, waiting)?;
                let queue = place.insert(queue);
                Wake::Driver(Driver {
                    coalescer: Arc::clone(self.coalescer),
                    queues: Arc::clone(A::queues(self.coalescer)),
                    id,
                    news: Arc::clone(&queue.news),
                    coalescing: self.coalescing.clone(),
                })
            }
        };
        Ok((reply, wake))
    }

    /// To be called without the queues' lock: a driver that cannot run any more takes its queue away.
    fn wake<A: Coalesced>(self, wake: Wake<A>) {
        match wake {
            Wake::Nothing => {}
            Wake::News(news) => news.notify_one(),
            Wake::Driver(driver) => {
                let shared = &self.coalescer.shared;
                shared.tasks.spawn_on(driver.run(), &shared.runtime);
            }
        }
    }

    /// Waits for what becomes of keys in a queue.
    async fn told<A: Coalesced>(self, reply: Reply<A>, keys: usize) -> Told<A> {
        let timeout = self.coalescer.shared.config.call_timeout;
        let reason = match timeout_at(self.since + timeout + GRACE, reply).await {
            Ok(Ok(told)) => return told,
            // Keys that have not been sent are told so, see `Driver::close`; these were in a batch.
            Ok(Err(_)) => runtime_stopped(1),
            Err(_) => NotApplied::DeadlineExceeded {
                kind: ErrorKind::Deadline,
                timeout,
                waiting_for: "nothing was heard of the batch that has the keys; the runtime that the client was connected in may be stuck"
                    .into(),
            },
        };
        Told::failed(reason, Outcome::MaybeApplied, keys)
    }

    /// The failure with what its call can be repeated as, if that is a claim that may have been applied.
    fn repeatable<A: Coalesced>(
        self,
        failure: Failure<A>,
        keys: &[Fingerprint],
        pieces: Vec<ClaimPiece>,
    ) -> Failure<A> {
        let is_applied = |outcome: &Outcome<A>| !matches!(outcome, Outcome::NotApplied);
        let (Some(ttl), true, true) = (
            self.ttl,
            pieces.iter().any(|piece| piece.travelled.is_some()),
            failure.outcomes.iter().any(is_applied),
        ) else {
            return failure;
        };
        let claim = Coalition {
            ttl,
            keys: keys.to_vec(),
            pieces,
        };
        failure.repeatable_as(Some(self.coalescer.repeatable.add(claim)))
    }
}

/// The keys by the nodes that own them, each node's in the order of the call.
fn pieces_of(routing: &Routing, keys: &[Fingerprint]) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for (position, key) in keys.iter().enumerate() {
        let node = routing.table.node_of(key.top());
        let at = pieces.iter().position(|piece| piece.node == node);
        let at = at.unwrap_or_else(|| {
            pieces.push(Piece {
                node,
                keys: Vec::new(),
                positions: Vec::new(),
            });
            pieces.len() - 1
        });
        pieces[at].keys.push(*key);
        pieces[at].positions.push(position);
    }
    pieces
}
