//! The `keydb` command: everything of KeyDB that is run from a shell.
//!
//! Data goes to standard output, everything else to standard error. [`exit`] has the exit codes.

mod args;
mod bench;
mod cli;
mod commands;
mod connect;
mod dedup;
mod embedded;
mod exit;
mod gateway;
mod lines;
mod logging;
mod output;
mod progress;
mod settings;
mod signals;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::{
    cli::{Cli, Command},
    exit::Failure,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(code) => code,
        Err(failure) => {
            output::say(&format!("keydb: {failure}"));
            ExitCode::from(failure.code())
        }
    }
}

fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Init(args) => commands::init::run(&args),
        Command::Node(args) => commands::node::run(&args),
        Command::Certs(args) => commands::certs::run(&args),
        Command::Operator(args) => commands::operator::run(&args),
        Command::Health(args) => commands::health::run(&args),
        Command::Dev(args) => commands::dev::run(&args),
        Command::Put(args) => commands::keys::put(&args),
        Command::Get(args) => commands::keys::get(&args),
        Command::Claim(args) => commands::keys::claim(&args),
        Command::Dedup(args) => dedup::run(*args),
        Command::Status(args) => commands::status::run(&args),
        Command::Scale(args) => commands::scale::run(&args),
        Command::Operations(args) => commands::scale::operations::run(&args),
        Command::Snapshot(args) => commands::snapshot::run(&args),
        Command::Backup(args) => commands::backup::run(&args),
        Command::Import(args) => commands::import::run(&args),
        Command::Journal(args) => commands::journal::run(&args),
        Command::Recover(args) => commands::recover::run(&args),
        Command::Bench(args) => bench::run(*args),
        Command::Completions(args) => commands::completions::run(&args, Cli::command()),
    }
}
