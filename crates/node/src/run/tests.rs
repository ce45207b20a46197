//! Whole nodes on a disk that goes wrong: fail points can only be armed from inside the crate.

#[path = "../../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use keydb_core::{ClusterMap, Durability, NodeId, OperationId};
use keydb_proto::shard::{ErrorCode, PutReply};
use tonic::Status;

use self::support::{cluster::*, *};
use crate::{
    NodeConfig, NodeError,
    disk::{
        data_dir::DataDir,
        failpoint::{self, Action},
    },
};

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

async fn try_put(
    cluster: &Cluster,
    client: &Client,
    map: &ClusterMap,
    numbers: std::ops::Range<u32>,
) -> Result<PutReply, Status> {
    let request = cluster.world.put_request(map, &keys(map, numbers), 60);
    let reply = client.clone().put(request).await;
    reply.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_full_disk_refuses_writes_unapplied_answers_the_rest_and_goes_on_when_there_is_room() {
    let (cluster, node, mut client, map) = Cluster::new(Durability::Journal).await;
    let world = &cluster.world;
    cluster.put(&mut client, &map, 0..100).await;
    let claimed = keys(&map, 90..150);
    let earlier = OperationId::from_name("earlier");
    let told = "D".repeat(10) + &"F".repeat(50);
    assert_eq!(
        world.claim(&mut client, &map, &claimed, earlier, 0).await,
        told
    );
    node.stop().await;

    // What was prepared before would last for long, so the disk is full before anything is.
    let full = failpoint::arm(
        "journal.prepare",
        &cluster.data_dir(),
        Action::Fail(ENOSPC),
        0,
    );
    let node = cluster.start().await;
    let mut client = node.loaded().await;
    eventually(async || status(&mut client.clone()).await.disk.unwrap().full).await;
    let words = ["no room", "No space left", "nothing was applied"];
    assert_refused(
        try_put(&cluster, &client, &map, 1000..1010).await,
        ErrorCode::DiskFull,
        &words,
    );
    // A later expiry has to be written too.
    assert_refused(
        try_put(&cluster, &client, &map, 0..10).await,
        ErrorCode::DiskFull,
        &words,
    );
    for new in [1000..1010, 95..155] {
        let claim =
            world.claim_request(&map, &keys(&map, new), OperationId::from_name("refused"), 0);
        assert_refused(client.claim(claim).await, ErrorCode::DiskFull, &words);
    }
    assert_eq!(cluster.present(&mut client, &map, 0..2000).await, 150);

    // A repeat, a duplicate, and one that nobody knows of whether it is a repeat.
    for (keys, operation, attempt, answers) in [
        (&claimed[..], earlier, 1, told),
        (&claimed, OperationId::from_name("other"), 0, "D".repeat(60)),
        (&claimed, OperationId::from_name("other"), 1, "U".repeat(60)),
    ] {
        let found = world
            .claim(&mut client, &map, keys, operation, attempt)
            .await;
        assert_eq!(found, answers);
    }
    assert_eq!(node.metric("keydb_disk_full").await, 1.0);
    assert_eq!(node.http("/ready").await.0, 200);
    let lsn = status(&mut client).await.disk.unwrap().lsn;

    drop(full);
    eventually(async || try_put(&cluster, &client, &map, 1000..1010).await.is_ok()).await;
    let disk = status(&mut client).await.disk.unwrap();
    assert!(!disk.full);
    assert!(disk.lsn > lsn);
    node.kill().await;
    let node = cluster.start().await;
    let mut client = node.loaded().await;
    assert_eq!(cluster.present(&mut client, &map, 0..2000).await, 160);
    node.stop().await;
}

#[tokio::test]
async fn a_disk_without_room_for_snapshots_is_named_and_loses_nothing() {
    let (cluster, node, mut client, map) = Cluster::new(Durability::Journal).await;
    let full: Vec<_> = ["snapshot.create", "snapshot.write", "data_dir.write"]
        .map(|point| failpoint::arm(point, &cluster.data_dir(), Action::Fail(ENOSPC), 0))
        .into();
    for round in 0..3 {
        cluster
            .put(&mut client, &map, round * 100..round * 100 + 100)
            .await;
        let refused = cluster.try_snapshot(&mut client, round == 1).await;
        assert_refused(refused, ErrorCode::NotPossible, &["No space left"]);
        let words = ["no snapshot could be made", "No space left"];
        eventually(async || warns(&client, &words).await).await;
        assert_eq!(
            cluster.present(&mut client, &map, 0..1000).await as u32,
            round * 100 + 100
        );
    }
    // It ends as promptly as ever, and has everything in its journal.
    node.stop().await;
    let node = cluster.start().await;
    let mut client = node.loaded().await;
    assert_eq!(cluster.present(&mut client, &map, 0..1000).await, 300);
    drop(full);
    cluster.snapshot(&mut client, false).await;
    eventually(async || !warns(&client, &["snapshot"]).await).await;
    node.stop().await;
}

#[tokio::test]
async fn a_failed_sync_ends_the_node_and_nothing_is_acknowledged_after_it() {
    let (cluster, node, mut client, map) = Cluster::new(Durability::Journal).await;
    cluster.put(&mut client, &map, 0..100).await;
    let broken = failpoint::arm("journal.sync", &cluster.data_dir(), Action::Fail(EIO), 0);
    let (one, other, get, repeat) = tokio::join!(
        try_put(&cluster, &client, &map, 100..110),
        try_put(&cluster, &client, &map, 110..120),
        // Either comes too early to see the keys, or waits for their commit, which never comes.
        async {
            let get = cluster.world.get_request(&map, &keys(&map, 100..120));
            client.clone().get(get).await
        },
        async {
            let operation = OperationId::from_name("broken");
            let wanted = keys(&map, 100..120);
            let claim = cluster.world.claim_request(&map, &wanted, operation, 0);
            client.clone().claim(claim).await
        },
    );
    one.unwrap_err();
    other.unwrap_err();
    repeat.unwrap_err();
    if let Ok(reply) = get {
        let reply = reply.into_inner();
        assert!(reply.present.iter().all(|byte| *byte == 0));
    }
    let ended = node.ended().await.unwrap_err();
    assert!(matches!(ended, NodeError::Journal(_)), "{ended}");
    assert!(ended.to_string().contains("cannot sync"), "{ended}");

    drop(broken);
    let node = cluster.start().await;
    let mut client = node.loaded().await;
    assert_eq!(cluster.present(&mut client, &map, 0..100).await, 100);
    node.stop().await;
}

#[tokio::test]
async fn a_claim_that_stores_nothing_and_rests_on_nothing_uncommitted_does_not_wait_for_a_sync() {
    let (cluster, node, mut client, map) = Cluster::new(Durability::Journal).await;
    let world = &cluster.world;
    cluster.put(&mut client, &map, 0..100).await;
    let slow = failpoint::arm("journal.sync", &cluster.data_dir(), Action::Hang, 0);
    let operation = OperationId::from_name("present");
    let present = keys(&map, 0..100);
    let told = world.claim(&mut client, &map, &present, operation, 0).await;
    assert_eq!(told, "D".repeat(100));
    // One that stores a key waits, and so does one that only finds it there.
    let claim = |name: &str, numbers: std::ops::Range<u32>| {
        let operation = OperationId::from_name(name);
        let claim = world.claim_request(&map, &keys(&map, numbers), operation, 0);
        let mut client = client.clone();
        tokio::spawn(async move { client.claim(claim).await.unwrap() })
    };
    let waiting = [claim("new", 99..101)];
    tokio::time::sleep(Duration::from_millis(50)).await;
    let waiting = waiting.into_iter().chain([claim("after it", 100..101)]);
    let waiting: Vec<_> = waiting.collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(waiting.iter().all(|claim| !claim.is_finished()));
    drop(slow);
    for claim in waiting {
        claim.await.unwrap();
    }
    // What it was told is remembered after a kill, too.
    node.kill().await;
    let node = cluster.start().await;
    let mut client = node.loaded().await;
    let told = world.claim(&mut client, &map, &present, operation, 1).await;
    assert_eq!(told, "D".repeat(100));
    node.stop().await;
}

#[tokio::test]
async fn a_disk_that_does_not_answer_is_named_ends_readiness_and_then_the_node() {
    let (cluster, node, mut client, map) = Cluster::new(Durability::Journal).await;
    cluster.put(&mut client, &map, 0..100).await;
    node.stop().await;
    let config = NodeConfig {
        disk_hang_limit: Duration::from_secs(6),
        ..cluster.config()
    };
    let node = cluster.start_with(config.clone()).await;
    let client = node.loaded().await;
    let hanging = || failpoint::arm("journal.sync", &cluster.data_dir(), Action::Hang, 0);
    let put = |numbers: std::ops::Range<u32>| {
        let request = cluster.world.put_request(&map, &keys(&map, numbers), 60);
        let mut client = client.clone();
        tokio::spawn(async move { client.put(request).await })
    };

    // It is slow at first, and answers in the end.
    let slow = hanging();
    let waiting = put(100..200);
    eventually(async || warns(&client, &["does not answer", "the process ends"]).await).await;
    let (code, why) = node.http("/ready").await;
    assert_eq!(code, 503, "{why}");
    assert!(why.contains("the disk does not answer"), "{why}");
    drop(slow);
    waiting.await.unwrap().unwrap();
    eventually(async || node.http("/ready").await.0 == 200).await;
    assert!(!warns(&client, &["does not answer"]).await);

    let for_ever = hanging();
    let waiting = put(200..300);
    let error = node.ended().await.unwrap_err();
    assert!(matches!(error, NodeError::DiskHangs { .. }), "{error}");
    waiting.await.unwrap().unwrap_err();
    // The process would end here, and the disk be free.
    drop(for_ever);
    let is_free = || DataDir::open(&cluster.data_dir(), map.cluster_id, NodeId(0)).is_ok();
    eventually(async || is_free()).await;
    let node = cluster.start().await;
    let mut client = node.loaded().await;
    assert!(cluster.present(&mut client, &map, 0..1000).await >= 200);
    node.stop().await;
}

#[tokio::test]
async fn a_disk_that_does_not_answer_while_a_snapshot_is_made_ends_the_node_as_well() {
    for durability in [Durability::Journal, Durability::Snapshot] {
        let (cluster, node, mut client, map) = Cluster::new(durability).await;
        cluster.put(&mut client, &map, 0..100).await;
        node.stop().await;
        let config = NodeConfig {
            disk_hang_limit: Duration::from_secs(3),
            ..cluster.config()
        };
        let node = cluster.start_with(config).await;
        let mut client = node.loaded().await;
        cluster.put(&mut client, &map, 100..200).await;
        let for_ever = failpoint::arm("snapshot.sync", &cluster.data_dir(), Action::Hang, 0);
        let mut asking = client.clone();
        let asking = tokio::spawn(async move {
            let request = keydb_proto::shard::CreateSnapshotsRequest::default();
            asking.create_snapshots(request).await
        });
        eventually(async || warns(&client, &["does not answer", "the process ends"]).await).await;
        let error = node.ended().await.unwrap_err();
        assert!(matches!(error, NodeError::DiskHangs { .. }), "{error}");
        drop(for_ever);
        asking.await.unwrap().unwrap_err();
        let is_free = || DataDir::open(&cluster.data_dir(), map.cluster_id, NodeId(0)).is_ok();
        eventually(async || is_free()).await;
        let node = cluster.start().await;
        let mut client = node.loaded().await;
        if durability == Durability::Journal {
            assert_eq!(cluster.present(&mut client, &map, 0..1000).await, 200);
        }
        node.stop().await;
    }
}

#[tokio::test]
async fn a_disk_that_does_not_answer_does_not_hold_up_a_stop_for_ever() {
    let (cluster, node, mut client, map) = Cluster::new(Durability::Journal).await;
    cluster.put(&mut client, &map, 0..100).await;
    node.stop().await;
    let config = NodeConfig {
        disk_hang_limit: Duration::from_secs(2),
        drain_deadline: Duration::from_millis(100),
        ..cluster.config()
    };
    let mut node = cluster.start_with(config).await;
    let client = node.loaded().await;
    let for_ever = failpoint::arm("journal.sync", &cluster.data_dir(), Action::Hang, 0);
    let request = cluster.world.put_request(&map, &keys(&map, 100..200), 60);
    let mut putting = client.clone();
    let waiting = tokio::spawn(async move { putting.put(request).await });
    eventually(async || status(&mut client.clone()).await.disk.unwrap().lsn > 1).await;
    node.ask_to_stop();
    let error = node.ended().await.unwrap_err();
    assert!(matches!(error, NodeError::DiskHangs { .. }), "{error}");
    drop(for_ever);
    waiting.await.unwrap().unwrap_err();
}
