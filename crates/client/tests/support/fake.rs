//! A node that says what a test wants.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use futures_util::future::BoxFuture;
use keydb_client::{Client, ClientConfig};
use keydb_core::{ClusterMap, Durability, NewCluster};
use keydb_proto::shard::{
    ClaimReply, ClaimRequest, CreateSnapshotsReply, CreateSnapshotsRequest, GetMapReply,
    GetMapRequest, GetReply, GetRequest, LoadSnapshotsReply, LoadSnapshotsRequest, NodeStatusReply,
    NodeStatusRequest, OpenRangeReply, OpenRangeRequest, PutReply, PutRequest, RangeKeys,
    RangeRefusal, RefusalCode, ReplyHeader,
    shard_service_server::{ShardService, ShardServiceServer},
};
use tokio::{net::TcpListener, task::JoinSet};
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

type Answer<T, R> = Box<dyn Fn(T) -> BoxFuture<'static, Result<R, Status>> + Send + Sync>;

/// What a fake node does; each may be changed before it starts.
pub struct Script {
    pub get: Answer<GetRequest, GetReply>,
    pub put: Answer<PutRequest, PutReply>,
    pub claim: Answer<ClaimRequest, ClaimReply>,
    pub get_map: Answer<GetMapRequest, GetMapReply>,
    pub create_snapshots: Answer<CreateSnapshotsRequest, CreateSnapshotsReply>,
    pub open_range: Answer<OpenRangeRequest, OpenRangeReply>,
}

pub struct Fake {
    pub address: SocketAddr,
    _serving: JoinSet<()>,
}

impl Fake {
    pub async fn start(listener: TcpListener, script: Script) -> Self {
        let address = listener.local_addr().unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            tonic::transport::Server::builder()
                .add_service(ShardServiceServer::new(Service(Arc::new(script))))
                .serve_with_incoming(TcpIncoming::from(listener))
                .await
                .unwrap();
        });
        Self {
            address,
            _serving: serving,
        }
    }

    pub fn config(&self) -> ClientConfig {
        ClientConfig::new([self.address.to_string()])
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.config()).await.unwrap()
    }
}

/// A port, and the map of a cluster with one node behind it.
pub async fn one_node(range_count: u32) -> (TcpListener, ClusterMap) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let map = ClusterMap::create(&NewCluster {
        addresses: vec![listener.local_addr().unwrap().to_string()],
        range_count,
        durability: Durability::Memory,
    })
    .unwrap();
    (listener, map)
}

impl Script {
    /// Serves the map, and nothing else.
    pub fn of(map: &ClusterMap) -> Self {
        let map = map.clone();
        Self {
            get: Box::new(|_| Box::pin(async { Err(Status::unimplemented("get")) })),
            put: Box::new(|_| Box::pin(async { Err(Status::unimplemented("put")) })),
            claim: Box::new(|_| Box::pin(async { Err(Status::unimplemented("claim")) })),
            get_map: Box::new(move |_| {
                let reply = map_reply(&map, NOW_MS);
                Box::pin(async { Ok(reply) })
            }),
            create_snapshots: Box::new(|_| {
                Box::pin(async { Err(Status::unimplemented("create_snapshots")) })
            }),
            open_range: Box::new(|_| {
                Box::pin(async { Err(Status::unimplemented("a fake has no disk")) })
            }),
        }
    }
}

/// A fake node's time: 2033.
pub const NOW_MS: u64 = 2_000_000_000_000;

pub fn header(epoch: u64, now_ms: u64) -> Option<ReplyHeader> {
    Some(ReplyHeader {
        node_id: 0,
        incarnation: vec![1; 16].into(),
        lineage: 1,
        epoch,
        node_time_unix_ms: now_ms,
    })
}

pub fn map_reply(map: &ClusterMap, now_ms: u64) -> GetMapReply {
    GetMapReply {
        header: header(map.epoch, now_ms),
        map_json: map.to_json().into(),
    }
}

/// A bitmap of ones.
pub fn all(ranges: &[RangeKeys]) -> bytes::Bytes {
    let keys: usize = ranges.iter().map(|range| range.key_count as usize).sum();
    let mut bits = vec![0xff; keys.div_ceil(8)];
    if !keys.is_multiple_of(8) {
        bits[keys / 8] = (1 << (keys % 8)) - 1;
    }
    bits.into()
}

pub fn all_first(ranges: &[RangeKeys]) -> ClaimReply {
    ClaimReply {
        header: header(1, NOW_MS),
        first: all(ranges),
        ..ClaimReply::default()
    }
}

pub fn refuse_all(ranges: &[RangeKeys], code: RefusalCode) -> Vec<RangeRefusal> {
    let refusal = |range: &RangeKeys| RangeRefusal {
        range_id: range.range_id,
        code: code.into(),
        message: "as the test wants".to_owned(),
        ..RangeRefusal::default()
    };
    ranges.iter().map(refusal).collect()
}

/// Things noted in order.
#[derive(Debug, Clone)]
pub struct Notes<T>(Arc<Mutex<Vec<T>>>);

impl<T: Clone> Notes<T> {
    pub fn new() -> Self {
        Self(Arc::default())
    }

    /// Notes one more; how many there were before.
    pub fn add(&self, note: T) -> usize {
        let mut notes = self.0.lock().unwrap();
        notes.push(note);
        notes.len() - 1
    }

    pub fn all(&self) -> Vec<T> {
        self.0.lock().unwrap().clone()
    }
}

struct Service(Arc<Script>);

#[tonic::async_trait]
impl ShardService for Service {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetReply>, Status> {
        (self.0.get)(request.into_inner()).await.map(Response::new)
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutReply>, Status> {
        (self.0.put)(request.into_inner()).await.map(Response::new)
    }

    async fn claim(&self, request: Request<ClaimRequest>) -> Result<Response<ClaimReply>, Status> {
        (self.0.claim)(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn get_map(
        &self,
        request: Request<GetMapRequest>,
    ) -> Result<Response<GetMapReply>, Status> {
        (self.0.get_map)(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn node_status(
        &self,
        _: Request<NodeStatusRequest>,
    ) -> Result<Response<NodeStatusReply>, Status> {
        Err(Status::unimplemented("node_status"))
    }

    async fn load_snapshots(
        &self,
        _: Request<LoadSnapshotsRequest>,
    ) -> Result<Response<LoadSnapshotsReply>, Status> {
        Err(Status::unimplemented("a fake has no disk"))
    }

    async fn open_range(
        &self,
        request: Request<OpenRangeRequest>,
    ) -> Result<Response<OpenRangeReply>, Status> {
        (self.0.open_range)(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn create_snapshots(
        &self,
        request: Request<CreateSnapshotsRequest>,
    ) -> Result<Response<CreateSnapshotsReply>, Status> {
        (self.0.create_snapshots)(request.into_inner())
            .await
            .map(Response::new)
    }
}
