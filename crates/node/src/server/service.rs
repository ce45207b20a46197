//! The wire's side of the node: hands requests on to where they are worked on.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use keydb_core::FINGERPRINT_BYTES;
use keydb_proto::{
    shard::{
        ClaimReply, ClaimRequest, CreateSnapshotsReply, CreateSnapshotsRequest, GetMapReply,
        GetMapRequest, GetReply, GetRequest, LoadSnapshotsReply, LoadSnapshotsRequest,
        NodeStatusReply, NodeStatusRequest, OpenRangeReply, OpenRangeRequest, PutReply, PutRequest,
        RangeKeys, shard_service_server::ShardService,
    },
    trace,
};
use tonic::{Request, Response, Status};
use tracing::{Instrument, Span};

use crate::{
    node::Node, requests, server::request_counters::KeysReply, server::snapshots, server::status,
};

/// `keydb.shard.v1.ShardService` of one node.
#[derive(Debug)]
pub(crate) struct Service(pub(crate) Arc<Node>);

impl Service {
    /// Of a request that comes in.
    fn span<T>(&self, name: &'static str, request: &Request<T>) -> Span {
        let metadata = request.metadata();
        let span = trace::server(name, |header| metadata.get(header)?.to_str().ok());
        span.record("keydb.node", self.0.config.id.0);
        span
    }

    /// A request that began at `since` has ended.
    fn ended<R: KeysReply>(
        &self,
        ranges: &[RangeKeys],
        fingerprints: &[u8],
        since: Instant,
        span: &Span,
        reply: &Result<R, Status>,
    ) {
        let keys = fingerprints.len() / FINGERPRINT_BYTES;
        let counters = &self.0.request_counters;
        counters.count(ranges, keys, since.elapsed(), reply);
        span.record("keydb.keys", keys);
        if reply.is_err() {
            trace::failed(span);
        }
    }
}

#[tonic::async_trait]
impl ShardService for Service {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetReply>, Status> {
        let since = Instant::now();
        let span = self.span("keydb.shard.v1.ShardService/Get", &request);
        let request = request.get_ref();
        let reply = requests::get(&self.0, request)
            .instrument(span.clone())
            .await;
        self.ended(&request.ranges, &request.fingerprints, since, &span, &reply);
        reply.map(Response::new)
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutReply>, Status> {
        let since = Instant::now();
        let span = self.span("keydb.shard.v1.ShardService/Put", &request);
        let request = request.get_ref();
        let reply = requests::put(&self.0, request)
            .instrument(span.clone())
            .await;
        self.ended(&request.ranges, &request.fingerprints, since, &span, &reply);
        reply.map(Response::new)
    }

    async fn claim(&self, request: Request<ClaimRequest>) -> Result<Response<ClaimReply>, Status> {
        let since = Instant::now();
        let span = self.span("keydb.shard.v1.ShardService/Claim", &request);
        let request = request.get_ref();
        let reply = requests::claim(&self.0, request)
            .instrument(span.clone())
            .await;
        self.ended(&request.ranges, &request.fingerprints, since, &span, &reply);
        reply.map(Response::new)
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
        snapshots::create_snapshots(&self.0, request.get_ref(), waits(&request))
            .await
            .map(Response::new)
    }

    async fn load_snapshots(
        &self,
        request: Request<LoadSnapshotsRequest>,
    ) -> Result<Response<LoadSnapshotsReply>, Status> {
        snapshots::load_snapshots(&self.0, request.get_ref(), waits(&request))
            .await
            .map(Response::new)
    }

    async fn open_range(
        &self,
        request: Request<OpenRangeRequest>,
    ) -> Result<Response<OpenRangeReply>, Status> {
        snapshots::open_range(&self.0, request.get_ref(), waits(&request))
            .await
            .map(Response::new)
    }
}

/// How long the caller waits, if it says so.
pub(super) fn waits<T>(request: &Request<T>) -> Option<Duration> {
    let text = request.metadata().get(GRPC_TIMEOUT)?;
    patience(text.to_str().ok()?)
}

/// Where a caller says how long it waits
/// (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>): up to 8 digits and a unit.
const GRPC_TIMEOUT: &str = "grpc-timeout";

fn patience(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count.checked_mul(3600)?)),
        "M" => Some(Duration::from_secs(count.checked_mul(60)?)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_patience_is_read_in_every_unit() {
        let secs = |text| patience(text).map(|patience| patience.as_secs_f64());
        assert_eq!(secs("2H"), Some(7200.0));
        assert_eq!(secs("3M"), Some(180.0));
        assert_eq!(secs("4S"), Some(4.0));
        assert_eq!(secs("1500m"), Some(1.5));
        assert_eq!(secs("250000u"), Some(0.25));
        assert_eq!(secs("500000000n"), Some(0.5));
        for text in ["", "S", "5", "5s", "-5S", "é"] {
            assert_eq!(secs(text), None, "{text:?}");
        }
    }
}
