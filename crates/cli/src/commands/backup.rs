//! `keydb backup`: copies of a cluster's snapshots elsewhere. It needs no operator: any member does what is asked.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Args, Subcommand};
use keydb_client::{AdminClient, BackupProgress};
use keydb_storage::StorageUrl;
use serde_json::json;

use crate::{
    args::ConnectArgs,
    connect,
    exit::Failure,
    output::{answer, bytes_text, say, shell_word, thousands},
    settings,
};

const CREATE_EXAMPLES: &str = "\
Has every node make a snapshot, and then a node copy what object storage has of the cluster, with the node's own credentials. A command
that is interrupted can be given again, with the name that it has said: it goes on where it was. A complete backup is never changed.

A copy of a backup is the object storage of a cluster whose disks are lost: see docs/operations.md.

Examples:
  keydb backup create --to s3://backups/keydb
  keydb backup create --to file:///mnt/backups --name before-upgrade";

/// A backup that takes longer is no longer watched.
const WATCH_MAX: Duration = Duration::from_secs(86_400);
/// How often a line is written.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    #[command(subcommand)]
    command: BackupCommand,
}

#[derive(Debug, Subcommand)]
enum BackupCommand {
    /// Make a backup of the cluster
    Create(CreateArgs),
}

#[derive(Debug, Args)]
#[command(after_help = CREATE_EXAMPLES)]
struct CreateArgs {
    /// Below which storage: s3://bucket/prefix, or file:///directory, which every node sees
    #[arg(long, value_name = "URL", value_parser = settings::storage_url)]
    to: StorageUrl,
    /// What it is called [default: the time in UTC]
    #[arg(long)]
    name: Option<String>,
    /// Answer as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(crate) fn run(args: &BackupArgs) -> Result<ExitCode, Failure> {
    let BackupCommand::Create(args) = &args.command;
    if args.name.as_deref() == Some("") {
        return Err(Failure::usage(
            "--name is empty; give one such as 2026-11-27",
        ));
    }
    let config = connect::config(&args.connect)?;
    let made = connect::runtime()?.block_on(async {
        let admin = AdminClient::from(connect::connect(config).await?);
        let mut lines = Lines::default();
        let to = args.to.to_string();
        let made = admin.backup(&to, args.name.as_deref(), WATCH_MAX, |now| lines.show(now));
        let made = made.await;
        admin.close(Duration::ZERO).await;
        made.map_err(|error| match &lines.name {
            // There is something to go on with.
            Some(name) => Failure::from(error).with_line(&format!(
                "to go on with it: keydb backup create --to {} --name {}",
                shell_word(&to),
                shell_word(name)
            )),
            None => error.into(),
        })
    })?;
    answer(args.json, || as_json(&made), || as_text(&made))?;
    Ok(ExitCode::SUCCESS)
}

/// Says how far a backup is: at its beginning, and now and then.
#[derive(Default)]
struct Lines {
    name: Option<String>,
    last: Option<Instant>,
}

impl Lines {
    fn show(&mut self, now: &BackupProgress) {
        self.name = Some(now.name.clone());
        let is_due = self.last.is_none_or(|last| last.elapsed() >= LINE_INTERVAL);
        if is_due && now.completed.is_none() {
            say(&format!(
                "backup {}: {} of {} objects, {} of {}",
                now.name,
                thousands(now.objects_done),
                thousands(now.objects),
                bytes_text(now.bytes_done),
                bytes_text(now.bytes)
            ));
            self.last = Some(Instant::now());
        }
    }
}

fn as_text(made: &BackupProgress) -> String {
    let content = format!(
        "{} objects, {}, {} entries",
        thousands(made.objects),
        bytes_text(made.bytes),
        thousands(made.entries.unwrap_or(0))
    );
    match made.complete_to {
        Some(time) => format!(
            "backup {} is complete: {content}\nit has everything that was acknowledged before {time}\n{}\n",
            made.name, made.url
        ),
        None => format!("backup {} goes on: {content}\n{}\n", made.name, made.url),
    }
}

fn as_json(made: &BackupProgress) -> serde_json::Value {
    json!({
        "name": made.name,
        "url": made.url,
        "complete": made.completed.is_some(),
        "completed_unix_ms": made.completed,
        "complete_to_unix_ms": made.complete_to,
        "complete_to": made.complete_to.map(|time| time.to_string()),
        "entries": made.entries,
        "objects": made.objects,
        "object_bytes": made.bytes,
    })
}
