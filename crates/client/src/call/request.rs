//! One request to one node, and what its outcome means.

use std::sync::Arc;

use bytes::Bytes;
use keydb_core::{Expiry, NodeId, UnixMillis};
use keydb_proto::{
    error_code,
    shard::{
        ClaimRequest, ErrorCode, GetRequest, PutRequest, RangeRefusal, RefusalCode, ReplyHeader,
        RequestHeader,
    },
    trace,
};
use tonic::Status;
use tracing::{Instrument, Span};

use super::{hand_over::HandOver, kind::Kind};
use crate::{
    cluster::{Holder, MapVersion, Node, Share, describe, is_denied, was_never_sent},
    error::{ErrorKind, NotApplied},
    shared::Shared,
};

/// A request to one node.
pub(super) struct Sending {
    pub(super) share: Share,
    pub(super) node: Arc<Node>,
    pub(super) routed_by: MapVersion,
    /// How many retries its keys have had.
    pub(super) retries: u32,
    pub(super) hand_over: HandOver,
}

/// A node's answer, whatever was asked.
#[derive(Debug)]
pub(super) struct Reply {
    /// The version of the map that the node goes by.
    pub(super) map_version: MapVersion,
    /// Present, or first.
    pub(super) first: Bits,
    pub(super) unknown: Bits,
    pub(super) refused: Vec<RangeRefusal>,
}

/// A bitmap as it came; empty when all its bits are 0.
#[derive(Debug)]
pub(super) struct Bits(Bytes);

impl Bits {
    #[inline]
    pub(super) fn get(&self, index: usize) -> bool {
        match self.0.get(index / 8) {
            Some(byte) => byte >> (index % 8) & 1 == 1,
            None => false,
        }
    }
}

/// Why keys have no answer.
#[derive(Debug, Clone)]
pub(super) struct RequestFailure {
    pub(super) message: Arc<str>,
    pub(super) maybe_applied: bool,
    /// A repeat would meet the same.
    pub(super) permanent: bool,
    /// What a caller gets to know it as.
    pub(super) kind: ErrorKind,
    pub(super) moving: Option<Moving>,
}

/// Why a node does not answer for a range that moves.
#[derive(Debug, Clone, Copy)]
pub(super) enum Moving {
    /// It will within milliseconds, or name the node that does.
    Held,
    /// The range belongs to another node, or to this one under another generation; whom it names.
    NotOwner(Option<Holder>),
}

impl RequestFailure {
    /// What keys are told that a permanent one leaves without an answer.
    pub(super) fn refused(&self) -> NotApplied {
        NotApplied::Refused {
            kind: self.kind,
            message: Arc::clone(&self.message),
        }
    }

    /// Whether the node is down, or not what it was taken for.
    pub(super) fn is_of_node(&self) -> bool {
        let kinds = [
            ErrorKind::Unreachable,
            ErrorKind::ShuttingDown,
            ErrorKind::NotReady,
        ];
        kinds.contains(&self.kind)
    }

    /// A range that was refused while others may have been answered.
    pub(super) fn of_range(refusal: &RangeRefusal, node: &Node) -> Self {
        let code = refusal.code();
        Self {
            message: format!(
                "{node} refused range {}: {}",
                refusal.range_id, refusal.message
            )
            .into(),
            maybe_applied: !matches!(
                code,
                RefusalCode::NotOwner
                    | RefusalCode::Loading
                    | RefusalCode::Closed
                    | RefusalCode::Held
            ),
            permanent: code == RefusalCode::Closed,
            kind: match code {
                RefusalCode::Full => ErrorKind::RangeFull,
                RefusalCode::Closed => ErrorKind::RangeClosed,
                _ => ErrorKind::NotReady,
            },
            moving: match code {
                RefusalCode::Held => Some(Moving::Held),
                RefusalCode::NotOwner => {
                    let generation = refusal.generation;
                    let named = refusal.owner_node.map(NodeId);
                    Some(Moving::NotOwner(
                        named.map(|node| Holder { node, generation }),
                    ))
                }
                _ => None,
            },
        }
    }

    /// A request that failed as a whole.
    fn of_request(status: &Status, node: &Node) -> Self {
        let code = error_code(status);
        let is_denied = is_denied(status);
        Self {
            message: format!("{node}: {}", describe(status)).into(),
            maybe_applied: code.is_none() && !is_denied && !was_never_sent(status),
            permanent: is_denied
                || matches!(
                    code,
                    Some(
                        ErrorCode::InvalidRequest
                            | ErrorCode::WrongCluster
                            | ErrorCode::OverMemoryLimit
                            | ErrorCode::OperationIdUsed
                    )
                ),
            kind: match code {
                Some(code) => kind_of(code),
                None if is_denied => ErrorKind::Denied,
                None => ErrorKind::Unreachable,
            },
            moving: None,
        }
    }

    /// A reply that breaks the contract.
    fn of_reply(node: &Node, what: &str) -> Self {
        Self {
            message: format!("{node} gave a reply that cannot be read: {what}").into(),
            maybe_applied: true,
            permanent: false,
            kind: ErrorKind::Unreachable,
            moving: None,
        }
    }
}

