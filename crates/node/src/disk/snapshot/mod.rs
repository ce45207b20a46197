//! Snapshots of a node's keys: local files first, then object storage.
//!
//! **A round** is made every interval, on demand, and when the journal grows large (`round`). It takes what was written since the
//! last one as a delta file, or, where that is cheaper or the records were too many to keep, makes full files of ranges by
//! scanning their key sets. A file is written under another name, synced and renamed; then the local manifest names it; then the
//! memory of answers is written; and only then the journal is cut. So at each moment the disk has everything, and it never has more
//! than the size of the state and the writes of a round or two.
//!
//! **What is not committed stays out of use.** A full file may hold keys whose record is not synced, or not even appended, yet. It
//! is named by the manifest only after every LSN that was taken until its scan ended is committed; otherwise a crash could keep
//! keys that nobody was told of.
//!
//! **Failure.** A round that fails changes nothing: what it had made stays, what was to be written is kept for the next one, and
//! where it grows too much for that, full files take its place.
//!
//! **Uploading** is a task of its own (`upload`), through which slow storage cannot hold up rounds: it uploads the files that the
//! local manifest names, and then publishes that manifest. Meanwhile those files stay, so that uploading comes to an end however
//! fast they are replaced: the disk has at most twice the state. While storage fails they go as soon as they are not needed.
//!
//! **Pacing.** Encoding takes a quarter of one core at most, in slices of some hundred microseconds, and a lock for some thousand
//! keys at once.

mod backlog;
mod changes;
mod choice;
mod garbage;
mod local;
mod make;
mod merge;
mod names;
mod pace;
mod published;
mod remote;
mod round;
#[cfg(test)]
mod tests;
mod upload;

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use keydb_core::{Lsn, Manifest, SnapshotKind, UnixMillis};
use keydb_storage::ObjectStorage;
use tokio::{
    sync::watch,
    task::{JoinSet, spawn_blocking},
    time::{Instant, timeout_at},
};
use tracing::warn;

pub(crate) use backlog::Backlog;
pub use garbage::{Collected, GARBAGE_AGE_MIN, GarbageError, collect_garbage};
pub(crate) use local::{
    file_path, local_manifest, manifest_path, open, save, skip_lost, take_clean_flag,
};
pub use names::{manifest_key, object_key};
pub(crate) use published::Published;
pub use remote::first_object;
pub(crate) use remote::{RemoteError, manifest_or_proof_of_none, remote_manifest};

use crate::{
    NodeError, disk::data_dir::DataDir, disk::journal, disk::journal::Journal, node::Node,
    ranges::owned::OwnedRanges,
};

/// How far snapshots reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Reach {
    /// Up to this write.
    pub(crate) lsn: Lsn,
    /// What was acknowledged before this time is there.
    pub(crate) complete_to: UnixMillis,
}

/// How the snapshots stand.
#[derive(Debug, Clone, Default)]
pub(crate) struct SnapshotStatus {
    /// In local files.
    pub(crate) local: Reach,
    /// In object storage.
    pub(crate) uploaded: Reach,
    /// What the local files take.
    pub(crate) file_bytes: u64,
}

/// A snapshot that was asked for, and that object storage has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Made {
    pub(crate) reach: Reach,
    /// What was written to object storage for it.
    pub(crate) objects: u64,
    pub(crate) object_bytes: u64,
}

/// Makes and uploads a node's snapshots.
#[derive(Debug)]
pub(crate) struct Snapshotter {
    shared: Arc<Shared>,
    maker: Mutex<Option<JoinHandle<()>>>,
    uploader: tokio::sync::Mutex<JoinSet<()>>,
}

/// What the maker and the uploader share.
#[derive(Debug)]
struct Shared {
    node: Arc<Node>,
    storage: Arc<dyn ObjectStorage>,
    journal: Arc<Journal>,
    data_dir: Arc<DataDir>,
    state: Mutex<State>,
    /// Told when the maker has something to do.
    work: Condvar,
    progress: watch::Sender<Progress>,
    /// Held while what is published is written down; true when nothing more is to be.
    saving_ended: Arc<Mutex<bool>>,
    /// Since when the maker is at a piece of work that ends soon where the disk answers.
    busy_since: Mutex<Option<std::time::Instant>>,
}

