//! Snapshot files and journal records beside plain copying and sorting of the same keys, in one run.
//!
//! `cargo bench -p keydb-core --bench snapshot -- [--keys MILLIONS] [--rounds N]`
//!
//! One thread. Keys lie in 128 ranges, as in a cluster; encoding reads them from key sets, loading puts them into new ones. Each
//! figure is the median of the rounds.
#![expect(
    clippy::print_stdout,
    reason = "a benchmark's result is what it prints"
)]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

use std::{borrow::Cow, hint::black_box, time::Instant};

use keydb_core::{
    Arena, ClusterId, Entry, Event, Expiry, FINGERPRINT_BYTES, FileKind, Fingerprint, HashRange,
    Incarnation, KeySet, Lsn, NodeId, OperationId, PackedFingerprints, Provisioner, RangeId,
    Record, RecordBody, RecordGroup, SectionHeader, SnapshotDecoder, SnapshotHeader,
    SnapshotWriter, Times, UnixMillis, UnixSeconds, Write, decode_record, encode_record,
};

const MILLION: u64 = 1_000_000;
const RANGES: u32 = 128;
const NOW_SECONDS: u32 = 1_700_000_000;

/// How many deltas a range may consist of.
const DELTAS: usize = 64;

/// As a node does it: the lock is given up between calls.
const SCAN_ENTRIES: usize = 4096;

/// As object storage hands it out.
const PORTION_BYTES: usize = 64 << 10;

fn main() {
    let number_of = |name: &str, otherwise: u64| {
        let arguments: Vec<String> = std::env::args().collect();
        let at = arguments.iter().position(|argument| argument == name);
        at.map_or(otherwise, |at| {
            arguments[at + 1].parse().expect("a number follows")
        })
    };
    let keys = number_of("--keys", 30) * MILLION;
    let rounds = number_of("--rounds", 3);
    println!("{keys} keys in {RANGES} ranges, median of {rounds} rounds, one thread, per key:");
    for (name, spread_seconds) in [("an hour", 3600), ("30 days", 30 * 86_400)] {
        snapshots(name, keys, spread_seconds, rounds);
    }
    journal(rounds);
}

