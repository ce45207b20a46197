//! The calls, and the way in.

use std::{io, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    http::{Method, StatusCode, Uri},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use keydb_client::ConnectError;
use keydb_gateway::Problem;
use keydb_transport::{ListenerSecurity, serve_http};
use tokio::{net::TcpListener, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    backup, cluster,
    config::{OperatorConfig, REQUESTS_MAX},
    health, keys,
    operator::{Operator, Shared},
    scaling,
};

/// How long calls in progress have to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// What the operator can be asked, besides what the gateway serves.
const PATHS: [&str; 17] = [
    "/get",
    "/info",
    "/put",
    "/claim",
    "/createSnapshots",
    "/loadSnapshots",
    "/backup",
    "/scale",
    "/scaleComplete",
    "/autoScale",
    "/abort",
    "/hashRangeMovements",
    "/lastOperation",
    "/live",
    "/ready",
    "/metrics",
    OTHER,
];
const OTHER: &str = "other";

fn paths() -> impl Iterator<Item = &'static str> {
    keydb_gateway::PATHS.into_iter().chain(PATHS)
}

/// What ended an operator.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// It cannot be a client of the cluster: a setting is wrong, or the cluster is not what was expected.
    #[error("the operator cannot connect to the cluster: {0}")]
    Connect(#[from] ConnectError),
    /// The listener cannot be used any more.
    #[error("the operator's server failed: {0}")]
    Server(#[from] io::Error),
}

/// Serves calls on `listener` until `shutdown` ends; then those in progress have some seconds to end. It need not find the cluster at
/// once: until it does, calls are refused with 503.
///
/// # Errors
/// What ended it, other than `shutdown`.
pub async fn run(
    config: OperatorConfig,
    (listener, security): (TcpListener, ListenerSecurity),
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), OperatorError> {
    match listener.local_addr() {
        Ok(address) => info!(%address, "the operator listens"),
        Err(error) => warn!(%error, "the operator listens"),
    }
    let guests = config.guests.clone();
    let operator = Arc::new(Operator::new(config));
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let (serves, is_over) = (router(Arc::clone(&operator), guests), stop.clone());
    tasks.spawn(async move {
        serve_http(listener, &security, serves, is_over).await;
        Ok(())
    });
    let cluster = Arc::clone(&operator.cluster);
    let is_over = stop.clone();
    tasks.spawn(async move {
        let found = is_over.run_until_cancelled(cluster.find()).await;
        Ok(found.unwrap_or(Ok(()))?)
    });
    let ended = tokio::select! {
        () = shutdown => Ok(()),
        ended = failure(&mut tasks) => ended,
    };
    stop.cancel();
    if timeout(DRAIN_TIMEOUT, async {
        while tasks.join_next().await.is_some() {}
    })
    .await
    .is_err()
    {
        warn!("calls in progress are cut off");
    }
    tasks.shutdown().await;
    operator.cluster.close().await;
    info!("the operator has stopped");
    ended
}

/// Waits for a task that fails. The one that connects ends well, once.
async fn failure(tasks: &mut JoinSet<Result<(), OperatorError>>) -> Result<(), OperatorError> {
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(io::Error::other)??;
    }
    Err(io::Error::other("it ended before it was told to").into())
}

fn router(operator: Shared, guests: Router) -> Router {
    Router::new()
        .route("/get", get(keys::get))
        .route("/put", post(keys::put))
        .route("/claim", post(keys::claim))
        .route("/info", get(cluster::info))
        .route("/createSnapshots", post(cluster::create_snapshots))
        .route("/loadSnapshots", post(cluster::load_snapshots))
        .route("/backup", post(backup::create))
        .route("/scale", post(scaling::scale))
        .route("/scaleComplete", post(scaling::complete))
        .route("/autoScale", post(scaling::auto_scale))
        .route("/abort", post(scaling::abort))
        .route(
            "/hashRangeMovements",
            get(scaling::movements_of_query).post(scaling::movements),
        )
        .route("/lastOperation", get(scaling::last_operation))
        .route("/live", get(health::live))
        .route("/ready", get(health::ready))
        .route("/metrics", get(health::metrics))
        .merge(keydb_gateway::router(&operator.cluster))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(&operator), limit_and_count))
        .with_state(operator)
        .merge(guests)
}

async fn limit_and_count(State(operator): State<Shared>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let path = paths().find(|it| *it == path).unwrap_or(OTHER);
    let is_call = !matches!(path, "/live" | "/ready" | "/metrics");
    let response = match operator.room.try_acquire() {
        Err(_) if is_call => Problem::unavailable(format!(
            "{REQUESTS_MAX} calls are being worked on, which is the limit; try again later"
        ))
        .into_response(),
        _room => next.run(request).await,
    };
    operator.count(path, response.status().as_u16());
    response
}

async fn no_such_path(uri: Uri) -> Problem {
    let calls = paths().filter(|path| *path != OTHER);
    Problem::new(
        StatusCode::NOT_FOUND,
        format!(
            "there is no {}; the calls are {}",
            uri.path(),
            calls.collect::<Vec<_>>().join(", ")
        ),
    )
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!(
            "{} does not take {method}; the header Allow says what it takes",
            uri.path()
        ),
    )
}

#[cfg(test)]
mod tests {
    use keydb_transport::Role;

    use super::*;

    #[test]
    fn every_path_needs_what_its_callers_have() {
        let read = [
            "/v1/get",
            "/openapi.json",
            "/get",
            "/info",
            "/lastOperation",
            "/metrics",
        ];
        let write = ["/v1/put", "/v1/claim", "/put", "/claim"];
        let open = ["/live", "/ready"];
        for path in paths() {
            let needed = match path {
                it if open.contains(&it) => None,
                it if read.contains(&it) => Some(Role::Read),
                it if write.contains(&it) => Some(Role::Write),
                _ => Some(Role::Admin),
            };
            assert_eq!(Role::of_http(path), needed, "{path}");
        }
    }
}
