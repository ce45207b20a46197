//! Scales a cluster up and down again and again while nodes, links, object storage and the operator fail, and checks that what clients
//! were told stays true.
//!
//! Nodes and `keydb scale` are processes of their own, object storage is the S3 server of the other tests, and each of them is reached
//! through a relay. Several things fail at the same time; which, when and for how long follows from a seed, which is printed and which
//! `TORTURE_SEED=` chooses. By default this is short. For hours:
//! `TORTURE_SECONDS=3600 scripts/minio with cargo test --release -p keydb-cli --test scale_torture -- --nocapture`.
//! With `TORTURE_DISK=` a directory on a small file system of its own, the nodes' disks become full now and then as well.

#![allow(clippy::unwrap_used, reason = "a test that fails here has failed")]

#[path = "torture/history.rs"]
mod history;
#[path = "torture/load.rs"]
mod load;
#[path = "torture/relay.rs"]
mod relay;
mod support;

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use history::{Told, violations};
use keydb_client::{AdminClient, Client, ClientConfig};
use keydb_storage::testing::TestBucket;
use load::{Choices, History, ask_for_all, ask_for_settled, seed, work};
use relay::{Link, Relay};
use rustix::process::Signal;
use support::{Process, free_ports, keydb};
use tempfile::TempDir;
use tokio::{task::JoinSet, time::sleep};

const SECONDS_DEFAULT: u64 = 20;
const NODES: usize = 5;
/// So many are members at the beginning, and at the end.
const BASE: usize = 3;
const WORKERS: usize = 6;
const SETTLE_INTERVAL: Duration = Duration::from_secs(2);
/// How long an operation may take when nothing fails any more, on a machine that does other things as well.
const HEALED_LIMIT: Duration = Duration::from_secs(180);

fn seconds() -> Duration {
    let text = std::env::var("TORTURE_SECONDS");
    Duration::from_secs(text.map_or(SECONDS_DEFAULT, |text| text.parse().unwrap()))
}

/// One node: its process, which is started again whenever it has ended, and the relay before it.
struct Node {
    id: usize,
    port: u16,
    dir: PathBuf,
    relay: Relay,
    process: Mutex<Option<Process>>,
    is_frozen: AtomicBool,
}

struct World {
    dir: TempDir,
    nodes: Vec<Node>,
    storage: Relay,
    storage_settings: Vec<(&'static str, String)>,
    /// Where the nodes' disks can be filled.
    small_disk: Option<PathBuf>,
    /// What must not have happened.
    broken: Mutex<Vec<String>>,
    ends: AtomicBool,
}

impl World {
    async fn start(durability: &str) -> (Arc<Self>, TestBucket) {
        let bucket = TestBucket::any().await;
        let endpoint = bucket.options.endpoint.clone().unwrap();
        let server = endpoint.trim_start_matches("http://").trim_end_matches('/');
        let storage = Relay::start(0, server.to_owned()).await;
        let (id, secret) = bucket.options.access_key.clone().unwrap();
        let storage_settings = vec![
            ("KEYDB_STORAGE_BUCKET", bucket.name.clone()),
            ("KEYDB_STORAGE_REGION", "us-east-1".to_owned()),
            (
                "KEYDB_STORAGE_ENDPOINT",
                format!("http://{}", storage.address),
            ),
            ("KEYDB_STORAGE_ACCESSKEYID", id),
            ("KEYDB_STORAGE_ACCESSKEY", secret),
        ];
        let dir = tempfile::tempdir().unwrap();
        let small_disk = std::env::var_os("TORTURE_DISK").map(PathBuf::from);
        let data = small_disk.clone().unwrap_or_else(|| dir.path().to_owned());
        let run = format!("{:x}", keydb_core::random::u64());
        let ports = free_ports(2 * NODES);
        let mut nodes = Vec::new();
        for id in 0..NODES {
            let port = ports[2 * id];
            nodes.push(Node {
                id,
                port,
                dir: data.join(format!("{run}-{id}")),
                relay: Relay::start(ports[2 * id + 1], format!("127.0.0.1:{port}")).await,
                process: Mutex::new(None),
                is_frozen: AtomicBool::new(false),
            });
        }
        let world = Arc::new(Self {
            dir,
            nodes,
            storage,
            storage_settings,
            small_disk,
            broken: Mutex::default(),
            ends: AtomicBool::new(false),
        });
        let mut init = keydb();
        init.arg("init")
            .env("KEYDB_NODE_ADDRESSES", world.addresses(BASE).join(","))
            .env("KEYDB_TOTAL_HASH_RANGES", "16")
            .env("KEYDB_DURABILITY", durability)
            .envs(world.storage_settings.iter().cloned());
        support::assert_code(&init.output().unwrap(), 0);
        for node in &world.nodes {
            let process = world.node_process(node);
            *node.process.lock().unwrap() = Some(process);
        }
        (world, bucket)
    }

