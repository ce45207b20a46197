//! The machines of the ranges that concern this node, and the table of ranges that follows from them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};

use keydb_core::{
    Arena, CopyId, Manifest, NodeId, RangeId,
    moving::{
        Assignment, Change, Decision, Event, OwnerWord, RangeMachine, Standing, Start,
        SuccessorWord, Word,
    },
};
use tokio::sync::Notify;

use super::{
    budget::Budget,
    decisions::{self, AllDecisions},
    owner::OwnerSessions,
};
use crate::{
    DataDirError, MoveBudget,
    cluster::membership_state::{CurrentMembership, MembershipState},
    lock::lock,
    ranges::owned::{CurrentMap, OwnedRange, OwnedRanges},
};

/// The ranges that come to this node, are here, or leave it.
#[derive(Debug)]
pub(crate) struct Moves {
    me: NodeId,
    arena: Arc<Arena>,
    membership: Arc<CurrentMembership>,
    state: Mutex<State>,
    /// Told whenever a machine may want something else than before.
    changed: Notify,
    /// What copies may take of the node.
    pub(crate) budget: Budget,
    /// The sessions in which this node is the owner.
    pub(crate) sessions: OwnerSessions,
}

#[derive(Debug, Default)]
struct State {
    current_map: Option<Arc<CurrentMap>>,
    machines: BTreeMap<RangeId, RangeMachine>,
    /// The ranges whose keys are here.
    ranges: BTreeMap<RangeId, Arc<OwnedRange>>,
    decisions: AllDecisions,
    moved: MoveCounts,
    /// Where decisions are written down; nowhere in `memory` mode.
    root: Option<PathBuf>,
}

/// Decisions on their way to the disk.
#[derive(Debug)]
pub(super) struct Deciding {
    ranges: Vec<RangeId>,
    decisions: AllDecisions,
    root: Option<PathBuf>,
    /// The steps before and after them.
    pub(super) steps: BTreeSet<[&'static str; 2]>,
    moved: MoveCounts,
}

/// Hash ranges that have changed their owner since the node's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct MoveCounts {
    /// To this node.
    pub(crate) come: u64,
    /// From it.
    pub(crate) gone: u64,
}

impl Moves {
    pub(crate) fn new(
        me: NodeId,
        limits: MoveBudget,
        arena: Arc<Arena>,
        membership: Arc<CurrentMembership>,
    ) -> Self {
        Self {
            me,
            arena,
            membership,
            state: Mutex::default(),
            changed: Notify::new(),
            budget: Budget::new(limits),
            sessions: OwnerSessions::default(),
        }
    }

    /// Begins to go by `current_map`, at the node's start; `root` is its data directory, if it has one.
    ///
    /// # Errors
    /// When what is kept there cannot be read.
    pub(crate) fn start(
        &self,
        current_map: Arc<CurrentMap>,
        root: Option<PathBuf>,
        manifest: Option<&Manifest>,
    ) -> Result<(), DataDirError> {
        let mut state = self.state();
        state.decisions = match &root {
            Some(root) => decisions::read(root)?,
            None => AllDecisions::new(),
        };
        state.root = root;
        let map = &current_map.map;
        for (index, range) in map.ranges.iter().enumerate() {
            let decisions = state.decisions.get(&range.id).copied();
            let assignment = Assignment::of(map, index);
            if decisions.is_none() && !concerns(&assignment, self.me) {
                continue;
            }
            let decisions = decisions.unwrap_or_default();
            let start = if state.root.is_some() {
                // Before the first round the manifest names nothing.
                let is_named = manifest.is_none_or(|manifest| {
                    manifest.is_blank() || manifest.range(range.id).is_some()
                });
                let is_sealed = decisions
                    .as_owner
                    .is_some_and(|it| it.word == OwnerWord::Sealed);
                let is_lost = decisions.lost == Some((map.lineage, range.generation));
                Start::Kept {
                    has_keys: !is_lost && (is_named || !is_sealed),
                }
            } else {
                Start::NewDisk
            };
            let machine = RangeMachine::new(self.me, assignment, decisions, start);
            state.machines.insert(range.id, machine);
        }
        state.current_map = Some(current_map);
        self.settle(&mut state);
        Ok(())
    }

