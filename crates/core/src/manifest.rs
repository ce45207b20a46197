//! A manifest: which snapshot files make up the ranges of one node, and up to when.
//!
//! There are two of the same shape: the local one names the files in the node's data directory, the remote one the objects in
//! object storage, where it is changed by compare-and-swap. Each file says which ranges it is a part of; a range consists of its
//! base, a full snapshot of it (or nothing), and of the deltas that list it. What a manifest names is complete up to `lsn`.
//!
//! Nothing follows from LSNs: those of different disks do not compare. Whoever makes a range's new base has all of its keys, so
//! the range's former parts are struck off when that base [takes their place](Manifest::replace_parts), and a file that is a part
//! of no range any more is not needed. So a range that gets no new base, because it is closed, keeps its own parts only.
//!
//! A range that leaves the node and comes back is another one: its entry names the copy that brought its keys. It is named for the
//! first time together with a base that was made of them, for an entry without a base says that the deltas are all there is.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    ClusterId, CopyId, HashRange, Incarnation, Lsn, NodeId, OperationId, RangeId, UnixMillis,
    checked_json::{self, JsonError},
};

const FORMAT: u32 = 1;

/// What a snapshot file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotKind {
    /// All keys of one range.
    Full,
    /// What was written between two LSNs, a section for each range that changed.
    Delta,
}

/// One snapshot file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// The file's name in the data directory, and the last part of its object's key.
    pub name: String,
    /// What it holds.
    pub kind: SnapshotKind,
    /// The disk whose LSNs these are.
    pub disk_id: Incarnation,
    /// It holds what was written after this.
    pub lsn_from: Lsn,
    /// Up to this.
    pub lsn_to: Lsn,
    /// Its size.
    pub size_bytes: u64,
    /// How many entries it has.
    pub entries: u64,
    /// When it was made.
    pub created_ms: UnixMillis,
    /// The ranges that it is a part of, in ascending order: those that it has sections for, but for those whose base has taken
    /// its place.
    pub ranges: Vec<RangeId>,
    /// Fields that this build does not know.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// One range of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestRange {
    /// Which range.
    pub id: RangeId,
    /// Under which generation of its ownership.
    #[serde(rename = "gen")]
    pub generation: u64,
    /// The first top-64-bits value that belongs to it.
    #[serde(with = "crate::hex_u64")]
    pub start: u64,
    /// The last one.
    #[serde(with = "crate::hex_u64")]
    pub last: u64,
    /// What brought its keys to the node; none where they have been there since the cluster was created. Such a range has a base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<CopyId>,
    /// The name of its newest full snapshot; none while its deltas alone make it up.
    pub base: Option<String>,
    /// Fields that this build does not know.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// Which snapshot files make up the ranges of one node, and up to when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format's version: 1.
    pub format: u32,
    /// Features that a reader must know, or refuse the manifest.
    pub required_features: Vec<String>,
    /// Drawn by each write, so that a writer recognises its own.
    pub write_nonce: OperationId,
    /// Which cluster.
    pub cluster_id: ClusterId,
    /// The cluster map's lineage.
    pub lineage: u64,
    /// Whose ranges these are.
    pub node: NodeId,
    /// The disk that wrote it.
    pub disk_id: Incarnation,
    /// Everything up to this LSN of `disk_id` is in the files.
    pub lsn: Lsn,
    /// The node's clock when `lsn` was the last one: what was acknowledged before this time is in the files. 0 before the first
    /// snapshot.
    pub complete_to_ms: UnixMillis,
    /// The files, those that no range needs any more left out.
    pub files: Vec<ManifestFile>,
    /// The ranges, ordered by id.
    pub ranges: Vec<ManifestRange>,
    /// Fields that this build does not know.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// Why a manifest cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or not of a manifest's shape.
    #[error("the manifest does not parse: {0}")]
    Malformed(String),
    /// Written by a build that is newer in a way that matters.
    #[error("the manifest needs {what}, which this build does not have; upgrade it")]
    Unsupported {
        /// The unknown format or feature.
        what: String,
    },
    /// Its bytes are not those that were written.
    #[error("the manifest is damaged: {0}")]
    Damaged(String),
    /// It contradicts itself.
    #[error("the manifest is inconsistent: {0}")]
    Inconsistent(String),
}

impl ManifestFile {
    /// Whether the range `id` needs it.
    pub fn is_part_of(&self, id: RangeId) -> bool {
        self.ranges.binary_search(&id).is_ok()
    }
}

impl ManifestRange {
    /// The range's bounds, which a checked manifest has.
    pub fn bounds(&self) -> Option<HashRange> {
        HashRange::new(self.start, self.last)
    }
}

impl Manifest {
    /// Up to when the files have everything; `None` while there has been no snapshot.
    pub fn complete_to(&self) -> Option<UnixMillis> {
        (self.complete_to_ms != UnixMillis(0)).then_some(self.complete_to_ms)
    }

