//! `keydb journal`: a look into a node's journal.

use std::{
    io::{BufWriter, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Subcommand};
use keydb_core::Lsn;
use keydb_node::{Found, inspect};
use serde_json::{Value, json};

use crate::{
    exit::Failure,
    output::{Stdout, answer, bytes_text, json_line, thousands},
};

const EXAMPLES: &str = "\
DIR is a data directory or the journal in it, also while its node runs, or a copy. A write that was cut short by a crash at the
very end is no damage: it was never acknowledged.

Examples:
  keydb journal verify ./keydb-data
  keydb journal inspect ./keydb-data --json | jq -c 'select(.kind==\"write\")'";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct JournalArgs {
    #[command(subcommand)]
    pub(crate) command: JournalCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum JournalCommand {
    /// Show every segment and record
    Inspect(JournalDirArgs),
    /// Read it to its end, and say whether it is whole
    Verify(JournalDirArgs),
}

#[derive(Debug, Args)]
pub(crate) struct JournalDirArgs {
    /// A data directory, or the journal in it
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Answer as JSON, one object a line
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &JournalArgs) -> Result<ExitCode, Failure> {
    match &args.command {
        JournalCommand::Inspect(args) => show(args),
        JournalCommand::Verify(args) => verify(args),
    }
}

/// The journal in a data directory, or the one that was named.
fn dir(args: &JournalDirArgs) -> Result<PathBuf, Failure> {
    let inside = args.dir.join("journal");
    let dir = if inside.is_dir() {
        inside
    } else {
        args.dir.clone()
    };
    if dir.is_dir() {
        return Ok(dir);
    }
    Err(Failure::usage(format!(
        "{} is not a directory",
        args.dir.display()
    )))
}

fn show(args: &JournalDirArgs) -> Result<ExitCode, Failure> {
    let mut out = BufWriter::new(Stdout::open()?.into_file());
    let mut failed = None;
    let inspected = inspect(&dir(args)?, |found| {
        if failed.is_some() {
            return;
        }
        let line = if args.json {
            json_line(&as_json(&found))
        } else {
            Ok(as_text(&found))
        };
        failed = match line {
            Ok(line) => writeln!(out, "{line}")
                .map_err(|error| cannot_write(&error))
                .err(),
            Err(error) => Some(error),
        };
    });
    if let Some(failure) = failed {
        return Err(failure);
    }
    out.flush().map_err(|error| cannot_write(&error))?;
    inspected.map_err(|error| Failure::failed(error.to_string()))?;
    Ok(ExitCode::SUCCESS)
}

fn cannot_write(error: &std::io::Error) -> Failure {
    Failure::failed(format!("cannot write to standard output: {error}"))
}

/// What was counted.
#[derive(Debug, Default)]
struct Counts {
    segments: u64,
    bytes: u64,
    records: u64,
    keys: u64,
    first: Option<Lsn>,
    last: Option<Lsn>,
    torn: Option<String>,
}

impl Counts {
    fn as_json(&self) -> Value {
        json!({
            "whole": true,
            "segments": self.segments,
            "bytes": self.bytes,
            "records": self.records,
            "keys": self.keys,
            "first_lsn": self.first,
            "last_lsn": self.last,
            "torn": self.torn,
        })
    }

    fn as_text(&self) -> String {
        let reach = match (self.first, self.last) {
            (Some(first), Some(last)) if first <= last => format!(", LSN {first} to {last}"),
            _ => String::new(),
        };
        let mut text = format!(
            "whole: {} records with {} keys in {} segments, {}{reach}\n",
            thousands(self.records),
            thousands(self.keys),
            self.segments,
            bytes_text(self.bytes)
        );
        if let Some(torn) = &self.torn {
            text.push_str(&format!(
                "the last write was cut short ({torn}); it was never acknowledged\n"
            ));
        }
        text
    }
}

fn verify(args: &JournalDirArgs) -> Result<ExitCode, Failure> {
    let mut counts = Counts::default();
    let dir = dir(args)?;
    inspect(&dir, |found| match found {
        Found::Segment { bytes, header, .. } => {
            counts.segments += 1;
            counts.bytes += bytes;
            counts.first.get_or_insert(header.first_lsn);
        }
        Found::Record {
            lsn, keys, kind, ..
        } => {
            counts.records += u64::from(kind != "mark");
            counts.keys += keys as u64;
            counts.last = Some(lsn);
        }
        Found::End { torn, .. } => counts.torn = torn,
        _ => {}
    })
    .map_err(|error| {
        Failure::failed(error.to_string())
            .with_line("docs/operations.md says what to do about a damaged journal")
    })?;
    if counts.segments == 0 {
        return Err(Failure::failed(format!(
            "there is no journal in {}",
            dir.display()
        )));
    }
    answer(args.json, || counts.as_json(), || counts.as_text())?;
    Ok(ExitCode::SUCCESS)
}

fn as_text(found: &Found) -> String {
    match found {
        Found::Segment {
            path,
            bytes,
            header,
        } => format!(
            "segment {}  {}  node {} disk {}  from LSN {}  made {}",
            path.display(),
            bytes_text(*bytes),
            header.node,
            header.disk_id,
            header.first_lsn,
            header.created
        ),
        Found::Record {
            offset,
            lsn,
            synced,
            written,
            kind,
            keys,
            operation,
        } => {
            let operation = operation.map_or_else(String::new, |id| format!("  operation {id}"));
            format!(
                "{offset:>10}  LSN {lsn}  {kind}  {} keys  written {written}  synced {synced}{operation}",
                thousands(*keys as u64)
            )
        }
        Found::End { offset, last, torn } => {
            let torn = torn
                .as_ref()
                .map_or_else(String::new, |reason| format!("  cut short: {reason}"));
            format!("{offset:>10}  end  last LSN {last}{torn}")
        }
        other => format!("{other:?}"),
    }
}

fn as_json(found: &Found) -> Value {
    match found {
        Found::Segment {
            path,
            bytes,
            header,
        } => json!({
            "segment": path.display().to_string(),
            "bytes": bytes,
            "cluster_id": header.cluster_id,
            "node": header.node,
            "disk_id": header.disk_id,
            "first_lsn": header.first_lsn,
            "previous_last_lsn": header.previous_last_lsn,
            "created_unix_ms": header.created,
        }),
        Found::Record {
            offset,
            lsn,
            synced,
            written,
            kind,
            keys,
            operation,
        } => json!({
            "offset": offset,
            "lsn": lsn,
            "synced": synced,
            "written_unix_ms": written,
            "kind": kind,
            "keys": keys,
            "operation": operation.map(|id| id.to_string()),
        }),
        Found::End { offset, last, torn } => json!({
            "end": offset,
            "last_lsn": last,
            "torn": torn,
        }),
        other => json!({"unknown": format!("{other:?}")}),
    }
}
