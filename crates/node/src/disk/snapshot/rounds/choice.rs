//! Which ranges get a full file, and which deltas become one.

use keydb_core::{Lsn, Manifest, ManifestFile, RangeId, SnapshotKind};

/// A range's deltas may have this many entries more than its base before a full file replaces them.
const DELTA_ENTRIES_FREE: u64 = 4096;

/// With more deltas than this, the smallest become one. What only ranges need that are not answered for does not count.
pub(in crate::disk::snapshot) const DELTAS_MAX: usize = 64;

/// With more deltas than this, be it that they cannot be merged, the ranges that need the oldest ones get new bases, a few in each
/// round, until those deltas are not needed any more.
const UNMERGED_MAX: usize = 2 * DELTAS_MAX;

/// So many deltas become one at least, or merging would never end; and larger ones, as long as they have no more bytes than all
/// smaller ones together: so each entry is written anew a few times at most.
const MERGED_MIN: usize = DELTAS_MAX / 2;

/// What the choice goes by, of one range that is answered for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) id: RangeId,
    /// How many entries the deltas on top of its base have.
    pub(super) delta_entries: u64,
}

/// The deltas that are to become one, which is to have at most `bytes_max`; none while there are few. Deltas of another disk stay as
/// they are: their LSNs do not compare.
pub(super) fn deltas_to_merge(
    manifest: &Manifest,
    candidates: &[Candidate],
    bytes_max: u64,
) -> Vec<ManifestFile> {
    let mut deltas: Vec<&ManifestFile> = needed_deltas(manifest, candidates)
        .filter(|file| file.disk_id == manifest.disk_id)
        .collect();
    if deltas.len() <= DELTAS_MAX {
        return Vec::new();
    }
    deltas.sort_by_key(|file| file.size_bytes);
    let mut bytes = 0;
    let small = deltas.iter().enumerate().take_while(|(count, file)| {
        let fits = bytes + file.size_bytes <= bytes_max;
        let is_small = *count < MERGED_MIN || file.size_bytes <= bytes;
        bytes += file.size_bytes;
        fits && is_small
    });
    let chosen: Vec<ManifestFile> = small.map(|(_, file)| (*file).clone()).collect();
    if chosen.len() < 2 { Vec::new() } else { chosen }
}

/// The deltas that are a part of any of the candidates.
fn needed_deltas<'a>(
    manifest: &'a Manifest,
    candidates: &[Candidate],
) -> impl Iterator<Item = &'a ManifestFile> {
    manifest
        .files
        .iter()
        .filter(|file| file.kind == SnapshotKind::Delta)
        .filter(|file| candidates.iter().any(|it| file.is_part_of(it.id)))
}

/// The ranges that need a full file: where records up to `lost` are in no delta, where the deltas outweigh the base, and, where
/// deltas have become too many, those that need the oldest.
pub(super) fn fulls(
    manifest: &Manifest,
    candidates: &[Candidate],
    lost: Option<Lsn>,
) -> Vec<RangeId> {
    let is_delta = |file: &ManifestFile| file.kind == SnapshotKind::Delta;
    let too_many = needed_deltas(manifest, candidates).count() > UNMERGED_MAX;
    let mut chosen = Vec::new();
    let mut by_age = Vec::new();
    for candidate in candidates {
        let Some(range) = manifest.range(candidate.id) else {
            continue;
        };
        let (base, _) = manifest.parts(range);
        // Another disk's base is older than any of this one's.
        let base_lsn = base
            .filter(|base| base.disk_id == manifest.disk_id)
            .map(|base| base.lsn_to);
        let is_behind = lost.is_some_and(|lost| base_lsn.is_none_or(|lsn| lsn < lost));
        let base_entries = base.map_or(0, |base| base.entries);
        if is_behind || candidate.delta_entries > base_entries + DELTA_ENTRIES_FREE {
            chosen.push(candidate.id);
        } else if too_many {
            // Files are listed in the order in which they were made.
            let mut files = manifest.files.iter();
            let oldest = files.position(|file| is_delta(file) && file.is_part_of(candidate.id));
            by_age.extend(oldest.map(|oldest| (oldest, candidate.id)));
        }
    }
    by_age.sort_unstable();
    let at_once = candidates.len().div_ceil(UNMERGED_MAX);
    chosen.extend(by_age.into_iter().take(at_once).map(|(_, id)| id));
    chosen
}

#[cfg(test)]
mod tests {
    use keydb_core::{
        ClusterId, Incarnation, ManifestFile, ManifestRange, NodeId, SnapshotKind, UnixMillis,
    };

    use super::*;

    const OWN: Incarnation = Incarnation::from_bytes([1; 16]);
    const FORMER: Incarnation = Incarnation::from_bytes([2; 16]);

    fn file(name: &str, kind: SnapshotKind, disk_id: Incarnation, lsn_to: u64) -> ManifestFile {
        ManifestFile {
            name: name.to_owned(),
            kind,
            disk_id,
            lsn_from: Lsn::ZERO,
            lsn_to: Lsn(lsn_to),
            size_bytes: 1,
            entries: 10_000,
            created_ms: UnixMillis(0),
            ranges: Vec::new(),
            unknown: serde_json::Map::new(),
        }
    }

    /// Ranges with these bases.
    fn manifest(bases: &[Option<(Incarnation, u64)>]) -> Manifest {
        let cluster = ClusterId::from_bytes([3; 16]);
        let mut manifest = Manifest::new(cluster, 1, NodeId(0), OWN);
        for (id, base) in (0..).zip(bases) {
            let name = format!("base-{id}");
            if let Some((disk_id, lsn_to)) = base {
                let mut base = file(&name, SnapshotKind::Full, *disk_id, *lsn_to);
                base.ranges = vec![RangeId(id)];
                manifest.files.push(base);
            }
            manifest.ranges.push(ManifestRange {
                id: RangeId(id),
                generation: 1,
                start: u64::from(id),
                last: u64::from(id),
                copy: None,
                base: base.map(|_| name),
                unknown: serde_json::Map::new(),
            });
        }
        manifest
    }

