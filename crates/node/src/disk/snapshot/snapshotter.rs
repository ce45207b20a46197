//! The handle on the making and uploading of snapshots.

use std::{
    collections::HashSet,
    sync::{Arc, Condvar, Mutex},
    thread::JoinHandle,
};

use keydb_core::{Manifest, RangeId};
use keydb_storage::SnapshotStore;
use tokio::{
    sync::watch,
    task::{JoinSet, spawn_blocking},
    time::{Instant, timeout_at},
};
use tracing::warn;

use super::{
    garbage,
    published::Published,
    rounds::{self, Replayed},
    shared::{Failures, NodeParts, Progress, Reach, Shared, State},
    upload,
};
use crate::{
    NodeError, background, disk::data_dir::DataDir, disk::journal::Journal, lock::lock,
    ranges::owned::OwnedRange,
};

/// How the snapshots stand.
#[derive(Debug, Clone, Default)]
pub(crate) struct SnapshotStatus {
    /// In local files.
    pub(crate) local: Reach,
    /// In object storage.
    pub(crate) uploaded: Reach,
    /// What the local files take.
    pub(crate) file_bytes: u64,
    /// Since the start.
    pub(crate) counters: SnapshotCounters,
}

/// What has become of snapshots since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SnapshotCounters {
    /// What they wrote to object storage.
    pub(crate) objects: u64,
    pub(crate) object_bytes: u64,
    /// Attempts that failed at local files, and at uploading them.
    pub(crate) rounds_failed: u64,
    pub(crate) uploads_failed: u64,
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
    pub(super) shared: Arc<Shared>,
    maker: Mutex<Option<JoinHandle<()>>>,
    uploader: tokio::sync::Mutex<JoinSet<()>>,
}

/// What snapshots are made of, and where.
#[derive(Debug)]
pub(crate) struct Inputs {
    pub(crate) node: NodeParts,
    pub(crate) store: SnapshotStore,
    pub(crate) journal: Arc<Journal>,
    pub(crate) data_dir: Arc<DataDir>,
}

/// What a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    /// Local files.
    Made,
    /// Object storage.
    Uploaded,
}

impl Goal {
    /// The last request that has come to it.
    fn reached(self, now: &Progress) -> u64 {
        match self {
            Self::Made => now.made,
            Self::Uploaded => now.uploaded,
        }
    }

    /// Whether the request has come to it, or has failed since `before`.
    fn has_ended(self, request: u64, before: &Progress, now: &Progress) -> bool {
        self.reached(now) >= request || self.failure_since(before, now).is_some()
    }

    /// What has stood in the way since `before`.
    fn failure_since<'a>(self, before: &Progress, now: &'a Progress) -> Option<&'a str> {
        let since =
            |before: &Failures, now: &'a Failures| (now.count > before.count).then_some(&*now.last);
        let round = since(&before.rounds_failed, &now.rounds_failed);
        match self {
            Self::Made => round,
            Self::Uploaded => round.or(since(&before.uploads_failed, &now.uploads_failed)),
        }
    }
}

