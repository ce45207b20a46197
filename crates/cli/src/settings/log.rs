//! What is logged and traced, and where to.

use std::fmt;

use super::declared::Settings;

/// How a line of the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// A JSON object.
    Json,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// What logging and tracing go by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogSettings {
    /// What is logged, where that was said.
    pub(crate) filter: Option<String>,
    /// How.
    pub(crate) format: LogFormat,
    /// Where spans are sent to; nowhere without it.
    pub(crate) traces_endpoint: Option<String>,
    /// Of the calls that no caller traces, one in so many is traced.
    pub(crate) traces_one_in: u64,
}

impl Settings {
    /// What logging goes by.
    pub(crate) fn logging(&self) -> LogSettings {
        LogSettings {
            filter: self.log.value.clone(),
            format: self.log_format.value,
            traces_endpoint: self.traces_endpoint.value.clone(),
            traces_one_in: self.traces_one_in.value,
        }
    }
}
