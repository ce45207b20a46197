//! Puts Valkey and a KeyDB node through the same work on this machine, in turn, and prints two tables: without and with every
//! write synced to disk before it is answered.
//!
//! Called by `scripts/compare-valkey`, which builds everything and finds the servers:
//! `compare-valkey VALKEY_SERVER KEYDB [--runs 3] [--scale 1]`. With `--scale 10` every number of keys is a tenth: a quick look,
//! not a result. Logs and journals go to the directory for temporary files (`TMPDIR`), which should be on a disk.
#![expect(
    clippy::print_stdout,
    reason = "the tables are what this program is for"
)]

mod disk;
mod keydb;
mod keys;
mod load;
mod process;
mod valkey;

use std::{error::Error, path::PathBuf, sync::Arc};

use keydb::KeyDb;
use keys::Keys;
use load::{Figures, MEMORY_POINTS, Plan, Store, TASKS};
use valkey::{Persistence, Valkey};

struct Arguments {
    valkey: PathBuf,
    keydb: PathBuf,
    runs: usize,
    scale: usize,
}

/// What the runs of one contestant measured.
type Runs = Vec<Figures>;

/// The contestants, each with its runs.
#[derive(Default)]
struct Results {
    /// Valkey that keeps nothing, beside KeyDB in `snapshot` mode.
    unsynced: (Runs, Runs),
    /// Valkey with `appendfsync always`, beside KeyDB in `journal` mode.
    synced: (Runs, Runs),
    /// What the disk does by itself, a second: appends of each of [`disk::SIZES`], each with its fdatasync.
    disk: Vec<[f64; disk::SIZES.len()]>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = arguments()?;
    let plan = Plan::of(arguments.scale);
    let keys = (Arc::new(plan.stored()), Arc::new(plan.looked_up()));
    let mut results = Results::default();
    for run in 1..=arguments.runs {
        let said = |what: &str| eprintln!("run {run} of {}: {what} …", arguments.runs);
        said("Valkey");
        let store = Valkey::start(&arguments.valkey, Persistence::None)?;
        results.unsynced.0.push(measure(store, &keys, plan)?);
        said("KeyDB, durability snapshot");
        let store = KeyDb::start(&arguments.keydb, "snapshot")?;
        results.unsynced.1.push(measure(store, &keys, plan)?);
        said("the disk");
        results.disk.push(disk::appends_a_second()?);
        said("Valkey, appendfsync always");
        let store = Valkey::start(&arguments.valkey, Persistence::SyncedLog)?;
        results.synced.0.push(measure(store, &keys, plan)?);
        said("KeyDB, durability journal");
        let store = KeyDb::start(&arguments.keydb, "journal")?;
        results.synced.1.push(measure(store, &keys, plan)?);
    }
    print_tables(&arguments, plan, &keys.0, &results);
    Ok(())
}

fn measure(
    mut store: impl Store,
    (keys, looked_up): &(Arc<Keys>, Arc<Keys>),
    plan: Plan,
) -> std::io::Result<Figures> {
    load::run(&mut store, keys, looked_up, plan)
}

fn arguments() -> Result<Arguments, String> {
    let usage = "usage: compare-valkey VALKEY_SERVER KEYDB [--runs 3] [--scale 1]";
    let mut words = std::env::args().skip(1);
    let mut path = || {
        words
            .next()
            .map(PathBuf::from)
            .ok_or_else(|| usage.to_owned())
    };
    let mut arguments = Arguments {
        valkey: path()?,
        keydb: path()?,
        runs: 3,
        scale: 1,
    };
    while let Some(word) = words.next() {
        let value = words
            .next()
            .and_then(|value| value.parse().ok())
            .filter(|value| *value > 0);
        let value: usize =
            value.ok_or_else(|| format!("{word} takes a number above 0; {usage}"))?;
        match word.as_str() {
            "--runs" => arguments.runs = value,
            "--scale" => arguments.scale = value,
            _ => return Err(format!("{word:?} is not an option; {usage}")),
        }
    }
    Ok(arguments)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn median_of(runs: &[Figures], of: impl Fn(&Figures) -> f64) -> f64 {
    median(runs.iter().map(of).collect())
}

fn print_tables(arguments: &Arguments, plan: Plan, keys: &Keys, results: &Results) {
    println!(
        "Machine: {}, {} cores, {}",
        cpu_model(),
        cores(),
        std::env::consts::OS
    );
    println!(
        "Valkey: {}; pipelined 64 deep on 16 connections",
        version(&arguments.valkey)
    );
    println!(
        "KeyDB: {}; one node; batches of 1,000, 16 calls in flight",
        version(&arguments.keydb)
    );
    println!(
        "Keys: {} of 36 bytes, TTL 3600 s; every answer checked; medians of {} runs",
        keys.len(),
        arguments.runs
    );
    let heads = ["Valkey, no log", "KeyDB, `snapshot`"];
    print_table(heads, arguments, plan, &results.unsynced);
    let heads = ["Valkey, `appendfsync always`", "KeyDB, `journal`"];
    print_table(heads, arguments, plan, &results.synced);

    let claims = |runs| median_of(runs, |figures| figures.claims);
    println!(
        "\nClaims of new keys with `journal` beside `snapshot`: {:.0} %",
        100.0 * claims(&results.synced.1) / claims(&results.unsynced.1)
    );
    for (index, size) in disk::SIZES.iter().enumerate() {
        let a_second = median(results.disk.iter().map(|rates| rates[index]).collect());
        println!(
            "The disk by itself, append + fdatasync of {} KiB: {a_second:.0} a second, {:.0} MB/s",
            size / 1024,
            a_second * *size as f64 / 1e6
        );
    }
}

fn print_table(
    [valkey_head, keydb_head]: [&str; 2],
    arguments: &Arguments,
    plan: Plan,
    (valkey, keydb): &(Runs, Runs),
) {
    println!("\n| | {valkey_head} | {keydb_head} | ratio |");
    println!("| --- | ---: | ---: | ---: |");
    let millions = |count: usize| count as f64 / 1e6;
    let rate = |name: String, of: fn(&Figures) -> f64| {
        let (peer, ours) = (median_of(valkey, of) / 1e6, median_of(keydb, of) / 1e6);
        println!(
            "| {name} | {peer:.2} M/s | {ours:.2} M/s | {:.1} × |",
            ours / peer
        );
    };
    let resident = millions(plan.resident);
    rate(
        format!("claims of new keys, {resident} M resident at the start"),
        |figures| figures.claims,
    );
    rate("gets, half of them of present keys".to_owned(), |figures| {
        figures.gets
    });
    rate(
        format!("one-key claims from {TASKS} tasks (Valkey: pipelined)"),
        |figures| figures.single_claims,
    );
    for (index, point) in MEMORY_POINTS.iter().enumerate() {
        let (peer, ours) = (
            median_of(valkey, |figures| figures.bytes[index]),
            median_of(keydb, |figures| figures.bytes[index]),
        );
        let keys = millions(point / arguments.scale);
        println!(
            "| resident bytes a key at {keys} M keys | {peer:.1} | {ours:.1} | {:.2} × |",
            ours / peer
        );
    }
}

fn version(binary: &std::path::Path) -> String {
    let output = std::process::Command::new(binary).arg("--version").output();
    output.map_or_else(
        |error| error.to_string(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

fn cpu_model() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
    model.map_or_else(
        || std::env::consts::ARCH.to_owned(),
        |model| model.trim().to_owned(),
    )
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
