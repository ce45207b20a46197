//! What probes and Prometheus ask. None of it goes to the cluster.

use axum::{extract::State, http::header::CONTENT_TYPE, response::IntoResponse};
use keydb_core::MetricsText;
use keydb_gateway::Problem;

use crate::operator::Shared;

pub(crate) async fn live() -> &'static str {
    "live\n"
}

/// Ready when the cluster has been found.
pub(crate) async fn ready(State(operator): State<Shared>) -> Result<&'static str, Problem> {
    operator.client().map(|_| "ready\n")
}

pub(crate) async fn metrics(State(operator): State<Shared>) -> impl IntoResponse {
    let mut out = MetricsText::default();
    out.metric("keydb_build_info", "gauge", "Which build runs.");
    out.sample(&[("version", &env!("CARGO_PKG_VERSION"))], 1);
    let map = operator.client().map(|client| client.cluster_map()).ok();
    out.gauge(
        "keydb_operator_ready",
        "Whether the cluster has been found.",
        u8::from(map.is_some()),
    );
    if let Some(map) = map {
        out.gauge(
            "keydb_operator_map_epoch",
            "The epoch of the newest cluster map that the operator has heard of.",
            map.epoch,
        );
    }
    out.metric(
        "keydb_operator_requests_total",
        "counter",
        "Calls that were answered, by path and HTTP status.",
    );
    for ((path, status), count) in operator.answered() {
        out.sample(&[("path", &path), ("status", &status)], count);
    }
    ([(CONTENT_TYPE, MetricsText::CONTENT_TYPE)], out.into_text())
}
