//! How a node finds its place in the cluster, and when it gives it up.

#![allow(clippy::unwrap_used, reason = "a test that fails here has failed")]

mod support;

use std::time::Duration;

use keydb_core::{Incarnation, NodeId, OperationId};
use keydb_node::NodeError;
use keydb_proto::shard::{ErrorCode, RangeRefusal};
use keydb_storage::{MAP_KEY, testing::DOWN};
use support::*;
use tokio::net::TcpListener;

/// Waits until the map has been read some more.
async fn read_again(world: &World) {
    let before = world.storage.seen("get");
    eventually(async || world.storage.seen("get") > before + 2).await;
}

#[tokio::test]
async fn a_node_without_a_map_waits_refuses_keys_and_serves_once_there_is_one() {
    let world = World::new();
    let listener = listen().await;
    let address = address_of(&listener);
    let node = world.start(config(0), listener);
    let mut client = node.client().await;
    assert_eq!(epoch(&mut client).await, 0);
    let waiting = status(&mut client).await;
    assert!(waiting.cluster_id.is_empty() && waiting.ranges.is_empty());

    let elsewhere = World::new().init(&["a:1"]).await;
    let get = world.get_request(&elsewhere, &keys(&elsewhere, 0..3));
    assert_refused(
        client.get(get).await,
        ErrorCode::NoMap,
        &["node 0 has no cluster map yet"],
    );

    world.init(&[&address]).await;
    let mut client = node.serving().await;
    let map = world.map().await;
    assert_eq!(
        world.get(&mut client, &map, &keys(&map, 0..3)).await,
        [false; 3]
    );
    node.stop().await;
}

#[tokio::test]
async fn a_node_that_the_map_does_not_list_waits_until_it_is() {
    let world = World::new();
    let listener = listen().await;
    let address = address_of(&listener);
    let map = world.init(&["elsewhere.example:50051"]).await;
    let node = world.start(config(1), listener);
    let mut client = node.client().await;
    eventually(async || epoch(&mut client.clone()).await == 1).await;
    let mut get = world.get_request(&map, &keys(&map, 0..3));
    get.header.as_mut().unwrap().target_node = 1;
    assert_refused(
        client.get(get).await,
        ErrorCode::WrongNode,
        &[
            "node 1 is not a member",
            &map.cluster_id.to_string(),
            "epoch 1",
        ],
    );
    assert_eq!(world.map().await, map, "a node that waits changes nothing");

    world
        .edit(|map| {
            let mut entry = map.nodes[0].clone();
            entry.id = NodeId(1);
            entry.address = address.clone();
            map.nodes.push(entry);
            map.ranges[3].owner = NodeId(1);
            map.ranges[3].generation = 2;
        })
        .await;
    let mut client = node.serving().await;
    let ranges = status(&mut client).await.ranges;
    assert_eq!(ranges.len(), 1);
    assert_eq!((ranges[0].range_id, ranges[0].generation), (3, 2));
    node.stop().await;
}

#[tokio::test]
async fn a_first_start_registers_the_node_and_counts_no_loss() {
    let (_world, map, node, mut client) = one_node().await;
    assert_eq!(map.epoch, 2);
    assert_eq!(
        map.nodes[0].disk_id,
        Some(incarnation(&status(&mut client).await))
    );
    assert_eq!(
        (map.nodes[0].loss_count, map.nodes[0].last_loss_ms),
        (0, None)
    );
    node.stop().await;
}

#[tokio::test]
async fn a_restart_is_another_incarnation_and_a_stated_loss() {
    let (world, before, node, mut client) = one_node().await;
    let address = node.address.clone();
    client
        .put(world.put_request(&before, &keys(&before, 0..10), 60))
        .await
        .unwrap();
    node.stop().await;
    world.clock.advance(Duration::from_secs(5));

    let listener = TcpListener::bind(&address).await.unwrap();
    let node = world.start(config(0), listener);
    let mut client = node.serving().await;
    let after = world.map().await;
    assert_ne!(after.nodes[0].disk_id, before.nodes[0].disk_id);
    assert_eq!(
        after.nodes[0].disk_id,
        Some(incarnation(&status(&mut client).await))
    );
    assert_eq!(after.nodes[0].loss_count, 1);
    assert_eq!(
        after.nodes[0].last_loss_ms,
        Some(START.plus(Duration::from_secs(5)))
    );
    assert_eq!(
        world.get(&mut client, &after, &keys(&after, 0..10)).await,
        [false; 10]
    );
    node.stop().await;
}

