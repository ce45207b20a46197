//! Whether another process answers for the same node.

use std::{error::Error, time::Duration};

use keydb_core::{ClusterMap, Incarnation, NodeEntry};
use keydb_proto::shard::{
    NodeStatusReply, NodeStatusRequest, shard_service_client::ShardServiceClient,
};
use keydb_transport::{Outgoing, is_handshake_failure, with_sources};
use tokio::time::timeout;
use tonic::{Code, Status};

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
    let answered = match timeout(PROBE_TIMEOUT, ask(&entry.address, outgoing)).await {
        Ok(Ok(answered)) => answered,
        Ok(Err(error)) if says_no(&*error) => {
            return Err(NodeError::UnknownPeer {
                node: entry.id,
                address: entry.address.clone(),
                reason: with_sources(&*error),
            });
        }
        Ok(Err(_)) | Err(_) => return Ok(()),
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

/// Whether somebody is there, and does not let this node in, or is not let in by it: it may well be the node's other process, started
/// with other certificates or tokens.
fn says_no(error: &(dyn Error + 'static)) -> bool {
    if let Some(status) = error.downcast_ref::<Status>() {
        return matches!(
            status.code(),
            Code::Unauthenticated | Code::PermissionDenied
        );
    }
    is_handshake_failure(error)
}

async fn ask(
    address: &str,
    outgoing: &Outgoing,
) -> Result<NodeStatusReply, Box<dyn Error + Send + Sync>> {
    let channel = outgoing.connect(&outgoing.endpoint(address)?).await?;
    let reply = ShardServiceClient::new(channel)
        .node_status(NodeStatusRequest::default())
        .await?;
    Ok(reply.into_inner())
}
