//! The hash ranges whose keys this node has: those that it answers for, and those that come and go.
//!
//! A table never changes. A new map makes a new table, which shares the ranges that stay; a request keeps the table that it
//! started with.

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use keydb_core::{
    Arena, ClusterMap, CopyId, HashRange, KeySet, NodeId, RangeEntry, RangeId, moving::Standing,
};

use crate::ranges::uncommitted::Uncommitted;

/// A cluster map, as it is used and as it is handed out.
#[derive(Debug)]
pub(crate) struct CurrentMap {
    pub(crate) map: ClusterMap,
    pub(crate) json: Bytes,
}

/// The ranges whose keys this node has, and the map that it goes by.
#[derive(Debug)]
pub(crate) struct OwnedRanges {
    /// Which node this is.
    pub(crate) node: NodeId,
    pub(crate) current_map: Arc<CurrentMap>,
    /// By ascending id.
    ranges: Vec<Arc<OwnedRange>>,
    /// Where something else holds than what the map says.
    standings: HashMap<RangeId, Standing>,
}

/// One range whose keys this node has.
#[derive(Debug)]
pub(crate) struct OwnedRange {
    pub(crate) id: RangeId,
    /// Under which its keys came to be here. It stays the same for as long as they do.
    pub(crate) generation: u64,
    /// What brought them, if they came from another node.
    pub(crate) copy: Option<CopyId>,
    pub(crate) bounds: HashRange,
    /// The generation under which requests are let in; 0: none.
    open_under: AtomicU64,
    /// The keys whose write is not committed yet. To be looked at and changed under the lock of the keys.
    pub(crate) uncommitted: Uncommitted,
    keys: RwLock<KeySet>,
    /// What is missing of it, if something is.
    missing: OnceLock<String>,
    readiness: OnceLock<Readiness>,
    /// It was closed, and somebody has given up what is missing of it.
    is_given_up: AtomicBool,
}

/// What has become of a range's loading, once it has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// All its keys are there.
    Ready,
    /// What is there is not complete, for this reason.
    Closed(String),
}

impl CurrentMap {
    pub(crate) fn new(map: ClusterMap) -> Arc<Self> {
        let json = Bytes::from(map.to_json());
        Arc::new(Self { map, json })
    }

    /// The index of the range with this id in the map's list, if the map has it.
    pub(crate) fn index_of(&self, id: RangeId) -> Option<usize> {
        let ranges = &self.map.ranges;
        // As long as no range was split, a range's id is its index.
        let guess = id.0 as usize;
        if ranges.get(guess).is_some_and(|range| range.id == id) {
            return Some(guess);
        }
        ranges.iter().position(|range| range.id == id)
    }

    /// The range with this id and its owner's address, if the map has it.
    pub(crate) fn owner_of(&self, id: RangeId) -> Option<(&RangeEntry, &str)> {
        let range = &self.map.ranges[self.index_of(id)?];
        let address = self.map.node(range.owner).map_or("", |node| &node.address);
        Some((range, address))
    }
}

impl OwnedRanges {
    /// These ranges, by ascending id, under `current_map`; where `standings` says otherwise, it is not the map that counts.
    pub(crate) fn with(
        node: NodeId,
        current_map: Arc<CurrentMap>,
        ranges: Vec<Arc<OwnedRange>>,
        standings: HashMap<RangeId, Standing>,
    ) -> Self {
        debug_assert!(ranges.is_sorted_by_key(|range| range.id));
        Self {
            node,
            current_map,
            ranges,
            standings,
        }
    }

    /// How the node stands to a range, where that is not what the map says.
    pub(crate) fn standing(&self, id: RangeId) -> Option<Standing> {
        self.standings.get(&id).copied()
    }

    /// The ranges by ascending id.
    pub(crate) fn ranges(&self) -> &[Arc<OwnedRange>] {
        &self.ranges
    }

    /// The index of the range with this id, if it is owned. Quick when that is `guess`: requests name ranges mostly in order.
    #[inline]
    pub(crate) fn find(&self, id: RangeId, guess: usize) -> Option<usize> {
        if self.ranges.get(guess).is_some_and(|range| range.id == id) {
            return Some(guess);
        }
        self.ranges.binary_search_by_key(&id, |range| range.id).ok()
    }
}

#[cfg(test)]
impl OwnedRanges {
    /// The ranges that `node` owns by `current_map`. Those that `before` has under the same generation and bounds stay as they are,
    /// the others start empty: ready in `memory` mode, where nothing is to be loaded, and loading otherwise.
    pub(crate) fn new(
        current_map: Arc<CurrentMap>,
        node: NodeId,
        arena: &Arc<Arena>,
        before: Option<&Self>,
    ) -> Self {
        let has_disk = current_map.map.durability.has_disk();
        let before: HashMap<RangeId, &Arc<OwnedRange>> = before
            .iter()
            .flat_map(|table| &table.ranges)
            .map(|range| (range.id, range))
            .collect();
        let map = &current_map.map;
        let owned = (0..map.ranges.len()).filter(|index| map.ranges[*index].owner == node);
        let mut ranges: Vec<Arc<OwnedRange>> = owned
            .map(|index| {
                let RangeEntry { id, generation, .. } = map.ranges[index];
                let bounds = map.bounds(index);
                match before.get(&id) {
                    Some(range) if range.generation == generation && range.bounds == bounds => {
                        Arc::clone(range)
                    }
                    _ => {
                        let range = OwnedRange::new(id, generation, None, bounds, arena, has_disk);
                        range.open(generation);
                        Arc::new(range)
                    }
                }
            })
            .collect();
        ranges.sort_unstable_by_key(|range| range.id);
        Self {
            node,
            current_map,
            ranges,
            standings: HashMap::new(),
        }
    }
}

