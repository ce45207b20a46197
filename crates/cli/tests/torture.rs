//! Kills a node again and again while it works, and checks that what clients were told stays true.
//!
//! The node is a process of its own; the clients and the history of what they were told live in this one, which outlives every
//! kill. By default this is short. For hours: `TORTURE_KILLS=1000 cargo test --release -p keydb-cli --test torture -- --nocapture`.
//! Each test prints its seed, `TORTURE_SEED=` chooses it.

#![allow(clippy::unwrap_used, reason = "a test that fails here has failed")]

#[path = "torture/history.rs"]
mod history;
#[path = "torture/load.rs"]
mod load;
mod support;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use history::{Told, violations};
use keydb_client::{AdminClient, Client, ClientConfig};
use load::{Choices, History, ask_for_all, seed, work};
use rustix::process::Signal;
use support::{Process, tail};
use tokio::{task::JoinSet, time::sleep};

const KILLS_DEFAULT: u64 = 6;
const WORKERS: usize = 8;

fn kills() -> u64 {
    std::env::var("TORTURE_KILLS").map_or(KILLS_DEFAULT, |text| text.parse().unwrap())
}

/// A cluster of one node, which can be killed and started again.
struct Cluster {
    dir: PathBuf,
    port: u16,
    durability: &'static str,
}

impl Cluster {
    fn start(&self) -> Process {
        let log = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.dir.join("node.log"))
            .unwrap();
        Process::start(
            support::keydb()
                .arg("node")
                .env("KEYDB_NODE_ID", "0")
                .env("KEYDB_INIT", "true")
                .env("KEYDB_NODE_ADDRESSES", self.address())
                .env("KEYDB_PORT", self.port.to_string())
                .env("KEYDB_HTTP_PORT", "off")
                .env("KEYDB_TOTAL_HASH_RANGES", "16")
                .env("KEYDB_DURABILITY", self.durability)
                .env("KEYDB_DATA_DIR", self.dir.join("data"))
                .env("KEYDB_SNAPSHOT_INTERVAL", "1s")
                .env(
                    "KEYDB_STORAGE_URL",
                    format!("file://{}", self.dir.join("storage").display()),
                )
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log),
        )
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn config(&self, call_timeout: Duration) -> ClientConfig {
        let mut config = ClientConfig::new([self.address()]);
        config.call_timeout = call_timeout;
        config.retry_delay = Duration::from_millis(20);
        config
    }

    async fn client(&self, call_timeout: Duration) -> Client {
        let connect = async {
            loop {
                match Client::connect(self.config(call_timeout)).await {
                    Ok(client) => return client,
                    Err(_) => sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let connected = tokio::time::timeout(Duration::from_secs(60), connect).await;
        connected.unwrap_or_else(|_| panic!("the node does not come up:\n{}", log_tail(&self.dir)))
    }
}

fn log_tail(dir: &Path) -> String {
    tail(&dir.join("node.log"), 30)
}

async fn torture(durability: &'static str) {
    let seed = seed();
    println!("{durability}: TORTURE_SEED={seed}");
    let mut choices = Choices::of(seed, WORKERS as u64);
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster {
        dir: dir.path().to_owned(),
        port: support::free_ports(1)[0],
        durability,
    };
    let history = Arc::new(History::default());
    let mut node = cluster.start();
    let mut workers = JoinSet::new();
    for worker in 0..WORKERS {
        // Some give up early, so that there are calls whose outcome nobody knows.
        let patience = Duration::from_millis(if worker % 4 == 0 { 300 } else { 30_000 });
        let client = cluster.client(patience).await;
        workers.spawn(work(
            client,
            Arc::clone(&history),
            Choices::of(seed, worker as u64),
            Duration::ZERO,
        ));
    }
    let mut admin_config = cluster.config(Duration::from_secs(5));
    admin_config.retry_count = Some(3);
    // What was acknowledged before is in a snapshot.
    let mut safe_until = 0;
    for kill in 0..kills() {
        sleep(Duration::from_millis(20 + choices.below(600))).await;
        if choices.below(3) == 0
            && let Ok(admin) = AdminClient::connect(admin_config.clone()).await
        {
            let before = history.tick();
            let made = admin.create_snapshots(choices.below(2) == 0).await;
            if made.iter().all(|(_, made)| made.is_ok()) {
                safe_until = before;
            }
            admin.close(Duration::ZERO).await;
            sleep(Duration::from_millis(choices.below(100))).await;
        }
        node.signal(Signal::KILL);
        drop(node);
        if durability == "snapshot" {
            history.doubt_since(safe_until);
        }
        node = cluster.start();
        if kill % 20 == 19 {
            println!("{durability}: {} kills", kill + 1);
        }
    }
    let client = cluster.client(Duration::from_secs(60)).await;
    sleep(Duration::from_millis(300)).await;
    history.stop.store(true, Ordering::SeqCst);
    while let Some(ended) = workers.join_next().await {
        ended.unwrap();
    }
    ask_for_all(&client, &history).await;
    client.close(Duration::ZERO).await;

    let events = history.events();
    let count = |told| events.iter().filter(|event| event.told == told).count();
    println!(
        "{durability}: {} kills, {} answers, {} first, {} stored, {} unknown, {} of calls that may have been applied",
        kills(),
        events.len(),
        count(Told::First),
        count(Told::Stored),
        count(Told::Unknown),
        count(Told::MaybeApplied)
    );
    assert!(count(Told::First) > 0 && count(Told::Duplicate) > 0);
    let found = violations(&events);
    assert!(
        found.is_empty(),
        "{} violations (TORTURE_SEED={seed}):\n{}\n{}",
        found.len(),
        found[..found.len().min(20)].join("\n"),
        log_tail(dir.path())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_journal_mode_nothing_that_was_told_becomes_untrue_by_a_kill() {
    torture("journal").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_snapshot_mode_a_kill_costs_only_what_came_since_the_last_snapshot() {
    torture("snapshot").await;
}
