//! The node and the cluster map: waiting for one, registering in it, following it.
//!
//! **A node without a map,** or one that the map does not list, waits and says so. It takes requests, and refuses those for keys.
//!
//! **Registering:** a node is its disk, and the map says which disk that is. A node whose disk the map names goes on where it
//! was. Where the map names none, the node writes its own into it by compare-and-swap. Where the map names another disk, what
//! that one had acknowledged would be lost: in `journal` mode the node ends, until somebody gives the old disk up with `keydb
//! recover`; in `snapshot` and `memory` mode it takes the other's place and counts a loss. In `memory` mode each start is a disk
//! of its own, the node's incarnation. Before anything else the node asks at its own address in the map whether another process
//! answers there; if so, this one ends. No key is answered before all that.
//!
//! **Following:** maps only ever go forward in (lineage, epoch). When a map shows another disk under this node's id, this node has
//! been replaced and ends; so it does when it is no member any more. While the storage cannot be reached, the last map stays in
//! force; a node that starts then goes by the map that it kept on its disk, which nobody may take over without a human's word.

use std::{sync::Arc, time::Duration};

use keydb_core::{ClusterMap, Durability, Incarnation, Lsn, Manifest, RangeEntry};
use keydb_storage::{
    ManifestReadError, MapStore, MapStoreError, SnapshotStore, StorageErrorKind, Version,
};
use tokio::{
    task::{JoinError, JoinSet, spawn_blocking},
    time::timeout,
};
use tracing::{info, warn};

use crate::{
    NodeError,
    cluster::clock_check::check_unconfirmed,
    cluster::contact::Contact,
    cluster::membership_state::MembershipState,
    cluster::probe::refuse_to_be_second,
    cluster::registration::{self, Written},
    cluster::scaling::Finisher,
    disk::data_dir::{self, DataDir},
    disk::failpoint,
    disk::journal::{Identity, Journal, JournalConfig, JournalSizes, Recent},
    disk::recovery::{Recovered, Recovery},
    disk::snapshot,
    moving::mark_lost,
    node::Node,
    ranges::owned::CurrentMap,
};

/// How long one look at the map may take.
const LOAD_TIMEOUT: Duration = Duration::from_secs(10);

/// The least time between two looks at the map.
const POLL_GAP_MIN: Duration = Duration::from_millis(50);

/// A node that has left goes on for so long to say who answers now.
const LEFT_PAUSE: Duration = Duration::from_secs(3);

/// Keeps the node's membership in line with the cluster map.
#[derive(Debug)]
pub(crate) struct Membership {
    node: Arc<Node>,
    store: MapStore,
    /// What was last said to be waited for: it is not said again every second.
    waiting: Option<Waiting>,
    /// The version of the object that the map in force was read from.
    known: Option<Version>,
    contact: Contact,
    finisher: Finisher,
    older_map_seen: bool,
    /// The disk that this one is about to take the place of.
    predecessor: Option<Incarnation>,
    /// What the map has, or is to have, as this node's disk.
    disk_id: Option<Incarnation>,
    data_dir: Option<Arc<DataDir>>,
    recovery: JoinSet<Result<Recovered, NodeError>>,
    /// Keys were lost at this start, which the map does not count yet.
    uncounted_loss: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Waiting {
    ForMap,
    ToBeListed,
}

impl Membership {
    pub(crate) fn new(node: Arc<Node>, store: MapStore) -> Self {
        Self {
            contact: Contact::new(Arc::clone(&node)),
            finisher: Finisher::default(),
            node,
            store,
            waiting: None,
            known: None,
            older_map_seen: false,
            predecessor: None,
            disk_id: None,
            data_dir: None,
            recovery: JoinSet::new(),
            uncounted_loss: false,
        }
    }

    /// Follows the map until something ends the node.
    pub(crate) async fn follow(mut self) -> NodeError {
        loop {
            if let Err(error) = self.look().await {
                return error;
            }
            tokio::time::sleep(POLL_GAP_MIN.min(self.node.config.map_poll_interval)).await;
            tokio::select! {
                () = tokio::time::sleep(self.node.config.map_poll_interval.saturating_sub(POLL_GAP_MIN)) => {}
                () = self.node.heard_of_newer_map() => {}
                Some(ended) = self.recovery.join_next() => {
                    if let Err(error) = self.recovered(ended) {
                        return error;
                    }
                }
            }
        }
    }

