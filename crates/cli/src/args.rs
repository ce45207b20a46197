//! What can be said on the command line.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use keydb_core::{Namespace, Ttl};

use crate::{bench::BenchArgs, commands::snapshot::SnapshotArgs, dedup::DedupArgs, exit, settings};

/// KeyDB answers one question for very many keys: has this key been seen in the last N days?
#[derive(Debug, Parser)]
#[command(name = "keydb", version, after_help = help_end())]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

fn help_end() -> String {
    format!(
        "\
Examples:
  keydb dev                                  a cluster to try, in this terminal
  keydb claim --ttl 10m alice bob alice      first, first, duplicate
  keydb dedup events.log > unique.log        each line once
  keydb status                               nodes, keys, memory

Settings come from the environment (KEYDB_…); `keydb node --check` shows them. KEYDB_LOG sets what is logged, to standard
error, such as debug or keydb_node=debug,info.

{}",
        exit::TABLE
    )
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create the cluster that the settings describe; harmless where there is one already
    #[command(after_help = INIT_EXAMPLES)]
    Init(InitArgs),
    /// Run one node of a cluster, as the settings say
    #[command(after_help = NODE_EXAMPLES)]
    Node(NodeArgs),
    /// Run a whole cluster in this process, to try KeyDB on one machine
    #[command(after_help = DEV_EXAMPLES)]
    Dev(DevArgs),
    /// Store keys
    #[command(after_help = PUT_EXAMPLES)]
    Put(WriteArgs),
    /// Ask whether keys are there
    #[command(after_help = GET_EXAMPLES)]
    Get(GetArgs),
    /// Store the keys that are not there yet, and say which those were
    #[command(after_help = CLAIM_EXAMPLES)]
    Claim(WriteArgs),
    /// Write each line whose key was not seen before, in input order
    #[command(after_help = crate::dedup::EXAMPLES)]
    Dedup(Box<DedupArgs>),
    /// Show nodes, hash ranges, keys, memory and durability
    #[command(after_help = STATUS_EXAMPLES)]
    Status(StatusArgs),
    /// Make, show, check and carry snapshots
    #[command(after_help = crate::commands::snapshot::EXAMPLES)]
    Snapshot(SnapshotArgs),
    /// Store a list of keys in bulk
    #[command(after_help = IMPORT_EXAMPLES)]
    Import(ImportArgs),
    /// Look into a node's journal
    #[command(after_help = JOURNAL_EXAMPLES)]
    Journal(JournalArgs),
    /// Give up a node's lost disk
    #[command(after_help = RECOVER_EXAMPLES)]
    Recover(RecoverArgs),
    /// Put load on a cluster and measure it
    #[command(after_help = crate::bench::EXAMPLES)]
    Bench(Box<BenchArgs>),
    /// Write a completion script for a shell
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions(CompletionsArgs),
}

const INIT_EXAMPLES: &str = "\
Examples:
  KEYDB_NODE_ADDRESSES=keydb-0:50051,keydb-1:50051,keydb-2:50051 KEYDB_STORAGE_URL=file:///srv/keydb keydb init

  KEYDB_DURABILITY=memory KEYDB_NODE_ADDRESSES=localhost:50051 keydb init

