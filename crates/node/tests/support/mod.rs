//! A node on port 0, and a client of its wire contract that adds nothing of its own.

#![allow(
    dead_code,
    reason = "each test file is its own crate and uses a part of this"
)]

pub(crate) mod cluster;

use std::{fs::File, path::Path, sync::Arc, time::Duration};

use keydb_core::{
    Bitmap, ClusterMap, Durability, Fingerprint, Incarnation, ManualClock, NewCluster, NodeId,
    OperationId, UnixMillis,
};
use keydb_node::{Guests, Limits, Listeners, NodeConfig, NodeError};
use keydb_proto::{
    error_code,
    shard::{
        ClaimReply, ClaimRequest, ErrorCode, GetMapRequest, GetRequest, NodeStatusReply,
        NodeStatusRequest, PutRequest, RangeKeys, RangeState, RequestHeader,
        shard_service_client::ShardServiceClient,
    },
};
use keydb_storage::{Init, MapStore, testing::FaultyStorage};
use keydb_transport::ListenerSecurity;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};
use tonic::{Status, transport::Channel};

pub(crate) type Client = ShardServiceClient<Channel>;

/// No step of a test takes so long unless something hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const START: UnixMillis = UnixMillis(1_700_000_000_000);

/// The storage and clock that the nodes of a test share.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) storage: Arc<FaultyStorage>,
}

/// A node that runs in this process.
pub(crate) struct RunningNode {
    pub(crate) address: String,
    /// Where probes and Prometheus ask.
    http: String,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), NodeError>>,
}

impl World {
    pub(crate) fn new() -> Self {
        let clock = Arc::new(ManualClock::new(START));
        let storage = Arc::new(FaultyStorage::new(Arc::clone(&clock)));
        Self { clock, storage }
    }

    pub(crate) fn maps(&self) -> MapStore {
        MapStore::new(Arc::clone(&self.storage) as _)
    }

    /// Creates a cluster of 8 ranges on these addresses that keeps nothing.
    pub(crate) async fn init(&self, addresses: &[&str]) -> ClusterMap {
        self.init_with(addresses, Durability::Memory).await
    }

    pub(crate) async fn init_with(&self, addresses: &[&str], durability: Durability) -> ClusterMap {
        let new = NewCluster {
            addresses: addresses
                .iter()
                .map(|address| (*address).to_owned())
                .collect(),
            range_count: 8,
            durability,
        };
        match self.maps().init(&new).await.unwrap() {
            Init::Created(map) => map,
            Init::Existing(_) => panic!("there is a cluster already"),
        }
    }

    /// Changes the map in the storage.
    pub(crate) async fn edit(&self, edit: impl Fn(&mut ClusterMap)) -> ClusterMap {
        self.maps()
            .update(|map| {
                let mut next = map.successor();
                edit(&mut next);
                Ok::<_, std::convert::Infallible>(Some(next))
            })
            .await
            .unwrap()
    }

    pub(crate) async fn map(&self) -> ClusterMap {
        self.maps().load().await.unwrap().unwrap()
    }

    pub(crate) fn start(&self, config: NodeConfig, listener: TcpListener) -> RunningNode {
        let address = address_of(&listener);
        let probes = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        probes.set_nonblocking(true).unwrap();
        let probes = TcpListener::from_std(probes).unwrap();
        let http = address_of(&probes);
        let listeners = Listeners {
            grpc: listener,
            http: Some(probes),
            guests: Guests::default(),
            security: ListenerSecurity::default(),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(keydb_node::run(
            config,
            listeners,
            Arc::clone(&self.storage) as _,
            Arc::clone(&self.clock) as _,
            async {
                let _ = stopped.await;
            },
        ));
        RunningNode {
            address,
            http,
            stop: Some(stop),
            task,
        }
    }

    pub(crate) fn header(&self, map: &ClusterMap, node: u32) -> RequestHeader {
        RequestHeader {
            cluster_id: map.cluster_id.to_bytes().to_vec().into(),
            lineage: map.lineage,
            epoch: map.epoch,
            target_node: node,
            not_after_unix_ms: self.now().plus(Duration::from_secs(10)).0,
        }
    }

    pub(crate) fn now(&self) -> UnixMillis {
        use keydb_core::Clock;
        self.clock.now()
    }
}

impl RunningNode {
    /// Asks the node to stop without waiting for it.
    pub(crate) fn ask_to_stop(&mut self) {
        self.stop.take();
    }

    /// Waits until the node has ended.
    pub(crate) async fn ended(self) -> Result<(), NodeError> {
        // Held to the end: dropping it would ask the node to stop.
        let _stop = self.stop;
        timeout(PATIENCE, self.task)
            .await
            .expect("the node does not end")
            .unwrap()
    }

