//! The gRPC server: connections in, and an end to them.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt, future::Map};
use keydb_proto::{
    refusal_status,
    shard::{
        ErrorCode, admin_service_server::AdminServiceServer,
        move_service_server::MoveServiceServer, shard_service_server::ShardServiceServer,
    },
};
use keydb_storage::MapStore;
use keydb_transport::{GrpcAccess, Incoming, ListenerSecurity, Protocol, Unread};
use tokio::{
    net::TcpListener,
    time::{Timeout, error::Elapsed, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{
    Code, Status,
    body::Body,
    codegen::{Service as TowerService, http},
    server::NamedService,
    service::Routes,
    transport::Server,
};
use tower_layer::layer_fn;

use crate::{
    moving::MoveRequests,
    node::Node,
    server::{admin::Admin, health, service::Service, snapshots::SNAPSHOT_TIMEOUT},
};

/// How long a request may take from its first byte on: a caller that never sends the rest does not hold it for ever.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// The same of one that waits for a snapshot, which says itself how far it got before that.
const SNAPSHOT_REQUEST_TIMEOUT: Duration = SNAPSHOT_TIMEOUT.saturating_add(REQUEST_TIMEOUT);
const SNAPSHOT_PATHS: [&str; 3] = [
    "/keydb.shard.v1.ShardService/CreateSnapshots",
    "/keydb.shard.v1.ShardService/OpenRange",
    "/keydb.shard.v1.ShardService/LoadSnapshots",
];

/// A connection whose other end is silent for so long is asked whether it still lives, and cut off without an answer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// What is asked of health and reflection is short.
const QUESTION_BYTES_MAX: usize = 4 << 10;

/// All headers of a request together.
const HEADERS_BYTES_MAX: u32 = 16 << 10;
/// Requests of a connection that were given up before the node looked at them; a caller that makes more is cut off, since it would
/// cost the node more than itself.
const RESETS_PENDING_MAX: usize = 256;

/// What may be sent to the node before it says that it has read it. Room for many requests in flight on one connection.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// Serves the connections that `listener` accepts, until `stop`; then until the last request in progress has ended, or `cut`.
pub(crate) async fn serve(
    node: Arc<Node>,
    store: MapStore,
    (listener, security): (TcpListener, ListenerSecurity),
    (guests, guest_names): (Routes, Vec<&'static str>),
    stop: CancellationToken,
    cut: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let limits = &node.config.limits;
    // One connection may use all that the node admits, and ask for its status besides.
    let streams_max = u32::try_from(limits.requests_in_flight_max)
        .unwrap_or(u32::MAX)
        .saturating_add(16);
    let service = ShardServiceServer::new(Service(Arc::clone(&node)))
        .max_decoding_message_size(limits.message_bytes_max);
    let moves = MoveServiceServer::new(MoveRequests(Arc::clone(&node)))
        .max_decoding_message_size(limits.message_bytes_max);
    let admin = AdminServiceServer::new(Admin {
        node: Arc::clone(&node),
        store,
    })
    .max_decoding_message_size(limits.message_bytes_max);
    const DESCRIBED: &str = "the descriptors are compiled in";
    let reflection_v1 = health::reflection().build_v1().expect(DESCRIBED);
    let reflection_v1alpha = health::reflection().build_v1alpha().expect(DESCRIBED);
    let (told, health) = tonic_health::server::health_reporter();
    let health = health.max_decoding_message_size(QUESTION_BYTES_MAX);
    let reflection_v1 = reflection_v1.max_decoding_message_size(QUESTION_BYTES_MAX);
    let reflection_v1alpha = reflection_v1alpha.max_decoding_message_size(QUESTION_BYTES_MAX);
    let named = [
        "",
        ShardServiceServer::<Service>::NAME,
        AdminServiceServer::<Admin>::NAME,
        MoveServiceServer::<MoveRequests>::NAME,
    ];
    let names = [&named[..], &guest_names].concat();
    let _tells = AbortOnDropHandle::new(tokio::spawn(health::tell(node, told, names)));
    let (access, unread) = (security.access, Unread::default());
    let incoming = Incoming::new(listener, security.tls, Protocol::Grpc, cut);
    Server::builder()
        .max_concurrent_streams(streams_max)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(HEADERS_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESETS_PENDING_MAX))
        .layer(layer_fn(move |inner| {
            GrpcAccess::new(access.clone(), unread.clone(), inner)
        }))
        .add_routes(guests)
        .add_service(NamedLimit(service))
        .add_service(NamedLimit(admin))
        .add_service(NamedLimit(moves))
        .add_service(NamedLimit(health))
        .add_service(NamedLimit(reflection_v1))
        .add_service(NamedLimit(reflection_v1alpha))
        .serve_with_incoming_shutdown(incoming.into_stream(), stop.cancelled_owned())
        .await
}

/// Names the limit, and says that nothing was applied, where the server below refuses a message for its size. Ends what takes too
/// long.
#[derive(Debug, Clone)]
struct NamedLimit<S>(S);

type Answer = Result<http::Response<Body>, Infallible>;

impl<S, B> TowerService<http::Request<B>> for NamedLimit<S>
where
    S: TowerService<http::Request<B>, Response = http::Response<Body>, Error = Infallible>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Map<Timeout<S::Future>, fn(Result<Answer, Elapsed>) -> Answer>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let longest = if SNAPSHOT_PATHS.contains(&request.uri().path()) {
            SNAPSHOT_REQUEST_TIMEOUT
        } else {
            REQUEST_TIMEOUT
        };
        timeout(longest, self.0.call(request)).map(|answer| match answer {
            Ok(answer) => name_the_limit(answer),
            Err(_) => Ok(Status::deadline_exceeded("the request took too long").into_http()),
        })
    }
}

