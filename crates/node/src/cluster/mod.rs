//! The node in its cluster.
//!
//! - `membership` follows the cluster map, `membership_state` is how the node stands by it; `registration` is what it writes there,
//!   after a `probe` for another process that may be the same node; `contact` is how it stands with object storage;
//! - `scaling` changes the cluster's membership when somebody asks for it, and writes the end of such an operation;
//! - `clock` tells the time, `clock_check` compares it with object storage's, and `trusted_clock` is what came of that.

pub(crate) mod clock;
pub(crate) mod clock_check;
mod contact;
pub(crate) mod membership;
pub(crate) mod membership_state;
mod probe;
mod registration;
pub(crate) mod scaling;
pub(crate) mod trusted_clock;