    pub(crate) async fn stop(mut self) {
        self.ask_to_stop();
        self.ended().await.unwrap();
    }

    /// Ends the node without letting it finish anything.
    pub(crate) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    /// A client, once all the node's ranges are ready or closed.
    pub(crate) async fn loaded(&self) -> Client {
        let client = self.serving().await;
        eventually(async || {
            let status = status(&mut client.clone()).await;
            let loading = RangeState::Loading as i32;
            status.ranges.iter().all(|range| range.state != loading)
        })
        .await;
        client
    }

    /// What a probe or Prometheus gets: code and body.
    pub(crate) async fn http(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.http).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        (code, body.to_owned())
    }

    /// The value of a metric without labels.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.http("/metrics").await;
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap().parse().unwrap()
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(format!("http://{}", self.address))
            .await
            .unwrap()
    }

    /// A client, once the node answers for its ranges.
    pub(crate) async fn serving(&self) -> Client {
        let mut client = self.client().await;
        eventually(async || !status(&mut client.clone()).await.ranges.is_empty()).await;
        client
            .node_status(NodeStatusRequest::default())
            .await
            .unwrap();
        client
    }
}

/// One node of a one-node cluster, serving.
pub(crate) async fn one_node() -> (World, ClusterMap, RunningNode, Client) {
    one_node_with(config(0)).await
}

pub(crate) async fn one_node_within(limits: Limits) -> (World, ClusterMap, RunningNode, Client) {
    one_node_with(NodeConfig {
        limits,
        ..config(0)
    })
    .await
}

pub(crate) async fn one_node_with(config: NodeConfig) -> (World, ClusterMap, RunningNode, Client) {
    one_node_beside(&[], config).await
}

/// Node 0 of a cluster whose other nodes have these addresses.
pub(crate) async fn one_node_beside(
    others: &[&str],
    config: NodeConfig,
) -> (World, ClusterMap, RunningNode, Client) {
    let world = World::new();
    let listener = listen().await;
    let address = address_of(&listener);
    world.init(&[&[&*address][..], others].concat()).await;
    let node = world.start(config, listener);
    let client = node.serving().await;
    let map = world.map().await;
    (world, map, node, client)
}

pub(crate) fn config(id: u32) -> NodeConfig {
    NodeConfig {
        map_poll_interval: Duration::from_millis(20),
        ..NodeConfig::new(NodeId(id))
    }
}

pub(crate) async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

