//! `keydb completions`: a script that completes commands and flags in a shell.

use std::process::ExitCode;

use clap::CommandFactory;

use crate::{
    args::{Cli, CompletionsArgs},
    exit::Failure,
    output::Stdout,
};

pub(crate) fn run(args: &CompletionsArgs) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "keydb", &mut script);
    Stdout::open()?.write(&script)?;
    Ok(ExitCode::SUCCESS)
}
