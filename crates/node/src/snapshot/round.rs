//! The rounds: what goes to local files, and when.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use keydb_core::{
    AnswerEntry, AnswersFile, Lsn, Manifest, ManifestFile, ManifestRange, OperationId, RangeId,
    SnapshotKind,
};
use tokio::runtime::Handle;
use tracing::{info, warn};

use super::{
    CLEAN, RETRY_MAX, RETRY_MIN, Shared, file_path,
    make::{self, Pace},
    save,
};
use crate::{
    data_dir,
    journal::Recent,
    node::Standing,
    table::{OwnedRange, Table},
};

/// How often it is looked whether a round is due early.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A journal of this size is cut before its time, unless the files are larger still.
const JOURNAL_BYTES_MIN: u64 = 256 << 20;

/// So few entries always go to a delta, whatever there is besides.
const DELTA_ENTRIES_MIN: u64 = 200_000;

/// A range's deltas may have this many entries more than its base before a full file replaces them.
const DELTA_ENTRIES_FREE: u64 = 4096;

/// With more deltas than this, the ranges with the oldest bases get full files.
const DELTAS_MAX: usize = 64;

/// Makes rounds until the node closes.
pub(super) fn run(shared: &Shared, runtime: &Handle) {
    let mut maker = Maker {
        shared,
        runtime,
        delta_entries: BTreeMap::new(),
        retry_after: RETRY_MIN,
    };
    maker.learn_deltas();
    let mut last_round = Instant::now();
    let mut wait_max = shared.node.config.snapshot_interval;
    loop {
        let Some(due) = maker.wait(last_round, wait_max) else {
            return;
        };
        last_round = Instant::now();
        match maker.round(&due) {
            Ok(()) => {
                maker.retry_after = RETRY_MIN;
                wait_max = shared.node.config.snapshot_interval;
                shared.node.warn_of("snapshots", None);
            }
            Err(reason) => {
                shared.node.warn_of(
                    "snapshots",
                    Some(format!("no snapshot could be made, trying again: {reason}")),
                );
                shared.failed(reason);
                wait_max = maker.retry_after.min(shared.node.config.snapshot_interval);
                maker.retry_after = (maker.retry_after * 2).min(RETRY_MAX);
            }
        }
        if due.closing {
            return;
        }
    }
}

/// What a round is for.
#[derive(Debug, Clone, Copy)]
struct Due {
    /// The last request that it answers.
    ticket: u64,
    full: bool,
    closing: bool,
}

struct Maker<'a> {
    shared: &'a Shared,
    runtime: &'a Handle,
    /// How many entries the deltas behind a range's base have.
    delta_entries: BTreeMap<RangeId, u64>,
    retry_after: Duration,
}

