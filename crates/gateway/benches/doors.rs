//! Keys as text over gRPC and over HTTP, beside the routing client and a bare tonic echo of the same messages, in one run.
//!
//! `cargo bench -p keydb-gateway --bench doors -- [--nodes N] [--keys N] [--callers N] [--seconds N] [--rounds N]`
//!
//! A cluster in this process that keeps nothing on disk, a gateway, and their callers share the machine. Each caller sends one call of
//! so many 36-byte keys after the other. Gets and puts are of 500,000 keys that are there, claims of new ones. The doors take turns;
//! each figure is the median of the rounds.
#![expect(
    clippy::print_stdout,
    reason = "a benchmark's result is what it prints"
)]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

#[path = "../../client/tests/support/cluster.rs"]
#[allow(dead_code, unreachable_pub, reason = "a part of it is used")]
mod cluster;
#[path = "../tests/support/mod.rs"]
#[allow(dead_code, reason = "a part of it is used")]
mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, Full};
use hyper::{Request, body::Bytes};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use keydb_client::{Client, Ttl};
use keydb_proto::text::{
    ClaimRequest, ClaimResponse, CreateSnapshotsRequest, CreateSnapshotsResponse,
    GetNodeInfoRequest, GetNodeInfoResponse, GetRequest, GetResponse, LoadSnapshotsRequest,
    LoadSnapshotsResponse, PutRequest, PutResponse, ScaleCompleteRequest, ScaleCompleteResponse,
    ScaleRequest, ScaleResponse,
    node_service_client::NodeServiceClient,
    node_service_server::{NodeService, NodeServiceServer},
};
use support::World;
use tokio::{net::TcpListener, task::JoinSet};
use tonic::{
    Response, Status,
    transport::{Channel, Server, server::TcpIncoming},
};

const PRESENT_KEYS: u64 = 500_000;
const TTL_SECONDS: i64 = 3600;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Get,
    Put,
    Claim,
}

/// Answers at once, and with as many answers.
struct Echo;

#[tonic::async_trait]
impl NodeService for Echo {
    async fn get(
        &self,
        request: tonic::Request<GetRequest>,
    ) -> Result<Response<GetResponse>, Status> {
        let exists = vec![true; request.into_inner().keys.len()];
        Ok(Response::new(GetResponse {
            exists,
            ..GetResponse::default()
        }))
    }

    async fn put(&self, _: tonic::Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        Ok(Response::new(PutResponse::default()))
    }

    async fn claim(
        &self,
        request: tonic::Request<ClaimRequest>,
    ) -> Result<Response<ClaimResponse>, Status> {
        let answers = vec![1; request.into_inner().keys.len()];
        Ok(Response::new(ClaimResponse {
            answers,
            ..ClaimResponse::default()
        }))
    }