    /// Goes by a newer map, which is on the disk.
    pub(crate) fn go_by(&self, current_map: Arc<CurrentMap>) {
        let mut state = self.state();
        let map = &current_map.map;
        // A disk that the map does not name any more is not sealed for.
        let disk_of = |id| map.node(id).and_then(|entry| entry.disk_id);
        for (id, copy) in self.sessions.end_others(disk_of) {
            if let Some(machine) = state.machines.get_mut(&id) {
                machine.on(Event::TapEnded(copy));
            }
        }
        for (index, range) in map.ranges.iter().enumerate() {
            let assignment = Assignment::of(map, index);
            if let Some(machine) = state.machines.get_mut(&range.id) {
                if *machine.assignment() != assignment {
                    machine.on(Event::Map(assignment));
                }
            } else if concerns(&assignment, self.me) {
                let machine = self.new_machine(&state, range.id, assignment);
                state.machines.insert(range.id, machine);
            }
        }
        state.current_map = Some(current_map);
        self.settle(&mut state);
    }

    /// Of a range in which the node has had no part since its start.
    fn new_machine(&self, state: &State, id: RangeId, assignment: Assignment) -> RangeMachine {
        let start = match &state.root {
            Some(_) => Start::Kept { has_keys: false },
            None => Start::NewDisk,
        };
        let decisions = state.decisions.get(&id).copied().unwrap_or_default();
        RangeMachine::new(self.me, assignment, decisions, start)
    }

    /// The ranges' machines, to look at.
    pub(super) fn look<T>(&self, each: impl Fn(RangeId, &RangeMachine) -> Option<T>) -> Vec<T> {
        let state = self.state();
        let machines = state.machines.iter();
        machines
            .filter_map(|(id, machine)| each(*id, machine))
            .collect()
    }

    /// How a range is to be changed in the map, which has `stored` now.
    pub(super) fn wanted_change(&self, range: RangeId, stored: &Assignment) -> Option<Change> {
        self.state().machines.get(&range)?.wants_change(stored)
    }

    /// Tells machines what has happened, and does what follows.
    pub(super) fn on(&self, events: impl IntoIterator<Item = (RangeId, Event)>) {
        let mut state = self.state();
        for (id, event) in events {
            if let Some(machine) = state.machines.get_mut(&id) {
                machine.on(event);
            }
        }
        self.settle(&mut state);
    }

    /// Takes in what another node says. Returns what it is to be told at once.
    pub(super) fn told(
        &self,
        by: NodeId,
        range: RangeId,
        word: Word,
        lineage: u64,
        generation: u64,
    ) -> Option<Word> {
        let mut state = self.state();
        if !state.machines.contains_key(&range) {
            let current_map = state.current_map.as_ref()?;
            let assignment = Assignment::of(&current_map.map, current_map.index_of(range)?);
            let machine = self.new_machine(&state, range, assignment);
            state.machines.insert(range, machine);
        }
        let reply = state
            .machines
            .get_mut(&range)?
            .told(by, word, lineage, generation);
        self.settle(&mut state);
        reply
    }

