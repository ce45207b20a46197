//! The gRPC server: connections in, and an end to them.

use std::{
    convert::Infallible,
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::Map,
    stream::{Stream, unfold},
};
use keydb_proto::{
    refusal_status,
    shard::{
        ErrorCode, admin_service_server::AdminServiceServer,
        move_service_server::MoveServiceServer, shard_service_server::ShardServiceServer,
    },
};
use keydb_storage::MapStore;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Timeout, error::Elapsed, timeout},
};
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::AbortOnDropHandle,
};
use tonic::{
    Code, Status,
    body::Body,
    codegen::{Service as TowerService, http},
    server::NamedService,
    service::Routes,
    transport::{
        Server,
        server::{Connected, TcpConnectInfo},
    },
};
use tracing::{debug, warn};

use crate::{
    moving::MoveRequests,
    node::Node,
    server::{admin::Admin, health, service::Service, snapshots::SNAPSHOT_TIMEOUT},
};

/// Connections at the same time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 8192;

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

/// What may be sent to the node before it says that it has read it. Room for many requests in flight on one connection.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// How long no connection is accepted after a failure, for want of file descriptors perhaps.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the connections that `listener` accepts, until `stop`; then until the last request in progress has ended, or `cut`.
pub(crate) async fn serve(
    node: Arc<Node>,
    store: MapStore,
    listener: TcpListener,
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
    let named = [
        "",
        ShardServiceServer::<Service>::NAME,
        AdminServiceServer::<Admin>::NAME,
        MoveServiceServer::<MoveRequests>::NAME,
    ];
    let names = [&named[..], &guest_names].concat();
    let _tells = AbortOnDropHandle::new(tokio::spawn(health::tell(node, told, names)));
    Server::builder()
        .max_concurrent_streams(streams_max)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_routes(guests)
        .add_service(NamedLimit(service))
        .add_service(NamedLimit(admin))
        .add_service(moves)
        .add_service(health)
        .add_service(reflection_v1)
        .add_service(reflection_v1alpha)
        .serve_with_incoming_shutdown(connections(listener, cut), stop.cancelled_owned())
        .await
}

fn connections(
    listener: TcpListener,
    cut: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    unfold((listener, room, cut), async |(listener, room, cut)| {
        let place = match Arc::clone(&room).try_acquire_owned() {
            Ok(place) => place,
            Err(_) => {
                warn!(
                    "{CONNECTIONS_MAX} connections are open, which is the limit; more have to wait"
                );
                // The semaphore is never closed; if it were, there would be no more connections.
                Arc::clone(&room).acquire_owned().await.ok()?
            }
        };
        let stream = accept(&listener).await;
        let connection = Connection {
            stream,
            cut: Box::pin(cut.clone().cancelled_owned()),
            _place: place,
        };
        Some((Ok(connection), (listener, room, cut)))
    })
}

async fn accept(listener: &TcpListener) -> TcpStream {
    let mut failed = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Requests are written whole, so waiting for more only delays them. Without it they still arrive.
                if let Err(error) = stream.set_nodelay(true) {
                    debug!(%error, "cannot set TCP_NODELAY");
                }
                return stream;
            }
            // Each of these failures concerns one connection, or passes when other files are closed.
            Err(error) => {
                if !std::mem::replace(&mut failed, true) {
                    warn!(%error, "cannot accept a connection, trying again");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A connection that can be cut off from this side.
struct Connection {
    stream: TcpStream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    /// The connection's stream, unless it has been cut.
    fn stream(&mut self, context: &mut Context<'_>) -> io::Result<Pin<&mut TcpStream>> {
        match self.cut.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(Pin::new(&mut self.stream)),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream(context)?.poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream(context)?.poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream(context)?.poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream(context)?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream(context)?.poll_shutdown(context)
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
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
