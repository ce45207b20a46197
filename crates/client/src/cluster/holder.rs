//! Who is asked for a hash range.
//!
//! While a range is handed over, the map alone does not say who answers for it: that is the owner before until it has sealed the
//! range, and again if the hand-over is given up. So the owner before is asked first, and whom a refusal names goes before the map
//! for as long as the map's entry of the range stays as it is.

use keydb_core::{NodeId, RangeEntry, RangeId};

/// A node, and the generation under which it is asked for a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) node: NodeId,
    pub(crate) generation: u64,
}

/// A range to be asked for elsewhere, because its holder has refused it or does not answer.
#[derive(Debug)]
pub(crate) struct Redirect {
    pub(crate) range: RangeId,
    /// The top 64 bits of a key of the range.
    pub(crate) top: u64,
    /// Who was asked.
    pub(crate) asked: Holder,
    /// Whom that one names; `None`: the other one of the two that the map has during a hand-over.
    pub(crate) to: Option<Holder>,
}

impl Holder {
    fn owner(range: &RangeEntry) -> Self {
        Self {
            node: range.owner,
            generation: range.generation,
        }
    }

    /// Whom to ask by the map alone.
    pub(super) fn first(range: &RangeEntry) -> Self {
        match &range.from {
            None => Self::owner(range),
            Some(from) => Self {
                node: from.node,
                generation: from.generation,
            },
        }
    }

    /// Whether the range that `before` was the map's entry of is still asked for here, now that `now` is.
    pub(super) fn stays(self, before: &RangeEntry, now: &RangeEntry) -> bool {
        let entry = |range: &RangeEntry| (range.id, Self::owner(range));
        let is_same = entry(before) == entry(now) && before.from == now.from;
        // A new map may say no more than what a refusal has said before.
        is_same || (before.id == now.id && self == Self::owner(now))
    }
}

impl Redirect {
    /// Whom to ask from now on for the range, which is asked for at `holder` now; `None`: nobody else.
    ///
    /// What lies before the hand-over that the map knows of is over, so a node that names that is behind.
    pub(super) fn target(&self, range: &RangeEntry, holder: Holder) -> Option<Holder> {
        let (first, owner) = (Holder::first(range), Holder::owner(range));
        let other = if self.asked == first { owner } else { first };
        let to = self.to.unwrap_or(other);
        let is_new = to != self.asked && to.generation >= first.generation;
        (range.id == self.range && holder == self.asked && is_new).then_some(to)
    }
}

#[cfg(test)]
mod tests {
    use keydb_core::{ClusterMap, CopyId, Durability, HandedFrom, NewCluster};

    use super::*;

    const A: Holder = holder(0, 4);
    const B: Holder = holder(1, 5);

    const fn holder(node: u32, generation: u64) -> Holder {
        let node = NodeId(node);
        Holder { node, generation }
    }

    fn entry(owner: Holder, from: Option<Holder>) -> RangeEntry {
        let mut map = ClusterMap::create(&NewCluster {
            addresses: ["a:1", "b:1", "c:1"].map(str::to_owned).to_vec(),
            range_count: 1,
            durability: Durability::Memory,
        })
        .unwrap();
        let from = from.map(|from| HandedFrom {
            node: from.node,
            generation: from.generation,
            copy: CopyId::from_bytes([7; 16]),
            unknown: map.unknown.clone(),
        });
        RangeEntry {
            owner: owner.node,
            generation: owner.generation,
            from,
            ..map.ranges.remove(0)
        }
    }

    fn target(range: &RangeEntry, asked: Holder, to: Option<Holder>) -> Option<Holder> {
        let redirect = Redirect {
            range: range.id,
            top: 0,
            asked,
            to,
        };
        redirect.target(range, asked)
    }

    #[test]
    fn the_owner_before_is_asked_first_and_whom_it_names_then() {
        let (settled, handed) = (entry(B, None), entry(B, Some(A)));
        assert_eq!(Holder::first(&settled), B);
        assert_eq!(Holder::first(&handed), A);
        assert_eq!(target(&handed, A, Some(B)), Some(B));
        assert_eq!(target(&handed, B, Some(A)), Some(A));
        assert_eq!(target(&settled, B, Some(holder(2, 6))), Some(holder(2, 6)));
        // A hand-over that the map does not know of, given up.
        assert_eq!(target(&entry(A, None), B, Some(A)), Some(A));
    }

    #[test]
    fn a_node_that_is_behind_is_not_followed() {
        assert_eq!(target(&entry(B, None), B, Some(A)), None);
        assert_eq!(target(&entry(B, Some(A)), A, Some(holder(2, 3))), None);
        assert_eq!(target(&entry(B, None), B, Some(B)), None);
    }

    #[test]
    fn of_two_the_other_is_asked_when_one_does_not_answer() {
        let handed = entry(B, Some(A));
        assert_eq!(target(&handed, A, None), Some(B));
        assert_eq!(target(&handed, B, None), Some(A));
        assert_eq!(target(&entry(B, None), B, None), None);
    }

    #[test]
    fn a_refusal_that_comes_late_changes_nothing() {
        let (range, to) = (entry(B, Some(A)), Some(B));
        let redirect = Redirect {
            range: range.id,
            top: 0,
            asked: A,
            to,
        };
        assert_eq!(redirect.target(&range, B), None);
    }

    #[test]
    fn what_a_refusal_said_holds_until_the_entry_says_more() {
        let (before, handed) = (entry(A, None), entry(B, Some(A)));
        for holder in [A, B] {
            assert!(holder.stays(&handed, &handed));
        }
        assert!(B.stays(&before, &handed));
        assert!(!A.stays(&before, &handed));
        assert!(!A.stays(&handed, &entry(B, None)));
        assert!(!B.stays(&handed, &entry(holder(0, 6), None)));
    }
}
