//! `tests/read_snapshot.py`, which follows `docs/formats.md` and shares no code with this crate, reads what this crate writes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use keydb_core::{
    BLOCK_ENTRIES, ClusterId, Entry, FileKind, HashRange, Incarnation, Lsn, NodeId, RangeId,
    SectionHeader, SnapshotHeader, UnixMillis, UnixSeconds,
};
use serde_json::Value;
use support::{Sections, entry, fixture, fixture_path, read_snapshot, write_snapshot};

fn python(file: &Path) -> Output {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/read_snapshot.py");
    Command::new("python3")
        .arg(script)
        .arg(file)
        .output()
        .expect("python3 is installed (apt install python3)")
}

fn temporary(name: &str, bytes: &[u8]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, bytes).unwrap();
    path
}

/// The script's lines behind the header's.
fn lines(sections: &Sections) -> String {
    let mut out = String::new();
    for (section, entries) in sections {
        let SectionHeader {
            range,
            generation,
            bounds,
        } = section;
        writeln!(
            out,
            "section {range} {generation} {} {}",
            bounds.start(),
            bounds.last()
        )
        .unwrap();
        for entry in entries {
            let expiry = entry.expiry().as_unix_seconds();
            writeln!(out, "{:?} {expiry}", entry.fingerprint()).unwrap();
        }
    }
    out
}

fn check_agreement(path: &Path) {
    let (header, sections, _) = read_snapshot(&fs::read(path).unwrap()).unwrap();
    let output = python(path);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{}: {}",
        path.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    let (first, rest) = text.split_once('\n').unwrap();
    // Not `assert_eq`: nobody wants to see thousands of lines.
    assert!(rest == lines(&sections), "{}", path.display());
    let read: Value = serde_json::from_str(first).unwrap();
    let expected = [
        ("cluster_id", Value::from(header.cluster_id.to_string())),
        ("lineage", Value::from(header.lineage)),
        ("seed_digest", Value::from(header.seed_digest)),
        ("node", Value::from(header.node.0)),
        ("purge_before", Value::from(header.purge_before.0)),
        ("disk_id", Value::from(header.disk_id.to_string())),
        ("incarnation", Value::from(header.incarnation.to_string())),
        ("lsn_from", Value::from(header.lsn_from.0)),
        ("lsn_to", Value::from(header.lsn_to.0)),
        ("created_ms", Value::from(header.created.0)),
        ("parents", Value::from(header.parents)),
    ];
    for (name, value) in expected {
        assert_eq!(read[name], value, "{name}");
    }
}

#[test]
fn a_reader_in_another_language_agrees_on_the_fixtures() {
    for name in ["full.keydb", "delta.keydb", "export.keydb"] {
        check_agreement(&fixture_path(name));
    }
}

#[test]
fn a_reader_in_another_language_agrees_on_blocks_of_all_sizes() {
    let header = SnapshotHeader {
        kind: FileKind::Full,
        cluster_id: ClusterId::from_bytes([1; 16]),
        lineage: 1,
        seed_digest: 2,
        node: NodeId(3),
        disk_id: Incarnation::from_bytes([4; 16]),
        incarnation: Incarnation::from_bytes([5; 16]),
        lsn_from: Lsn(6),
        lsn_to: Lsn(7),
        created: UnixMillis(8),
        purge_before: UnixSeconds(9),
        parents: vec![],
    };
    // Crowded, evenly spread, and with expiries of 0 to 4 planes.
    let sizes = [1, 2, 3, 7, 40, 300, 2 * BLOCK_ENTRIES as u64 + 1];
    let sections = sizes
        .into_iter()
        .enumerate()
        .map(|(range, size)| {
            let section = SectionHeader {
                range: RangeId(range as u32),
                generation: 1,
                bounds: HashRange::ALL,
            };
            let step = [1, u64::MAX / size][range % 2];
            let entries: Vec<Entry> = (0..size)
                .map(|index| {
                    let scattered = index.wrapping_mul(0x9E37_79B9_7F4A_7C15);
                    let later = (scattered >> 32) as u32 >> (32 - 7 * (range as u32 % 5)).min(31);
                    entry(index * step + scattered % step, scattered as u32, 1 + later)
                })
                .collect();
            (section, entries)
        })
        .collect();
    let file = write_snapshot(&header, &sections);
    check_agreement(&temporary("all-sizes.keydb", &file));
}

#[test]
fn a_reader_in_another_language_refuses_what_is_not_whole() {
    let file = fixture("delta.keydb");
    for at in (0..file.len()).step_by(61) {
        let mut flipped = file.clone();
        flipped[at] ^= 0x20;
        for (name, bytes) in [("flipped.keydb", &flipped[..]), ("cut.keydb", &file[..at])] {
            let output = python(&temporary(name, bytes));
            let message = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{name} at {at}");
            assert!(message.contains("is not a whole"), "{at}: {message}");
        }
    }
}
