//! A small cluster in which one range moves: what the nodes' disks, sessions and clients do around [`RangeMachine`].
//!
//! Two or three nodes, one range, two keys, three operations (two claims of key 0, a put of key 1) with one repeat each. What may go wrong
//! is bounded by [`Budget`]; everything else may happen in any order.

use std::fmt;

use keydb_core::{
    CopyId, NodeId,
    moving::{
        Assignment, Change, Decision, Decisions, Event, OwnerWord, RangeMachine, Standing, Start,
        SuccessorWord, Word,
    },
};

use crate::fault::Fault;

/// Keys and remembered answers, as bits. They only ever add up.
pub(crate) type Data = u16;

const KEYS: [Data; 3] = [1, 1, 2];
pub(crate) const OPS: usize = 3;
const PUT: usize = 2;

const fn first(op: usize) -> Data {
    1 << (2 + 2 * op)
}

const fn later(op: usize) -> Data {
    2 << (2 + 2 * op)
}

const ANSWERS: Data = !3;

/// What may still go wrong, and what operators may still do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    /// A node is killed.
    pub(crate) crashes: u8,
    /// A node is killed, and its disk is gone.
    pub(crate) losses: u8,
    /// A session breaks.
    pub(crate) breaks: u8,
    /// A conditional write is applied later than its writer thinks, or never.
    pub(crate) late_writes: u8,
    /// A word arrives late.
    pub(crate) late_words: u8,
    /// Object storage is away for a while.
    pub(crate) outages: u8,
    /// An operator plans a move.
    pub(crate) plans: u8,
    /// An operator gives the operation up.
    pub(crate) aborts: u8,
    /// A seal takes too long.
    pub(crate) timeouts: u8,
    /// The operations that clients send, a bit each.
    pub(crate) operations: u8,
}

/// What is explored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Config {
    pub(crate) nodes: usize,
    pub(crate) budget: Budget,
    /// The first owner is to leave the cluster.
    pub(crate) is_leaving: bool,
    pub(crate) fault: Option<Fault>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Node {
    is_alive: bool,
    /// It has left the cluster.
    has_ended: bool,
    machine: RangeMachine,
    // On its disk:
    saved: Assignment,
    decisions: Decisions,
    on_disk: bool,
    durable: Data,
    has_new_disk: bool,
    // In its memory:
    memory: Data,
    /// Fault "owner's LSN kept": what came from another node.
    foreign: Data,
    /// What is applied and not committed, in order.
    log: Vec<Data>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Item {
    Record(Data),
    Copy(Data),
    Begin(u64, u64),
}

/// What brings a copy from one node to another. Either end may notice later than the other that it has ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Session {
    from: usize,
    to: usize,
    copy: u8,
    is_open_at_from: bool,
    is_open_at_to: bool,
    is_copied: bool,
    /// Fault "copy before tap": what was copied before the tap was installed.
    early: Option<Data>,
    queue: Vec<Item>,
}

/// One sending of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Sending {
    Idle,
    Inside(usize),
    /// Applied; the reply waits for so many records of the log.
    Waiting {
        node: usize,
        records: u8,
        answer: Answer,
    },
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Answer {
    First,
    Duplicate,
    Unknown,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Operation {
    sendings: [Sending; 2],
    is_repeated: bool,
    delivered: Option<Answer>,
}

/// The stored map, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Stored {
    version: u8,
    range: Assignment,
    /// Node 0 is not a member any more.
    is_removed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    budget: Budget,
    stored: Stored,
    /// A write on its way, for the version before it.
    late_write: Option<Stored>,
    late_word: Option<(usize, usize, Word, u64, u64)>,
    is_storage_away: bool,
    has_lost: bool,
    has_crashed: bool,
    /// Fault "stale manifest": what was given away stays on the disk.
    keeps_files: bool,
    copies: u8,
    nodes: Vec<Node>,
    sessions: Vec<Session>,
    operations: [Operation; OPS],
}

/// A state that can follow.
pub(crate) struct Next {
    pub(crate) state: State,
    pub(crate) what: String,
    /// Whether nothing went wrong on the way.
    pub(crate) is_free: bool,
}

const fn copy_id(copy: u8) -> CopyId {
    CopyId::from_bytes([copy; 16])
}

const LINEAGE: u64 = 1;