/// A well-spread number (SplitMix64's finaliser).
fn mix(number: u64) -> u64 {
    let mut x = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

fn entry(number: u64, spread_seconds: u64) -> Entry {
    let fingerprint = Fingerprint::from_parts(mix(number + 1), mix(number ^ 0xABCD_EF01) as u32);
    let later = (u128::from(mix(number ^ 0x1234_5678_9ABC)) * u128::from(spread_seconds)) >> 64;
    let expiry = Expiry::from_unix_seconds(NOW_SECONDS + 3600 + later as u32).unwrap();
    Entry::new(fingerprint, expiry)
}

fn times() -> Times {
    Times {
        now: UnixSeconds(NOW_SECONDS),
        purge_before: UnixSeconds(NOW_SECONDS),
    }
}

fn header() -> SnapshotHeader {
    SnapshotHeader {
        kind: FileKind::Full,
        cluster_id: ClusterId::from_bytes([1; 16]),
        lineage: 1,
        seed_digest: 1,
        node: NodeId(0),
        disk_id: Incarnation::from_bytes([1; 16]),
        incarnation: Incarnation::from_bytes([1; 16]),
        lsn_from: Lsn(0),
        lsn_to: Lsn(1),
        created: UnixMillis(u64::from(NOW_SECONDS) * 1000),
        purge_before: UnixSeconds(0),
        parents: Vec::new(),
    }
}

/// The median over the rounds of what `round` took, in nanoseconds a key.
fn median_ns(rounds: u64, keys: u64, mut round: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..rounds)
        .map(|_| {
            let begin = Instant::now();
            round();
            begin.elapsed().as_nanos() as f64 / keys as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn snapshots(name: &str, keys: u64, spread_seconds: u64, rounds: u64) {
    let arena = Arena::new();
    let provisioner = Provisioner::start(&arena);
    let bounds = HashRange::split_evenly(RANGES).unwrap();
    let mut of_ranges: Vec<Vec<Entry>> = vec![Vec::new(); RANGES as usize];
    for number in 0..keys {
        let entry = entry(number, spread_seconds);
        let range = (u128::from(entry.fingerprint().top()) * u128::from(RANGES)) >> 64;
        of_ranges[range as usize].push(entry);
    }
    let mut sets: Vec<KeySet> = Vec::new();
    for (bounds, entries) in bounds.iter().zip(&of_ranges) {
        // Put in any order, as clients do.
        let mut set = KeySet::new(*bounds, &arena);
        for entry in entries {
            set.merge(std::slice::from_ref(entry), times()).unwrap();
        }
        sets.push(set);
    }
    let inserted_bytes: usize = sets.iter().map(KeySet::memory_bytes).sum();

    let mut copy: Vec<Entry> = Vec::new();
    let copy_ns = median_ns(rounds, keys, || {
        for entries in &of_ranges {
            copy.clear();
            copy.extend_from_slice(entries);
            black_box(&copy);
        }
    });
    let sort_ns = {
        let copies = of_ranges.clone();
        let mut copies = copies.into_iter();
        let quarter = RANGES as usize / 4;
        let sorted: u64 = of_ranges[..quarter]
            .iter()
            .map(|entries| entries.len() as u64)
            .sum();
        median_ns(1, sorted, || {
            for mut entries in copies.by_ref().take(quarter) {
                entries.sort_unstable();
                black_box(&entries);
            }
        })
    };
    // A 64th of the keys each, as they came in.
    let deltas: Vec<Vec<Vec<Entry>>> = of_ranges
        .iter()
        .map(|entries| {
            let mut deltas: Vec<Vec<Entry>> = entries
                .chunks(entries.len().div_ceil(DELTAS))
                .map(<[Entry]>::to_vec)
                .collect();
            deltas.iter_mut().for_each(|delta| delta.sort_unstable());
            deltas
        })
        .collect();
    drop(of_ranges);

    let mut portion = Vec::with_capacity(SCAN_ENTRIES);
    let mut scan = |set: &KeySet, each: &mut dyn FnMut(&[Entry])| {
        let mut from = Some(Fingerprint::MIN);
        while let Some(start) = from {
            portion.clear();
            from = set.scan(start, SCAN_ENTRIES, &mut portion);
            each(&portion);
        }
    };
    let scan_ns = median_ns(rounds, keys, || {
        for set in &sets {
            scan(set, &mut |entries| {
                black_box(entries);
            });
        }
    });
    let mut files: Vec<Vec<u8>> = vec![Vec::new(); RANGES as usize];
    let encode_ns = median_ns(rounds, keys, || {
        for ((set, file), range) in sets.iter().zip(&mut files).zip(0..) {
            let mut target = std::mem::take(file);
            target.clear();
            let mut writer = SnapshotWriter::new(target, &header()).unwrap();
            let section = SectionHeader {
                range: RangeId(range),
                generation: 1,
                bounds: set.bounds(),
            };
            writer.begin_section(section).unwrap();
            scan(set, &mut |entries| writer.entries(entries).unwrap());
            *file = writer.finish().unwrap().0;
        }
    });
    drop(sets);
    let bytes: usize = files.iter().map(Vec::len).sum();

    let decode = |file: &[u8], each: &mut dyn FnMut(&[Entry])| {
        let mut decoder = SnapshotDecoder::new().unwrap();
        for bytes in file.chunks(PORTION_BYTES) {
            decoder.feed(bytes);
            while let Some(event) = decoder.next_event().unwrap() {
                if let Event::Entries(entries) = event {
                    each(entries);
                }
            }
        }
        decoder.finish().unwrap();
    };
    let decode_ns = median_ns(rounds, keys, || {
        for file in &files {
            decode(file, &mut |entries| {
                black_box(entries);
            });
        }
    });
    let mut loaded_bytes = 0;
    let load_ns = median_ns(rounds, keys, || {
        let mut sets = Vec::new();
        for (bounds, file) in bounds.iter().zip(&files) {
            let mut set = KeySet::new(*bounds, &arena);
            decode(file, &mut |entries| set.merge(entries, times()).unwrap());
            sets.push(set);
        }
        assert_eq!(sets.iter().map(KeySet::len).sum::<usize>() as u64, keys);
        loaded_bytes = sets.iter().map(KeySet::memory_bytes).sum();
    });
    let mut merged_bytes = 0;
    let deltas_ns = median_ns(rounds, keys, || {
        let mut sets = Vec::new();
        for (bounds, deltas) in bounds.iter().zip(&deltas) {
            let mut set = KeySet::new(*bounds, &arena);
            for delta in deltas {
                set.merge(delta, times()).unwrap();
            }
            sets.push(set);
        }
        assert_eq!(sets.iter().map(KeySet::len).sum::<usize>() as u64, keys);
        merged_bytes = sets.iter().map(KeySet::memory_bytes).sum();
    });
    drop(provisioner);

    let row = |what: &str, ns: f64| {
        println!(
            "  {what:<32} {ns:6.1} ns {:6.1} M keys/s  {:5.2} x a copy  {:5.2} x a sort",
            1e3 / ns,
            ns / copy_ns,
            ns / sort_ns
        );
    };
    println!("expiries spread over {name}:");
    row("copy of 16-byte entries", copy_ns);
    row("sort of 16-byte entries", sort_ns);
    row("scan", scan_ns);
    row("encode (scan and write)", encode_ns);
    row("decode", decode_ns);
    row("load (decode and merge)", load_ns);
    row("merge of 64 deltas", deltas_ns);
    println!(
        "  {:.3} bytes a key in files; in memory {:.2} bytes after the load, {:.2} after that of deltas, {:.2} after inserts in any order",
        bytes as f64 / keys as f64,
        loaded_bytes as f64 / keys as f64,
        merged_bytes as f64 / keys as f64,
        inserted_bytes as f64 / keys as f64
    );
}

/// Records of 1,000 keys in 43 groups, the share of one node of three in a request.
fn journal(rounds: u64) {
    const KEYS: usize = 1000;
    const GROUPS: usize = 43;
    const RECORDS: u64 = 20_000;
    let disk_id = Incarnation::from_bytes([1; 16]);
    let fingerprints: Vec<u8> = (0..(KEYS * FINGERPRINT_BYTES) as u64)
        .map(|at| mix(at) as u8)
        .collect();
    let groups: Vec<RecordGroup> = (0..GROUPS)
        .map(|group| RecordGroup {
            range: RangeId(group as u32 * 3),
            generation: 1,
            count: (KEYS * (group + 1) / GROUPS - KEYS * group / GROUPS) as u32,
        })
        .collect();
    let answers = [0x55; 43 * 11 + 130];
    let record = |lsn: u64| Record {
        lsn: Lsn(lsn),
        synced: Lsn(lsn - 1),
        written: UnixMillis(u64::from(NOW_SECONDS) * 1000),
        body: RecordBody::Write(Write {
            expiry: Expiry::from_unix_seconds(NOW_SECONDS).unwrap(),
            operation: Some(OperationId::from_bytes([2; 16])),
            answers: &answers,
            groups: Cow::Borrowed(&groups),
            fingerprints: PackedFingerprints::new(&fingerprints).unwrap(),
        }),
    };
    let mut buffer = Vec::with_capacity(16 << 10);
    let encode_ns = median_ns(rounds, RECORDS, || {
        for lsn in 1..=RECORDS {
            buffer.clear();
            encode_record(&mut buffer, disk_id, &record(lsn));
            black_box(&buffer);
        }
    });
    let decode_ns = median_ns(rounds, RECORDS, || {
        for _ in 0..RECORDS {
            black_box(decode_record(black_box(&buffer), disk_id).unwrap());
        }
    });
    let mut copy = vec![0; buffer.len()];
    let copy_ns = median_ns(rounds, RECORDS, || {
        for _ in 0..RECORDS {
            copy.copy_from_slice(black_box(&buffer));
            black_box(&copy);
        }
    });
    println!(
        "journal record of {KEYS} keys in {GROUPS} groups, {} bytes:",
        buffer.len()
    );
    for (what, ns) in [
        ("copy", copy_ns),
        ("encode", encode_ns),
        ("decode", decode_ns),
    ] {
        println!("  {what:<8} {ns:8.0} ns  {:5.2} x a copy", ns / copy_ns);
    }
}
