//! Does what the ranges' machines want.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use keydb_core::{
    ClusterMap, NodeId, RangeId,
    moving::{Assignment, Change, Event, Manifests, RangeMachine},
};
use keydb_storage::MapStore;
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use super::{objects, state::Deciding, successor::Sessions, words::Words};
use crate::{NodeError, disk::failpoint, node::Node, ranges::owned::OwnedRange};

/// How often it is looked whether something is to be done that nobody has told of.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// A node writes the map at most this often to move ranges.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// How long a write of the map may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(45);
/// A range is sealed at most for so long without its successor's hearing of it.
const SEAL_MAX: Duration = Duration::from_secs(1);
/// How long is waited before another node's snapshots are loaded again.
const TAKE_OVER_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// After so long a successor that was sent *begin* is asked what has come of it.
const BEGUN_AFTER_MAX: Duration = Duration::from_secs(1);
/// How long is waited before a decision that the disk did not take is written again.
const DECIDE_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// Moves ranges until the node ends.
pub(crate) async fn run(node: Arc<Node>, store: MapStore) -> NodeError {
    let mut mover = Mover {
        node,
        store,
        sessions: Sessions::default(),
        words: Words::default(),
        deciding: JoinSet::new(),
        draining: BTreeMap::new(),
        begun: BTreeMap::new(),
        drains: JoinSet::new(),
        taking_over: BTreeSet::new(),
        takeovers: JoinSet::new(),
        writing: JoinSet::new(),
        written: None,
    };
    loop {
        mover.look();
        tokio::select! {
            () = mover.node.moves.changed() => {}
            () = sleep(LOOK_INTERVAL) => {}
            Some(drained) = mover.drains.join_next() => mover.drained(drained.unwrap_or_default()),
            Some(decided) = mover.deciding.join_next() => {
                if let Ok(decided) = decided {
                    mover.node.moves.decided(&decided);
                }
            }
            Some(taken) = mover.takeovers.join_next() => {
                if let Ok((id, is_loaded)) = taken {
                    mover.taking_over.remove(&id);
                    if is_loaded {
                        mover.node.moves.on([(id, Event::Loaded)]);
                    }
                }
            }
            Some(written) = mover.writing.join_next() => {
                if let Ok(Some(version)) = written {
                    mover.sessions.published(version);
                }
            }
        }
    }
}

struct Mover {
    node: Arc<Node>,
    store: MapStore,
    sessions: Sessions,
    words: Words,
    /// Decisions that are being written down, one set at a time.
    deciding: JoinSet<Arc<Deciding>>,
    /// The ranges whose last requests are waited for, and since when.
    draining: BTreeMap<RangeId, Instant>,
    /// Since when successors were sent *begin*; nothing where they were asked what has come of it.
    begun: BTreeMap<RangeId, Option<Instant>>,
    drains: JoinSet<Vec<RangeId>>,
    /// The ranges that are loaded from object storage as disks were lost.
    taking_over: BTreeSet<RangeId>,
    takeovers: JoinSet<(RangeId, bool)>,
    /// The version of the map that was written.
    writing: JoinSet<Option<(u64, u64)>>,
    /// When the map was written last.
    written: Option<Instant>,
}

impl Mover {
    fn look(&mut self) {
        if self.deciding.is_empty()
            && let Some(deciding) = self.node.moves.decide()
        {
            self.deciding
                .spawn(write_down(Arc::clone(&self.node), deciding));
        }
        self.drain();
        self.begin();
        self.words.tell(&self.node);
        let owners: BTreeSet<NodeId> = self
            .node
            .moves
            .look(|_, machine| machine.wants_copy_from())
            .into_iter()
            .collect();
        self.sessions.keep(&self.node, &owners);
        self.take_over();
        self.write_map();
    }

