//! What a run has done: shown while it goes on, and at its end.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use keydb_core::Claim;
use serde_json::{Value, json};

use crate::output::thousands;

const REDRAW_INTERVAL: Duration = Duration::from_millis(200);

/// Lines by what became of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    pub(crate) lines: u64,
    pub(crate) firsts: u64,
    pub(crate) duplicates: u64,
    pub(crate) unknown: u64,
    pub(crate) without_key: u64,
}

impl Counts {
    /// One more line; `None`: it has no usable key.
    pub(crate) fn add(&mut self, claim: Option<Claim>) {
        self.lines += 1;
        match claim {
            Some(Claim::First) => self.firsts += 1,
            Some(Claim::Duplicate) => self.duplicates += 1,
            Some(Claim::Unknown) => self.unknown += 1,
            None => self.without_key += 1,
        }
    }

    fn merge(&mut self, other: &Self) {
        self.lines += other.lines;
        self.firsts += other.firsts;
        self.duplicates += other.duplicates;
        self.unknown += other.unknown;
        self.without_key += other.without_key;
    }

    /// The counts after `elapsed`, in words.
    pub(crate) fn text(&self, elapsed: Duration) -> String {
        format!(
            "{} lines: {} first, {} duplicate, {} unknown, {} without key; {:.1} s, {} lines/s",
            thousands(self.lines),
            thousands(self.firsts),
            thousands(self.duplicates),
            thousands(self.unknown),
            thousands(self.without_key),
            elapsed.as_secs_f64(),
            thousands(self.per_second(elapsed)),
        )
    }

    /// The counts after `elapsed`, as JSON.
    pub(crate) fn json(&self, elapsed: Duration) -> Value {
        json!({
            "lines": self.lines,
            "firsts": self.firsts,
            "duplicates": self.duplicates,
            "unknown": self.unknown,
            "without_key": self.without_key,
            "seconds": elapsed.as_secs_f64(),
            "lines_per_second": self.per_second(elapsed),
        })
    }

    fn per_second(&self, elapsed: Duration) -> u64 {
        (self.lines as f64 / elapsed.as_secs_f64().max(1e-9)) as u64
    }
}

/// The counts so far, drawn on standard error while that is a terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    counts: Counts,
    started: Instant,
    drawn: Option<Instant>,
    is_terminal: bool,
}

impl Progress {
    /// Nothing done yet.
    pub(crate) fn start() -> Self {
        Self {
            counts: Counts::default(),
            started: Instant::now(),
            drawn: None,
            is_terminal: io::stderr().is_terminal(),
        }
    }

    /// Adds a batch's counts, and draws now and then.
    pub(crate) fn add(&mut self, counts: &Counts) {
        self.counts.merge(counts);
        let due = self.drawn.unwrap_or(self.started) + REDRAW_INTERVAL;
        let now = Instant::now();
        if self.is_terminal && now >= due {
            self.drawn = Some(now);
            let text = self.counts.text(now - self.started);
            let _ = write!(io::stderr(), "\r\x1b[K{text}");
        }
    }

    /// Takes the drawing away and returns the counts.
    pub(crate) fn finish(self) -> Counts {
        if self.drawn.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
        self.counts
    }
}