    /// The node's data directory has been read.
    fn recovered(
        &mut self,
        ended: Result<Result<Recovered, NodeError>, JoinError>,
    ) -> Result<(), NodeError> {
        let recovered = ended.map_err(|error| NodeError::Task {
            task: "recovery",
            reason: error.to_string(),
        })??;
        if let Some(complete_to) = recovered.lost_after {
            let node = self.node.config.id;
            let after = complete_to.map(|time| format!(" after {time}"));
            let text = format!(
                "the node did not stop cleanly: what it acknowledged{} is lost (durability snapshot)",
                after.unwrap_or_else(|| " before its first snapshot".to_owned())
            );
            warn!(%node, "{text}");
            self.node.warnings.set("loss", Some(text));
            self.uncounted_loss = true;
        }
        Ok(())
    }

    /// Counts a loss in the map, whose stored version is `stored`, as soon as that can be written.
    async fn count_loss(&mut self, stored: (u64, u64)) {
        if !self.uncounted_loss {
            return;
        }
        let membership_state = self.node.membership.state();
        let in_force = membership_state.map();
        // A successor of a map that is not in force would be another map under the version of one that was.
        let Some(map) = in_force.filter(|map| map.version() == stored) else {
            return;
        };
        let id = self.node.config.id;
        let now = self.node.clock.now();
        let counted = map.node(id).map_or(0, |entry| entry.loss_count) + 1;
        match registration::count_loss(&self.store, id, counted, now).await {
            Written::Done(_) | Written::Outdated => self.uncounted_loss = false,
            Written::Failed(error) => self.contact.fails(&error),
        }
    }

    /// Looks at the stored map and goes by it.
    async fn look(&mut self) -> Result<(), NodeError> {
        let mut known = self.known.take();
        let load = self.store.load_if_changed(&mut known);
        match timeout(LOAD_TIMEOUT, load).await {
            Ok(Ok(None)) => {
                self.known = known;
                let in_force = self.node.membership.state();
                let Some(map) = in_force.map() else {
                    return Ok(());
                };
                let storage = &**self.store.storage();
                self.contact
                    .found_map(storage, map.clock_error_max_ms)
                    .await?;
                self.follow_up(map.version()).await;
                Ok(())
            }
            Ok(Ok(Some(Some(map)))) => {
                let storage = &**self.store.storage();
                self.contact
                    .found_map(storage, map.clock_error_max_ms)
                    .await?;
                let stored = map.version();
                self.take(map).await?;
                self.follow_up(stored).await;
                // Until the node serves by it, it has to be looked at each time.
                let in_force = self.node.membership.state();
                self.known = known.filter(|_| {
                    in_force.table().is_some()
                        && in_force.map().is_some_and(|map| map.version() == stored)
                });
                Ok(())
            }
            Ok(Ok(Some(None))) => {
                self.take_saved_map().await?;
                if self.node.membership.state().map().is_some() {
                    self.contact.fails(
                        "object storage has no cluster map any more; `keydb recover --map` puts it back",
                    );
                } else {
                    self.contact.works();
                    self.wait(Waiting::ForMap);
                }
                Ok(())
            }
            Ok(Err(error)) => self.load_failed(error).await,
            Err(_) => {
                self.take_saved_map().await?;
                self.contact.fails(&format!(
                    "reading the cluster map took longer than {} s",
                    LOAD_TIMEOUT.as_secs()
                ));
                Ok(())
            }
        }
    }

    /// What is to be done after a look at the map, whose stored version is `stored`.
    async fn follow_up(&mut self, stored: (u64, u64)) {
        self.uncounted_loss |= self.node.take_loss();
        self.count_loss(stored).await;
        self.finisher.look(&self.node, &self.store, stored).await;
        if let Some(data_dir) = &self.data_dir {
            self.contact.keep_clock(data_dir.root()).await;
        }
    }

