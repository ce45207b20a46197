//! A cluster on a real S3 server, with the settings that its users have for one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs,
    process::{Command, Output},
    time::{Duration, Instant},
};

use keydb_storage::testing::TestBucket;
use serde_json::Value;
use support::{
    Process, assert_code, assert_says, free_ports, keydb, node, stderr, stdout, wait_for_line,
};
use tempfile::TempDir;

const NODES: usize = 3;

/// A cluster of nodes on one machine, in a bucket of its own.
struct Cluster {
    directory: TempDir,
    settings: Vec<(&'static str, String)>,
    ports: Vec<u16>,
}

impl Cluster {
    /// Created, and not started; `None` where there is no S3 server.
    fn create(interval: &str) -> Option<Self> {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let bucket = runtime.block_on(TestBucket::new())?;
        let (id, secret) = bucket.options.access_key.clone().unwrap();
        let ports = free_ports(NODES);
        let addresses: Vec<_> = ports
            .iter()
            .map(|port| format!("127.0.0.1:{port}"))
            .collect();
        let cluster = Self {
            directory: tempfile::tempdir().unwrap(),
            settings: vec![
                ("KEYDB_STORAGE_BUCKET", bucket.name.clone()),
                ("KEYDB_STORAGE_REGION", "us-east-1".to_owned()),
                (
                    "KEYDB_STORAGE_ENDPOINT",
                    bucket.options.endpoint.clone().unwrap(),
                ),
                ("KEYDB_STORAGE_ACCESSKEYID", id),
                ("KEYDB_STORAGE_ACCESSKEY", secret),
                ("KEYDB_SNAPSHOT_INTERVAL", interval.to_owned()),
                ("KEYDB_NODE_ADDRESSES", addresses.join(",")),
            ],
            ports,
        };
        assert_code(&cluster.run(&["init"]), 0);
        Some(cluster)
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command: Command = keydb();
        command
            .args(args)
            .current_dir(self.directory.path())
            .envs(self.settings.iter().cloned());
        command.output().unwrap()
    }

    #[track_caller]
    fn answer(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_code(&output, 0);
        stdout(&output)
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.answer(args)).unwrap()
    }

    /// All nodes, which may or may not come to serve.
    fn launch(&self) -> Vec<Process> {
        let start = |(id, port): (usize, &u16)| {
            let own = [
                ("KEYDB_NODE_ID", id.to_string()),
                ("KEYDB_PORT", port.to_string()),
                ("KEYDB_DATA_DIR", format!("data-{id}")),
            ];
            let settings = self.settings.iter().chain(&own);
            let settings: Vec<_> = settings
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            node(self.directory.path(), &settings)
        };
        self.ports.iter().enumerate().map(start).collect()
    }

    fn start(&self) -> Vec<Process> {
        let mut nodes = self.launch();
        for node in &mut nodes {
            wait_for_line(node, "keys are loaded");
        }
        nodes
    }

    fn put(&self, file: &str, keys: std::ops::Range<usize>) {
        let lines: String = keys.map(|key| format!("key-{key}\n")).collect();
        fs::write(self.directory.path().join(file), lines).unwrap();
        self.answer(&["import", file, "--ttl", "30d"]);
    }

    /// How many of these keys are present.
    fn present(&self, keys: std::ops::Range<usize>) -> usize {
        let keys: Vec<_> = keys.map(|key| format!("key-{key}")).collect();
        let mut args = vec!["get"];
        args.extend(keys.iter().map(String::as_str));
        let answer = self.answer(&args);
        let lines = answer.lines();
        lines.filter(|line| line.starts_with("present")).count()
    }
}

#[test]
fn a_cluster_whose_disks_are_all_lost_comes_back_from_s3_up_to_the_named_moment() {
    let Some(cluster) = Cluster::create("60s") else {
        return;
    };
    let nodes = cluster.start();
    cluster.put("before.txt", 0..50_000);
    let made = cluster.json(&["snapshot", "create", "--json"]);
    let verified = cluster.json(&["snapshot", "verify", "--json"]);
    assert_eq!(verified["whole"], true, "{verified}");
    cluster.put("after.txt", 50_000..50_100);
    // Killed, every one of them, and their disks are gone.
    drop(nodes);
    for id in 0..NODES {
        fs::remove_dir_all(cluster.directory.path().join(format!("data-{id}"))).unwrap();
    }
    for (id, mut stranger) in cluster.launch().into_iter().enumerate() {
        let consent = format!("keydb recover --node {id} --accept-loss");
        wait_for_line(&mut stranger, &consent);
        assert_eq!(stranger.child.wait().unwrap().code(), Some(1));
    }
    for id in 0..NODES {
        let complete_to = made["nodes"][id]["complete_to"].as_str().unwrap();
        let id = id.to_string();
        let asked = cluster.run(&["recover", "--node", &id]);
        assert_code(&asked, 2);
        let given_up = cluster.answer(&["recover", "--node", &id, "--accept-loss"]);
        for said in [stderr(&asked), given_up] {
            assert!(said.contains(&format!("up to {complete_to}")), "{said}");
        }
    }
    let _nodes = cluster.start();
    assert_eq!(cluster.present(0..1000), 1000);
    assert_eq!(cluster.present(49_000..50_000), 1000);
    assert_eq!(cluster.present(50_000..50_100), 0);
    let status = cluster.answer(&["status"]);
    assert_eq!(
        status.matches("once, last at 20").count(),
        NODES,
        "{status}"
    );
}

#[test]
fn snapshots_go_to_s3_by_themselves_and_what_is_kept_there_is_verified() {
    let Some(cluster) = Cluster::create("1s") else {
        return;
    };
    let _nodes = cluster.start();
    cluster.put("keys.txt", 0..10_000);
    let give_up = Instant::now() + Duration::from_secs(120);
    loop {
        let found = cluster.json(&["snapshot", "verify", "--json"]);
        let nodes = found["nodes"].as_array().unwrap();
        let entries: u64 = nodes
            .iter()
            .filter_map(|node| node["entries"].as_u64())
            .sum();
        if entries >= 10_000 {
            assert_eq!(found["whole"], true, "{found}");
            break;
        }
        assert!(Instant::now() < give_up, "{found}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_bucket_that_is_not_there_stops_the_start_by_name() {
    let Some(cluster) = Cluster::create("60s") else {
        return;
    };
    let mut command = keydb();
    command
        .arg("init")
        .envs(cluster.settings.iter().cloned())
        .env("KEYDB_STORAGE_BUCKET", "no-such-bucket");
    let refused = command.output().unwrap();
    assert_says(&refused, 1, &["no-such-bucket"]);
}
