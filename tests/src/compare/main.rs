//! Puts Valkey and a KeyDB node through the same work on this machine, in turn, and prints one table.
//!
//! Called by `scripts/compare-valkey`, which builds everything and finds the servers:
//! `compare-valkey VALKEY_SERVER KEYDB [--runs 3] [--scale 1]`. With `--scale 10` every number of keys is a tenth: a quick look,
//! not a result.
#![expect(clippy::print_stdout, reason = "the table is what this program is for")]

mod keydb;
mod keys;
mod load;
mod process;
mod valkey;

use std::{error::Error, path::PathBuf, sync::Arc};

use keys::Keys;
use load::{Figures, MEMORY_POINTS, Plan, TASKS};

struct Arguments {
    valkey: PathBuf,
    keydb: PathBuf,
    runs: usize,
    scale: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = arguments()?;
    let plan = Plan::of(arguments.scale);
    let (keys, looked_up) = (Arc::new(plan.stored()), Arc::new(plan.looked_up()));
    let (mut valkey, mut keydb) = (Vec::new(), Vec::new());
    for run in 1..=arguments.runs {
        eprintln!("run {run} of {}: Valkey …", arguments.runs);
        valkey.push(load::run(
            &mut valkey::Valkey::start(&arguments.valkey)?,
            &keys,
            &looked_up,
            plan,
        )?);
        eprintln!("run {run} of {}: KeyDB …", arguments.runs);
        keydb.push(load::run(
            &mut keydb::KeyDb::start(&arguments.keydb)?,
            &keys,
            &looked_up,
            plan,
        )?);
    }
    print_table(&arguments, plan, &keys, &valkey, &keydb);
    Ok(())
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

fn median(figures: &[Figures], of: impl Fn(&Figures) -> f64) -> f64 {
    let mut values: Vec<f64> = figures.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn print_table(
    arguments: &Arguments,
    plan: Plan,
    keys: &Keys,
    valkey: &[Figures],
    keydb: &[Figures],
) {
    println!(
        "Machine: {}, {} cores, {}",
        cpu_model(),
        cores(),
        std::env::consts::OS
    );
    println!(
        "Valkey: {}; no save, no AOF; pipelined 64 deep on 16 connections",
        version(&arguments.valkey)
    );
    println!(
        "KeyDB: {}; one node, durability memory; batches of 1,000, 16 calls in flight",
        version(&arguments.keydb)
    );
    println!(
        "Keys: {} of 36 bytes, TTL 3600 s; every answer checked; medians of {} runs\n",
        keys.len(),
        arguments.runs
    );
    println!("| | Valkey | KeyDB | ratio |");
    println!("| --- | ---: | ---: | ---: |");
    let millions = |count: usize| count as f64 / 1e6;
    let rate = |name: String, of: fn(&Figures) -> f64| {
        let (peer, ours) = (median(valkey, of) / 1e6, median(keydb, of) / 1e6);
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
            median(valkey, |figures| figures.bytes[index]),
            median(keydb, |figures| figures.bytes[index]),
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
