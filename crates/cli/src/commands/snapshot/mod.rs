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

pub(crate) use args::SnapshotArgs;
use args::SnapshotCommand;

use crate::exit::Failure;

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
