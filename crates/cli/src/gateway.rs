//! Keys as text, beside a node's own services.

use std::sync::Arc;

use keydb_client::ClientConfig;
use keydb_core::NodeId;
use keydb_gateway::{Cluster, SERVICE, router, services};
use keydb_node::Guests;
use tokio::task::JoinHandle;

/// What node `id` serves of the cluster, which is found by these addresses: that of the node itself first, which knows the map as soon as
/// it has one. The task looks for it, and is of no use any more when the node has ended.
pub(crate) fn guests(id: NodeId, addresses: Vec<String>) -> (Guests, JoinHandle<()>) {
    let cluster = Arc::new(Cluster::new(ClientConfig::new(addresses)));
    let guests = Guests {
        grpc: services(&cluster, id),
        grpc_names: vec![SERVICE],
        http: router(&cluster),
    };
    let finding = tokio::spawn(async move {
        if let Err(error) = cluster.find().await {
            tracing::error!(node = %id, "keys as text cannot be served: {error}");
        }
    });
    (guests, finding)
}
