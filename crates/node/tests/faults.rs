//! What a node does while object storage is down, slow or full.

#![allow(clippy::unwrap_used, reason = "a test that fails here has failed")]

mod support;

use std::time::Duration;

use keydb_core::{Durability, OperationId};
use keydb_proto::{
    error_code,
    shard::{CreateSnapshotsRequest, ErrorCode},
};
use keydb_storage::{
    MAP_KEY, ObjectStorage,
    testing::{
        DOWN,
        StorageFault::{Hangs, Refused, Unavailable},
    },
};
use support::{cluster::*, *};
use tonic::Request;

/// Waits until everything that is written is in local files.
async fn local_snapshot(client: &Client) {
    eventually(async || {
        let disk = status(&mut client.clone()).await.disk.unwrap();
        disk.local_lsn == disk.lsn
    })
    .await;
}

async fn uploaded(client: &Client) {
    eventually(async || {
        let status = status(&mut client.clone()).await;
        let disk = status.disk.unwrap();
        disk.uploaded_lsn == disk.lsn && status.warnings.is_empty()
    })
    .await;
}

#[tokio::test]
async fn an_intact_disk_serves_all_its_keys_though_no_call_of_object_storage_succeeds() {
    for (durability, fault) in [
        (Durability::Journal, DOWN),
        (Durability::Journal, Refused),
        (Durability::Snapshot, DOWN),
    ] {
        let (cluster, node, mut client, map) =
            Cluster::with_snapshot(durability, 0..1000, true).await;
        cluster.put(&mut client, &map, 1000..1500).await;
        node.stop().await;

        cluster.storage.all(fault);
        let before = cluster.storage.succeeded();
        let (node, mut client) = cluster.loaded().await;
        assert_eq!(cluster.present(&mut client, &map, 0..2000).await, 1500);
        cluster.put(&mut client, &map, 1500..1600).await;
        eventually(async || warns(&client, &["going on with the last cluster map"]).await).await;
        for path in ["/startup", "/ready"] {
            assert_eq!(node.http(path).await.0, 200, "{path}");
        }
        assert_eq!(cluster.storage.succeeded(), before);
        node.stop().await;

        let (node, mut client) = cluster.loaded().await;
        assert_eq!(cluster.present(&mut client, &map, 0..2000).await, 1600);
        assert_eq!(cluster.storage.succeeded(), before);
        cluster.storage.works();
        cluster.put(&mut client, &map, 1600..1700).await;
        let _ = cluster.try_snapshot(&mut client, false).await;
        uploaded(&client).await;
        node.stop().await;
    }
}

#[tokio::test]
async fn a_node_without_a_disk_waits_for_object_storage_and_serves_when_it_is_back() {
    let cluster = Cluster::created(Durability::Journal).await;
    let map = cluster.world.map().await;
    cluster.storage.all(DOWN);
    // Once to be stopped while it waits, once to go on.
    for _ in 0..2 {
        let node = cluster.start().await;
        let mut client = node.client().await;
        let waits = ["waiting for object storage", "connection refused"];
        eventually(async || warns(&client, &waits).await).await;
        for path in ["/startup", "/ready"] {
            let (code, body) = node.http(path).await;
            assert_eq!(code, 503, "{path}");
            assert!(body.contains("storage cannot be reached"), "{body}");
        }
        assert_eq!(node.http("/live").await.0, 200);
        let get = cluster.world.get_request(&map, &keys(&map, 0..10));
        assert_refused(client.get(get).await, ErrorCode::NoMap, &["storage"]);
        let operation = OperationId::from_name("early");
        let claim = cluster
            .world
            .claim_request(&map, &keys(&map, 0..10), operation, 0);
        assert_refused(client.claim(claim).await, ErrorCode::NoMap, &["storage"]);
        node.stop().await;
    }
    let node = cluster.start().await;
    cluster.storage.works();
    let mut client = node.loaded().await;
    cluster.put(&mut client, &map, 0..10).await;
    assert_eq!(cluster.present(&mut client, &map, 0..20).await, 10);
    assert_eq!(node.http("/ready").await.0, 200);
    cluster.snapshot(&mut client, false).await;
    uploaded(&client).await;
}

