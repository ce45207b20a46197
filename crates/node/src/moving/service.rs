//! `keydb.shard.v1.MoveService` of one node.

use std::sync::Arc;

use keydb_core::{Incarnation, NodeId};
use keydb_proto::{
    id_field, refusal_status,
    shard::{
        ErrorCode, OwnerMessage, SuccessorHello, SuccessorMessage, TellReply, TellRequest,
        move_service_server::MoveService, successor_message,
    },
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::words;
use crate::{node::Node, requests::plan::check_cluster};

/// The calls that move ranges.
#[derive(Debug)]
pub(crate) struct MoveRequests(pub(crate) Arc<Node>);

impl MoveRequests {
    /// Checks that a call comes from another member of this cluster, and is for this node.
    fn check(&self, cluster_id: &[u8], from: u32, target: u32) -> Result<(), Status> {
        let node = &self.0;
        let membership_state = node.membership.state();
        let table = membership_state
            .table()
            .ok_or_else(|| node.not_serving(&membership_state))?;
        let map = &table.current_map.map;
        check_cluster(map.cluster_id, cluster_id)?;
        if target != node.config.id.0 {
            let message = format!("this is node {}, not node {target}", node.config.id);
            return Err(refusal_status(ErrorCode::WrongNode, message));
        }
        if map.node(NodeId(from)).is_none() {
            let message = format!("node {from} is not a member of the cluster");
            return Err(refusal_status(ErrorCode::WrongNode, message));
        }
        Ok(())
    }

    /// Checks that a successor's disk is the one that the map names: another one's word does not count any more.
    fn check_disk(&self, hello: &SuccessorHello) -> Result<Incarnation, Status> {
        let invalid = |message: String| refusal_status(ErrorCode::InvalidRequest, message);
        let disk_id =
            id_field("disk_id", &hello.disk_id).map_err(|error| invalid(error.to_string()))?;
        let membership_state = self.0.membership.state();
        let entry = membership_state
            .map()
            .and_then(|map| map.node(NodeId(hello.node_id)));
        let named = entry.and_then(|entry| entry.disk_id);
        if named != Some(Incarnation::from_bytes(disk_id)) {
            let message = format!(
                "the cluster map names another disk of node {}",
                hello.node_id
            );
            return Err(refusal_status(ErrorCode::WrongNode, message));
        }
        Ok(Incarnation::from_bytes(disk_id))
    }
}

#[tonic::async_trait]
impl MoveService for MoveRequests {
    type SessionStream = ReceiverStream<Result<OwnerMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<SuccessorMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.and_then(|first| first.message);
        let Some(successor_message::Message::Hello(hello)) = first else {
            let message = "a session begins with hello";
            return Err(refusal_status(ErrorCode::InvalidRequest, message));
        };
        self.check(&hello.cluster_id, hello.node_id, hello.target_node)?;
        let peer = (NodeId(hello.node_id), self.check_disk(&hello)?);
        let node = &self.0;
        let outgoing = node.moves.sessions.serve(node, peer, incoming);
        let outgoing = outgoing.ok_or_else(|| {
            let message = format!("node {} does not read its keys yet", node.config.id);
            refusal_status(ErrorCode::NotPossible, message)
        })?;
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }

    async fn tell(&self, request: Request<TellRequest>) -> Result<Response<TellReply>, Status> {
        let request = request.into_inner();
        self.check(&request.cluster_id, request.node_id, request.target_node)?;
        let peer = NodeId(request.node_id);
        let words = request.words.iter();
        let replies = words.filter_map(|word| words::take_in(&self.0, peer, word));
        Ok(Response::new(TellReply {
            words: replies.collect(),
        }))
    }
}
