//! What the parts of a node share.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use keydb_core::{Arena, Clock, ClusterMap, Incarnation, Times, UnixMillis, UnixSeconds};
use keydb_proto::{
    refusal_status,
    shard::{ErrorCode, ReplyHeader},
};
use tokio::sync::Notify;
use tonic::Status;
use tracing::{info, warn};

use crate::{
    NodeConfig, NodeError,
    cluster::clock_check::ClockTrust,
    disk::Disk,
    disk::journal::Journal,
    ranges::owned::{CurrentMap, OwnedRanges},
    requests::answers::AnswerMemory,
    requests::memory_limit::Reclaiming,
    server::admission::InFlight,
    server::request_counters::RequestCounters,
};

/// One node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: NodeConfig,
    pub(crate) clock: Arc<dyn Clock>,
    /// Drawn at this start; in `memory` mode also what the map names as the node's disk.
    pub(crate) incarnation: Incarnation,
    pub(crate) started: UnixMillis,
    pub(crate) arena: Arc<Arena>,
    pub(crate) answers: AnswerMemory,
    pub(crate) in_flight: InFlight,
    pub(crate) request_counters: Arc<RequestCounters>,
    pub(crate) reclaiming: Reclaiming,
    disk: OnceLock<Disk>,
    disk_opened: Notify,
    clock_trust: ClockTrust,
    /// Keys were given up, which the cluster map does not count yet.
    has_lost: AtomicBool,
    /// What somebody should know, by its subject.
    warnings: Mutex<BTreeMap<&'static str, String>>,
    membership_state: RwLock<Arc<MembershipState>>,
    hinted: Mutex<(u64, u64)>,
    newer_map: Notify,
    disk_hangs: AtomicBool,
    /// Why the node is to end.
    ending: Mutex<Option<NodeError>>,
    ended: Notify,
}

/// How the node stands with its cluster.
#[derive(Debug)]
pub(crate) enum MembershipState {
    /// There is no map yet.
    NoMap,
    /// The map does not list this node.
    NotListed(Arc<CurrentMap>),
    /// The map lists this node, which has not registered itself in it yet.
    NotRegistered(Arc<CurrentMap>),
    /// The node answers for its ranges.
    Serving(OwnedRanges),
}

impl MembershipState {
    /// The map that the node goes by.
    pub(crate) fn current_map(&self) -> Option<&Arc<CurrentMap>> {
        match self {
            Self::NoMap => None,
            Self::NotListed(current_map) | Self::NotRegistered(current_map) => Some(current_map),
            Self::Serving(table) => Some(&table.current_map),
        }
    }

    pub(crate) fn map(&self) -> Option<&ClusterMap> {
        self.current_map().map(|current_map| &current_map.map)
    }

    /// The ranges that the node answers for.
    pub(crate) fn table(&self) -> Option<&OwnedRanges> {
        match self {
            Self::Serving(table) => Some(table),
            _ => None,
        }
    }
}

impl Node {
    pub(crate) fn new(config: NodeConfig, clock: Arc<dyn Clock>) -> Self {
        let limits = &config.limits;
        Self {
            incarnation: Incarnation::random(),
            started: clock.now(),
            arena: Arena::new(),
            answers: AnswerMemory::new(limits.answer_memory_bytes, limits.answer_memory_age),
            in_flight: InFlight::new(limits.requests_in_flight_max),
            request_counters: Arc::default(),
            reclaiming: Reclaiming::default(),
            disk: OnceLock::new(),
            disk_opened: Notify::new(),
            clock_trust: ClockTrust::default(),
            warnings: Mutex::default(),
            membership_state: RwLock::new(Arc::new(MembershipState::NoMap)),
            hinted: Mutex::default(),
            newer_map: Notify::new(),
            has_lost: AtomicBool::new(false),
            disk_hangs: AtomicBool::new(false),
            ending: Mutex::default(),
            ended: Notify::new(),
            config,
            clock,
        }
    }

    /// The node's disk, once its journal is open; never in `memory` mode.
    pub(crate) fn disk(&self) -> Option<&Disk> {
        self.disk.get()
    }

    /// The disk is ready to be written to.
    pub(crate) fn set_disk(&self, disk: Disk) {
        let first = self.disk.set(disk);
        assert!(first.is_ok(), "a node opens its disk once");
        self.disk_opened.notify_waiters();
    }

    /// The node's disk; waits until it is open.
    pub(crate) async fn open_disk(&self) -> &Disk {
        loop {
            let opened = self.disk_opened.notified();
            if let Some(disk) = self.disk.get() {
                return disk;
            }
            opened.await;
        }
    }

    /// Where writes go before they are answered; none in `memory` mode.
    #[inline]
    pub(crate) fn journal(&self) -> Option<&Journal> {
        self.disk.get().map(|disk| &*disk.journal)
    }

    /// Whether the clock may decide that keys are over for good.
    pub(crate) fn clock_is_trusted(&self) -> bool {
        self.clock_trust.holds(self.clock.now())
    }

    /// The clock was compared with the storage's: says whether it may.
    pub(crate) fn trust_clock(&self, trusted: bool) {
        self.clock_trust.set(trusted, self.clock.now());
    }

