//! What the rooms of a node share.

use std::sync::{
    Arc, Mutex, OnceLock, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use keydb_core::{Arena, Clock, ClusterMap, Incarnation, UnixMillis};
use keydb_proto::{
    refusal_status,
    shard::{ErrorCode, ReplyHeader},
};
use keydb_storage::StorageCalls;
use tokio::sync::Notify;
use tonic::Status;

use crate::{
    NodeConfig,
    backup::Backups,
    cluster::membership_state::{CurrentMembership, MembershipState},
    cluster::trusted_clock::TrustedClock,
    disk::Disk,
    disk::journal::Journal,
    disk::snapshot::NodeParts,
    ending::Ending,
    moving::Moves,
    ranges::grace::Grace,
    requests::answers::AnswerMemory,
    requests::reclaiming::Reclaiming,
    server::admission::InFlight,
    server::request_counters::RequestCounters,
    warnings::Warnings,
};

/// One node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: NodeConfig,
    pub(crate) clock: Arc<TrustedClock>,
    /// Drawn at this start; in `memory` mode also what the map names as the node's disk.
    pub(crate) incarnation: Incarnation,
    pub(crate) started: UnixMillis,
    pub(crate) arena: Arc<Arena>,
    pub(crate) answers: Arc<AnswerMemory>,
    pub(crate) in_flight: InFlight,
    pub(crate) request_counters: Arc<RequestCounters>,
    pub(crate) storage_calls: Arc<StorageCalls>,
    pub(crate) reclaiming: Reclaiming,
    pub(crate) warnings: Arc<Warnings>,
    pub(crate) membership: Arc<CurrentMembership>,
    pub(crate) ending: Arc<Ending>,
    /// The requests that are at work on keys.
    pub(crate) grace: Grace,
    /// The ranges that come to this node, are here, or leave it.
    pub(crate) moves: Moves,
    pub(crate) backups: Backups,
    disk: OnceLock<Disk>,
    recorder: OnceLock<Journal>,
    disk_opened: Notify,
    disk_hangs: AtomicBool,
    /// Keys were given up, which the cluster map does not count yet.
    has_lost: AtomicBool,
    hinted: Mutex<(u64, u64)>,
    newer_map: Notify,
}

impl Node {
    pub(crate) fn new(config: NodeConfig, clock: Arc<dyn Clock>) -> Self {
        let limits = &config.limits;
        let answers = AnswerMemory::new(limits.answer_memory_bytes, limits.answer_memory_age);
        let (arena, membership) = (Arena::new(), Arc::default());
        Self {
            moves: Moves::new(
                config.id,
                config.moves,
                Arc::clone(&arena),
                Arc::clone(&membership),
            ),
            backups: Backups::default(),
            incarnation: Incarnation::random(),
            started: clock.now(),
            arena,
            answers: Arc::new(answers),
            in_flight: InFlight::new(limits.requests_in_flight_max),
            request_counters: Arc::default(),
            storage_calls: Arc::default(),
            reclaiming: Reclaiming::default(),
            warnings: Arc::new(Warnings::new(config.id)),
            membership,
            ending: Arc::default(),
            grace: Grace::default(),
            disk: OnceLock::new(),
            recorder: OnceLock::new(),
            disk_opened: Notify::new(),
            disk_hangs: AtomicBool::new(false),
            has_lost: AtomicBool::new(false),
            hinted: Mutex::default(),
            newer_map: Notify::new(),
            clock: Arc::new(TrustedClock::new(clock)),
            config,
        }
    }

    /// What snapshots need of it.
    pub(crate) fn parts(&self) -> NodeParts {
        NodeParts {
            id: self.config.id,
            incarnation: self.incarnation,
            snapshot_interval: self.config.snapshot_interval,
            clock: Arc::clone(&self.clock),
            membership: Arc::clone(&self.membership),
            answers: Arc::clone(&self.answers),
            warnings: Arc::clone(&self.warnings),
            ending: Arc::clone(&self.ending),
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

    /// In `memory` mode, what records writes while ranges move to other nodes.
    #[inline]
    pub(crate) fn recorder(&self) -> Option<&Journal> {
        self.recorder.get()
    }

    /// The node keeps nothing on a disk.
    pub(crate) fn set_recorder(&self, recorder: Journal) {
        let first = self.recorder.set(recorder);
        assert!(first.is_ok(), "a node finds out once that it has no disk");
    }

    /// What is committed in order: the journal, or, in `memory` mode, what records while it is tapped.
    pub(crate) fn committed_records(&self) -> Option<&Journal> {
        self.journal().or(self.recorder())
    }

    /// Whether the disk has not answered for a while.
    pub(crate) fn disk_hangs(&self) -> bool {
        self.disk_hangs.load(Ordering::Relaxed)
    }

    pub(crate) fn set_disk_hangs(&self, hangs: bool) {
        self.disk_hangs.store(hangs, Ordering::Relaxed);
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

    /// There is a map of this version: when it is newer than any that was heard of, it is fetched at once.
    pub(crate) fn hear_of_version(&self, version: (u64, u64)) {
        if let Some(in_force) = self.membership.state().map() {
            self.hear_of_map(in_force, version);
        }
    }

    /// Waits until somebody has been heard of who goes by a newer map.
    pub(crate) async fn heard_of_newer_map(&self) {
        self.newer_map.notified().await;
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
