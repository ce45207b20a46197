//! A cluster of real processes on an S3 server, all of them behind links that can fail.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    collections::VecDeque,
    fs::File,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use keydb_client::{AdminClient, Client, ClientConfig};
use keydb_storage::testing::TestBucket;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::time::sleep;

use crate::{
    relay::Relay,
    support::{self, Process, free_ports, keydb, tail},
};

/// More than anything may take where nothing fails, on a machine that does other things as well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// One node: its process, which is started again whenever it has ended, and the relay before it.
pub(crate) struct Node {
    id: usize,
    port: u16,
    /// Its data directory.
    pub(crate) dir: PathBuf,
    pub(crate) relay: Relay,
    process: Mutex<Option<Process>>,
    pub(crate) is_frozen: AtomicBool,
    /// It is not started again.
    pub(crate) stays_down: AtomicBool,
    /// The fail points of its next starts.
    failpoints: Mutex<VecDeque<String>>,
}

/// The members, as their places among the world's nodes.
pub(crate) type Members = &'static [usize];

pub(crate) struct World {
    dir: TempDir,
    pub(crate) nodes: Vec<Node>,
    pub(crate) storage: Relay,
    storage_settings: Vec<(&'static str, String)>,
    /// Where the nodes' disks can be filled.
    pub(crate) small_disk: Option<PathBuf>,
    /// What must not have happened.
    pub(crate) broken: Mutex<Vec<String>>,
    pub(crate) ends: AtomicBool,
    _bucket: TestBucket,
}

impl World {
    /// So many nodes that run, the first `members` of which are the cluster.
    pub(crate) async fn start(durability: &str, nodes: usize, members: usize) -> Arc<Self> {
        let bucket = TestBucket::any().await;
        Self::start_with(durability, nodes, members, bucket, &[]).await
    }

    /// The same in this bucket, with fail points: of a node's first start, of its second one, and so on.
    pub(crate) async fn start_with(
        durability: &str,
        nodes: usize,
        members: usize,
        bucket: TestBucket,
        failpoints: &[(usize, String)],
    ) -> Arc<Self> {
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
        let ports = free_ports(2 * nodes);
        let mut started = Vec::new();
        for id in 0..nodes {
            let port = ports[2 * id];
            started.push(Node {
                id,
                port,
                dir: data.join(format!("{run}-{id}")),
                relay: Relay::start(ports[2 * id + 1], format!("127.0.0.1:{port}")).await,
                process: Mutex::new(None),
                is_frozen: AtomicBool::new(false),
                stays_down: AtomicBool::new(false),
                failpoints: Mutex::new(
                    failpoints
                        .iter()
                        .filter(|(node, _)| *node == id)
                        .map(|(_, points)| points.clone())
                        .collect(),
                ),
            });
        }
        let world = Arc::new(Self {
            dir,
            nodes: started,
            storage,
            storage_settings,
            small_disk,
            broken: Mutex::default(),
            ends: AtomicBool::new(false),
            _bucket: bucket,
        });
        let mut init = keydb();
        init.arg("init")
            .env(
                "KEYDB_NODE_ADDRESSES",
                world.addresses(0..members).join(","),
            )
            .env("KEYDB_TOTAL_HASH_RANGES", "16")
            .env("KEYDB_DURABILITY", durability)
            .envs(world.storage_settings.iter().cloned());
        support::assert_code(&init.output().unwrap(), 0);
        for node in &world.nodes {
            let process = world.node_process(node);
            *node.process.lock().unwrap() = Some(process);
        }
        world
    }

    pub(crate) fn addresses(&self, nodes: impl IntoIterator<Item = usize>) -> Vec<String> {
        let nodes = nodes.into_iter();
        nodes
            .map(|node| self.nodes[node].relay.address.to_string())
            .collect()
    }

    fn all_addresses(&self) -> Vec<String> {
        self.addresses(0..self.nodes.len())
    }

