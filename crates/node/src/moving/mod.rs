//! Hash ranges on their way from one node to another.
//!
//! `keydb_core::moving` says what happens when; here it is done. `state` holds the machines of the ranges that concern this node, and
//! makes the table of ranges by which requests are answered. `run` does what the machines want: decisions go to the disk (`decisions`),
//! changes into the cluster map, words to other nodes (`words`). `owner` serves sessions: what its journal commits of tapped ranges, and
//! copies of them. `successor` opens sessions, and applies what they bring, or pulls from object
//! storage (`objects`); both within a `budget`.

mod budget;
mod bulk;
mod decisions;
pub(crate) mod objects;
mod owner;
mod run;
mod service;
mod state;
mod successor;
mod words;

pub(crate) use decisions::mark_lost;
pub(crate) use run::run;
pub(crate) use service::MoveRequests;
pub(crate) use state::{MoveCounts, Moves};
