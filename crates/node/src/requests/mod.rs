//! Requests for keys, from the check as a whole to the committed answer.
//!
//! - `plan` checks each request as a whole, so that a refused one has applied nothing;
//! - `admit` says what must hold when it comes in, and the time that it goes by;
//! - `get`, `put` and `claim` work on the keys, in `steps`; `read_only_claim` answers claims that need nothing written;
//! - `answers` remembers what claims were answered, `commit` lets no reply go before what it says is committed;
//! - `memory_limit` keeps the key sets within the memory that they may take.

mod admit;
pub(crate) mod answers;
mod claim;
pub(crate) mod commit;
mod get;
mod memory_limit;
pub(crate) mod plan;
mod put;
mod read_only_claim;
pub(crate) mod reclaiming;
mod steps;

pub(crate) use claim::claim;
pub(crate) use get::get;
pub(crate) use memory_limit::is_reached as is_over_memory_limit;
pub(crate) use put::put;
