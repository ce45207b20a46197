//! KeyDB for any language: keys as text, over gRPC (`keydb.NodeService`) and over HTTP with JSON (`/v1`).
//!
//! Whoever calls needs no hashing and no cluster map: any node takes any key, and passes it on with the routing client over
//! `keydb.shard.v1.ShardService`. That never forwards, so nothing can go round in circles. Nodes and the operator serve the same
//! handlers.
//!
//! [`Cluster`] is the cluster, once it has been found. `http` and `grpc` read a call, `keys` does what it asks, and `problem` is how it
//! is refused: as problem details (RFC 9457), or as a gRPC status. `counters` is what metrics tell of calls.

mod cluster;
mod counters;
mod grpc;
mod http;
pub mod input;
pub mod keys;
mod limits;
mod lines;
mod problem;
pub mod query;

pub use cluster::Cluster;
pub use grpc::{SERVICE, services};
pub use http::{PATHS, router};
pub use limits::{
    ADMIN_CALLS_MAX, BODY_BYTES_MAX, CALLS_MAX, KEYS_MAX, READ_TIMEOUT, READS_MAX, STREAMS_MAX,
    WRITE_TIMEOUT,
};
pub use problem::{Problem, failures};