    /// The decisions that are due, as they are to be written down; none where there are none.
    pub(super) fn decide(&self) -> Option<Deciding> {
        let mut state = self.state();
        let state = &mut *state;
        let mut ranges = Vec::new();
        let mut steps = BTreeSet::new();
        let mut moved = state.moved;
        let mut decisions = state.decisions.clone();
        for (id, machine) in &mut state.machines {
            let Some(decision) = machine.wants_decision() else {
                continue;
            };
            machine.on(Event::Deciding(decision));
            ranges.push(*id);
            steps.insert(steps_of(decision));
            let decided = decisions.entry(*id).or_default();
            let about = match decision {
                Decision::Owner(it) => {
                    decided.as_owner = Some(it);
                    moved.gone += u64::from(it.word == OwnerWord::Sealed);
                    (it.lineage, it.generation)
                }
                Decision::Successor(it) => {
                    decided.as_successor = Some(it);
                    moved.come += u64::from(it.word == SuccessorWord::Begun);
                    (it.lineage, it.generation)
                }
            };
            decided.lost.take_if(|lost| *lost == about);
        }
        (!ranges.is_empty()).then_some(Deciding {
            ranges,
            decisions,
            root: state.root.clone(),
            steps,
            moved,
        })
    }

    /// They are written down.
    pub(super) fn decided(&self, deciding: &Deciding) {
        let mut state = self.state();
        state.decisions.clone_from(&deciding.decisions);
        state.moved = deciding.moved;
        for id in &deciding.ranges {
            if let Some(machine) = state.machines.get_mut(id) {
                machine.on(Event::Decided);
            }
        }
        self.settle(&mut state);
    }

    /// Of these copies those that are not tapped any more.
    pub(super) fn not_tapped(&self, copies: &BTreeMap<RangeId, CopyId>) -> Vec<(RangeId, CopyId)> {
        let state = self.state();
        let is_tapped = |id: &RangeId, copy: &CopyId| {
            let machine = state.machines.get(id);
            machine.and_then(RangeMachine::tapped) == Some(*copy)
        };
        copies
            .iter()
            .filter(|(id, copy)| !is_tapped(id, copy))
            .map(|(id, copy)| (*id, *copy))
            .collect()
    }

    /// Whether *begin* of a range is still to be sent; then it counts as sent.
    pub(super) fn begin_goes(
        &self,
        range: RangeId,
        lineage: u64,
        generation: u64,
        copy: &[u8],
    ) -> bool {
        let mut state = self.state();
        let Some(machine) = state.machines.get_mut(&range) else {
            return false;
        };
        let wanted = machine.wants_begin();
        let is_wanted = wanted.is_some_and(|(of_lineage, of_generation, of_copy)| {
            (of_lineage, of_generation) == (lineage, generation) && of_copy.to_bytes() == *copy
        });
        if is_wanted {
            machine.on(Event::BeginSent);
        }
        is_wanted
    }

    /// A range whose keys are here.
    pub(super) fn range(&self, id: RangeId) -> Option<Arc<OwnedRange>> {
        self.state().ranges.get(&id).cloned()
    }

    /// `peer` asks for a copy of a range; what it is to get, if it is to.
    pub(super) fn tap(
        &self,
        peer: NodeId,
        range: RangeId,
        lineage: u64,
        generation: u64,
    ) -> Option<CopyId> {
        let mut state = self.state();
        if !state.ranges.get(&range)?.is_ready() {
            return None;
        }
        let machine = state.machines.get_mut(&range)?;
        if !machine.taps_for(peer, lineage, generation) {
            return None;
        }
        let copy = CopyId::random();
        machine.on(Event::Tapped { peer, copy });
        self.settle(&mut state);
        Some(copy)
    }

    /// `owner` begins to bring a copy; the range that takes it, if one is wanted from that owner.
    pub(super) fn copy_begins(
        &self,
        owner: NodeId,
        range: RangeId,
        copy: CopyId,
    ) -> Option<Arc<OwnedRange>> {
        let mut state = self.state();
        let machine = state.machines.get_mut(&range)?;
        if machine.wants_copy_from() != Some(owner) {
            return None;
        }
        machine.on(Event::CopyBegun(copy));
        self.settle(&mut state);
        state.ranges.get(&range).cloned()
    }

