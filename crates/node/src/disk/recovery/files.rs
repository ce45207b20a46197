//! Reading the files that a manifest names, those that are not here from object storage.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use keydb_core::{Manifest, ManifestFile, ManifestRange, Origin, RangeId, SnapshotKind};
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::Instant,
};
use tracing::{error, info, warn};

use super::{Recovery, fetch::FetchError, task_failed};
use crate::{
    NodeError,
    cluster::membership_state::MembershipState,
    disk::load::{LoadError, load_file},
    disk::snapshot,
    ranges::owned::{OwnedRange, OwnedRanges},
};

/// So many files are read at the same time: more would take memory and not be faster.
const READS_AT_ONCE: usize = 4;

/// So many files are fetched from object storage at the same time. They are not among those that are read, so a storage that does
/// not answer holds up nobody who does not need it.
const FETCHES_AT_ONCE: usize = 4;

/// So many manifests are gone by, one after the other, while the objects of each are removed before they are fetched.
const MANIFESTS_MAX: usize = 5;

/// How often the progress is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(3);

/// A file, and the ranges that wait for it.
type Wanted = (ManifestFile, Vec<Arc<OwnedRange>>);

/// What came of a file.
enum Outcome {
    Loaded,
    /// The file on the disk is no good, for this reason.
    NotHere(Wanted, LoadError),
    /// Neither the disk nor object storage has it.
    Gone(String),
    Unusable(String),
}

impl Recovery {
    /// Loads the files that the manifest names, and says of each range that it is ready or closed. Returns the manifest that it
    /// went by in the end.
    pub(crate) async fn load(
        self: &Arc<Self>,
        membership_state: &Arc<MembershipState>,
        mut manifest: Manifest,
    ) -> Result<Manifest, NodeError> {
        let Some(table) = membership_state.table() else {
            return Ok(manifest);
        };
        for further in (0..MANIFESTS_MAX).rev() {
            let newer = self
                .load_files(membership_state, table, &manifest, further > 0)
                .await?;
            match newer {
                Some(newer) => manifest = newer,
                None => break,
            }
        }
        Ok(manifest)
    }

    /// Loads the files of one manifest. Ends before that with a newer manifest where `may_change` and this one's objects are gone.
    /// What was loaded until then does no harm: it is merged again.
    async fn load_files(
        self: &Arc<Self>,
        membership_state: &Arc<MembershipState>,
        table: &OwnedRanges,
        manifest: &Manifest,
        may_change: bool,
    ) -> Result<Option<Manifest>, NodeError> {
        let mut plan = Plan::new(table, manifest);
        let mut to_read: Vec<Wanted> = plan.files();
        // Deltas first: once they are read, each full file makes a range ready.
        to_read.sort_by_key(|(file, _)| file.kind == SnapshotKind::Delta);
        let is_new = self.is_taken_over(manifest);
        let mut progress = Progress::new(is_new.then_some(manifest));
        let mut to_fetch: VecDeque<(Wanted, LoadError)> = VecDeque::new();
        let mut reading: JoinSet<(String, Outcome)> = JoinSet::new();
        let mut fetching: JoinSet<(String, Outcome)> = JoinSet::new();
        loop {
            while reading.len() < READS_AT_ONCE
                && let Some(wanted) = to_read.pop()
            {
                reading.spawn(Arc::clone(self).read(wanted, Arc::clone(membership_state)));
            }
            while fetching.len() < FETCHES_AT_ONCE
                && let Some((wanted, local)) = to_fetch.pop_front()
            {
                // On a disk that is new none is there.
                if !(is_new && matches!(local, LoadError::Missing)) {
                    warn!(node = %self.node.config.id, name = wanted.0.name, "a snapshot file cannot be used, fetching it from object storage: {local}");
                }
                fetching.spawn(Arc::clone(self).fetch_and_read(
                    wanted,
                    local,
                    Arc::clone(membership_state),
                ));
            }
            let (ended, is_fetched) = tokio::select! {
                Some(ended) = reading.join_next() => (ended, false),
                Some(ended) = fetching.join_next() => (ended, true),
                else => {
                    progress.end();
                    return Ok(None);
                }
            };
            let (name, outcome) = ended.map_err(|error| task_failed(&error))?;
            let result = match outcome {
                Outcome::Loaded => {
                    if is_fetched {
                        progress.fetched(plan.size_of(&name));
                    }
                    Ok(())
                }
                Outcome::NotHere(wanted, error) => {
                    to_fetch.push_back((wanted, error));
                    continue;
                }
                Outcome::Gone(reason) => {
                    if may_change
                        && let Some(newer) = self.adopt_again(table, manifest, &name).await?
                    {
                        return Ok(Some(newer));
                    }
                    Err(reason)
                }
                Outcome::Unusable(reason) => Err(reason),
            };
            if let Err(reason) = &result {
                error!(node = %self.node.config.id, name, "a snapshot file cannot be used: {reason}");
            }
            plan.done(&name, result);
        }
    }

    /// Loads a file from the disk.
    async fn read(
        self: Arc<Self>,
        wanted: Wanted,
        membership_state: Arc<MembershipState>,
    ) -> (String, Outcome) {
        let name = wanted.0.name.clone();
        let outcome = match self.local(&wanted, &membership_state).await {
            Ok(()) => Outcome::Loaded,
            // More of the same will not fit either.
            Err(error @ LoadError::NoRoom(..)) => Outcome::Unusable(error.to_string()),
            Err(error) => Outcome::NotHere(wanted, error),
        };
        (name, outcome)
    }

