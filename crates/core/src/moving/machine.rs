//! The part that one node plays for one range.

mod wants;

use super::{
    assignment::{Assignment, Tenure},
    decision::{Decisions, OwnerDecision, OwnerWord, SuccessorDecision, SuccessorWord},
};
use crate::{CopyId, NodeId};

/// How a range is found at a node's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Start {
    /// On the disk that the node had before; with or without the range's keys.
    Kept {
        /// Whether the disk has the range's keys.
        has_keys: bool,
    },
    /// On a disk that is new: what the node has decided is not known.
    NewDisk,
}

/// What is to be written down, synced, before it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// As the owner.
    Owner(OwnerDecision),
    /// As the successor.
    Successor(SuccessorDecision),
}

/// What a node tells another one about a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Word {
    /// A sealed owner asks: has the successor begun?
    Ask,
    /// An owner has refused: it goes on answering.
    Refused,
    /// An owner's disk was lost, and with it what it has decided.
    Lost,
    /// An owner has no keys any more: the successor had begun.
    Dropped,
    /// A successor has begun.
    Begun,
    /// A successor has not begun, and never will under this generation.
    Voided,
    /// A successor's disk was lost, and with it whether it had begun.
    New,
}

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The node goes by this map, and has it on its disk.
    Map(Assignment),
    /// Every record that is committed from now on goes to `peer`, as part of this copy.
    Tapped {
        /// The successor.
        peer: NodeId,
        /// What the session brings it.
        copy: CopyId,
    },
    /// Some record may not reach the successor any more.
    TapEnded(CopyId),
    /// A session with the owner has begun to bring a copy.
    CopyBegun(CopyId),
    /// The node's own disk has the whole copy, and little is on its way.
    Secured(CopyId),
    /// The session has ended: nothing more comes.
    CopyEnded(CopyId),
    /// No request is inside the sealed range any more, and the successor was sent all that is committed.
    Drained,
    /// *Begin* may be on its way from now on.
    BeginSent,
    /// All that the session brought before is committed, and then came *begin* for this generation and copy.
    Begin {
        /// The lineage.
        lineage: u64,
        /// The generation.
        generation: u64,
        /// What the session has brought.
        copy: CopyId,
    },
    /// The range has been sealed for too long without a *begin*.
    SealTimedOut,
    /// Nothing has come of *begin* for a while.
    BeginUnanswered,
    /// A decision is on its way to the disk.
    Deciding(Decision),
    /// The decision is on the disk.
    Decided,
    /// What is left of the range's keys in object storage has been loaded, as [`RangeMachine::wants_manifests`] said.
    Loaded,
}

/// How a node stands to a range's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    /// It answers, under this generation.
    Answers(u64),
    /// It will answer shortly, under this generation, or refuse.
    Holds(u64),
    /// Another node answers, as far as is known.
    Refers {
        /// Which.
        node: NodeId,
        /// Under this generation.
        generation: u64,
    },
}

/// A copy that comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Arriving {
    copy: CopyId,
    owner: NodeId,
    /// The owner's.
    tenure: Tenure,
    is_secured: bool,
    /// Whether the session that brings it goes on.
    is_live: bool,
}

/// Where records go as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Tap {
    copy: CopyId,
    peer: NodeId,
    tenure: Tenure,
}

/// How far a sealed owner is with *begin*.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Sending {
    /// It was sealed before this start: *begin* may have been sent.
    Unknown,
    /// Requests may be inside.
    Draining,
    /// Nothing is inside, all is sent.
    Drained,
    /// *Begin* may have been sent.
    Sent,
}

/// The part that one node plays for one range.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RangeMachine {
    me: NodeId,
    assignment: Assignment,
    decisions: Decisions,
    deciding: Option<Decision>,
    /// Whether the node has the keys that it needs to answer as the owner.
    has_keys: bool,
    tap: Option<Tap>,
    sending: Sending,
    seal_timed_out: bool,
    /// *Begin* may be lost though the session goes on.
    is_unanswered: bool,
    /// The last word of the successor, and about which ownership.
    heard: Option<(Tenure, Word)>,
    arriving: Option<Arriving>,
    /// The ownership to begin with, and whom it comes from.
    begin: Option<(Tenure, NodeId)>,
    /// The owner wants to know about this ownership whether it has begun.
    asked: Option<(Tenure, NodeId)>,
    /// What of object storage is needed to begin on a new disk: the node's own snapshots, and the owner's where that is lost as well.
    manifests: Option<Manifests>,
    /// They have been loaded.
    is_loaded: bool,
}

