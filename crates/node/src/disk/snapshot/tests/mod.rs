//! Snapshots of a node that has all of its parts but the server.

mod answers;
mod crashes;
mod garbage;
mod moving;
mod rounds;
mod uploads;

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use keydb_core::{
    Arena, ClusterMap, CopyId, Durability, Entry, Event, Expiry, Fingerprint, Lsn, Manifest,
    ManualClock, NewCluster, NodeId, Origin, PackedFingerprints, RangeId, RecordGroup, Times,
    UnixMillis, Write,
};
use keydb_storage::{
    MAP_KEY, ObjectStorage, SnapshotStore, manifest_key, object_key,
    testing::{DOWN, FaultyStorage, StorageFault::Hangs},
};
use tempfile::TempDir;
use tokio::{sync::watch, time::Instant};

use super::{
    room::ENTRY_BYTES_MAX,
    rounds::DELTAS_MAX,
    snapshotter::{Made, STOPPING},
    *,
};
use crate::{
    Limits, NodeConfig, NodeError,
    cluster::membership_state::MembershipState,
    disk::data_dir::DataDir,
    disk::journal::{self, Journal, JournalSizes},
    disk::load::read_file,
    disk::recovery::Recovery,
    node::Node,
    ranges::owned::{CurrentMap, OwnedRange, OwnedRanges},
};

const START: UnixMillis = UnixMillis(1_700_000_000_000);
const NODE: NodeId = NodeId(0);

/// Keys with their expiry.
type Keys = BTreeMap<Fingerprint, u32>;

/// What stays when a node ends.
struct Rig {
    dir: TempDir,
    clock: Arc<ManualClock>,
    map: ClusterMap,
    storage: Arc<FaultyStorage>,
    interval: Duration,
    recent_bytes_max: usize,
    /// So many ranges are ready at the start; the others go on loading.
    ready_ranges: usize,
    answer_memory_bytes: usize,
    /// The ranges that are not as the cluster was created: those that came by a copy, and those that are not here (`None`).
    moved: HashMap<RangeId, Option<CopyId>>,
    /// Ranges that could not take all that the journal had of them at the start.
    unmerged: Vec<RangeId>,
}

/// A node.
struct Run {
    node: Arc<Node>,
    journal: Arc<Journal>,
    data_dir: Arc<DataDir>,
    snapshots: Arc<Snapshotter>,
}

impl Rig {
    async fn new() -> Self {
        Self::with(Durability::Journal, 4).await
    }

    async fn with(durability: Durability, range_count: u32) -> Self {
        let clock = Arc::new(ManualClock::new(START));
        let map = ClusterMap::create(&NewCluster {
            addresses: vec!["a:1".to_owned()],
            range_count,
            durability,
        })
        .unwrap();
        let storage = Arc::new(FaultyStorage::new(clock.clone()));
        Self {
            dir: tempfile::tempdir().unwrap(),
            clock,
            map,
            storage,
            interval: Duration::from_secs(3600),
            recent_bytes_max: 16 << 20,
            ready_ranges: usize::MAX,
            answer_memory_bytes: 16 << 20,
            moved: HashMap::new(),
            unmerged: Vec::new(),
        }
    }

