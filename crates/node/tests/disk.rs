//! What a node finds again after it has stopped, was killed, or has lost its disk.

#![allow(clippy::unwrap_used, reason = "a test that fails here has failed")]

mod support;

use std::time::Duration;

use keydb_core::{Durability, OperationId};
use keydb_node::NodeError;
use keydb_proto::shard::{ErrorCode, RangeState};
use keydb_storage::ObjectStorage;
use support::{cluster::*, *};

#[tokio::test]
async fn keys_are_there_after_a_stop_and_a_start() {
    for durability in [Durability::Journal, Durability::Snapshot] {
        let (cluster, node, mut client, map) = Cluster::new(durability).await;
        cluster.put(&mut client, &map, 0..1000).await;
        node.stop().await;
        let (node, mut client) = cluster.loaded().await;
        assert_eq!(cluster.present(&mut client, &map, 0..2000).await, 1000);
        assert_eq!(cluster.world.map().await.nodes[0].loss_count, 0);
        node.stop().await;
    }
}

#[tokio::test]
async fn in_journal_mode_a_killed_node_comes_back_with_every_acknowledged_key() {
    let (cluster, mut node, mut client, map) = Cluster::new(Durability::Journal).await;
    for round in 0..5 {
        cluster
            .put(&mut client, &map, round * 100..round * 100 + 100)
            .await;
        if round == 2 {
            cluster.snapshot(&mut client, false).await;
        }
        node.kill().await;
        node = cluster.start().await;
        client = node.loaded().await;
        let expected = (round as usize + 1) * 100;
        assert_eq!(cluster.present(&mut client, &map, 0..600).await, expected);
    }
    assert_eq!(cluster.world.map().await.nodes[0].loss_count, 0);
}

#[tokio::test]
async fn in_snapshot_mode_a_killed_node_loses_what_came_since_the_last_snapshot_and_says_so() {
    let (cluster, node, mut client, map) =
        Cluster::with_snapshot(Durability::Snapshot, 0..100, false).await;
    cluster.put(&mut client, &map, 100..200).await;
    node.kill().await;
    let (_node, mut client) = cluster.loaded().await;
    assert_eq!(cluster.present(&mut client, &map, 0..100).await, 100);
    assert_eq!(cluster.present(&mut client, &map, 100..200).await, 0);
    eventually(async || cluster.world.map().await.nodes[0].loss_count == 1).await;
    assert!(warns(&client, &["did not stop cleanly"]).await);
}

#[tokio::test]
async fn a_claim_repeated_after_a_restart_gets_the_same_answers() {
    let (cluster, node, mut client, map) = Cluster::new(Durability::Journal).await;
    let keys = keys(&map, 0..50);
    let first = OperationId::from_name("first");
    let world = &cluster.world;
    assert_eq!(
        world.claim(&mut client, &map, &keys[..25], first, 0).await,
        "F".repeat(25)
    );
    let second = OperationId::from_name("second");
    let answers = "D".repeat(25) + &"F".repeat(25);
    assert_eq!(
        world.claim(&mut client, &map, &keys, second, 0).await,
        answers
    );
    node.kill().await;
    let (node, mut client) = cluster.loaded().await;
    assert_eq!(
        world.claim(&mut client, &map, &keys, second, 1).await,
        answers
    );
    // The journal is cut; the file of answers takes its place.
    cluster.snapshot(&mut client, true).await;
    node.stop().await;
    let (_node, mut client) = cluster.loaded().await;
    assert_eq!(
        world.claim(&mut client, &map, &keys, second, 1).await,
        answers
    );
    let other = OperationId::from_name("other");
    assert_eq!(
        world.claim(&mut client, &map, &keys, other, 1).await,
        "U".repeat(50)
    );
}

#[tokio::test]
async fn a_snapshot_on_demand_is_in_object_storage_with_everything_acknowledged_before() {
    let (cluster, _node, mut client, map) = Cluster::new(Durability::Journal).await;
    cluster.put(&mut client, &map, 0..1000).await;
    let complete_to = cluster.snapshot(&mut client, false).await;
    assert_eq!(complete_to, START.0);
    assert_eq!(cluster.stored_entries().await, 1000);
    cluster.put(&mut client, &map, 500..1500).await;
    cluster.snapshot(&mut client, true).await;
    assert_eq!(cluster.stored_entries().await, 1500);
    let manifest = cluster.manifest().await;
    assert!(manifest.ranges.iter().all(|range| range.base.is_some()));
    let disk = status(&mut client).await.disk.unwrap();
    assert_eq!(disk.uploaded_lsn, disk.lsn);
}

#[tokio::test]
async fn another_disk_is_refused_until_the_old_one_is_given_up_and_then_loads_what_was_uploaded() {
    let (cluster, node, mut client, map) =
        Cluster::with_snapshot(Durability::Journal, 0..300, false).await;
    cluster.put(&mut client, &map, 300..400).await;
    cluster.snapshot(&mut client, false).await;
    cluster.put(&mut client, &map, 400..500).await;
    node.kill().await;
    std::fs::remove_dir_all(cluster.data_dir()).unwrap();

    let refused = cluster.start().await.ended().await.unwrap_err();
    assert!(matches!(refused, NodeError::OtherDisk { .. }), "{refused}");
    assert!(
        refused
            .to_string()
            .contains("keydb recover --node 0 --accept-loss")
    );

    cluster.world.edit(|map| map.nodes[0].disk_id = None).await;
    let (node, mut client) = cluster.loaded().await;
    assert_eq!(cluster.present(&mut client, &map, 0..400).await, 400);
    assert_eq!(cluster.present(&mut client, &map, 400..500).await, 0);
    // The new disk is whole by itself.
    cluster.put(&mut client, &map, 500..600).await;
    cluster.snapshot(&mut client, false).await;
    node.kill().await;
    let (_node, mut client) = cluster.loaded().await;
    assert_eq!(cluster.present(&mut client, &map, 0..600).await, 500);
}