    /// The storage does not tell its time. What is known of the clock stays so, unless it has made a step meanwhile.
    pub(crate) fn cannot_check_clock(&self) {
        self.clock_trust.keep(self.clock.now());
    }

    /// The time now, as key sets go by it.
    pub(crate) fn times(&self) -> Times {
        self.times_at(self.clock.now())
    }

    /// The time `now`, as key sets go by it. A clock that is not trusted lets none of them reclaim anything.
    pub(crate) fn times_at(&self, now: UnixMillis) -> Times {
        if self.clock_trust.holds(now) {
            Times::at(now)
        } else {
            Times {
                now: now.seconds(),
                purge_before: UnixSeconds(0),
            }
        }
    }

    /// Shows `text` in the node's status, or, with `None`, nothing of `subject` any more.
    pub(crate) fn warn_of(&self, subject: &'static str, text: Option<String>) {
        let mut warnings = self.lock_warnings();
        match text {
            Some(text) => {
                let before = warnings.insert(subject, text.clone());
                if before.as_ref() != Some(&text) {
                    warn!(node = %self.config.id, "{text}");
                }
            }
            None => {
                if warnings.remove(subject).is_some() {
                    info!(node = %self.config.id, "no longer: {subject}");
                }
            }
        }
    }

    /// What somebody should know.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.lock_warnings().values().cloned().collect()
    }

    fn lock_warnings(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the node stands now. A request takes this once and goes by it to its end.
    pub(crate) fn membership_state(&self) -> Arc<MembershipState> {
        // Only whole values are ever stored, so a panic elsewhere leaves nothing half-done.
        Arc::clone(
            &self
                .membership_state
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    pub(crate) fn set_membership_state(&self, membership_state: MembershipState) {
        let new = Arc::new(membership_state);
        let old = std::mem::replace(
            &mut *self
                .membership_state
                .write()
                .unwrap_or_else(PoisonError::into_inner),
            new,
        );
        // Outside the lock: this may be the last owner of whole key sets.
        drop(old);
    }

    /// What goes first in every reply.
    pub(crate) fn reply_header(&self, map: Option<&ClusterMap>) -> ReplyHeader {
        let (lineage, epoch) = map.map_or((0, 0), ClusterMap::version);
        ReplyHeader {
            node_id: self.config.id.0,
            incarnation: self.incarnation.to_bytes().to_vec().into(),
            lineage,
            epoch,
            node_time_unix_ms: self.clock.now().0,
        }
    }

    /// Somebody goes by a map of this version: when it is newer than any that was heard of, it is fetched at once.
    pub(crate) fn hear_of_map(&self, map: &ClusterMap, version: (u64, u64)) {
        if version <= map.version() {
            return;
        }
        let mut hinted = self.hinted.lock().unwrap_or_else(PoisonError::into_inner);
        if version > *hinted {
            *hinted = version;
            self.newer_map.notify_one();
        }
    }

    /// Waits until somebody has been heard of who goes by a newer map.
    pub(crate) async fn heard_of_newer_map(&self) {
        self.newer_map.notified().await;
    }

    /// Keys were given up, which the cluster map is to count.
    pub(crate) fn count_loss(&self) {
        self.has_lost.store(true, Ordering::Release);
        self.newer_map.notify_one();
    }

    /// Whether keys were given up since the last call.
    pub(crate) fn take_loss(&self) -> bool {
        self.has_lost.swap(false, Ordering::AcqRel)
    }

    /// Whether the disk has not answered for a while.
    pub(crate) fn disk_hangs(&self) -> bool {
        self.disk_hangs.load(Ordering::Relaxed)
    }

    pub(crate) fn set_disk_hangs(&self, hangs: bool) {
        self.disk_hangs.store(hangs, Ordering::Relaxed);
    }

    /// Has the node end; the first reason counts.
    pub(crate) fn end(&self, reason: NodeError) {
        let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        ending.get_or_insert(reason);
        self.ended.notify_one();
    }

    /// Waits until somebody has the node end.
    pub(crate) async fn ended(&self) -> NodeError {
        loop {
            self.ended.notified().await;
            let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(reason) = ending.take() {
                return reason;
            }
        }
    }

    /// Why requests for keys are refused as things stand.
    pub(crate) fn not_serving(&self, membership_state: &MembershipState) -> Status {
        let node = self.config.id;
        match membership_state {
            MembershipState::NoMap => refusal_status(
                ErrorCode::NoMap,
                format!(
                    "node {node} has no cluster map yet: the cluster has not been created, or its storage cannot be reached"
                ),
            ),
            MembershipState::NotListed(current_map) => refusal_status(
                ErrorCode::WrongNode,
                format!(
                    "node {node} is not a member of cluster {} (cluster map epoch {})",
                    current_map.map.cluster_id, current_map.map.epoch
                ),
            ),
            MembershipState::NotRegistered(_) | MembershipState::Serving(_) => refusal_status(
                ErrorCode::NoMap,
                format!("node {node} is still registering itself in the cluster map"),
            ),
        }
    }
}