    fn node_process(&self, node: &Node) -> Process {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.log(node.id))
            .unwrap();
        let failpoints = node.failpoints.lock().unwrap().pop_front();
        Process::start(
            keydb()
                .arg("node")
                .envs(failpoints.map(|points| ("FAILPOINTS", points)))
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

    /// A command for the cluster, which may reach its storage as well.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = keydb();
        command
            .args(args)
            .env("KEYDB_NODE_ADDRESSES", self.all_addresses().join(","))
            .envs(self.storage_settings.iter().cloned())
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn config(&self, call_timeout: Duration) -> ClientConfig {
        let mut config = ClientConfig::new(self.all_addresses());
        config.call_timeout = call_timeout;
        config.retry_delay = Duration::from_millis(20);
        config
    }

    pub(crate) async fn client(&self, call_timeout: Duration) -> Client {
        let begun = Instant::now();
        loop {
            match Client::connect(self.config(call_timeout)).await {
                Ok(client) => return client,
                Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}\n{}", self.tails()),
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Starts nodes again that have ended. A node that has left ends with 0; nothing but a kill may end another one.
    pub(crate) async fn supervise(self: Arc<Self>) {
        while !self.ends.load(Ordering::SeqCst) {
            for node in &self.nodes {
                let mut process = node.process.lock().unwrap();
                let ended = process.as_mut().map(|it| it.child.try_wait().unwrap());
                let stays_down = node.stays_down.load(Ordering::SeqCst);
                if let (Some(Some(status)), false) = (ended, stays_down) {
                    let said = tail(&self.log(node.id), 5);
                    // A node that begins with an empty directory on a full disk says so, and ends.
                    let is_full = self.small_disk.is_some() && said.contains("No space left");
                    // Of a node that has only just been started, SIGTERM may come before it listens for it.
                    let is_killed = matches!(status.signal(), Some(9 | 15));
                    if !status.success() && !is_full && !is_killed {
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
    pub(crate) fn signal(&self, id: usize, signal: Signal) {
        let mut process = self.nodes[id].process.lock().unwrap();
        if let Some(process) = process.as_mut()
            && process.child.try_wait().unwrap().is_none()
        {
            process.signal(signal);
        }
    }

    /// Whether a node's process is stopped.
    pub(crate) fn is_stopped(&self, id: usize) -> bool {
        let process = self.nodes[id].process.lock().unwrap();
        let stat = process.as_ref().and_then(|it| {
            let stat = format!("/proc/{}/stat", it.child.id());
            std::fs::read_to_string(stat).ok()
        });
        // Behind the name, which stands in parentheses.
        stat.is_some_and(|stat| stat.contains(") T "))
    }

    /// Has exactly these be the members, by one call.
    pub(crate) async fn scale_to(&self, members: Members) {
        let to = self.addresses(members.iter().copied()).join(",");
        let command = self.command(&["scale", "--to", &to, "--yes"]);
        let command = tokio::process::Command::from(command).output();
        let output = tokio::time::timeout(PATIENCE, command).await;
        let output = output.unwrap_or_else(|_| panic!("{members:?}: {}", self.tails()));
        support::assert_code(&output.unwrap(), 0);
        let admin = AdminClient::connect(self.config(PATIENCE)).await.unwrap();
        let map = loop {
            // Some of those that were asked may have heard of an older one last.
            assert!(admin.operation().await.unwrap().is_none());
            let map = admin.cluster_map();
            if map.nodes.len() == members.len() {
                break map;
            }
            sleep(Duration::from_millis(50)).await;
        };
        let ids: Vec<usize> = map.nodes.iter().map(|node| node.id.0 as usize).collect();
        assert_eq!(ids, members);
        let mut ranges = map.ranges.iter();
        assert!(ranges.all(|it| it.from.is_none() && it.successor.is_none()));
        let loads = members.iter().map(|id| {
            let owned = map.ranges.iter();
            owned.filter(|range| range.owner.0 as usize == *id).count()
        });
        let loads: Vec<usize> = loads.collect();
        assert!(
            loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1,
            "{loads:?}"
        );
    }

    pub(crate) fn tails(&self) -> String {
        let logs = self.nodes.iter().map(|node| {
            let said = tail(&self.log(node.id), 15);
            format!("node {}:\n{said}\n", node.id)
        });
        logs.collect()
    }
}
