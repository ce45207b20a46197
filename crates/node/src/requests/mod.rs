//! Requests for keys, from the check as a whole to the committed answer.
//!
//! - `plan` checks each request as a whole, so that a refused one has applied nothing;
//! - `keys` works on the keys, range by range; `put_with_expiries` does where each key has an expiry of its own, and
//!   `read_only_claim` answers claims that need nothing written;
//! - `answers` remembers what claims were answered, `commit` lets no reply go before what it says is committed;
//! - `memory_limit` keeps the key sets within the memory that they may take.

pub(crate) mod answers;
pub(crate) mod commit;
pub(crate) mod keys;
pub(crate) mod memory_limit;
pub(crate) mod plan;
pub(crate) mod put_with_expiries;
pub(crate) mod read_only_claim;