    /// Waits until a machine may want something else than before.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The copies that come in, and whether this node has all of them for good.
    pub(crate) fn copies(&self) -> BTreeMap<RangeId, bool> {
        let copies =
            self.look(|id, machine| machine.arriving().map(|_| (id, machine.is_secured())));
        copies.into_iter().collect()
    }

    /// How many ranges have come and gone.
    pub(crate) fn counts(&self) -> MoveCounts {
        self.state().moved
    }

    /// Has whoever waits look again.
    pub(super) fn wake(&self) {
        self.changed.notify_one();
    }

    /// Makes the table of ranges by which requests are answered.
    fn settle(&self, state: &mut State) {
        self.wake();
        let Some(current_map) = &state.current_map else {
            return;
        };
        let map = &current_map.map;
        let has_disk = state.root.is_some();
        let mut standings = HashMap::new();
        for (id, machine) in &state.machines {
            let Some(index) = current_map.index_of(*id) else {
                continue;
            };
            let assignment = machine.assignment();
            let standing = machine.standing();
            let by_map = Standing::Refers {
                node: assignment.owner,
                generation: assignment.generation,
            };
            let arriving = machine.arriving();
            let copy = arriving.or_else(|| begun_with(machine));
            // Nobody has brought its keys.
            let is_missing = standing == by_map && assignment.owner == self.me;
            let is_here =
                arriving.is_some() || machine.keeps_keys() || machine.is_lost() || is_missing;
            if !is_here {
                if let Some(range) = state.ranges.remove(id) {
                    range.shut();
                }
            } else if state.ranges.get(id).is_none_or(|range| range.copy != copy) {
                let generation = assignment.generation + u64::from(arriving.is_some());
                let bounds = map.bounds(index);
                let loads = has_disk || arriving.is_some();
                let range = OwnedRange::new(*id, generation, copy, bounds, &self.arena, loads);
                if let Some(before) = state.ranges.insert(*id, Arc::new(range)) {
                    before.shut();
                }
            }
            if let Some(range) = state.ranges.get(id) {
                match standing {
                    Standing::Answers(generation) => range.open(generation),
                    _ if is_missing => {
                        range.close("it came to this node without its keys".to_owned());
                        range.open(assignment.generation);
                    }
                    Standing::Holds(_) | Standing::Refers { .. } => range.shut(),
                }
            }
            if standing != by_map && standing != Standing::Answers(assignment.generation) {
                standings.insert(*id, standing);
            }
        }
        let ranges = state.ranges.values().cloned().collect();
        let table = OwnedRanges::with(self.me, Arc::clone(current_map), ranges, standings);
        self.membership.set(MembershipState::Serving(table));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Deciding {
    /// Writes the decisions down, synced.
    ///
    /// # Errors
    /// When the disk does not take them; they are to be written again then, for nobody knows whether they are there.
    pub(super) fn write(&self) -> Result<(), DataDirError> {
        match &self.root {
            Some(root) => decisions::write(root, &self.decisions),
            None => Ok(()),
        }
    }
}

/// The steps before and after a decision.
fn steps_of(decision: Decision) -> [&'static str; 2] {
    match decision {
        Decision::Owner(it) => match it.word {
            OwnerWord::Sealed => ["move.seal", "move.sealed"],
            OwnerWord::Refused => ["move.refuse", "move.refused"],
        },
        Decision::Successor(it) => match it.word {
            SuccessorWord::Begun => ["move.begin", "move.begun"],
            SuccessorWord::Voided => ["move.void", "move.voided"],
        },
    }
}

/// Whether a node has a part to play for a range.
fn concerns(assignment: &Assignment, me: NodeId) -> bool {
    assignment.owner == me
        || assignment.successor == Some(me)
        || assignment.from.is_some_and(|from| from.node == me)
}

/// What has brought the keys that the node has as the owner, if another node had them before.
fn begun_with(machine: &RangeMachine) -> Option<CopyId> {
    let begun = machine.decisions().as_successor?;
    begun.copy.filter(|_| begun.word == SuccessorWord::Begun)
}