impl State {
    pub(crate) fn first(config: &Config) -> Self {
        let range = Assignment {
            lineage: LINEAGE,
            generation: 1,
            owner: NodeId(0),
            successor: None,
            from: None,
            may_publish: false,
            is_moving: false,
        };
        let nodes = (0..config.nodes)
            .map(|node| {
                let has_keys = node == 0;
                let start = Start::Kept { has_keys };
                let me = NodeId(node as u32);
                Node {
                    is_alive: true,
                    has_ended: false,
                    machine: RangeMachine::new(me, range, Decisions::default(), start),
                    saved: range,
                    decisions: Decisions::default(),
                    on_disk: has_keys,
                    durable: 0,
                    has_new_disk: false,
                    memory: 0,
                    foreign: 0,
                    log: Vec::new(),
                }
            })
            .collect();
        let operation = Operation {
            sendings: [Sending::Idle; 2],
            is_repeated: false,
            delivered: None,
        };
        Self {
            budget: config.budget,
            stored: Stored {
                version: 1,
                range,
                is_removed: false,
            },
            late_write: None,
            late_word: None,
            is_storage_away: false,
            has_lost: false,
            has_crashed: false,
            keeps_files: config.fault == Some(Fault::StaleManifest),
            copies: 0,
            nodes,
            sessions: Vec::new(),
            operations: [operation; OPS],
        }
    }

    /// What must never be, if it is.
    pub(crate) fn violation(&self) -> Option<String> {
        let answering: Vec<usize> = (0..self.nodes.len())
            .filter(|node| self.answers(*node))
            .collect();
        if answering.len() > 1 {
            return Some(format!("nodes {answering:?} answer"));
        }
        let delivered = |op: usize| self.operations[op].delivered;
        if delivered(0) == Some(Answer::First) && delivered(1) == Some(Answer::First) {
            return Some("two firsts".to_owned());
        }
        if self.stored.range.generation > 8 || self.copies > 8 {
            return Some("the range is handed over again and again".to_owned());
        }
        if self.has_lost {
            return None;
        }
        let node = &self.nodes[*answering.first()?];
        for (op, key) in KEYS.into_iter().enumerate() {
            let tells = delivered(op).is_some();
            if tells && node.memory & key == 0 {
                return Some(format!("what operation {op} was told is forgotten"));
            }
            // After a crash nobody may know any more what it has cut short.
            if delivered(op) == Some(Answer::Unknown) && !self.has_crashed {
                return Some(format!("operation {op} is told unknown without a crash"));
            }
            if op != PUT && delivered(op) == Some(Answer::Duplicate) {
                let other = 1 - op;
                let is_told = delivered(other) == Some(Answer::First);
                if !is_told && node.memory & first(other) == 0 {
                    return Some(format!("operation {op} is a duplicate of nothing"));
                }
            }
        }
        None
    }

    /// Whether nothing is left to be done.
    pub(crate) fn is_settled(&self) -> bool {
        let range = &self.stored.range;
        let is_still = |sending: Sending| matches!(sending, Sending::Gone | Sending::Idle);
        range.from.is_none()
            && !range.is_moving
            && self.late_write.is_none()
            && !self.is_storage_away
            && self
                .nodes
                .iter()
                .all(|node| node.has_ended || (node.is_alive && node.machine.assignment() == range))
            && (0..self.nodes.len()).any(|node| self.answers(node))
            && self.operations.iter().all(|operation| {
                is_still(operation.sendings[0])
                    && (!operation.is_repeated || operation.sendings[1] == Sending::Gone)
            })
    }

    fn answers(&self, node: usize) -> bool {
        let node = &self.nodes[node];
        node.is_alive && node.machine.answers().is_some()
    }

    /// Every state that can follow.
    pub(crate) fn next(&self, config: &Config, names: bool) -> Vec<Next> {
        let mut steps = Steps {
            state: self,
            fault: config.fault,
            names,
            next: Vec::new(),
        };
        steps.storage(config);
        for node in 0..self.nodes.len() {
            if self.nodes[node].is_alive {
                steps.node(node);
            } else if !self.nodes[node].has_ended {
                steps.restart(node);
            }
        }
        for index in 0..self.sessions.len() {
            steps.session(index);
        }
        for op in 0..OPS {
            steps.operation(op);
        }
        steps.next
    }

    /// Tells a node's machine, and does what follows at once.
    fn on(&mut self, node: usize, event: Event) {
        self.nodes[node].machine.on(event);
        self.follow(node);
    }

