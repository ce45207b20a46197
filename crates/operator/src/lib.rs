//! KeyDB's operator: scaling, snapshots and keys over HTTP, for people with `curl` and for programs in any language.
//!
//! It holds no state and no storage credentials: each call goes to the cluster's nodes through `keydb-client`, and everything about
//! a scaling operation is in the cluster map. So any number may run; one that was killed is replaced by any other, and without one
//! the cluster goes on all the same.
//!
//! [`run`] is the whole of it. A call comes in through `server`, which limits and counts; `keys`, `cluster`, `backup`
//! and `scaling` do what it asks, and `keydb-gateway` has `/v1` and how a call is read and refused. `health` is what probes and Prometheus ask.

mod backup;
mod cluster;
mod config;
mod health;
mod keys;
mod operator;
mod scaling;
mod server;

pub use config::{
    BACKUP_WAIT_MAX, OperatorConfig, REQUESTS_MAX, SCALE_WAIT_MAX, SNAPSHOT_WAIT_MAX,
};
pub use keydb_gateway::{BODY_BYTES_MAX, KEYS_MAX, READ_TIMEOUT};
pub use server::{OperatorError, run};
