//! One KeyDB node: answers for the hash ranges that the cluster map gives it.
//!
//! [`run`] is the whole of it: it takes a bound listener, the object storage that holds the cluster map, a clock and a shutdown
//! signal. The rooms, in the order in which a request meets them:
//!
//! - `server` accepts connections and admits requests, speaks `keydb.shard.v1.ShardService`, and tells probes, Prometheus and
//!   operators the node's status;
//! - `requests` checks each request and works on its keys; nothing is answered before it is committed;
//! - `ranges` has the key sets of the hash ranges that the node owns by the map in force;
//! - `cluster` registers the node in the cluster map and follows it, and checks the clock;
//! - `disk` is the data directory, the journal, the snapshots, and the way back from them at a start;
//! - `backup` copies what object storage has of the cluster elsewhere.
//!
//! `node` is what these share, and `run` a node's life from its start to its end.

// Tests of whole nodes share what those in `tests/` use.
#[cfg(test)]
extern crate self as keydb_node;

mod background;
mod backup;
mod cluster;
mod config;
mod disk;
mod ending;
mod error;
mod lock;
mod moving;
mod node;
mod ranges;
mod requests;
mod run;
mod server;
mod warnings;

pub use cluster::clock::SystemClock;
pub use config::{Limits, MemoryPolicy, MoveBudget, NodeConfig};
pub use disk::data_dir::{DataDirError, saved_map};
#[doc(hidden)]
pub use disk::journal::bench;
pub use disk::journal::{Found, JournalError, inspect};
pub use error::NodeError;
pub use run::{Guests, Listeners, WriteMetrics, run};