/// Whose snapshots are to be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Manifests {
    /// Besides the node's own also those of this one.
    pub also_of: Option<NodeId>,
}

impl RangeMachine {
    /// The part of node `me` at its start: by the map that it goes by, and what it had decided.
    ///
    /// On a new disk its [decisions](Self::decisions) are to be written down before the cluster map names that disk.
    pub fn new(me: NodeId, assignment: Assignment, mut decisions: Decisions, start: Start) -> Self {
        let is_handed = assignment
            .from
            .is_some_and(|from| from.node == me || assignment.owner == me);
        let has_keys = match start {
            Start::Kept { has_keys } => has_keys,
            Start::NewDisk => {
                decisions.lost = is_handed.then_some(assignment.tenure());
                !is_handed && assignment.owner == me
            }
        };
        Self {
            me,
            assignment,
            decisions,
            deciding: None,
            has_keys,
            tap: None,
            sending: Sending::Unknown,
            seal_timed_out: false,
            is_unanswered: false,
            heard: None,
            arriving: None,
            begin: None,
            asked: None,
            manifests: None,
            is_loaded: false,
        }
    }

    /// What it goes by.
    pub const fn assignment(&self) -> &Assignment {
        &self.assignment
    }

    /// What it has decided.
    pub const fn decisions(&self) -> &Decisions {
        &self.decisions
    }

    /// What is on its way to the disk.
    pub const fn deciding(&self) -> Option<Decision> {
        self.deciding
    }

    /// Takes in what has happened.
    pub fn on(&mut self, event: Event) {
        match event {
            Event::Map(assignment) => self.go_by(assignment),
            Event::Tapped { peer, copy } => {
                self.tap = self.tenure().map(|tenure| Tap { copy, peer, tenure });
            }
            Event::TapEnded(copy) => {
                self.tap.take_if(|tap| tap.copy == copy);
            }
            Event::CopyBegun(copy) => {
                self.arriving = Some(Arriving {
                    copy,
                    owner: self.assignment.owner,
                    tenure: self.assignment.tenure(),
                    is_secured: false,
                    is_live: true,
                });
            }
            Event::Secured(copy) => self.of_copy(copy, |arriving| arriving.is_secured = true),
            Event::CopyEnded(copy) => self.of_copy(copy, |arriving| arriving.is_live = false),
            Event::Drained => {
                if self.sending == Sending::Draining && self.is_sealed() {
                    self.sending = Sending::Drained;
                }
            }
            Event::BeginSent => self.sending = Sending::Sent,
            Event::Begin {
                lineage,
                generation,
                copy,
            } => self.take_begin((lineage, generation), copy),
            Event::BeginUnanswered => self.is_unanswered = self.sending == Sending::Sent,
            Event::SealTimedOut => self.seal_timed_out = self.is_sealed(),
            Event::Deciding(decision) => self.deciding = Some(decision),
            Event::Decided => self.decided(),
            Event::Loaded => {
                if let (Some(lost), Some(from), Some(_)) =
                    (self.lost(), self.assignment.from, self.manifests.take())
                {
                    self.is_loaded = true;
                    if from.node != self.me {
                        self.begin = Some((lost, from.node));
                    }
                }
            }
        }
        self.has_keys &= self.keeps_keys();
    }

    /// Takes in what `by` says of the range under this lineage and generation. Returns what is to be said to it at once.
    pub fn told(&mut self, by: NodeId, word: Word, lineage: u64, generation: u64) -> Option<Word> {
        let tenure = (lineage, generation);
        let reply = match word {
            Word::Begun | Word::Voided | Word::New => self.told_by_successor(word, tenure),
            Word::Ask | Word::Lost | Word::Dropped | Word::Refused => {
                self.told_by_owner(by, word, tenure)
            }
        };
        self.has_keys &= self.keeps_keys();
        reply
    }