    /// A node drops what it has no use for, and closes sessions.
    fn follow(&mut self, at: usize) {
        let keeps_files = self.keeps_files;
        let node = &mut self.nodes[at];
        let (arriving, tapped) = (node.machine.arriving(), node.machine.tapped());
        if arriving.is_none() && !node.machine.keeps_keys() {
            node.on_disk &= keeps_files;
            // Answers are remembered by node, and stay.
            node.durable &= if keeps_files { Data::MAX } else { ANSWERS };
            node.memory &= ANSWERS;
            node.log.clear();
        }
        for session in &mut self.sessions {
            let copy = Some(copy_id(session.copy));
            if session.from == at && tapped != copy {
                session.is_open_at_from = false;
            }
            if session.to == at && arriving != copy && session.is_open_at_to {
                session.is_open_at_to = false;
                session.queue.clear();
            }
        }
        self.sessions
            .retain(|session| session.is_open_at_from || session.is_open_at_to);
    }
}

/// Gathers the states that can follow one.
struct Steps<'a> {
    state: &'a State,
    fault: Option<Fault>,
    /// Whether steps are to have names: that takes time.
    names: bool,
    next: Vec<Next>,
}

impl Steps<'_> {
    fn add(&mut self, is_free: bool, what: fmt::Arguments<'_>, change: impl FnOnce(&mut State)) {
        let mut state = self.state.clone();
        change(&mut state);
        // A write for a version that is gone has no effect any more.
        let version = state.stored.version;
        state.late_write.take_if(|late| late.version != version + 1);
        if state != *self.state {
            let what = if self.names {
                what.to_string()
            } else {
                String::new()
            };
            self.next.push(Next {
                state,
                what,
                is_free,
            });
        }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// Writes the map, at once, or late.
    fn write(
        &mut self,
        what: &str,
        is_free: bool,
        pay: fn(&mut Budget),
        range: Assignment,
        is_removed: bool,
    ) {
        let stored = Stored {
            version: self.state.stored.version + 1,
            range,
            is_removed,
        };
        if self.state.is_storage_away {
            return;
        }
        self.add(is_free, format_args!("{what}"), |state| {
            pay(&mut state.budget);
            state.stored = stored;
        });
        if self.state.budget.late_writes > 0 && self.state.late_write.is_none() {
            self.add(false, format_args!("{what}, late"), |state| {
                pay(&mut state.budget);
                state.budget.late_writes -= 1;
                state.late_write = Some(stored);
            });
        }
    }

    /// Object storage, and what operators write.
    fn storage(&mut self, config: &Config) {
        let (state, budget) = (self.state, self.state.budget);
        if state.is_storage_away {
            self.add(true, format_args!("storage is back"), |state| {
                state.is_storage_away = false
            });
            return;
        }
        if budget.outages > 0 {
            self.add(false, format_args!("storage is away"), |state| {
                state.budget.outages -= 1;
                state.is_storage_away = true;
            });
        }
        if let Some(late) = state.late_write {
            self.add(true, format_args!("the late write is applied"), |state| {
                state.stored = late;
                state.late_write = None;
            });
            self.add(true, format_args!("the late write is lost"), |state| {
                state.late_write = None
            });
        }
        let Stored {
            range, is_removed, ..
        } = state.stored;
        if budget.plans > 0 && (!range.is_moving || self.has(Fault::SuccessorWhileFrom)) {
            let is_open = range.from.is_none() || self.has(Fault::SuccessorWhileFrom);
            for to in (0..config.nodes).map(|node| NodeId(node as u32)) {
                if is_open && to != range.owner && !(is_removed && to == NodeId(0)) {
                    let planned = Assignment {
                        from: None,
                        successor: Some(to),
                        is_moving: true,
                        may_publish: true,
                        ..range
                    };
                    let pay = |budget: &mut Budget| budget.plans -= 1;
                    self.write(&format!("plan for {to}"), false, pay, planned, is_removed);
                }
            }
        }
        if budget.aborts > 0 && range.is_moving {
            let mut aborted = Assignment {
                successor: None,
                is_moving: false,
                may_publish: false,
                ..range
            };
            if let (Some(from), true) = (range.from, self.has(Fault::AbortAfterPublication)) {
                aborted.owner = from.node;
                aborted.generation += 1;
                aborted.from = None;
            }
            self.write(
                "abort",
                false,
                |budget| budget.aborts -= 1,
                aborted,
                is_removed,
            );
        }
        let may_end = range.from.is_none() || self.has(Fault::RemovedWhileFrom);
        if range.is_moving && range.successor.is_none() && may_end {
            let ended = Assignment {
                is_moving: false,
                may_publish: false,
                ..range
            };
            let removes = config.is_leaving && range.owner != NodeId(0);
            self.write("finish", true, |_| {}, ended, is_removed || removes);
        }
        if let Some((from, to, word, lineage, generation)) = state.late_word {
            self.add(
                true,
                format_args!("{from} to {to}, late: {word:?}"),
                |state| {
                    state.late_word = None;
                    tell(state, from, to, word, lineage, generation);
                },
            );
        }
    }

    /// What a running node does.
    fn node(&mut self, at: usize) {
        let fault = self.fault;
        let node = &self.state.nodes[at];
        let machine = &node.machine;
        let budget = self.state.budget;
        let Stored {
            range, is_removed, ..
        } = self.state.stored;
        if !self.state.is_storage_away {
            if is_removed && at == 0 {
                self.add(true, format_args!("0 has left"), |state| end(state, 0));
            } else if *machine.assignment() != range {
                self.add(true, format_args!("{at} reads the map"), |state| {
                    if fault != Some(Fault::MapNotKept) {
                        state.nodes[at].saved = range;
                    }
                    let mut range = range;
                    let tapped = state.nodes[at].machine.tapped();
                    if let (Some(Fault::OtherCopySealed), Some(from), Some(copy)) =
                        (fault, &mut range.from, tapped)
                    {
                        from.copy = copy;
                    }
                    state.on(at, Event::Map(range));
                });
            }
            if let Some(change) = self.wanted_change(at, &range) {
                let changed = range.changed(NodeId(at as u32), change);
                let what = format!("{at} writes {change:?}");
                self.write(&what, true, |_| {}, changed, is_removed);
            }
            if machine.wants_manifests().is_some() {
                self.add(true, format_args!("{at} loads manifests"), |state| {
                    state.on(at, Event::Loaded);
                });
            }
        }
        self.decisions(at);
        if let Some((to, word, lineage, generation)) = machine.wants_word() {
            let to = to.0 as usize;
            if to < self.state.nodes.len() && self.state.nodes[to].is_alive {
                self.add(true, format_args!("{at} to {to}: {word:?}"), |state| {
                    tell(state, at, to, word, lineage, generation);
                });
                if budget.late_words > 0 && self.state.late_word.is_none() {
                    self.add(
                        false,
                        format_args!("{at} to {to}, sent: {word:?}"),
                        |state| {
                            state.budget.late_words -= 1;
                            state.late_word = Some((at, to, word, lineage, generation));
                        },
                    );
                }
            }
        }
        if let Some(owner) = machine.wants_copy_from() {
            self.dial(at, owner.0 as usize);
        }
        if let Some(rest) = node.log.split_first().map(|(_, rest)| rest.to_vec()) {
            self.add(true, format_args!("{at} commits"), |state| {
                commit(state, at, rest)
            });
        }
        let is_inside = |sending: &Sending| *sending == Sending::Inside(at);
        let mut sendings = self.state.operations.iter().flat_map(|it| &it.sendings);
        let is_drained = node.log.is_empty() && !sendings.any(is_inside);
        if machine.wants_drained() && (is_drained || self.has(Fault::BeginBeforeDrained)) {
            self.add(true, format_args!("{at} is drained"), |state| {
                state.on(at, Event::Drained)
            });
        }
        if let Some((lineage, generation, _)) = machine.wants_begin() {
            self.add(true, format_args!("{at} sends begin"), |state| {
                state.on(at, Event::BeginSent);
                send(state, at, Item::Begin(lineage, generation));
            });
        }
        if (machine.wants_drained() || machine.wants_begin().is_some()) && budget.timeouts > 0 {
            self.add(false, format_args!("{at} gives the seal up"), |state| {
                state.budget.timeouts -= 1;
                state.on(at, Event::SealTimedOut);
            });
        }
        if machine.awaits_begun() && budget.timeouts > 0 {
            self.add(false, format_args!("{at} hears nothing"), |state| {
                state.budget.timeouts -= 1;
                state.on(at, Event::BeginUnanswered);
            });
        }
        if budget.crashes > 0 {
            self.add(false, format_args!("{at} is killed"), |state| {
                state.budget.crashes -= 1;
                state.has_crashed = true;
                crash(state, at, fault);
            });
            if !node.log.is_empty() {
                // What was synced right before, which nobody was told of.
                self.add(
                    false,
                    format_args!("{at} is killed after a sync"),
                    |state| {
                        state.budget.crashes -= 1;
                        state.has_crashed = true;
                        state.has_crashed = true;
                        let node = &mut state.nodes[at];
                        node.durable = node.log.iter().fold(node.durable, |all, it| all | it);
                        crash(state, at, fault);
                    },
                );
            }
        }
        if budget.losses > 0 {
            self.add(
                false,
                format_args!("{at} is killed and its disk lost"),
                |state| {
                    state.budget.losses -= 1;
                    state.has_lost = true;
                    crash(state, at, None);
                    let node = &mut state.nodes[at];
                    node.decisions = Decisions::default();
                    node.on_disk = false;
                    node.durable = 0;
                    node.memory = 0;
                    node.has_new_disk = true;
                },
            );
        }
        self.planted(at);
    }

    /// Decisions reach the disk in two steps, between which anything may happen.
    fn decisions(&mut self, at: usize) {
        let fault = self.fault;
        let machine = &self.state.nodes[at].machine;
        if let Some(decision) = machine.wants_decision() {
            let what = match decision {
                Decision::Owner(it) => format!("{:?}", it.word),
                Decision::Successor(it) => format!("{:?}", it.word),
            };
            self.add(true, format_args!("{at} writes {what}"), |state| {
                state.on(at, Event::Deciding(decision));
            });
        }
        if let Some(decision) = machine.deciding() {
            self.add(true, format_args!("{at} has decided"), |state| {
                state.on(at, Event::Decided);
                let decisions = *state.nodes[at].machine.decisions();
                let is_begun =
                    matches!(decision, Decision::Successor(it) if it.word == SuccessorWord::Begun);
                let is_sealed =
                    matches!(decision, Decision::Owner(it) if it.word == OwnerWord::Sealed);
                let node = &mut state.nodes[at];
                let is_lost = (is_begun && fault == Some(Fault::BegunNotKept))
                    || (is_sealed && fault == Some(Fault::SealedNotKept));
                if !is_lost {
                    node.decisions = decisions;
                }
                node.on_disk |= node.machine.keeps_keys();
            });
        }
    }

    fn wanted_change(&self, at: usize, stored: &Assignment) -> Option<Change> {
        let machine = &self.state.nodes[at].machine;
        if self.has(Fault::TakenBackWithoutAsking) || self.has(Fault::LateTakeBack) {
            let from = stored.from.filter(|from| from.node == NodeId(at as u32));
            let is_ended = machine.tapped().is_none() || self.has(Fault::LateTakeBack);
            if from.is_some() && is_ended {
                return Some(Change::TakeBack);
            }
        }
        machine.wants_change(stored)
    }

    /// `at` asks `owner` for a copy.
    fn dial(&mut self, at: usize, owner: usize) {
        let fault = self.fault;
        let state = self.state;
        let asked = state.nodes[at].machine.assignment();
        let is_asked = owner < state.nodes.len()
            && state.nodes[owner].is_alive
            && state.nodes[owner].machine.taps_for(
                NodeId(at as u32),
                asked.lineage,
                asked.generation,
            );
        if !is_asked {
            return;
        }
        let is_early = self.has(Fault::CopyBeforeTap);
        self.add(
            true,
            format_args!("{at} asks {owner} for a copy"),
            |state| {
                state.copies += 1;
                let copy = state.copies;
                let old = state
                    .sessions
                    .iter()
                    .position(|it| (it.from, it.to) == (owner, at));
                if let Some(old) = old {
                    state.sessions.remove(old);
                }
                let node = &mut state.nodes[at];
                if fault != Some(Fault::StaleManifest) {
                    node.on_disk = false;
                    node.durable &= ANSWERS;
                }
                node.memory = node.durable | (node.memory & ANSWERS);
                node.log.clear();
                let early = is_early.then_some(state.nodes[owner].durable);
                state.sessions.push(Session {
                    from: owner,
                    to: at,
                    copy,
                    is_open_at_from: true,
                    is_open_at_to: true,
                    is_copied: false,
                    early,
                    queue: Vec::new(),
                });
                state.sessions.sort_unstable_by_key(|it| (it.from, it.to));
                // The machine at `at` first: what follows closes sessions that it knows nothing of.
                state.nodes[at].machine.on(Event::CopyBegun(copy_id(copy)));
                state.nodes[owner].machine.on(Event::Tapped {
                    peer: NodeId(at as u32),
                    copy: copy_id(copy),
                });
                state.follow(owner);
                state.follow(at);
            },
        );
    }

    fn session(&mut self, index: usize) {
        let fault = self.fault;
        let session = &self.state.sessions[index];
        let Session { from, to, copy, .. } = *session;
        let copy = copy_id(copy);
        let is_sending = session.is_open_at_from && self.state.nodes[from].is_alive;
        if is_sending && !session.is_copied && !self.state.is_storage_away {
            self.add(true, format_args!("{from} copies for {to}"), |state| {
                let data = state.nodes[from].durable;
                let session = &mut state.sessions[index];
                let mut data = session.early.take().unwrap_or(data);
                if fault == Some(Fault::AnswersLeftBehind) {
                    data &= !ANSWERS;
                }
                session.is_copied = true;
                session.queue.push(Item::Copy(data));
            });
        }
        if session.is_open_at_to && self.state.nodes[to].is_alive && !session.queue.is_empty() {
            let item = session.queue[0];
            let is_waiting =
                matches!(item, Item::Begin(..)) && !self.state.nodes[to].log.is_empty();
            if !is_waiting {
                self.add(true, format_args!("{to} receives {item:?}"), |state| {
                    state.sessions[index].queue.remove(0);
                    receive(state, to, copy, item, fault);
                });
            }
        }
        let budget = self.state.budget;
        if session.is_open_at_from {
            let is_free = !session.is_open_at_to;
            if is_free || budget.breaks > 0 {
                self.add(
                    is_free,
                    format_args!("{from} loses the session with {to}"),
                    |state| {
                        state.budget.breaks -= u8::from(!is_free);
                        state.sessions[index].is_open_at_from = false;
                        if fault != Some(Fault::TapWithGap) {
                            state.on(from, Event::TapEnded(copy));
                        }
                    },
                );
            }
        }
        if session.is_open_at_to {
            let is_free = !session.is_open_at_from;
            if is_free || budget.breaks > 0 {
                self.add(
                    is_free,
                    format_args!("{to} loses the session with {from}"),
                    |state| {
                        state.budget.breaks -= u8::from(!is_free);
                        lose_at_successor(state, index, fault);
                    },
                );
            }
        }
    }

    fn restart(&mut self, at: usize) {
        let fault = self.fault;
        let node = &self.state.nodes[at];
        if node.has_new_disk && self.state.is_storage_away {
            return;
        }
        if self.state.stored.is_removed && at == 0 && !self.state.is_storage_away {
            self.add(true, format_args!("0 starts, and has left"), |state| {
                end(state, 0)
            });
            return;
        }
        self.add(true, format_args!("{at} starts"), |state| {
            let range = state.stored.range;
            let node = &mut state.nodes[at];
            node.is_alive = true;
            if node.has_new_disk {
                node.saved = range;
            }
            let start = if node.has_new_disk {
                Start::NewDisk
            } else {
                Start::Kept {
                    has_keys: node.on_disk,
                }
            };
            let mut decisions = node.decisions;
            let is_published = node.saved.owner == NodeId(at as u32);
            if fault == Some(Fault::ReadyWithoutBegun)
                && let (Some(from), true) = (node.saved.from, is_published)
            {
                decisions.as_successor = Some(keydb_core::moving::SuccessorDecision {
                    lineage: LINEAGE,
                    generation: node.saved.generation,
                    owner: from.node,
                    copy: Some(from.copy),
                    word: SuccessorWord::Begun,
                });
            }
            node.machine = RangeMachine::new(NodeId(at as u32), node.saved, decisions, start);
            if std::mem::take(&mut node.has_new_disk) {
                node.decisions = *node.machine.decisions();
            }
            node.on_disk |= node.machine.answers().is_some();
            if fault == Some(Fault::CopyAcrossIncarnations) {
                let kept = state
                    .sessions
                    .iter()
                    .find(|it| it.from == at && it.is_open_at_from);
                if let Some((peer, copy)) = kept.map(|it| (NodeId(it.to as u32), copy_id(it.copy)))
                {
                    state.nodes[at].machine.on(Event::Tapped { peer, copy });
                }
            }
            state.follow(at);
        });
    }

    fn operation(&mut self, op: usize) {
        let fault = self.fault;
        let operation = &self.state.operations[op];
        if self.state.budget.operations >> op & 1 == 0 {
            return;
        }
        let is_sent = operation.sendings[0] != Sending::Idle;
        if is_sent && !operation.is_repeated && operation.delivered.is_none() {
            self.add(true, format_args!("operation {op} is repeated"), |state| {
                state.operations[op].is_repeated = true;
            });
        }
        for sending in 0..2 {
            match operation.sendings[sending] {
                Sending::Idle if sending == 0 || operation.is_repeated => {
                    for node in 0..self.state.nodes.len() {
                        self.admit(op, sending, node);
                    }
                }
                Sending::Inside(node) => {
                    self.add(
                        true,
                        format_args!("{node} applies operation {op}"),
                        |state| {
                            apply(state, op, sending, node, fault);
                        },
                    );
                }
                Sending::Waiting {
                    records: 0, answer, ..
                } => {
                    self.add(
                        true,
                        format_args!("operation {op} is told {answer:?}"),
                        |state| {
                            let operation = &mut state.operations[op];
                            operation.sendings[sending] = Sending::Gone;
                            if operation.delivered.is_none()
                                && (sending == 1 || !operation.is_repeated)
                            {
                                operation.delivered = Some(answer);
                            }
                        },
                    );
                }
                _ => {}
            }
        }
    }

    fn admit(&mut self, op: usize, sending: usize, at: usize) {
        let node = &self.state.nodes[at];
        let other = self.state.operations[op].sendings[1 - sending];
        // A repeat waits for the sending that is at work.
        if !self.state.answers(at) || other == Sending::Inside(at) {
            return;
        }
        let remembered = node.memory & (first(op) | later(op));
        let is_foreign = remembered & node.foreign != 0;
        let records = if is_foreign {
            u8::MAX
        } else {
            node.log.len() as u8
        };
        self.add(
            true,
            format_args!("{at} admits operation {op}, sending {sending}"),
            |state| {
                let next = if remembered == 0 {
                    Sending::Inside(at)
                } else if sending == 0 {
                    // Its repeat came before: it is refused.
                    Sending::Gone
                } else {
                    let answer = match () {
                        () if op == PUT => Answer::Done,
                        () if remembered == first(op) => Answer::First,
                        () => Answer::Duplicate,
                    };
                    Sending::Waiting {
                        node: at,
                        records,
                        answer,
                    }
                };
                state.operations[op].sendings[sending] = next;
            },
        );
    }

    /// Faults that are steps of their own.
    fn planted(&mut self, at: usize) {
        let node = &self.state.nodes[at];
        let machine = &node.machine;
        match self.fault {
            Some(Fault::RoundCutsForwarded)
                if machine.arriving().is_some() || machine.answers().is_some() =>
            {
                // What came by the stream is in no file; the files have what the copy had.
                self.add(true, format_args!("{at} makes a round"), |state| {
                    state.nodes[at].durable &= !2;
                });
            }
            Some(Fault::VoidedThenBegun) => {
                // The decision is said, but not kept.
                let voided = node.decisions.as_successor;
                if voided.is_some_and(|it| it.word == SuccessorWord::Voided) {
                    self.add(true, format_args!("{at} forgets that it voided"), |state| {
                        let node = &mut state.nodes[at];
                        node.decisions.as_successor = None;
                        let start = Start::Kept { has_keys: true };
                        node.machine =
                            RangeMachine::new(NodeId(at as u32), node.saved, node.decisions, start);
                    });
                }
            }
            Some(Fault::BegunInJournal)
                if node.log.is_empty() && node.decisions.as_successor.is_some() =>
            {
                self.add(true, format_args!("{at} cuts its journal"), |state| {
                    state.nodes[at].decisions.as_successor = None;
                });
            }
            Some(Fault::DroppedByMap) => {
                let assignment = *machine.assignment();
                let is_given = assignment
                    .from
                    .is_some_and(|from| from.node == NodeId(at as u32));
                if is_given && node.on_disk {
                    self.add(
                        true,
                        format_args!("{at} drops the range by the map"),
                        |state| {
                            let node = &mut state.nodes[at];
                            node.on_disk = false;
                            node.durable = 0;
                            node.memory = 0;
                            node.log.clear();
                            let start = Start::Kept { has_keys: false };
                            node.machine = RangeMachine::new(
                                NodeId(at as u32),
                                assignment,
                                node.decisions,
                                start,
                            );
                            state.follow(at);
                        },
                    );
                }
            }
            _ => {}
        }
    }
}

