//! Changes a cluster's membership in every way, under load, and checks that what clients were told stays true: first while nothing
//! else happens, then while nodes, links, object storage and operators fail.
//!
//! Nodes and `keydb scale` are processes of their own, object storage is the S3 server of the other tests, and each of them is reached
//! through a relay. Several things fail at the same time; which, when and for how long follows from a seed, which is printed and which
//! `TORTURE_SEED=` chooses. By default this is short. For hours:
//! `TORTURE_SECONDS=3600 scripts/minio with cargo test --release -p keydb-cli --test scaling -- --nocapture`.
//! With `TORTURE_DISK=` a directory on a small file system of its own, the nodes' disks become full now and then as well.

#![allow(clippy::unwrap_used, reason = "a test that fails here has failed")]

#[path = "torture/history.rs"]
mod history;
#[path = "torture/load.rs"]
mod load;
#[path = "scaling/relay.rs"]
mod relay;
mod support;
#[path = "scaling/world.rs"]
mod world;

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write,
    process::Stdio,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use history::{Told, violations};
use keydb_client::AdminClient;
use load::{Choices, History, ask_for_all, ask_for_settled, seed, work};
use relay::Link;
use rustix::process::Signal;
use tokio::{task::JoinSet, time::sleep};
use world::{Members, PATIENCE, World};

const SECONDS_DEFAULT: u64 = 20;
const NODES: usize = 5;
/// So many are members at the beginning, and at the end.
const BASE: usize = 3;
const WORKERS: usize = 6;
const SETTLE_INTERVAL: Duration = Duration::from_secs(2);

fn seconds() -> Duration {
    let text = std::env::var("TORTURE_SECONDS");
    Duration::from_secs(text.map_or(SECONDS_DEFAULT, |text| text.parse().unwrap()))
}

/// What fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill(usize),
    KillTwo(usize, usize),
    Freeze(usize, Duration),
    NodeLink(usize, Link, Duration),
    StorageLink(Link, Duration),
    FullDisk(Duration),
    Abort,
}

/// What fails next, and when.
fn next_fault(choices: &mut Choices, kills: bool) -> (Duration, Fault) {
    let wait = Duration::from_millis(50 + choices.below(1200));
    let node = choices.below(NODES as u64) as usize;
    let other = choices.below(NODES as u64) as usize;
    // Now and then longer than anybody waits.
    let long = if choices.below(8) == 0 { 12_000 } else { 2_500 };
    let time = Duration::from_millis(50 + choices.below(long));
    let link = match choices.below(3) {
        0 => Link::Cut,
        1 => Link::Silent,
        _ => Link::Slow(Duration::from_millis(5 + choices.below(60))),
    };
    let fault = match choices.below(10) {
        0 | 1 if kills => Fault::Kill(node),
        2 if kills => Fault::KillTwo(node, other),
        0..=4 => Fault::NodeLink(node, link, time),
        5 | 6 => Fault::Freeze(node, time),
        7 => Fault::FullDisk(time),
        8 => Fault::StorageLink(link, time),
        _ => Fault::Abort,
    };
    (wait, fault)
}

/// Has this fail, and mends it.
async fn fail(world: Arc<World>, fault: Fault) {
    match fault {
        Fault::Kill(node) => world.signal(node, Signal::KILL),
        Fault::KillTwo(node, other) => {
            world.signal(node, Signal::KILL);
            world.signal(other, Signal::KILL);
        }
        Fault::Freeze(node, time) => {
            if !world.nodes[node].is_frozen.swap(true, Ordering::SeqCst) {
                world.signal(node, Signal::STOP);
                sleep(time).await;
                world.signal(node, Signal::CONT);
                world.nodes[node].is_frozen.store(false, Ordering::SeqCst);
            }
        }
        Fault::NodeLink(node, link, time) => {
            world.nodes[node].relay.be(link);
            sleep(time).await;
            world.nodes[node].relay.be(Link::Open);
        }
        Fault::StorageLink(link, time) => {
            world.storage.be(link);
            sleep(time).await;
            world.storage.be(Link::Open);
        }
        Fault::FullDisk(time) => {
            let Some(disk) = world.small_disk.clone() else {
                return;
            };
            let balloon = disk.join("balloon");
            let filling = balloon.clone();
            let filled = tokio::task::spawn_blocking(move || {
                let mut file = File::create(filling)?;
                let piece = vec![0; 1 << 20];
                while file.write_all(&piece).is_ok() {}
                Ok::<_, std::io::Error>(())
            });
            let _ = filled.await;
            sleep(time).await;
            let _ = std::fs::remove_file(balloon);
        }
        Fault::Abort => {
            let abort = world.command(&["scale", "--abort"]);
            let _ = tokio::process::Command::from(abort)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .status()
                .await;
        }
    }
}

