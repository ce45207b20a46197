//! `keydb completions`: a script that completes commands and flags in a shell.

use std::process::ExitCode;

use clap::Args;
use clap_complete::Shell;

use crate::{exit::Failure, output::Stdout};

const EXAMPLES: &str = "\
Examples:
  keydb completions bash > ~/.local/share/bash-completion/completions/keydb
  keydb completions zsh > ~/.zfunc/_keydb";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CompletionsArgs {
    /// Which shell
    pub(crate) shell: Shell,
}

/// Writes the script for `keydb`, the whole command line.
pub(crate) fn run(args: &CompletionsArgs, mut keydb: clap::Command) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut keydb, "keydb", &mut script);
    Stdout::open()?.write(&script)?;
    Ok(ExitCode::SUCCESS)
}
