//! The node in its cluster: `membership` registers it in the cluster map and follows the map, `clock` and `clock_check` tell the
//! time and whether it can be relied on.

pub(crate) mod clock;
pub(crate) mod clock_check;
pub(crate) mod membership;
