//! What the cluster map says of one range, and how nodes change it.

use crate::{ClusterMap, CopyId, HandedFrom, NodeId, NodeState, Phase, RangeEntry};

/// Lineage and generation: which ownership of a range, in the order in which they follow each other.
pub(super) type Tenure = (u64, u64);

/// What a cluster map says of one range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Assignment {
    /// The map's lineage.
    pub lineage: u64,
    /// The generation of the ownership.
    pub generation: u64,
    /// The owner.
    pub owner: NodeId,
    /// The node that is to have the range next.
    pub successor: Option<NodeId>,
    /// Whom the owner has it from, until it is known that the owner has begun.
    pub from: Option<Handed>,
    /// The phase of the operation under way: whether a range may be published.
    pub may_publish: bool,
    /// Of a range that was published: whether its owner is to be the successor again if it is taken back.
    pub is_moving: bool,
}

/// Whom a range comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handed {
    /// The owner before.
    pub node: NodeId,
    /// The generation that it answers under.
    pub generation: u64,
    /// The copy that the owner now has of it.
    pub copy: CopyId,
}

/// A change of the cluster map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Change {
    /// The node is the owner, from the one before.
    Publish {
        /// The copy that it has.
        copy: CopyId,
    },
    /// The owner before is the owner again.
    TakeBack,
    /// The owner has begun.
    ClearFrom,
}

impl Assignment {
    /// What `map` says of the range at `index` in its list.
    pub fn of(map: &ClusterMap, index: usize) -> Self {
        let range = &map.ranges[index];
        let is_active = |id| {
            map.node(id)
                .is_some_and(|node| node.state == NodeState::Active)
        };
        Self {
            lineage: map.lineage,
            generation: range.generation,
            owner: range.owner,
            successor: range.successor,
            from: range.from.as_ref().map(|from| Handed {
                node: from.node,
                generation: from.generation,
                copy: from.copy,
            }),
            may_publish: map
                .target
                .as_ref()
                .is_some_and(|target| target.phase == Phase::HandOver),
            is_moving: map.target.is_some() && range.from.is_some() && is_active(range.owner),
        }
    }

    /// Which ownership.
    pub(super) const fn tenure(&self) -> Tenure {
        (self.lineage, self.generation)
    }

    /// The range as it stands after `change` by `me`.
    #[must_use]
    pub fn changed(&self, me: NodeId, change: Change) -> Self {
        match change {
            Change::Publish { copy } => Self {
                generation: self.generation + 1,
                owner: me,
                successor: None,
                from: Some(Handed {
                    node: self.owner,
                    generation: self.generation,
                    copy,
                }),
                ..*self
            },
            Change::TakeBack => Self {
                generation: self.generation + 1,
                owner: me,
                successor: self.is_moving.then_some(self.owner),
                from: None,
                ..*self
            },
            Change::ClearFrom => Self {
                from: None,
                ..*self
            },
        }
    }
}

impl Change {
    /// Makes this change by node `me` of `range`, of which the map says `stored`.
    pub fn apply(self, me: NodeId, stored: &Assignment, range: &mut RangeEntry) {
        let changed = stored.changed(me, self);
        range.generation = changed.generation;
        range.owner = changed.owner;
        range.successor = changed.successor;
        range.from = changed.from.map(|from| HandedFrom {
            node: from.node,
            generation: from.generation,
            copy: from.copy,
            unknown: serde_json::Map::new(),
        });
    }
}
