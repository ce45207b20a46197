//! Ranges that move from one node to another and back, over sockets and with disks.

#![allow(clippy::unwrap_used, reason = "a test that fails here has failed")]

mod support;

use std::time::Duration;

use keydb_core::{ClusterMap, Durability, Fingerprint, NodeId, OperationId};
use keydb_node::NodeConfig;
use keydb_proto::shard::{
    CreateSnapshotsRequest, LoadSnapshotsRequest, NodeStatusRequest, RangeState,
    ScaleOperationRequest, ScaleRequest, admin_service_client::AdminServiceClient,
};
use keydb_storage::testing::{DOWN, StorageFault};
use support::{cluster::*, *};
use tonic::transport::Channel;

/// A cluster of one node with keys, and a second node that waits to become a member.
struct Two {
    cluster: Cluster,
    nodes: [RunningNode; 2],
    second_dir: tempfile::TempDir,
}

impl Two {
    async fn with_keys(durability: Durability, numbers: std::ops::Range<u32>) -> Self {
        let (cluster, first, mut client, map) = Cluster::new(durability).await;
        cluster.put(&mut client, &map, numbers).await;
        let second_dir = tempfile::tempdir().unwrap();
        let second = cluster
            .world
            .start(second_config(&second_dir), listen().await);
        Self {
            cluster,
            nodes: [first, second],
            second_dir,
        }
    }

    fn world(&self) -> &World {
        &self.cluster.world
    }

    async fn map(&self) -> ClusterMap {
        self.world().map().await
    }

    /// Has exactly these of the two nodes be the members, and waits until they are.
    async fn scale(&self, members: &[usize]) {
        self.plan(members).await;
        self.complete().await;
    }

    async fn admin(&self) -> AdminServiceClient<Channel> {
        let at = format!("http://{}", self.nodes[0].address);
        AdminServiceClient::connect(at).await.unwrap()
    }

    async fn plan(&self, members: &[usize]) {
        self.try_plan(members).await.unwrap();
    }

    async fn try_plan(&self, members: &[usize]) -> Result<(), tonic::Status> {
        let cluster_id = self.map().await.cluster_id.to_bytes().to_vec();
        let addresses = members.iter().map(|at| self.nodes[*at].address.clone());
        let request = ScaleRequest {
            cluster_id: cluster_id.into(),
            operation_id: OperationId::random().to_bytes().to_vec().into(),
            addresses: addresses.collect(),
            preview: false,
        };
        self.admin().await.scale(request).await.map(drop)
    }

    /// Has the ranges change their owners, and waits until they have.
    async fn complete(&self) {
        let cluster_id = self.map().await.cluster_id.to_bytes().to_vec();
        let request = ScaleOperationRequest {
            cluster_id: cluster_id.into(),
            ..ScaleOperationRequest::default()
        };
        self.admin().await.scale_complete(request).await.unwrap();
        eventually(async || self.map().await.target.is_none()).await;
    }

    /// How many ranges a node has in this state, and how many keys of those that it answers for.
    async fn status(&self, node: usize, state: RangeState) -> (usize, u64) {
        let mut client = self.nodes[node].client().await;
        let asked = client.node_status(NodeStatusRequest::default()).await;
        let status = asked.unwrap().into_inner();
        let ranges = status.ranges.iter().filter(|it| it.state() == state);
        (ranges.count(), status.keys)
    }

    /// How many of these keys their owners have.
    async fn present(&self, numbers: std::ops::Range<u32>) -> usize {
        let map = self.map().await;
        let all = keys(&map, numbers);
        let mut found = 0;
        for node in &map.nodes {
            let own = owned_by(&map, &all, node.id);
            let mut request = self.world().get_request(&map, &own);
            request.header = Some(self.world().header(&map, node.id.0));
            let client = self.nodes[node.id.0 as usize].client().await;
            // A node may be a little behind the map.
            let mut reply = None;
            eventually_some(&mut reply, async || {
                let reply = client
                    .clone()
                    .get(request.clone())
                    .await
                    .unwrap()
                    .into_inner();
                reply.refused.is_empty().then_some(reply)
            })
            .await;
            let present = reply.unwrap().present;
            found += present
                .iter()
                .map(|byte| byte.count_ones() as usize)
                .sum::<usize>();
        }
        found
    }
}

fn second_config(dir: &tempfile::TempDir) -> NodeConfig {
    NodeConfig {
        data_dir: dir.path().join("data"),
        ..config(1)
    }
}