Settings: KEYDB_NODE_ADDRESSES (a node's place in the list is its id), KEYDB_TOTAL_HASH_RANGES (128), KEYDB_STORAGE_URL
(./keydb-storage; or KEYDB_STORAGE_BUCKET and so on, see `keydb node --help`), KEYDB_DURABILITY, which stays as it is for good:
  journal   (default) nothing that was acknowledged is ever lost
  snapshot  a crash loses at most what came since the last snapshot
  memory    nothing is kept; a node that stops forgets its keys";

const NODE_EXAMPLES: &str = "\
Examples:
  keydb node --check
  KEYDB_NODE_ID=0 KEYDB_STORAGE_URL=file:///srv/keydb keydb node
  KEYDB_NODE_ID=0 KEYDB_CLUSTER_SIZE=3 KEYDB_PORT=50051 \\
    KEYDB_NODE_ADDRESSES='[\"localhost:50051\",\"localhost:50052\",\"localhost:50053\"]' keydb node

  KEYDB_NODE_ID=0 KEYDB_STORAGE_BUCKET=keydb KEYDB_STORAGE_REGION=us-east-1 KEYDB_STORAGE_ENDPOINT=http://localhost:9000 \\
    KEYDB_STORAGE_ACCESSKEYID=minioadmin KEYDB_STORAGE_ACCESSKEY=minioadmin KEYDB_SNAPSHOT_INTERVAL=60s keydb node

Settings:
  KEYDB_NODE_ID                 a number, or a host name that ends in -N
  KEYDB_PORT                    gRPC (50051)
  KEYDB_HTTP_PORT               /startup, /ready, /live and /metrics (50080; off)
  KEYDB_STORAGE_URL             s3://bucket/prefix or file:///dir (./keydb-storage); or, for S3, instead of it:
  KEYDB_STORAGE_BUCKET          bucket, or bucket/prefix; and for either:
  KEYDB_STORAGE_REGION          (us-east-1)
  KEYDB_STORAGE_ENDPOINT        of an S3-compatible server, such as http://minio:9000
  KEYDB_STORAGE_ACCESSKEYID     without these two, the credentials of the environment are used, as other AWS programs do
  KEYDB_STORAGE_ACCESSKEY
  KEYDB_DATA_DIR                journal and snapshots of this node (./keydb-data)
  KEYDB_SNAPSHOT_INTERVAL       1s to 24h (60s)
  KEYDB_MAP_POLL_INTERVAL       how often the cluster map in object storage is looked at, 100ms to 1h (1s)
  KEYDB_DISK_HANG_LIMIT         how long the disk may not answer before the process ends, 10s to 24h (60s)
  KEYDB_MEMORY_LIMIT            of the keys: 8GiB, 70% of the machine or container (0: none)
  KEYDB_MEMORY_POLICY           at the limit: refuse new keys, or shed those that would expire soonest (refuse)
  KEYDB_ANSWER_MEMORY_BYTES     remembered answers to claims (64MiB), and KEYDB_ANSWER_MEMORY_AGE (5m)
  KEYDB_REQUEST_KEYS_MAX        (65536), and KEYDB_REQUESTS_IN_FLIGHT_MAX (1024)
  KEYDB_LOG                     (info)
  KEYDB_INIT                    true: node 0 creates the cluster at its start, by the three below
  KEYDB_NODE_ADDRESSES, KEYDB_TOTAL_HASH_RANGES (128), KEYDB_DURABILITY (journal); KEYDB_CLUSTER_SIZE is checked against the
  list. What the cluster map says wins over these.

SIGINT (Ctrl-C) and SIGTERM stop the node once its requests in progress have ended; a second one stops it at once.";

const DEV_EXAMPLES: &str = "\
Examples:
  keydb dev
  keydb dev --nodes 5
  keydb dev --dir ./my-keys                  the same keys again after a restart

It listens on 127.0.0.1 only, at the ports from 50051 on where they are free. Ctrl-C stops it, and all keys are forgotten, unless
there is a --dir.";

const PUT_EXAMPLES: &str = "\
Each key is answered with `stored<TAB>KEY`, in input order.

Examples:
  keydb put --ttl 30d order-1001 order-1002
  cut -f1 orders.tsv | keydb put --ttl 30d > /dev/null";

const GET_EXAMPLES: &str = "\
Each key is answered with `present<TAB>KEY` or `absent<TAB>KEY`, in input order.

Examples:
  keydb get order-1001
  cut -f1 orders.tsv | keydb get | grep ^absent";

const CLAIM_EXAMPLES: &str = "\
Each key is answered with `first<TAB>KEY` (it was absent and is now stored), `duplicate<TAB>KEY`, or `unknown<TAB>KEY` (it
is there, but after a lost reply nobody knows any more through whom), in input order.

Examples:
  keydb claim --ttl 10m alice bob alice
  find . -type f -print0 | keydb claim -0 | tr '\\0' '\\n'";

const STATUS_EXAMPLES: &str = "\
Exits with 3 when a node did not answer.

Examples:
  keydb status
  keydb status --json | jq .keys";

const IMPORT_EXAMPLES: &str = "\
One key a line. To run it again, also after it was stopped half-way, does no harm: the keys' lives then end later.

Examples:
  keydb import seen.txt --ttl 30d
  zcat seen.gz | keydb import - --ttl 30d
  keydb import -0 names.bin --ttl 1y";

const JOURNAL_EXAMPLES: &str = "\
DIR is a data directory or the journal in it, also while its node runs, or a copy. A write that was cut short by a crash at the
very end is no damage: it was never acknowledged.

Examples:
  keydb journal verify ./keydb-data
  keydb journal inspect ./keydb-data --json | jq -c 'select(.kind==\"write\")'";