    /// Waits for the last requests of ranges that were sealed.
    fn drain(&mut self) {
        let sealed: Vec<RangeId> = self
            .node
            .moves
            .look(|id, machine| is_shut(machine).then_some(id));
        self.draining.retain(|id, _| sealed.contains(id));
        let late: Vec<RangeId> = self
            .draining
            .iter()
            .filter(|(_, since)| since.elapsed() > SEAL_MAX)
            .map(|(id, _)| *id)
            .collect();
        if !late.is_empty() {
            warn!(node = %self.node.config.id, ranges = late.len(), "ranges were not handed over: requests did not end in time");
            let events = late.into_iter().map(|id| (id, Event::SealTimedOut));
            self.node.moves.on(events);
        }
        self.ask_after_begin();
        let new: Vec<RangeId> = sealed
            .into_iter()
            .filter(|id| !self.draining.contains_key(id))
            .collect();
        if new.is_empty() {
            return;
        }
        self.draining
            .extend(new.iter().map(|id| (*id, Instant::now())));
        let node = Arc::clone(&self.node);
        self.drains.spawn(async move {
            node.grace.passed().await;
            if let Some(journal) = node.committed_records()
                && journal.wait_committed(journal.taken()).await.is_err()
            {
                // The node is about to end.
                return Vec::new();
            }
            new
        });
    }

    /// Where nothing has come of *begin* for a while, the successor is asked.
    fn ask_after_begin(&mut self) {
        let waiting: Vec<RangeId> = self
            .node
            .moves
            .look(|id, machine| machine.awaits_begun().then_some(id));
        self.begun.retain(|id, _| waiting.contains(id));
        let mut late = Vec::new();
        for id in waiting {
            let since = self.begun.entry(id).or_insert_with(|| Some(Instant::now()));
            if since.take_if(|at| at.elapsed() > BEGUN_AFTER_MAX).is_some() {
                late.push((id, Event::BeginUnanswered));
            }
        }
        if !late.is_empty() {
            self.node.moves.on(late);
        }
    }

    fn drained(&self, ranges: Vec<RangeId>) {
        failpoint::step("move.drained", &self.node.config.data_dir);
        let events = ranges.into_iter().map(|id| (id, Event::Drained));
        self.node.moves.on(events);
    }

    fn begin(&self) {
        let moves = &self.node.moves;
        let begin = moves.look(|id, machine| Some((id, machine.wants_begin()?)));
        for (id, (lineage, generation, copy)) in begin {
            moves.sessions.begin(id, lineage, generation, copy);
        }
    }

    /// Has ranges loaded whose last keepers have lost their disks: from this node's own snapshots, which it loads at its start, and from
    /// the other's.
    fn take_over(&mut self) {
        let wanted = self
            .node
            .moves
            .look(|id, machine| Some((id, machine.wants_manifests()?)));
        for (id, manifests) in wanted {
            // It is in the table, but still loads.
            let range = self.node.moves.range(id);
            let Some(range) = range.filter(|range| range.readiness().is_some()) else {
                continue;
            };
            if self.taking_over.insert(id) {
                self.takeovers
                    .spawn(take_over(Arc::clone(&self.node), id, range, manifests));
            }
        }
    }

    /// Writes what the machines want changed, all of it at once.
    fn write_map(&mut self) {
        let is_early = self.written.is_some_and(|at| at.elapsed() < WRITE_INTERVAL);
        if !self.writing.is_empty() || is_early {
            return;
        }
        let wanted = self.node.moves.look(|_, machine| {
            let stored = *machine.assignment();
            Some((machine.wants_change(&stored)?, stored.owner))
        });
        // What is published is handed over at once, so little is to be on its way.
        let close: BTreeSet<NodeId> = wanted
            .iter()
            .map(|(_, owner)| *owner)
            .filter(|owner| self.sessions.is_close(*owner))
            .collect();
        if !wanted
            .iter()
            .any(|(change, owner)| is_due(*change, *owner, &close))
        {
            return;
        }
        self.written = Some(Instant::now());
        let (node, store) = (Arc::clone(&self.node), self.store.clone());
        self.writing
            .spawn(async move { write(&node, &store, &close).await });
    }
}

/// Whether a range is sealed, and its successor may not have heard of it.
fn is_shut(machine: &RangeMachine) -> bool {
    machine.wants_drained() || machine.wants_begin().is_some()
}

