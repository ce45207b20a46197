//! One request to one node, and what its outcome means.

use std::sync::Arc;

use bytes::Bytes;
use keydb_core::{Expiry, UnixMillis};
use keydb_proto::{
    error_code,
    shard::{
        ClaimRequest, ErrorCode, GetRequest, PutReply, PutRequest, RangeRefusal, RefusalCode,
        ReplyHeader, RequestHeader,
    },
};
use tonic::Status;

use crate::{
    ErrorKind,
    call::Kind,
    client::Shared,
    node::{Node, describe, was_never_sent},
    routing::MapVersion,
    split::Share,
};

/// A node's answer, whatever was asked.
#[derive(Debug)]
pub(crate) struct Reply {
    /// The version of the map that the node goes by.
    pub(crate) map_version: MapVersion,
    /// Present, or first.
    pub(crate) first: Bits,
    pub(crate) unknown: Bits,
    pub(crate) refused: Vec<RangeRefusal>,
}

/// A bitmap as it came; empty when all its bits are 0.
#[derive(Debug)]
pub(crate) struct Bits(Bytes);

impl Bits {
    #[inline]
    pub(crate) fn get(&self, index: usize) -> bool {
        match self.0.get(index / 8) {
            Some(byte) => byte >> (index % 8) & 1 == 1,
            None => false,
        }
    }
}

/// Why keys have no answer.
#[derive(Debug, Clone)]
pub(crate) struct RequestFailure {
    pub(crate) message: Arc<str>,
    pub(crate) maybe_applied: bool,
    /// A repeat would meet the same.
    pub(crate) permanent: bool,
    /// What a caller gets to know it as.
    pub(crate) kind: ErrorKind,
    /// The range belongs to another node, or to this one under another generation.
    pub(crate) moved: bool,
}

impl RequestFailure {
    /// A range that was refused while others may have been answered.
    pub(crate) fn of_range(refusal: &RangeRefusal, node: &Node) -> Self {
        let code = refusal.code();
        Self {
            message: format!(
                "{node} refused range {}: {}",
                refusal.range_id, refusal.message
            )
            .into(),
            maybe_applied: !matches!(
                code,
                RefusalCode::NotOwner | RefusalCode::Loading | RefusalCode::Closed
            ),
            permanent: code == RefusalCode::Closed,
            kind: match code {
                RefusalCode::Full => ErrorKind::RangeFull,
                RefusalCode::Closed => ErrorKind::RangeClosed,
                _ => ErrorKind::NotReady,
            },
            moved: code == RefusalCode::NotOwner,
        }
    }

    /// A request that failed as a whole.
    fn of_request(status: &Status, node: &Node) -> Self {
        let code = error_code(status);
        Self {
            message: format!("{node}: {}", describe(status)).into(),
            maybe_applied: code.is_none() && !was_never_sent(status),
            permanent: matches!(
                code,
                Some(
                    ErrorCode::InvalidRequest
                        | ErrorCode::WrongCluster
                        | ErrorCode::OverMemoryLimit
                        | ErrorCode::OperationIdUsed
                )
            ),
            kind: code.map_or(ErrorKind::Unreachable, kind_of),
            moved: false,
        }
    }

    /// A reply that breaks the contract.
    fn of_reply(node: &Node, what: &str) -> Self {
        Self {
            message: format!("{node} gave a reply that cannot be read: {what}").into(),
            maybe_applied: true,
            permanent: false,
            kind: ErrorKind::Unreachable,
            moved: false,
        }
    }
}

/// What a caller gets to know a node's refusal as.
fn kind_of(code: ErrorCode) -> ErrorKind {
    match code {
        ErrorCode::WrongCluster => ErrorKind::WrongCluster,
        ErrorCode::WrongNode | ErrorCode::NoMap => ErrorKind::NotReady,
        ErrorCode::Overloaded => ErrorKind::Overloaded,
        ErrorCode::Stopping => ErrorKind::ShuttingDown,
        ErrorCode::TooLate => ErrorKind::Deadline,
        ErrorCode::OverMemoryLimit => ErrorKind::MemoryLimit,
        ErrorCode::DiskFull => ErrorKind::DiskFull,
        ErrorCode::OperationIdUsed => ErrorKind::OperationIdUsed,
        ErrorCode::InvalidRequest | ErrorCode::NotPossible | ErrorCode::Unspecified => {
            ErrorKind::InvalidRequest
        }
    }
}

/// Sends a node its share and reads the reply.
pub(crate) async fn exchange(
    shared: &Shared,
    kind: Kind,
    node: &Node,
    share: &Share,
    expiries: &[Expiry],
    routed_by: MapVersion,
    not_after: UnixMillis,
) -> Result<Reply, RequestFailure> {
    let header = Some(RequestHeader {
        cluster_id: shared.router.cluster_id_bytes(),
        lineage: routed_by.0,
        epoch: routed_by.1,
        target_node: node.id().0,
        not_after_unix_ms: not_after.0,
    });
    let ranges = share.ranges.clone();
    let fingerprints = share.fingerprints.clone();
    let mut connection = node.connection();
    let none = Bytes::new;
    let reply = match kind {
        Kind::Get => connection
            .get(GetRequest {
                header,
                ranges,
                fingerprints,
            })
            .await
            .map(|reply| {
                let reply = reply.into_inner();
                (reply.header, Some(reply.present), none(), reply.refused)
            }),
        Kind::Put { ttl } => connection
            .put(PutRequest {
                header,
                ranges,
                fingerprints,
                ttl_seconds: ttl.as_seconds(),
                expiries: none(),
            })
            .await
            .map(|reply| put_reply(reply.into_inner())),
        Kind::PutEach => connection
            .put(PutRequest {
                header,
                ranges,
                fingerprints,
                ttl_seconds: 0,
                expiries: packed(expiries, &share.positions),
            })
            .await
            .map(|reply| put_reply(reply.into_inner())),
        Kind::Claim { ttl, id, .. } | Kind::Recall { ttl, id } => connection
            .claim(ClaimRequest {
                header,
                ranges,
                fingerprints,
                ttl_seconds: ttl.as_seconds(),
                operation_id: Bytes::copy_from_slice(&id.to_bytes()),
                only_remembered: matches!(kind, Kind::Recall { .. }),
            })
            .await
            .map(|reply| {
                let reply = reply.into_inner();
                (
                    reply.header,
                    Some(reply.first),
                    reply.unknown,
                    reply.refused,
                )
            }),
    };
    let (header, first, unknown, refused) =
        reply.map_err(|status| RequestFailure::of_request(&status, node))?;
    let header = header.ok_or_else(|| RequestFailure::of_reply(node, "it has no header"))?;
    node.heard(&header, shared.router.durability());
    let map_version = version_of(&header);
    let bytes = share.positions.len().div_ceil(8);
    let short = |bits: &Bytes| bits.len() != bytes;
    if first.as_ref().is_some_and(short) || (!unknown.is_empty() && short(&unknown)) {
        return Err(RequestFailure::of_reply(
            node,
            "a bitmap has the wrong length",
        ));
    }
    Ok(Reply {
        map_version,
        first: Bits(first.unwrap_or_default()),
        unknown: Bits(unknown),
        refused,
    })
}

fn put_reply(reply: PutReply) -> (Option<ReplyHeader>, Option<Bytes>, Bytes, Vec<RangeRefusal>) {
    (reply.header, None, Bytes::new(), reply.refused)
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

fn version_of(header: &ReplyHeader) -> MapVersion {
    (header.lineage, header.epoch)
}
