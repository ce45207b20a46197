//! Files of format version 1, as they were written when it was new: later builds must read them, for they lie on disks and in
//! object storage.
//!
//! They were written by `cargo test -p keydb-core --test fixtures -- --ignored`, once. Never again: files that a newer build
//! writes say nothing about older ones.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::{borrow::Cow, fs};

use keydb_core::{
    AnswerEntry, AnswersDraft, AnswersFile, Backup, BackupNode, BackupObject, Bitmap, ClusterId,
    ClusterMap, CopyId, Durability, Entry, Expiry, FileKind, Footer, HandedFrom, HashRange,
    HashSeed, Incarnation, Lsn, Manifest, NodeId, NodeState, OperationAnswers, OperationId,
    PackedFingerprints, Phase, RangeId, Record, RecordBody, RecordGroup, SEGMENT_HEADER_BYTES,
    SectionHeader, SegmentHeader, SnapshotHeader, SnapshotKind, Target, UnixMillis, UnixSeconds,
    Write, decode_record, encode_record,
};
use xxhash_rust::xxh3::xxh3_64;

use support::{Sections, entry, fixture, read_snapshot, seconds, write_snapshot};

const CLUSTER: ClusterId = ClusterId::from_bytes(*b"fixture cluster.");
const DISK: Incarnation = Incarnation::from_bytes(*b"the fixture disk");
const OTHER_DISK: Incarnation = Incarnation::from_bytes(*b"the other's disk");
const SCALING: OperationId = OperationId::from_bytes(*b"fixture scaling.");
const COPY: CopyId = CopyId::from_bytes(*b"the fixture copy");
const SEED: HashSeed = HashSeed::new(0x0123_4567_89ab_cdef);

/// Numbers that look random, from the recurrence of a linear congruential generator (Knuth's MMIX).
fn numbers() -> impl Iterator<Item = u64> {
    std::iter::successors(Some(1_u64), |number| {
        Some(
            number
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407),
        )
    })
    .skip(1)
}

/// The content of the full snapshot: 1,000 keys of the second of four ranges.
fn full_section() -> (SectionHeader, Vec<Entry>) {
    let bounds = HashRange::new(1 << 62, (1 << 63) - 1).unwrap();
    let mut numbers = numbers();
    let mut next = || numbers.next().unwrap();
    let mut entries: Vec<Entry> = (0..1000)
        .map(|_| {
            let (top, low, later) = (next() >> 2, next() >> 32, next() >> 43);
            entry((1 << 62) + top, low as u32, 1_700_000_000 + later as u32)
        })
        .collect();
    entries.sort();
    let section = SectionHeader {
        range: RangeId(1),
        generation: 5,
        bounds,
    };
    (section, entries)
}

/// The content of the delta: a few keys at the ends of ranges, and a range without any.
fn delta_sections() -> Sections {
    let section = |range: u32, generation, quarters: std::ops::RangeInclusive<u64>| SectionHeader {
        range: RangeId(range),
        generation,
        bounds: HashRange::new(
            quarters.start() << 62,
            (quarters.end() << 62) | u64::MAX >> 2,
        )
        .unwrap(),
    };
    vec![
        (
            section(0, 1, 0..=0),
            vec![
                entry(0, 0, 1),
                entry(0, 1, u32::MAX),
                entry(77, 5, 1_700_000_000),
            ],
        ),
        (section(1, 5, 1..=1), vec![]),
        (
            section(70_000, u64::MAX, 2..=3),
            vec![entry(1 << 63, 0, 9), entry(u64::MAX, u32::MAX, 9)],
        ),
    ]
}

fn snapshot_header(kind: FileKind) -> SnapshotHeader {
    SnapshotHeader {
        kind,
        cluster_id: CLUSTER,
        lineage: 2,
        seed_digest: SEED.digest(),
        node: NodeId(3),
        disk_id: DISK,
        incarnation: Incarnation::from_bytes(*b"fixture process."),
        lsn_from: Lsn(40),
        lsn_to: Lsn(1 << 40),
        created: UnixMillis(1_700_000_000_123),
        purge_before: UnixSeconds(1_699_996_400),
        parents: vec!["a parent.keydb".to_owned(), "größer.keydb".to_owned()],
    }
}