/// `from` tells `to`, which may answer at once.
fn tell(state: &mut State, from: usize, to: usize, word: Word, lineage: u64, generation: u64) {
    if !state.nodes[to].is_alive {
        return;
    }
    let reply = state.nodes[to]
        .machine
        .told(NodeId(from as u32), word, lineage, generation);
    state.follow(to);
    if let (Some(reply), true) = (reply, state.nodes[from].is_alive) {
        let _ = state.nodes[from]
            .machine
            .told(NodeId(to as u32), reply, lineage, generation);
        state.follow(from);
    }
}

fn end(state: &mut State, at: usize) {
    crash(state, at, None);
    state.nodes[at].has_ended = true;
}

/// Sends to whoever taps `at`.
fn send(state: &mut State, at: usize, item: Item) {
    for session in &mut state.sessions {
        let is_tapped = session.early.is_none();
        if session.from == at && session.is_open_at_from && session.is_open_at_to && is_tapped {
            session.queue.push(item);
        }
    }
}

fn receive(state: &mut State, to: usize, copy: CopyId, item: Item, fault: Option<Fault>) {
    let node = &mut state.nodes[to];
    if let (Some(Fault::OwnersLsnKept), Item::Record(data) | Item::Copy(data)) = (fault, item) {
        node.foreign |= data;
    }
    match item {
        Item::Record(data) => {
            node.memory |= data;
            node.log.push(data);
        }
        Item::Copy(data) => {
            let is_stale = fault == Some(Fault::StaleManifest) && node.durable & !ANSWERS != 0;
            node.memory |= data;
            if !is_stale {
                node.durable |= data;
            }
            node.on_disk = true;
            state.on(to, Event::Secured(copy));
        }
        Item::Begin(lineage, generation) => {
            state.on(
                to,
                Event::Begin {
                    lineage,
                    generation,
                    copy,
                },
            );
        }
    }
}

