//! A node that needs object storage for its keys, and what it does meanwhile.

#![allow(clippy::unwrap_used, reason = "a test that fails here has failed")]

mod support;

use keydb_core::{ClusterMap, Durability, Manifest, NodeId, OperationId};
use keydb_proto::shard::{ErrorCode, RangeState, RefusalCode};
use keydb_storage::{
    ObjectStorage, manifest_key, object_key,
    testing::{DOWN, StorageFault::Hangs},
};
use support::{cluster::*, *};

/// Which ranges a get of all these keys is refused for, each with this code. The others answer with what they have.
async fn refused_ranges(
    cluster: &Cluster,
    client: &mut Client,
    map: &ClusterMap,
    code: RefusalCode,
) -> Vec<u32> {
    let get = cluster.world.get_request(map, &keys(map, 0..1000));
    let refused = client.get(get).await.unwrap().into_inner().refused;
    assert!(refused.iter().all(|range| range.code() == code));
    refused.iter().map(|range| range.range_id).collect()
}

#[tokio::test]
async fn a_new_disk_answers_that_it_is_loading_until_object_storage_has_given_it_everything() {
    let (cluster, node, _, map) = Cluster::with_snapshot(Durability::Journal, 0..1000, true).await;
    node.kill().await;
    cluster.lose_disk().await;

    // First the manifest is not to be had, then its files. In between the node is stopped.
    for (call, what) in [("get", "manifests/"), ("get_range", "")] {
        for fault in [DOWN, Hangs] {
            cluster.storage.goes_wrong(move |found, key| {
                (found == call && key.contains(what)).then_some(fault)
            });
            let node = cluster.start().await;
            let mut client = node.serving().await;
            if fault == DOWN {
                let waits = ["waiting for object storage", "connection refused"];
                eventually(async || warns(&client, &waits).await).await;
            } else {
                eventually(async || cluster.storage.hanging() > 0).await;
            }
            assert_eq!(ranges(&client, RangeState::Loading).await.len(), 8);
            for path in ["/startup", "/ready"] {
                let (code, body) = node.http(path).await;
                assert_eq!(code, 503, "{path}");
                assert!(body.contains("8 of 8 hash ranges are still being loaded"));
            }
            let loading = RefusalCode::Loading;
            let refused = refused_ranges(&cluster, &mut client, &map, loading).await;
            assert_eq!(refused.len(), 8);
            let operation = OperationId::from_name("early");
            let wanted = keys(&map, 0..100);
            let claim = cluster.world.claim_request(&map, &wanted, operation, 0);
            let reply = client.claim(claim).await.unwrap().into_inner();
            assert_eq!(reply.refused.len(), 8);
            assert!(reply.first.iter().all(|byte| *byte == 0));
            let refused = cluster.try_snapshot(&mut client, false).await;
            assert_refused(refused, ErrorCode::NotPossible, &["loading"]);
            node.stop().await;
        }
    }

    let node = cluster.start().await;
    eventually(async || cluster.storage.hanging() > 0).await;
    cluster.storage.works();
    let mut client = node.loaded().await;
    assert_eq!(cluster.present(&mut client, &map, 0..2000).await, 1000);
    eventually(async || status(&mut client.clone()).await.warnings.is_empty()).await;
    assert_eq!(node.http("/ready").await.0, 200);
}

#[tokio::test]
async fn an_empty_node_that_waited_for_object_storage_warns_of_nothing_afterwards() {
    let cluster = Cluster::created(Durability::Journal).await;
    cluster
        .storage
        .goes_wrong(|_, key| key.contains("manifests/").then_some(DOWN));
    let node = cluster.start().await;
    let client = node.serving().await;
    eventually(async || warns(&client, &["waiting for object storage"]).await).await;
    cluster.storage.works();
    let client = node.loaded().await;
    eventually(async || status(&mut client.clone()).await.warnings.is_empty()).await;
}

#[tokio::test]
async fn ranges_whose_files_are_sound_are_served_while_others_wait_for_object_storage() {
    let (cluster, node, _, map) = Cluster::with_snapshot(Durability::Journal, 0..1000, true).await;
    node.stop().await;
    // More than are fetched at once.
    for path in &files(&cluster.data_dir().join("snapshots"))[..6] {
        std::fs::remove_file(path).unwrap();
    }
    cluster.storage.all_of("get_range", Hangs);
    let node = cluster.start().await;
    let mut client = node.serving().await;
    eventually(async || ranges(&client, RangeState::Ready).await.len() == 2).await;
    let refused = refused_ranges(&cluster, &mut client, &map, RefusalCode::Loading).await;
    assert_eq!(refused.len(), 6);
    // So many at once, and no more.
    assert_eq!(cluster.storage.hanging(), 4);
    assert_eq!(node.http("/startup").await.0, 503);
    cluster.storage.works();
    let mut client = node.loaded().await;
    assert_eq!(cluster.present(&mut client, &map, 0..2000).await, 1000);
    node.stop().await;
}

