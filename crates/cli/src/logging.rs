//! Logs, to standard error.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// Starts logging what `filter`, a checked `KEYDB_LOG`, lets through.
pub(crate) fn start(filter: &str) {
    let filter = EnvFilter::new(filter);
    // Fails only when logging was started before, which then goes on.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .try_init();
}