#[tokio::test]
async fn a_damaged_or_missing_local_file_is_taken_from_object_storage() {
    let (cluster, node, _, map) = Cluster::with_snapshot(Durability::Journal, 0..1000, true).await;
    node.stop().await;
    let files = files(&cluster.data_dir().join("snapshots"));
    assert_eq!(files.len(), 8);
    std::fs::remove_file(&files[0]).unwrap();
    let mut bytes = std::fs::read(&files[1]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&files[1], bytes).unwrap();
    let (_node, mut client) = cluster.loaded().await;
    assert_eq!(cluster.present(&mut client, &map, 0..1000).await, 1000);
}

#[tokio::test]
async fn a_range_whose_file_is_nowhere_is_closed_by_name_and_the_others_serve() {
    let (cluster, node, _, map) = Cluster::with_snapshot(Durability::Journal, 0..1000, true).await;
    node.stop().await;
    let (range, name, key) = cluster.lose_local_file(3).await;
    cluster.storage.delete(&key).await.unwrap();

    let (_node, mut client) = cluster.loaded().await;
    let closed = ranges(&client, RangeState::Closed).await;
    assert_eq!(closed.len(), 1);
    assert_eq!(closed[0].range_id, range);
    assert!(closed[0].reason.contains(&name), "{}", closed[0].reason);

    let keys = keys(&map, 0..1000);
    let reply = client.get(cluster.world.get_request(&map, &keys)).await;
    let refused = reply.unwrap().into_inner().refused;
    assert_eq!(refused.len(), 1);
    assert!(
        refused[0].message.contains("closed"),
        "{}",
        refused[0].message
    );
    // A snapshot of what is there must not take the place of what is not.
    cluster.snapshot(&mut client, true).await;
    assert_eq!(
        cluster.manifest().await.ranges[3].base.as_deref(),
        Some(&*name)
    );
}

#[tokio::test]
async fn at_the_memory_limit_new_keys_are_refused_and_known_ones_answered_for() {
    let (cluster, node, _, map) = Cluster::new(Durability::Journal).await;
    node.stop().await;
    let mut config = cluster.config();
    config.limits.memory_bytes = 4 << 20;
    let (_node, mut client) = cluster.loaded_with(config).await;
    let mut stored = 0;
    let refused = loop {
        let keys = keys(&map, stored..stored + 10_000);
        let request = cluster.world.put_request(&map, &keys, 60);
        match client.put(request).await {
            Ok(_) => stored += 10_000,
            Err(refused) => break refused,
        }
        assert!(stored < 1_000_000);
    };
    assert_refused(
        Err::<(), _>(refused),
        ErrorCode::OverMemoryLimit,
        &["over memory limit", "4194304", "nothing was applied"],
    );
    assert!(stored > 100_000, "{stored}");
    assert_eq!(cluster.present(&mut client, &map, 0..10_000).await, 10_000);
    let known = keys(&map, 0..100);
    let operation = OperationId::from_name("known");
    let answers = cluster
        .world
        .claim(&mut client, &map, &known, operation, 0)
        .await;
    assert_eq!(answers, "D".repeat(100));

    // An hour after their expiry, their memory is there for others.
    cluster.advance(Duration::from_secs(2 * 3600));
    // As soon as the storage's clock has confirmed the step.
    let later = keys(&map, 1_000_000..1_010_000);
    let request = || cluster.world.put_request(&map, &later, 60);
    eventually(async || client.clone().put(request()).await.is_ok()).await;
}

#[tokio::test]
async fn where_it_was_chosen_the_keys_that_expire_soonest_make_room() {
    let (cluster, node, _, map) = Cluster::new(Durability::Journal).await;
    node.stop().await;
    let mut config = cluster.config();
    config.limits.memory_bytes = 4 << 20;
    config.limits.memory_policy = keydb_node::MemoryPolicy::ShedSoonest;
    let (_node, mut client) = cluster.loaded_with(config).await;
    let batches = 60;
    for batch in 0..batches {
        let keys = keys(&map, batch * 10_000..batch * 10_000 + 10_000);
        let request = cluster.world.put_request(&map, &keys, 10_000 + batch);
        client.put(request).await.unwrap();
    }
    let last = (batches - 1) * 10_000;
    assert_eq!(
        cluster
            .present(&mut client, &map, last..last + 10_000)
            .await,
        10_000
    );
    assert_eq!(cluster.present(&mut client, &map, 0..10_000).await, 0);
    let status = status(&mut client).await;
    assert_eq!(status.shed_keys + status.keys, u64::from(batches) * 10_000);
    assert!(status.shed_keys > 300_000, "{}", status.shed_keys);
}