#[derive(Debug)]
struct State {
    /// What the local files are.
    manifest: Arc<Manifest>,
    /// What is being uploaded: its files stay.
    uploading: Option<Arc<Manifest>>,
    /// The last request, and whether one of those that wait wants full files.
    requested: u64,
    full: bool,
    closing: bool,
    /// The end comes at once.
    abandoned: bool,
}

/// What has come of requests.
#[derive(Debug, Clone, Default)]
struct Progress {
    /// How many rounds have been made that are worth an upload: all but the early ones.
    uploads_due: u64,
    /// The last request that local files answer.
    made: u64,
    /// The last one that object storage answers.
    uploaded: u64,
    /// The last round was made.
    closed: bool,
    uploaded_reach: Reach,
    objects: u64,
    object_bytes: u64,
    /// How often making or uploading has failed, and how the last time.
    failures: u64,
    failure: String,
}

impl Snapshotter {
    /// Starts to make snapshots of `node`, whose local files are those of `manifest`; what they lack of the journal is in `backlog`.
    pub(crate) fn start(
        node: Arc<Node>,
        storage: Arc<dyn ObjectStorage>,
        journal: Arc<Journal>,
        data_dir: Arc<DataDir>,
        manifest: Manifest,
        backlog: Backlog,
    ) -> Result<Self, NodeError> {
        let published = Published::load(&data_dir)?;
        let known = Progress {
            uploaded_reach: published.reach(),
            ..Progress::default()
        };
        let shared = Arc::new(Shared {
            node,
            storage,
            journal,
            data_dir,
            state: Mutex::new(State {
                manifest: Arc::new(manifest),
                uploading: None,
                requested: 0,
                full: false,
                closing: false,
                abandoned: false,
            }),
            work: Condvar::new(),
            progress: watch::Sender::new(known),
            saving_ended: Arc::default(),
            busy_since: Mutex::default(),
        });
        let runtime = tokio::runtime::Handle::current();
        let maker = std::thread::Builder::new()
            .name("keydb-snapshot".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || {
                    let _report_panic = ReportPanic(&shared, "the thread that makes snapshots");
                    round::run(&shared, &runtime, backlog);
                }
            })
            .map_err(|error| NodeError::Task {
                task: "snapshots",
                reason: error.to_string(),
            })?;
        let mut uploader = JoinSet::new();
        uploader.spawn({
            let shared = Arc::clone(&shared);
            async move {
                let _report_panic = ReportPanic(&shared, "the task that uploads snapshots");
                upload::run(Arc::clone(&shared), published).await;
            }
        });
        uploader.spawn(garbage::run(Arc::clone(&shared)));
        Ok(Self {
            shared,
            maker: Mutex::new(Some(maker)),
            uploader: tokio::sync::Mutex::new(uploader),
        })
    }

    /// Since when the same piece of work with the disk is under way.
    pub(crate) fn busy_since(&self) -> Option<std::time::Instant> {
        *lock(&self.shared.busy_since)
    }

    /// Has the journal leave the room that the next snapshot needs. That changes with the keys, also while one is made.
    pub(crate) fn reserve_room(&self) {
        self.shared.journal.reserve(self.shared.room_bytes());
    }

    pub(crate) fn status(&self) -> SnapshotStatus {
        let manifest = Arc::clone(&self.shared.state().manifest);
        SnapshotStatus {
            local: reach(&manifest),
            uploaded: self.shared.progress.borrow().uploaded_reach,
            file_bytes: manifest.files.iter().map(|file| file.size_bytes).sum(),
        }
    }

    /// Makes a snapshot of everything acknowledged so far, full files if `full`, and waits until object storage has it.
    ///
    /// # Errors
    /// What stands in the way, or how far it got by `deadline`. It may be there later all the same: what failed is tried again.
    pub(crate) async fn request(&self, full: bool, deadline: Instant) -> Result<Made, String> {
        let answered = self.answered(full, deadline, |now| now.uploaded);
        let (before, now) = answered.await?;
        Ok(Made {
            reach: now.uploaded_reach,
            objects: now.objects - before.objects,
            object_bytes: now.object_bytes - before.object_bytes,
        })
    }

    /// Makes a snapshot of everything acknowledged so far, and waits until local files have it.
    ///
    /// # Errors
    /// What stands in the way, or that the time is up. What failed is tried again.
    pub(crate) async fn request_local(&self, deadline: Instant) -> Result<(), String> {
        let answered = self.answered(false, deadline, |now| now.made);
        answered.await.map(drop)
    }

    /// Has a round made, and waits until `answered` has come as far as that request. Returns the progress before and then.
    async fn answered(
        &self,
        full: bool,
        deadline: Instant,
        answered: fn(&Progress) -> u64,
    ) -> Result<(Progress, Progress), String> {
        let mut progress = self.shared.progress.subscribe();
        let before = progress.borrow_and_update().clone();
        let ticket = self
            .shared
            .request(full)
            .ok_or_else(|| STOPPING.to_owned())?;
        let ended =
            progress.wait_for(|now| answered(now) >= ticket || now.failures > before.failures);
        let now = match timeout_at(deadline, ended).await {
            Ok(Ok(now)) => now.clone(),
            Ok(Err(_)) => return Err(STOPPING.to_owned()),
            Err(_) => {
                let now = self.shared.progress.borrow().clone();
                return Err(self.how_far(ticket, &before, &now));
            }
        };
        match answered(&now) >= ticket {
            true => Ok((before, now)),
            false => Err(now.failure),
        }
    }

    /// How far a request has come that is not answered in time.
    fn how_far(&self, ticket: u64, before: &Progress, now: &Progress) -> String {
        let local = if now.made >= ticket {
            let files = self.shared.state().manifest.files.len();
            format!(
                "the local snapshot is made, and {} of its {files} files, {} bytes, have been uploaded since",
                now.objects - before.objects,
                now.object_bytes - before.object_bytes
            )
        } else {
            "not even the local snapshot is made".to_owned()
        };
        let reach = now.uploaded_reach;
        let remote = if reach == Reach::default() {
            "as far as is known, object storage has nothing of the node".to_owned()
        } else {
            format!("object storage is complete to {}", reach.complete_to)
        };
        format!("the time is up: {local}; {remote}; it goes on")
    }

    /// Makes the last snapshot, local files at least, and object storage's if that is done by `deadline`.
    ///
    /// # Errors
    /// Why not even the local files are complete.
    pub(crate) async fn close(&self, deadline: Instant) -> Result<(), String> {
        let mut progress = self.shared.progress.subscribe();
        let failures = progress.borrow_and_update().failures;
        let ticket = self.shared.close();
        let maker = lock(&self.maker).take();
        let ended = match maker {
            Some(maker) => spawn_blocking(move || maker.join()).await,
            None => return Ok(()),
        };
        if !matches!(ended, Ok(Ok(()))) {
            return Err("the thread that makes them has failed".to_owned());
        }
        let made = progress.borrow_and_update().clone();
        if made.made >= ticket {
            let uploaded =
                progress.wait_for(|now| now.uploaded >= ticket || now.failures > failures);
            let in_time = timeout_at(deadline, uploaded).await.is_ok();
            let now = self.shared.progress.borrow().clone();
            if now.uploaded < ticket {
                let why = if in_time {
                    &*now.failure
                } else {
                    "it took too long"
                };
                warn!("the last snapshot is on the disk, but not in object storage: {why}");
            }
        }
        self.uploader.lock().await.shutdown().await;
        *lock(&self.shared.saving_ended) = true;
        self.shared.failed(STOPPING.to_owned());
        if made.closed {
            Ok(())
        } else {
            Err(made.failure)
        }
    }

    /// Leaves the thread to itself, which may not end while the disk does not answer.
    pub(crate) fn leave(&self) {
        drop(lock(&self.maker).take());
        self.tell_to_end();
    }

    /// Has the thread and the tasks end as soon as they can.
    fn tell_to_end(&self) {
        self.shared.state().abandoned = true;
        self.shared.work.notify_one();
        if let Ok(mut uploader) = self.uploader.try_lock() {
            uploader.abort_all();
        }
    }

    /// Stops without another snapshot.
    pub(crate) fn abandon(&self) {
        self.tell_to_end();
        *lock(&self.shared.saving_ended) = true;
        let maker = lock(&self.maker).take();
        if let Some(maker) = maker {
            // A panic in it was printed.
            let _ = maker.join();
        }
        self.shared.failed(STOPPING.to_owned());
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The maker begins a piece of work.
    fn is_busy(&self) {
        *lock(&self.busy_since) = Some(std::time::Instant::now());
    }

    /// The maker waits for something else than the disk.
    fn is_idle(&self) {
        *lock(&self.busy_since) = None;
    }

    fn key_count(&self) -> u64 {
        let membership_state = self.node.membership_state();
        let ranges = membership_state
            .table()
            .map_or(&[][..], OwnedRanges::ranges);
        ranges.iter().map(|range| range.read().len() as u64).sum()
    }

    /// How much room on the disk a round needs at most until it has removed what it replaces. That is what the files grow by: the keys
    /// that no full file has, also those that the journal has room for already and will have with its next segment; and what is
    /// there twice meanwhile: full files that are not named yet, a delta, the remembered answers, a manifest.
    fn room_bytes(&self) -> u64 {
        let manifest = Arc::clone(&self.state().manifest);
        let (in_bases, in_deltas) = entries(&manifest);
        let loaded = self.key_count();
        // While keys are loaded there are more: what the journal has, in no more bytes than it takes.
        let keys = match self.is_loading() {
            true => loaded.max(in_bases + in_deltas + self.journal.bytes() / ENTRY_BYTES_MAX),
            false => loaded,
        };
        let growth = keys.saturating_sub(in_bases) * ENTRY_BYTES_MAX + self.journal.ahead_bytes();
        growth + twice_bytes(keys, &manifest) + self.node.answers.bytes() as u64 + MANIFEST_BYTES
    }

    fn is_loading(&self) -> bool {
        let membership_state = self.node.membership_state();
        membership_state
            .table()
            .is_none_or(OwnedRanges::are_loading)
    }

    /// Has a round made. `None` when there are to be no more.
    fn request(&self, full: bool) -> Option<u64> {
        let mut state = self.state();
        if state.closing || state.abandoned {
            return None;
        }
        state.requested += 1;
        state.full |= full;
        self.work.notify_one();
        Some(state.requested)
    }

    fn close(&self) -> u64 {
        let mut state = self.state();
        state.requested += 1;
        state.closing = true;
        self.work.notify_one();
        state.requested
    }

    fn failed(&self, failure: String) {
        self.progress.send_modify(|progress| {
            progress.failures += 1;
            progress.failure = failure;
        });
    }
}

