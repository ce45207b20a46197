//! The wire's side of what changes the cluster map, and of backups.

use std::sync::Arc;

use keydb_proto::shard::{
    BackupReply, BackupRequest, ScaleOperationRequest, ScaleReply, ScaleRequest,
    admin_service_server::AdminService,
};
use keydb_storage::MapStore;
use tonic::{Request, Response, Status};

use crate::{backup, cluster::scaling, node::Node, server::service::waits};

/// `keydb.shard.v1.AdminService` of one node.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) node: Arc<Node>,
    /// Where the cluster map is.
    pub(crate) store: MapStore,
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn scale(&self, request: Request<ScaleRequest>) -> Result<Response<ScaleReply>, Status> {
        let reply = scaling::scale(&self.node, &self.store, request.get_ref());
        reply.await.map(Response::new)
    }

    async fn scale_complete(
        &self,
        request: Request<ScaleOperationRequest>,
    ) -> Result<Response<ScaleReply>, Status> {
        let reply = scaling::complete(&self.node, &self.store, request.get_ref());
        reply.await.map(Response::new)
    }

    async fn abort_scale(
        &self,
        request: Request<ScaleOperationRequest>,
    ) -> Result<Response<ScaleReply>, Status> {
        let reply = scaling::abort(&self.node, &self.store, request.get_ref());
        reply.await.map(Response::new)
    }

    async fn backup(
        &self,
        request: Request<BackupRequest>,
    ) -> Result<Response<BackupReply>, Status> {
        let patience = waits(&request);
        let reply = backup::backup(&self.node, &self.store, request.get_ref(), patience);
        reply.await.map(Response::new)
    }
}