    /// The ranges that a node has at its start.
    fn table(&self, arena: &Arc<Arena>) -> OwnedRanges {
        let current_map = CurrentMap::new(self.map.clone());
        let created = OwnedRanges::new(Arc::clone(&current_map), NODE, arena, None);
        let ranges = created.ranges().iter();
        let ranges = ranges.filter_map(|range| match self.moved.get(&range.id) {
            None => Some(Arc::clone(range)),
            Some(copy) => Some(brought(range, (*copy)?, arena)),
        });
        OwnedRanges::with(NODE, current_map, ranges.collect(), HashMap::new())
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Makes this disk the node's in the map.
    async fn register(&self, disk_id: keydb_core::Incarnation) {
        let mut map = self.map.clone();
        map.nodes[0].disk_id = Some(disk_id);
        self.storage.inner_put(MAP_KEY, map.to_json()).await;
    }

    /// Makes a disk on which the node has found out before that object storage has nothing of it.
    fn make_disk(&self) {
        let data_dir = DataDir::open(&self.root(), self.map.cluster_id, NODE).unwrap();
        let manifest = Manifest::new(self.map.cluster_id, 1, NODE, data_dir.disk_id());
        save(&data_dir, &manifest).unwrap();
    }

    /// Starts a node with what is on its disk.
    async fn start(&self) -> Run {
        self.try_start().await.unwrap()
    }

    async fn try_start(&self) -> Result<Run, NodeError> {
        let config = NodeConfig {
            data_dir: self.root(),
            snapshot_interval: self.interval,
            limits: Limits {
                answer_memory_bytes: self.answer_memory_bytes,
                ..Limits::default()
            },
            ..NodeConfig::new(NODE)
        };
        let data_dir = Arc::new(DataDir::open(&self.root(), self.map.cluster_id, NODE)?);
        let disk_id = data_dir.disk_id();
        self.register(disk_id).await;
        let node = Arc::new(Node::new(config, self.clock.clone()));
        node.clock.trust(true);
        let table = self.table(&node.arena);
        node.membership.set(MembershipState::Serving(table));
        let membership_state = node.membership.state();
        let table = membership_state.table().unwrap();
        let recovery = Arc::new(Recovery {
            node: Arc::clone(&node),
            store: SnapshotStore::new(self.storage.clone()),
            data_dir: Arc::clone(&data_dir),
            sizes: JournalSizes {
                segment_bytes: 1 << 20,
                recent_bytes_max: self.recent_bytes_max,
            },
        });
        let mut opened = recovery.open(&membership_state, table).await?;
        opened.replayed.unmerged.extend(&self.unmerged);
        let (nonce, lsn) = (opened.manifest.write_nonce, opened.manifest.lsn);
        recovery.start_snapshots(&opened).await?;
        if self.ready_ranges == usize::MAX {
            recovery.load(&membership_state, opened.manifest).await?;
        }
        for range in table.ranges().iter().take(self.ready_ranges) {
            range.end_loading();
        }
        let mut unready = table.ranges().iter().skip(self.ready_ranges);
        assert!(unready.all(|range| range.readiness().is_none()));
        let run = Run {
            snapshots: node.disk().unwrap().snapshots().unwrap(),
            node,
            journal: opened.journal,
            data_dir,
        };
        // It uploads by itself what is on the disk, the very first manifest too. A test begins when that is done, or has failed.
        eventually(async || {
            let object = self.storage.inner.get(&manifest_key(NODE)).await.unwrap();
            let there = object.and_then(|object| Manifest::from_json(&object.bytes).ok());
            let is_uploaded = there.is_some_and(|it| {
                it.write_nonce == nonce || (it.disk_id == disk_id && it.lsn >= lsn)
            });
            let progress = run.snapshots.shared.progress.borrow();
            is_uploaded || progress.uploads_failed.count > 0
        })
        .await;
        Ok(run)
    }

    fn origin(&self) -> Origin {
        Origin::from(&self.map)
    }

    fn key(&self, number: u32) -> Fingerprint {
        Fingerprint::of(format!("key-{number}").as_bytes(), self.map.hash.seed).unwrap()
    }

    /// Keys of these numbers, with this expiry.
    fn keys(&self, numbers: Range<u32>, expiry_seconds: u32) -> Keys {
        let numbers = numbers.map(|number| (self.key(number), expiry_seconds));
        numbers.collect()
    }

    /// The manifest in object storage.
    async fn remote(&self) -> Option<Manifest> {
        let object = self.storage.inner.get(&manifest_key(NODE)).await.unwrap();
        object.map(|object| Manifest::from_json(&object.bytes).unwrap())
    }

    /// The keys in object storage.
    async fn remote_keys(&self) -> Keys {
        let manifest = self.remote().await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut keys = Keys::new();
        for file in &manifest.files {
            let key = object_key(NODE, &file.name);
            let path = dir.path().join(&file.name);
            std::fs::write(&path, self.storage.inner_get(&key).await).unwrap();
            read_file(&path, file, self.origin(), |event| {
                if let Event::Entries(entries) = event {
                    merge(&mut keys, entries);
                }
                Ok(())
            })
            .unwrap();
        }
        keys
    }

    /// The names of the files on the disk.
    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.root().join("snapshots")).into_iter();
        let names = entries.flatten().map(|entry| entry.unwrap().file_name());
        names.map(|name| name.into_string().unwrap()).collect()
    }

    fn file_bytes(&self) -> u64 {
        let size = |name: &String| std::fs::metadata(self.root().join("snapshots").join(name));
        // One may go in between.

        self.files()
            .iter()
            .filter_map(|name| size(name).ok())
            .map(|it| it.len())
            .sum()
    }
}

/// A range like this one, whose keys come by a copy.
fn brought(range: &OwnedRange, copy: CopyId, arena: &Arc<Arena>) -> Arc<OwnedRange> {
    let (id, generation, bounds) = (range.id, range.generation, range.bounds);
    Arc::new(OwnedRange::new(
        id,
        generation,
        Some(copy),
        bounds,
        arena,
        true,
    ))
}