/// Scales up and down, by commands that are killed now and then. Returns how many came to their end.
async fn scale(world: Arc<World>, mut choices: Choices) -> u64 {
    let mut completed = 0;
    for size in [4, 3, 5, 3, 4, 5].into_iter().cycle() {
        if world.ends.load(Ordering::SeqCst) {
            return completed;
        }
        let to = world.addresses(0..size).join(",");
        let command = world.command(&["scale", "--to", &to, "--yes"]);
        let mut command = tokio::process::Command::from(command);
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let patience = if choices.below(4) == 0 { 3_000 } else { 20_000 };
        let limit = Duration::from_millis(choices.below(patience) + 500);
        match tokio::time::timeout(limit, command.status()).await {
            Ok(Ok(status)) if status.success() => completed += 1,
            // It was refused, given up or killed; the next one goes on.
            _ => sleep(Duration::from_millis(200)).await,
        }
    }
    completed
}

async fn torture(durability: &str, kills: bool) {
    let seed = seed();
    println!("{durability}: TORTURE_SEED={seed}");
    let world = World::start(durability, NODES, BASE).await;
    let history = Arc::new(History::default());
    let mut workers = JoinSet::new();
    for worker in 0..WORKERS as u64 {
        // Some give up early, so that there are calls whose outcome nobody knows.
        let patience = Duration::from_millis(if worker % 3 == 0 { 300 } else { 60_000 });
        let client = world.client(patience).await;
        let history = Arc::clone(&history);
        let choices = Choices::of(seed, worker);
        workers.spawn(work(client, history, choices, Duration::ZERO));
    }
    let supervisor = tokio::spawn(Arc::clone(&world).supervise());
    let scaling = tokio::spawn(scale(Arc::clone(&world), Choices::of(seed, 100)));

    let mut choices = Choices::of(seed, 200);
    let mut faults = JoinSet::new();
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let (begun, mut settled_at) = (Instant::now(), Instant::now());
    while begun.elapsed() < seconds() {
        let (wait, fault) = next_fault(&mut choices, kills);
        sleep(wait).await;
        let text = format!("{fault:?}");
        let name = text.split('(').next().unwrap_or_default().to_owned();
        *counts.entry(name).or_default() += 1;
        faults.spawn(fail(Arc::clone(&world), fault));
        while faults.try_join_next().is_some() {}
        if settled_at.elapsed() > SETTLE_INTERVAL {
            settled_at = Instant::now();
            world.broken.lock().unwrap().extend(history.settle());
        }
    }
    while faults.join_next().await.is_some() {}
    world.ends.store(true, Ordering::SeqCst);
    let completed = scaling.await.unwrap();
    supervisor.await.unwrap();
    println!("{durability}: {counts:?}; {completed} scalings came to their end");

    heal_and_check(&world, durability, kills, history, workers, seed).await;
}

