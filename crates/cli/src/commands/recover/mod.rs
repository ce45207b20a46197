//! `keydb recover`: goes on without what is lost for good.

mod args;
mod map;
mod node;
mod probe;
mod range;

use std::process::ExitCode;

use keydb_core::{NodeId, RangeId};

pub(crate) use args::RecoverArgs;

use crate::{connect, exit::Failure};

pub(crate) fn run(args: &RecoverArgs) -> Result<ExitCode, Failure> {
    let settings = connect::settings()?;
    if let Some(range) = args.range {
        return range::run(RangeId(range), args, &settings);
    }
    let storage = settings.open_storage()?;
    let text = settings.storage_text();
    let runtime = connect::runtime()?;
    match args.node {
        Some(node) => runtime.block_on(node::run(NodeId(node), args, storage, &text)),
        None => runtime.block_on(map::run(args, &settings, storage, &text)),
    }
}