    /// Whether there has been no snapshot at all: the ranges that the node was created with have no keys that it could name.
    pub fn is_blank(&self) -> bool {
        self.ranges.is_empty() && self.complete_to().is_none()
    }

    /// The manifest of a node whose disk is new: nothing was written yet.
    pub fn new(cluster_id: ClusterId, lineage: u64, node: NodeId, disk_id: Incarnation) -> Self {
        Self {
            format: FORMAT,
            required_features: Vec::new(),
            write_nonce: OperationId::random(),
            cluster_id,
            lineage,
            node,
            disk_id,
            lsn: Lsn::ZERO,
            complete_to_ms: UnixMillis(0),
            files: Vec::new(),
            ranges: Vec::new(),
            unknown: Map::new(),
        }
    }

    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// When it is malformed, needs a feature that this build lacks, or contradicts itself.
    pub fn from_json(json: &[u8]) -> Result<Self, ManifestError> {
        let read = checked_json::read(json, FORMAT, |manifest: &mut Self| &mut manifest.unknown);
        let manifest = read.map_err(|error| match error {
            JsonError::Malformed(why) => ManifestError::Malformed(why),
            JsonError::Unsupported(what) => ManifestError::Unsupported { what },
            JsonError::Damaged(what) => ManifestError::Damaged(what.to_owned()),
        })?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The manifest as JSON, unknown fields included. Its last member is the XXH3-64 of the bytes before that member.
    pub fn to_json(&self) -> Vec<u8> {
        checked_json::write(self)
    }

    /// The file with this name.
    pub fn file(&self, name: &str) -> Option<&ManifestFile> {
        self.files.iter().find(|file| file.name == name)
    }

    /// The range with this id.
    pub fn range(&self, id: RangeId) -> Option<&ManifestRange> {
        self.ranges.iter().find(|range| range.id == id)
    }

    /// The base of `range`, if it has one, and the deltas that come on top of it. Each has a section for the range.
    pub fn parts<'a>(
        &'a self,
        range: &ManifestRange,
    ) -> (
        Option<&'a ManifestFile>,
        impl Iterator<Item = &'a ManifestFile> + use<'a>,
    ) {
        let base = range.base.as_deref().and_then(|name| self.file(name));
        let id = range.id;
        let deltas = self
            .files
            .iter()
            .filter(move |file| file.kind == SnapshotKind::Delta && file.is_part_of(id));
        (base, deltas)
    }

    /// Adds the delta `file`. Of ranges that the manifest does not have it is no part.
    pub fn add_delta(&mut self, mut file: ManifestFile) {
        file.ranges.retain(|id| self.range(*id).is_some());
        self.files.push(file);
    }

    /// Makes `base`, which has all keys of `range`, its only part. Names the range if the manifest does not have it.
    pub fn replace_parts(&mut self, mut range: ManifestRange, mut base: ManifestFile) {
        let id = range.id;
        range.base = Some(base.name.clone());
        for file in &mut self.files {
            file.ranges.retain(|part_of| *part_of != id);
        }
        base.ranges = vec![id];
        self.files.push(base);
        match self.ranges.binary_search_by_key(&id, |range| range.id) {
            Ok(index) => {
                range
                    .unknown
                    .append(&mut std::mem::take(&mut self.ranges[index].unknown));
                self.ranges[index] = range;
            }
            Err(index) => self.ranges.insert(index, range),
        }
    }

    /// Leaves out the ranges that are not to be `kept`: no file is a part of them any more. Returns which these are.
    pub fn retain_ranges(&mut self, mut kept: impl FnMut(&ManifestRange) -> bool) -> Vec<RangeId> {
        let mut left_out = Vec::new();
        self.ranges.retain(|range| {
            let is_kept = kept(range);
            if !is_kept {
                left_out.push(range.id);
            }
            is_kept
        });
        for file in &mut self.files {
            file.ranges.retain(|id| !left_out.contains(id));
        }
        left_out
    }

    /// Makes `merged`, which has all that `deltas` have of its ranges, their part in place of those.
    pub fn replace_deltas(&mut self, deltas: &[ManifestFile], merged: ManifestFile) {
        let is_replaced = |file: &ManifestFile| deltas.iter().any(|delta| delta.name == file.name);
        for file in self.files.iter_mut().filter(|file| is_replaced(file)) {
            file.ranges.retain(|id| !merged.is_part_of(*id));
        }
        self.files.push(merged);
    }

    /// Leaves out the files that no range needs.
    pub fn drop_unneeded_files(&mut self) {
        self.files.retain(|file| !file.ranges.is_empty());
    }

