//! KeyDB's wire contract: the types generated from `proto/`, and their conversions to and from core types; and [`trace`], which goes
//! along with requests.

mod convert;
pub mod trace;

pub use convert::{FieldError, error_code, id_field, refusal_status};

/// `keydb.shard.v1`: what the routing client, and those who look after a cluster, say to a node.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::unwrap_used,
    reason = "generated; documented in proto/keydb/shard/v1"
)]
pub mod shard {
    tonic::include_proto!("keydb.shard.v1");
}

/// `keydb`: keys as text, for clients in any language.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::unwrap_used,
    reason = "generated; documented in proto/keydb/node.proto"
)]
pub mod text {
    tonic::include_proto!("keydb");
}

/// Both, for reflection: an encoded `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