impl<S: NamedService> NamedService for NamedLimit<S> {
    const NAME: &'static str = S::NAME;
}

fn name_the_limit(answer: Answer) -> Answer {
    answer.map(|response| {
        // No request is answered with this code; the server gives it to a message that it does not decode.
        let too_large = response
            .extensions()
            .get::<Status>()
            .filter(|status| status.code() == Code::OutOfRange);
        match too_large {
            Some(status) => refusal_status(
                ErrorCode::InvalidRequest,
                format!(
                    "the request is larger than message_bytes_max: {}; nothing was applied",
                    status.message()
                ),
            )
            .into_http(),
            None => response,
        }
    })
}

#[cfg(test)]
mod tests {
    use keydb_transport::Role;
    use prost::Message;

    /// What each method needs, in alphabetical order. A new one has to be put here.
    const NEEDED: &[(&str, Role)] = &[
        ("/keydb.NodeService/Claim", Role::Write),
        ("/keydb.NodeService/CreateSnapshots", Role::Admin),
        ("/keydb.NodeService/Get", Role::Read),
        ("/keydb.NodeService/GetNodeInfo", Role::Read),
        ("/keydb.NodeService/LoadSnapshots", Role::Admin),
        ("/keydb.NodeService/Put", Role::Write),
        ("/keydb.NodeService/Scale", Role::Admin),
        ("/keydb.NodeService/ScaleComplete", Role::Admin),
        ("/keydb.shard.v1.AdminService/AbortScale", Role::Admin),
        ("/keydb.shard.v1.AdminService/Backup", Role::Admin),
        ("/keydb.shard.v1.AdminService/Scale", Role::Admin),
        ("/keydb.shard.v1.AdminService/ScaleComplete", Role::Admin),
        ("/keydb.shard.v1.MoveService/Session", Role::Admin),
        ("/keydb.shard.v1.MoveService/Tell", Role::Admin),
        ("/keydb.shard.v1.ShardService/Claim", Role::Write),
        ("/keydb.shard.v1.ShardService/CreateSnapshots", Role::Admin),
        ("/keydb.shard.v1.ShardService/Get", Role::Read),
        ("/keydb.shard.v1.ShardService/GetMap", Role::Read),
        ("/keydb.shard.v1.ShardService/LoadSnapshots", Role::Admin),
        ("/keydb.shard.v1.ShardService/NodeStatus", Role::Read),
        ("/keydb.shard.v1.ShardService/OpenRange", Role::Admin),
        ("/keydb.shard.v1.ShardService/Put", Role::Write),
    ];

    #[test]
    fn every_method_needs_what_its_callers_have() {
        let set = prost_types::FileDescriptorSet::decode(keydb_proto::DESCRIPTORS).unwrap();
        let mut found = Vec::new();
        for file in &set.file {
            for service in &file.service {
                let service_name = format!("{}.{}", file.package(), service.name());
                for method in &service.method {
                    let path = format!("/{service_name}/{}", method.name());
                    let role = Role::of_grpc(&path).unwrap();
                    found.push((path, role));
                }
            }
        }
        found.sort();
        let found: Vec<_> = found.iter().map(|(path, role)| (&**path, *role)).collect();
        assert_eq!(found, NEEDED);
    }
}
