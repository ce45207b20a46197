//! The wire's side of the node: hands requests on to where they are worked on.

use std::sync::Arc;

use keydb_proto::shard::{
    ClaimReply, ClaimRequest, CreateSnapshotsReply, CreateSnapshotsRequest, GetMapReply,
    GetMapRequest, GetReply, GetRequest, NodeStatusReply, NodeStatusRequest, PutReply, PutRequest,
    shard_service_server::ShardService,
};
use tonic::{Request, Response, Status};

use crate::{disk, keys, node::Node, status};

/// `keydb.shard.v1.ShardService` of one node.
#[derive(Debug)]
pub(crate) struct Service(pub(crate) Arc<Node>);

#[tonic::async_trait]
impl ShardService for Service {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetReply>, Status> {
        keys::get(&self.0, request.get_ref())
            .await
            .map(Response::new)
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutReply>, Status> {
        keys::put(&self.0, request.get_ref())
            .await
            .map(Response::new)
    }

    async fn claim(&self, request: Request<ClaimRequest>) -> Result<Response<ClaimReply>, Status> {
        keys::claim(&self.0, request.get_ref())
            .await
            .map(Response::new)
    }

    async fn get_map(
        &self,
        request: Request<GetMapRequest>,
    ) -> Result<Response<GetMapReply>, Status> {
        status::map(&self.0, request.get_ref()).map(Response::new)
    }

    async fn node_status(
        &self,
        request: Request<NodeStatusRequest>,
    ) -> Result<Response<NodeStatusReply>, Status> {
        status::status(&self.0, request.get_ref()).map(Response::new)
    }

    async fn create_snapshots(
        &self,
        request: Request<CreateSnapshotsRequest>,
    ) -> Result<Response<CreateSnapshotsReply>, Status> {
        disk::create_snapshots(&self.0, request.get_ref())
            .await
            .map(Response::new)
    }
}