#[tokio::test]
async fn a_long_outage_costs_disk_in_the_size_of_the_state_and_everything_is_uploaded_after_it() {
    const KEYS: u32 = 50_000;
    const ROUNDS: u32 = 20;
    let (cluster, node, mut client, map) = Cluster::new(Durability::Journal).await;
    cluster.put_for(&mut client, &map, 0..KEYS, 86_400).await;
    let complete_to = cluster.snapshot(&mut client, true).await;
    let status_now = status(&mut client).await.disk.unwrap();
    assert_eq!(status_now.uploaded_complete_to_unix_ms, complete_to);
    let full_bytes = status_now.snapshot_bytes;

    cluster.storage.all(DOWN);
    let mut written_bytes = 0;
    for round in 1..=ROUNDS {
        cluster.advance(Duration::from_secs(60));
        cluster
            .put_for(&mut client, &map, 0..KEYS, 86_400 + round)
            .await;
        written_bytes += u64::from(KEYS) * 12;
        let refused = cluster.try_snapshot(&mut client, false).await;
        assert_refused(refused, ErrorCode::NotPossible, &["connection refused"]);
        local_snapshot(&client).await;
        let disk = status(&mut client).await.disk.unwrap();
        // What object storage has only gets older.
        assert_eq!(disk.uploaded_complete_to_unix_ms, complete_to);
        assert_eq!(
            node.metric("keydb_snapshot_age_seconds").await,
            f64::from(round) * 60.0
        );
        let on_disk: u64 = files(&cluster.data_dir().join("snapshots"))
            .iter()
            .map(|path| std::fs::metadata(path).map_or(0, |file| file.len()))
            .sum();
        assert!(on_disk < 4 * full_bytes, "{on_disk} in round {round}");
        assert!(
            disk.journal_bytes < (6 << 20),
            "{} in round {round}",
            disk.journal_bytes
        );
    }
    // Otherwise there was nothing to be bounded.
    assert!(written_bytes > 15 * full_bytes && written_bytes > (10 << 20));
    assert!(warns(&client, &["does not take snapshots", "connection refused"]).await);
    assert_eq!(
        cluster.present(&mut client, &map, 0..KEYS).await,
        KEYS as usize
    );
    assert_eq!(node.http("/ready").await.0, 200);

    // Nor is it younger after a start.
    node.stop().await;
    let (node, mut client) = cluster.loaded().await;
    eventually(async || {
        node.metric("keydb_snapshot_age_seconds").await == f64::from(ROUNDS) * 60.0
    })
    .await;

    cluster.storage.works();
    let _ = cluster.try_snapshot(&mut client, false).await;
    uploaded(&client).await;
    assert_eq!(node.metric("keydb_snapshot_age_seconds").await, 0.0);
    node.kill().await;
    cluster.lose_disk().await;
    let (_node, mut client) = cluster.loaded().await;
    assert_eq!(
        cluster.present(&mut client, &map, 0..KEYS).await,
        KEYS as usize
    );
}

#[tokio::test]
async fn slow_storage_holds_up_no_request_and_a_snapshot_on_demand_says_how_far_it_got() {
    let (cluster, node, mut client, map) =
        Cluster::with_snapshot(Durability::Journal, 0..100, false).await;
    cluster.storage.all(Hangs);
    eventually(async || cluster.storage.hanging() > 0).await;

    cluster.put(&mut client, &map, 100..200).await;
    assert_eq!(cluster.present(&mut client, &map, 0..300).await, 200);
    let operation = OperationId::from_name("slow");
    let claimed = keys(&map, 190..210);
    let answers = cluster
        .world
        .claim(&mut client, &map, &claimed, operation, 0)
        .await;
    assert_eq!(answers, "D".repeat(10) + &"F".repeat(10));

    // All but two of the files hang.
    let mut uploads = 0;
    cluster.storage.goes_wrong(move |call, _| {
        uploads += u32::from(call == "put_file");
        (call == "put_file" && uploads > 2).then_some(Hangs)
    });
    let mut request = Request::new(CreateSnapshotsRequest {
        full: true,
        ..CreateSnapshotsRequest::default()
    });
    request.set_timeout(Duration::from_secs(2));
    let far = client.create_snapshots(request).await.unwrap_err();
    assert_refused(
        Err::<(), _>(far),
        ErrorCode::NotPossible,
        &[
            "the time is up",
            "the local snapshot is made",
            "2 of its 8 files",
            "complete to 2023-11-14T22:13:20",
            "it goes on",
        ],
    );
    local_snapshot(&client).await;
    assert_eq!(cluster.present(&mut client, &map, 0..300).await, 210);

    // It goes on indeed.
    cluster.storage.works();
    uploaded(&client).await;
    assert!(
        cluster
            .manifest()
            .await
            .ranges
            .iter()
            .all(|range| range.base.is_some())
    );
    node.stop().await;
}

