//! The rounds, which write what is in memory and the journal to local files.
//!
//! `maker` decides when a round is made and what goes into it: `choice` which ranges get full files and which deltas become one,
//! `naming` which ranges the manifest names, `changes` puts the journal's recent records in order, `make` and `merge` write files, at a `pace` that leaves the machine to
//! requests.

mod changes;
mod choice;
mod make;
mod maker;
mod merge;
mod naming;
mod pace;

#[cfg(test)]
pub(super) use choice::DELTAS_MAX;
pub(crate) use maker::Replayed;
pub(super) use maker::run;
pub(in crate::disk) use naming::is_of;
pub(super) use naming::{is_arriving, names};