    /// The ownership that this node has, whatever the stored map says by now.
    fn tenure(&self) -> Option<Tenure> {
        let assignment = &self.assignment;
        let by_map = match assignment.from {
            None if assignment.owner == self.me => Some(assignment.tenure()),
            Some(from) if from.node == self.me => Some((assignment.lineage, from.generation)),
            _ => None,
        };
        let begun = self
            .decisions
            .as_successor
            .filter(|it| it.word == SuccessorWord::Begun)
            .map(|it| (it.lineage, it.generation))
            .filter(|tenure| *tenure >= assignment.tenure());
        let tenure = by_map.max(begun)?;
        let sealed = self.sealed().map(|it| (it.lineage, it.generation));
        (sealed < Some(tenure)).then_some(tenure)
    }

    fn sealed(&self) -> Option<OwnerDecision> {
        self.decisions
            .as_owner
            .filter(|it| it.word == OwnerWord::Sealed)
    }

    /// The ownership whose decisions were on a disk that was lost, as long as that matters.
    fn lost(&self) -> Option<Tenure> {
        let assignment = &self.assignment;
        let is_open = |lost: &Tenure| *lost == assignment.tenure() && assignment.from.is_some();
        self.decisions.lost.filter(is_open)
    }

    fn is_sealed(&self) -> bool {
        self.sealed().is_some()
    }

    /// Whether it is sealed, and does not know yet that the successor has begun.
    fn awaits_word(&self) -> bool {
        let Some(sealed) = self.sealed() else {
            return false;
        };
        let about = (sealed.lineage, sealed.generation);
        let assignment = &self.assignment;
        let by_map = assignment.tenure() > about
            || (assignment.tenure() == about && assignment.from.is_none());
        !by_map && self.heard != Some((about, Word::Begun))
    }

    /// Whether neither part of this ownership was decided, or is being decided, by this node as the successor.
    fn is_open(&self, tenure: Tenure) -> bool {
        let decided = self.decisions.as_successor.into_iter();
        let deciding = self.deciding.into_iter().filter_map(|it| match it {
            Decision::Successor(it) => Some(it),
            Decision::Owner(_) => None,
        });
        decided
            .chain(deciding)
            .all(|it| (it.lineage, it.generation) < tenure)
    }

    fn of_copy(&mut self, copy: CopyId, change: impl FnOnce(&mut Arriving)) {
        if let Some(arriving) = self.arriving.as_mut().filter(|it| it.copy == copy) {
            change(arriving);
        }
    }

    fn go_by(&mut self, assignment: Assignment) {
        self.assignment = assignment;
        let (me, tenure) = (self.me, assignment.tenure());
        self.arriving.take_if(|it| {
            let is_published = assignment.owner == me
                && assignment
                    .from
                    .is_some_and(|from| from.node == it.owner && from.copy == it.copy);
            let is_planned = assignment.successor == Some(me) && tenure == it.tenure;
            !is_published && !is_planned
        });
        self.tap.take_if(|it| {
            let is_published = assignment.owner == it.peer
                && assignment
                    .from
                    .is_some_and(|from| from.node == me && from.copy == it.copy);
            let is_planned = assignment.successor == Some(it.peer) && tenure == it.tenure;
            !is_published && !is_planned
        });
        if self.lost().is_none() {
            self.manifests = None;
            self.is_loaded = false;
        }
    }

    fn take_begin(&mut self, tenure: Tenure, copy: CopyId) {
        let arriving = self
            .arriving
            .filter(|it| it.is_live && it.copy == copy && (it.tenure.0, it.tenure.1 + 1) == tenure);
        if let Some(arriving) = arriving
            && self.is_open(tenure)
        {
            self.begin = Some((tenure, arriving.owner));
        }
    }

