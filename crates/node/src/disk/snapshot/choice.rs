//! Which ranges get a full file.

use keydb_core::{Lsn, Manifest, RangeId};

/// A range's deltas may have this many entries more than its base before a full file replaces them.
const DELTA_ENTRIES_FREE: u64 = 4096;

/// With more deltas than this, the oldest bases are replaced, a few in each round, until the oldest delta is not needed any more.
pub(super) const DELTAS_MAX: usize = 64;

/// What the choice goes by, of one range that is answered for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) id: RangeId,
    /// How many entries the deltas on top of its base have.
    pub(super) delta_entries: u64,
}

/// The ranges that need a full file: where records up to `lost` are in no delta, where the deltas outweigh the base, and, where
/// deltas have become too many, those with the oldest bases.
pub(super) fn fulls(
    manifest: &Manifest,
    candidates: &[Candidate],
    lost: Option<Lsn>,
) -> Vec<RangeId> {
    let mut chosen = Vec::new();
    let mut by_age = Vec::new();
    for candidate in candidates {
        let Some(range) = manifest.range(candidate.id) else {
            continue;
        };
        let (base, deltas) = manifest.parts(range);
        // Another disk's base is older than any of this one's.
        let base_lsn = base
            .filter(|base| base.disk_id == manifest.disk_id)
            .map(|base| base.lsn_to);
        let is_behind = lost.is_some_and(|lost| base_lsn.is_none_or(|lsn| lsn < lost));
        let base_entries = base.map_or(0, |base| base.entries);
        if is_behind || candidate.delta_entries > base_entries + DELTA_ENTRIES_FREE {
            chosen.push(candidate.id);
        } else if deltas.count() > DELTAS_MAX {
            by_age.push((base_lsn, candidate.id));
        }
    }
    by_age.sort_unstable();
    let at_once = candidates.len().div_ceil(DELTAS_MAX);
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
                let base = file(&name, SnapshotKind::Full, *disk_id, *lsn_to);
                manifest.files.push(base);
            }
            manifest.ranges.push(ManifestRange {
                id: RangeId(id),
                generation: 1,
                start: u64::from(id),
                last: u64::from(id),
                base: base.map(|_| name),
                unknown: serde_json::Map::new(),
            });
        }
        manifest
    }

    fn add_deltas(manifest: &mut Manifest, lsns: std::ops::RangeInclusive<u64>) {
        for lsn in lsns {
            let name = format!("delta-{lsn}");
            let delta = file(&name, SnapshotKind::Delta, OWN, lsn);
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
    fn with_too_many_deltas_the_oldest_bases_are_replaced_a_few_at_once() {
        let bases = [Some((OWN, 7)), Some((OWN, 3)), None, Some((FORMER, 90))];
        let mut manifest = manifest(&bases);
        add_deltas(&mut manifest, 4..=70);
        // 63 deltas lie behind LSN 7.
        assert_eq!(chosen(&manifest, &[0; 4], None), [2]);
        let base = file("base-2-new", SnapshotKind::Full, OWN, 70);
        manifest.ranges[2].base = Some(base.name.clone());
        manifest.files.push(base);
        assert_eq!(chosen(&manifest, &[0; 4], None), [3]);

        let many: Vec<_> = (0..130).map(|id| Some((OWN, 200 - id))).collect();
        let mut manifest = self::manifest(&many);
        add_deltas(&mut manifest, 300..=364);
        assert_eq!(chosen(&manifest, &[0; 130], None), [129, 128, 127]);
        manifest.files.pop();
        assert_eq!(chosen(&manifest, &[0; 130], None), [] as [u32; 0]);
    }
}
