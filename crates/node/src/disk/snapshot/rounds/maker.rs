//! What goes to local files, and when.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use keydb_core::{AnswersFile, Lsn, Manifest, ManifestFile, ManifestRange, OperationId, RangeId};
use tokio::runtime::Handle;
use tracing::{info, warn};

use super::{
    changes::Changes,
    choice::{self, Candidate},
    make::{self, Unpublished},
    merge, naming,
    pace::Pace,
};
use crate::{
    cluster::membership_state::MembershipState,
    disk::data_dir,
    disk::journal::RecentRecords,
    disk::snapshot::{
        error::RoundError,
        local,
        room::{ENTRY_BYTES_MAX, unnamed_bytes_max},
        shared::{RETRY_MAX, RETRY_MIN, Shared},
    },
    ranges::owned::{OwnedRange, OwnedRanges},
};

/// How often it is looked whether a round is due early.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A journal of this size is cut before its time, unless the files are larger still.
const JOURNAL_BYTES_MIN: u64 = 256 << 20;

/// An early round cuts a journal from this size on, or so many times the size of the remembered answers: to do so costs a file of them.
const EARLY_CUT_BYTES_MIN: u64 = 128 << 20;
const EARLY_CUT_ANSWERS_MIN: u64 = 4;

/// On a full disk a journal of this size is cut before its time.
const FULL_CUT_BYTES_MIN: u64 = 8 << 20;

/// On a full disk that a cut has not helped, it is not tried again for so long.
const CUT_FOR_ROOM_INTERVAL: Duration = Duration::from_secs(2);

/// So few entries always go to a delta, whatever there is besides.
const DELTA_ENTRIES_MIN: u64 = 200_000;

/// What was read from the journal at the start.
#[derive(Debug, Clone)]
pub(crate) struct Replayed {
    /// The last record. Only up to here there are records of ranges that are not ready.
    pub(crate) to: Lsn,
    /// The ranges whose key sets could not take all of it.
    pub(crate) unmerged: Vec<RangeId>,
}

