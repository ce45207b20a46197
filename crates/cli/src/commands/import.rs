//! `keydb import`: a list of keys in bulk.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use keydb_client::{Client, WriteError};
use keydb_core::Ttl;
use serde_json::json;
use tokio::{
    runtime::Runtime,
    task::{JoinError, JoinSet},
};

use super::keys::{BATCH_LIMITS, LINE_BYTES_MAX, check_batch};
use crate::{
    args::{KeyspaceArgs, TtlArg},
    connect,
    exit::Failure,
    lines::{Batch, Extract, Fill, Format, Input, Lines},
    output::{Stdout, say, thousands},
    progress::Progress,
};

const EXAMPLES: &str = "\
One key a line. To run it again, also after it was stopped half-way, does no harm: the keys' lives then end later.

Examples:
  keydb import seen.txt --ttl 30d
  zcat seen.gz | keydb import - --ttl 30d
  keydb import -0 names.bin --ttl 1y";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ImportArgs {
    /// The list; - is standard input
    #[arg(value_name = "FILE|-")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) ttl: TtlArg,
    /// Keys end in NUL instead of a new line
    #[arg(short = '0', long)]
    pub(crate) null: bool,
    /// Say what was done as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) keyspace: KeyspaceArgs,
}

/// How many calls are on their way.
const CALLS_MAX: usize = 8;

pub(crate) fn run(args: &ImportArgs) -> Result<ExitCode, Failure> {
    let input = if args.file == Path::new("-") {
        Input::Stdin
    } else {
        Input::File(args.file.clone())
    };
    let config = connect::key_config(&args.keyspace)?;
    let runtime = connect::runtime()?;
    let client = runtime.block_on(connect::connect(config))?;
    let format = Format {
        terminator: if args.null { 0 } else { b'\n' },
        extract: Extract::WholeLine,
        line_bytes_max: LINE_BYTES_MAX,
        has_header: false,
    };
    let name = input.to_string();
    let started = Instant::now();
    let lines =
        Lines::start(vec![input], format, BATCH_LIMITS, Fill::Exact).map_err(Failure::no_thread)?;
    let keys = import(&runtime, &client, &lines, &name, args.ttl.ttl).map_err(|failure| {
        failure.with_line("to import the list again, from its beginning, does no harm")
    })?;
    runtime.block_on(client.close(Duration::ZERO));
    if args.json {
        Stdout::open()?.json(&json!({"imported": keys}))?;
    } else {
        let seconds = started.elapsed().as_secs_f64();
        say(&format!(
            "imported {} keys in {seconds:.1} s",
            thousands(keys)
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// Stores every key; how many there were, repeats included.
fn import(
    runtime: &Runtime,
    client: &Client,
    lines: &Lines,
    name: &str,
    ttl: Ttl,
) -> Result<u64, Failure> {
    let mut progress = Progress::new("imported");
    let mut calls: JoinSet<(Batch, Result<(), WriteError>)> = JoinSet::new();
    let mut spare = Vec::new();
    let (mut read, mut stored) = (0, 0);
    let mut done = |ended: Result<(Batch, Result<(), WriteError>), JoinError>| {
        let (batch, result) =
            ended.map_err(|error| Failure::failed(format!("a call failed: {error}")))?;
        result?;
        stored += batch.len() as u64;
        progress.at(stored);
        Ok::<Batch, Failure>(batch)
    };
    loop {
        if calls.len() >= CALLS_MAX
            && let Some(ended) = runtime.block_on(calls.join_next())
        {
            spare.push(done(ended)?);
        }
        let Some(batch) = lines.next(spare.pop().unwrap_or_default())? else {
            break;
        };
        check_batch(name, &batch, read)?;
        read += batch.len() as u64;
        let client = client.clone();
        calls.spawn_on(
            async move {
                let result = client.put(batch.keys(), ttl).await;
                (batch, result)
            },
            runtime.handle(),
        );
    }
    while let Some(ended) = runtime.block_on(calls.join_next()) {
        done(ended)?;
    }
    Ok(read)
}
