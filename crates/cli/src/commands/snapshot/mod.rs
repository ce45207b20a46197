//! `keydb snapshot`: makes snapshots, and works on those in object storage.

mod args;
mod create;
mod export;
mod gc;
mod import;
mod inspect;
mod list;
mod store;
mod verify;

use std::process::ExitCode;

use args::SnapshotCommand;
pub(crate) use args::{EXAMPLES, SnapshotArgs};

use crate::{
    exit::Failure,
    logging,
    output::say,
    settings::{self, Settings},
};

pub(crate) fn run(args: &SnapshotArgs) -> Result<ExitCode, Failure> {
    match &args.command {
        SnapshotCommand::Create(args) => create::run(args),
        SnapshotCommand::List(args) => list::run(args),
        SnapshotCommand::Inspect(args) => inspect::run(args),
        SnapshotCommand::Verify(args) => verify::run(args),
        SnapshotCommand::Gc(args) => gc::run(args),
        SnapshotCommand::Export(args) => export::run(args),
        SnapshotCommand::Import(args) => import::run(args),
    }
}

/// The settings of a command that works on object storage, and logging by them.
pub(super) fn settings() -> Result<Settings, Failure> {
    let settings = settings::load()?;
    logging::start(settings.log.as_deref().unwrap_or("warn"));
    for warning in &settings.warnings {
        say(&format!("warning: {warning}"));
    }
    Ok(settings)
}