/// Makes rounds until the node closes.
pub(crate) fn run(shared: &Shared, runtime: &Handle, replayed: Replayed) {
    let mut maker = Maker::new(shared, runtime, replayed);
    let interval = shared.node.snapshot_interval;
    let mut last_round = Instant::now();
    let mut wait_max = interval;
    while let Some(due) = maker.wait(last_round, wait_max) {
        last_round = Instant::now();
        maker.tried = due.ticket;
        shared.is_busy();
        let made = maker.round(&due);
        shared.is_idle();
        match made {
            Ok(()) => {
                maker.retry_after = RETRY_MIN;
                wait_max = interval;
                shared.node.warnings.set("snapshots", None);
            }
            Err(error) => {
                maker.free();
                // The node asks for it again, in the next round.
                {
                    let mut state = shared.state();
                    state.full |= due.full;
                    state.cut |= due.cut;
                }
                let text = format!(
                    "no snapshot could be made, trying again: {error} (a snapshot needs up to {} bytes of free room in {})",
                    shared.room_bytes(),
                    shared.data_dir.root().display()
                );
                shared.node.warnings.set("snapshots", Some(text));
                shared.failed(|progress| &mut progress.rounds_failed, error.to_string());
                wait_max = maker.retry_after.min(interval);
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
    /// The journal is cut in any case, not only where it is large.
    cut: bool,
    /// Nobody asks for it, and no interval is over: records that are kept in memory, or the journal, have become many.
    early: bool,
}

struct Maker<'a> {
    shared: &'a Shared,
    runtime: &'a Handle,
    /// What the local files are to be. Those on the disk may be behind it, when it could not be saved.
    manifest: Manifest,
    is_saved: bool,
    /// The files in the data directory, named or not.
    on_disk: BTreeSet<String>,
    /// What is in none of them, as the round that is being made found it.
    recent: RecentRecords,
    /// The ranges whose missing parts were given up, and that have had a full file since.
    renewed: BTreeSet<RangeId>,
    /// How many entries the deltas on top of a range's base have.
    delta_entries: BTreeMap<RangeId, u64>,
    replayed: Replayed,
    /// The last request that a round was made for, be it in vain.
    tried: u64,
    /// When the last round was made that is uploaded. Early rounds may come as often as they like: they put off none.
    last_regular: Instant,
    /// When the journal was cut last.
    last_cut: Instant,
    /// When it was to make room on a full disk, be it in vain.
    last_cut_for_room: Option<Instant>,
    retry_after: Duration,
}

impl<'a> Maker<'a> {
    fn new(shared: &'a Shared, runtime: &'a Handle, replayed: Replayed) -> Self {
        let mut manifest = Manifest::clone(&shared.manifest());
        // Nothing was ever written here, so each range is what the manifest says, whether it is loaded by now or not. Named only when
        // they are ready, those that the first round missed would be taken at the next start for ranges of another node.
        if let Some(table) = shared.node.membership.state().table() {
            naming::name_created(&mut manifest, table);
        }
        Self {
            shared,
            runtime,
            is_saved: true,
            on_disk: manifest
                .files
                .iter()
                .map(|file| file.name.clone())
                .collect(),
            recent: shared.journal.recent(Lsn::ZERO),
            replayed,
            renewed: BTreeSet::new(),
            delta_entries: naming::estimate_delta_entries(&manifest),
            tried: 0,
            last_regular: Instant::now(),
            last_cut: Instant::now(),
            last_cut_for_room: None,
            retry_after: RETRY_MIN,
            manifest,
        }
    }

    /// Waits until a round is due; `None` when there is to be none any more.
    fn wait(&mut self, last_round: Instant, wait_max: Duration) -> Option<Due> {
        let failed_lately = wait_max < self.shared.node.snapshot_interval;
        loop {
            self.shared.is_busy();
            self.remove_superseded();
            self.shared.is_idle();
            let is_early = !failed_lately && self.is_early();
            let mut state = self.shared.state();
            if state.abandoned {
                return None;
            }
            let elapsed = last_round.elapsed();
            // Somebody who asks gets to know at once whether it still fails.
            let is_asked = state.requested > self.tried;
            let is_regular = is_asked
                || state.closing
                || elapsed >= wait_max
                || (!failed_lately
                    && self.last_regular.elapsed() >= self.shared.node.snapshot_interval);
            if is_regular || is_early {
                return Some(Due {
                    cut: std::mem::take(&mut state.cut)
                        || (is_regular && !is_asked)
                        || self.last_cut.elapsed() >= self.shared.node.snapshot_interval,
                    early: !is_regular,
                    ticket: state.requested,
                    full: std::mem::take(&mut state.full),
                    closing: state.closing,
                });
            }
            let patience = LOOK_INTERVAL.min(wait_max.saturating_sub(elapsed));
            // Whatever it was woken for, it looks at everything again.
            drop(
                self.shared
                    .work
                    .wait_timeout(state, patience)
                    .unwrap_or_else(PoisonError::into_inner),
            );
        }
    }

    /// Whether a round is worth its while before its time.
    fn is_early(&self) -> bool {
        let journal = &self.shared.journal;
        let file_bytes: u64 = self.manifest.files.iter().map(|file| file.size_bytes).sum();
        let large_bytes = JOURNAL_BYTES_MIN.max(file_bytes / 2);
        let is_large = journal.bytes() > large_bytes.max(self.early_cut_bytes());
        if (is_large || self.may_make_room()) && journal.committed() > self.manifest.lsn {
            return true;
        }
        let (recent, recent_max) = journal.recent_bytes();
        // A delta of so many records, soon too many to keep, pays off against that many keys.
        recent > recent_max / 2 && (recent as u64) < self.shared.key_count() * 6
    }

    /// From which size on an early round cuts the journal.
    fn early_cut_bytes(&self) -> u64 {
        let answers_bytes = self.shared.node.answers.bytes() as u64;
        EARLY_CUT_BYTES_MIN.max(answers_bytes * EARLY_CUT_ANSWERS_MIN)
    }

    /// Whether the disk is full, and a cut of the journal would change that.
    fn may_make_room(&self) -> bool {
        let journal = &self.shared.journal;
        let is_tried = |last: Instant| last.elapsed() < CUT_FOR_ROOM_INTERVAL;
        journal.is_full().is_some()
            && journal.bytes() >= FULL_CUT_BYTES_MIN
            && !self.last_cut_for_room.is_some_and(is_tried)
    }

    /// After a round that has failed: what it has made is named all the same, so that what that replaces can go.
    fn free(&mut self) {
        if !self.is_saved
            && let Err(error) = self.put_to_use()
        {
            warn!(node = %self.shared.node.id, "what a snapshot has made so far is not put to use: {error}");
        }
    }

    fn round(&mut self, due: &Due) -> Result<(), RoundError> {
        let membership_state = self.shared.node.membership.state();
        let MembershipState::Serving(table) = &*membership_state else {
            return Err(RoundError::NotServing);
        };
        self.leave_out_others(table);
        let mut pace = Pace::new(self.shared);

        // What was acknowledged before this time was committed before, so it is at or before `to`.
        let complete_to_ms = self.shared.node.clock.now();
        let to = self.shared.journal.appended();
        self.committed(to)?;
        self.recent = self.shared.journal.recent(to);
        let to = to.max(self.recent.to);
        // A journal has what files lack, so a node that stops does not wait for full ones.
        let only_delta = due.closing && self.shared.journal.is_synced();
        self.delta(table, due.full && !only_delta, &mut pace)?;
        self.recent.records = Vec::new();
        if !only_delta {
            self.fulls(table, &mut pace)?;
        }
        let is_complete = self.recent.lost.is_none();
        if is_complete {
            self.manifest.lsn = to;
            self.manifest.complete_to_ms = complete_to_ms;
        }
        self.put_to_use()?;
        let is_worth_it = self.shared.journal.bytes() >= self.early_cut_bytes();
        let makes_room = self.may_make_room();
        if makes_room {
            self.last_cut_for_room = Some(Instant::now());
        }
        if due.cut || due.closing || is_worth_it || makes_room {
            self.keep_answers(self.manifest.lsn, &mut pace)?;
            self.shared.journal.cut(self.manifest.lsn);
            self.last_cut = Instant::now();
        }
        if due.closing {
            local::set_clean_flag(&self.shared.data_dir, self.manifest.lsn)?;
        }
        if !due.early {
            self.last_regular = Instant::now();
        }
        self.shared.progress.send_modify(|progress| {
            progress.uploads_due += u64::from(!due.early);
            progress.closed = due.closing;
            if is_complete {
                progress.made = due.ticket;
            }
        });
        Ok(())
    }

    /// Leaves the ranges out of the manifest that have left the node.
    fn leave_out_others(&mut self, table: &OwnedRanges) {
        self.manifest.lineage = table.current_map.map.lineage;
        for id in naming::leave_out_others(&mut self.manifest, table) {
            self.renewed.remove(&id);
            self.delta_entries.remove(&id);
            info!(node = %self.shared.node.id, range = %id, "the snapshots do not have a range any more that has left");
        }
    }

    /// Gives up the records: full files are to have what they say.
    fn lose_recent(&mut self) {
        self.shared.journal.lose_recent(self.recent.to);
        self.recent.lost = Some(self.recent.to);
    }

    /// Writes the recent records as a delta, unless full files of everything are called for.
    fn delta(
        &mut self,
        table: &OwnedRanges,
        full: bool,
        pace: &mut Pace<'_>,
    ) -> Result<(), RoundError> {
        let disk_id = self.shared.data_dir.disk_id();
        let named: Vec<bool> = table
            .ranges()
            .iter()
            .map(|range| self.manifest.range(range.id).is_some())
            .collect();
        let read = Changes::read(&self.recent.records, disk_id, table, &named, pace);
        let mut changes = match read {
            Ok(changes) => changes,
            Err(error) => {
                // Full files do not need them.
                self.lose_recent();
                return Err(error);
            }
        };
        let count = changes.len() as u64;
        if full || (count > DELTA_ENTRIES_MIN && count >= self.shared.key_count() / 2) {
            self.lose_recent();
            return Ok(());
        }
        if !changes.is_empty() {
            let lsns = (self.recent.from, self.recent.to);
            let made = make::delta(self.shared, table, &mut changes, lsns, pace)?;
            let file = self.publish(made)?;
            for (index, range) in table.ranges().iter().enumerate() {
                let entries = self.delta_entries.entry(range.id).or_default();
                *entries += changes.len_of(index) as u64;
            }
            info!(node = %self.shared.node.id, name = file.name, entries = file.entries, bytes = file.size_bytes, "made a delta snapshot");
            self.manifest.add_delta(file);
        }
        self.shared.journal.recent_written(self.recent.to);
        Ok(())
    }

    /// Makes full files of the ranges that need them.
    fn fulls(&mut self, table: &OwnedRanges, pace: &mut Pace<'_>) -> Result<(), RoundError> {
        // A range that is loading or closed is not changed, and must not be taken for what its files are.
        let (ready, mut unready): (Vec<_>, Vec<_>) =
            table.ranges().iter().partition(|range| range.is_ready());
        unready.retain(|range| !naming::is_arriving(&self.manifest, range));
        if let Some(lost) = self.recent.lost
            && self.manifest.lsn < self.replayed.to
        {
            self.rescue(table, &unready, lost, pace)?;
        }
        let candidates: Vec<Candidate> = ready
            .iter()
            .map(|range| Candidate {
                id: range.id,
                delta_entries: self.delta_entries.get(&range.id).copied().unwrap_or(0),
            })
            .collect();
        let mut chosen = choice::fulls(&self.manifest, &candidates, self.recent.lost);
        // They have all of their keys, and no files yet.
        let unnamed = ready.iter().map(|range| range.id);
        chosen.extend(unnamed.filter(|id| self.manifest.range(*id).is_none()));
        // Their parts cannot all be read.
        let given_up = ready.iter().filter(|range| range.is_given_up());
        chosen.extend(
            given_up
                .map(|range| range.id)
                .filter(|id| !self.renewed.contains(id)),
        );
        // Files of theirs are lost, and they have all of their keys.
        let nowhere = self.shared.state().nowhere.clone();
        let lost = nowhere.iter().filter_map(|name| self.manifest.file(name));
        chosen.extend(lost.flat_map(|file| file.ranges.iter().copied()));
        let unnamed_bytes_max = unnamed_bytes_max(self.shared.key_count() * ENTRY_BYTES_MAX);
        let (mut made, mut unnamed_bytes, mut bytes, started) = (0, 0, 0, Instant::now());
        for range in ready.iter().filter(|range| chosen.contains(&range.id)) {
            let size_bytes = self.full(table, range, pace)?;
            made += 1;
            bytes += size_bytes;
            unnamed_bytes += size_bytes;
            if unnamed_bytes > unnamed_bytes_max {
                self.put_to_use()?;
                unnamed_bytes = 0;
            }
        }
        self.merge_deltas(table, &ready, &candidates, pace)?;
        if made > 0 {
            info!(node = %self.shared.node.id, ranges = made, bytes, ms = started.elapsed().as_millis() as u64, "made full snapshots");
        }
        if let Some(lost) = self.recent.lost.take() {
            self.shared.journal.recent_recovered(lost);
        }
        Ok(())
    }

    /// Makes one delta of many small ones. Where that fails, they stay as they are.
    fn merge_deltas(
        &mut self,
        table: &OwnedRanges,
        ready: &[&Arc<OwnedRange>],
        candidates: &[Candidate],
        pace: &mut Pace<'_>,
    ) -> Result<(), RoundError> {
        // It is not named before it is whole, either.
        let bytes_max = unnamed_bytes_max(self.shared.key_count() * ENTRY_BYTES_MAX);
        let deltas = choice::deltas_to_merge(&self.manifest, candidates, bytes_max);
        let mut problem = None;
        if !deltas.is_empty() {
            match merge::deltas(self.shared, table, &deltas, ready, pace) {
                Ok(made) => {
                    let file = self.publish(made)?;
                    info!(node = %self.shared.node.id, name = file.name, deltas = deltas.len(), entries = file.entries, bytes = file.size_bytes, "merged delta snapshots");
                    self.manifest.replace_deltas(&deltas, file);
                }
                Err(RoundError::Stopping) => return Err(RoundError::Stopping),
                Err(error) => {
                    problem = Some(format!(
                        "delta snapshots cannot be merged, and stay: {error}"
                    ))
                }
            }
        }
        self.shared.node.warnings.set("deltas", problem);
        Ok(())
    }

    /// What the journal had of ranges that are not ready was merged into their key sets at the start, and can be had from there
    /// when its records were not kept: it becomes a delta, together with what was loaded of those ranges so far.
    fn rescue(
        &mut self,
        table: &OwnedRanges,
        unready: &[&Arc<OwnedRange>],
        to: Lsn,
        pace: &mut Pace<'_>,
    ) -> Result<(), RoundError> {
        let unmerged = &self.replayed.unmerged;
        if unready.iter().any(|range| unmerged.contains(&range.id)) {
            return Err(RoundError::NotMerged);
        }
        let with_keys: Vec<&OwnedRange> = unready
            .iter()
            .map(|range| &***range)
            .filter(|range| !range.read().is_empty())
            .collect();
        if with_keys.is_empty() {
            return Ok(());
        }
        let made = make::unready(
            self.shared,
            table,
            &with_keys,
            (self.manifest.lsn, to),
            pace,
        )?;
        let file = self.publish(made)?;
        info!(node = %self.shared.node.id, name = file.name, ranges = with_keys.len(), entries = file.entries, "made a snapshot of ranges that are not ready");
        self.manifest.add_delta(file);
        Ok(())
    }

    fn full(
        &mut self,
        table: &OwnedRanges,
        range: &OwnedRange,
        pace: &mut Pace<'_>,
    ) -> Result<u64, RoundError> {
        let to = self.shared.journal.appended();
        let made = make::full(self.shared, table, range, to, pace)?;
        // It may have keys that were stored while it was made, under LSNs that may not even be appended yet.
        self.committed(self.shared.journal.taken())?;
        let file = self.publish(made)?;
        let size_bytes = file.size_bytes;
        self.manifest.replace_parts(self.entry_of(range), file);
        self.delta_entries.remove(&range.id);
        if range.is_given_up() {
            self.renewed.insert(range.id);
        }
        Ok(size_bytes)
    }

    /// How `range` is named. One that was loaded from its files goes on as what it is named as.
    fn entry_of(&self, range: &OwnedRange) -> ManifestRange {
        let mut entry = naming::entry_of(range);
        let before = self.manifest.range(range.id);
        entry.copy = entry.copy.or_else(|| before.and_then(|it| it.copy));
        entry
    }

    fn publish(&mut self, made: Unpublished) -> Result<ManifestFile, RoundError> {
        let file = made.publish()?;
        self.on_disk.insert(file.name.clone());
        self.is_saved = false;
        Ok(file)
    }

    /// Makes the manifest the local one, and removes the files that it does not need.
    fn put_to_use(&mut self) -> Result<(), RoundError> {
        let data_dir = &self.shared.data_dir;
        self.manifest.drop_unneeded_files();
        self.manifest.write_nonce = OperationId::random();
        if !self.is_saved {
            local::sync_files(data_dir)?;
        }
        self.is_saved = false;
        local::save(data_dir, &self.manifest)?;
        self.is_saved = true;
        self.shared.state().manifest = Arc::new(self.manifest.clone());
        self.remove_superseded();
        Ok(())
    }

    /// Removes the files that neither the manifest nor an upload needs any more.
    fn remove_superseded(&mut self) {
        if !self.is_saved || self.on_disk.len() == self.manifest.files.len() {
            return;
        }
        let uploading = self.shared.state().uploading.clone();
        let superseded: Vec<String> = self
            .on_disk
            .iter()
            .filter(|name| {
                self.manifest.file(name).is_none()
                    && uploading.as_ref().is_none_or(|it| it.file(name).is_none())
            })
            .cloned()
            .collect();
        for name in superseded {
            if let Err(error) = local::remove_file(&self.shared.data_dir, &name) {
                // The next start removes it.
                warn!(node = %self.shared.node.id, "a snapshot file that is not needed stays: {error}");
            }
            self.on_disk.remove(&name);
        }
    }

    /// Writes the remembered answers, whose journal records are cut next.
    fn keep_answers(&self, to: Lsn, pace: &mut Pace<'_>) -> Result<(), RoundError> {
        let node = &self.shared.node;
        // A node that ends at once has no use for them, but it is as well to finish.
        let entries = node.answers.entries(|| drop(pace.rest()));
        let newest = entries.iter().map(|entry| entry.lsn).max();
        // An answer whose keys a crash forgets must not be remembered.
        self.committed(newest.unwrap_or_default())?;
        let file = AnswersFile {
            cluster_id: self.manifest.cluster_id,
            disk_id: self.shared.data_dir.disk_id(),
            lsn: to,
            entries,
        };
        let path = self.shared.data_dir.answers();
        data_dir::replace_in_pieces(&path, &file.encode(), || {
            // A node that ends at once has no use for the rest either, but it is as well to finish.
            let _ = pace.rest();
        })?;
        Ok(())
    }

    fn committed(&self, lsn: Lsn) -> Result<(), RoundError> {
        // It is the journal's writer that is watched meanwhile.
        self.shared.is_idle();
        let committed = self
            .runtime
            .block_on(self.shared.journal.wait_committed(lsn));
        self.shared.is_busy();
        Ok(committed?)
    }
}