const POISONED: &str = "a key set in which an operation panicked is not used any more";

impl OwnedRange {
    /// A range without keys, into which no request is let.
    pub(crate) fn new(
        id: RangeId,
        generation: u64,
        copy: Option<CopyId>,
        bounds: HashRange,
        arena: &Arc<Arena>,
        loading: bool,
    ) -> Self {
        let readiness = OnceLock::new();
        if !loading {
            let _ = readiness.set(Readiness::Ready);
        }
        Self {
            id,
            generation,
            copy,
            bounds,
            open_under: AtomicU64::new(0),
            uncommitted: Uncommitted::default(),
            keys: RwLock::new(KeySet::new(bounds, arena)),
            missing: OnceLock::new(),
            readiness,
            is_given_up: AtomicBool::new(false),
        }
    }

    /// Lets requests in that name this generation, and no others.
    pub(crate) fn open(&self, generation: u64) {
        self.open_under.store(generation, Ordering::SeqCst);
    }

    /// Lets no request in.
    pub(crate) fn shut(&self) {
        self.open(0);
    }

    /// Whether requests that name this generation are let in.
    #[inline]
    pub(crate) fn is_open(&self, generation: u64) -> bool {
        generation != 0 && self.open_under.load(Ordering::SeqCst) == generation
    }

    /// Whether requests are let in at all.
    pub(crate) fn is_answered_for(&self) -> bool {
        self.open_under.load(Ordering::SeqCst) != 0
    }

    /// What has become of its loading; `None` while it loads. Only a ready range is answered for.
    #[inline]
    pub(crate) fn readiness(&self) -> Option<&Readiness> {
        match self.readiness.get() {
            Some(Readiness::Closed(_)) if self.is_given_up() => Some(&Readiness::Ready),
            readiness => readiness,
        }
    }

    /// Whether it is answered for though something of it was missing.
    pub(crate) fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Acquire)
    }

    /// Has it answered for with what is there, if it is closed. Returns what is missing.
    pub(crate) fn give_up(&self) -> Option<&str> {
        match self.readiness.get() {
            Some(Readiness::Closed(reason)) if !self.is_given_up.swap(true, Ordering::AcqRel) => {
                Some(reason)
            }
            _ => None,
        }
    }

    /// Whether it is answered for.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        self.readiness() == Some(&Readiness::Ready)
    }

    /// Something of it is missing, for this reason, so that it will be closed. The first reason counts.
    pub(crate) fn lacks(&self, reason: String) {
        let _ = self.missing.set(reason);
    }

    /// Whether something of it is missing, as far as is known.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.missing.get().is_some()
    }

    /// All that there is of it has been loaded: from here on it is ready, or closed where something is missing.
    pub(crate) fn end_loading(&self) {
        let readiness = match self.missing.get() {
            None => Readiness::Ready,
            Some(reason) => Readiness::Closed(reason.clone()),
        };
        let _ = self.readiness.set(readiness);
    }

    /// Closes it, for this reason: nothing of it is loaded any more.
    pub(crate) fn close(&self, reason: String) {
        self.lacks(reason);
        self.end_loading();
    }

    /// The keys, to look at. Hold it for a bounded number of keys, and never across an await.
    #[inline]
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, KeySet> {
        self.keys.read().expect(POISONED)
    }

    /// The keys, to change. Hold it for a bounded number of keys, and never across an await.
    #[inline]
    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, KeySet> {
        self.keys.write().expect(POISONED)
    }

    /// The keys, if nobody is changing them right now.
    #[inline]
    pub(crate) fn try_read(&self) -> Option<RwLockReadGuard<'_, KeySet>> {
        self.keys.try_read().ok()
    }
}

#[cfg(test)]
mod tests {
    use keydb_core::{Durability, NewCluster};

    use super::*;

    fn two_nodes() -> ClusterMap {
        ClusterMap::create(&NewCluster {
            addresses: vec!["a:1".to_owned(), "b:1".to_owned()],
            range_count: 8,
            durability: Durability::Memory,
        })
        .unwrap()
    }

    #[test]
    fn the_owner_of_a_range_is_named_with_its_address() {
        let map = two_nodes();
        let current_map = CurrentMap::new(map.clone());
        for range in &map.ranges {
            let (entry, address) = current_map.owner_of(range.id).unwrap();
            assert_eq!(entry.id, range.id);
            assert_eq!(
                address,
                if range.owner == NodeId(0) {
                    "a:1"
                } else {
                    "b:1"
                }
            );
        }
        assert!(current_map.owner_of(RangeId(8)).is_none());
    }
}
