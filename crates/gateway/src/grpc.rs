//! `keydb.NodeService` over gRPC.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::State,
    middleware::{Next, from_fn_with_state},
};
use keydb_client::{AdminClient, AdminError, Claim, NodeId, Ttl};
use keydb_proto::{
    text::{
        ClaimAnswer, ClaimRequest, ClaimResponse, CreateSnapshotsRequest, CreateSnapshotsResponse,
        GetNodeInfoRequest, GetNodeInfoResponse, GetRequest, GetResponse, LoadSnapshotsRequest,
        LoadSnapshotsResponse, PutRequest, PutResponse, ScaleCompleteRequest,
        ScaleCompleteResponse, ScaleRequest, ScaleResponse,
        node_service_server::{NodeService, NodeServiceServer},
    },
    trace,
};
use tokio::time::timeout;
use tonic::{Code, Request, Response, Status, server::NamedService, service::Routes};
use tracing::Instrument;

use crate::{
    Cluster,
    counters::{Call, Outcome, Protocol, Verb},
    input,
    keys::{self, Name, Read, Write},
    limits::{BODY_BYTES_MAX, CALL_TIMEOUT, PATIENCE},
    problem::{Problem, failures},
};

/// The service's full name.
pub const SERVICE: &str = NodeServiceServer::<Text>::NAME;

/// The service of a cluster, as node `id` serves it.
pub fn services(cluster: &Arc<Cluster>, id: NodeId) -> Routes {
    let service = Text {
        cluster: Arc::clone(cluster),
        id,
    };
    let service = NodeServiceServer::new(service).max_decoding_message_size(BODY_BYTES_MAX);
    let router = Routes::new(service).into_axum_router();
    router
        .layer(from_fn_with_state(Arc::clone(cluster), within_limits))
        .into()
}

/// Ends what takes too long, from its first byte on, and names the limit of a message's size.
async fn within_limits(
    State(cluster): State<Arc<Cluster>>,
    request: axum::extract::Request,
    next: Next,
) -> axum::response::Response {
    let method = request.uri().path().rsplit('/').next();
    let verb = match method {
        Some("Get") => Verb::Get,
        Some("Put") => Verb::Put,
        Some("Claim") => Verb::Claim,
        _ => return limited(2 * PATIENCE, request, next).await,
    };
    let headers = request.headers();
    let span = trace::server(verb.grpc_name(), |name| headers.get(name)?.to_str().ok());
    let call = Call::begin(cluster.counters(), Protocol::Grpc, verb);
    let response = limited(CALL_TIMEOUT, request, next);
    let response = response.instrument(span.clone()).await;
    let outcome = response.extensions().get().map_or(Outcome::Ok, outcome_of);
    if outcome != Outcome::Ok {
        trace::failed(&span);
    }
    call.end_as(outcome);
    response
}

/// By whose doing a call failed.
fn outcome_of(status: &Status) -> Outcome {
    match status.code() {
        Code::Ok => Outcome::Ok,
        Code::InvalidArgument
        | Code::OutOfRange
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Cancelled
        | Code::PermissionDenied
        | Code::Unauthenticated => Outcome::ClientError,
        _ => Outcome::ServerError,
    }
}

async fn limited(
    limit: Duration,
    request: axum::extract::Request,
    next: Next,
) -> axum::response::Response {
    let Ok(response) = timeout(limit, next.run(request)).await else {
        return Status::deadline_exceeded(format!("the call took longer than {limit:?}"))
            .into_http();
    };
    let status = response.extensions().get::<Status>();
    match status.filter(|status| status.code() == Code::OutOfRange) {
        // Nothing else is answered with this code.
        Some(_) => Status::invalid_argument(format!(
            "the message is larger than {BODY_BYTES_MAX} bytes; send fewer keys in a call"
        ))
        .into_http(),
        None => response,
    }
}

#[derive(Debug)]
struct Text {
    cluster: Arc<Cluster>,
    /// The node that serves it.
    id: NodeId,
}

type Answer<T> = Result<Response<T>, Status>;