/// Nothing fails any more: one call brings the cluster where it is to be, and everything that was told is true.
async fn heal_and_check(
    world: &Arc<World>,
    durability: &str,
    kills: bool,
    history: Arc<History>,
    mut workers: JoinSet<()>,
    seed: u64,
) {
    world.ends.store(false, Ordering::SeqCst);
    let supervisor = tokio::spawn(Arc::clone(world).supervise());
    let base = world.addresses(0..BASE);
    let begun = Instant::now();
    let map = loop {
        let admin = AdminClient::connect(world.config(Duration::from_secs(10))).await;
        let failure = match admin {
            Ok(admin) => match admin.auto_scale(&base, PATIENCE, |_| {}).await {
                Ok(_) => break admin.cluster_map(),
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        };
        assert!(
            begun.elapsed() < PATIENCE,
            "(TORTURE_SEED={seed}) {failure}\n{}",
            world.tails()
        );
        sleep(Duration::from_millis(200)).await;
    };
    let moving = map.ranges.iter();
    let moving = moving.filter(|it| it.from.is_some() || it.successor.is_some());
    assert_eq!(moving.count(), 0, "(TORTURE_SEED={seed}) {map:?}");
    assert_eq!(map.nodes.len(), BASE);
    history.stop.store(true, Ordering::SeqCst);
    while let Some(ended) = workers.join_next().await {
        ended.unwrap();
    }
    if kills {
        for node in 0..NODES {
            world.signal(node, Signal::KILL);
        }
        sleep(Duration::from_millis(200)).await;
    }
    let client = world.client(Duration::from_secs(60)).await;
    let mut broken = std::mem::take(&mut *world.broken.lock().unwrap());
    broken.extend(ask_for_settled(&client, &history).await);
    ask_for_all(&client, &history).await;
    client.close(Duration::ZERO).await;
    world.ends.store(true, Ordering::SeqCst);
    supervisor.await.unwrap();
    let events = history.events();
    let count = |told| events.iter().filter(|event| event.told == told).count();
    println!(
        "{durability}: of the last keys {} answers, {} first, {} stored, {} unknown, {} of calls that may have been applied",
        events.len(),
        count(Told::First),
        count(Told::Stored),
        count(Told::Unknown),
        count(Told::MaybeApplied)
    );
    broken.extend(violations(&events));
    assert!(
        broken.is_empty(),
        "{} violations (TORTURE_SEED={seed}):\n{}\n{}",
        broken.len(),
        broken[..broken.len().min(20)].join("\n"),
        world.tails()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_cluster_is_scaled_nothing_that_was_told_becomes_untrue_by_what_fails() {
    torture("journal", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_kills_nothing_is_lost_in_memory_mode_either() {
    torture("memory", false).await;
}

struct Load {
    history: Arc<History>,
    workers: JoinSet<()>,
}

impl Load {
    async fn start(world: &World) -> Self {
        // A relay takes connections to a node that does not listen yet, and breaks them: nobody knows then what became of a claim.
        let client = world.client(PATIENCE).await;
        client.get(["any"]).await.unwrap();
        client.close(Duration::ZERO).await;
        let history = Arc::new(History::default());
        let mut workers = JoinSet::new();
        for worker in 0..WORKERS as u64 {
            let client = world.client(PATIENCE).await;
            workers.spawn(work(
                client,
                Arc::clone(&history),
                Choices::of(seed(), worker),
                Duration::ZERO,
            ));
        }
        Self { history, workers }
    }

    /// Asserts that all that was told is true, and that no call has failed. Where nodes stop, a connection may break before a claim is
    /// read; of its keys that somebody else has claimed meanwhile, the repeat can say no more than `Unknown`.
    async fn end(mut self, world: &World, nodes_stop: bool) {
        self.history.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.workers.join_next().await {
            ended.unwrap();
        }
        let client = world.client(PATIENCE).await;
        ask_for_all(&client, &self.history).await;
        client.close(Duration::ZERO).await;
        let events = self.history.events();
        let count = |told| events.iter().filter(|event| event.told == told).count();
        let failed = [Told::NotApplied, Told::MaybeApplied].map(count);
        assert_eq!(failed, [0; 2], "{}", world.tails());
        let unknown: Vec<_> = events
            .iter()
            .filter(|it| it.told == Told::Unknown)
            .collect();
        assert!(
            nodes_stop || unknown.is_empty(),
            "{unknown:?}\n{}",
            world.tails()
        );
        assert!(count(Told::First) > 0 && count(Told::Duplicate) > 0);
        let found = violations(&events);
        assert!(found.is_empty(), "{}\n{}", found.join("\n"), world.tails());
        assert_eq!(*world.broken.lock().unwrap(), [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_go_and_are_replaced_and_no_call_fails() {
    let world = World::start("journal", 8, 1).await;
    let supervisor = tokio::spawn(Arc::clone(&world).supervise());
    let load = Load::start(&world).await;
    let steps: [Members; 8] = [
        &[0, 1, 2],
        &[0, 1, 2, 3],
        &[0, 1, 2],
        &[0, 1, 2, 3, 4, 5, 6, 7],
        &[0, 1, 2],
        // Another in the place of one.
        &[0, 1, 4],
        // All of them.
        &[5, 6, 7],
        // The same again.
        &[5, 6, 7],
    ];
    for members in steps {
        world.scale_to(members).await;
    }
    load.end(&world, false).await;
    world.ends.store(true, Ordering::SeqCst);
    supervisor.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_are_down_or_stop_in_turn_make_calls_wait_and_nothing_else() {
    let world = World::start("journal", 4, 3).await;
    let supervisor = tokio::spawn(Arc::clone(&world).supervise());
    let load = Load::start(&world).await;
    // A member is down when its ranges are to move, and comes back.
    world.nodes[1].stays_down.store(true, Ordering::SeqCst);
    world.signal(1, Signal::TERM);
    let back = async {
        sleep(Duration::from_secs(2)).await;
        world.nodes[1].stays_down.store(false, Ordering::SeqCst);
    };
    tokio::join!(world.scale_to(&[0, 1, 2, 3]), back);
    // Two at once: one of them is refused, or finds nothing to do.
    let scale = |members: Members| {
        let to = world.addresses(members.iter().copied()).join(",");
        tokio::process::Command::from(world.command(&["scale", "--to", &to, "--yes"])).output()
    };
    let (one, other) = tokio::join!(scale(&[0, 1, 2]), scale(&[0, 1, 3]));
    let codes = [one.unwrap(), other.unwrap()].map(|output| output.status.code());
    assert!(codes.contains(&Some(0)), "{codes:?}");
    world.scale_to(&[0, 1, 2]).await;
    // Every node is stopped and comes back, one after the other, while ranges move.
    let rolling = async {
        for node in 0..4 {
            sleep(Duration::from_millis(700)).await;
            world.signal(node, Signal::TERM);
        }
    };
    tokio::join!(world.scale_to(&[0, 1, 2, 3]), rolling);
    load.end(&world, true).await;
    world.ends.store(true, Ordering::SeqCst);
    supervisor.await.unwrap();
}

/// Kills a node in the middle of a move to node 3, and has it come back with an empty disk.
async fn disk_is_lost_while_ranges_move(lost: usize) {
    let world = World::start("journal", 4, 3).await;
    let supervisor = tokio::spawn(Arc::clone(&world).supervise());
    let client = world.client(PATIENCE).await;
    let names = || (0..20_000).map(|key| format!("key {key}"));
    client.put(names(), "1d".parse().unwrap()).await.unwrap();
    support::assert_code(&world.command(&["snapshot", "create"]).output().unwrap(), 0);
    let to = world.addresses(0..4).join(",");
    let command = world.command(&["scale", "--to", &to, "--yes"]);
    let scaling = tokio::spawn(tokio::process::Command::from(command).output());
    // Somewhere in the copying, or the handing over.
    let seed = seed();
    println!("node {lost} loses its disk: TORTURE_SEED={seed}");
    sleep(Duration::from_millis(
        500 + Choices::of(seed, 0).below(4000),
    ))
    .await;
    world.nodes[lost].stays_down.store(true, Ordering::SeqCst);
    world.signal(lost, Signal::KILL);
    sleep(Duration::from_millis(300)).await;
    std::fs::remove_dir_all(&world.nodes[lost].dir).unwrap();
    let node = lost.to_string();
    let recover = world
        .command(&["recover", "--node", &node, "--accept-loss"])
        .output();
    support::assert_code(&recover.unwrap(), 0);
    world.nodes[lost].stays_down.store(false, Ordering::SeqCst);
    let scaled = tokio::time::timeout(PATIENCE, scaling).await;
    let scaled = scaled.unwrap_or_else(|_| panic!("{}", world.tails()));
    support::assert_code(&scaled.unwrap().unwrap(), 0);
    let present = client.get(names()).await.unwrap();
    let found = present.iter().filter(|present| **present).count();
    assert_eq!(found, 20_000, "{}", world.tails());
    world.ends.store(true, Ordering::SeqCst);
    supervisor.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_next_owner_loses_its_disk_nothing_is_lost() {
    disk_is_lost_while_ranges_move(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_owner_loses_its_disk_what_object_storage_has_is_kept() {
    disk_is_lost_while_ranges_move(0).await;
}
