//! `keydb put`, `get` and `claim`: keys from the command line or standard input, an answer for each.

use std::{
    ffi::OsString,
    io::{self, IsTerminal},
    os::unix::ffi::OsStrExt,
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use keydb_client::{Claim, Client, GetError, KeyOutcome, WriteError};
use keydb_core::{KEY_BYTES_MAX, KeyError, Ttl, hex};
use serde::Serialize;
use tokio::runtime::Runtime;

use crate::{
    args::{KeyspaceArgs, TtlArg},
    connect,
    exit::Failure,
    lines::{Batch, Extract, Fill, Form, Format, Input, Limits, Lines},
    output::{Stdout, json_line, say},
};

pub(crate) const PUT_EXAMPLES: &str = "\
Each key is answered with `stored<TAB>KEY`, in input order.

Examples:
  keydb put --ttl 30d order-1001 order-1002
  cut -f1 orders.tsv | keydb put --ttl 30d > /dev/null";

const GET_EXAMPLES: &str = "\
Each key is answered with `present<TAB>KEY` or `absent<TAB>KEY`, in input order.

Examples:
  keydb get order-1001
  cut -f1 orders.tsv | keydb get | grep ^absent";

pub(crate) const CLAIM_EXAMPLES: &str = "\
Each key is answered with `first<TAB>KEY` (it was absent and is now stored), `duplicate<TAB>KEY`, or `unknown<TAB>KEY` (it
is there, but after a lost reply nobody knows any more through whom), in input order.

Examples:
  keydb claim --ttl 10m alice bob alice
  find . -type f -print0 | keydb claim -0 | tr '\\0' '\\n'";

/// Where keys come from, and how the answers look.
#[derive(Debug, Args)]
pub(crate) struct KeyArgs {
    /// The keys; without any, they are read from standard input, one a line
    #[arg(value_name = "KEY")]
    pub(crate) keys: Vec<OsString>,
    /// Keys on standard input, and answers, end in NUL instead of a new line
    #[arg(short = '0', long)]
    pub(crate) null: bool,
    /// Answer with one JSON object a line: {"key":…,"answer":…}, or key_hex where a key is not UTF-8
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) keyspace: KeyspaceArgs,
}

#[derive(Debug, Args)]
#[command(after_help = GET_EXAMPLES)]
pub(crate) struct GetArgs {
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
}

#[derive(Debug, Args)]
pub(crate) struct WriteArgs {
    #[command(flatten)]
    pub(crate) ttl: TtlArg,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
}

/// What one call has at most.
pub(super) const BATCH_LIMITS: Limits = Limits {
    records: 8192,
    bytes: 4 << 20,
};
/// A line with more bytes is not read as a whole, so an error cannot say how long it is.
pub(super) const LINE_BYTES_MAX: usize = 1 << 20;

pub(crate) fn put(args: &WriteArgs) -> Result<ExitCode, Failure> {
    run(&args.keys, Operation::Put(args.ttl.ttl))
}

pub(crate) fn get(args: &GetArgs) -> Result<ExitCode, Failure> {
    run(&args.keys, Operation::Get)
}

pub(crate) fn claim(args: &WriteArgs) -> Result<ExitCode, Failure> {
    run(&args.keys, Operation::Claim(args.ttl.ttl))
}

#[derive(Debug, Clone, Copy)]
enum Operation {
    Put(Ttl),
    Get,
    Claim(Ttl),
}

fn run(args: &KeyArgs, operation: Operation) -> Result<ExitCode, Failure> {
    let given: Vec<&[u8]> = args.keys.iter().map(|key| key.as_bytes()).collect();
    for (key, number) in given.iter().zip(1..) {
        check(key)
            .map_err(|error| Failure::failed(format!("key {number}: {error}; nothing was done")))?;
    }
    let config = connect::key_config(&args.keyspace)?;
    let runtime = connect::runtime()?;
    let client = runtime.block_on(connect::connect(config))?;
    let mut session = Session {
        runtime: &runtime,
        client: &client,
        operation,
        out: Stdout::open()?,
        json: args.json,
        terminator: if args.null { 0 } else { b'\n' },
    };
    if given.is_empty() {
        session.answer_input()?;
    } else {
        session.answer(given.len(), || given.iter().copied())?;
    }
    runtime.block_on(client.close(Duration::ZERO));
    Ok(ExitCode::SUCCESS)
}

/// Whether these bytes can be a key.
fn check(key: &[u8]) -> Result<(), KeyError> {
    match key.len() {
        0 => Err(KeyError::Empty),
        1..=KEY_BYTES_MAX => Ok(()),
        length => Err(KeyError::TooLong { length }),
    }
}

struct Session<'a> {
    runtime: &'a Runtime,
    client: &'a Client,
    operation: Operation,
    out: Stdout,
    json: bool,
    terminator: u8,
}

