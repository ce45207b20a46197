//! Scaling: how a cluster map changes when the membership does.
//!
//! Each function takes a map and gives the next one, to be stored by compare-and-swap, or nothing where nothing is to be changed.
//! Where the map has changed in the meantime, the function is called again with the new one: a repeated call does no harm.
//!
//! 1. [`plan_scale`] adds the new members, marks those that are to leave, and gives ranges that are to move their successors. The
//!    map has a [`Target`](crate::Target) from here on, in phase [`Copy`](crate::Phase::Copy): successors copy, owners stay.
//! 2. [`hand_over`] lets the successors take their ranges over. Each becomes the owner, with the owner before in
//!    [`from`](crate::RangeEntry::from) until it has begun; the nodes write these changes.
//! 3. [`finish`] ends the operation when no range moves any more, and removes the nodes that have left. Where the placement is not
//!    what the members call for, it plans once more: ranges that were being handed over when a plan was made are left out of it.
//!
//! [`abort`] drops what is not done. A range that is being handed over is never planned and never touched: only the two nodes
//! between which it moves know which of them answers for it.

mod error;
mod placing;
mod plan;
mod steps;
#[cfg(test)]
mod tests;

pub use error::ScaleError;
pub use plan::{Member, PlannedMove, ScalePlan, plan_scale};
pub use steps::{abort, finish, hand_over};