/// For a node that begins again, once nothing of its last run has its address or its directory: threads of a node that was killed may
/// end a moment after it.
pub(crate) async fn listen_again(address: &str, data_dir: &Path) -> TcpListener {
    eventually(async || match File::open(data_dir.join("lock")) {
        Ok(lock) => lock.try_lock().is_ok(),
        Err(_) => true,
    })
    .await;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

pub(crate) fn address_of(listener: &TcpListener) -> String {
    listener.local_addr().unwrap().to_string()
}

pub(crate) async fn status(client: &mut Client) -> NodeStatusReply {
    client
        .node_status(NodeStatusRequest::default())
        .await
        .unwrap()
        .into_inner()
}

pub(crate) fn incarnation(status: &NodeStatusReply) -> Incarnation {
    Incarnation::from_bytes(
        (*status.header.as_ref().unwrap().incarnation)
            .try_into()
            .unwrap(),
    )
}

pub(crate) async fn epoch(client: &mut Client) -> u64 {
    let request = GetMapRequest::default();
    let reply = client.get_map(request).await.unwrap().into_inner();
    reply.header.unwrap().epoch
}

/// Waits until `holds`.
pub(crate) async fn eventually(holds: impl AsyncFn() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.expect("it never came true");
}

/// The fingerprint of a key, as the cluster hashes it.
pub(crate) fn key(map: &ClusterMap, name: impl std::fmt::Display) -> Fingerprint {
    Fingerprint::of(name.to_string().as_bytes(), map.hash.seed).unwrap()
}

/// Numbered keys.
pub(crate) fn keys(map: &ClusterMap, numbers: std::ops::Range<u32>) -> Vec<Fingerprint> {
    numbers.map(|number| key(map, number)).collect()
}

/// Keys by range as they go into a request, and the order in which they do.
pub(crate) struct Grouped {
    pub(crate) ranges: Vec<RangeKeys>,
    pub(crate) fingerprints: Vec<u8>,
    /// The request's order, as indexes into the keys.
    pub(crate) order: Vec<usize>,
}

pub(crate) fn group(map: &ClusterMap, keys: &[Fingerprint], attempt: u32) -> Grouped {
    let mut order: Vec<usize> = (0..keys.len()).collect();
    order.sort_by_key(|index| map.range_index_of(keys[*index].top()));
    let fingerprints = order
        .iter()
        .flat_map(|index| keys[*index].to_bytes())
        .collect();
    let ranges = order
        .chunk_by(|a, b| map.range_index_of(keys[*a].top()) == map.range_index_of(keys[*b].top()))
        .map(|chunk| {
            let range = &map.ranges[map.range_index_of(keys[chunk[0]].top())];
            RangeKeys {
                range_id: range.id.0,
                generation: range.generation,
                key_count: chunk.len() as u32,
                attempt,
            }
        })
        .collect();
    Grouped {
        ranges,
        fingerprints,
        order,
    }
}

impl World {
    pub(crate) fn get_request(&self, map: &ClusterMap, keys: &[Fingerprint]) -> GetRequest {
        let grouped = group(map, keys, 0);
        GetRequest {
            header: Some(self.header(map, 0)),
            ranges: grouped.ranges,
            fingerprints: grouped.fingerprints.into(),
        }
    }

    pub(crate) fn put_request(
        &self,
        map: &ClusterMap,
        keys: &[Fingerprint],
        ttl: u32,
    ) -> PutRequest {
        let grouped = group(map, keys, 0);
        PutRequest {
            header: Some(self.header(map, 0)),
            ranges: grouped.ranges,
            fingerprints: grouped.fingerprints.into(),
            ttl_seconds: ttl,
            expiries: bytes::Bytes::new(),
        }
    }

    pub(crate) fn claim_request(
        &self,
        map: &ClusterMap,
        keys: &[Fingerprint],
        operation: OperationId,
        attempt: u32,
    ) -> ClaimRequest {
        let grouped = group(map, keys, attempt);
        ClaimRequest {
            header: Some(self.header(map, 0)),
            ranges: grouped.ranges,
            fingerprints: grouped.fingerprints.into(),
            ttl_seconds: 60,
            operation_id: operation.to_bytes().to_vec().into(),
            only_remembered: false,
        }
    }

    /// Whether each key is there, in the keys' order.
    pub(crate) async fn get(
        &self,
        client: &mut Client,
        map: &ClusterMap,
        keys: &[Fingerprint],
    ) -> Vec<bool> {
        let request = self.get_request(map, keys);
        let reply = client.get(request).await.unwrap().into_inner();
        assert_eq!(reply.refused, []);
        let present = Bitmap::from_bytes(reply.present.to_vec(), keys.len()).unwrap();
        let mut out = vec![false; keys.len()];
        for (bit, index) in group(map, keys, 0).order.iter().enumerate() {
            out[*index] = present.get(bit);
        }
        out
    }

    pub(crate) async fn claim(
        &self,
        client: &mut Client,
        map: &ClusterMap,
        keys: &[Fingerprint],
        operation: OperationId,
        attempt: u32,
    ) -> String {
        let request = self.claim_request(map, keys, operation, attempt);
        let reply = client.claim(request).await.unwrap().into_inner();
        answers(map, keys, &reply)
    }
}

/// `F`irst, `D`uplicate or `U`nknown for each key, in the keys' order.
pub(crate) fn answers(map: &ClusterMap, keys: &[Fingerprint], reply: &ClaimReply) -> String {
    let first = Bitmap::from_bytes(reply.first.to_vec(), keys.len()).unwrap();
    let unknown = if reply.unknown.is_empty() {
        Bitmap::new(keys.len())
    } else {
        Bitmap::from_bytes(reply.unknown.to_vec(), keys.len()).unwrap()
    };
    let mut out = vec!['?'; keys.len()];
    for (bit, index) in group(map, keys, 0).order.iter().enumerate() {
        out[*index] = match (first.get(bit), unknown.get(bit)) {
            (true, false) => 'F',
            (false, true) => 'U',
            (false, false) => 'D',
            (true, true) => panic!("first and unknown at once"),
        };
    }
    out.into_iter().collect()
}

/// Checks that a whole request was refused with this code and a message that has all of these words.
pub(crate) fn assert_refused<T: std::fmt::Debug>(
    result: Result<T, Status>,
    code: ErrorCode,
    words: &[&str],
) {
    let status = result.unwrap_err();
    assert_eq!(error_code(&status), Some(code), "{status:?}");
    for word in words {
        assert!(
            status.message().contains(word),
            "{word:?} is not in {:?}",
            status.message()
        );
    }
}