#[tokio::test]
async fn a_newer_map_leaves_ranges_that_are_still_loading_to_their_loading() {
    let (cluster, node, ..) = Cluster::with_snapshot(Durability::Journal, 0..1000, true).await;
    node.stop().await;
    for path in &files(&cluster.data_dir().join("snapshots"))[..6] {
        std::fs::remove_file(path).unwrap();
    }
    cluster.storage.all_of("get_range", Hangs);
    let node = cluster.start().await;
    let client = node.serving().await;
    eventually(async || ranges(&client, RangeState::Ready).await.len() == 2).await;
    // One that was ready is taken back under a higher generation: it keeps its keys.
    let moved = ranges(&client, RangeState::Ready).await[0].range_id;
    cluster
        .world
        .edit(|map| map.ranges[moved as usize].generation += 2)
        .await;
    let epoch = cluster.world.map().await.epoch;
    eventually(async || support::epoch(&mut client.clone()).await == epoch).await;
    assert_eq!(ranges(&client, RangeState::Ready).await.len(), 2);
    assert_eq!(ranges(&client, RangeState::Loading).await.len(), 6);
    cluster.storage.works();
    eventually(async || ranges(&client, RangeState::Ready).await.len() == 8).await;
    node.stop().await;
}

#[tokio::test]
async fn a_damaged_or_truncated_object_closes_its_range_by_name_until_a_sound_one_is_there() {
    let (cluster, node, _, map) = Cluster::with_snapshot(Durability::Journal, 0..1000, true).await;
    node.kill().await;
    cluster.lose_disk().await;
    let manifest = cluster.manifest().await;
    let broken: Vec<(u32, String)> = manifest.ranges[2..4]
        .iter()
        .map(|range| (range.id.0, range.base.clone().unwrap()))
        .collect();
    let mut sound = Vec::new();
    for (index, (_, name)) in broken.iter().enumerate() {
        let key = object_key(NodeId(0), name);
        let bytes = cluster.storage.inner_get(&key).await;
        let mut damaged = bytes.to_vec();
        let middle = damaged.len() / 2;
        if index == 0 {
            damaged[middle] ^= 1;
        } else {
            damaged.truncate(middle);
        }
        cluster.storage.inner_put(&key, damaged).await;
        sound.push((key, bytes));
    }

    // The second start finds the damaged files on the disk.
    for _ in 0..2 {
        let (node, mut client) = cluster.loaded().await;
        let closed = ranges(&client, RangeState::Closed).await;
        assert_eq!(closed.len(), 2);
        for (range, (id, name)) in closed.iter().zip(&broken) {
            assert_eq!(range.range_id, *id);
            assert!(range.reason.contains(name), "{}", range.reason);
            assert!(range.reason.contains("object storage"), "{}", range.reason);
        }
        let refused = refused_ranges(&cluster, &mut client, &map, RefusalCode::Closed).await;
        assert_eq!(refused, [broken[0].0, broken[1].0]);
        let (code, body) = node.http("/ready").await;
        assert_eq!(code, 200);
        assert!(body.contains("2 of 8 hash ranges are closed"), "{body}");
        // Neither takes the place of what is missing.
        cluster.snapshot(&mut client, true).await;
        node.stop().await;
    }

    for (key, bytes) in sound {
        cluster.storage.inner_put(&key, bytes).await;
    }
    let (node, mut client) = cluster.loaded().await;
    assert_eq!(ranges(&client, RangeState::Ready).await.len(), 8);
    assert_eq!(cluster.present(&mut client, &map, 0..2000).await, 1000);
    node.stop().await;
}

#[tokio::test]
async fn a_loader_that_does_not_find_an_object_reads_the_manifest_again() {
    let (cluster, node, mut client, map) =
        Cluster::with_snapshot(Durability::Journal, 0..500, true).await;
    let key = manifest_key(NodeId(0));
    let older = cluster.storage.inner_get(&key).await;
    cluster.put(&mut client, &map, 500..1000).await;
    cluster.snapshot(&mut client, true).await;
    let newer = cluster.storage.inner_get(&key).await;
    node.kill().await;
    cluster.lose_disk().await;

    // The new disk reads the older manifest, whose objects are garbage before they are fetched.
    cluster.storage.inner_put(&key, older.clone()).await;
    cluster.storage.all_of("get_range", Hangs);
    let node = cluster.start().await;
    eventually(async || cluster.storage.hanging() > 0).await;
    cluster.storage.inner_put(&key, newer).await;
    for file in Manifest::from_json(&older).unwrap().files {
        let key = object_key(NodeId(0), &file.name);
        cluster.storage.inner.delete(&key).await.unwrap();
    }
    cluster.storage.works();
    let mut client = node.loaded().await;
    assert_eq!(cluster.present(&mut client, &map, 0..2000).await, 1000);
    assert_eq!(ranges(&client, RangeState::Ready).await.len(), 8);
    // What it went by is what it keeps.
    cluster.put(&mut client, &map, 1000..1100).await;
    cluster.snapshot(&mut client, false).await;
    node.kill().await;
    let (node, mut client) = cluster.loaded().await;
    assert_eq!(cluster.present(&mut client, &map, 0..2000).await, 1100);
    node.stop().await;
}
