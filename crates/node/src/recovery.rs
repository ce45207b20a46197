//! Reading a node's keys at its start: from its own disk, or, where that is new, from object storage.
//!
//! 1. The local manifest says which snapshot files make up the node's ranges. A disk that is new has none: then the manifest in
//!    object storage counts, if there is one (the node's former disk was given up), and its files are fetched.
//! 2. The journal's records behind the manifest are merged into the key sets, and their answers into the memory of answers. The
//!    journal is open from here on.
//! 3. The files are read, a few at a time, and merged. A range whose files are all read is ready. A file that is damaged or
//!    missing here is fetched from object storage, while the others are read on; where that has no sound one either, the ranges
//!    that need it are closed. A node that took over a manifest and does not find what it names reads it again: another process
//!    may have written a newer one, and the objects that this one does not need may have been removed.
//!
//! A merge takes the later expiry, so the order does not matter. Nothing is answered from a range before it is ready.

mod fetch;
mod files;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use keydb_core::{
    AnswersFile, ClusterMap, Durability, Entry, Lsn, Manifest, RangeId, Record, RecordBody, Times,
    UnixMillis,
};
use keydb_storage::ObjectStorage;
use tokio::{
    task::{JoinError, spawn_blocking},
    time::Instant,
};
use tracing::info;

use crate::{
    DataDirError, NodeError,
    data_dir::{self, DataDir},
    disk::Disk,
    journal::{self, Identity, Journal, JournalConfig},
    node::{Node, Standing},
    snapshot::{self, Backlog, Snapshotter},
    table::{OwnedRange, Table},
};

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
    /// In `snapshot` mode, where the node had not stopped cleanly: what was acknowledged after this time is lost, or all of it
    /// where there had been no snapshot.
    pub(crate) lost_after: Option<Option<UnixMillis>>,
}

impl Recovery {
    /// Reads everything. Ranges become ready, or are closed, one after the other.
    ///
    /// # Errors
    /// When the disk cannot be used: the node must not answer for anything.
    pub(crate) async fn run(self) -> Result<Recovered, NodeError> {
        let started = Instant::now();
        let this = Arc::new(self);
        let standing = this.node.standing();
        let Some(table) = standing.table() else {
            return Ok(Recovered { lost_after: None });
        };
        let map = &table.in_force.map;
        let local = blocking(&this, |this| snapshot::open(&this.data_dir)).await??;
        let was_here = local.is_some();
        let manifest = match local {
            Some(mut manifest) => {
                this.check_manifest(&manifest, map)?;
                if map.durability == Durability::Snapshot {
                    snapshot::skip_lost(&mut manifest);
                }
                manifest
            }
            None => this.adopt(map).await?,
        };
        this.check_clock(map, manifest.complete_to_ms)?;

        let replaying = (Arc::clone(&standing), manifest.clone());
        let (journal, backlog) =
            blocking(&this, move |this| this.replay(&replaying.0, &replaying.1)).await??;
        let journal = Arc::new(journal);
        this.node
            .set_disk(Disk::new(Arc::clone(&this.data_dir), Arc::clone(&journal)));

        let manifest = this.load(&standing, manifest).await?;
        this.node.warn_of("recovery", None);
        let clean = snapshot::take_clean_flag(&this.data_dir)?;
        let lost_after = (map.durability == Durability::Snapshot && was_here && !clean)
            .then(|| manifest.complete_to());
        info!(
            node = %this.node.config.id,
            lsn = %journal.appended(),
            keys = table.ranges().iter().map(|range| range.read().len()).sum::<usize>(),
            ms = started.elapsed().as_millis() as u64,
            "the node's keys are loaded"
        );
        let snapshots = Snapshotter::start(
            Arc::clone(&this.node),
            Arc::clone(&this.storage),
            journal,
            Arc::clone(&this.data_dir),
            manifest,
            backlog,
        )?;
        this.node.open_disk().await.start_snapshots(snapshots);
        Ok(Recovered { lost_after })
    }

    fn check_manifest(&self, manifest: &Manifest, map: &ClusterMap) -> Result<(), NodeError> {
        let same = manifest.cluster_id == map.cluster_id
            && manifest.node == self.node.config.id
            && manifest.disk_id == self.data_dir.disk_id();
        if same {
            return Ok(());
        }
        Err(NodeError::DataDir(DataDirError::Damaged {
            path: snapshot::manifest_path(&self.data_dir),
            reason: format!(
                "it belongs to node {}, disk {} of cluster {}",
                manifest.node, manifest.disk_id, manifest.cluster_id
            ),
        }))
    }

    /// The clock must not show a time before one at which this disk was written.
    fn check_clock(&self, map: &ClusterMap, written: UnixMillis) -> Result<(), NodeError> {
        let clock = self.node.clock.now();
        if clock.0.saturating_add(map.clock_error_max_ms) < written.0 {
            return Err(NodeError::ClockWentBack { clock, written });
        }
        Ok(())
    }

