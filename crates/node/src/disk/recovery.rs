//! Reading a node's keys at its start: from its own disk, or, where that is new, from object storage.
//!
//! 1. The local manifest says which snapshot files make up the node's ranges. A disk that is new has none: then the manifest in
//!    object storage counts, if there is one (the node's former disk was given up), and its files are fetched.
//! 2. The remembered answers are read, the journal's records behind the manifest are merged into the key sets, and their answers
//!    into the memory of answers. The journal is open from here on, and snapshots are made.
//! 3. The files are read, a few at a time, and merged. A range whose files are all read is ready. A file that is damaged or
//!    missing here is fetched from object storage, while the others are read on; where that has no sound one either, the ranges
//!    that need it are closed. A node that took over a manifest and does not find what it names reads it again: another process
//!    may have written a newer one, and the objects that this one does not need may have been removed.
//!
//! A range that came from another node is the one that the manifest names by the same copy, or it is closed. What the manifest and the
//! journal have of ranges that are not here any more is left out.
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
    AnswerEntry, AnswersFile, ClusterMap, Durability, Entry, Lsn, Manifest, OperationAnswers,
    RangeId, Record, RecordBody, Times, UnixMillis,
};
use keydb_storage::SnapshotStore;
use tokio::{
    task::{JoinError, spawn_blocking},
    time::Instant,
};
use tracing::{error, info};

use crate::{
    DataDirError, NodeError,
    cluster::membership_state::MembershipState,
    disk::Disk,
    disk::data_dir::{self, DataDir},
    disk::journal::{self, Identity, Journal, JournalConfig, JournalSizes, Recent},
    disk::snapshot::{self, Inputs, Replayed, Snapshotter},
    node::Node,
    ranges::owned::{OwnedRange, OwnedRanges},
};

/// What a node needs to find its keys again.
#[derive(Debug)]
pub(crate) struct Recovery {
    pub(crate) node: Arc<Node>,
    pub(crate) store: SnapshotStore,
    pub(crate) data_dir: Arc<DataDir>,
    pub(crate) sizes: JournalSizes,
}

/// How it went.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// In `snapshot` mode, where the node had not stopped cleanly: what was acknowledged after this time is lost, or all of it
    /// where there had been no snapshot.
    pub(crate) lost_after: Option<Option<UnixMillis>>,
}

/// A disk whose journal is open.
#[derive(Debug)]
pub(crate) struct Opened {
    /// What the node's keys are, but for those that the journal has.
    pub(crate) manifest: Manifest,
    pub(crate) journal: Arc<Journal>,
    pub(crate) replayed: Replayed,
    lost_after: Option<Option<UnixMillis>>,
}

impl Recovery {
    /// Reads everything. Ranges become ready, or are closed, one after the other.
    ///
    /// # Errors
    /// When the disk cannot be used: the node must not answer for anything.
    pub(crate) async fn run(self) -> Result<Recovered, NodeError> {
        let started = Instant::now();
        let this = Arc::new(self);
        let membership_state = this.node.membership.state();
        let Some(table) = membership_state.table() else {
            return Ok(Recovered { lost_after: None });
        };
        let mut opened = this.open(&membership_state, table).await?;
        if this.is_taken_over(&opened.manifest) {
            // Which files there are is known only when they have all been fetched.
            opened.manifest = this.load(&membership_state, opened.manifest).await?;
            this.start_snapshots(&opened).await?;
        } else {
            // Ranges become ready one after the other, and what they acknowledge is to be in files soon, however long a storage that
            // does not answer holds up the others.
            this.start_snapshots(&opened).await?;
            this.load(&membership_state, opened.manifest).await?;
        }
        this.node.warnings.set("recovery", None);
        info!(
            node = %this.node.config.id,
            lsn = %opened.journal.appended(),
            keys = table.ranges().iter().map(|range| range.read().len()).sum::<usize>(),
            ms = started.elapsed().as_millis() as u64,
            "the node's keys are loaded"
        );
        Ok(Recovered {
            lost_after: opened.lost_after,
        })
    }

    /// Finds out what the node's keys are, reads its journal, and opens that.
    pub(crate) async fn open(
        self: &Arc<Self>,
        membership_state: &Arc<MembershipState>,
        table: &OwnedRanges,
    ) -> Result<Opened, NodeError> {
        let map = &table.current_map.map;
        let local = blocking(self, |this| snapshot::open(&this.data_dir)).await??;
        let was_here = local.is_some();
        let manifest = match local {
            Some(mut manifest) => {
                self.check_manifest(&manifest, map)?;
                self.check_not_rolled_back(&manifest).await?;
                if map.durability == Durability::Snapshot {
                    snapshot::skip_lost(&mut manifest);
                }
                manifest
            }
            None => self.adopt(map).await?,
        };
        self.check_clock(map, manifest.complete_to_ms)?;
        let replaying = (Arc::clone(membership_state), manifest.clone());
        let (journal, replayed, clean) = blocking(self, move |this| {
            let (journal, replayed) = this.replay(&replaying.0, &replaying.1)?;
            // From here on writes may be acknowledged, of which that stop knew nothing.
            let clean = snapshot::take_clean_flag(&this.data_dir)?;
            Ok::<_, NodeError>((Arc::new(journal), replayed, clean))
        })
        .await??;
        let lost_after = (map.durability == Durability::Snapshot && was_here && !clean)
            .then(|| manifest.complete_to());
        self.node
            .set_disk(Disk::new(Arc::clone(&self.data_dir), Arc::clone(&journal)));
        Ok(Opened {
            manifest,
            journal,
            replayed,
            lost_after,
        })
    }

