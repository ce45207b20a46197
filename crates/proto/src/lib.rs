//! KeyDB's wire contract: the types generated from `proto/`, and their conversions to and from core types.

mod convert;

pub use convert::{FieldError, error_code, id_field, refusal_status};

/// `keydb.shard.v1`: what the routing client and a node say to each other.
#[expect(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    reason = "generated; documented in proto/keydb/shard/v1/shard.proto"
)]
#[allow(unused_qualifications)]
pub mod shard {
    tonic::include_proto!("keydb.shard.v1");
}