fn segment_header() -> SegmentHeader {
    SegmentHeader {
        cluster_id: CLUSTER,
        disk_id: DISK,
        node: NodeId(3),
        first_lsn: Lsn(41),
        previous_last_lsn: Lsn(40),
        prepared_bytes: 64 << 20,
        created: UnixMillis(1_700_000_000_456),
        required_features: 0,
    }
}

/// The segment's records: a claim, an LSN that was not used, a put, a mark.
fn records<'a>(fingerprints: &'a [u8]) -> Vec<Record<'a>> {
    let group = |range, generation, count| RecordGroup {
        range: RangeId(range),
        generation,
        count,
    };
    let write = |operation, answers: &'a [u8], groups: Vec<RecordGroup>| Write {
        expiry: seconds(1_702_592_000),
        operation,
        answers,
        groups: Cow::Owned(groups),
        fingerprints: PackedFingerprints::new(fingerprints).unwrap(),
    };
    let operation = Some(OperationId::from_bytes(*b"fixture claim..."));
    let claim = write(
        operation,
        b"opaque answers",
        vec![group(0, 1, 2), group(70_000, u64::MAX, 1)],
    );
    let put = write(None, b"", vec![group(127, 300, 3)]);
    let record = |lsn, synced, body| Record {
        lsn: Lsn(lsn),
        synced: Lsn(synced),
        written: UnixMillis(1_700_000_000_000 + lsn),
        body,
    };
    vec![
        record(41, 40, RecordBody::Write(claim)),
        record(42, 40, RecordBody::Empty),
        record(43, 42, RecordBody::Write(put)),
        record(43, 43, RecordBody::Mark),
    ]
}

fn record_fingerprints() -> Vec<u8> {
    (0..36).map(|at| at * 7).collect()
}

fn answers() -> AnswersFile {
    let entry = |operation: &[u8; 16], lsn, answers| AnswerEntry {
        operation: OperationId::from_bytes(*operation),
        recorded: UnixMillis(1_700_000_000_000 + lsn),
        lsn: Lsn(lsn),
        answers,
    };
    let mut draft = AnswersDraft::new(Expiry::from_unix_seconds(1_700_000_600).unwrap());
    let first = Bitmap::from_bytes(vec![0b0000_0101, 0b1], 9).unwrap();
    let unknown = Bitmap::from_bytes(vec![0b1000_0010, 0], 9).unwrap();
    draft.group(RangeId(300), 0x0123_4567, 9, &first, Some(&unknown), 0);
    draft.group_partially_applied(RangeId(7));
    AnswersFile {
        cluster_id: CLUSTER,
        disk_id: DISK,
        lsn: Lsn(43),
        entries: vec![
            entry(b"the older claim.", 41, draft.encode()),
            entry(b"the newer claim.", 43, OperationAnswers::default()),
        ],
    }
}

#[test]
fn a_journal_segment_of_version_1_reads() {
    let bytes = fixture("segment.journal");
    assert_eq!(SegmentHeader::decode(&bytes), Ok(segment_header()));
    let fingerprints = record_fingerprints();
    let mut at = SEGMENT_HEADER_BYTES;
    for expected in records(&fingerprints) {
        let (record, length) = decode_record(&bytes[at..], DISK).unwrap();
        assert_eq!(record, expected);
        at += length;
    }
    assert_eq!(bytes.len() - at, 64);
    assert_eq!(
        decode_record(&bytes[at..], DISK),
        Err(keydb_core::RecordError::End)
    );
}

#[test]
fn snapshot_files_of_version_1_read() {
    for (name, kind, sections) in [
        ("full.keydb", FileKind::Full, vec![full_section()]),
        ("delta.keydb", FileKind::Delta, delta_sections()),
        (
            "export.keydb",
            FileKind::Export { seed: SEED },
            delta_sections(),
        ),
    ] {
        let bytes = fixture(name);
        let (header, read, totals) = read_snapshot(&bytes).unwrap();
        assert_eq!(header, snapshot_header(kind), "{name}");
        assert_eq!(read, sections, "{name}");
        let footer = Footer::decode(&bytes, bytes.len() as u64).unwrap();
        assert_eq!((footer.header, footer.totals), (header, totals), "{name}");
    }
}

