//! How far a long command is, for somebody who watches.

use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use crate::output::{say, thousands};

/// How often a line is written: on a terminal, and to a file.
const ON_TERMINAL: Duration = Duration::from_secs(2);
const TO_FILE: Duration = Duration::from_secs(30);

/// Writes a line to standard error every now and then.
#[derive(Debug)]
pub(crate) struct Progress {
    verb: &'static str,
    interval: Duration,
    last: Instant,
    last_count: u64,
}

impl Progress {
    /// Of something that `verb`, such as `imported`, says of keys.
    pub(crate) fn new(verb: &'static str) -> Self {
        Self {
            verb,
            interval: if io::stderr().is_terminal() {
                ON_TERMINAL
            } else {
                TO_FILE
            },
            last: Instant::now(),
            last_count: 0,
        }
    }

    /// So many keys are done.
    pub(crate) fn at(&mut self, count: u64) {
        let elapsed = self.last.elapsed();
        if elapsed < self.interval {
            return;
        }
        let rate = (count - self.last_count) as f64 / elapsed.as_secs_f64();
        say(&format!(
            "{} {} keys, {}/s",
            self.verb,
            thousands(count),
            thousands(rate as u64)
        ));
        self.last = Instant::now();
        self.last_count = count;
    }
}
