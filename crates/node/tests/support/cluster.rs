//! A cluster of one node with a disk.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use keydb_core::{ClusterMap, Durability, Manifest, ManualClock, NodeId};
use keydb_node::NodeConfig;
use keydb_proto::shard::{CreateSnapshotsRequest, RangeState, RangeStatus};
use keydb_storage::{manifest_key, object_key, testing::FaultyStorage};
use tempfile::TempDir;
use tonic::Status;

use super::{
    Client, RunningNode, START, World, address_of, config, keys, listen, listen_again, status,
};

pub(crate) struct Cluster {
    pub(crate) world: World,
    /// The world's storage, with a clock of its own.
    pub(crate) storage: Arc<FaultyStorage>,
    dir: TempDir,
    address: String,
}

impl Cluster {
    /// One whose node has not been started yet.
    pub(crate) async fn created(durability: Durability) -> Self {
        let clock = Arc::new(ManualClock::new(START));
        let storage = Arc::new(FaultyStorage::new(clock));
        let cluster = Self {
            world: World {
                storage: Arc::clone(&storage),
                ..World::new()
            },
            storage,
            dir: tempfile::tempdir().unwrap(),
            address: address_of(&listen().await),
        };
        let world = &cluster.world;
        world.init_with(&[&cluster.address], durability).await;
        cluster
    }

    pub(crate) async fn new(durability: Durability) -> (Self, RunningNode, Client, ClusterMap) {
        let cluster = Self::created(durability).await;
        let (node, client) = cluster.loaded().await;
        let map = cluster.world.map().await;
        (cluster, node, client, map)
    }

    /// One with these keys, which object storage has as well, in full files if `full`.
    pub(crate) async fn with_snapshot(
        durability: Durability,
        numbers: Range<u32>,
        full: bool,
    ) -> (Self, RunningNode, Client, ClusterMap) {
        let (cluster, node, mut client, map) = Self::new(durability).await;
        cluster.put(&mut client, &map, numbers).await;
        cluster.snapshot(&mut client, full).await;
        (cluster, node, client, map)
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn config(&self) -> NodeConfig {
        NodeConfig {
            data_dir: self.data_dir(),
            ..config(0)
        }
    }

    pub(crate) async fn start(&self) -> RunningNode {
        self.start_with(self.config()).await
    }

    pub(crate) async fn start_with(&self, config: NodeConfig) -> RunningNode {
        let listener = listen_again(&self.address, &config.data_dir).await;
        self.world.start(config, listener)
    }

    /// Starts the node and waits until everything is loaded.
    pub(crate) async fn loaded(&self) -> (RunningNode, Client) {
        self.loaded_with(self.config()).await
    }

    pub(crate) async fn loaded_with(&self, config: NodeConfig) -> (RunningNode, Client) {
        let node = self.start_with(config).await;
        let client = node.loaded().await;
        (node, client)
    }

    /// Moves the node's clock and the storage's.
    pub(crate) fn advance(&self, by: Duration) {
        self.world.clock.advance(by);
        self.storage.clock.advance(by);
    }

    /// Removes the disk and gives it up.
    pub(crate) async fn lose_disk(&self) {
        std::fs::remove_dir_all(self.data_dir()).unwrap();
        self.world.edit(|map| map.nodes[0].disk_id = None).await;
    }

    /// Asks for a snapshot in object storage; the time that it is complete to.
    pub(crate) async fn snapshot(&self, client: &mut Client, full: bool) -> u64 {
        self.try_snapshot(client, full).await.unwrap()
    }

    pub(crate) async fn try_snapshot(
        &self,
        client: &mut Client,
        full: bool,
    ) -> Result<u64, Status> {
        let request = CreateSnapshotsRequest {
            full,
            ..CreateSnapshotsRequest::default()
        };
        let reply = client.create_snapshots(request).await?;
        Ok(reply.into_inner().complete_to_unix_ms)
    }

    /// The manifest in object storage.
    pub(crate) async fn manifest(&self) -> Manifest {
        let object = self.storage.inner_get(&manifest_key(NodeId(0))).await;
        Manifest::from_json(&object).unwrap()
    }

    /// How many entries the files in object storage have.
    pub(crate) async fn stored_entries(&self) -> u64 {
        let files = self.manifest().await.files;
        files.iter().map(|file| file.entries).sum()
    }

    /// Has a range's file vanish from the disk. Returns which range, the file's name and the key of its object.
    pub(crate) async fn lose_local_file(&self, index: usize) -> (u32, String, String) {
        let range = self.manifest().await.ranges[index].clone();
        let name = range.base.unwrap();
        std::fs::remove_file(self.data_dir().join("snapshots").join(&name)).unwrap();
        let key = object_key(NodeId(0), &name);
        (range.id.0, name, key)
    }

    /// How many of these keys are there.
    pub(crate) async fn present(
        &self,
        client: &mut Client,
        map: &ClusterMap,
        numbers: Range<u32>,
    ) -> usize {
        let found = self.world.get(client, map, &keys(map, numbers)).await;
        found.into_iter().filter(|found| *found).count()
    }

    pub(crate) async fn put(&self, client: &mut Client, map: &ClusterMap, numbers: Range<u32>) {
        self.put_for(client, map, numbers, 86_400).await;
    }

    pub(crate) async fn put_for(
        &self,
        client: &mut Client,
        map: &ClusterMap,
        numbers: Range<u32>,
        ttl_seconds: u32,
    ) {
        let request = self
            .world
            .put_request(map, &keys(map, numbers), ttl_seconds);
        assert_eq!(client.put(request).await.unwrap().into_inner().refused, []);
    }
}

/// The files in `dir`.
pub(crate) fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// The node's ranges in this state.
pub(crate) async fn ranges(client: &Client, state: RangeState) -> Vec<RangeStatus> {
    let status = status(&mut client.clone()).await;
    let ranges = status.ranges.into_iter();
    ranges.filter(|range| range.state() == state).collect()
}

/// Whether the node warns of something with all these words.
pub(crate) async fn warns(client: &Client, words: &[&str]) -> bool {
    let warnings = status(&mut client.clone()).await.warnings;
    let has_all = |warning: &String| words.iter().all(|word| warning.contains(word));
    warnings.iter().any(has_all)
}