#[tokio::test]
async fn a_second_node_under_the_same_id_ends_and_the_first_goes_on() {
    let (world, map, node, mut client) = one_node().await;
    let error = world
        .start(config(0), listen().await)
        .ended()
        .await
        .unwrap_err();
    assert!(matches!(error, NodeError::AlreadyRunning { .. }));
    let message = error.to_string();
    for part in [
        "node 0",
        &map.cluster_id.to_string(),
        &format!("already running at {}", node.address),
        &map.nodes[0].disk_id.unwrap().to_string(),
    ] {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
    assert_eq!(world.map().await, map);
    world.get(&mut client, &map, &keys(&map, 0..3)).await;
    node.stop().await;
}

#[tokio::test]
async fn of_two_nodes_that_start_under_one_id_at_once_the_one_at_the_maps_address_stays() {
    let world = World::new();
    let listeners = [listen().await, listen().await];
    world.init(&[&address_of(&listeners[0])]).await;
    let [listed, other] = listeners.map(|listener| world.start(config(0), listener));
    // Whether the other one finds it there or is replaced by it depends on who was faster.
    let error = other.ended().await.unwrap_err();
    assert!(
        matches!(
            error,
            NodeError::AlreadyRunning { .. } | NodeError::Replaced { .. }
        ),
        "{error}"
    );
    listed.serving().await;
    listed.stop().await;
}

#[tokio::test]
async fn a_node_that_was_replaced_ends() {
    let (world, _map, node, mut client) = one_node().await;
    let by = Incarnation::random();
    world.edit(|map| map.nodes[0].disk_id = Some(by)).await;
    let request = world.get_request(&world.map().await, &[]);
    let error = node.ended().await.unwrap_err();
    assert!(matches!(error, NodeError::Replaced { .. }));
    let message = error.to_string();
    assert!(message.contains("replaced by another process"), "{message}");
    assert!(message.contains(&by.to_string()), "{message}");
    assert!(client.get(request).await.is_err());
}

#[tokio::test]
async fn a_node_that_is_not_a_member_any_more_ends_well() {
    let (world, _, node, _) = one_node_beside(&["elsewhere.example:1"], config(0)).await;
    world
        .edit(|map| {
            map.nodes.remove(0);
            for range in &mut map.ranges {
                range.owner = NodeId(1);
            }
        })
        .await;
    node.ended().await.unwrap();
}

#[tokio::test]
async fn a_node_that_left_and_is_listed_again_before_it_has_looked_ends_well() {
    let (world, _, node, _) = one_node_beside(&["elsewhere.example:1"], config(0)).await;
    world
        .edit(|map| {
            map.nodes[0].disk_id = None;
            for range in &mut map.ranges {
                range.owner = NodeId(1);
            }
        })
        .await;
    node.ended().await.unwrap();
}

#[tokio::test]
async fn another_clusters_map_ends_the_node() {
    let (world, map, node, _client) = one_node().await;
    let mut other = World::new().init(&[&node.address]).await;
    other.epoch = 100;
    world.storage.inner_put(MAP_KEY, other.to_json()).await;
    let error = node.ended().await.unwrap_err();
    assert!(matches!(error, NodeError::OtherCluster { .. }));
    for cluster in [map.cluster_id, other.cluster_id] {
        assert!(error.to_string().contains(&cluster.to_string()), "{error}");
    }
}

#[tokio::test]
async fn a_map_that_cannot_be_used_ends_a_node_at_its_start() {
    let world = World::new();
    world.init(&["a:1"]).await;
    world
        .storage
        .inner_put(MAP_KEY, br#"{"format": 2}"#.to_vec())
        .await;
    let error = world
        .start(config(0), listen().await)
        .ended()
        .await
        .unwrap_err();
    assert!(error.to_string().contains("format 2"), "{error}");
}

#[tokio::test]
async fn a_newer_map_moves_ranges_and_an_older_one_is_ignored() {
    let (world, before, node, mut client) =
        one_node_beside(&["elsewhere.example:1"], config(0)).await;
    let all = keys(&before, 0..200);
    client
        .put(world.put_request(&before, &all, 60))
        .await
        .unwrap();
    let owned: Vec<usize> = (0..8)
        .filter(|index| before.ranges[*index].owner == NodeId(0))
        .collect();
    let lost = before.ranges[owned[0]].id;

    let after = world
        .edit(|map| {
            map.ranges[owned[0]].owner = NodeId(1);
            map.ranges[owned[0]].generation += 1;
        })
        .await;
    eventually(async || epoch(&mut client.clone()).await == after.epoch).await;
    let get = world.get_request(&after, &all);
    let reply = client.get(get).await.unwrap().into_inner();
    let refused = |refusal: &RangeRefusal| refusal.range_id == lost.0;
    assert_eq!(reply.refused.len(), 5);
    assert!(reply.refused.iter().any(refused));
    // The keys of the ranges that stayed are still there.
    let in_kept = |key: &&keydb_core::Fingerprint| {
        let range = after.range_index_of(key.top());
        after.ranges[range].owner == NodeId(0)
    };
    let kept: Vec<_> = all.iter().filter(in_kept).copied().collect();
    assert!(
        world
            .get(&mut client, &after, &kept)
            .await
            .iter()
            .all(|there| *there)
    );

    world.storage.inner_put(MAP_KEY, before.to_json()).await;
    read_again(&world).await;
    assert_eq!(epoch(&mut client).await, after.epoch);
    assert!(
        world
            .get(&mut client, &after, &kept)
            .await
            .iter()
            .all(|there| *there)
    );
    node.stop().await;
}

#[tokio::test]
async fn a_request_by_a_newer_map_makes_the_node_look_for_it_at_once() {
    let mut slow = config(0);
    slow.map_poll_interval = Duration::from_secs(3600);
    let (world, map, node, mut client) = one_node_with(slow).await;
    let after = world.edit(|map| map.clock_error_max_ms += 1).await;
    assert_eq!(epoch(&mut client).await, map.epoch);
    world.get(&mut client, &after, &keys(&map, 0..3)).await;
    eventually(async || epoch(&mut client.clone()).await == after.epoch).await;
    node.stop().await;
}

#[tokio::test]
async fn a_node_waits_for_a_storage_that_is_away_and_goes_on_without_it_later() {
    let world = World::new();
    let listener = listen().await;
    world.init(&[&address_of(&listener)]).await;
    world.storage.all(DOWN);
    let node = world.start(config(0), listener);
    let mut client = node.client().await;
    read_again(&world).await;
    assert!(status(&mut client).await.ranges.is_empty());

    world.storage.works();
    let mut client = node.serving().await;
    let map = world.map().await;
    world.storage.all(DOWN);
    read_again(&world).await;
    let all = keys(&map, 0..10);
    let operation = OperationId::random();
    let answers = world.claim(&mut client, &map, &all, operation, 0);
    assert_eq!(answers.await, "FFFFFFFFFF");

    world.storage.works();
    let after = world.edit(|map| map.clock_error_max_ms += 1).await;
    eventually(async || epoch(&mut client.clone()).await == after.epoch).await;
    assert_eq!(world.get(&mut client, &map, &all).await, [true; 10]);
    node.stop().await;
}

#[tokio::test]
async fn a_node_that_serves_goes_on_by_the_last_map_when_the_stored_one_is_damaged() {
    let (world, map, node, mut client) = one_node().await;
    world.storage.inner_put(MAP_KEY, b"damaged".to_vec()).await;
    read_again(&world).await;
    world.get(&mut client, &map, &keys(&map, 0..3)).await;

    world
        .storage
        .inner_put(MAP_KEY, map.successor().to_json())
        .await;
    eventually(async || epoch(&mut client.clone()).await == map.epoch + 1).await;
    node.stop().await;
}
