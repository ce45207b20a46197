//! HTTP on connections that are counted and may be encrypted.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{
        HeaderMap, StatusCode,
        header::{CONTENT_TYPE, ORIGIN, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use hyper::{server::conn::http1::Builder, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tower_service::Service;
use tracing::debug;

use crate::{
    access::{Access, Refusal},
    incoming::{Connection, Incoming, ListenerSecurity, Protocol},
};

/// How long a connection may take to send a request's head, from the last answer on: longer than that it is not kept idle.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// A request's head, and what is buffered of a body, has so many bytes at most.
const BUFFER_BYTES_MAX: usize = 64 << 10;

/// Serves the connections that `listener` accepts, until `stop`; then until the last request in progress has ended. Dropping it cuts
/// them all off.
pub async fn serve(
    listener: TcpListener,
    security: &ListenerSecurity,
    router: Router,
    stop: CancellationToken,
) {
    let tls = security.tls.clone();
    let asks_for_certificates = tls.as_ref().is_some_and(|tls| tls.asks_for_certificates());
    let gate = Gate {
        access: security.access.clone(),
        asks_for_certificates,
        asks_who: asks_for_certificates || security.access.asks_for_tokens(),
    };
    // Dropping the connections is how they are cut off here.
    let mut incoming = Incoming::new(listener, tls, Protocol::Http, CancellationToken::new());
    let mut builder = Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(BUFFER_BYTES_MAX);
    let builder = Arc::new(builder);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            connection = incoming.accept() => {
                let (builder, router) = (Arc::clone(&builder), router.clone());
                let (gate, stop) = (gate.clone(), stop.clone());
                connections.spawn(async move { talk(connection, &builder, router, gate, stop).await });
            }
            Some(_) = connections.join_next() => {}
        }
    }
    drop(incoming);
    while connections.join_next().await.is_some() {}
}

async fn talk(
    connection: Connection,
    builder: &Builder,
    router: Router,
    gate: Gate,
    stop: CancellationToken,
) {
    let has_certificate = connection.has_certificate();
    let service = service_fn(|request| {
        let (mut router, gate) = (router.clone(), gate.clone());
        async move {
            let request: Request<hyper::body::Incoming> = request;
            let path = request.uri().path();
            match gate.check(path, request.headers(), has_certificate) {
                Ok(()) => router.call(request.map(Body::new)).await,
                Err(refusal) => Ok::<_, Infallible>(refused(refusal)),
            }
        }
    });
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(connection), service));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        debug!("a connection ended: {error}");
    }
}

/// What a request has to pass.
#[derive(Clone)]
struct Gate {
    access: Access,
    asks_for_certificates: bool,
    /// Whether callers have to show that they may.
    asks_who: bool,
}

impl Gate {
    fn check(&self, path: &str, headers: &HeaderMap, has_certificate: bool) -> Result<(), Refusal> {
        let refusal = if self.asks_for_certificates && !has_certificate && !Access::is_open(path) {
            Some(Refusal::NoCertificate)
        } else if !self.asks_who && headers.contains_key(ORIGIN) {
            Some(Refusal::WebPage)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            self.access.count(refusal);
            return Err(refusal);
        }
        self.access.check_http(path, headers)
    }
}

/// RFC 9457, and for a token RFC 6750.
fn refused(refusal: Refusal) -> Response {
    let status = if refusal.is_of_identity() {
        StatusCode::UNAUTHORIZED
    } else {
        StatusCode::FORBIDDEN
    };
    let body = format!(
        r#"{{"type":"about:blank","title":"{}","status":{},"detail":"{refusal}"}}"#,
        status.canonical_reason().unwrap_or_default(),
        status.as_u16()
    );
    let mut response = (status, [(CONTENT_TYPE, "application/problem+json")], body).into_response();
    if refusal.is_of_token() {
        let scheme = const { axum::http::HeaderValue::from_static("Bearer") };
        response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
    }
    response
}