impl Session<'_> {
    /// Answers the keys on standard input, as they come.
    fn answer_input(&mut self) -> Result<(), Failure> {
        if io::stdin().is_terminal() {
            say("keydb: reading keys from standard input, one a line (Ctrl-D ends them)");
        }
        let format = Format {
            terminator: self.terminator,
            extract: Extract::WholeLine,
            line_bytes_max: LINE_BYTES_MAX,
            has_header: false,
        };
        let lines = Lines::start(vec![Input::Stdin], format, BATCH_LIMITS, Fill::WhatIsThere)
            .map_err(Failure::no_thread)?;
        let mut spare = Batch::default();
        let mut answered: u64 = 0;
        while let Some(batch) = lines.next(spare)? {
            check_batch("standard input", &batch, answered)?;
            self.answer(batch.len(), || batch.keys())?;
            answered += batch.len() as u64;
            spare = batch;
        }
        Ok(())
    }

    /// Asks about keys and writes their answers; those that are known also where the call fails for others.
    fn answer<'k, I: Iterator<Item = &'k [u8]>>(
        &mut self,
        count: usize,
        keys: impl Fn() -> I,
    ) -> Result<(), Failure> {
        let (runtime, client) = (self.runtime, self.client);
        let (answers, ended) = match self.operation {
            Operation::Put(ttl) => match runtime.block_on(client.put(keys(), ttl)) {
                Ok(()) => (vec![Some("stored"); count], Ok(())),
                Err(error) => (known(&error), Err(error.into())),
            },
            Operation::Get => match runtime.block_on(client.get(keys())) {
                Ok(present) => (
                    present.into_iter().map(get_text).map(Some).collect(),
                    Ok(()),
                ),
                Err(GetError::Partial(partial)) => (
                    partial.answers.iter().map(|it| it.map(get_text)).collect(),
                    Err(GetError::Partial(partial).into()),
                ),
                Err(error) => (Vec::new(), Err(error.into())),
            },
            Operation::Claim(ttl) => match runtime.block_on(client.claim(keys(), ttl)) {
                Ok(claims) => (
                    claims.into_iter().map(claim_text).map(Some).collect(),
                    Ok(()),
                ),
                Err(error) => (known(&error), Err(error.into())),
            },
        };
        let mut text = Vec::new();
        for (key, answer) in keys().zip(answers) {
            let Some(answer) = answer else { continue };
            if self.json {
                text.extend_from_slice(json_line(&Answer::new(key, answer))?.as_bytes());
                text.push(b'\n');
            } else {
                text.extend_from_slice(answer.as_bytes());
                text.push(b'\t');
                text.extend_from_slice(key);
                text.push(self.terminator);
            }
        }
        self.out.write(&text)?;
        ended
    }
}

/// What a write that failed knows of each key.
fn known(error: &WriteError) -> Vec<Option<&'static str>> {
    let WriteError::MaybeApplied(what) = error else {
        return Vec::new();
    };
    let text = |outcome: &KeyOutcome| match outcome {
        KeyOutcome::Claimed(claim) => Some(claim_text(*claim)),
        KeyOutcome::Stored => Some("stored"),
        _ => None,
    };
    what.outcomes.iter().map(text).collect()
}

const fn get_text(present: bool) -> &'static str {
    if present { "present" } else { "absent" }
}

/// Refuses a batch of `input` as a whole if one of its lines is no key; `before` lines have been worked on already.
pub(super) fn check_batch(input: &str, batch: &Batch, before: u64) -> Result<(), Failure> {
    if batch.key_count() == batch.len() {
        return Ok(());
    }
    for (line, number) in batch.lines().zip(before + 1..) {
        let problem = match (line.key, line.form) {
            (Some(_), _) | (None, Form::Header | Form::HeaderAgain) => continue,
            (None, Form::Line) => match check(&line.raw[..line.raw.len() - 1]) {
                Err(error) => error.to_string(),
                Ok(()) => continue,
            },
            (None, Form::LongFirst | Form::LongMore) => format!(
                "the key has more than {LINE_BYTES_MAX} bytes; a key has 1 to {KEY_BYTES_MAX} bytes"
            ),
        };
        let nothing_from = match before {
            0 => "nothing was done".to_owned(),
            _ => format!("nothing was done from line {} on", before + 1),
        };
        return Err(Failure::failed(format!(
            "{input}, line {number}: {problem}; {nothing_from}"
        )));
    }
    Ok(())
}

const fn claim_text(claim: Claim) -> &'static str {
    match claim {
        Claim::First => "first",
        Claim::Duplicate => "duplicate",
        Claim::Unknown => "unknown",
    }
}

/// One answer as JSON.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    /// Of a key that is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_hex: Option<String>,
    answer: &'a str,
}

impl<'a> Answer<'a> {
    fn new(key: &'a [u8], answer: &'a str) -> Self {
        let text = std::str::from_utf8(key).ok();
        Self {
            key: text,
            key_hex: text.is_none().then(|| hex(key)),
            answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_not_utf8_is_told_in_hex() {
        let json = |key: &[u8]| json_line(&Answer::new(key, "first")).unwrap();
        assert_eq!(json(b"a\"b"), r#"{"key":"a\"b","answer":"first"}"#);
        assert_eq!(json(b"\xff\x00"), r#"{"key_hex":"ff00","answer":"first"}"#);
    }
}
