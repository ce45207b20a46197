//! What a range's machine wants done, as a function of its state.

use super::{Decision, Manifests, RangeMachine, Sending, Standing, Word};
use crate::{
    CopyId, NodeId,
    moving::{
        assignment::{Assignment, Change, Tenure},
        decision::{OwnerDecision, OwnerWord, SuccessorDecision, SuccessorWord},
    },
};

impl RangeMachine {
    /// How it stands to requests.
    pub fn standing(&self) -> Standing {
        let assignment = &self.assignment;
        if let Some((_, generation)) = self.tenure().filter(|_| self.has_keys) {
            return Standing::Answers(generation);
        }
        if let Some(sealed) = self
            .sealed()
            .filter(|sealed| self.has_keys && sealed.generation >= assignment.generation)
        {
            return Standing::Refers {
                node: sealed.successor,
                generation: sealed.generation,
            };
        }
        match assignment.from {
            Some(from) if assignment.owner == self.me => {
                if self
                    .arriving
                    .is_some_and(|it| it.is_live && it.copy == from.copy)
                {
                    Standing::Holds(assignment.generation)
                } else {
                    Standing::Refers {
                        node: from.node,
                        generation: from.generation,
                    }
                }
            }
            _ => Standing::Refers {
                node: assignment.owner,
                generation: assignment.generation,
            },
        }
    }

    /// The generation under which it answers, if it does.
    pub fn answers(&self) -> Option<u64> {
        match self.standing() {
            Standing::Answers(generation) => Some(generation),
            Standing::Holds(_) | Standing::Refers { .. } => None,
        }
    }

    /// Whether the keys that it has as an owner may still be needed. Those of a copy that comes in are not among them.
    pub fn keeps_keys(&self) -> bool {
        self.has_keys && (self.tenure().is_some() || self.awaits_word())
    }

    /// The copy that comes in, or has come: as long as this does not change, its keys are kept.
    pub fn arriving(&self) -> Option<CopyId> {
        self.arriving.map(|arriving| arriving.copy)
    }

    /// Whether all of that is on the disk and in object storage, and what is committed goes on coming, so that this node could take over.
    pub fn is_secured(&self) -> bool {
        self.arriving
            .is_some_and(|arriving| arriving.is_secured && arriving.is_live)
    }

    /// The copy that records are sent as part of.
    pub fn tapped(&self) -> Option<CopyId> {
        self.tap.map(|tap| tap.copy)
    }

    /// Whether requests are to be kept out, so that [`Event::Drained`](crate::moving::Event::Drained) can come.
    pub fn wants_drained(&self) -> bool {
        self.sending == Sending::Draining && self.is_sealed()
    }

    /// Whether *begin* was sent and nothing has come of it yet.
    pub fn awaits_begun(&self) -> bool {
        self.sending == Sending::Sent && self.awaits_word()
    }

    /// Whether *begin* is to be sent on the session that brings the tapped copy, after all that was committed: lineage, generation
    /// and copy. [`Event::BeginSent`](crate::moving::Event::BeginSent) comes first.
    pub fn wants_begin(&self) -> Option<(u64, u64, CopyId)> {
        let sealed = self.sealed()?;
        let tap = self.tap?;
        (self.sending == Sending::Drained && self.deciding.is_none()).then_some((
            sealed.lineage,
            sealed.generation,
            tap.copy,
        ))
    }

    /// Whether `peer`, which asks for a copy of the range under this lineage and generation, is to get one.
    pub fn taps_for(&self, peer: NodeId, lineage: u64, generation: u64) -> bool {
        let assignment = &self.assignment;
        assignment.successor == Some(peer)
            && assignment.tenure() == (lineage, generation)
            && self.answers() == Some(generation)
    }

    /// The node that is to be asked for a copy.
    pub fn wants_copy_from(&self) -> Option<NodeId> {
        let assignment = &self.assignment;
        let is_due = assignment.successor == Some(self.me)
            && assignment.from.is_none()
            && self.tenure().is_none()
            && !self.arriving.is_some_and(|arriving| arriving.is_live);
        is_due.then_some(assignment.owner)
    }

    /// Whether the node's disk was lost while the range was handed over, and its part is not decided yet: what object storage has of the
    /// range may be needed.
    pub fn is_lost(&self) -> bool {
        self.lost().is_some()
    }

    /// The snapshots in object storage that are to be loaded, as the keys were on disks that were lost.
    pub const fn wants_manifests(&self) -> Option<Manifests> {
        self.manifests
    }

    /// What is to be decided now: to be written down after [`Event::Deciding`](crate::moving::Event::Deciding), with [`Event::Decided`](crate::moving::Event::Decided) once it is synced.
    pub fn wants_decision(&self) -> Option<Decision> {
        if self.deciding.is_some() {
            return None;
        }
        let successor = self.successor_wants().map(Decision::Successor);
        successor.or_else(|| self.owner_wants().map(Decision::Owner))
    }