    fn told_by_successor(&mut self, word: Word, tenure: Tenure) -> Option<Word> {
        let assignment = &self.assignment;
        let decided = self
            .decisions
            .as_owner
            .filter(|it| (it.lineage, it.generation) == tenure);
        let is_from_me =
            assignment.tenure() == tenure && assignment.from.is_some_and(|it| it.node == self.me);
        match decided.map(|it| it.word) {
            _ if matches!(self.deciding, Some(Decision::Owner(_))) => None,
            Some(OwnerWord::Refused) => Some(Word::Refused),
            Some(OwnerWord::Sealed) if word == Word::New && !self.has_keys => Some(Word::Dropped),
            Some(OwnerWord::Sealed) => {
                let is_final = self.heard == Some((tenure, Word::Begun));
                if word != Word::New || !is_final {
                    self.heard = Some((tenure, word));
                }
                None
            }
            None if self.lost() == Some(tenure) && is_from_me => {
                if word == Word::Voided && !self.is_loaded {
                    let also_of = Some(assignment.owner);
                    self.manifests = Some(Manifests { also_of });
                }
                self.heard = Some((tenure, word));
                (word == Word::New).then_some(Word::Lost)
            }
            None => None,
        }
    }

    fn told_by_owner(&mut self, by: NodeId, word: Word, tenure: Tenure) -> Option<Word> {
        let assignment = &self.assignment;
        let is_past = assignment.tenure() > tenure
            || (assignment.tenure() == tenure && assignment.from.is_none());
        let decided = self.decisions.successor_word(tenure.0, tenure.1);
        let is_later = self
            .decisions
            .as_successor
            .is_some_and(|it| (it.lineage, it.generation) > tenure);
        match (word, decided) {
            (Word::Refused, _) => {
                let is_about = |it: &mut Arriving| (it.tenure.0, it.tenure.1 + 1) == tenure;
                if self.begin.is_none() {
                    self.arriving.take_if(|it| is_about(it));
                }
                None
            }
            (_, Some(SuccessorWord::Begun)) => Some(Word::Begun),
            (_, Some(SuccessorWord::Voided)) => Some(Word::Voided),
            (_, None) if is_past || is_later => Some(Word::Begun),
            (Word::Lost, None) => {
                let is_whole = |it: Arriving| {
                    it.is_secured && assignment.from.is_some_and(|from| from.copy == it.copy)
                };
                if self.arriving.is_some_and(is_whole) && assignment.tenure() == tenure {
                    if self.is_open(tenure) {
                        self.begin = Some((tenure, by));
                    }
                } else {
                    self.asked = Some((tenure, by));
                }
                None
            }
            (Word::Dropped, None) if self.lost() == Some(tenure) => {
                self.manifests = Some(Manifests { also_of: None });
                None
            }
            (Word::Ask, None) if self.lost() == Some(tenure) => Some(Word::New),
            (Word::Ask, None) => {
                self.asked = Some((tenure, by));
                None
            }
            _ => None,
        }
    }

    fn decided(&mut self) {
        match self.deciding.take() {
            Some(Decision::Owner(decision)) => {
                let tenure = (decision.lineage, decision.generation);
                self.decisions.as_owner = Some(decision);
                self.seal_timed_out = false;
                self.is_unanswered = false;
                self.sending = match decision.word {
                    OwnerWord::Sealed => Sending::Draining,
                    OwnerWord::Refused => Sending::Unknown,
                };
                self.has_keys |= self.lost() == Some(tenure);
                self.decisions.lost.take_if(|of| *of == tenure);
            }
            Some(Decision::Successor(decision)) => {
                let tenure = (decision.lineage, decision.generation);
                self.decisions.as_successor = Some(decision);
                self.begin.take_if(|(of, _)| *of <= tenure);
                self.asked.take_if(|(of, _)| *of <= tenure);
                self.arriving
                    .take_if(|it| (it.tenure.0, it.tenure.1 + 1) <= tenure);
                if decision.word == SuccessorWord::Begun {
                    self.has_keys = true;
                    self.decisions.lost.take_if(|of| *of == tenure);
                }
            }
            None => {}
        }
    }
}
