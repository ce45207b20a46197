//! Snapshots of a node's keys: local files first, then object storage.
//!
//! **A round** is made every interval, on demand, and when the journal grows large (`round`). It takes what was written since the
//! last one as a delta file, or, where that is cheaper or the records were too many to keep, makes full files of ranges by
//! scanning their key sets. A file is written under another name, synced and renamed; then the local manifest names it; then the
//! memory of answers is written; and only then the journal is cut. So at each moment the disk has everything, and it never has more
//! than the size of the state and the writes of a round or two.
//!
//! **What is not committed stays out of use.** A full file may hold keys whose record is not synced yet. It is named by the
//! manifest only after everything that was appended until its scan ended is committed; otherwise a crash could keep keys that
//! nobody was told of.
//!
//! **Uploading** is a task of its own (`upload`), which slow storage cannot hold up rounds through: it uploads the files that the
//! local manifest names, and then publishes that manifest. What became unneeded in the meantime is left out.
//!
//! **Pacing.** Encoding takes a quarter of one core at most, in slices of a millisecond, and a lock for some thousand keys at once.

mod garbage;
mod make;
mod names;
mod round;
mod upload;

use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use keydb_core::{Lsn, Manifest, UnixMillis};
use keydb_storage::ObjectStorage;
use tokio::{
    sync::watch,
    task::{JoinSet, spawn_blocking},
    time::{Instant, timeout_at},
};
use tracing::{info, warn};

pub use garbage::{Collected, GarbageError, collect_garbage};
pub use names::{manifest_key, object_key};

use crate::{
    DataDirError, NodeError,
    data_dir::{self, DataDir},
    journal::Journal,
    node::Node,
};

/// The local manifest's name in the data directory.
const MANIFEST: &str = "manifest.json";
/// The folder of the snapshot files there.
const FILES: &str = "snapshots";
/// The file that says that the node stopped cleanly.
const CLEAN: &str = "clean";

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
}

#[derive(Debug)]
struct State {
    /// What the local files are.
    manifest: Arc<Manifest>,
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
    /// The last request that local files answer.
    made: u64,
    /// The last one that object storage answers.
    uploaded: u64,
    uploaded_reach: Reach,
    objects: u64,
    object_bytes: u64,
    /// How often making or uploading has failed, and how the last time.
    failures: u64,
    failure: String,
}

/// The local manifest, if there is one, after everything that it does not name is removed.
pub(crate) fn open(data_dir: &DataDir) -> Result<Option<Manifest>, DataDirError> {
    let path = manifest_path(data_dir);
    let Some(json) = data_dir::read(&path)? else {
        return Ok(None);
    };
    let manifest = Manifest::from_json(&json).map_err(|error| DataDirError::Damaged {
        path,
        reason: error.to_string(),
    })?;
    remove_unnamed_files(data_dir, &manifest);
    Ok(Some(manifest))
}

/// Makes `manifest` the local one.
pub(crate) fn save(data_dir: &DataDir, manifest: &Manifest) -> Result<(), DataDirError> {
    data_dir::replace(&manifest_path(data_dir), &manifest.to_json())
}

/// Where the local manifest is.
pub(crate) fn manifest_path(data_dir: &DataDir) -> PathBuf {
    data_dir.root().join(MANIFEST)
}

/// Where a snapshot file is, or is to be.
pub(crate) fn file_path(data_dir: &DataDir, name: &str) -> PathBuf {
    data_dir.root().join(FILES).join(name)
}

