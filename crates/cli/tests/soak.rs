//! All doors of a cluster at once, for as long as one likes: no call fails, every answer is right, and memory stays what it is.
//!
//! `SOAK_SECONDS=3600 cargo test --release -p keydb-cli --test soak -- --nocapture` is the long form (`just soak`).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use keydb_client::{Claim, Client, ClientConfig};
use keydb_proto::text::{
    ClaimAnswer, ClaimRequest, GetRequest, node_service_client::NodeServiceClient,
};
use serde_json::{Value, json};
use support::{Process, cluster::NODES, free_ports, keydb, node, wait_for_line};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    runtime::Runtime,
    task::JoinSet,
};

const SECONDS: &str = "15";
/// Keys of a call. They live for a second, the least there is.
const KEYS: u64 = 500;
/// After so many calls a door takes the same keys again, which have expired by then: nodes keep expired keys for an hour, so that others
/// would only become more.
const ROUND: u64 = 100;
/// A round takes longer than keys live.
const ROUND_TIME: Duration = Duration::from_secs(5);
/// The memory of a node is looked at so often.
const LOOK: Duration = Duration::from_millis(500);
/// What a node's memory may grow by after its first half, besides a twentieth: buffers that fill up late.
const GROWTH_BYTES_MAX: u64 = 24 << 20;

struct World {
    _directory: tempfile::TempDir,
    nodes: Vec<Process>,
    addresses: Vec<String>,
    http: Vec<String>,
}

impl World {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ports = free_ports(2 * NODES);
        let (grpc, http) = ports.split_at(NODES);
        let at = |ports: &[u16]| -> Vec<String> {
            let addresses = ports.iter().map(|port| format!("127.0.0.1:{port}"));
            addresses.collect()
        };
        let (addresses, http) = (at(grpc), at(http));
        let listed = addresses.join(",");
        let created = keydb()
            .arg("init")
            .current_dir(directory.path())
            .env("KEYDB_NODE_ADDRESSES", &listed)
            .env("KEYDB_TOTAL_HASH_RANGES", "24")
            .output()
            .unwrap();
        support::assert_code(&created, 0);
        let start = |id: usize| {
            let [name, port, http_port] = [id, grpc[id].into(), ports[NODES + id].into()]
                .map(|number: usize| number.to_string());
            let data = format!("data-{id}");
            let settings = [
                ("KEYDB_NODE_ID", &*name),
                ("KEYDB_PORT", &*port),
                ("KEYDB_HTTP_PORT", &*http_port),
                ("KEYDB_DATA_DIR", &*data),
                ("KEYDB_SNAPSHOT_INTERVAL", "5s"),
                // What is remembered reaches its bound at once.
                ("KEYDB_ANSWER_MEMORY_BYTES", "1MiB"),
                ("KEYDB_LOG", "warn,keydb_gateway=info"),
            ];
            node(directory.path(), &settings)
        };
        let mut nodes: Vec<Process> = (0..NODES).map(start).collect();
        for node in &mut nodes {
            wait_for_line(node, "found the cluster");
        }
        Self {
            _directory: directory,
            nodes,
            addresses,
            http,
        }
    }

    /// What each node has of memory.
    fn resident(&self) -> Vec<u64> {
        let of = |node: &Process| {
            let status = fs::read_to_string(format!("/proc/{}/status", node.child.id())).unwrap();
            let line = status.lines().find(|line| line.starts_with("VmRSS:"));
            let kib = line.unwrap().split_whitespace().nth(1).unwrap();
            kib.parse::<u64>().unwrap() << 10
        };
        self.nodes.iter().map(of).collect()
    }
}

/// The calls of a door.
struct Calls<'a> {
    door: String,
    is_over: &'a AtomicBool,
    next: u64,
    round_began: tokio::time::Instant,
}

impl<'a> Calls<'a> {
    fn new(door: impl Into<String>, is_over: &'a AtomicBool) -> Self {
        Self {
            door: door.into(),
            is_over,
            next: 0,
            round_began: tokio::time::Instant::now() - ROUND_TIME,
        }
    }

    /// The number of the next call, and its keys, which no other door takes; nothing when it is over.
    async fn next(&mut self) -> Option<(u64, Vec<String>)> {
        let call = self.next;
        self.next += 1;
        if call.is_multiple_of(ROUND) {
            tokio::time::sleep_until(self.round_began + ROUND_TIME).await;
            self.round_began = tokio::time::Instant::now();
        }
        let (door, of_round) = (&self.door, call % ROUND);
        let keys = (0..KEYS).map(|key| format!("{door}-{of_round}-{key}"));
        let is_over = self.is_over.load(Relaxed);
        (!is_over).then(|| (call, keys.collect()))
    }
}

/// Until it is over: claims new keys, each of which is the first, and again, which is not, and asks for some that were never there.
async fn through_rust(addresses: Vec<String>, is_over: &AtomicBool, calls: &AtomicU64) {
    let client = Client::connect(ClientConfig::new(addresses)).await.unwrap();
    let [short, ttl] = ["1s", "1m"].map(|ttl| ttl.parse().unwrap());
    let mut all = Calls::new("rust", is_over);
    while let Some((call, keys)) = all.next().await {
        let claims = client.claim(&keys, short).await.unwrap();
        assert!(claims.iter().all(|claim| *claim == Claim::First));
        let one = format!("rust-one-{}", call % 100);
        client.put([&one], ttl).await.unwrap();
        assert_eq!(client.claim_one(&one, ttl).await.unwrap(), Claim::Duplicate);
        let absent = client.get(["never"]).await.unwrap();
        assert_eq!(absent, [false]);
        calls.fetch_add(4, Relaxed);
    }
}

