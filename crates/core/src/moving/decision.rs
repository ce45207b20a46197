//! What a node has decided about a range, durably.

use serde::{Deserialize, Serialize};

use crate::{CopyId, NodeId};

/// What an owner says to a successor that has published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnerWord {
    /// It may send *begin*, and does not answer for the range any more.
    Sealed,
    /// It never sends *begin* for this generation, and goes on answering.
    Refused,
}

/// What a successor that has published says to the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SuccessorWord {
    /// It answers for the range.
    Begun,
    /// It does not, and never will under this generation.
    Voided,
}

/// An owner's decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OwnerDecision {
    /// The lineage of the map.
    pub lineage: u64,
    /// The generation that was published.
    #[serde(rename = "gen")]
    pub generation: u64,
    /// Who published it.
    pub successor: NodeId,
    /// What was decided.
    pub word: OwnerWord,
}

/// A successor's decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SuccessorDecision {
    /// The lineage of the map.
    pub lineage: u64,
    /// The generation that was published.
    #[serde(rename = "gen")]
    pub generation: u64,
    /// Whom the range comes from.
    pub owner: NodeId,
    /// What has brought it, if it has begun with what a session brought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<CopyId>,
    /// What was decided.
    pub word: SuccessorWord,
}

/// The last decision about a range in each part that a node can play. They are kept beside the cluster map, as long as the node
/// has its disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Decisions {
    /// As the owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_owner: Option<OwnerDecision>,
    /// As the successor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_successor: Option<SuccessorDecision>,
    /// The disk is new: what was decided about this lineage and generation is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<(u64, u64)>,
}

impl Decisions {
    /// The owner's word for this generation.
    pub fn owner_word(&self, lineage: u64, generation: u64) -> Option<OwnerWord> {
        self.as_owner
            .filter(|it| (it.lineage, it.generation) == (lineage, generation))
            .map(|it| it.word)
    }

    /// The successor's word for this generation.
    pub fn successor_word(&self, lineage: u64, generation: u64) -> Option<SuccessorWord> {
        self.as_successor
            .filter(|it| (it.lineage, it.generation) == (lineage, generation))
            .map(|it| it.word)
    }
}