#[test]
fn a_file_of_answers_of_version_1_reads() {
    assert_eq!(AnswersFile::decode(&fixture("answers")), Ok(answers()));
}

#[test]
fn a_manifest_of_version_1_reads() {
    let manifest = Manifest::from_json(&fixture("manifest.json")).unwrap();
    assert_eq!((manifest.cluster_id, manifest.disk_id), (CLUSTER, DISK));
    assert_eq!((manifest.lineage, manifest.node), (2, NodeId(3)));
    assert_eq!(manifest.lsn, Lsn(1 << 40));
    assert_eq!(manifest.complete_to_ms, UnixMillis(1_700_000_000_789));
    let range = manifest.range(RangeId(1)).unwrap();
    assert_eq!(range.copy, Some(COPY));
    assert_eq!(range.bounds(), Some(full_section().0.bounds));
    assert_eq!(range.generation, 5);
    let (base, mut deltas) = manifest.parts(range);
    let base = base.unwrap();
    assert_eq!(
        (base.name.as_str(), base.kind),
        ("full.keydb", SnapshotKind::Full)
    );
    assert_eq!(
        (base.entries, base.size_bytes),
        (1000, fixture("full.keydb").len() as u64)
    );
    let delta = deltas.next().unwrap();
    assert_eq!((delta.name.as_str(), delta.entries), ("delta.keydb", 5));
    assert_eq!(
        (delta.lsn_from, delta.lsn_to),
        (Lsn(40), Lsn((1 << 40) + 1))
    );
}

#[test]
fn a_backup_of_version_1_reads() {
    let backup = Backup::from_json(&fixture("backup.json")).unwrap();
    assert!(backup.complete);
    assert_eq!((&*backup.name, backup.operation_id), ("monday", SCALING));
    assert_eq!((backup.lineage, backup.epoch), (1, 7));
    assert_eq!(backup.durability, Durability::Journal);
    assert_eq!(backup.complete_to(), UnixMillis(1_700_000_000_789));
    let [node] = &backup.nodes[..] else {
        panic!("{backup:?}");
    };
    assert_eq!((node.id, node.disk_id), (NodeId(3), DISK));
    assert_eq!((node.ranges, node.files, node.entries), (1, 2, 1005));
    let full = fixture("full.keydb");
    assert_eq!(backup.objects[1].key, "snapshots/node-3/full.keydb");
    assert_eq!(backup.objects[1].size_bytes, full.len() as u64);
    assert_eq!(backup.objects[1].xxh3, xxh3_64(&full));
}

#[test]
fn a_cluster_map_of_version_1_reads() {
    let map = ClusterMap::from_json(&fixture("map.json")).unwrap();
    assert_eq!(map.durability, Durability::Journal);
    assert_eq!(map.ranges.len(), 4);
    assert_eq!(map.bounds(1), full_section().0.bounds);
    assert_eq!(map.nodes[1].address, "keydb-1:50051");
    assert_eq!(map.nodes[1].state, NodeState::Leaving);
    let target = map.target.as_ref().unwrap();
    assert_eq!(target.operation_id, SCALING);
    assert_eq!(target.addresses, ["keydb-0:50051"]);
    assert_eq!(target.phase, Phase::HandOver);
    assert_eq!(map.ranges[1].successor, Some(NodeId(0)));
    let from = map.ranges[3].from.as_ref().unwrap();
    assert_eq!((from.node, from.generation), (NodeId(1), 1));
    assert_eq!(from.copy, COPY);
    assert_eq!(map.to_json(), fixture("map.json"));
}

/// Formats in which there is one way to say a thing are still written as they were.
#[test]
fn segments_and_answers_are_written_as_in_version_1() {
    let fingerprints = record_fingerprints();
    assert_eq!(written_segment(&fingerprints), fixture("segment.journal"));
    assert_eq!(answers().encode(), fixture("answers"));
}