    /// The newest map by which this disk was the node's.
    fn saved_map(&self) -> Result<Option<ClusterMap>, NodeError> {
        let root = &self.node.config.data_dir;
        let Some(own) = data_dir::saved_disk_id(root)? else {
            return Ok(None);
        };
        let names_it = |map: &ClusterMap| {
            let entry = map.node(self.node.config.id);
            entry.and_then(|entry| entry.disk_id) == Some(own)
        };
        Ok(data_dir::saved_map(root)?.filter(names_it))
    }

    /// Without the storage's map, a node that has a disk starts by the map that it kept on it.
    async fn take_saved_map(&mut self) -> Result<(), NodeError> {
        if self.node.membership.state().map().is_some() {
            return Ok(());
        }
        let Some(map) = self.saved_map()? else {
            return Ok(());
        };
        warn!(
            node = %self.node.config.id,
            epoch = map.epoch,
            "starting by the cluster map that was kept on the disk"
        );
        Box::pin(self.take(map)).await
    }

    /// A failure that a repeat would not heal ends a node that does not serve yet; one that serves goes on.
    async fn load_failed(&mut self, error: MapStoreError) -> Result<(), NodeError> {
        let error = match error {
            MapStoreError::Map(error) if self.node.membership.state().table().is_none() => {
                return Err(NodeError::UnusableMap(error));
            }
            MapStoreError::Map(error) => error.to_string(),
            MapStoreError::Storage(error) => {
                self.take_saved_map().await?;
                let is_refused = error.kind() == StorageErrorKind::Refused;
                if is_refused && self.node.membership.state().table().is_none() {
                    return Err(NodeError::Storage(error.to_string()));
                }
                error.to_string()
            }
        };
        self.contact.fails(&error);
        Ok(())
    }

    /// Goes by `map` if it is newer.
    async fn take(&mut self, map: ClusterMap) -> Result<(), NodeError> {
        let membership_state = self.node.membership.state();
        if let Some(current) = membership_state.map() {
            if map.cluster_id != current.cluster_id {
                return Err(NodeError::OtherCluster {
                    expected: current.cluster_id,
                    found: map.cluster_id,
                });
            }
            if map.version() < current.version() {
                if !std::mem::replace(&mut self.older_map_seen, true) {
                    warn!(
                        lineage = map.lineage,
                        epoch = map.epoch,
                        "the storage holds an older cluster map than the one in force (lineage {}, epoch {}), which stays in force",
                        current.lineage,
                        current.epoch
                    );
                }
                return Ok(());
            }
            if std::mem::replace(&mut self.older_map_seen, false) {
                self.node.warnings.set("map", None);
            }
        } else if let Some(saved) = self.saved_map()?
            && saved.cluster_id == map.cluster_id
            && saved.version() > map.version()
        {
            let text = format!(
                "the storage holds an older cluster map (lineage {}, epoch {}) than the one that this node went by before (lineage {}, epoch {}), which stays in force; `keydb recover --map` puts it back",
                map.lineage, map.epoch, saved.lineage, saved.epoch
            );
            self.older_map_seen = true;
            self.node.warnings.set("map", Some(text));
            return self.take_saved_map().await;
        }
        let newer = membership_state
            .map()
            .is_none_or(|current| map.version() > current.version());
        match &*membership_state {
            MembershipState::Serving(_) if !newer => Ok(()),
            MembershipState::Serving(_) => self.follow_to(map).await,
            _ => self.join(map, newer).await,
        }
    }

    /// The next map of a node that serves.
    async fn follow_to(&self, map: ClusterMap) -> Result<(), NodeError> {
        let node = self.node.config.id;
        let cluster = map.cluster_id;
        let epoch = map.epoch;
        let removed = NodeError::Removed {
            node,
            cluster,
            epoch,
        };
        let had_keys = |range: &RangeEntry| {
            let from = range.from.as_ref().map(|from| from.node);
            range.owner == node || from == Some(node)
        };
        match map.node(node).map(|entry| entry.disk_id) {
            None => {
                info!(%node, epoch, "the node has left the cluster; for a while it says who answers now");
                self.node.moves.go_by(CurrentMap::new(map));
                tokio::time::sleep(LEFT_PAUSE).await;
                Err(removed)
            }
            // It has left, and was listed again before it has looked: a new member, as which it has to start. One whose disk was given
            // up with `keydb recover` has still its ranges.
            Some(None) if !map.ranges.iter().any(had_keys) => Err(removed),
            Some(disk_id) if disk_id != self.disk_id => Err(NodeError::Replaced {
                node,
                cluster,
                by: disk_id,
                epoch,
            }),
            Some(_) => {
                self.keep_map(&map);
                self.node.moves.go_by(CurrentMap::new(map));
                Ok(())
            }
        }
    }