fn lose_at_successor(state: &mut State, index: usize, fault: Option<Fault>) {
    let session = &mut state.sessions[index];
    let (to, copy) = (session.to, session.copy);
    if fault == Some(Fault::OldBegin) {
        session.queue.retain(|item| matches!(item, Item::Begin(..)));
        if !session.queue.is_empty() {
            return;
        }
    }
    session.queue.clear();
    session.is_open_at_to = false;
    if fault != Some(Fault::CopyAcrossSessions) {
        state.on(to, Event::CopyEnded(copy_id(copy)));
    }
}

fn commit(state: &mut State, at: usize, rest: Vec<Data>) {
    let node = &mut state.nodes[at];
    let record = node.log[0];
    node.log = rest;
    node.durable |= record;
    for operation in &mut state.operations {
        for sending in &mut operation.sendings {
            if let Sending::Waiting { node, records, .. } = sending
                && *node == at
            {
                *records = records.saturating_sub(1);
            }
        }
    }
    send(state, at, Item::Record(record));
}

fn apply(state: &mut State, op: usize, sending: usize, at: usize, fault: Option<Fault>) {
    let node = &mut state.nodes[at];
    let key = KEYS[op];
    let before = node.log.len() as u8;
    let is_present = node.memory & key != 0;
    let is_safe = node.durable & key != 0;
    let (record, answer) = match (op, is_present) {
        (PUT, _) => (key | first(op), Answer::Done),
        (_, false) => (key | first(op), Answer::First),
        (_, true) if sending == 1 => (0, Answer::Unknown),
        (_, true) => (later(op), Answer::Duplicate),
    };
    let records = match answer {
        Answer::First | Answer::Done => before + 1,
        _ if is_safe => 0,
        _ => before,
    };
    if record != 0 {
        node.memory |= record;
        node.log.push(record);
        if fault == Some(Fault::UncommittedForwarded) {
            send(state, at, Item::Record(record));
        }
    }
    state.operations[op].sendings[sending] = Sending::Waiting {
        node: at,
        records,
        answer,
    };
}