    fn addresses(&self, count: usize) -> Vec<String> {
        let nodes = self.nodes.iter().take(count);
        nodes.map(|node| node.relay.address.to_string()).collect()
    }

    fn node_process(&self, node: &Node) -> Process {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.log(node.id))
            .unwrap();
        Process::start(
            keydb()
                .arg("node")
                .current_dir(self.dir.path())
                .env("KEYDB_NODE_ID", node.id.to_string())
                .env("KEYDB_PORT", node.port.to_string())
                .env("KEYDB_HTTP_PORT", "off")
                .env("KEYDB_DATA_DIR", &node.dir)
                .env("KEYDB_SNAPSHOT_INTERVAL", "2s")
                .env("KEYDB_MAP_POLL_INTERVAL", "200ms")
                .envs(self.storage_settings.iter().cloned())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log),
        )
    }

    fn log(&self, id: usize) -> PathBuf {
        self.dir.path().join(format!("node-{id}.log"))
    }

    /// A command for the cluster.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = keydb();
        command
            .args(args)
            .env("KEYDB_NODE_ADDRESSES", self.addresses(NODES).join(","))
            .stdin(Stdio::null());
        command
    }

    fn config(&self, call_timeout: Duration) -> ClientConfig {
        let mut config = ClientConfig::new(self.addresses(NODES));
        config.call_timeout = call_timeout;
        config.retry_delay = Duration::from_millis(20);
        config
    }

    async fn client(&self, call_timeout: Duration) -> Client {
        let begun = Instant::now();
        loop {
            match Client::connect(self.config(call_timeout)).await {
                Ok(client) => return client,
                Err(error) => assert!(begun.elapsed() < HEALED_LIMIT, "{error}\n{}", self.tails()),
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Starts nodes again that have ended. A node that has left ends with 0; nothing but a kill may end another one.
    async fn supervise(self: Arc<Self>) {
        while !self.ends.load(Ordering::SeqCst) {
            for node in &self.nodes {
                let mut process = node.process.lock().unwrap();
                let ended = process.as_mut().map(|it| it.child.try_wait().unwrap());
                if let Some(Some(status)) = ended {
                    if !status.success() && status.signal() != Some(9) {
                        let said = tail(&self.log(node.id), 5);
                        let what = format!("node {} ended with {status}:\n{said}", node.id);
                        self.broken.lock().unwrap().push(what);
                    }
                    *process = Some(self.node_process(node));
                }
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Sends a signal to a node that runs.
    fn signal(&self, id: usize, signal: Signal) {
        let mut process = self.nodes[id].process.lock().unwrap();
        if let Some(process) = process.as_mut()
            && process.child.try_wait().unwrap().is_none()
        {
            process.signal(signal);
        }
    }

    fn tails(&self) -> String {
        let logs = self.nodes.iter().map(|node| {
            let said = tail(&self.log(node.id), 15);
            format!("node {}:\n{said}\n", node.id)
        });
        logs.collect()
    }
}

fn tail(log: &Path, count: usize) -> String {
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
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
        let to = world.addresses(size).join(",");
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
    let (world, _bucket) = World::start(durability).await;
    let history = Arc::new(History::default());
    let mut workers = JoinSet::new();
    for worker in 0..WORKERS as u64 {
        // Some give up early, so that there are calls whose outcome nobody knows.
        let patience = Duration::from_millis(if worker % 3 == 0 { 300 } else { 60_000 });
        let client = world.client(patience).await;
        let history = Arc::clone(&history);
        workers.spawn(work(client, history, Choices::of(seed, worker)));
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
    let base = world.addresses(BASE);
    let begun = Instant::now();
    let map = loop {
        let admin = AdminClient::connect(world.config(Duration::from_secs(10))).await;
        let failure = match admin {
            Ok(admin) => match admin.auto_scale(&base, HEALED_LIMIT, |_| {}).await {
                Ok(_) => break admin.cluster_map(),
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        };
        assert!(
            begun.elapsed() < HEALED_LIMIT,
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
