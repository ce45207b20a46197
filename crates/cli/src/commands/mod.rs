//! One command a file.

pub(crate) mod backup;
pub(crate) mod certs;
pub(crate) mod completions;
pub(crate) mod dev;
pub(crate) mod health;
pub(crate) mod import;
pub(crate) mod init;
pub(crate) mod journal;
pub(crate) mod keys;
pub(crate) mod node;
pub(crate) mod operator;
pub(crate) mod recover;
pub(crate) mod scale;
pub(crate) mod snapshot;
pub(crate) mod status;

use keydb_core::Durability;

/// What a durability mode means to somebody who reads it for the first time.
fn durability_meaning(durability: Durability) -> &'static str {
    match durability {
        Durability::Journal => "nothing that was acknowledged is lost, unless a disk is given up",
        Durability::Snapshot => "a crash loses at most what came since the last snapshot",
        Durability::Memory => "nothing is kept: a node that stops forgets its keys",
        _ => "unknown to this build",
    }
}
