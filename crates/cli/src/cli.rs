//! What can be said on the command line.

use clap::{Parser, Subcommand};

use crate::{
    bench::BenchArgs,
    commands::{
        backup::BackupArgs,
        certs::CertsArgs,
        completions::CompletionsArgs,
        dev::DevArgs,
        health::HealthArgs,
        import::ImportArgs,
        init::InitArgs,
        journal::JournalArgs,
        keys::{self, GetArgs, WriteArgs},
        node::NodeArgs,
        operator::OperatorArgs,
        recover::RecoverArgs,
        scale::{ScaleArgs, operations::OperationsArgs},
        snapshot::SnapshotArgs,
        status::StatusArgs,
    },
    dedup::DedupArgs,
    exit,
};

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
error, such as debug or keydb_node=debug,info, and KEYDB_LOG_FORMAT=json how.

{}",
        exit::TABLE
    )
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create the cluster that the settings describe; harmless where there is one already
    Init(InitArgs),
    /// Run one node of a cluster, as the settings say
    Node(NodeArgs),
    /// Serve scaling, snapshots and keys over HTTP
    Operator(OperatorArgs),
    /// Ask whether the node or operator beside it is well, for health checks of containers
    Health(HealthArgs),
    /// Make a CA and certificates, for TLS
    Certs(CertsArgs),
    /// Run a whole cluster in this process, to try KeyDB on one machine
    Dev(DevArgs),
    /// Store keys
    #[command(after_help = keys::PUT_EXAMPLES)]
    Put(WriteArgs),
    /// Ask whether keys are there
    Get(GetArgs),
    /// Store the keys that are not there yet, and say which those were
    #[command(after_help = keys::CLAIM_EXAMPLES)]
    Claim(WriteArgs),
    /// Write each line whose key was not seen before, in input order
    Dedup(Box<DedupArgs>),
    /// Show nodes, hash ranges, keys, memory and durability
    Status(StatusArgs),
    /// Change which nodes the cluster has
    Scale(ScaleArgs),
    /// Show the scaling operation that runs
    Operations(OperationsArgs),
    /// Make, show, check and carry snapshots
    Snapshot(SnapshotArgs),
    /// Copy the cluster's snapshots to another storage
    Backup(BackupArgs),
    /// Store a list of keys in bulk
    Import(ImportArgs),
    /// Look into a node's journal
    Journal(JournalArgs),
    /// Give up a node's lost disk
    Recover(RecoverArgs),
    /// Put load on a cluster and measure it
    Bench(Box<BenchArgs>),
    /// Write a completion script for a shell
    Completions(CompletionsArgs),
}
