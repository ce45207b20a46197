//! The hash ranges that a node owns, and their keys: `owned` by the map in force, `uncommitted` knows which of their keys are not
//! committed yet, `grace` waits for the requests that are at work on them, `sweep` gives back expired keys' memory.

pub(crate) mod grace;
pub(crate) mod owned;
pub(crate) mod sweep;
pub(crate) mod uncommitted;
