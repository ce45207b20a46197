//! What can be said to `keydb snapshot`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

use keydb_storage::GARBAGE_AGE_MIN;

use crate::{args::ConnectArgs, settings};

const EXAMPLES: &str = "\
Examples:
  keydb snapshot create                      all nodes, now
  keydb snapshot verify                      is object storage whole?
  keydb snapshot export --out keys.keydb     all keys, to take elsewhere

All but create and import work on object storage itself (KEYDB_STORAGE_URL and so on, see `keydb node --help`), whether nodes run
or not.";

const CREATE_EXAMPLES: &str = "\
Exits with 3 when a node did not make one; the others' are there all the same.

Examples:
  keydb snapshot create
  keydb snapshot create --full --timeout 1h";

const LIST_EXAMPLES: &str = "\
Examples:
  KEYDB_STORAGE_URL=file:///srv/keydb keydb snapshot list
  keydb snapshot list --json | jq '.nodes[].complete_to_unix_ms'";

const INSPECT_EXAMPLES: &str = "\
The object is read to its end, so what is shown of one is whole.

Examples:
  keydb snapshot inspect manifests/node-0.json
  keydb snapshot inspect snapshots/node-0/0a…-full-17.keydb
  keydb snapshot inspect ./keydb-data/snapshots/0a…-full-17.keydb";

const VERIFY_EXAMPLES: &str = "\
Reads every manifest, and every object that one names, to the end. Exits with 1 when something is damaged or missing, and names it.

Examples:
  keydb snapshot verify
  keydb snapshot verify --node 2";

const GC_EXAMPLES: &str = "\
Removes objects that no manifest names. Each node does this for its own once an hour.

Examples:
  keydb snapshot gc --dry-run
  keydb snapshot gc --older-than 20m";

const EXPORT_EXAMPLES: &str = "\
Writes a snapshot file with the keys' fingerprints, in order, and their expiries, as far as object storage has them: see
`keydb snapshot create`. The file holds the cluster's hash seed: with it, one can find out whether a key is among them.

Examples:
  keydb snapshot export --out keys.keydb
  keydb snapshot export --range 0 --range 1 --out - | ssh elsewhere 'cat > keys.keydb'";

const IMPORT_EXAMPLES: &str = "\
Puts an export's keys into the cluster, each until its own expiry. The cluster must have the same hash seed. To run it again, also
after it was stopped half-way, does no harm.

Examples:
  keydb snapshot import keys.keydb
  ssh elsewhere 'cat keys.keydb' | keydb snapshot import -";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    pub(crate) command: SnapshotCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Have every node make a snapshot now, and wait until object storage has it
    Create(CreateArgs),
    /// Show what object storage has, and up to when
    List(ListArgs),
    /// Show what is in a manifest or snapshot file
    Inspect(InspectArgs),
    /// Read everything that object storage has, and say what is damaged or missing
    Verify(VerifyArgs),
    /// Remove objects that no manifest names
    Gc(GcArgs),
    /// Write the keys of object storage to a file
    Export(ExportArgs),
    /// Put the keys of such a file into a running cluster
    Import(ImportArgs),
}

#[derive(Debug, Args)]
#[command(
    after_help = CREATE_EXAMPLES,
    mut_arg("timeout", |timeout| timeout.default_value("10m").help("How long it may take"))
)]
pub(crate) struct CreateArgs {
    /// Full snapshots of all hash ranges, rather than only what has changed
    #[arg(long)]
    pub(crate) full: bool,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
pub(crate) struct ListArgs {
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = INSPECT_EXAMPLES)]
pub(crate) struct InspectArgs {
    /// An object's key, or a file's path
    #[arg(value_name = "OBJECT|FILE")]
    pub(crate) what: String,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = VERIFY_EXAMPLES)]
pub(crate) struct VerifyArgs {
    /// Only this node's
    #[arg(long, value_name = "N")]
    pub(crate) node: Option<u32>,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = GC_EXAMPLES)]
pub(crate) struct GcArgs {
    /// Only say what would be removed
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Leave younger objects alone: a node may be about to name them; at least 20m
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = garbage_age)]
    pub(crate) older_than: Duration,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = EXPORT_EXAMPLES)]
pub(crate) struct ExportArgs {
    /// Where to; - is standard output
    #[arg(long, value_name = "FILE|-")]
    pub(crate) out: PathBuf,
    /// Only this hash range; may be given several times
    #[arg(long = "range", value_name = "N")]
    pub(crate) ranges: Vec<u32>,
    /// Say what was written as JSON, to standard error where standard output is taken
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = IMPORT_EXAMPLES)]
pub(crate) struct ImportArgs {
    /// The export; - is standard input
    #[arg(value_name = "FILE|-")]
    pub(crate) file: PathBuf,
    /// Say what was done as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

/// The age of what is removed.
fn garbage_age(text: &str) -> Result<Duration, String> {
    let age = settings::duration(text)?;
    if age < GARBAGE_AGE_MIN {
        return Err(format!(
            "is too short: an upload that is under way has objects that no manifest names yet; give at least {}m",
            GARBAGE_AGE_MIN.as_secs() / 60
        ));
    }
    Ok(age)
}