fn written_segment(fingerprints: &[u8]) -> Vec<u8> {
    let mut out = segment_header().encode();
    for record in records(fingerprints) {
        encode_record(&mut out, DISK, &record);
    }
    out.resize(out.len() + 64, 0);
    out
}

#[test]
#[ignore = "writes the fixtures of version 1, which was to be done once"]
fn write_fixtures() {
    let write = |name: &str, bytes: &[u8]| {
        let path = support::fixture_path(name);
        // What is there is never written again.
        if !path.exists() {
            fs::write(path, bytes).unwrap();
        }
    };
    write("segment.journal", &written_segment(&record_fingerprints()));
    let full = write_snapshot(&snapshot_header(FileKind::Full), &vec![full_section()]);
    write("full.keydb", &full);
    let delta = write_snapshot(&snapshot_header(FileKind::Delta), &delta_sections());
    write("delta.keydb", &delta);
    let export = FileKind::Export { seed: SEED };
    write(
        "export.keydb",
        &write_snapshot(&snapshot_header(export), &delta_sections()),
    );
    write("answers", &answers().encode());

    let mut manifest = Manifest::new(CLUSTER, 2, NodeId(3), DISK);
    manifest.lsn = Lsn(1 << 40);
    manifest.complete_to_ms = UnixMillis(1_700_000_000_789);
    let part_of = vec![full_section().0.range];
    let file = |name: &str, kind, lsn_to, bytes: &[u8], entries| keydb_core::ManifestFile {
        name: name.to_owned(),
        kind,
        disk_id: DISK,
        lsn_from: Lsn(40),
        lsn_to: Lsn(lsn_to),
        size_bytes: bytes.len() as u64,
        entries,
        created_ms: UnixMillis(1_700_000_000_123),
        ranges: part_of.clone(),
        unknown: serde_json::Map::new(),
    };
    manifest.files = vec![
        file("full.keydb", SnapshotKind::Full, 1 << 40, &full, 1000),
        file("delta.keydb", SnapshotKind::Delta, (1 << 40) + 1, &delta, 5),
    ];
    let (section, _) = full_section();
    manifest.ranges = vec![keydb_core::ManifestRange {
        id: section.range,
        generation: section.generation,
        start: section.bounds.start(),
        last: section.bounds.last(),
        copy: Some(COPY),
        base: Some("full.keydb".to_owned()),
        unknown: serde_json::Map::new(),
    }];
    write("manifest.json", &manifest.to_json());

    let mut map = ClusterMap::create(&keydb_core::NewCluster {
        addresses: vec!["keydb-0:50051".to_owned(), "keydb-1:50051".to_owned()],
        range_count: 4,
        durability: Durability::Journal,
    })
    .unwrap();
    map.epoch = 7;
    map.nodes[0].disk_id = Some(DISK);
    map.nodes[1].disk_id = Some(OTHER_DISK);
    map.nodes[1].state = NodeState::Leaving;
    map.target = Some(Target {
        operation_id: SCALING,
        addresses: vec!["keydb-0:50051".to_owned()],
        phase: Phase::HandOver,
        started_ms: UnixMillis(1_700_000_000_789),
        moves: None,
        unknown: serde_json::Map::new(),
    });
    map.ranges[1].successor = Some(NodeId(0));
    map.ranges[3].generation = 2;
    map.ranges[3].owner = NodeId(0);
    map.ranges[3].from = Some(HandedFrom {
        node: NodeId(1),
        generation: 1,
        copy: COPY,
        unknown: serde_json::Map::new(),
    });
    write("map.json", &map.to_json());

    let mut backup = Backup::new("monday", SCALING, &map, UnixMillis(1_700_000_001_000));
    backup.complete = true;
    backup.nodes = vec![BackupNode::of(&manifest)];
    let object = |key: &str, bytes: &[u8]| BackupObject {
        key: key.to_owned(),
        size_bytes: bytes.len() as u64,
        xxh3: xxh3_64(bytes),
    };
    backup.objects = vec![
        object("manifests/node-3.json", &manifest.to_json()),
        object("snapshots/node-3/full.keydb", &full),
    ];
    write("backup.json", &backup.to_json());
}