/// Says so when a part ends in a panic: those who wait for it would wait for ever.
struct ReportPanic<'a>(&'a Shared, &'static str);

impl Drop for ReportPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let reason = format!("{} has failed, a defect: restart the node", self.1);
            self.0.state().abandoned = true;
            self.0.node.warn_of("snapshots", Some(reason.clone()));
            self.0.failed(reason);
        }
    }
}

/// How many entries full files and deltas have.
fn entries(manifest: &Manifest) -> (u64, u64) {
    let count = |kind| {
        let files = manifest.files.iter().filter(|file| file.kind == kind);
        files.map(|file| file.entries).sum()
    };
    (count(SnapshotKind::Full), count(SnapshotKind::Delta))
}

/// What a round that writes full files of `keys` keys has on the disk twice at most: those that are not named yet, a delta.
fn twice_bytes(keys: u64, manifest: &Manifest) -> u64 {
    let files = keys * ENTRY_BYTES_MAX;
    let ranges = manifest.ranges.len().max(1) as u64;
    let twice = round::unnamed_bytes_max(files) + files / ranges + DELTA_BYTES_MAX;
    twice.min(files)
}

/// How much room the first round after a start may need, besides as much as the journal has.
pub(crate) fn room_at_start(manifest: &Manifest) -> u64 {
    let (in_bases, in_deltas) = entries(manifest);
    in_deltas * ENTRY_BYTES_MAX + twice_bytes(in_bases + in_deltas, manifest) + MANIFEST_BYTES
}

fn reach(manifest: &Manifest) -> Reach {
    Reach {
        lsn: manifest.lsn,
        complete_to: manifest.complete_to_ms,
    }
}

/// Only whole values are ever stored under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a request is not answered at the end.
const STOPPING: &str = "the node is stopping";

/// What an entry takes in a snapshot file at most, on average: a fingerprint's gap and an expiry.
const ENTRY_BYTES_MAX: u64 = 12;

/// A delta's records are kept up to this size.
const DELTA_BYTES_MAX: u64 = journal::RECENT_BYTES_MAX as u64;

/// More than a manifest, as it is written beside the one before.
const MANIFEST_BYTES: u64 = 4 << 20;

/// How long is waited after a failure, at first and at most.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