#[tokio::test]
async fn storage_that_never_answers_does_not_hold_up_the_end() {
    let (cluster, node, mut client, map) = Cluster::new(Durability::Journal).await;
    node.stop().await;
    let mut config = cluster.config();
    config.drain_deadline = Duration::from_millis(50);
    let mut node = cluster.start_with(config).await;
    client = {
        drop(client);
        node.loaded().await
    };
    cluster.put(&mut client, &map, 0..100).await;
    cluster.storage.all(Hangs);
    eventually(async || cluster.storage.hanging() > 0).await;
    // Somebody waits for a snapshot meanwhile, and for more than what the node waits for.
    let asking = tokio::spawn({
        let mut client = client.clone();
        async move {
            client
                .create_snapshots(CreateSnapshotsRequest::default())
                .await
        }
    });
    local_snapshot(&client).await;
    node.ask_to_stop();
    node.ended().await.unwrap();
    let status = asking.await.unwrap().unwrap_err();
    assert!(
        error_code(&status).is_none() || status.message().contains("stopping"),
        "{status:?}"
    );
    assert_eq!(cluster.storage.hanging(), 0);

    // What it had is on the disk.
    cluster.storage.all(DOWN);
    let (node, mut client) = cluster.loaded().await;
    assert_eq!(cluster.present(&mut client, &map, 0..200).await, 100);
    node.stop().await;
}

#[tokio::test]
async fn full_storage_is_named_in_the_status_and_costs_nothing_else() {
    const FULL: &str = "the bucket is out of space";
    let (cluster, node, mut client, map) = Cluster::new(Durability::Journal).await;
    cluster.storage.goes_wrong(|call, _| {
        ["put", "put_file"]
            .contains(&call)
            .then_some(Unavailable(FULL))
    });
    for round in 0..5 {
        cluster
            .put(&mut client, &map, round * 100..round * 100 + 100)
            .await;
        let refused = cluster.try_snapshot(&mut client, false).await;
        assert_refused(refused, ErrorCode::NotPossible, &[FULL]);
        local_snapshot(&client).await;
    }
    assert!(warns(&client, &["does not take snapshots", FULL]).await);
    assert_eq!(node.metric("keydb_warnings").await, 1.0);
    node.stop().await;

    let (_node, mut client) = cluster.loaded().await;
    assert_eq!(cluster.present(&mut client, &map, 0..600).await, 500);
    cluster.storage.works();
    let _ = cluster.try_snapshot(&mut client, false).await;
    uploaded(&client).await;
    assert_eq!(cluster.stored_entries().await, 500);
}

#[tokio::test]
async fn nothing_is_uploaded_to_a_storage_that_is_not_the_clusters() {
    let (cluster, node, mut client, map) = Cluster::new(Durability::Journal).await;
    cluster.put(&mut client, &map, 0..100).await;
    let kept = cluster.storage.inner_get(MAP_KEY).await;
    cluster.storage.delete(MAP_KEY).await.unwrap();
    let before = cluster.storage.list("", None).await.unwrap();
    let error = cluster.try_snapshot(&mut client, true).await.unwrap_err();
    let words = "it is not this cluster's storage";
    assert!(error.message().contains(words), "{error}");
    let after = cluster.storage.list("", None).await.unwrap();
    assert_eq!(after.objects.len(), before.objects.len());
    // Gets go on, and so do uploads when the map is back.
    cluster.storage.inner_put(MAP_KEY, kept).await;
    eventually(async || {
        cluster
            .try_snapshot(&mut client.clone(), true)
            .await
            .is_ok()
    })
    .await;
    assert_eq!(cluster.present(&mut client, &map, 0..200).await, 100);
    node.stop().await;
}