    fn check(&self) -> Result<(), ManifestError> {
        let inconsistent = |what: String| Err(ManifestError::Inconsistent(what));
        let mut names = BTreeSet::new();
        for file in &self.files {
            if !names.insert(&file.name) {
                return inconsistent(format!("file {:?} is listed twice", file.name));
            }
            if file.lsn_from > file.lsn_to {
                return inconsistent(format!(
                    "file {:?} goes from LSN {} back to {}",
                    file.name, file.lsn_from, file.lsn_to
                ));
            }
            if !file.ranges.is_sorted_by(|a, b| a < b) {
                return inconsistent(format!(
                    "the ranges of file {:?} are not in ascending order",
                    file.name
                ));
            }
        }
        if !self.ranges.is_sorted_by(|a, b| a.id < b.id) {
            return inconsistent("the ranges are not in ascending order of their ids".to_owned());
        }
        for range in &self.ranges {
            if range.bounds().is_none() {
                return inconsistent(format!("range {} ends before it starts", range.id));
            }
            let Some(name) = &range.base else {
                if let Some(copy) = range.copy {
                    return inconsistent(format!(
                        "range {} came by copy {copy} and has no base",
                        range.id
                    ));
                }
                continue;
            };
            match self.file(name) {
                Some(file) if file.kind == SnapshotKind::Delta => {
                    return inconsistent(format!(
                        "the base {name:?} of range {} is a delta",
                        range.id
                    ));
                }
                Some(file) if !file.is_part_of(range.id) => {
                    return inconsistent(format!(
                        "the base {name:?} of range {} does not list it",
                        range.id
                    ));
                }
                Some(_) => {}
                None => {
                    return inconsistent(format!(
                        "the base {name:?} of range {} is not among the files",
                        range.id
                    ));
                }
            }
        }
        self.check_parts()
    }