    /// A map for a node that does not serve yet.
    async fn join(&mut self, map: ClusterMap, newer: bool) -> Result<(), NodeError> {
        let Some(entry) = map.node(self.node.config.id).cloned() else {
            if newer {
                self.node
                    .membership
                    .set(MembershipState::NotListed(CurrentMap::new(map)));
            }
            self.wait(Waiting::ToBeListed);
            return Ok(());
        };
        self.waiting = None;
        if newer {
            self.node
                .membership
                .set(MembershipState::NotRegistered(CurrentMap::new(map.clone())));
        }
        if map.durability.has_disk() && !self.node.clock.is_trusted() {
            let root = &self.node.config.data_dir;
            check_unconfirmed(&*self.node.clock, root, map.clock_error_max_ms)?;
        }
        let disk_id = self.open_disk(&map).await?;
        let outgoing = &self.node.config.outgoing;
        if entry.disk_id == Some(disk_id) {
            if map.durability.has_disk() && self.predecessor.is_none() {
                // A copy of the disk may run elsewhere.
                refuse_to_be_second(self.node.incarnation, &map, &entry, outgoing).await?;
            }
            // Either the disk was here before, or an earlier attempt, whose outcome was not known, has succeeded.
            return self.registered(map);
        }
        if let Some(found) = entry.disk_id {
            refuse_to_be_second(self.node.incarnation, &map, &entry, outgoing).await?;
            if map.durability == Durability::Journal {
                return Err(NodeError::OtherDisk {
                    node: entry.id,
                    cluster: map.cluster_id,
                    disk_id,
                    found,
                    path: self.node.config.data_dir.clone(),
                });
            }
        }
        if let Some(data_dir) = self.data_dir.clone()
            && !self.is_newest(&map, &data_dir).await?
        {
            return Ok(());
        }
        self.predecessor = entry.disk_id;
        if let Some(data_dir) = &self.data_dir {
            mark_lost(data_dir.root(), &map, self.node.config.id)?;
        }
        let (id, now) = (self.node.config.id, self.node.clock.now());
        let register = registration::register(&self.store, &map, id, entry.disk_id, disk_id, now);
        failpoint::step("scale.register", &self.node.config.data_dir);
        match register.await? {
            Written::Done(map) => {
                failpoint::step("scale.registered", &self.node.config.data_dir);
                self.contact.works();
                self.registered(*map)?;
            }
            Written::Outdated => {}
            Written::Failed(error) => self.contact.fails(&error),
        }
        Ok(())
    }

    /// What the map is to have as this node's disk. Opens the data directory at the first time.
    async fn open_disk(&mut self, map: &ClusterMap) -> Result<Incarnation, NodeError> {
        if let Some(disk_id) = self.disk_id {
            return Ok(disk_id);
        }
        let disk_id = if map.durability.has_disk() {
            let (root, cluster, node) = (
                self.node.config.data_dir.clone(),
                map.cluster_id,
                self.node.config.id,
            );
            let opened = spawn_blocking(move || DataDir::open(&root, cluster, node)).await;
            let data_dir = opened.map_err(|error| NodeError::Task {
                task: "recovery",
                reason: error.to_string(),
            })??;
            info!(node = %self.node.config.id, disk = %data_dir.disk_id(), path = %data_dir.root().display(), "opened the data directory");
            self.data_dir.insert(Arc::new(data_dir)).disk_id()
        } else {
            self.node.incarnation
        };
        self.disk_id = Some(disk_id);
        Ok(disk_id)
    }

