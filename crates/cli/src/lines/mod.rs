//! Lines from standard input and files, in batches: one thread reads, splits and finds keys; whoever asks gets a batch.
//!
//! Memory is bounded: there is one batch being filled (see [`Limits`]) and one chunk being split. The reader waits while nobody
//! takes the batch. A record is a line, or in CSV text what a record is there, which may have several. One that is too long to hold as a whole comes in pieces, without a key.
//!
//! With [`Fill::Exact`] the batches depend on the input only: each ends at the first record that brings it to one of its limits.
//! With [`Fill::FullOrSilent`] that holds for inputs that are files; of another one, such as a pipe, a part of a batch is handed out
//! when nothing has come for a while. With [`Fill::WhatIsThere`] a batch is handed out as soon as there is anything in it, so a slow
//! input is answered line by line and a fast one in full batches.

mod batch;
mod csv;
mod exchange;
mod extract;
mod json_pointer;
mod reader;

use std::{fmt, io, path::PathBuf, sync::Arc, thread, time::Duration};

pub(crate) use batch::{Batch, Form, KeyAt, Line};
pub(crate) use csv::Column;
use exchange::Exchange;
pub(crate) use extract::Extract;
pub(crate) use json_pointer::JsonPointer;

use crate::exit::{Code, Failure};

/// Where lines come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// Standard input.
    Stdin,
    /// A file.
    File(PathBuf),
}

/// How lines are told apart and keyed.
#[derive(Debug, Clone)]
pub(crate) struct Format {
    /// The byte that ends a line.
    pub(crate) terminator: u8,
    /// How a line's key is found.
    pub(crate) extract: Extract,
    /// A line with more bytes than this comes in pieces.
    pub(crate) line_bytes_max: usize,
    /// Each input's first line is a header.
    pub(crate) has_header: bool,
}

/// How large a batch gets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// It is full with this many records.
    pub(crate) records: usize,
    /// It is full as soon as it has this many bytes.
    pub(crate) bytes: usize,
}

/// When a batch is handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fill {
    /// As soon as there is something in it.
    WhatIsThere,
    /// When it is full, or the input ends. What was read before an input failed is not handed out.
    Exact,
    /// Likewise; and when an input that is no file has brought nothing for [`SILENCE`], or there has been something in the batch for
    /// [`AGE_MAX`].
    FullOrSilent,
}

/// How long an input is silent before a part of a batch is handed out.
const SILENCE: Duration = Duration::from_millis(100);
/// How long a line waits at most for the rest of its batch.
const AGE_MAX: Duration = Duration::from_secs(1);

/// Why there are no more lines although the input has not ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    /// An input cannot be read.
    #[error("cannot read {name}: {source}")]
    Unreadable {
        /// What it is called.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// Somebody asked for an end.
    #[error("stopped by {by}")]
    Stopped {
        /// The signal's name.
        by: &'static str,
    },
}

impl From<InputError> for Failure {
    fn from(error: InputError) -> Self {
        let code = match error {
            InputError::Unreadable { .. } => Code::Failed,
            InputError::Stopped { .. } => Code::Interrupted,
        };
        Self::new(code, error.to_string())
    }
}

/// Ends lines before their end.
#[derive(Debug)]
pub(crate) struct Stopper(Arc<Exchange>);

impl Stopper {
    /// No more lines are read; those that were read are still handed out, but see [`Fill::Exact`].
    pub(crate) fn stop(&self, by: &'static str) {
        self.0.end(Err(InputError::Stopped { by }));
    }
}

/// The lines of several inputs, one after the other.
#[derive(Debug)]
pub(crate) struct Lines {
    exchange: Arc<Exchange>,
    fill: Fill,
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdin => f.write_str("standard input"),
            Self::File(path) => fmt::Debug::fmt(&path.display().to_string(), f),
        }
    }
}

impl Input {
    /// An error about this input.
    pub(crate) fn error(&self, source: io::Error) -> InputError {
        InputError::Unreadable {
            name: self.to_string(),
            source,
        }
    }
}

impl Lines {
    /// Starts reading.
    pub(crate) fn start(
        inputs: Vec<Input>,
        format: Format,
        limits: Limits,
        fill: Fill,
    ) -> io::Result<Self> {
        let exchange = Arc::new(Exchange::new(limits));
        let theirs = Arc::clone(&exchange);
        // Not joined: it may hang in a read of a silent pipe for ever. It owns nothing that must be put in order.
        thread::Builder::new()
            .name("input".to_owned())
            .spawn(move || reader::run(&inputs, &format, &theirs))?;
        Ok(Self { exchange, fill })
    }

    /// Waits for the next batch; `None` at the end. `spare` is an emptied batch to fill next.
    ///
    /// # Errors
    /// When an input cannot be read, after what was read before it (but see [`Fill::Exact`]).
    pub(crate) fn next(&self, spare: Batch) -> Result<Option<Batch>, InputError> {
        self.exchange.take(spare, self.fill)
    }

    /// What ends them early.
    pub(crate) fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.exchange))
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.exchange.abandon();
    }
}