    /// Each range that a file lists must be there, and must have the file as its base if that is a full one.
    fn check_parts(&self) -> Result<(), ManifestError> {
        for file in &self.files {
            for id in &file.ranges {
                let found = self.ranges.binary_search_by_key(id, |range| range.id);
                let what = match found.map(|index| &self.ranges[index]) {
                    Err(_) => "which is not among the ranges",
                    Ok(range)
                        if file.kind == SnapshotKind::Full
                            && range.base.as_ref() != Some(&file.name) =>
                    {
                        "whose base is another one"
                    }
                    Ok(_) => continue,
                };
                return Err(ManifestError::Inconsistent(format!(
                    "file {:?} is a part of range {id}, {what}",
                    file.name
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, kind: SnapshotKind, lsns: [u64; 2], ranges: &[u32]) -> ManifestFile {
        ManifestFile {
            name: name.to_owned(),
            kind,
            disk_id: Incarnation::from_bytes([1; 16]),
            lsn_from: Lsn(lsns[0]),
            lsn_to: Lsn(lsns[1]),
            size_bytes: 100,
            entries: 10,
            created_ms: UnixMillis(5),
            ranges: ranges.iter().copied().map(RangeId).collect(),
            unknown: Map::new(),
        }
    }

    fn range(id: u32, base: Option<&str>) -> ManifestRange {
        ManifestRange {
            id: RangeId(id),
            generation: 1,
            start: u64::from(id) << 32,
            last: (u64::from(id) << 32) + 9,
            copy: None,
            base: base.map(str::to_owned),
            unknown: Map::new(),
        }
    }

    fn manifest() -> Manifest {
        let mut manifest = Manifest::new(
            ClusterId::from_bytes([2; 16]),
            1,
            NodeId(3),
            Incarnation::from_bytes([1; 16]),
        );
        manifest.lsn = Lsn(30);
        manifest.files = vec![
            file("d1", SnapshotKind::Delta, [0, 10], &[1]),
            file("f1", SnapshotKind::Full, [0, 15], &[0]),
            file("d2", SnapshotKind::Delta, [10, 20], &[0]),
            file("d3", SnapshotKind::Delta, [20, 30], &[0, 1]),
        ];
        manifest.ranges = vec![range(0, Some("f1")), range(1, None)];
        manifest
    }

    fn names<'a>(files: impl Iterator<Item = &'a ManifestFile>) -> Vec<&'a str> {
        files.map(|file| file.name.as_str()).collect()
    }

    #[test]
    fn a_range_is_its_base_and_the_deltas_that_list_it() {
        let manifest = manifest();
        let (base, deltas) = manifest.parts(&manifest.ranges[0]);
        assert_eq!(base.unwrap().name, "f1");
        assert_eq!(names(deltas), ["d2", "d3"]);
        let (base, deltas) = manifest.parts(&manifest.ranges[1]);
        assert_eq!(base, None);
        assert_eq!(names(deltas), ["d1", "d3"]);
    }

    #[test]
    fn a_new_base_takes_the_place_of_the_ranges_parts_and_files_that_no_range_needs_are_left_out() {
        let mut manifest = manifest();
        let newer = ManifestRange {
            generation: 4,
            ..range(0, None)
        };
        manifest.replace_parts(newer, file("f2", SnapshotKind::Full, [0, 9], &[]));
        manifest.drop_unneeded_files();
        assert_eq!(names(manifest.files.iter()), ["d1", "d3", "f2"]);
        let (base, deltas) = manifest.parts(&manifest.ranges[0]);
        assert_eq!(
            (base.unwrap().name.as_str(), names(deltas)),
            ("f2", Vec::new())
        );
        assert_eq!(manifest.ranges[0].generation, 4);
        assert_eq!(
            Manifest::from_json(&manifest.to_json()).as_ref(),
            Ok(&manifest)
        );
    }

    #[test]
    fn a_range_that_leaves_and_comes_back_has_none_of_its_former_parts() {
        let mut manifest = manifest();
        assert_eq!(
            manifest.retain_ranges(|range| range.id != RangeId(0)),
            [RangeId(0)]
        );
        manifest.add_delta(file("d4", SnapshotKind::Delta, [30, 40], &[0, 1]));
        manifest.drop_unneeded_files();
        assert_eq!(names(manifest.files.iter()), ["d1", "d3", "d4"]);
        assert!(manifest.files.iter().all(|it| it.ranges == [RangeId(1)]));

        let back = ManifestRange {
            copy: Some(CopyId::from_bytes([7; 16])),
            ..range(0, None)
        };
        manifest.replace_parts(back, file("f2", SnapshotKind::Full, [0, 50], &[]));
        let (base, deltas) = manifest.parts(&manifest.ranges[0]);
        assert_eq!(
            (base.unwrap().name.as_str(), names(deltas)),
            ("f2", Vec::new())
        );
        assert_eq!(
            Manifest::from_json(&manifest.to_json()).as_ref(),
            Ok(&manifest)
        );
    }

    #[test]
    fn a_delta_is_no_part_of_ranges_that_the_manifest_does_not_have() {
        let mut manifest = manifest();
        manifest.add_delta(file("d4", SnapshotKind::Delta, [30, 40], &[1, 5]));
        assert_eq!(manifest.file("d4").unwrap().ranges, [RangeId(1)]);
    }

    #[test]
    fn a_manifest_reads_back_from_its_json_with_unknown_fields() {
        let mut manifest = manifest();
        manifest.unknown.insert("later".to_owned(), Value::from(7));
        let colour = ("colour".to_owned(), Value::from("red"));
        manifest.files[0].unknown.extend([colour]);
        assert_eq!(Manifest::from_json(&manifest.to_json()), Ok(manifest));
    }

    #[test]
    fn a_flipped_byte_or_a_cut_anywhere_is_found() {
        let json = manifest().to_json();
        for at in 0..json.len() {
            assert!(Manifest::from_json(&json[..at]).is_err(), "cut at {at}");
            let mut flipped = json.clone();
            flipped[at] ^= 0x04;
            assert!(Manifest::from_json(&flipped).is_err(), "flipped at {at}");
        }
    }

    #[test]
    fn manifests_that_contradict_themselves_are_refused() {
        let refusal = |change: fn(&mut Manifest)| {
            let mut manifest = manifest();
            change(&mut manifest);
            Manifest::from_json(&manifest.to_json())
                .unwrap_err()
                .to_string()
        };
        assert!(refusal(|m| m.format = 2).contains("format 2"));
        assert!(refusal(|m| m.required_features.push("x".to_owned())).contains("\"x\""));
        assert!(refusal(|m| m.ranges[0].base = Some("d1".to_owned())).contains("is a delta"));
        assert!(refusal(|m| m.ranges[0].base = Some("no".to_owned())).contains("not among"));
        assert!(
            refusal(|m| m.ranges[1].copy = Some(CopyId::from_bytes([7; 16])))
                .contains("has no base")
        );
        assert!(refusal(|m| m.ranges.swap(0, 1)).contains("ascending"));
        assert!(refusal(|m| m.ranges[1].last = 0).contains("before it starts"));
        assert!(refusal(|m| m.files[1].name = "d1".to_owned()).contains("twice"));
        assert!(refusal(|m| m.files[0].lsn_from = Lsn(11)).contains("back to"));
        assert!(refusal(|m| m.files[3].ranges = vec![RangeId(1); 2]).contains("ascending"));
        assert!(refusal(|m| m.files[0].ranges = vec![RangeId(9)]).contains("not among"));
        assert!(refusal(|m| m.files[1].ranges = vec![RangeId(1)]).contains("does not list it"));
        assert!(refusal(|m| m.files[1].ranges = vec![RangeId(0), RangeId(1)]).contains("another"));
        assert!(Manifest::from_json(b"{").is_err());
    }
}