    /// Whether a disk that is about to take the place of another one has no older keys than object storage; false when that does
    /// not answer, and is to be asked again.
    ///
    /// # Errors
    /// When it has.
    async fn is_newest(&mut self, map: &ClusterMap, data_dir: &DataDir) -> Result<bool, NodeError> {
        let id = self.node.config.id;
        let Some(own) = snapshot::local_manifest(data_dir)? else {
            return Ok(true);
        };
        let snapshots = SnapshotStore::new(Arc::clone(self.store.storage()));
        let look = snapshots.manifest_or_proof_of_none(map.cluster_id, id);
        let remote = match timeout(LOAD_TIMEOUT, look).await {
            Ok(Ok(remote)) => remote.map(|(manifest, _)| manifest),
            Ok(Err(ManifestReadError::Storage(error))) => {
                self.contact.fails(&error.to_string());
                return Ok(false);
            }
            Ok(Err(error)) => return Err(NodeError::Storage(error.to_string())),
            Err(_) => {
                self.contact.fails(&format!(
                    "reading the node's manifest took longer than {} s",
                    LOAD_TIMEOUT.as_secs()
                ));
                return Ok(false);
            }
        };
        let disk_id = data_dir.disk_id();
        // It may have taken over that very one, and have made none since.
        let is_later = |it: &Manifest| it.disk_id != disk_id && it.write_nonce != own.write_nonce;
        match remote.filter(is_later) {
            None => Ok(true),
            Some(later) => Err(NodeError::EarlierDisk {
                node: id,
                disk_id,
                later: later.disk_id,
                complete_to: later.complete_to_ms,
                path: data_dir.root().to_owned(),
            }),
        }
    }

    fn registered(&mut self, map: ClusterMap) -> Result<(), NodeError> {
        let node = self.node.config.id;
        info!(
            %node,
            cluster = %map.cluster_id,
            incarnation = %self.node.incarnation,
            epoch = map.epoch,
            durability = %map.durability,
            "registered in the cluster map"
        );
        if let Some(predecessor) = self.predecessor {
            warn!(
                %node,
                %predecessor,
                loss_count = map.node(node).map_or(0, |entry| entry.loss_count),
                "keys that this node acknowledged before this start are lost: durability is {}",
                map.durability
            );
        }
        self.keep_map(&map);
        let manifest = match &self.data_dir {
            Some(data_dir) => snapshot::local_manifest(data_dir)?,
            None => None,
        };
        let root = self.data_dir.as_ref().map(|it| it.root().to_owned());
        if root.is_none() {
            let identity = Identity {
                cluster_id: map.cluster_id,
                node,
                disk_id: self.node.incarnation,
            };
            let config = JournalConfig::in_memory(identity, Arc::clone(&self.node.clock) as _);
            let recorder = Journal::open(config, Recent::new(Lsn::ZERO, 0))?;
            self.node.set_recorder(recorder);
        }
        self.node
            .moves
            .start(CurrentMap::new(map), root, manifest.as_ref())?;
        self.recover();
        Ok(())
    }

    /// Keeps the map on the disk, for a start without object storage.
    fn keep_map(&self, map: &ClusterMap) {
        let node = self.node.config.id;
        if let Some(data_dir) = &self.data_dir {
            // Without it a start needs the storage, which is no reason to stop. What the node has decided by this map is kept apart.
            if let Err(error) = data_dir.save_map(map) {
                warn!(%node, "the cluster map cannot be kept on the disk: {error}");
            }
        }
        info!(%node, epoch = map.epoch, "serving");
    }

    /// Starts to read the node's keys from its disk, or from object storage.
    fn recover(&mut self) {
        let Some(data_dir) = &self.data_dir else {
            return;
        };
        let recovery = Recovery {
            node: Arc::clone(&self.node),
            store: SnapshotStore::new(Arc::clone(self.store.storage())),
            data_dir: Arc::clone(data_dir),
            sizes: JournalSizes::default(),
        };
        self.recovery.spawn(recovery.run());
    }

    fn wait(&mut self, waiting: Waiting) {
        if self.waiting.as_ref() == Some(&waiting) {
            return;
        }
        let node = self.node.config.id;
        match waiting {
            Waiting::ForMap => info!(
                %node,
                "waiting for the cluster map: there is none in the storage; `keydb init` creates the cluster"
            ),
            Waiting::ToBeListed => info!(
                %node,
                "waiting to become a member: the cluster map does not list node {node}"
            ),
        }
        self.waiting = Some(waiting);
    }
}