    /// Reads the journal behind the manifest, and opens it. What was read, as far as it can be kept, is for the next snapshot.
    fn replay(
        &self,
        standing: &Standing,
        manifest: &Manifest,
    ) -> Result<(Journal, Backlog), NodeError> {
        let Some(table) = standing.table() else {
            unreachable!("a node recovers while it serves")
        };
        let map = &table.in_force.map;
        let config = JournalConfig::new(
            self.data_dir.journal(),
            Identity {
                cluster_id: map.cluster_id,
                node: self.node.config.id,
                disk_id: self.data_dir.disk_id(),
            },
            map.durability == Durability::Journal,
            Arc::clone(&self.node.clock),
        );
        let answers = self.read_answers()?;
        let mut backlog = Backlog::new(manifest.lsn, config.recent_bytes_max);
        let mut last = manifest.lsn;
        if config.synced {
            let after = answers
                .as_ref()
                .map_or(Lsn::ZERO, |file| file.lsn)
                .min(manifest.lsn);
            let mut merger = Merger::new(table, self.node.times());
            let replayed = journal::replay(&config.dir, &config.identity, after, |record| {
                backlog.replayed(record, config.identity.disk_id);
                self.restore(record, &mut merger)
            })?;
            merger.flush().map_err(|reason| self.unreadable(reason))?;
            if replayed.last < manifest.lsn {
                return Err(NodeError::Journal(journal::JournalError::Incomplete {
                    path: config.dir.clone(),
                    reason: format!(
                        "it ends at LSN {}, but the snapshots reach {}",
                        replayed.last, manifest.lsn
                    ),
                }));
            }
            self.check_clock(map, replayed.last_written)?;
            last = replayed.last;
            info!(node = %self.node.config.id, records = replayed.records, %last, "the journal is read");
        }
        for entry in answers.into_iter().flat_map(|file| file.entries) {
            // What a crash has forgotten must not be told again.
            if entry.lsn <= last
                && !self.node.answers.restore(
                    entry.operation,
                    entry.recorded,
                    entry.lsn,
                    &entry.answers,
                )
            {
                return Err(NodeError::DataDir(DataDirError::Damaged {
                    path: self.data_dir.answers(),
                    reason: format!(
                        "the answers of operation {} cannot be read",
                        entry.operation
                    ),
                }));
            }
        }
        Ok((Journal::open(config, last)?, backlog))
    }

    fn read_answers(&self) -> Result<Option<AnswersFile>, DataDirError> {
        let path = self.data_dir.answers();
        let Some(bytes) = data_dir::read(&path)? else {
            return Ok(None);
        };
        let damaged = |reason: String| DataDirError::Damaged {
            path: path.clone(),
            reason,
        };
        let file = AnswersFile::decode(&bytes).map_err(|error| damaged(error.to_string()))?;
        if file.disk_id != self.data_dir.disk_id() {
            return Err(damaged(format!("it belongs to disk {}", file.disk_id)));
        }
        Ok(Some(file))
    }

    fn restore(&self, record: &Record<'_>, merger: &mut Merger<'_>) -> Result<(), String> {
        let RecordBody::Write(write) = &record.body else {
            return Ok(());
        };
        if let Some(operation) = write.operation
            && !self
                .node
                .answers
                .restore(operation, record.written, record.lsn, write.answers)
        {
            return Err(format!(
                "the answers of operation {operation} cannot be read"
            ));
        }
        let mut start = 0;
        for group in write.groups.iter() {
            let end = start + group.count as usize;
            let keys = write.fingerprints.slice(start, end);
            merger.add(
                group.range,
                keys.iter().map(|key| Entry::new(key, write.expiry)),
            )?;
            start = end;
        }
        Ok(())
    }

    fn unreadable(&self, reason: String) -> NodeError {
        NodeError::Journal(journal::JournalError::Incomplete {
            path: self.data_dir.journal(),
            reason,
        })
    }
}

/// Collects keys for each range, so that they are merged many at once.
struct Merger<'a> {
    ranges: HashMap<RangeId, (&'a OwnedRange, Vec<Entry>)>,
    foreign: HashSet<RangeId>,
    times: Times,
}

impl<'a> Merger<'a> {
    const ENTRIES_MAX: usize = 1024;

    fn new(table: &'a Table, times: Times) -> Self {
        let ranges = table.ranges().iter();
        Self {
            ranges: ranges
                .map(|range| (range.id, (&**range, Vec::new())))
                .collect(),
            foreign: HashSet::new(),
            times,
        }
    }

    fn add(&mut self, id: RangeId, entries: impl Iterator<Item = Entry>) -> Result<(), String> {
        let Some((range, waiting)) = self.ranges.get_mut(&id) else {
            if self.foreign.insert(id) {
                info!(range = %id, "the journal has writes of a range that the node does not own any more");
            }
            return Ok(());
        };
        waiting.extend(entries);
        if waiting.len() >= Self::ENTRIES_MAX {
            merge(range, waiting, self.times)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), String> {
        self.ranges
            .values_mut()
            .try_for_each(|(range, waiting)| merge(range, waiting, self.times))
    }
}

fn merge(range: &OwnedRange, waiting: &mut Vec<Entry>, times: Times) -> Result<(), String> {
    waiting.sort_unstable();
    if let Some(entry) = waiting
        .iter()
        .find(|entry| !range.bounds.contains(entry.fingerprint().top()))
    {
        return Err(format!(
            "fingerprint {:?} lies outside range {}",
            entry.fingerprint(),
            range.id
        ));
    }
    let merged = range.write().merge(waiting, times);
    waiting.clear();
    merged.map_err(|error| format!("range {}: {error}", range.id))
}

async fn blocking<T: Send + 'static>(
    this: &Arc<Recovery>,
    work: impl FnOnce(&Recovery) -> T + Send + 'static,
) -> Result<T, NodeError> {
    let this = Arc::clone(this);
    spawn_blocking(move || work(&this))
        .await
        .map_err(|error| task_failed(&error))
}

fn task_failed(error: &JoinError) -> NodeError {
    NodeError::Task {
        task: "recovery",
        reason: error.to_string(),
    }
}

/// How long the storage is left alone after it did not answer.
const STORAGE_PAUSE: Duration = Duration::from_secs(1);
