//! The journal's group commit beside plain appending and syncing on the same disk, in one run.
//!
//! `cargo bench -p keydb-node --bench journal -- [--dir DIRECTORY] [--writers N] [--keys N] [--seconds N] [--rounds N]`
//!
//! Each writer appends a record and waits until it is committed, again and again, as a request does. The baseline is one thread
//! that appends 16 KiB, or 256 KiB, to a file and syncs it. They take turns; each figure is the median of the rounds.
#![expect(
    clippy::print_stdout,
    reason = "a benchmark's result is what it prints"
)]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

use std::{
    fs::File,
    io::Write,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use keydb_core::{Expiry, FINGERPRINT_BYTES, PackedFingerprints};
use keydb_node::bench::Journal;

const SMALL_BYTES: usize = 16 << 10;
const LARGE_BYTES: usize = 256 << 10;

/// As much is left in the journal before it is cut.
const JOURNAL_BYTES_MAX: u64 = 1 << 30;

/// What one round has shown, each per second.
#[derive(Debug, Clone, Copy)]
struct Round {
    small_syncs: f64,
    large_syncs: f64,
    records: f64,
    commits: f64,
}

fn main() {
    let argument_of = |name: &str| {
        let arguments: Vec<String> = std::env::args().collect();
        let at = arguments.iter().position(|argument| argument == name)?;
        Some(arguments.get(at + 1).expect("a value follows").clone())
    };
    let number_of = |name: &str, otherwise: u64| {
        argument_of(name).map_or(otherwise, |value| value.parse().expect("a number follows"))
    };
    let parent = argument_of("--dir").unwrap_or_else(|| ".".to_owned());
    let writers = number_of("--writers", 16);
    let keys = number_of("--keys", 1000) as usize;
    let duration = Duration::from_secs(number_of("--seconds", 3));
    let rounds = number_of("--rounds", 3);

    let dir = tempfile::tempdir_in(parent).unwrap();
    println!(
        "{writers} writers, {keys} keys a record, median of {rounds} rounds of {} s each, per second:",
        duration.as_secs()
    );
    let rounds: Vec<Round> = (0..rounds)
        .map(|number| {
            let path = |name: &str| dir.path().join(format!("{name}-{number}"));
            let small_syncs = append_and_sync(&path("small"), SMALL_BYTES, duration);
            let large_syncs = append_and_sync(&path("large"), LARGE_BYTES, duration);
            let (records, commits) = journal(&path("journal"), writers, keys, duration);
            Round {
                small_syncs,
                large_syncs,
                records,
                commits,
            }
        })
        .collect();
    print(&rounds, keys);
}

/// How many syncs a second there are when each is of so many new bytes.
fn append_and_sync(path: &Path, bytes: usize, duration: Duration) -> f64 {
    let mut file = File::create_new(path).unwrap();
    let bytes = vec![0xA5; bytes];
    let started = Instant::now();
    let mut syncs = 0;
    while started.elapsed() < duration {
        file.write_all(&bytes).unwrap();
        file.sync_data().unwrap();
        syncs += 1;
    }
    let rate = f64::from(syncs) / started.elapsed().as_secs_f64();
    std::fs::remove_file(path).unwrap();
    rate
}

/// How many records and how many group commits a second there are.
fn journal(dir: &Path, writers: u64, keys: usize, duration: Duration) -> (f64, f64) {
    let journal = Arc::new(Journal::open(dir).unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let started = Instant::now();
    let records: u64 = runtime.block_on(async {
        let tasks: Vec<_> = (0..writers)
            .map(|writer| {
                let journal = Arc::clone(&journal);
                tokio::spawn(async move { write(&journal, writer, keys, duration).await })
            })
            .collect();
        let mut records = 0;
        for task in tasks {
            records += task.await.unwrap();
        }
        records
    });
    let seconds = started.elapsed().as_secs_f64();
    let (_, commits) = journal.written();
    drop(journal);
    std::fs::remove_dir_all(dir).unwrap();
    (records as f64 / seconds, commits as f64 / seconds)
}

async fn write(journal: &Journal, writer: u64, keys: usize, duration: Duration) -> u64 {
    let expiry = Expiry::from_unix_seconds(u32::MAX).unwrap();
    let mut bytes = vec![writer as u8; keys * FINGERPRINT_BYTES];
    let started = Instant::now();
    let mut records = 0_u64;
    while started.elapsed() < duration {
        bytes[..8].copy_from_slice(&records.to_le_bytes());
        let fingerprints = PackedFingerprints::new(&bytes).unwrap();
        journal.put(fingerprints, expiry).await.unwrap();
        records += 1;
        if writer == 0 && journal.written().0 > JOURNAL_BYTES_MAX {
            journal.cut();
        }
    }
    records
}

fn print(rounds: &[Round], keys: usize) {
    let median = |of: fn(&Round) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let megabytes = |rate: f64, bytes: usize| rate * bytes as f64 / 1e6;
    let record_bytes = keys * FINGERPRINT_BYTES;
    let (small, large) = (
        median(|round| round.small_syncs),
        median(|round| round.large_syncs),
    );
    let (records, commits) = (median(|round| round.records), median(|round| round.commits));
    let journal_megabytes = megabytes(records, record_bytes);
    println!(
        "  append 16 KiB + sync    {small:>9.0} syncs  {:>8.1} MB",
        megabytes(small, SMALL_BYTES)
    );
    println!(
        "  append 256 KiB + sync   {large:>9.0} syncs  {:>8.1} MB",
        megabytes(large, LARGE_BYTES)
    );
    println!(
        "  journal                 {commits:>9.0} syncs  {journal_megabytes:>8.1} MB  {records:.0} records  {:.0} keys",
        records * keys as f64
    );
    println!(
        "  the journal's records beside 16 KiB syncs: {:.2}; its bytes beside those of 256 KiB syncs: {:.2}; {:.1} records a sync",
        records / small,
        journal_megabytes / megabytes(large, LARGE_BYTES),
        records / commits
    );
}
