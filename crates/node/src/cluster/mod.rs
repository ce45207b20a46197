//! The node in its cluster: `membership` registers it in the cluster map and follows the map, `membership_state` is how it stands
//! there; `clock` tells the time, `clock_check` compares it with object storage's, and `trusted_clock` is what came of that.

pub(crate) mod clock;
pub(crate) mod clock_check;
pub(crate) mod membership;
pub(crate) mod membership_state;
pub(crate) mod trusted_clock;
