//! A cluster of nodes on one machine, in the working directory of its commands.

use std::{
    fs,
    ops::Range,
    path::PathBuf,
    process::{Command, Output},
};

use keydb_storage::testing::TestBucket;
use serde_json::Value;
use tempfile::TempDir;

use super::{Process, assert_code, free_ports, keydb, node, stdout, wait_for_line};

pub(crate) const NODES: usize = 3;

#[derive(Debug)]
pub(crate) struct Cluster {
    directory: TempDir,
    pub(crate) settings: Vec<(&'static str, String)>,
    ports: Vec<u16>,
}

/// The settings of a storage in this bucket, below `prefix`, which begins with a slash or is empty.
pub(crate) fn s3(bucket: &TestBucket, prefix: &str) -> Vec<(&'static str, String)> {
    let (id, secret) = bucket.options.access_key.clone().unwrap();
    vec![
        ("KEYDB_STORAGE_BUCKET", format!("{}{prefix}", bucket.name)),
        ("KEYDB_STORAGE_REGION", "us-east-1".to_owned()),
        (
            "KEYDB_STORAGE_ENDPOINT",
            bucket.options.endpoint.clone().unwrap(),
        ),
        ("KEYDB_STORAGE_ACCESSKEYID", id),
        ("KEYDB_STORAGE_ACCESSKEY", secret),
    ]
}

impl Cluster {
    /// Created with these settings, and not started. Without a storage among them it is the directory `keydb-storage`.
    pub(crate) fn create(settings: Vec<(&'static str, String)>) -> Self {
        let ports = free_ports(NODES);
        let addresses: Vec<_> = ports.iter().map(|it| format!("127.0.0.1:{it}")).collect();
        let mut cluster = Self {
            directory: tempfile::tempdir().unwrap(),
            settings,
            ports,
        };
        let addresses = ("KEYDB_NODE_ADDRESSES", addresses.join(","));
        cluster.settings.push(addresses);
        assert_code(&cluster.run(&["init"]), 0);
        cluster
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = keydb();
        command
            .args(args)
            .current_dir(self.directory.path())
            .envs(self.settings.iter().cloned());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    #[track_caller]
    pub(crate) fn answer(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_code(&output, 0);
        stdout(&output)
    }

    #[track_caller]
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.answer(args)).unwrap()
    }

    /// All nodes, with these settings as well, which may or may not come to serve.
    pub(crate) fn launch(&self, more: &[(&str, &str)]) -> Vec<Process> {
        let start = |(id, port): (usize, &u16)| {
            let own = [
                ("KEYDB_NODE_ID", id.to_string()),
                ("KEYDB_PORT", port.to_string()),
                ("KEYDB_DATA_DIR", format!("data-{id}")),
            ];
            let settings = self.settings.iter().chain(&own);
            let settings = settings.map(|(name, value)| (*name, value.as_str()));
            let settings: Vec<_> = settings.chain(more.iter().copied()).collect();
            node(self.directory.path(), &settings)
        };
        self.ports.iter().enumerate().map(start).collect()
    }

    pub(crate) fn start(&self, more: &[(&str, &str)]) -> Vec<Process> {
        let mut nodes = self.launch(more);
        for node in &mut nodes {
            wait_for_line(node, "keys are loaded");
        }
        nodes
    }

    pub(crate) fn put(&self, keys: Range<usize>) {
        let lines: String = keys.map(|key| format!("key-{key}\n")).collect();
        fs::write(self.path("keys.txt"), lines).unwrap();
        self.answer(&["import", "keys.txt", "--ttl", "30d"]);
    }

    /// How many of these keys are present.
    pub(crate) fn present(&self, keys: Range<usize>) -> usize {
        let keys: Vec<_> = keys.map(|key| format!("key-{key}")).collect();
        let args = ["get"].into_iter().chain(keys.iter().map(String::as_str));
        let answer = self.answer(&args.collect::<Vec<_>>());
        let lines = answer.lines();
        lines.filter(|line| line.starts_with("present")).count()
    }

    /// Kills the nodes, and loses their disks.
    pub(crate) fn lose(&self, nodes: Vec<Process>) {
        drop(nodes);
        for id in 0..NODES {
            fs::remove_dir_all(self.path(&format!("data-{id}"))).unwrap();
        }
    }
}