fn merge(keys: &mut Keys, entries: &[Entry]) {
    for entry in entries {
        let expiry = keys.entry(entry.fingerprint()).or_default();
        *expiry = entry.expiry().as_unix_seconds().max(*expiry);
    }
}

const EXPIRY: u32 = 1_700_100_000;

impl Run {
    fn table<T>(&self, each: impl FnOnce(&OwnedRanges) -> T) -> T {
        each(self.node.membership.state().table().unwrap())
    }

    /// Applies keys as a put does, and waits until they are committed.
    async fn put(&self, keys: &Keys) {
        self.try_put(keys).await.unwrap();
    }

    async fn try_put(&self, keys: &Keys) -> Result<(), String> {
        let mut by_expiry: BTreeMap<u32, Vec<Fingerprint>> = BTreeMap::new();
        for (key, expiry) in keys {
            by_expiry.entry(*expiry).or_default().push(*key);
        }
        let mut last = Lsn::ZERO;
        for (expiry, keys) in by_expiry {
            for keys in keys.chunks(1000) {
                let space = self.journal.admit(keys.len() * 12 + 4096).await;
                let reservation = space.map_err(|error| error.to_string())?.begin();
                last = reservation.lsn();
                let expiry = Expiry::from_unix_seconds(expiry).unwrap();
                self.store(reservation, keys, expiry);
            }
        }
        let committed = self.journal.wait_committed(last).await;
        committed.map_err(|error| error.to_string())
    }

    /// Stores sorted keys and appends their record.
    fn store(&self, reservation: journal::Reservation, keys: &[Fingerprint], expiry: Expiry) {
        let packed: Vec<u8> = keys.iter().flat_map(|key| key.to_bytes()).collect();
        let groups = self.apply(keys, expiry);
        let write = Write {
            expiry,
            operation: None,
            answers: &[],
            groups: groups.into(),
            fingerprints: PackedFingerprints::new(&packed).unwrap(),
        };
        reservation.append(&write, self.node.clock.now());
    }

    fn apply(&self, keys: &[Fingerprint], expiry: Expiry) -> Vec<RecordGroup> {
        let times = Times::at(self.node.clock.now());
        self.table(|table| {
            let mut groups = Vec::new();
            for range in table.ranges() {
                let own: Vec<u8> = keys
                    .iter()
                    .filter(|key| range.bounds.contains(key.top()))
                    .flat_map(|key| key.to_bytes())
                    .collect();
                let own = PackedFingerprints::new(&own).unwrap();
                range.write().put(own, expiry, times).unwrap();
                groups.push(RecordGroup {
                    range: range.id,
                    generation: range.generation,
                    count: own.len() as u32,
                });
            }
            groups
        })
    }

    /// The keys in memory.
    fn keys(&self) -> Keys {
        let mut keys = Keys::new();
        self.table(|table| {
            for range in table.ranges() {
                let entries: Vec<Entry> = range.read().iter().collect();
                merge(&mut keys, &entries);
            }
        });
        keys
    }

    async fn snapshot(&self) -> Made {
        self.snapshots.request(false, far()).await.unwrap()
    }

    async fn full_snapshot(&self) -> Made {
        self.snapshots.request(true, far()).await.unwrap()
    }

    fn local(&self) -> Arc<Manifest> {
        self.snapshots.shared.manifest()
    }

    /// Stops as a node does that is asked to.
    async fn stop(self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        self.snapshots.close(deadline).await.unwrap();
        self.journal.close().unwrap();
    }

    /// Stops as a node does that fails.
    async fn kill(self) {
        self.snapshots.abandon();
        // It may have failed.
        let _ = self.journal.close();
        // Tasks that were told to end hold the directory until they do.
        let data_dir = Arc::clone(&self.data_dir);
        drop(self);
        eventually(async || Arc::strong_count(&data_dir) == 1).await;
    }
}

/// A deadline that no test gets to.
fn far() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Waits until something holds that nothing tells of.
async fn eventually(holds: impl AsyncFn() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(30), waiting).await;
    in_time.expect("it should hold by now");
}

fn kinds(manifest: &Manifest) -> (usize, usize) {
    use keydb_core::SnapshotKind::{Delta, Full};
    let count = |kind| {
        manifest
            .files
            .iter()
            .filter(|file| file.kind == kind)
            .count()
    };
    (count(Delta), count(Full))
}
