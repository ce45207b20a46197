//! What probes and Prometheus ask. None of it goes to the cluster.

use axum::{extract::State, http::header::CONTENT_TYPE, response::IntoResponse};
use keydb_core::metrics::{MetricsText, registry};
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
    out.begin(&registry::BUILD_INFO)
        .add(&[&env!("CARGO_PKG_VERSION")], 1);
    let map = operator.client().map(|client| client.cluster_map()).ok();
    out.value(&registry::OPERATOR_READY, u8::from(map.is_some()));
    let epoch = map.map_or(0, |map| map.epoch);
    out.value(&registry::OPERATOR_MAP_EPOCH, epoch);
    let mut samples = out.begin(&registry::OPERATOR_REQUESTS);
    for ((path, status), count) in operator.answered() {
        samples.add(&[&path, &status], count);
    }
    operator.cluster.write_metrics(&mut out);
    ([(CONTENT_TYPE, MetricsText::CONTENT_TYPE)], out.into_text())
}
