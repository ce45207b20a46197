//! SIGINT and SIGTERM.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Failure;

/// What a shell reports of a process that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// Signals cannot be waited for.
pub(crate) fn cannot_listen(error: io::Error) -> Failure {
    Failure::failed(format!("cannot listen for signals: {error}"))
}

/// The signals that ask a process to stop.
#[derive(Debug)]
pub(crate) struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// Takes both over from the system. From here on they do nothing by themselves.
    pub(crate) fn listen() -> Result<Self, Failure> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(cannot_listen)?,
            terminate: signal(SignalKind::terminate()).map_err(cannot_listen)?,
        })
    }

    /// Waits for the first one, and returns its name.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }

    /// Ends the process at the next one: for somebody who does not want to wait for a clean stop.
    pub(crate) async fn exit_at_next(mut self) {
        let name = self.next().await;
        tracing::warn!("{name} again: stopping at once");
        std::process::exit(INTERRUPTED);
    }
}
