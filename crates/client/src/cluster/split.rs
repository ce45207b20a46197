//! Sorts a batch by node and hash range, without touching a key more often than needed.
//!
//! A *slot* is a range's place in the order (node, range). Fingerprints are counting-sorted by slot, which keeps the caller's
//! order within a range, into one buffer; each node's share of it is a contiguous slice.

use std::ops::Range;

use bytes::Bytes;
use keydb_core::{ClusterMap, FINGERPRINT_BYTES, Fingerprint, NodeId, RangeId};
use keydb_proto::shard::RangeKeys;

use super::holder::Holder;

/// Where fingerprints go by one cluster map, and by what is known of ranges that are handed over.
#[derive(Debug)]
pub(crate) struct SlotTable {
    /// The ranges' first top-64-bits values, ascending.
    starts: Vec<u64>,
    /// `cells[c]` is the index of the range that the first value with the top bits `c` belongs to; one more for the end.
    cells: Vec<u32>,
    cell_shift: u32,
    /// By range index.
    slots: Vec<u32>,
    /// By slot: what a request says of the range.
    ranges: Vec<(RangeId, u64)>,
    /// By node, in slot order.
    nodes: Vec<(NodeId, Range<u32>)>,
}

impl SlotTable {
    /// Of a map whose ranges these nodes are asked for, in the map's order.
    pub(crate) fn new(map: &ClusterMap, holders: &[Holder]) -> Self {
        let starts: Vec<u64> = map.ranges.iter().map(|range| range.start).collect();
        // At least as many cells as ranges, so that a cell rarely holds more than two.
        let cell_bits = usize::BITS - starts.len().leading_zeros();
        let cell_shift = 64 - cell_bits;
        let index_of = |top: u64| starts.partition_point(|start| *start <= top) - 1;
        let mut cells: Vec<u32> = (0..1_u64 << cell_bits)
            .map(|cell| index_of(cell << cell_shift) as u32)
            .collect();
        cells.push(starts.len() as u32 - 1);

        let mut order: Vec<usize> = (0..starts.len()).collect();
        order.sort_by_key(|index| (holders[*index].node, *index));
        let mut slots = vec![0; starts.len()];
        let mut ranges = Vec::with_capacity(starts.len());
        let mut nodes: Vec<(NodeId, Range<u32>)> = Vec::new();
        for (slot, index) in (0..).zip(order) {
            let holder = holders[index];
            slots[index] = slot;
            ranges.push((map.ranges[index].id, holder.generation));
            match nodes.last_mut() {
                Some((node, of_node)) if *node == holder.node => of_node.end = slot + 1,
                _ => nodes.push((holder.node, slot..slot + 1)),
            }
        }
        Self {
            starts,
            cells,
            cell_shift,
            slots,
            ranges,
            nodes,
        }
    }

    /// The place of the range that a value belongs to in the order (node, range).
    #[inline]
    pub(crate) fn slot_of(&self, top: u64) -> u32 {
        let cell = (top >> self.cell_shift) as usize;
        let (first, last) = (self.cells[cell] as usize, self.cells[cell + 1] as usize);
        let index = if first == last {
            first
        } else {
            first + self.starts[first + 1..=last].partition_point(|start| *start <= top)
        };
        self.slots[index]
    }

    /// The node that is asked for the range that a value belongs to.
    #[inline]
    pub(crate) fn node_of(&self, top: u64) -> NodeId {
        let slot = self.slot_of(top);
        let before = self
            .nodes
            .partition_point(|(_, of_node)| of_node.end <= slot);
        self.nodes[before].0
    }
}

/// One node's share of a batch.
#[derive(Debug)]
pub(crate) struct Share {
    pub(crate) node: NodeId,
    /// What the request says of each range, in order; attempts are still 0.
    pub(crate) ranges: Vec<RangeKeys>,
    /// The fingerprints, packed.
    pub(crate) fingerprints: Bytes,
    /// Which position of the batch each of them came from.
    pub(crate) positions: Vec<u32>,
}

impl Share {
    /// The ranges with the positions of their keys.
    pub(crate) fn positions_by_range(&self) -> impl Iterator<Item = (&RangeKeys, &[u32])> {
        let mut rest = self.positions.as_slice();
        self.ranges.iter().map(move |range| {
            let (of_range, others) = rest.split_at(range.key_count as usize);
            rest = others;
            (range, of_range)
        })
    }
}

/// Splits the fingerprints at `selected` positions of a batch (ascending), or all of them, by node.
pub(crate) fn split(
    table: &SlotTable,
    batch: &[Fingerprint],
    selected: Option<&[u32]>,
) -> Vec<Share> {
    match selected {
        None => sorted(table, (0..).zip(batch.iter().copied()), batch.len()),
        Some(positions) => {
            let picked = positions
                .iter()
                .map(|position| (*position, batch[*position as usize]));
            sorted(table, picked, positions.len())
        }
    }
}