async fn through_grpc(address: String, is_over: &AtomicBool, calls: &AtomicU64) {
    let mut client = NodeServiceClient::connect(format!("http://{address}"))
        .await
        .unwrap();
    let mut all = Calls::new(format!("grpc-{address}"), is_over);
    while let Some((_, keys)) = all.next().await {
        let claim = ClaimRequest {
            keys,
            ttl_seconds: 1,
            ..ClaimRequest::default()
        };
        let first = client.claim(claim).await.unwrap().into_inner();
        let firsts = first.answers.iter();
        let firsts = firsts.filter(|answer| **answer == ClaimAnswer::First as i32);
        assert_eq!(firsts.count() as u64, KEYS);
        let never = vec!["never".to_owned()];
        let get = GetRequest {
            keys: never,
            ..GetRequest::default()
        };
        let absent = client.get(get).await.unwrap().into_inner();
        assert_eq!(absent.exists, [false]);
        calls.fetch_add(2, Relaxed);
    }
}

/// JSON, and every tenth time a key a line.
async fn through_http(address: String, is_over: &AtomicBool, calls: &AtomicU64) {
    let mut stream = BufReader::new(TcpStream::connect(&address).await.unwrap());
    let mut all = Calls::new(&*address, is_over);
    while let Some((call, keys)) = all.next().await {
        let (query, kind, body) = if call % 10 == 9 {
            let lines: String = keys.iter().map(|key| format!("{}\n", json!(key))).collect();
            ("?ttl=1s", "application/x-ndjson", lines)
        } else {
            let body = json!({"keys": keys, "ttl": "1s"}).to_string();
            ("", "application/json", body)
        };
        let head = format!(
            "POST /v1/claim{query} HTTP/1.1\r\nHost: node\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body.as_bytes()).await.unwrap();
        let (status, answer) = answer(&mut stream).await;
        assert_eq!(status, 200, "{answer}");
        let firsts = if kind == "application/json" {
            let answer: Value = serde_json::from_str(&answer).unwrap();
            let claims = answer["claims"].as_array().unwrap();
            claims.iter().filter(|claim| **claim == "first").count()
        } else {
            answer.lines().filter(|line| line.contains("first")).count()
        };
        assert_eq!(firsts as u64, KEYS, "{answer}");
        calls.fetch_add(1, Relaxed);
    }
}

/// Reads an answer of HTTP/1.1, whole or in chunks.
async fn answer(stream: &mut BufReader<TcpStream>) -> (u16, String) {
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    let status = line.split(' ').nth(1).unwrap().parse().unwrap();
    let (mut length, mut is_chunked) = (0, false);
    loop {
        line.clear();
        stream.read_line(&mut line).await.unwrap();
        let header = line.trim_end().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length: ") {
            length = value.parse().unwrap();
        }
        is_chunked |= header == "transfer-encoding: chunked";
    }
    let mut body = Vec::new();
    loop {
        if is_chunked {
            line.clear();
            stream.read_line(&mut line).await.unwrap();
            length = usize::from_str_radix(line.trim_end(), 16).unwrap();
        }
        let begin = body.len();
        body.resize(begin + length, 0);
        stream.read_exact(&mut body[begin..]).await.unwrap();
        if !is_chunked {
            break;
        }
        line.clear();
        stream.read_line(&mut line).await.unwrap();
        if length == 0 {
            break;
        }
    }
    (status, String::from_utf8(body).unwrap())
}

#[test]
fn no_call_fails_and_memory_stays_what_it_is_through_all_doors() {
    let seconds = std::env::var("SOAK_SECONDS");
    let seconds: u64 = seconds.as_deref().unwrap_or(SECONDS).parse().unwrap();
    let world = World::start();
    let runtime = Runtime::new().unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let calls: Arc<[AtomicU64; 3]> = Arc::default();
    let mut load = JoinSet::new();
    for id in 0..NODES {
        let addresses = world.addresses.clone();
        let (over, count) = (Arc::clone(&is_over), Arc::clone(&calls));
        let (address, http) = (world.addresses[id].clone(), world.http[id].clone());
        if id == 0 {
            let (over, count) = (Arc::clone(&over), Arc::clone(&count));
            load.spawn_on(
                async move { through_rust(addresses, &over, &count[0]).await },
                runtime.handle(),
            );
        }
        let (over_too, count_too) = (Arc::clone(&over), Arc::clone(&count));
        load.spawn_on(
            async move { through_grpc(address, &over_too, &count_too[1]).await },
            runtime.handle(),
        );
        load.spawn_on(
            async move { through_http(http, &over, &count[2]).await },
            runtime.handle(),
        );
    }
    let begun = Instant::now();
    let mut looks = Vec::new();
    while begun.elapsed() < Duration::from_secs(seconds) {
        thread::sleep(LOOK);
        looks.push(world.resident());
        assert!(load.try_join_next().is_none(), "a door's load has ended");
    }
    is_over.store(true, Relaxed);
    runtime.block_on(async {
        while let Some(ended) = load.join_next().await {
            ended.unwrap();
        }
    });
    let calls: Vec<u64> = calls.iter().map(|count| count.load(Relaxed)).collect();
    println!("calls: {calls:?} through the Rust client, gRPC, HTTP");
    assert!(calls.iter().all(|count| *count > 10), "{calls:?}");
    let (early, late) = looks.split_at(looks.len() / 2);
    for id in 0..NODES {
        let most = |looks: &[Vec<u64>]| looks.iter().map(|look| look[id]).max().unwrap();
        let (before, after) = (most(early), most(late));
        println!(
            "node {id}: {before} bytes of memory at most in the first half, {after} in the second"
        );
        assert!(
            after <= before + before / 20 + GROWTH_BYTES_MAX,
            "node {id}: {before} bytes, then {after}"
        );
    }
}
