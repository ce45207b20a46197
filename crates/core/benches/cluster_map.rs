//! The cluster map of a large cluster: its size in object storage, and how long it takes to write, read and plan it.
//!
//! `cargo bench -p keydb-core --bench cluster_map -- [--nodes N] [--to N] [--ranges N] [--rounds N]`
//!
//! One thread. Each figure is the median of the rounds. Reading is set beside `serde_json` reading the same bytes without any idea
//! of what they are, planning beside a plain copy of the map.
#![expect(
    clippy::print_stdout,
    reason = "a benchmark's result is what it prints"
)]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use keydb_core::{
    ClusterMap, CopyId, Durability, Incarnation, NewCluster, NodeId, OperationId, UnixMillis,
    moving::{Assignment, Change},
    scaling::{Member, abort, finish, hand_over, plan_scale},
};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

fn main() {
    let number_of = |name: &str, otherwise: u32| {
        let arguments: Vec<String> = std::env::args().collect();
        let at = arguments.iter().position(|argument| argument == name);
        at.map_or(otherwise, |at| {
            arguments[at + 1].parse().expect("a number follows")
        })
    };
    let (nodes, to) = (number_of("--nodes", 1000), number_of("--to", 1100));
    let ranges = number_of("--ranges", 16_384);
    let rounds = number_of("--rounds", 11);
    println!("{nodes} nodes to {to}, {ranges} hash ranges, {rounds} rounds\n");

    let map = cluster(nodes, ranges);
    let members: Vec<Member> = (0..to).map(member).collect();
    let plan = || plan_scale(&map, &members, OperationId::random(), NOW).unwrap();
    let planned = plan();
    println!(
        "{} moves, {} joins, {} leaves",
        planned.moves.len(),
        planned.joins.len(),
        planned.leaves.len()
    );
    let planned = planned.map.expect("there is something to do");
    let going = hand_over(&planned, None).unwrap().unwrap();
    let published = published(&going);
    let mut moved = published.clone();
    for range in &mut moved.ranges {
        range.from = None;
    }

    println!("\n{:<34}{:>12}{:>12}", "size", "stored", "in lines");
    for (name, map) in [
        ("before", &map),
        ("planned", &planned),
        ("all moves being handed over", &published),
    ] {
        let in_lines = serde_json::to_vec_pretty(map).unwrap().len();
        println!(
            "{name:<34}{:>8.3} MiB{:>8.3} MiB",
            mib(map.to_json().len()),
            mib(in_lines)
        );
    }

    println!("\n{:<34}{:>12}{:>12}", "time", "ms", "ratio");
    let json = published.to_json();
    let untyped = median(rounds, || {
        serde_json::from_slice::<serde_json::Value>(&json).unwrap()
    });
    let copy = median(rounds, || map.clone());
    let show = |name: &str, time: Duration, beside: Duration| {
        let ratio = time.as_secs_f64() / beside.as_secs_f64();
        println!("{name:<34}{:>12.2}{ratio:>12.2}", time.as_secs_f64() * 1e3);
    };
    show("read as any JSON", untyped, untyped);
    let read = median(rounds, || ClusterMap::from_json(&json).unwrap());
    show("read and check", read, untyped);
    show("write", median(rounds, || published.to_json()), untyped);
    show("copy", copy, copy);
    show("plan", median(rounds, plan), copy);
    show("abort", median(rounds, || abort(&planned)), copy);
    show("finish", median(rounds, || finish(&moved).unwrap()), copy);
}

fn member(id: u32) -> Member {
    Member {
        id: NodeId(id),
        address: format!("keydb-{id}.keydb.default.svc.cluster.local:50051"),
        zone: format!("eu-central-1{}", ["a", "b", "c"][id as usize % 3]),
    }
}

/// A cluster as it is after some time: every node registered, ranges moved before.
fn cluster(nodes: u32, ranges: u32) -> ClusterMap {
    let mut map = ClusterMap::create(&NewCluster {
        addresses: (0..nodes).map(|id| member(id).address).collect(),
        range_count: ranges,
        durability: Durability::Journal,
    })
    .unwrap();
    map.epoch = 1_000_000;
    for node in &mut map.nodes {
        node.disk_id = Some(Incarnation::random());
        node.zone = member(node.id.0).zone;
    }
    for range in &mut map.ranges {
        range.generation = 25;
    }
    map
}

/// The map in which all planned moves are published, and none has begun.
fn published(map: &ClusterMap) -> ClusterMap {
    let mut next = map.successor();
    for (index, range) in next.ranges.iter_mut().enumerate() {
        let stored = Assignment::of(map, index);
        if let Some(successor) = stored.successor {
            let copy = CopyId::random();
            Change::Publish { copy }.apply(successor, &stored, range);
        }
    }
    next
}

fn median<T>(rounds: u32, mut measured: impl FnMut() -> T) -> Duration {
    let mut times: Vec<Duration> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            let result = black_box(measured());
            let time = start.elapsed();
            drop(result);
            time
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