impl Maker<'_> {
    /// Waits until a round is due; `None` when there is to be none any more.
    fn wait(&self, last_round: Instant, wait_max: Duration) -> Option<Due> {
        let mut served = self.shared.progress.borrow().made;
        let mut state = self.shared.state();
        loop {
            if state.abandoned {
                return None;
            }
            let failed_lately = wait_max < self.shared.node.config.snapshot_interval;
            let asked = state.requested > served && !failed_lately;
            let elapsed = last_round.elapsed();
            if asked
                || state.closing
                || elapsed >= wait_max
                || (!failed_lately && self.is_early(&state.manifest))
            {
                return Some(Due {
                    ticket: state.requested,
                    full: std::mem::take(&mut state.full),
                    closing: state.closing,
                });
            }
            let patience = LOOK_INTERVAL.min(wait_max.saturating_sub(elapsed));
            state = self
                .shared
                .work
                .wait_timeout(state, patience)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            served = self.shared.progress.borrow().made;
        }
    }

    /// Whether a round is worth its while before its time.
    fn is_early(&self, manifest: &Manifest) -> bool {
        let journal = &self.shared.journal;
        let file_bytes: u64 = manifest.files.iter().map(|file| file.size_bytes).sum();
        if journal.bytes() > JOURNAL_BYTES_MIN.max(file_bytes / 2)
            && journal.committed() > manifest.lsn
        {
            return true;
        }
        let (recent, recent_max) = journal.recent_bytes();
        // A delta of so many records, soon too many to keep, pays off against that many keys.
        recent > recent_max / 2 && (recent as u64) < self.key_count() * 6
    }

    fn key_count(&self) -> u64 {
        let standing = self.shared.node.standing();
        let ranges = standing.table().map_or(&[][..], Table::ranges);
        ranges.iter().map(|range| range.read().len() as u64).sum()
    }

    fn round(&mut self, due: &Due) -> Result<(), String> {
        let standing = self.shared.node.standing();
        let Standing::Serving(table) = &*standing else {
            return Err("the node does not serve".to_owned());
        };
        let mut manifest = Manifest::clone(&self.shared.state().manifest);
        manifest.lineage = table.in_force.map.lineage;
        self.take_over_ranges(table, &mut manifest);
        let mut pace = Pace::new(due.closing);

        let complete_to_ms = self.shared.node.clock.now();
        let mut to = self.shared.journal.appended();
        self.committed(to)?;
        let records = match self.shared.journal.take_recent(to) {
            Recent::Records { from, records, .. } if from == manifest.lsn => Some(records),
            Recent::Records { .. } => None,
            Recent::Gap { to: behind, .. } => {
                to = to.max(behind);
                None
            }
        };
        self.committed(to)?;
        let entries = match records {
            Some(records) => Some(make::entries_of(records, self.shared.data_dir.disk_id())?),
            None => None,
        };
        let keys = self.key_count();
        let entries = entries.filter(|entries| {
            let count = entries.len() as u64;
            !due.full && (count <= DELTA_ENTRIES_MIN || count < keys / 2)
        });
        let is_delta = entries.is_some();
        if let Some(entries) = entries {
            self.delta(table, &mut manifest, &entries, to, &mut pace)?;
            manifest.lsn = to;
            manifest.complete_to_ms = complete_to_ms;
            self.put_to_use(&mut manifest)?;
        }
        let fulls: Vec<Arc<OwnedRange>> = table
            .ranges()
            .iter()
            .filter(|range| range.is_ready() && (!is_delta || self.needs_full(&manifest, range)))
            .cloned()
            .collect();
        for range in &fulls {
            self.full(table, &mut manifest, range, &mut pace)?;
        }
        if !is_delta {
            // Every range that can be written to has a full file that was begun behind `to`.
            manifest.lsn = to;
            manifest.complete_to_ms = complete_to_ms;
            self.put_to_use(&mut manifest)?;
        }
        self.keep_answers(to)?;
        self.shared.journal.cut(to);
        if due.closing {
            let path = self.shared.data_dir.root().join(CLEAN);
            data_dir::replace(&path, format!("{to}\n").as_bytes())
                .map_err(|error| error.to_string())?;
        }
        self.shared
            .progress
            .send_modify(|progress| progress.made = due.ticket);
        Ok(())
    }

    /// Has the manifest name the ranges that the node owns. Those that are closed stay as they are named.
    fn take_over_ranges(&self, table: &Table, manifest: &mut Manifest) {
        for range in table.ranges() {
            if manifest.range(range.id).is_none() {
                manifest.ranges.push(ManifestRange {
                    id: range.id,
                    generation: range.generation,
                    start: range.bounds.start(),
                    last: range.bounds.last(),
                    base: None,
                    unknown: serde_json::Map::new(),
                });
            }
        }
        manifest.ranges.sort_by_key(|range| range.id);
    }

    fn delta(
        &mut self,
        table: &Table,
        manifest: &mut Manifest,
        entries: &[keydb_core::Entry],
        to: Lsn,
        pace: &mut Pace,
    ) -> Result<(), String> {
        if entries.is_empty() {
            return Ok(());
        }
        let file = make::delta(self.shared, table, entries, (manifest.lsn, to), pace)?.publish()?;
        for range in table.ranges() {
            // Near enough: fingerprints are spread evenly.
            let share = entries.len() as u64 / table.ranges().len() as u64 + 1;
            *self.delta_entries.entry(range.id).or_default() += share;
        }
        info!(node = %self.shared.node.config.id, name = file.name, entries = file.entries, bytes = file.size_bytes, "made a delta snapshot");
        manifest.files.push(file);
        Ok(())
    }

    fn full(
        &mut self,
        table: &Table,
        manifest: &mut Manifest,
        range: &OwnedRange,
        pace: &mut Pace,
    ) -> Result<(), String> {
        let to = self.shared.journal.appended();
        let file = make::full(self.shared, table, range, to, pace)?;
        // It may have keys that were written while it was made.
        self.committed(self.shared.journal.appended())?;
        let file = file.publish()?;
        let Some(entry) = manifest
            .ranges
            .iter_mut()
            .find(|entry| entry.id == range.id)
        else {
            return Ok(());
        };
        entry.base = Some(file.name.clone());
        entry.generation = range.generation;
        manifest.files.push(file);
        self.delta_entries.remove(&range.id);
        self.put_to_use(manifest)
    }

    /// Makes `manifest` the local one, and removes the files that it does not need.
    fn put_to_use(&self, manifest: &mut Manifest) -> Result<(), String> {
        manifest.drop_unneeded_files();
        manifest.write_nonce = OperationId::random();
        save(&self.shared.data_dir, manifest).map_err(|error| error.to_string())?;
        let before = {
            let mut state = self.shared.state();
            std::mem::replace(&mut state.manifest, Arc::new(manifest.clone()))
        };
        let kept: BTreeSet<&str> = manifest.files.iter().map(|file| &*file.name).collect();
        let unneeded = before
            .files
            .iter()
            .filter(|file| !kept.contains(&*file.name));
        for file in unneeded {
            // Should it stay, the next start removes it.
            if let Err(error) = fs::remove_file(file_path(&self.shared.data_dir, &file.name)) {
                warn!(name = file.name, "cannot remove a snapshot file: {error}");
            }
        }
        Ok(())
    }

    fn needs_full(&self, manifest: &Manifest, range: &OwnedRange) -> bool {
        let Some(entry) = manifest.range(range.id) else {
            return true;
        };
        let (base, deltas) = manifest.parts(entry);
        let base_entries = base.map_or(0, |base| base.entries);
        let behind = self.delta_entries.get(&range.id).copied().unwrap_or(0);
        behind > base_entries + DELTA_ENTRIES_FREE || deltas.count() > DELTAS_MAX
    }

    /// After a start: how many entries the deltas have, near enough.
    fn learn_deltas(&mut self) {
        let manifest = Arc::clone(&self.shared.state().manifest);
        for range in &manifest.ranges {
            let (_, deltas) = manifest.parts(range);
            let entries: u64 = deltas.map(|delta: &ManifestFile| delta.entries).sum();
            let share = entries / manifest.ranges.len() as u64;
            self.delta_entries.insert(range.id, share);
        }
        debug_assert!(
            manifest
                .files
                .iter()
                .all(|file| matches!(file.kind, SnapshotKind::Full | SnapshotKind::Delta))
        );
    }

    /// Writes the remembered answers, whose journal records may be cut next.
    fn keep_answers(&self, to: Lsn) -> Result<(), String> {
        let node = &self.shared.node;
        let entries = node.answers.entries();
        let newest = entries.iter().map(|entry| entry.lsn).max();
        // An answer whose keys a crash forgets must not be remembered.
        self.committed(newest.unwrap_or_default())?;
        let file = AnswersFile {
            cluster_id: self.shared.state().manifest.cluster_id,
            disk_id: self.shared.data_dir.disk_id(),
            lsn: to,
            entries: entries
                .into_iter()
                .map(|entry| AnswerEntry {
                    operation: entry.operation,
                    recorded: entry.recorded,
                    lsn: entry.lsn,
                    answers: entry.answers,
                })
                .collect(),
        };
        data_dir::replace(&self.shared.data_dir.answers(), &file.encode())
            .map_err(|error| error.to_string())
    }

    fn committed(&self, lsn: Lsn) -> Result<(), String> {
        self.runtime
            .block_on(self.shared.journal.wait_committed(lsn))
            .map_err(|error| error.to_string())
    }
}