/// Whether a change of a range that `owner` has may be written now, by a node that is `close` behind these owners.
fn is_due(change: Change, owner: NodeId, close: &BTreeSet<NodeId>) -> bool {
    !matches!(change, Change::Publish { .. }) || close.contains(&owner)
}

/// The steps before and after a change of the map.
fn steps_of(change: Change) -> [&'static str; 2] {
    match change {
        Change::Publish { .. } => ["move.publish", "move.published"],
        Change::TakeBack => ["move.take_back", "move.taken_back"],
        Change::ClearFrom => ["move.clear", "move.cleared"],
    }
}

/// Writes decisions down, until the disk takes them.
async fn write_down(node: Arc<Node>, deciding: Deciding) -> Arc<Deciding> {
    let deciding = Arc::new(deciding);
    for [before, _] in &deciding.steps {
        failpoint::step(before, &node.config.data_dir);
    }
    loop {
        let writing = Arc::clone(&deciding);
        let written = spawn_blocking(move || writing.write()).await;
        let reason = match written {
            Ok(Ok(())) => break,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        warn!(node = %node.config.id, "a decision about ranges that move is not written down, trying again: {reason}");
        sleep(DECIDE_AGAIN_AFTER).await;
    }
    for [_, after] in &deciding.steps {
        failpoint::step(after, &node.config.data_dir);
    }
    deciding
}

/// Loads what another node's snapshots have of a range, where that is wanted too. Returns the range, and whether that was done.
async fn take_over(
    node: Arc<Node>,
    id: RangeId,
    range: Arc<OwnedRange>,
    manifests: Manifests,
) -> (RangeId, bool) {
    let Some(other) = manifests.also_of else {
        return (id, true);
    };
    let loaded = match node.disk().and_then(|disk| disk.snapshots()) {
        Some(snapshots) => {
            let store = snapshots.store().clone();
            objects::load(Arc::clone(&node), store, other, range)
                .await
                .map(drop)
        }
        // In `memory` mode there are none.
        None => Ok(()),
    };
    match loaded {
        Ok(()) => (id, true),
        Err(objects::LoadError::NotThere(_)) => (id, true),
        Err(error) => {
            warn!(node = %node.config.id, range = %id, "the snapshots of node {other} are not loaded, trying again: {error}");
            sleep(TAKE_OVER_AGAIN_AFTER).await;
            (id, false)
        }
    }
}

/// Writes what the machines want changed in the map that is stored.
async fn write(node: &Node, store: &MapStore, close: &BTreeSet<NodeId>) -> Option<(u64, u64)> {
    let me = node.config.id;
    let mut changes = 0;
    let mut steps = BTreeSet::new();
    let change = |current: &ClusterMap| -> Result<Option<ClusterMap>, Infallible> {
        let mut next = current.successor();
        changes = 0;
        steps.clear();
        for index in 0..current.ranges.len() {
            let stored = Assignment::of(current, index);
            let id = current.ranges[index].id;
            let wanted = node.moves.wanted_change(id, &stored);
            if let Some(change) = wanted.filter(|it| is_due(*it, stored.owner, close)) {
                change.apply(me, &stored, &mut next.ranges[index]);
                changes += 1;
                steps.insert(steps_of(change));
            }
        }
        for [before, _] in &steps {
            failpoint::step(before, &node.config.data_dir);
        }
        Ok((changes > 0).then_some(next))
    };
    match timeout(WRITE_TIMEOUT, store.update(change)).await {
        Ok(Ok(map)) => {
            for [_, after] in &steps {
                failpoint::step(after, &node.config.data_dir);
            }
            if changes > 0 {
                info!(node = %me, epoch = map.epoch, ranges = changes, "changed the cluster map");
            }
            node.hear_of_version(map.version());
            return Some(map.version());
        }
        Ok(Err(error)) => {
            warn!(node = %me, "the cluster map is not changed, trying again: {error}")
        }
        Err(_) => warn!(node = %me, "the cluster map is not changed in time, trying again"),
    }
    None
}