    /// So many deltas more, each a part of these ranges.
    fn add_deltas(manifest: &mut Manifest, count: usize, ranges: std::ops::Range<u32>) {
        for _ in 0..count {
            let name = format!("delta-{}", manifest.files.len());
            let mut delta = file(&name, SnapshotKind::Delta, OWN, 1);
            delta.ranges = ranges.clone().map(RangeId).collect();
            manifest.files.push(delta);
        }
    }

    fn chosen(manifest: &Manifest, delta_entries: &[u64], lost: Option<Lsn>) -> Vec<u32> {
        let candidates: Vec<Candidate> = (0..)
            .zip(delta_entries)
            .map(|(id, delta_entries)| Candidate {
                id: RangeId(id),
                delta_entries: *delta_entries,
            })
            .collect();
        let chosen = fulls(manifest, &candidates, lost);
        chosen.into_iter().map(|id| id.0).collect()
    }

    #[test]
    fn deltas_that_outweigh_the_base_are_replaced() {
        let manifest = manifest(&[None, None, Some((OWN, 5)), Some((OWN, 5))]);
        let entries = [4096, 4097, 14_096, 14_097];
        assert_eq!(chosen(&manifest, &entries, None), [1, 3]);
    }

    #[test]
    fn after_a_loss_ranges_whose_base_of_this_disk_is_younger_need_none() {
        let bases = [None, Some((OWN, 19)), Some((OWN, 20)), Some((FORMER, 99))];
        let manifest = manifest(&bases);
        assert_eq!(chosen(&manifest, &[0; 4], Some(Lsn(20))), [0, 1, 3]);
        assert_eq!(chosen(&manifest, &[0; 4], None), [] as [u32; 0]);
    }

    #[test]
    fn with_too_many_deltas_the_ranges_that_need_the_oldest_get_new_bases_a_few_at_once() {
        let mut manifest = manifest(&[Some((OWN, 7)), Some((OWN, 3)), None, Some((FORMER, 90))]);
        add_deltas(&mut manifest, 1, 2..3);
        add_deltas(&mut manifest, 1, 1..3);
        add_deltas(&mut manifest, UNMERGED_MAX - 2, 0..3);
        assert_eq!(chosen(&manifest, &[0; 4], None), [] as [u32; 0]);
        add_deltas(&mut manifest, 1, 0..1);
        assert_eq!(chosen(&manifest, &[0; 4], None), [2]);
        let base = file("base-2-new", SnapshotKind::Full, OWN, 70);
        let range = manifest.ranges[2].clone();
        manifest.replace_parts(range, base);
        manifest.drop_unneeded_files();
        assert_eq!(chosen(&manifest, &[0; 4], None), [] as [u32; 0]);
        add_deltas(&mut manifest, 1, 0..1);
        assert_eq!(chosen(&manifest, &[0; 4], None), [1]);

        let mut manifest = self::manifest(&[None; 258]);
        for id in [257, 256, 255, 254] {
            add_deltas(&mut manifest, 1, id..id + 1);
        }
        add_deltas(&mut manifest, UNMERGED_MAX, 0..258);
        assert_eq!(chosen(&manifest, &[0; 258], None), [257, 256, 255]);
    }

    #[test]
    fn deltas_that_only_other_ranges_need_do_not_count() {
        let mut manifest = manifest(&[None; 4]);
        add_deltas(&mut manifest, UNMERGED_MAX, 3..4);
        add_deltas(&mut manifest, UNMERGED_MAX, 0..4);
        assert_eq!(chosen(&manifest, &[0; 3], None), [] as [u32; 0]);
        assert_eq!(chosen(&manifest, &[0; 4], None), [3]);
    }

    #[test]
    fn of_too_many_deltas_the_small_ones_become_one_and_a_large_one_only_when_those_outweigh_it() {
        let candidates = [Candidate {
            id: RangeId(0),
            delta_entries: 0,
        }];
        let mut manifest = manifest(&[None, None]);
        add_deltas(&mut manifest, DELTAS_MAX, 0..1);
        let sizes = |manifest: &Manifest, bytes_max| -> Vec<u64> {
            let chosen = deltas_to_merge(manifest, &candidates, bytes_max);
            chosen.iter().map(|file| file.size_bytes).collect()
        };
        assert_eq!(sizes(&manifest, 1000), [0; 0]);
        // Nobody needs it who could do without it then; nor are another disk's LSNs of use.
        add_deltas(&mut manifest, 1, 1..2);
        add_deltas(&mut manifest, 1, 0..1);
        manifest.files.last_mut().unwrap().disk_id = FORMER;
        assert_eq!(sizes(&manifest, 1000), [0; 0]);

        add_deltas(&mut manifest, 1, 0..1);
        manifest.files[0].size_bytes = 64;
        manifest.files[1].size_bytes = 128;
        assert_eq!(sizes(&manifest, 1000), [&[1; 63][..]].concat());
        manifest.files[2].size_bytes = 2;
        assert_eq!(
            sizes(&manifest, 1000),
            [&[1; 62][..], &[2, 64, 128]].concat()
        );
        assert_eq!(sizes(&manifest, 64), [&[1; 62][..], &[2]].concat());
        assert_eq!(sizes(&manifest, 1), [0; 0]);
    }
}
