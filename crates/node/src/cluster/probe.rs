//! Whether another process answers for the same node.

use std::time::Duration;

use keydb_core::{ClusterMap, Incarnation, NodeEntry};
use keydb_proto::shard::{
    NodeStatusReply, NodeStatusRequest, shard_service_client::ShardServiceClient,
};
use keydb_transport::Outgoing;
use tokio::time::timeout;

use crate::NodeError;

/// How long an earlier process of the same node has to answer, connecting included.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Ends the node that is `own` if another process answers for it.
pub(super) async fn refuse_to_be_second(
    own: Incarnation,
    map: &ClusterMap,
    entry: &NodeEntry,
    outgoing: &Outgoing,
) -> Result<(), NodeError> {
    let Ok(Ok(answered)) = timeout(PROBE_TIMEOUT, ask(&entry.address, outgoing)).await else {
        return Ok(());
    };
    let incarnation = answered
        .header
        .filter(|header| header.node_id == entry.id.0)
        .and_then(|header| <[u8; 16]>::try_from(&*header.incarnation).ok())
        .map(Incarnation::from_bytes);
    let same_cluster = *answered.cluster_id == map.cluster_id.to_bytes();
    match incarnation {
        // At the node's own address it may well be this process that answers.
        Some(incarnation) if same_cluster && incarnation != own => Err(NodeError::AlreadyRunning {
            node: entry.id,
            cluster: map.cluster_id,
            address: entry.address.clone(),
            incarnation,
        }),
        _ => Ok(()),
    }
}

async fn ask(
    address: &str,
    outgoing: &Outgoing,
) -> Result<NodeStatusReply, Box<dyn std::error::Error + Send + Sync>> {
    let channel = outgoing.connect(&outgoing.endpoint(address)?).await?;
    let reply = ShardServiceClient::new(channel)
        .node_status(NodeStatusRequest::default())
        .await?;
    Ok(reply.into_inner())
}
