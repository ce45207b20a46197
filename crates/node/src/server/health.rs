//! gRPC's own health service, and reflection.

use std::{sync::Arc, time::Duration};

use keydb_proto::DESCRIPTORS;
use tonic_health::{ServingStatus, server::HealthReporter};
use tonic_reflection::server::Builder;

use crate::{node::Node, server::status};

/// How often it is looked how the node stands.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Tells the health service whether the node serves, for as long as this runs: as `/ready` does.
pub(crate) async fn tell(node: Arc<Node>, health: HealthReporter, services: Vec<&'static str>) {
    let mut told = None;
    loop {
        let status = match status::snapshot(&node).not_ready() {
            None => ServingStatus::Serving,
            Some(_) => ServingStatus::NotServing,
        };
        if told != Some(status) {
            for service in &services {
                health.set_service_status(*service, status).await;
            }
            told = Some(status);
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Says what services there are, and what their messages look like.
pub(crate) fn reflection() -> Builder<'static> {
    Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}