    async fn get_node_info(
        &self,
        _: tonic::Request<GetNodeInfoRequest>,
    ) -> Result<Response<GetNodeInfoResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn create_snapshots(
        &self,
        _: tonic::Request<CreateSnapshotsRequest>,
    ) -> Result<Response<CreateSnapshotsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn load_snapshots(
        &self,
        _: tonic::Request<LoadSnapshotsRequest>,
    ) -> Result<Response<LoadSnapshotsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn scale(
        &self,
        _: tonic::Request<ScaleRequest>,
    ) -> Result<Response<ScaleResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn scale_complete(
        &self,
        _: tonic::Request<ScaleCompleteRequest>,
    ) -> Result<Response<ScaleCompleteResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// One way to the keys.
#[derive(Clone)]
enum Door {
    Routing(Client),
    Grpc(NodeServiceClient<Channel>),
    Http(HttpClient<HttpConnector, Full<Bytes>>, String),
}

impl Door {
    async fn call(&mut self, verb: Verb, keys: Vec<String>) {
        let namespace = String::new();
        match (self, verb) {
            (Self::Routing(client), Verb::Get) => drop(client.get(&keys).await.unwrap()),
            (Self::Routing(client), Verb::Put) => client.put(&keys, ttl()).await.unwrap(),
            (Self::Routing(client), Verb::Claim) => drop(client.claim(&keys, ttl()).await.unwrap()),
            (Self::Grpc(client), Verb::Get) => {
                let request = GetRequest { keys, namespace };
                client.get(request).await.unwrap();
            }
            (Self::Grpc(client), Verb::Put) => {
                let request = PutRequest {
                    keys,
                    ttl_seconds: TTL_SECONDS,
                    namespace,
                };
                client.put(request).await.unwrap();
            }
            (Self::Grpc(client), Verb::Claim) => {
                let request = ClaimRequest {
                    keys,
                    ttl_seconds: TTL_SECONDS,
                    operation: String::new(),
                    is_repeat: false,
                    namespace,
                };
                client.claim(request).await.unwrap();
            }
            (Self::Http(client, at), verb) => {
                let (path, body) = match verb {
                    Verb::Get => ("get", serde_json::json!({"keys": keys})),
                    Verb::Put => (
                        "put",
                        serde_json::json!({"keys": keys, "ttlSeconds": TTL_SECONDS}),
                    ),
                    Verb::Claim => (
                        "claim",
                        serde_json::json!({"keys": keys, "ttlSeconds": TTL_SECONDS}),
                    ),
                };
                let body = Full::new(Bytes::from(body.to_string()));
                let request = Request::post(format!("http://{at}/v1/{path}"));
                let response = client.request(request.body(body).unwrap()).await.unwrap();
                assert_eq!(response.status(), 200);
                let body = response.into_body().collect().await.unwrap().to_bytes();
                let _: serde_json::Value = serde_json::from_slice(&body).unwrap();
            }
        }
    }
}

fn ttl() -> Ttl {
    "1h".parse().unwrap()
}

/// 36 bytes, as a UUID has. Formatting would take longer than the call.
fn key(number: u64) -> String {
    let mut key = String::with_capacity(36);
    key.push_str("an event of yours: ");
    let digits = (0..17_u32).rev().map(|at| {
        let digit = number.checked_shr(4 * at).unwrap_or(0) & 15;
        char::from(b'a' + digit as u8)
    });
    key.extend(digits);
    key
}

/// Keys a second that go through a door.
async fn measure(door: &Door, verb: Verb, next_new: &Arc<AtomicU64>, settings: &Settings) -> f64 {
    let mut callers = JoinSet::new();
    let begun = Instant::now();
    let end = begun + settings.duration;
    for caller in 0..settings.callers {
        let (mut door, next_new, count) = (door.clone(), Arc::clone(next_new), settings.keys);
        callers.spawn(async move {
            let mut present = caller * 7919 * count;
            let mut calls = 0;
            while Instant::now() < end {
                let from = match verb {
                    Verb::Claim => PRESENT_KEYS + next_new.fetch_add(count, Relaxed),
                    Verb::Get | Verb::Put => {
                        present += count;
                        present % (PRESENT_KEYS - count)
                    }
                };
                door.call(verb, (from..from + count).map(key).collect())
                    .await;
                calls += 1;
            }
            calls
        });
    }
    let calls: u64 = callers.join_all().await.into_iter().sum();
    (calls * settings.keys) as f64 / begun.elapsed().as_secs_f64()
}

struct Settings {
    keys: u64,
    callers: u64,
    duration: Duration,
    rounds: u64,
}

async fn echo() -> NodeServiceClient<Channel> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = format!("http://{}", listener.local_addr().unwrap());
    let server = Server::builder().add_service(NodeServiceServer::new(Echo));
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true))));
    NodeServiceClient::connect(at).await.unwrap()
}

#[tokio::main]
async fn main() {
    let number_of = |name: &str, otherwise: u64| {
        let arguments: Vec<String> = std::env::args().collect();
        let at = arguments.iter().position(|argument| argument == name);
        at.map_or(otherwise, |at| {
            arguments[at + 1].parse().expect("a number follows")
        })
    };
    let settings = Settings {
        keys: number_of("--keys", 1000),
        callers: number_of("--callers", 8),
        duration: Duration::from_secs(number_of("--seconds", 2)),
        rounds: number_of("--rounds", 3),
    };
    let world = World::start(number_of("--nodes", 3) as usize).await;
    let client = world.cluster.client().await;
    let all: Vec<u64> = (0..PRESENT_KEYS).collect();
    for part in all.chunks(10_000) {
        client
            .put(part.iter().copied().map(key), ttl())
            .await
            .unwrap();
    }
    let http = HttpClient::builder(TokioExecutor::new()).build_http();
    let doors = [
        ("echo", Door::Grpc(echo().await)),
        ("routing client", Door::Routing(client)),
        ("text, gRPC", Door::Grpc(world.grpc().await)),
        ("text, HTTP", Door::Http(http, world.http.clone())),
    ];
    println!(
        "{} callers, {} keys a call, median of {} rounds of {} s each:",
        settings.callers,
        settings.keys,
        settings.rounds,
        settings.duration.as_secs()
    );
    let next_new = Arc::new(AtomicU64::new(0));
    for verb in [Verb::Get, Verb::Put, Verb::Claim] {
        let mut rates = vec![Vec::new(); doors.len()];
        for _ in 0..settings.rounds {
            for ((_, door), rates) in doors.iter().zip(&mut rates) {
                rates.push(measure(door, verb, &next_new, &settings).await);
            }
        }
        let medians: Vec<f64> = rates
            .into_iter()
            .map(|mut rates| {
                rates.sort_by(f64::total_cmp);
                rates[rates.len() / 2]
            })
            .collect();
        for ((name, _), rate) in doors.iter().zip(&medians) {
            println!(
                "{verb:?} {name:15} {:6.2} M keys/s  {:5.2} × echo  {:5.2} × routing client",
                rate / 1e6,
                rate / medians[0],
                rate / medians[1]
            );
        }
    }
}
