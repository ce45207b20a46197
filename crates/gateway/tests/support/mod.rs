//! A gateway before a cluster, by both its doors.

use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode, body::Bytes};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use keydb_client::NodeId;
use keydb_gateway::{Cluster as Gateway, router, services};
use keydb_proto::text::node_service_client::NodeServiceClient;
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinSet};
use tonic::transport::{Channel, Server, server::TcpIncoming};

use crate::cluster::Cluster;

pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) http: String,
    grpc: String,
    /// They end with this.
    _serving: JoinSet<()>,
}

/// What came back over HTTP.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) kind: String,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("{self:?}"))
    }

    /// The lines of an answer.
    pub(crate) fn lines(&self) -> Vec<Value> {
        let lines = self.text.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Asserts that it was refused with this status, and that its words have all of these.
    pub(crate) fn refused(&self, status: u16, words: &[&str]) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.kind, "application/problem+json");
        let body = self.json();
        assert_eq!(body["status"], status);
        let detail = body["detail"].as_str().unwrap();
        for word in words {
            assert!(detail.contains(word), "{word:?} is not in {detail:?}");
        }
    }
}

impl World {
    /// A cluster of so many nodes, and a gateway that has found it.
    pub(crate) async fn start(nodes: usize) -> Self {
        let world = Self::not_found(nodes).await;
        world.gateway.find().await.unwrap();
        world
    }

    /// One that does not look for it.
    pub(crate) async fn not_found(nodes: usize) -> Self {
        let cluster = Cluster::start(nodes).await;
        let gateway = Arc::new(Gateway::new(cluster.config()));
        let mut serving = JoinSet::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let http = listener.local_addr().unwrap().to_string();
        let router = router(&gateway);
        serving.spawn(async move { axum::serve(listener, router).await.unwrap() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let grpc = format!("http://{}", listener.local_addr().unwrap());
        let server = Server::builder().add_routes(services(&gateway, NodeId(0)));
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        serving.spawn(async move { server.serve_with_incoming(incoming).await.unwrap() });
        Self {
            cluster,
            gateway,
            http,
            grpc,
            _serving: serving,
        }
    }

    pub(crate) async fn grpc(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::connect(self.grpc.clone()).await.unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(path, &[], body.to_string()).await
    }

    /// Sends a key a line.
    pub(crate) async fn post_lines(&self, path: &str, lines: &str) -> Answer {
        let kind = ("content-type", "application/x-ndjson");
        self.send(path, &[kind], lines.to_owned()).await
    }

    pub(crate) async fn send(&self, path: &str, headers: &[(&str, &str)], body: String) -> Answer {
        let mut request = Request::post(format!("http://{}{path}", self.http));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Self::exchange(request.body(Full::new(Bytes::from(body))).unwrap()).await
    }

    pub(crate) async fn fetch(&self, path: &str) -> Answer {
        let request = Request::get(format!("http://{}{path}", self.http));
        Self::exchange(request.body(Full::default()).unwrap()).await
    }

    async fn exchange(request: Request<Full<Bytes>>) -> Answer {
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let response = client.request(request).await.unwrap();
        let status = response.status();
        let kind = response.headers().get("content-type");
        let kind = kind.map_or("", |it| it.to_str().unwrap()).to_owned();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        Answer { status, kind, text }
    }
}