/// What a caller gets to know a node's refusal as.
fn kind_of(code: ErrorCode) -> ErrorKind {
    match code {
        ErrorCode::WrongCluster => ErrorKind::WrongCluster,
        ErrorCode::WrongNode | ErrorCode::NoMap | ErrorCode::StorageUnavailable => {
            ErrorKind::NotReady
        }
        ErrorCode::Overloaded => ErrorKind::Overloaded,
        ErrorCode::Stopping => ErrorKind::ShuttingDown,
        ErrorCode::TooLate => ErrorKind::Deadline,
        ErrorCode::OverMemoryLimit => ErrorKind::MemoryLimit,
        ErrorCode::DiskFull => ErrorKind::DiskFull,
        ErrorCode::OperationIdUsed => ErrorKind::OperationIdUsed,
        ErrorCode::InvalidRequest
        | ErrorCode::NotPossible
        | ErrorCode::Conflict
        | ErrorCode::Unspecified => ErrorKind::InvalidRequest,
    }
}

/// Sends a node its share and reads the reply.
pub(super) async fn exchange(
    shared: &Shared,
    kind: Kind,
    sending: &Sending,
    expiries: &[Expiry],
    not_after: UnixMillis,
) -> Result<Reply, RequestFailure> {
    let Sending { share, node, .. } = sending;
    let (lineage, epoch) = sending.routed_by;
    let header = RequestHeader {
        cluster_id: shared.router.cluster_id_bytes(),
        lineage,
        epoch,
        target_node: node.id().0,
        not_after_unix_ms: not_after.0,
    };
    shared.observe(|it| it.request(node.id(), share.positions.len()));
    let span = trace::client(kind.method(), node.id().0, share.positions.len());
    let sent = send(kind, header, node, share, expiries, &span);
    let sent = sent.instrument(span.clone()).await;
    let (header, first, unknown, refused) = sent.map_err(|status| {
        trace::failed(&span);
        RequestFailure::of_request(&status, node)
    })?;
    let header = header.ok_or_else(|| RequestFailure::of_reply(node, "it has no header"))?;
    node.heard(&header, shared.router.durability());
    let bytes = share.positions.len().div_ceil(8);
    let short = |bits: &Bytes| bits.len() != bytes;
    if first.as_ref().is_some_and(short) || (!unknown.is_empty() && short(&unknown)) {
        let what = "a bitmap has the wrong length";
        return Err(RequestFailure::of_reply(node, what));
    }
    Ok(Reply {
        map_version: (header.lineage, header.epoch),
        first: Bits(first.unwrap_or_default()),
        unknown: Bits(unknown),
        refused,
    })
}

/// A reply's header, its bitmap of keys that are present or first, if it has one, that of unknown ones, and its refusals.
type Fields = (Option<ReplyHeader>, Option<Bytes>, Bytes, Vec<RangeRefusal>);

async fn send(
    kind: Kind,
    header: RequestHeader,
    node: &Node,
    share: &Share,
    expiries: &[Expiry],
    span: &Span,
) -> Result<Fields, Status> {
    let header = Some(header);
    let ranges = share.ranges.clone();
    let fingerprints = share.fingerprints.clone();
    let mut connection = node.connection();
    Ok(match kind {
        Kind::Get => {
            let request = GetRequest {
                header,
                ranges,
                fingerprints,
            };
            let request = trace::carrying(span, request);
            let reply = connection.get(request).await?.into_inner();
            (
                reply.header,
                Some(reply.present),
                Bytes::new(),
                reply.refused,
            )
        }
        Kind::Put { .. } | Kind::PutEach => {
            let (ttl_seconds, expiries) = match kind {
                Kind::Put { ttl } => (ttl.as_seconds(), Bytes::new()),
                _ => (0, packed(expiries, &share.positions)),
            };
            let request = PutRequest {
                header,
                ranges,
                fingerprints,
                ttl_seconds,
                expiries,
            };
            let request = trace::carrying(span, request);
            let reply = connection.put(request).await?.into_inner();
            (reply.header, None, Bytes::new(), reply.refused)
        }
        Kind::Claim { ttl, id, .. } | Kind::Recall { ttl, id } => {
            let request = ClaimRequest {
                header,
                ranges,
                fingerprints,
                ttl_seconds: ttl.as_seconds(),
                operation_id: Bytes::copy_from_slice(&id.to_bytes()),
                only_remembered: matches!(kind, Kind::Recall { .. }),
            };
            let request = trace::carrying(span, request);
            let reply = connection.claim(request).await?.into_inner();
            (
                reply.header,
                Some(reply.first),
                reply.unknown,
                reply.refused,
            )
        }
    })
}

/// The expiries of the keys at `positions`, as the wire has them.
fn packed(expiries: &[Expiry], positions: &[u32]) -> Bytes {
    let of_each = positions
        .iter()
        .map(|position| expiries[*position as usize]);
    of_each
        .flat_map(|expiry| expiry.as_unix_seconds().to_le_bytes())
        .collect()
}
