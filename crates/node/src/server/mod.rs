//! What a node offers to the outside.
//!
//! - `grpc` accepts connections, `service` speaks `keydb.shard.v1.ShardService` on them, `admission` lets requests in until the
//!   node stops, `request_counters` counts them;
//! - `admin` speaks `keydb.shard.v1.AdminService`, and hands on to `cluster`, which changes the cluster map;
//! - `snapshots` has snapshots made when an operator asks for it;
//! - `status` is what the node says of itself, `http` tells it to probes and Prometheus, `health` to those who ask by gRPC.

pub(crate) mod admin;
pub(crate) mod admission;
pub(crate) mod grpc;
mod health;
pub(crate) mod http;
pub(crate) mod request_counters;
pub(crate) mod service;
pub(crate) mod snapshots;
pub(crate) mod status;