async fn eventually_some<T>(out: &mut Option<T>, get: impl AsyncFn() -> Option<T>) {
    let wait = async {
        loop {
            if let Some(it) = get().await {
                return it;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    *out = Some(
        tokio::time::timeout(PATIENCE, wait)
            .await
            .expect("it never came true"),
    );
}

fn owned_by(map: &ClusterMap, keys: &[Fingerprint], node: NodeId) -> Vec<Fingerprint> {
    let is_own = |key: &&Fingerprint| map.ranges[map.range_index_of(key.top())].owner == node;
    keys.iter().filter(is_own).copied().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_move_to_a_new_node_and_back_in_every_mode() {
    for durability in Durability::ALL {
        let two = Two::with_keys(durability, 0..3000).await;
        two.scale(&[0, 1]).await;
        let map = two.map().await;
        let moved = map.ranges.iter().filter(|it| it.owner == NodeId(1)).count();
        assert_eq!((moved, map.nodes.len()), (4, 2), "{durability}");
        assert_eq!(two.present(0..3000).await, 3000, "{durability}");
        two.scale(&[0]).await;
        assert_eq!(two.present(0..3000).await, 3000, "{durability}");
        let [first, second] = two.nodes;
        second.ended().await.unwrap();
        first.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_just_left_is_not_planned_with() {
    let two = Two::with_keys(Durability::Memory, 0..10).await;
    two.scale(&[0, 1]).await;
    two.scale(&[0]).await;
    eventually(async || {
        let mut client = two.nodes[1].client().await;
        let asked = client.node_status(NodeStatusRequest::default()).await;
        asked.unwrap().into_inner().has_left
    })
    .await;
    // Nobody starts it again.
    let refused = two.try_plan(&[0, 1]).await.unwrap_err();
    let words = format!("{} has just left the cluster", two.nodes[1].address);
    assert!(refused.message().contains(&words), "{refused:?}");
    let [first, second] = two.nodes;
    second.ended().await.unwrap();
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_copied_waits_at_its_next_owner_and_counts_once() {
    let two = Two::with_keys(Durability::Journal, 0..3000).await;
    two.plan(&[0, 1]).await;
    eventually(async || two.status(1, RangeState::Secured).await.0 == 4).await;
    assert_eq!(two.status(0, RangeState::Ready).await, (8, 3000));
    assert_eq!(two.status(1, RangeState::Ready).await, (0, 0));
    two.complete().await;
    eventually(async || {
        let (first, second) = (
            two.status(0, RangeState::Ready).await,
            two.status(1, RangeState::Ready).await,
        );
        (first.0, second.0, first.1 + second.1) == (4, 4, 3000)
    })
    .await;
    for node in two.nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_loaded_into_live_ranges_again_or_what_is_wrong_with_them_is_said() {
    let two = Two::with_keys(Durability::Journal, 0..3000).await;
    let mut client = two.nodes[0].client().await;
    let load =
        async |mut client: Client| client.load_snapshots(LoadSnapshotsRequest::default()).await;
    let made = client.create_snapshots(CreateSnapshotsRequest::default());
    made.await.unwrap();
    let loaded = load(client.clone()).await.unwrap().into_inner();
    assert_eq!((loaded.ranges, loaded.added_keys), (8, 0));
    two.cluster.storage.goes_wrong(|call, key| {
        let is_file = call == "get_range" && key.ends_with(".keydb");
        is_file.then_some(StorageFault::Refused)
    });
    let refused = load(client).await.unwrap_err();
    assert!(refused.message().contains(".keydb"), "{refused:?}");
    assert_eq!(two.present(0..3000).await, 3000);
    for node in two.nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_object_storage_has_lost_a_file_the_keys_come_straight() {
    let two = Two::with_keys(Durability::Journal, 0..3000).await;
    two.cluster.storage.goes_wrong(|call, key| {
        let is_file = call == "get_range" && key.contains("snapshots/node-0/");
        is_file.then_some(StorageFault::Refused)
    });
    two.scale(&[0, 1]).await;
    assert_eq!(two.present(0..3000).await, 3000);
    for node in two.nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_repeated_at_the_next_owner() {
    let two = Two::with_keys(Durability::Journal, 0..100).await;
    let map = two.map().await;
    let new = keys(&map, 1000..1100);
    let id = OperationId::random();
    let mut client = two.nodes[0].client().await;
    let told = two.world().claim(&mut client, &map, &new, id, 0).await;
    assert_eq!(told, "F".repeat(100));
    two.scale(&[0, 1]).await;

    let map = two.map().await;
    let moved = owned_by(&map, &new, NodeId(1));
    let mut client = two.nodes[1].client().await;
    let mut request = two.world().claim_request(&map, &moved, id, 1);
    request.header = Some(two.world().header(&map, 1));
    let reply = client.claim(request).await.unwrap().into_inner();
    assert_eq!(reply.refused, []);
    assert_eq!(answers(&map, &moved, &reply), "F".repeat(moved.len()));
    for node in two.nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_hand_over_and_kills_each_node_answers_for_its_own_without_object_storage() {
    let two = Two::with_keys(Durability::Journal, 0..3000).await;
    two.scale(&[0, 1]).await;
    let map = two.map().await;
    let Two {
        cluster,
        nodes: [first, second],
        second_dir,
    } = two;
    let second_address = second.address.clone();
    first.kill().await;
    second.kill().await;
    cluster.storage.all(DOWN);
    let (first, _) = cluster.loaded().await;
    let config = second_config(&second_dir);
    let listener = listen_again(&second_address, &config.data_dir).await;
    let second = cluster.world.start(config, listener);
    second.loaded().await;
    let all = keys(&map, 0..3000);
    for (id, node) in [&first, &second].into_iter().enumerate() {
        let id = NodeId(id as u32);
        let own = owned_by(&map, &all, id);
        let mut request = cluster.world.get_request(&map, &all);
        request.header = Some(cluster.world.header(&map, id.0));
        let reply = node.client().await.get(request).await.unwrap().into_inner();
        assert_eq!(reply.refused.len(), 4, "node {id} answers for its own only");
        let found: u32 = reply.present.iter().map(|byte| byte.count_ones()).sum();
        assert_eq!(found as usize, own.len(), "node {id}");
    }
    cluster.storage.works();
    first.stop().await;
    second.stop().await;
}