    /// How the range is to be changed in the cluster map, which has `stored` now.
    pub fn wants_change(&self, stored: &Assignment) -> Option<Change> {
        let tenure = stored.tenure();
        match stored.from {
            Some(from) if from.node == self.me => {
                let is_refused =
                    self.decisions.owner_word(tenure.0, tenure.1) == Some(OwnerWord::Refused);
                is_refused.then_some(Change::TakeBack)
            }
            Some(_) => {
                let has_begun =
                    self.decisions.successor_word(tenure.0, tenure.1) == Some(SuccessorWord::Begun);
                (stored.owner == self.me && has_begun).then_some(Change::ClearFrom)
            }
            None => {
                let arriving = self.arriving?;
                let next = (tenure.0, tenure.1 + 1);
                let is_ready = stored.may_publish
                    && stored.successor == Some(self.me)
                    && stored.owner == arriving.owner
                    && tenure == arriving.tenure
                    && arriving.is_live
                    && arriving.is_secured
                    && self.is_open(next);
                is_ready.then_some(Change::Publish {
                    copy: arriving.copy,
                })
            }
        }
    }

    /// What is to be said to which node, under which lineage and generation; as often as it may have been lost.
    pub fn wants_word(&self) -> Option<(NodeId, Word, u64, u64)> {
        let assignment = &self.assignment;
        let tenure = assignment.tenure();
        let say = |to, word, tenure: Tenure| Some((to, word, tenure.0, tenure.1));
        if let Some(begun) = self.decisions.as_successor {
            let about = (begun.lineage, begun.generation);
            let is_open = tenure < about || (tenure == about && assignment.from.is_some());
            if is_open {
                let word = match begun.word {
                    SuccessorWord::Begun => Word::Begun,
                    SuccessorWord::Voided => Word::Voided,
                };
                return say(begun.owner, word, about);
            }
        }
        if let Some(sealed) = self.sealed().filter(|_| self.awaits_word()) {
            let about = (sealed.lineage, sealed.generation);
            let has_session =
                self.tap.is_some() && self.sending != Sending::Unknown && !self.is_unanswered;
            let has_heard = self.heard.is_some_and(|(of, _)| of == about);
            return if has_session || has_heard {
                None
            } else {
                say(sealed.successor, Word::Ask, about)
            };
        }
        let from = assignment.from?;
        if self.lost() == Some(tenure) {
            let has_heard = self
                .heard
                .is_some_and(|(of, word)| of == tenure && word != Word::New);
            if assignment.owner == self.me && self.manifests.is_none() && self.begin.is_none() {
                return say(from.node, Word::New, tenure);
            }
            if from.node == self.me
                && !has_heard
                && self.decisions.owner_word(tenure.0, tenure.1).is_none()
            {
                return say(assignment.owner, Word::Lost, tenure);
            }
            return None;
        }
        let has_refused = self.decisions.owner_word(tenure.0, tenure.1) == Some(OwnerWord::Refused);
        if from.node == self.me && has_refused {
            return say(assignment.owner, Word::Refused, tenure);
        }
        None
    }

    fn successor_wants(&self) -> Option<SuccessorDecision> {
        let decision = |tenure: Tenure, owner, word| SuccessorDecision {
            lineage: tenure.0,
            generation: tenure.1,
            owner,
            copy: self
                .arriving
                .map(|it| it.copy)
                .filter(|_| word == SuccessorWord::Begun && self.lost() != Some(tenure)),
            word,
        };
        if let Some((tenure, owner)) = self.begin.filter(|(tenure, _)| self.is_open(*tenure)) {
            return Some(decision(tenure, owner, SuccessorWord::Begun));
        }
        if let Some((tenure, owner)) = self.asked.filter(|(tenure, _)| self.is_open(*tenure)) {
            return Some(decision(tenure, owner, SuccessorWord::Voided));
        }
        let assignment = &self.assignment;
        let from = assignment.from.filter(|_| assignment.owner == self.me)?;
        let tenure = assignment.tenure();
        let has_copy = self.arriving.is_some_and(|it| it.copy == from.copy);
        let is_void = self.is_open(tenure) && self.lost() != Some(tenure) && !has_copy;
        is_void.then(|| decision(tenure, from.node, SuccessorWord::Voided))
    }

    fn owner_wants(&self) -> Option<OwnerDecision> {
        let refused = |decision: OwnerDecision| OwnerDecision {
            word: OwnerWord::Refused,
            ..decision
        };
        if let Some(sealed) = self.sealed() {
            let about = (sealed.lineage, sealed.generation);
            let is_void = match self.heard.filter(|(of, _)| *of == about) {
                Some((_, Word::Voided)) => true,
                Some((_, Word::New)) => self.has_keys,
                Some(_) => false,
                None => {
                    let is_unsent = matches!(self.sending, Sending::Draining | Sending::Drained);
                    is_unsent && (self.tap.is_none() || self.seal_timed_out)
                }
            };
            if is_void && self.awaits_word() {
                return Some(refused(sealed));
            }
        }
        let assignment = &self.assignment;
        let from = assignment.from.filter(|from| from.node == self.me)?;
        let tenure = assignment.tenure();
        if self
            .decisions
            .as_owner
            .is_some_and(|it| (it.lineage, it.generation) >= tenure)
        {
            return None;
        }
        let decision = OwnerDecision {
            lineage: tenure.0,
            generation: tenure.1,
            successor: assignment.owner,
            word: OwnerWord::Sealed,
        };
        if self.lost() == Some(tenure) {
            return self.is_loaded.then(|| refused(decision));
        }
        let is_tapped = self
            .tap
            .is_some_and(|tap| tap.copy == from.copy && tap.peer == assignment.owner);
        Some(if is_tapped {
            decision
        } else {
            refused(decision)
        })
    }
}
