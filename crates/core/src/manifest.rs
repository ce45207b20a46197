//! A manifest: which snapshot files make up the ranges of one node, and up to when.
//!
//! There are two of the same shape: the local one names the files in the node's data directory, the remote one the objects in
//! object storage, where it is changed by compare-and-swap. A range consists of its base, a full snapshot of it (or nothing),
//! and of every delta that is not covered by the base and that has a section for the range. What a manifest names is complete up
//! to `lsn`.
//!
//! A base covers the deltas of its own disk up to its `lsn_to`. LSNs of different disks do not compare; but a disk that takes a
//! node over has loaded everything before it writes its first file, so a base of the manifest's own disk covers all deltas of
//! other disks.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use xxhash_rust::xxh3::xxh3_64;

use crate::{ClusterId, HashRange, Incarnation, Lsn, NodeId, OperationId, RangeId, UnixMillis};

const FORMAT: u32 = 1;

/// How pretty-printed JSON ends, and how a manifest ends instead.
const JSON_END: &str = "\n}";
const CHECKSUM_START: &str = ",\n  \"checksum\": \"";
const CHECKSUM_END: &str = "\"\n}";

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
        #[derive(Deserialize)]
        struct Head {
            format: u32,
            #[serde(default)]
            required_features: Vec<String>,
        }
        let malformed = |error: serde_json::Error| ManifestError::Malformed(error.to_string());
        let head: Head = serde_json::from_slice(json).map_err(malformed)?;
        if head.format != FORMAT {
            return Err(ManifestError::Unsupported {
                what: format!("format {}", head.format),
            });
        }
        if let Some(feature) = head.required_features.first() {
            return Err(ManifestError::Unsupported {
                what: format!("feature {feature:?}"),
            });
        }
        check_sum(json)?;
        let mut manifest: Self = serde_json::from_slice(json).map_err(malformed)?;
        manifest.unknown.remove("checksum");
        manifest.check()?;
        Ok(manifest)
    }

    /// The manifest as JSON, unknown fields included. Its last member is the XXH3-64 of the bytes before that member.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self)
            .expect("a manifest has only string keys, so it always serialises");
        json.truncate(json.len() - JSON_END.len());
        let sum = xxh3_64(&json);
        json.extend_from_slice(format!("{CHECKSUM_START}{sum:016x}{CHECKSUM_END}").as_bytes());
        json
    }

    /// The file with this name.
    pub fn file(&self, name: &str) -> Option<&ManifestFile> {
        self.files.iter().find(|file| file.name == name)
    }

    /// The range with this id.
    pub fn range(&self, id: RangeId) -> Option<&ManifestRange> {
        self.ranges.iter().find(|range| range.id == id)
    }

    /// The base of `range`, if it has one, and the deltas that come on top of it. Each delta may or may not have a section for
    /// the range.
    pub fn parts<'a>(
        &'a self,
        range: &ManifestRange,
    ) -> (
        Option<&'a ManifestFile>,
        impl Iterator<Item = &'a ManifestFile> + use<'a>,
    ) {
        let base = range.base.as_deref().and_then(|name| self.file(name));
        let covers = |base: &ManifestFile, delta: &ManifestFile| {
            if base.disk_id == delta.disk_id {
                delta.lsn_to <= base.lsn_to
            } else {
                base.disk_id == self.disk_id
            }
        };
        let deltas = self.files.iter().filter(move |file| {
            file.kind == SnapshotKind::Delta && base.is_none_or(|base| !covers(base, file))
        });
        (base, deltas)
    }

    /// Leaves out the files that no range needs.
    pub fn drop_unneeded_files(&mut self) {
        let needed: BTreeSet<String> = self
            .ranges
            .iter()
            .flat_map(|range| {
                let (base, deltas) = self.parts(range);
                base.into_iter().chain(deltas).map(|file| file.name.clone())
            })
            .collect();
        self.files.retain(|file| needed.contains(&file.name));
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
        }
        if !self.ranges.is_sorted_by(|a, b| a.id < b.id) {
            return inconsistent("the ranges are not in ascending order of their ids".to_owned());
        }
        for range in &self.ranges {
            if range.bounds().is_none() {
                return inconsistent(format!("range {} ends before it starts", range.id));
            }
            let Some(name) = &range.base else { continue };
            match self.file(name).map(|file| file.kind) {
                Some(SnapshotKind::Full) => {}
                Some(SnapshotKind::Delta) => {
                    return inconsistent(format!(
                        "the base {name:?} of range {} is a delta",
                        range.id
                    ));
                }
                None => {
                    return inconsistent(format!(
                        "the base {name:?} of range {} is not among the files",
                        range.id
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Checks that a manifest's bytes are as they were written.
fn check_sum(json: &[u8]) -> Result<(), ManifestError> {
    const SUM_DIGITS: usize = 16;
    let damaged = |what: &str| Err(ManifestError::Damaged(what.to_owned()));
    let tail_bytes = CHECKSUM_START.len() + SUM_DIGITS + CHECKSUM_END.len();
    let Some(at) = json.len().checked_sub(tail_bytes) else {
        return damaged("it is too short");
    };
    let (content, tail) = json.split_at(at);
    let expected = format!("{CHECKSUM_START}{:016x}{CHECKSUM_END}", xxh3_64(content));
    if tail == expected.as_bytes() {
        Ok(())
    } else {
        damaged("its checksum does not match, or it does not end in one")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, kind: SnapshotKind, lsn_from: u64, lsn_to: u64) -> ManifestFile {
        ManifestFile {
            name: name.to_owned(),
            kind,
            disk_id: Incarnation::from_bytes([1; 16]),
            lsn_from: Lsn(lsn_from),
            lsn_to: Lsn(lsn_to),
            size_bytes: 100,
            entries: 10,
            created_ms: UnixMillis(5),
            unknown: Map::new(),
        }
    }

    fn range(id: u32, base: Option<&str>) -> ManifestRange {
        ManifestRange {
            id: RangeId(id),
            generation: 1,
            start: u64::from(id) << 32,
            last: (u64::from(id) << 32) + 9,
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
            file("d1", SnapshotKind::Delta, 0, 10),
            file("f1", SnapshotKind::Full, 0, 15),
            file("d2", SnapshotKind::Delta, 10, 20),
            file("d3", SnapshotKind::Delta, 20, 30),
        ];
        manifest.ranges = vec![range(0, Some("f1")), range(1, None)];
        manifest
    }

    fn names<'a>(files: impl Iterator<Item = &'a ManifestFile>) -> Vec<&'a str> {
        files.map(|file| file.name.as_str()).collect()
    }

    #[test]
    fn a_range_is_its_base_and_the_deltas_that_reach_beyond_it() {
        let manifest = manifest();
        let (base, deltas) = manifest.parts(&manifest.ranges[0]);
        assert_eq!(base.unwrap().name, "f1");
        assert_eq!(names(deltas), ["d2", "d3"]);
        let (base, deltas) = manifest.parts(&manifest.ranges[1]);
        assert_eq!(base, None);
        assert_eq!(names(deltas), ["d1", "d2", "d3"]);
    }

    #[test]
    fn a_base_of_the_disk_in_use_covers_what_former_disks_wrote_and_theirs_do_not_cover_its_deltas()
    {
        let (own, former) = (
            Incarnation::from_bytes([1; 16]),
            Incarnation::from_bytes([9; 16]),
        );
        let of = |disk_id, file| ManifestFile { disk_id, ..file };
        let mut manifest = manifest();
        manifest.disk_id = own;
        manifest.files = vec![
            of(former, file("old-base", SnapshotKind::Full, 0, 70)),
            of(former, file("covered", SnapshotKind::Delta, 60, 70)),
            of(former, file("old-delta", SnapshotKind::Delta, 70, 80)),
            of(own, file("new-delta", SnapshotKind::Delta, 0, 5)),
            of(own, file("new-base", SnapshotKind::Full, 0, 4)),
        ];
        manifest.ranges = vec![range(0, Some("old-base")), range(1, Some("new-base"))];
        let (_, deltas) = manifest.parts(&manifest.ranges[0]);
        assert_eq!(names(deltas), ["old-delta", "new-delta"]);
        let (_, deltas) = manifest.parts(&manifest.ranges[1]);
        assert_eq!(names(deltas), ["new-delta"]);
        manifest.ranges.remove(0);
        manifest.drop_unneeded_files();
        assert_eq!(names(manifest.files.iter()), ["new-delta", "new-base"]);
    }

    #[test]
    fn files_that_no_range_needs_are_left_out() {
        let mut manifest = manifest();
        manifest.files.push(file("f2", SnapshotKind::Full, 0, 25));
        manifest.ranges[0].base = Some("f2".to_owned());
        manifest.ranges[1].base = Some("f2".to_owned());
        manifest.drop_unneeded_files();
        assert_eq!(names(manifest.files.iter()), ["d3", "f2"]);
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
        assert!(refusal(|m| m.ranges.swap(0, 1)).contains("ascending"));
        assert!(refusal(|m| m.ranges[1].last = 0).contains("before it starts"));
        assert!(refusal(|m| m.files[1].name = "d1".to_owned()).contains("twice"));
        assert!(refusal(|m| m.files[0].lsn_from = Lsn(11)).contains("back to"));
        assert!(Manifest::from_json(b"{").is_err());
    }
}