impl Text {
    fn read(&self, keys: Vec<String>, namespace: String) -> Result<Read, Problem> {
        input::check_keys(keys.len())?;
        let namespace = (!namespace.is_empty()).then_some(namespace);
        let client = keys::in_namespace(&self.cluster, input::namespace(namespace)?)?;
        let keys = keys.into_iter().map(String::into_bytes).collect();
        Ok(Read { client, keys })
    }

    fn write(
        &self,
        keys: Vec<String>,
        ttl_seconds: i64,
        namespace: String,
    ) -> Result<Write, Problem> {
        // Less than nothing is as wrong as nothing.
        let ttl = Duration::from_secs(u64::try_from(ttl_seconds).unwrap_or(0));
        let ttl = Ttl::new(ttl).map_err(|error| {
            Problem::bad_field("ttl_seconds", format!("{ttl_seconds}: {error}"))
        })?;
        let Read { client, keys } = self.read(keys, namespace)?;
        Ok(Write { client, keys, ttl })
    }

    /// How many members there are, and where.
    fn members(&self) -> Result<(i64, Vec<String>), Problem> {
        let map = self.cluster.client()?.cluster_map();
        let addresses = map.nodes.iter().map(|node| node.address.clone());
        let addresses: Vec<String> = addresses.collect();
        Ok((addresses.len() as i64, addresses))
    }

    /// Who waits longer than for keys.
    fn patient(&self) -> Result<AdminClient, Problem> {
        let client = self.cluster.client()?;
        Ok(AdminClient::from(client.with_call_timeout(PATIENCE)))
    }
}

#[tonic::async_trait]
impl NodeService for Text {
    async fn get(&self, request: Request<GetRequest>) -> Answer<GetResponse> {
        let _entered = self.cluster.enter()?;
        let GetRequest { keys, namespace } = request.into_inner();
        let read = self.read(keys, namespace)?;
        let exists = read.client.get(&read.keys).await.map_err(Problem::from)?;
        let (cluster_size, nodes_addresses) = self.members()?;
        Ok(Response::new(GetResponse {
            exists,
            cluster_size,
            nodes_addresses,
            error_code: 0,
        }))
    }

    async fn put(&self, request: Request<PutRequest>) -> Answer<PutResponse> {
        let _entered = self.cluster.enter()?;
        let PutRequest {
            keys,
            ttl_seconds,
            namespace,
        } = request.into_inner();
        let Write { client, keys, ttl } = self.write(keys, ttl_seconds, namespace)?;
        client.put(&keys, ttl).await.map_err(Problem::from)?;
        let (cluster_size, nodes_addresses) = self.members()?;
        Ok(Response::new(PutResponse {
            success: true,
            cluster_size,
            nodes_addresses,
            error_code: 0,
        }))
    }

    async fn claim(&self, request: Request<ClaimRequest>) -> Answer<ClaimResponse> {
        let _entered = self.cluster.enter()?;
        let ClaimRequest {
            keys,
            ttl_seconds,
            operation,
            is_repeat,
            namespace,
        } = request.into_inner();
        let named = match operation.as_str() {
            "" if is_repeat => {
                let detail = "says that the claim was sent before; give the operation that it had";
                return Err(Problem::bad_field("is_repeat", detail).into());
            }
            "" => None,
            text => {
                let name = Name::new(text, is_repeat).ok_or_else(|| {
                    let detail = "is longer than 255 bytes; give a shorter name";
                    Problem::bad_field("operation", detail)
                })?;
                Some(name.named(&namespace, None))
            }
        };
        let write = self.write(keys, ttl_seconds, namespace)?;
        let claims = keys::claim(&write, named).await?.into_iter();
        let answers = claims.map(|claim| match claim {
            Claim::First => ClaimAnswer::First.into(),
            Claim::Duplicate => ClaimAnswer::Duplicate.into(),
            Claim::Unknown => ClaimAnswer::Unknown.into(),
        });
        let answers = answers.collect();
        let (cluster_size, nodes_addresses) = self.members()?;
        Ok(Response::new(ClaimResponse {
            answers,
            cluster_size,
            nodes_addresses,
            error_code: 0,
        }))
    }