const RECOVER_EXAMPLES: &str = "\
In a `journal` cluster a node is its disk: another disk under its id is refused, since what the first one acknowledged would be
missing. This gives that up: the node starts with an empty data directory, takes what object storage has of it, and the map counts
a loss. Without --accept-loss it only says what would be lost, and exits with 2.

With --map it puts the cluster map back into object storage, where that has lost it or has an older one: the newest of those that
the running nodes (KEYDB_NODE_ADDRESSES), this machine's data directory (KEYDB_DATA_DIR) and the ones given with --data-dir have.

Examples:
  keydb recover --node 2
  keydb recover --node 2 --accept-loss
  KEYDB_NODE_ADDRESSES=keydb-0:50051,keydb-1:50051 keydb recover --map
  keydb recover --map --data-dir /mnt/node-0 --data-dir /mnt/node-1";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  keydb completions bash > ~/.local/share/bash-completion/completions/keydb
  keydb completions zsh > ~/.zfunc/_keydb";

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// Check the settings, print the ones in force, and do nothing else
    #[arg(long)]
    pub(crate) check: bool,
    /// Print the settings as JSON
    #[arg(long, requires = "check")]
    pub(crate) json: bool,
}

/// The most nodes of a cluster in one process.
const DEV_NODES_MAX: i64 = 100;

#[derive(Debug, Args)]
pub(crate) struct DevArgs {
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=DEV_NODES_MAX))]
    pub(crate) nodes: u16,
    /// Keep the keys in this directory, across restarts; it belongs to the cluster that is created in it
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

/// How a cluster is found and waited for.
#[derive(Debug, Args)]
pub(crate) struct ConnectArgs {
    /// Nodes of the cluster, host:port with commas between; one that answers is enough
    /// [default: KEYDB_NODE_ADDRESSES, or 127.0.0.1:50051]
    #[arg(long, value_name = "ADDRESSES", value_parser = addresses)]
    pub(crate) addresses: Option<Addresses>,
    /// How long a call to the cluster may take, retries included
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = settings::duration)]
    pub(crate) timeout: Duration,
}

/// Which of the cluster's key spaces is meant.
#[derive(Debug, Args)]
pub(crate) struct NamespaceArg {
    /// The key space: keys of different namespaces never meet [default: KEYDB_NAMESPACE, or the one without a name]
    #[arg(long, value_name = "NAME", value_parser = settings::namespace)]
    pub(crate) namespace: Option<Namespace>,
}

/// Checked addresses. A type of its own, since clap takes a plain list for a repeatable argument.
#[derive(Debug, Clone)]
pub(crate) struct Addresses(pub(crate) Vec<String>);

pub(crate) fn addresses(text: &str) -> Result<Addresses, String> {
    settings::addresses(text).map(Addresses)
}

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
    pub(crate) namespace: NamespaceArg,
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

#[derive(Debug, Args)]
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

#[derive(Debug, Args)]
pub(crate) struct TtlArg {
    /// How long the keys live: 1s to 50y, a whole number with a unit (s, m, h, d, w, y)
    #[arg(
        long,
        value_name = "TTL",
        default_value = "30d",
        allow_hyphen_values = true
    )]
    pub(crate) ttl: Ttl,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

#[derive(Debug, Args)]
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
    pub(crate) namespace: NamespaceArg,
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

#[derive(Debug, Args)]
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

#[derive(Debug, Args)]
pub(crate) struct RecoverArgs {
    /// Which node
    #[arg(
        long,
        value_name = "N",
        required_unless_present_any = ["map", "range"],
        conflicts_with_all = ["map", "range"]
    )]
    pub(crate) node: Option<u32>,
    /// Give up what is missing of this closed hash range; the node that owns it runs, and answers with what is left
    #[arg(long, value_name = "R", conflicts_with = "map")]
    pub(crate) range: Option<u32>,
    /// Yes: what object storage does not have of the node, or what is missing of the range, is lost
    #[arg(long, conflicts_with = "map")]
    pub(crate) accept_loss: bool,
    /// Put the newest cluster map back that the nodes have kept
    #[arg(long)]
    pub(crate) map: bool,
    /// A node's data directory that may have it; can be given several times
    #[arg(long = "data-dir", value_name = "DIR", requires = "map")]
    pub(crate) data_dirs: Vec<PathBuf>,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Which shell
    pub(crate) shell: Shell,
}