fn sorted(
    table: &SlotTable,
    keys: impl Iterator<Item = (u32, Fingerprint)> + Clone,
    len: usize,
) -> Vec<Share> {
    // Counts per slot, then each slot's next place.
    let mut places = vec![0_u32; table.ranges.len()];
    let slots: Vec<u32> = keys
        .clone()
        .map(|(_, fingerprint)| {
            let slot = table.slot_of(fingerprint.top());
            places[slot as usize] += 1;
            slot
        })
        .collect();
    let mut shares = Vec::with_capacity(table.nodes.len());
    let mut total = 0;
    let mut bounds = Vec::with_capacity(table.nodes.len());
    for (node, of_node) in &table.nodes {
        let start = total;
        let mut ranges = Vec::new();
        let of_node = of_node.start as usize..of_node.end as usize;
        let in_node = places[of_node.clone()].iter_mut();
        for (place, (id, generation)) in in_node.zip(&table.ranges[of_node]) {
            let count = std::mem::replace(place, total);
            if count > 0 {
                total += count;
                ranges.push(RangeKeys {
                    range_id: id.0,
                    generation: *generation,
                    key_count: count,
                    attempt: 0,
                });
            }
        }
        if total > start {
            shares.push((*node, ranges));
            bounds.push(start as usize..total as usize);
        }
    }

    let mut packed = vec![[0; FINGERPRINT_BYTES]; len];
    let mut positions = vec![0_u32; len];
    for ((position, fingerprint), slot) in keys.zip(slots) {
        let place = &mut places[slot as usize];
        packed[*place as usize] = fingerprint.to_bytes();
        positions[*place as usize] = position;
        *place += 1;
    }

    let packed = Bytes::from(packed.into_flattened());
    shares
        .into_iter()
        .zip(bounds)
        .map(|((node, ranges), bounds)| Share {
            node,
            ranges,
            fingerprints: packed
                .slice(bounds.start * FINGERPRINT_BYTES..bounds.end * FINGERPRINT_BYTES),
            positions: positions[bounds].to_vec(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use keydb_core::{Durability, HashSeed, NewCluster};
    use proptest::prelude::*;

    use super::*;

    fn map(nodes: u32, range_count: u32) -> ClusterMap {
        ClusterMap::create(&NewCluster {
            addresses: (0..nodes).map(|id| format!("node-{id}:50051")).collect(),
            range_count,
            durability: Durability::Memory,
        })
        .unwrap()
    }

    fn keys(count: usize) -> Vec<Fingerprint> {
        (0..count)
            .map(|index| Fingerprint::of(&(index % 700).to_le_bytes(), HashSeed::new(7)).unwrap())
            .collect()
    }

    /// Every key goes once to the owner of its range, in its range's group, in the caller's order.
    fn check(map: &ClusterMap, batch: &[Fingerprint], selected: Option<&[u32]>) {
        let mut seen = vec![false; batch.len()];
        let holders: Vec<Holder> = map.ranges.iter().map(Holder::first).collect();
        let table = SlotTable::new(map, &holders);
        for share in split(&table, batch, selected) {
            assert_eq!(
                share.fingerprints.len(),
                share.positions.len() * FINGERPRINT_BYTES
            );
            let mut at = 0;
            for range in &share.ranges {
                assert!(range.key_count > 0);
                let mut before = None;
                for _ in 0..range.key_count {
                    let position = share.positions[at];
                    let fingerprint = batch[position as usize];
                    let sent = &share.fingerprints[at * FINGERPRINT_BYTES..][..FINGERPRINT_BYTES];
                    assert_eq!(sent, fingerprint.to_bytes());
                    let entry = &map.ranges[map.range_index_of(fingerprint.top())];
                    assert_eq!(table.node_of(fingerprint.top()), entry.owner);
                    assert_eq!((entry.id.0, entry.owner), (range.range_id, share.node));
                    assert_eq!(entry.generation, range.generation);
                    assert!(before < Some(position), "the caller's order is kept");
                    assert!(!std::mem::replace(&mut seen[position as usize], true));
                    before = Some(position);
                    at += 1;
                }
            }
            assert_eq!(at, share.positions.len());
        }
        let asked = |position| selected.is_none_or(|selected| selected.contains(&position));
        assert!(
            (0..)
                .zip(seen)
                .all(|(position, seen)| seen == asked(position))
        );
    }

    #[test]
    fn every_key_goes_once_to_the_owner_of_its_range_in_order() {
        for (nodes, ranges) in [(1, 1), (1, 128), (3, 128), (3, 7), (5, 1000), (2, 3)] {
            check(&map(nodes, ranges), &keys(3000), None);
        }
        check(&map(3, 128), &[], None);
    }

    #[test]
    fn a_selection_is_split_like_a_batch_of_its_own() {
        let some: Vec<u32> = (0..3000).filter(|position| position % 7 < 2).collect();
        check(&map(3, 128), &keys(3000), Some(&some));
        check(&map(3, 128), &keys(10), Some(&[]));
    }

    proptest! {
        #[test]
        fn any_boundaries_and_owners_will_do(
            starts in proptest::collection::btree_set(prop_oneof![any::<u64>(), 0_u64..50], 0..200),
            owners in proptest::collection::vec(0_u32..4, 200),
        ) {
            let mut starts: Vec<u64> = starts.into_iter().filter(|start| *start > 0).collect();
            starts.insert(0, 0);
            let mut map = map(4, starts.len() as u32);
            for ((range, start), owner) in map.ranges.iter_mut().zip(&starts).zip(owners) {
                range.start = *start;
                range.owner = NodeId(owner);
            }
            let mut batch = keys(300);
            let edges = starts.iter().flat_map(|start| [*start, start.wrapping_sub(1)]);
            batch.extend(edges.map(|top| Fingerprint::from_parts(top, 1)));
            check(&map, &batch, None);
        }
    }
}
