//! Which ranges the manifest names, and as what.
//!
//! A range is named when there is a file of it. Until then a start takes it for one whose keys are not here, which is what it is. Two
//! things are not: the ranges that a node was created with, which begin without keys, and what the node finds in its manifest at a start.
//!
//! A range that comes in, from the beginning of its copy on until it is ready, is not named. What is written of it meanwhile goes into no
//! delta and holds up no cut of the journal: the full file that it is named with is made of its key set, which has all of it.

use std::collections::BTreeMap;

use keydb_core::{Manifest, ManifestRange, RangeId};

use crate::ranges::owned::{OwnedRange, OwnedRanges, Readiness};

/// Whether what `entry` names are the keys of `range`. Those of a range that does not know what brought its keys were loaded from what
/// the manifest names.
pub(in crate::disk) fn is_of(entry: &ManifestRange, range: &OwnedRange) -> bool {
    entry.bounds() == Some(range.bounds) && (range.copy.is_none() || entry.copy == range.copy)
}

/// Whether `manifest` names this very range.
pub(in crate::disk::snapshot) fn names(manifest: &Manifest, range: &OwnedRange) -> bool {
    manifest
        .range(range.id)
        .is_some_and(|entry| is_of(entry, range))
}

/// Whether the keys of `range` are coming in from another node.
pub(in crate::disk::snapshot) fn is_arriving(manifest: &Manifest, range: &OwnedRange) -> bool {
    range.copy.is_some() && range.readiness().is_none() && !names(manifest, range)
}

/// Leaves the ranges out of `manifest` that are not in `table` any more. What it has of closed ones stays as it is. Returns which are
/// left out.
pub(super) fn leave_out_others(manifest: &mut Manifest, table: &OwnedRanges) -> Vec<RangeId> {
    manifest.retain_ranges(|entry| {
        let range = table.find(entry.id, 0).map(|index| &table.ranges()[index]);
        range.is_some_and(|range| {
            is_of(entry, range) || matches!(range.readiness(), Some(Readiness::Closed(_)))
        })
    })
}

/// Has a `manifest` that nothing was ever written to name the ranges that the node was created with.
pub(super) fn name_created(manifest: &mut Manifest, table: &OwnedRanges) {
    if manifest.is_blank() {
        let created = table.ranges().iter().filter(|range| range.copy.is_none());
        manifest.ranges.extend(created.map(|range| entry_of(range)));
        manifest.ranges.sort_by_key(|range| range.id);
    }
}

/// How `range` is named, but for its base.
pub(super) fn entry_of(range: &OwnedRange) -> ManifestRange {
    ManifestRange {
        id: range.id,
        generation: range.generation,
        start: range.bounds.start(),
        last: range.bounds.last(),
        copy: range.copy,
        base: None,
        unknown: serde_json::Map::new(),
    }
}

/// After a start: how many entries the deltas of each range have, near enough, as fingerprints are spread evenly. Of ranges that a
/// delta is no part of any more it may have entries as well, so there may be fewer.
pub(super) fn estimate_delta_entries(manifest: &Manifest) -> BTreeMap<RangeId, u64> {
    let estimate = |range: &ManifestRange| {
        let (_, deltas) = manifest.parts(range);
        let entries = deltas.map(|delta| delta.entries / delta.ranges.len() as u64);
        (range.id, entries.sum())
    };
    manifest.ranges.iter().map(estimate).collect()
}
