//! What the making and the uploading of snapshots share.

use std::{
    collections::HashSet,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use keydb_core::{Incarnation, Lsn, Manifest, NodeId, UnixMillis};
use keydb_storage::SnapshotStore;
use tokio::sync::watch;

use crate::{
    cluster::{membership_state::CurrentMembership, trusted_clock::TrustedClock},
    disk::{data_dir::DataDir, journal::Journal},
    ending::Ending,
    lock::lock,
    ranges::owned::OwnedRanges,
    requests::answers::AnswerMemory,
    warnings::Warnings,
};

/// How long is waited after a failure, at first and at most.
pub(super) const RETRY_MIN: Duration = Duration::from_millis(500);
pub(super) const RETRY_MAX: Duration = Duration::from_secs(30);

/// How far snapshots reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Reach {
    /// Up to this write.
    pub(crate) lsn: Lsn,
    /// What was acknowledged before this time is there.
    pub(crate) complete_to: UnixMillis,
}

impl From<&Manifest> for Reach {
    fn from(manifest: &Manifest) -> Self {
        Self {
            lsn: manifest.lsn,
            complete_to: manifest.complete_to_ms,
        }
    }
}

/// What snapshots need of the node.
#[derive(Debug, Clone)]
pub(crate) struct NodeParts {
    pub(crate) id: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) snapshot_interval: Duration,
    pub(crate) clock: Arc<TrustedClock>,
    pub(crate) membership: Arc<CurrentMembership>,
    pub(crate) answers: Arc<AnswerMemory>,
    pub(crate) warnings: Arc<Warnings>,
    pub(crate) ending: Arc<Ending>,
}

/// What the maker and the uploader share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) node: NodeParts,
    pub(super) store: SnapshotStore,
    pub(super) journal: Arc<Journal>,
    pub(super) data_dir: Arc<DataDir>,
    pub(super) state: Mutex<State>,
    /// Told when the maker has something to do.
    pub(super) work: Condvar,
    pub(super) progress: watch::Sender<Progress>,
    /// Held while what is published is written down; true when nothing more is to be.
    pub(super) saving_ended: Arc<Mutex<bool>>,
    /// Since when the maker is at a piece of work that ends soon where the disk answers.
    pub(super) busy_since: Mutex<Option<Instant>>,
}

#[derive(Debug)]
pub(super) struct State {
    /// What the local files are.
    pub(super) manifest: Arc<Manifest>,
    /// What object storage has, as far as this process has seen it.
    pub(super) uploaded: Option<Arc<Manifest>>,
    /// What is being uploaded: its files stay.
    pub(super) uploading: Option<Arc<Manifest>>,
    /// The files of the manifest that neither the disk nor object storage has.
    pub(super) nowhere: HashSet<String>,
    /// The last request, and whether one of those that wait wants full files, or the journal cut.
    pub(super) requested: u64,
    pub(super) full: bool,
    pub(super) cut: bool,
    pub(super) closing: bool,
    /// The end comes at once.
    pub(super) abandoned: bool,
}

/// What has come of requests.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    /// How many rounds have been made that are worth an upload: all but the early ones.
    pub(super) uploads_due: u64,
    /// The last request that local files answer.
    pub(super) made: u64,
    /// The last one that object storage answers.
    pub(super) uploaded: u64,
    /// The last round was made.
    pub(super) closed: bool,
    /// Nothing more is made.
    pub(super) ended: bool,
    pub(super) uploaded_reach: Reach,
    pub(super) objects: u64,
    pub(super) object_bytes: u64,
    pub(super) rounds_failed: Failures,
    pub(super) uploads_failed: Failures,
}

/// How often something has failed, and how the last time.
#[derive(Debug, Clone, Default)]
pub(super) struct Failures {
    pub(super) count: u64,
    pub(super) last: String,
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// What the local files are.
    pub(super) fn manifest(&self) -> Arc<Manifest> {
        Arc::clone(&self.state().manifest)
    }

    /// The maker begins a piece of work.
    pub(super) fn is_busy(&self) {
        *lock(&self.busy_since) = Some(Instant::now());
    }

    /// The maker waits for something else than the disk.
    pub(super) fn is_idle(&self) {
        *lock(&self.busy_since) = None;
    }

    pub(super) fn key_count(&self) -> u64 {
        let membership_state = self.node.membership.state();
        let ranges = membership_state
            .table()
            .map_or(&[][..], OwnedRanges::ranges);
        ranges.iter().map(|range| range.read().len() as u64).sum()
    }

    /// Has a round made, after which the journal is cut. `None` when there are to be no more.
    pub(super) fn request(&self, full: bool) -> Option<u64> {
        self.ask(full, true)
    }

    /// Has a round made for its files alone: to cut the journal takes a file of all answers, and a while in which nothing is committed.
    pub(super) fn request_files(&self) -> Option<u64> {
        self.ask(false, false)
    }

    fn ask(&self, full: bool, cut: bool) -> Option<u64> {
        let mut state = self.state();
        if state.closing || state.abandoned {
            return None;
        }
        state.requested += 1;
        state.full |= full;
        state.cut |= cut;
        self.work.notify_one();
        Some(state.requested)
    }

    /// Has the last round made.
    pub(super) fn close(&self) -> u64 {
        let mut state = self.state();
        state.requested += 1;
        state.closing = true;
        self.work.notify_one();
        state.requested
    }

    /// Counts a failure of one kind.
    pub(super) fn failed(&self, kind: fn(&mut Progress) -> &mut Failures, last: String) {
        self.progress.send_modify(|progress| {
            let failures = kind(progress);
            failures.count += 1;
            failures.last = last;
        });
    }

    /// Nothing more is made.
    pub(super) fn ended(&self, reason: &str) {
        self.failed(|progress| &mut progress.rounds_failed, reason.to_owned());
        self.progress.send_modify(|progress| progress.ended = true);
    }
}
