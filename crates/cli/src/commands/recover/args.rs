//! What can be said to `keydb recover`.

use std::path::PathBuf;

use clap::Args;

const EXAMPLES: &str = "\
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

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
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