    async fn get_node_info(
        &self,
        request: Request<GetNodeInfoRequest>,
    ) -> Answer<GetNodeInfoResponse> {
        let _entered = self.cluster.enter_admin()?;
        let asked = request.into_inner().node_id;
        let (cluster_size, nodes_addresses) = self.members()?;
        let all = self.cluster.admin()?.node_info().await;
        let of_node = all
            .into_iter()
            .find(|(member, _)| i64::from(member.id.0) == asked);
        let Some((_, status)) = of_node else {
            return Err(Status::not_found(format!(
                "node_id: node {asked} is not a member; they are at {}",
                nodes_addresses.join(", ")
            )));
        };
        let status = status.map_err(Problem::from)?;
        let snapshot = status.disk.as_ref().and_then(|it| it.uploaded_complete_to);
        let ranges = status.ranges.iter();
        Ok(Response::new(GetNodeInfoResponse {
            node_id: asked,
            cluster_size,
            nodes_addresses,
            hash_ranges: ranges.map(|range| i64::from(range.id.0)).collect(),
            last_snapshot_timestamp: snapshot.map_or(0, |time| (time.0 / 1000) as i64),
            keys_count: status.keys as i64,
        }))
    }

    async fn create_snapshots(
        &self,
        request: Request<CreateSnapshotsRequest>,
    ) -> Answer<CreateSnapshotsResponse> {
        let _entered = self.cluster.enter_admin()?;
        let full = request.into_inner().full_sync;
        let made = self.patient()?.create_snapshots(full).await;
        let error_message = failures(&made).join("; ");
        Ok(Response::new(CreateSnapshotsResponse {
            success: error_message.is_empty(),
            error_message,
            node_id: self.id.0.into(),
        }))
    }

    async fn load_snapshots(
        &self,
        _: Request<LoadSnapshotsRequest>,
    ) -> Answer<LoadSnapshotsResponse> {
        let _entered = self.cluster.enter_admin()?;
        let loaded = self.patient()?.load_snapshots().await;
        let error_message = failures(&loaded).join("; ");
        Ok(Response::new(LoadSnapshotsResponse {
            success: error_message.is_empty(),
            error_message,
            node_id: self.id.0.into(),
        }))
    }

    async fn scale(&self, request: Request<ScaleRequest>) -> Answer<ScaleResponse> {
        let _entered = self.cluster.enter_admin()?;
        let addresses = request.into_inner().nodes_addresses;
        let (previous_cluster_size, _) = self.members()?;
        let admin = self.cluster.admin()?;
        let planned = async {
            if let Some(id) = admin.scale(&addresses).await?.operation {
                admin.wait_secured(id, PATIENCE).await?;
            }
            Ok::<_, AdminError>(())
        };
        let outcome = planned.await;
        Ok(Response::new(ScaleResponse {
            success: outcome.is_ok(),
            previous_cluster_size,
            new_cluster_size: match outcome {
                Ok(()) => addresses.len() as i64,
                Err(_) => previous_cluster_size,
            },
            error_message: outcome.err().map(|it| it.to_string()).unwrap_or_default(),
        }))
    }

    async fn scale_complete(
        &self,
        _: Request<ScaleCompleteRequest>,
    ) -> Answer<ScaleCompleteResponse> {
        let _entered = self.cluster.enter_admin()?;
        let admin = self.cluster.admin()?;
        let done = async {
            // Every node may be told, and the first who hears it ends the operation for all.
            let Some(running) = admin.operation().await? else {
                return Ok(());
            };
            match admin.scale_complete(Some(running.operation)).await {
                Ok(id) => admin.wait(id, PATIENCE, |_| {}).await,
                Err(AdminError::Conflict { .. }) if admin.operation().await?.is_none() => Ok(()),
                Err(error) => Err(error),
            }
        };
        done.await.map_err(Problem::from)?;
        Ok(Response::new(ScaleCompleteResponse { success: true }))
    }
}
