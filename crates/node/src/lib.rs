//! One KeyDB node: answers for the hash ranges that the cluster map gives it.
//!
//! [`run`] is the whole of it: it takes a bound listener, the object storage that holds the cluster map, a clock and a shutdown
//! signal. The parts, in the order in which a request meets them:
//!
//! - `server` accepts connections, `service` speaks `keydb.shard.v1.ShardService`;
//! - `drain` admits requests, `validate` checks each as a whole, so that a refused one has applied nothing;
//! - `table` knows the ranges that the node owns by the map in force;
//! - `keys` works on the keys, range by range; `answers` remembers what claims were told;
//! - `http` tells probes and Prometheus how the node stands, `traffic` counts requests;
//! - `membership` registers the node in the map and follows it, `sweep` gives back expired keys' memory.
//!
//! Durability is `memory`: a node that stops forgets its keys, and the map counts each such loss.

mod answers;
mod clock;
mod config;
mod drain;
mod error;
mod http;
mod keys;
mod membership;
mod node;
mod run;
mod server;
mod service;
mod status;
mod sweep;
mod table;
mod traffic;
mod validate;

pub use clock::SystemClock;
pub use config::{Limits, NodeConfig};
pub use error::NodeError;
pub use run::{Listeners, run};
