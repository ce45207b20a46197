//! HTTP beside the gRPC service: what probes and Prometheus ask.
//!
//! | path | 200 when | for |
//! | --- | --- | --- |
//! | `/live` | the process answers | a liveness probe |
//! | `/startup` | the node is registered in the cluster map, and has loaded its ranges | whoever waits for the first start (not a start-up probe: a node that is no member yet has to live) |
//! | `/ready` | as well, and the node is not on its way down | a readiness probe |
//! | `/metrics` | always | Prometheus |
//!
//! Anything else than 200 is 503, and the body says why. A closed range does not make a node unready: the others serve, and to
//! start it again would not help.

mod metrics;

use std::{fmt::Write, pin::pin, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use keydb_core::metrics::MetricsText;
use keydb_proto::shard::{NodeStatusReply, RangeState};
use keydb_storage::StorageCalls;
use keydb_transport::{ListenerSecurity, serve_http};
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    disk::DiskCounters, moving::MoveCounts, run::WriteMetrics,
    server::request_counters::RequestCounters,
};

/// How long connections have to close at the end.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// How the node stands when it is asked.
#[derive(Debug)]
pub(crate) struct StatusSnapshot {
    /// What the node tells of itself over gRPC as well.
    pub(crate) reply: NodeStatusReply,
    /// Why the node answers for no range yet, where it does not.
    pub(crate) not_serving: Option<String>,
    /// Whether requests for keys are refused because the node is on its way down.
    pub(crate) stopping: bool,
    /// The disk has not answered for a while.
    pub(crate) disk_hangs: bool,
    /// Bytes that the keys of each range take, in the order of the reply's ranges.
    pub(crate) range_bytes: Vec<u64>,
    /// The requests so far.
    pub(crate) request_counters: Arc<RequestCounters>,
    /// The calls of object storage so far.
    pub(crate) storage_calls: Arc<StorageCalls>,
    /// What the disk has done so far, where there is one.
    pub(crate) disk: Option<DiskCounters>,
    /// The ranges that have changed their owner so far.
    pub(crate) moves: MoveCounts,
    /// Bytes that were copied for moves and backups so far.
    pub(crate) copied_bytes: u64,
}

/// What is served besides.
#[derive(Clone, Default)]
pub(crate) struct Guests {
    /// Paths.
    pub(crate) router: Router,
    /// Writes more metrics.
    pub(crate) metrics: Option<Arc<WriteMetrics>>,
}

impl StatusSnapshot {
    fn ranges(&self, state: RangeState) -> usize {
        let ranges = self.reply.ranges.iter();
        ranges.filter(|range| range.state() == state).count()
    }

    /// Why the node has not started yet.
    fn not_started(&self) -> Option<String> {
        if let Some(reason) = &self.not_serving {
            return Some(reason.clone());
        }
        let loading = self.ranges(RangeState::Loading);
        (loading > 0).then(|| {
            format!(
                "{loading} of {} hash ranges are still being loaded",
                self.reply.ranges.len()
            )
        })
    }

    /// Why the node should get no requests.
    pub(crate) fn not_ready(&self) -> Option<String> {
        if self.stopping {
            return Some("the node is stopping".to_owned());
        }
        if self.disk_hangs {
            return Some("the disk does not answer".to_owned());
        }
        self.not_started()
    }
}

/// Serves the connections that the listener accepts, until `stop`.
pub(crate) async fn serve(
    (listener, security): (TcpListener, ListenerSecurity),
    status: impl Fn() -> StatusSnapshot + Send + Sync + 'static,
    guests: Guests,
    stop: CancellationToken,
) {
    let router = router(status, guests.metrics).merge(guests.router);
    let mut serving = pin!(serve_http(listener, &security, router, stop.clone()));
    tokio::select! {
        () = &mut serving => {}
        () = stop.cancelled() => {
            // A connection in the middle of a request that never ends is left.
            let _ = timeout(CLOSE_TIMEOUT, serving).await;
        }
    }
}

type Status = Arc<dyn Fn() -> StatusSnapshot + Send + Sync>;

fn router(
    status: impl Fn() -> StatusSnapshot + Send + Sync + 'static,
    more_metrics: Option<Arc<WriteMetrics>>,
) -> Router {
    let status: Status = Arc::new(status);
    let metrics_text = async move |State(status): State<Status>| {
        let mut text = MetricsText::default();
        metrics::write(&mut text, &status());
        if let Some(write) = &more_metrics {
            write(&mut text);
        }
        (
            [(CONTENT_TYPE, MetricsText::CONTENT_TYPE)],
            text.into_text(),
        )
    };
    Router::new()
        .route("/live", get(async || "live\n"))
        .route("/startup", get(startup))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics_text))
        .with_state(status)
}

async fn startup(State(status): State<Status>) -> impl IntoResponse {
    let status = status();
    probe("started", status.not_started(), &status)
}

async fn ready(State(status): State<Status>) -> impl IntoResponse {
    let status = status();
    probe("ready", status.not_ready(), &status)
}

fn probe(good: &str, not: Option<String>, status: &StatusSnapshot) -> (StatusCode, String) {
    if let Some(reason) = not {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not {good}: {reason}\n"),
        );
    }
    let mut text = format!("{good}\n");
    let closed = status.ranges(RangeState::Closed);
    if closed > 0 {
        let _ = writeln!(
            text,
            "{closed} of {} hash ranges are closed; `keydb status` says why",
            status.reply.ranges.len()
        );
    }
    (StatusCode::OK, text)
}

#[cfg(test)]
mod tests;