    /// Begins to make snapshots of what is `opened`.
    pub(crate) async fn start_snapshots(&self, opened: &Opened) -> Result<(), NodeError> {
        let inputs = Inputs {
            node: self.node.parts(),
            store: self.store.clone(),
            journal: Arc::clone(&opened.journal),
            data_dir: Arc::clone(&self.data_dir),
        };
        let snapshots =
            Snapshotter::start(inputs, opened.manifest.clone(), opened.replayed.clone())?;
        self.node.open_disk().await.start_snapshots(snapshots);
        Ok(())
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

    /// The clock must not show a time before one at which this disk was written; unless object storage has confirmed it, for then it
    /// was wrong at that time.
    fn check_clock(&self, map: &ClusterMap, written: UnixMillis) -> Result<(), NodeError> {
        let clock = self.node.clock.now();
        if clock.0.saturating_add(map.clock_error_max_ms) >= written.0 {
            return Ok(());
        }
        if !self.node.clock.is_trusted() {
            return Err(NodeError::ClockWentBack { clock, written });
        }
        let text = format!(
            "this machine's clock was wrong before: the node wrote at {written}, and it is {clock}; keys from that time live so much longer"
        );
        self.node.warnings.set("earlier clock", Some(text));
        Ok(())
    }

    /// Reads the journal behind the manifest, and opens it.
    fn replay(
        &self,
        membership_state: &MembershipState,
        manifest: &Manifest,
    ) -> Result<(Journal, Replayed), NodeError> {
        let Some(table) = membership_state.table() else {
            unreachable!("a node recovers while it serves")
        };
        let map = &table.current_map.map;
        let mut config = JournalConfig::new(
            self.data_dir.journal(),
            Identity {
                cluster_id: map.cluster_id,
                node: self.node.config.id,
                disk_id: self.data_dir.disk_id(),
            },
            map.durability == Durability::Journal,
            Arc::clone(&self.node.clock) as _,
        );
        config.segment_bytes = self.sizes.segment_bytes;
        config.reserved_bytes = snapshot::room_at_start(manifest);
        let answers = self.read_answers(map)?;
        let answers_to = answers.as_ref().map_or(Lsn::ZERO, |file| file.lsn);
        // Older ones first: newer ones replace them.
        for entry in answers.into_iter().flat_map(|file| file.entries) {
            // Where there is no journal, a crash has forgotten what came behind the files, and nobody may be told of it.
            if config.synced || entry.lsn <= answers_to {
                self.node.answers.restore(entry);
            }
        }
        let mut recent = Recent::new(manifest.lsn, self.sizes.recent_bytes_max);
        let mut unmerged = Vec::new();
        if config.synced {
            let mut merger = Merger::new(table, self.node.clock.times());
            let after = answers_to.min(manifest.lsn);
            let each = |record: &Record<'_>| {
                recent.replayed(record, config.identity.disk_id);
                self.restore(record, &mut merger)
            };
            let replayed =
                journal::replay(&config.dir, &config.identity, manifest.lsn, after, each)?;
            merger.flush().map_err(|reason| self.unreadable(reason))?;
            unmerged = merger.unmerged();
            self.check_clock(map, replayed.last_written)?;
            info!(node = %self.node.config.id, records = replayed.records, last = %replayed.last, "the journal is read");
        }
        let to = recent.to();
        // Where a disk has lost records that it had synced, the file of answers may tell of them: nobody is to wait for those.
        self.node.answers.committed_to(to);
        Ok((Journal::open(config, recent)?, Replayed { to, unmerged }))
    }

    /// The file of remembered answers, if it is there and sound. Without it repeats of claims are answered `Unknown`, which is
    /// no reason to give up the keys.
    fn read_answers(&self, map: &ClusterMap) -> Result<Option<AnswersFile>, DataDirError> {
        let path = self.data_dir.answers();
        let Some(bytes) = data_dir::read(&path)? else {
            return Ok(None);
        };
        let reason = match AnswersFile::decode(&bytes) {
            Ok(file)
                if file.disk_id == self.data_dir.disk_id() && file.cluster_id == map.cluster_id =>
            {
                return Ok(Some(file));
            }
            Ok(file) => format!(
                "it belongs to disk {} of cluster {}",
                file.disk_id, file.cluster_id
            ),
            Err(error) => error.to_string(),
        };
        error!(
            node = %self.node.config.id,
            path = %path.display(),
            "what recent claims were told is forgotten, and repeats of them are answered Unknown: {reason}"
        );
        Ok(None)
    }

    fn restore(&self, record: &Record<'_>, merger: &mut Merger<'_>) -> Result<(), String> {
        let RecordBody::Write(write) = &record.body else {
            return Ok(());
        };
        if let Some(operation) = write.operation {
            let answers = OperationAnswers::decode(write.answers)
                .ok_or_else(|| format!("the answers of operation {operation} cannot be read"))?;
            self.node.answers.restore(AnswerEntry {
                operation,
                recorded: record.written,
                lsn: record.lsn,
                answers,
            });
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

    fn new(table: &'a OwnedRanges, times: Times) -> Self {
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

    /// The ranges that could not take all of their keys.
    fn unmerged(&self) -> Vec<RangeId> {
        let ranges = self.ranges.values().map(|(range, _)| range);
        let unmerged = ranges.filter(|range| range.is_incomplete());
        unmerged.map(|range| range.id).collect()
    }
}

/// Merges what waits for a range. One that cannot take it is closed: it has not all of its keys.
///
/// # Errors
/// When it is not for this range at all.
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
    if let Err(error) = merged {
        range.lacks(format!(
            "it cannot take what the journal has of it: {error}"
        ));
    }
    Ok(())
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
