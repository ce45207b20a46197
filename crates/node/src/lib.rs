//! One KeyDB node: answers for the hash ranges that the cluster map gives it.
//!
//! [`run`] is the whole of it: it takes a bound listener, the object storage that holds the cluster map, a clock and a shutdown
//! signal. The parts, in the order in which a request meets them:
//!
//! - `server` accepts connections, `service` speaks `keydb.shard.v1.ShardService`;
//! - `drain` admits requests, `validate` checks each as a whole, so that a refused one has applied nothing;
//! - `table` knows the ranges that the node owns by the map in force;
//! - `keys` works on the keys, range by range; `answers` remembers what claims were told, `claim_known` answers those that need
//!   nothing written;
//! - `http` tells probes and Prometheus how the node stands, `traffic` counts requests;
//! - `commit` sees to it that nothing is told before it is committed, `journal` commits it, `uncommitted` knows what is not yet;
//! - `membership` registers the node in the map and follows it, `recovery` reads the keys at the start;
//! - `snapshot` writes them to files and object storage, `sweep` gives back expired keys' memory, `limit` keeps within it;
//! - `data_dir` is the directory of all that, `disk` holds together what writes to it.

// Tests of whole nodes share what those in `tests/` use.
#[cfg(test)]
extern crate self as keydb_node;

mod answers;
mod claim_known;
mod clock;
mod clock_check;
mod commit;
mod config;
mod data_dir;
mod disk;
mod drain;
mod error;
mod failpoint;
mod http;
mod journal;
mod keys;
mod limit;
mod load;
mod membership;
mod node;
mod put_each;
mod recovery;
mod run;
mod server;
mod service;
mod snapshot;
mod status;
mod sweep;
mod table;
mod traffic;
mod uncommitted;
mod validate;

pub use clock::SystemClock;
pub use config::{Limits, MemoryPolicy, NodeConfig};
pub use data_dir::DataDirError;
pub use error::NodeError;
#[doc(hidden)]
pub use journal::bench;
pub use journal::{Found, JournalError, inspect};
pub use run::{Listeners, run};
pub use snapshot::{Collected, GarbageError, collect_garbage, manifest_key, object_key};
