//! An operator before a cluster, and an HTTP client that adds nothing of its own.

use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Method, Request, StatusCode, body::Bytes};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use keydb_core::{ClusterMap, NodeId};
use keydb_node::NodeConfig;
use keydb_operator::{OperatorConfig, OperatorError};
use keydb_transport::ListenerSecurity;
use serde_json::Value;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

use crate::cluster::Cluster;

/// More than any call of a test may take.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct World {
    pub(crate) cluster: Cluster,
    at: String,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), OperatorError>>,
}

/// What the operator answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
    /// Null where it is no JSON.
    pub(crate) body: Value,
}

impl World {
    /// A cluster of so many nodes, and an operator that has found it.
    pub(crate) async fn start(nodes: usize) -> Self {
        let cluster = Cluster::start(nodes).await;
        let addresses: Vec<String> = cluster.sockets.iter().map(ToString::to_string).collect();
        let world = Self::of(cluster, OperatorConfig::new(addresses)).await;
        world.eventually("/ready").await;
        let map_has_all = async || {
            let map = world.map().await;
            map.nodes.iter().all(|node| node.disk_id.is_some())
        };
        while !map_has_all().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        world
    }

    /// An operator that finds no cluster.
    pub(crate) async fn without_cluster() -> Self {
        // One that it is not told of.
        let cluster = Cluster::start(1).await;
        Self::of(cluster, OperatorConfig::new(["127.0.0.1:1"])).await
    }

    async fn of(cluster: Cluster, config: OperatorConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap().to_string();
        let (stop, stopped) = oneshot::channel::<()>();
        let listener = (listener, ListenerSecurity::default());
        let ended = tokio::spawn(keydb_operator::run(config, listener, async {
            let _ = stopped.await;
        }));
        Self {
            cluster,
            at,
            stop,
            ended,
        }
    }

    async fn eventually(&self, path: &str) {
        let ready = async {
            while self.get(path).await.status != StatusCode::OK {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ready).await.unwrap();
    }

    pub(crate) async fn stop(mut self) {
        let nodes = self.cluster.running();
        for node in nodes {
            self.cluster.stop(node).await;
        }
        let _ = self.stop.send(());
        self.ended.await.unwrap().unwrap();
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.cluster
            .sockets
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    pub(crate) async fn map(&self) -> ClusterMap {
        self.cluster.map_store().load().await.unwrap().unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, "").await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, &body.to_string()).await
    }

    pub(crate) async fn claim_as(&self, key: &str, body: &Value) -> Answer {
        let request =
            Request::post(format!("http://{}/claim", self.at)).header("Idempotency-Key", key);
        let body = Full::new(Bytes::from(body.to_string()));
        Self::exchange(request.body(body).unwrap()).await
    }

    pub(crate) async fn send(&self, method: Method, path: &str, body: &str) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.at));
        let body = Full::new(Bytes::from(body.to_owned()));
        Self::exchange(request.body(body).unwrap()).await
    }

    async fn exchange(request: Request<Full<Bytes>>) -> Answer {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let asked = tokio::time::timeout(PATIENCE, client.request(request));
        let (head, body) = asked.await.unwrap().unwrap().into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            status: head.status,
            headers: head.headers,
            body: serde_json::from_slice(&bytes).unwrap_or_default(),
            text: String::from_utf8(bytes.to_vec()).unwrap(),
        }
    }
}

impl Answer {
    /// Its body, of a success.
    #[track_caller]
    pub(crate) fn ok(&self) -> &Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text);
        assert_eq!(self.body["success"], true, "{}", self.text);
        &self.body
    }

    #[track_caller]
    pub(crate) fn text(&self, text: &str) {
        assert_eq!((self.status, &*self.text), (StatusCode::OK, text));
    }

    /// Problem details with this status, whose text has all these words.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, words: &[&str]) {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        assert_eq!(self.headers["content-type"], "application/problem+json");
        assert_eq!(
            (&self.body["status"], &self.body["success"]),
            (&status.into(), &false.into())
        );
        let detail = self.body["detail"].as_str().unwrap();
        for word in words {
            assert!(detail.contains(word), "{word:?} is not in {detail:?}");
        }
    }
}

pub(crate) struct Spare {
    pub(crate) address: String,
    _task: tokio_util::task::AbortOnDropHandle<Result<(), keydb_node::NodeError>>,
}

/// A node that waits to become a member.
pub(crate) async fn spare(world: &World, id: u32) -> Spare {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = NodeConfig::new(NodeId(id));
    config.map_poll_interval = Duration::from_millis(20);
    let storage = world.cluster.map_store().storage().clone();
    let clock = std::sync::Arc::new(keydb_node::SystemClock::new());
    Spare {
        address: listener.local_addr().unwrap().to_string(),
        _task: tokio_util::task::AbortOnDropHandle::new(tokio::spawn(keydb_node::run(
            config,
            listener,
            storage,
            clock,
            std::future::pending(),
        ))),
    }
}