    /// Loads a file from object storage; it is not on the disk, for the reason `local`.
    async fn fetch_and_read(
        self: Arc<Self>,
        wanted: Wanted,
        local: LoadError,
        membership_state: Arc<MembershipState>,
    ) -> (String, Outcome) {
        let name = wanted.0.name.clone();
        let fetched = self.fetch(&wanted.0).await;
        let outcome = match fetched {
            Ok(()) => match self.local(&wanted, &membership_state).await {
                Ok(()) => Outcome::Loaded,
                Err(error) => {
                    Outcome::Unusable(format!("{name}: {local}; from object storage: {error}"))
                }
            },
            Err(error) => {
                let reason = format!("{name}: {local}; in object storage: {error}");
                match error {
                    FetchError::Missing(_) => Outcome::Gone(reason),
                    _ => Outcome::Unusable(reason),
                }
            }
        };
        (name, outcome)
    }

    async fn local(
        self: &Arc<Self>,
        (file, ranges): &Wanted,
        membership_state: &Arc<MembershipState>,
    ) -> Result<(), LoadError> {
        let (this, file, ranges) = (Arc::clone(self), file.clone(), ranges.clone());
        let Some(origin) = membership_state.map().map(Origin::from) else {
            return Ok(());
        };
        let loaded = spawn_blocking(move || {
            let path = snapshot::file_path(&this.data_dir, &file.name);
            load_file(&path, &file, origin, &ranges, this.node.clock.times())
        });
        match loaded.await {
            Ok(loaded) => loaded.map(|_| ()),
            Err(error) => Err(LoadError::Io(std::io::Error::other(error))),
        }
    }
}

/// Says now and then how much has been fetched.
struct Progress {
    files: usize,
    bytes: u64,
    /// How much there is to fetch, where that is known.
    files_total: Option<usize>,
    bytes_total: Option<u64>,
    last_log: Instant,
}

impl Progress {
    /// Of all files of `manifest`, or of those that turn out not to be here.
    fn new(manifest: Option<&Manifest>) -> Self {
        Self {
            files: 0,
            bytes: 0,
            files_total: manifest.map(|it| it.files.len()),
            bytes_total: manifest.map(|it| it.files.iter().map(|file| file.size_bytes).sum()),
            last_log: Instant::now(),
        }
    }

    fn fetched(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
        if self.last_log.elapsed() >= LOG_INTERVAL {
            self.last_log = Instant::now();
            info!(
                files = self.files,
                files_total = self.files_total,
                bytes = self.bytes,
                bytes_total = self.bytes_total,
                "fetching snapshot files from object storage"
            );
        }
    }

    fn end(&self) {
        if self.files > 0 {
            info!(
                files = self.files,
                bytes = self.bytes,
                "fetched the snapshot files that object storage has"
            );
        }
    }
}

/// Why the keys of `range` are not here, of which the manifest has this or nothing.
fn not_here(range: &OwnedRange, entry: Option<&ManifestRange>) -> String {
    let named = match entry.map(|entry| entry.copy) {
        None => "the node's snapshots do not have it".to_owned(),
        Some(None) => "the node's snapshots have one that was there before".to_owned(),
        Some(Some(copy)) => format!("the node's snapshots have one that came by copy {copy}"),
    };
    match (range.copy, entry) {
        (Some(copy), _) => format!("it came to this node by copy {copy}, and {named}"),
        (None, Some(_)) => "the node's snapshots have it with other bounds".to_owned(),
        (None, None) => format!("{named}: it came from another node"),
    }
}

/// Which files which ranges wait for.
struct Plan {
    files: HashMap<String, (ManifestFile, Vec<Arc<OwnedRange>>)>,
    /// How many files a range still waits for, and why one of the others cannot be had.
    waits_for: HashMap<RangeId, (usize, Option<String>)>,
}

impl Plan {
    /// Ranges that wait for nothing are ready from here on.
    fn new(table: &OwnedRanges, manifest: &Manifest) -> Self {
        let mut plan = Self {
            files: HashMap::new(),
            waits_for: HashMap::new(),
        };
        for range in table.ranges() {
            let entry = manifest.range(range.id);
            let Some(entry) = entry.filter(|entry| snapshot::is_of(entry, range)) else {
                // Only what a node was created with begins without keys.
                if range.copy.is_some() || !manifest.is_blank() {
                    range.lacks(not_here(range, entry));
                }
                range.end_loading();
                continue;
            };
            let (base, deltas) = manifest.parts(entry);
            let files: Vec<&ManifestFile> = base.into_iter().chain(deltas).collect();
            if files.is_empty() {
                range.end_loading();
            }
            plan.waits_for.insert(range.id, (files.len(), None));
            for file in files {
                let (_, ranges) = plan
                    .files
                    .entry(file.name.clone())
                    .or_insert_with(|| (file.clone(), Vec::new()));
                ranges.push(Arc::clone(range));
            }
        }
        plan
    }

    fn files(&self) -> Vec<(ManifestFile, Vec<Arc<OwnedRange>>)> {
        self.files.values().cloned().collect()
    }

    /// The size in bytes of a file that is waited for.
    fn size_of(&self, name: &str) -> u64 {
        self.files.get(name).map_or(0, |(file, _)| file.size_bytes)
    }

    /// A file was read, or cannot be.
    fn done(&mut self, name: &str, result: Result<(), String>) {
        let Some((_, ranges)) = self.files.remove(name) else {
            return;
        };
        // A range is closed only when its last file has been tried: until then it has not all that is left of it.
        for range in ranges {
            let (files, problem) = self.waits_for.entry(range.id).or_insert((1, None));
            *files -= 1;
            if let Err(reason) = &result {
                problem.get_or_insert_with(|| reason.clone());
            }
            if *files == 0 {
                if let Some(reason) = problem.take() {
                    range.lacks(reason);
                }
                range.end_loading();
            }
        }
    }
}
