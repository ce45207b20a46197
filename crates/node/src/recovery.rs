//! Reading a node's keys at its start: from its own disk, or, where that is new, from object storage.
//!
//! 1. The local manifest says which snapshot files make up the node's ranges. A disk that is new has none: then the manifest in
//!    object storage counts, if there is one (the node's former disk was given up), and its files are fetched.
//! 2. The journal's records behind the manifest are merged into the key sets, and their answers into the memory of answers. The
//!    journal is open from here on.
//! 3. The files are read, each by a thread, and merged. A range whose files are all read is ready. A file that is damaged or
//!    missing here is fetched from object storage; where that has no sound one either, the ranges that need it are closed.
//!
//! A merge takes the later expiry, so the order does not matter. Nothing is answered from a range before it is ready.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use keydb_core::{
    AnswersFile, Durability, Entry, Lsn, Manifest, ManifestFile, RangeId, SnapshotKind, Times,
    UnixMillis,
    journal::{Record, RecordBody},
};
use keydb_storage::ObjectStorage;
use tokio::{
    sync::Semaphore,
    task::{JoinError, JoinSet, spawn_blocking},
};
use tracing::{error, info, warn};

use crate::{
    DataDirError, NodeError,
    data_dir::{self, DataDir},
    disk::Disk,
    journal::{self, Journal, JournalConfig, JournalMode},
    load::{LoadError, load_file},
    node::{Node, Standing},
    snapshot::{self, LocalFiles, Snapshotter},
    table::{Readiness, Table},
};

/// So many files are read at the same time: more would take memory and not be faster.
const FILES_AT_ONCE: usize = 4;

/// What a node needs to find its keys again.
#[derive(Debug)]
pub(crate) struct Recovery {
    pub(crate) node: Arc<Node>,
    pub(crate) storage: Arc<dyn ObjectStorage>,
    pub(crate) data_dir: Arc<DataDir>,
}

/// How it went.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// What was acknowledged after this time is lost: `snapshot` mode, and the node had not stopped cleanly.
    pub(crate) lost_after: Option<UnixMillis>,
}