/// Whether the node stopped cleanly the last time. It is not known of this time from here on.
pub(crate) fn take_clean_flag(data_dir: &DataDir) -> Result<bool, DataDirError> {
    let path = data_dir.root().join(CLEAN);
    match fs::remove_file(&path) {
        Ok(()) => {
            data_dir::sync_dir(data_dir.root())?;
            Ok(true)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(DataDirError::io("remove", &path, error)),
    }
}

fn remove_unnamed_files(data_dir: &DataDir, manifest: &Manifest) {
    let named: BTreeSet<&str> = manifest.files.iter().map(|file| &*file.name).collect();
    let dir = data_dir.root().join(FILES);
    for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !name.to_str().is_some_and(|name| named.contains(name)) {
            // Should it stay, it costs space and nothing else.
            let removed = fs::remove_file(entry.path());
            info!(path = %entry.path().display(), ok = removed.is_ok(), "removed a file that no manifest names");
        }
    }
}

impl Snapshotter {
    /// Starts to make snapshots of `node`, whose local files are those of `manifest`.
    pub(crate) fn start(
        node: Arc<Node>,
        storage: Arc<dyn ObjectStorage>,
        journal: Arc<Journal>,
        data_dir: Arc<DataDir>,
        manifest: Manifest,
    ) -> Result<Self, NodeError> {
        let shared = Arc::new(Shared {
            node,
            storage,
            journal,
            data_dir,
            state: Mutex::new(State {
                manifest: Arc::new(manifest),
                requested: 0,
                full: false,
                closing: false,
                abandoned: false,
            }),
            work: Condvar::new(),
            progress: watch::Sender::default(),
        });
        let runtime = tokio::runtime::Handle::current();
        let maker = std::thread::Builder::new()
            .name("keydb-snapshot".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || round::run(&shared, &runtime)
            })
            .map_err(|error| NodeError::Task {
                task: "snapshots",
                reason: error.to_string(),
            })?;
        let mut uploader = JoinSet::new();
        uploader.spawn(upload::run(Arc::clone(&shared)));
        Ok(Self {
            shared,
            maker: Mutex::new(Some(maker)),
            uploader: tokio::sync::Mutex::new(uploader),
        })
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
    /// What stands in the way. It may be there later all the same: what failed is tried again.
    pub(crate) async fn request(&self, full: bool) -> Result<Made, String> {
        let mut progress = self.shared.progress.subscribe();
        let before = progress.borrow_and_update().clone();
        let ticket = self.shared.request(full);
        loop {
            {
                let now = progress.borrow_and_update();
                if now.uploaded >= ticket {
                    return Ok(Made {
                        reach: now.uploaded_reach,
                        objects: now.objects - before.objects,
                        object_bytes: now.object_bytes - before.object_bytes,
                    });
                }
                if now.failures > before.failures {
                    return Err(now.failure.clone());
                }
            }
            if progress.changed().await.is_err() {
                return Err("the node is stopping".to_owned());
            }
        }
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
        let made = progress.borrow_and_update().made >= ticket;
        let uploaded = timeout_at(deadline, async {
            while made {
                {
                    let now = progress.borrow_and_update();
                    if now.uploaded >= ticket || now.failures > failures {
                        break;
                    }
                }
                if progress.changed().await.is_err() {
                    break;
                }
            }
        });
        let in_time = uploaded.await.is_ok();
        let now = self.shared.progress.borrow().clone();
        if made && now.uploaded < ticket {
            let why = if in_time {
                &now.failure
            } else {
                "it took too long"
            };
            warn!("the last snapshot is on the disk, but not in object storage: {why}");
        }
        self.uploader.lock().await.shutdown().await;
        if made { Ok(()) } else { Err(now.failure) }
    }
}

impl Snapshotter {
    /// Stops without another snapshot.
    pub(crate) fn abandon(&self) {
        {
            let mut state = self.shared.state();
            state.abandoned = true;
            self.shared.work.notify_one();
        }
        if let Ok(mut uploader) = self.uploader.try_lock() {
            uploader.abort_all();
        }
        let maker = lock(&self.maker).take();
        if let Some(maker) = maker {
            // A panic in it was printed.
            let _ = maker.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn request(&self, full: bool) -> u64 {
        let mut state = self.state();
        state.requested += 1;
        state.full |= full;
        self.work.notify_one();
        state.requested
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

/// How long is waited after a failure, at first and at most.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
