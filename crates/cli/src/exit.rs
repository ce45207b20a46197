//! How a command ends: exit codes, and failures that carry one.

use std::{fmt, process::ExitCode};

use keydb_client::{AdminError, ConnectError, FileError, GetError, NotApplied, WriteError};
use keydb_storage::UpdateError;

/// The exit codes of every command, as `--help` prints them. [`Code`] holds the numbers.
pub(crate) const TABLE: &str = "\
Exit codes:
  0    done
  1    failed: input, output, a key that is refused, a node that had to stop
  2    wrong usage or a wrong setting; nothing was done
  3    the cluster, or part of it, did not answer in time; the call that failed was not applied
  4    a call ended without an answer and may have been applied
  130  dedup was stopped by SIGINT or SIGTERM before the end of its input";

/// Why a command did not succeed, for scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    /// Input, output, a refused key, a node that had to stop.
    Failed = 1,
    /// Wrong usage or a wrong setting; nothing was done.
    Usage = 2,
    /// The cluster did not answer in time; the call that failed was not applied.
    Unreachable = 3,
    /// A call ended without an answer and may have been applied.
    Uncertain = 4,
    /// Stopped by a signal.
    Interrupted = 130,
}

impl Code {
    /// This one, unless all is well.
    pub(crate) fn unless(self, all_is_well: bool) -> ExitCode {
        match all_is_well {
            true => ExitCode::SUCCESS,
            false => ExitCode::from(self as u8),
        }
    }

    /// Of a command that could not change the cluster map.
    pub(crate) const fn of_update<E>(error: &UpdateError<E>) -> Self {
        match error {
            UpdateError::OutcomeUnknown(_) => Self::Uncertain,
            UpdateError::Change(_) | UpdateError::Invalid(_) => Self::Failed,
            _ => Self::Unreachable,
        }
    }
}

/// What a command that did not succeed tells its user.
#[derive(Debug)]
pub(crate) struct Failure {
    code: Code,
    message: String,
}

impl Failure {
    /// A failure that exits with `code`.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// Exit code 1.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Code::Failed, message)
    }

    /// Exit code 2.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Code::Usage, message)
    }

    /// The system gives no thread.
    pub(crate) fn no_thread(error: std::io::Error) -> Self {
        Self::failed(format!("cannot start a thread: {error}"))
    }

    /// The process's exit code.
    pub(crate) const fn code(&self) -> u8 {
        self.code as u8
    }

    /// The same failure with one more line to its message.
    pub(crate) fn with_line(mut self, line: &str) -> Self {
        self.message.push('\n');
        self.message.push_str(line);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<GetError> for Failure {
    fn from(error: GetError) -> Self {
        let code = match error {
            GetError::Unavailable { .. }
            | GetError::DeadlineExceeded { .. }
            | GetError::Partial(_) => Code::Unreachable,
            _ => Code::Failed,
        };
        Self::new(code, error.to_string())
    }
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::NotApplied(reason) => {
                let code = match reason {
                    NotApplied::Unavailable { .. } | NotApplied::DeadlineExceeded { .. } => {
                        Code::Unreachable
                    }
                    _ => Code::Failed,
                };
                Self::new(code, reason.to_string())
            }
            // Without the operation's id: no command takes one.
            WriteError::MaybeApplied(mut what) => {
                what.operation = None;
                Self::new(Code::Uncertain, what.to_string())
            }
        }
    }
}

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Self {
        let code = match error {
            AdminError::Invalid { .. } => Code::Usage,
            AdminError::Conflict { .. } | AdminError::Refused { .. } => Code::Failed,
            _ => Code::Uncertain,
        };
        Self::new(code, error.to_string())
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let code = match error {
            ConnectError::Unreachable { .. } => Code::Unreachable,
            ConnectError::Map(_) | ConnectError::Denied { .. } => Code::Failed,
            _ => Code::Usage,
        };
        Self::new(code, error.to_string())
    }
}