impl Snapshotter {
    /// Starts to make snapshots, where the local files are those of `manifest`; the journal knows what they lack, also of what was
    /// `replayed` at the start.
    pub(crate) fn start(
        inputs: Inputs,
        manifest: Manifest,
        replayed: Replayed,
    ) -> Result<Self, NodeError> {
        let published = Published::load(&inputs.data_dir)?;
        let known = Progress {
            uploaded_reach: published.reach(),
            ..Progress::default()
        };
        let shared = Arc::new(Shared {
            node: inputs.node,
            store: inputs.store,
            journal: inputs.journal,
            data_dir: inputs.data_dir,
            state: Mutex::new(State {
                manifest: Arc::new(manifest),
                uploaded: None,
                uploading: None,
                nowhere: HashSet::new(),
                requested: 0,
                full: false,
                cut: false,
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
                    background::be_nice();
                    let _report_panic = ReportPanic(&shared, "the thread that makes snapshots");
                    rounds::run(&shared, &runtime, replayed);
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
        let manifest = self.shared.manifest();
        let progress = self.shared.progress.borrow();
        SnapshotStatus {
            local: Reach::from(&*manifest),
            uploaded: progress.uploaded_reach,
            counters: SnapshotCounters {
                objects: progress.objects,
                object_bytes: progress.object_bytes,
                rounds_failed: progress.rounds_failed.count,
                uploads_failed: progress.uploads_failed.count,
            },
            file_bytes: manifest.files.iter().map(|file| file.size_bytes).sum(),
        }
    }

    /// Makes a snapshot of everything acknowledged so far, full files if `full`, and waits until object storage has it.
    ///
    /// # Errors
    /// What stands in the way, or how far it got by `deadline`. It may be there later all the same: what failed is tried again.
    pub(crate) async fn request(&self, full: bool, deadline: Instant) -> Result<Made, String> {
        let ask = |shared: &Shared| shared.request(full);
        let (before, now) = self.answered(ask, deadline, Goal::Uploaded).await?;
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
        let ask = |shared: &Shared| shared.request(false);
        self.answered(ask, deadline, Goal::Made).await.map(drop)
    }

    /// The same as [`request`](Self::request), for the files alone: the journal stays as it is.
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn request_files(&self, deadline: Instant) -> Result<(), String> {
        let ask = Shared::request_files;
        self.answered(ask, deadline, Goal::Uploaded).await.map(drop)
    }

    /// Where snapshots are uploaded to.
    pub(crate) fn store(&self) -> &SnapshotStore {
        &self.shared.store
    }

    /// Waits until the local manifest and the one in object storage name these ranges, by the copies that have brought them. Those that
    /// are not named yet get full files in the next round.
    ///
    /// # Errors
    /// When a range is not here, is not complete, or leaves meanwhile; and at the deadline, with what has stood in the way.
    pub(crate) async fn secure(&self, ranges: &[RangeId], deadline: Instant) -> Result<(), String> {
        let ranges = self.complete_ranges(ranges)?;
        if self.unsecured(&ranges).is_none() {
            return Ok(());
        }
        let mut progress = self.shared.progress.subscribe();
        let before = progress.borrow_and_update().clone();
        let ticket = self
            .shared
            .request_files()
            .ok_or_else(|| STOPPING.to_owned())?;
        // What fails is tried again.
        let ended = progress.wait_for(|now| now.uploaded >= ticket || now.ended);
        let now = match timeout_at(deadline, ended).await {
            Ok(Ok(now)) => now.clone(),
            Ok(Err(_)) => return Err(STOPPING.to_owned()),
            Err(_) => {
                let now = self.shared.progress.borrow().clone();
                let how_far = self.how_far(ticket, &before, &now);
                let why = Goal::Uploaded.failure_since(&before, &now);
                return Err(why.map_or(how_far.clone(), |why| format!("{why} ({how_far})")));
            }
        };
        if now.uploaded < ticket {
            return Err(now.rounds_failed.last);
        }
        match self.unsecured(&ranges) {
            None => Ok(()),
            Some(id) => Err(format!("range {id} has left while it was written to files")),
        }
    }

    /// These ranges, if they are here with all of their keys.
    fn complete_ranges(&self, ids: &[RangeId]) -> Result<Vec<Arc<OwnedRange>>, String> {
        let membership_state = self.shared.node.membership.state();
        let table = membership_state.table();
        let complete = |id: &RangeId| {
            let range = table.and_then(|table| {
                let index = table.find(*id, 0)?;
                Some(Arc::clone(&table.ranges()[index]))
            });
            let range = range.ok_or_else(|| format!("range {id} is not here"))?;
            match range.is_ready() {
                true => Ok(range),
                false => Err(format!("range {id} has not all of its keys")),
            }
        };
        ids.iter().map(complete).collect()
    }

    /// The first of `ranges` that the local manifest or the one in object storage does not name.
    fn unsecured(&self, ranges: &[Arc<OwnedRange>]) -> Option<RangeId> {
        let state = self.shared.state();
        let (local, uploaded) = (Arc::clone(&state.manifest), state.uploaded.clone());
        drop(state);
        let is_secured = |range: &OwnedRange| {
            rounds::names(&local, range)
                && uploaded.as_ref().is_some_and(|it| rounds::names(it, range))
        };
        let unsecured = ranges.iter().find(|range| !is_secured(range));
        unsecured.map(|range| range.id)
    }

    /// Has a round made, and waits until the request has come to its goal. Returns the progress before and then.
    async fn answered(
        &self,
        ask: impl FnOnce(&Shared) -> Option<u64>,
        deadline: Instant,
        goal: Goal,
    ) -> Result<(Progress, Progress), String> {
        let mut progress = self.shared.progress.subscribe();
        let before = progress.borrow_and_update().clone();
        let ticket = ask(&self.shared).ok_or_else(|| STOPPING.to_owned())?;
        let ended = progress.wait_for(|now| goal.has_ended(ticket, &before, now));
        let now = match timeout_at(deadline, ended).await {
            Ok(Ok(now)) => now.clone(),
            Ok(Err(_)) => return Err(STOPPING.to_owned()),
            Err(_) => {
                let now = self.shared.progress.borrow().clone();
                return Err(self.how_far(ticket, &before, &now));
            }
        };
        match goal.failure_since(&before, &now) {
            Some(failure) if goal.reached(&now) < ticket => Err(failure.to_owned()),
            _ => Ok((before, now)),
        }
    }

    /// How far a request has come that is not answered in time.
    fn how_far(&self, ticket: u64, before: &Progress, now: &Progress) -> String {
        let local = if now.made >= ticket {
            let files = self.shared.manifest().files.len();
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
        let before = progress.borrow_and_update().clone();
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
            let goal = Goal::Uploaded;
            let ended = progress.wait_for(|now| goal.has_ended(ticket, &before, now));
            // The time may be up, which the progress shows as well.
            let _ = timeout_at(deadline, ended).await;
            let now = self.shared.progress.borrow().clone();
            if goal.reached(&now) < ticket {
                let why = goal.failure_since(&before, &now);
                let why = why.unwrap_or("it took too long");
                warn!("the last snapshot is on the disk, but not in object storage: {why}");
            }
        }
        self.uploader.lock().await.shutdown().await;
        *lock(&self.shared.saving_ended) = true;
        self.shared.ended(STOPPING);
        if made.closed {
            Ok(())
        } else {
            Err(made.rounds_failed.last)
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
        self.shared.ended(STOPPING);
    }
}

/// Says so when a part ends in a panic: those who wait for it would wait for ever.
struct ReportPanic<'a>(&'a Shared, &'static str);

impl Drop for ReportPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let reason = format!("{} has failed, a defect: restart the node", self.1);
            self.0.state().abandoned = true;
            self.0.node.warnings.set("snapshots", Some(reason.clone()));
            self.0.ended(&reason);
        }
    }
}

/// Why a request is not answered at the end.
pub(super) const STOPPING: &str = "the node is stopping";