fn crash(state: &mut State, at: usize, fault: Option<Fault>) {
    let node = &mut state.nodes[at];
    node.is_alive = false;
    node.memory = node.durable;
    node.log.clear();
    // What it had in memory only is the same whatever it was.
    let start = Start::Kept { has_keys: false };
    node.machine = RangeMachine::new(NodeId(at as u32), node.saved, node.decisions, start);
    for operation in &mut state.operations {
        for sending in &mut operation.sendings {
            if matches!(sending, Sending::Inside(node) | Sending::Waiting { node, .. } if *node == at)
            {
                *sending = Sending::Gone;
            }
        }
    }
    let keeps = fault == Some(Fault::CopyAcrossIncarnations);
    for session in &mut state.sessions {
        if session.from == at && !keeps {
            session.is_open_at_from = false;
        }
        if session.to == at {
            session.is_open_at_to = false;
            session.queue.clear();
        }
    }
    state
        .sessions
        .retain(|session| session.is_open_at_from || session.is_open_at_to);
}

impl State {
    /// For messages: who answers, and what the map says.
    pub(crate) fn describe(&self) -> String {
        let standings: Vec<String> = self
            .nodes
            .iter()
            .map(|node| {
                if !node.is_alive {
                    return "dead".to_owned();
                }
                let standing = match node.machine.standing() {
                    Standing::Answers(generation) => format!("answers({generation})"),
                    Standing::Holds(generation) => format!("holds({generation})"),
                    Standing::Refers { node, generation } => {
                        format!("refers({node}, {generation})")
                    }
                };
                format!(
                    "{standing} mem {:b} disk {:b} log {:?} {:?}",
                    node.memory, node.durable, node.log, node.decisions
                )
            })
            .collect();
        format!(
            "map {:?}\n  nodes {standings:#?}\n  sessions {:?}\n  ops {:?}",
            self.stored, self.sessions, self.operations
        )
    }
}
