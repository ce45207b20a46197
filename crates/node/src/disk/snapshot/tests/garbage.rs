//! Objects that no manifest names.

use keydb_storage::{Collected, GarbageError};

use super::*;

const AGE: Duration = Duration::from_secs(3600);

impl Rig {
    async fn objects(&self) -> Vec<String> {
        let page = self.storage.inner.list("snapshots/", None).await.unwrap();
        page.objects.into_iter().map(|object| object.key).collect()
    }

    async fn collect(&self, dry_run: bool) -> Result<Collected, GarbageError> {
        SnapshotStore::new(self.storage.clone())
            .collect_garbage(None, AGE, dry_run)
            .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_no_manifest_names_go_when_they_are_old_and_others_never() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    run.put(&rig.keys(0..100, EXPIRY)).await;
    run.snapshot().await;
    let delta = rig.objects().await;
    run.full_snapshot().await;
    let foreign = "snapshots/node-0/notes.txt";
    rig.storage.inner_put(foreign, "mine").await;
    assert_eq!(rig.collect(false).await.unwrap().removed, [] as [String; 0]);

    rig.clock.advance(AGE + Duration::from_secs(1));
    let would = rig.collect(true).await.unwrap();
    assert_eq!(would.removed, delta);
    assert_eq!(would.seen, 5);
    assert_eq!(rig.objects().await.len(), 6);
    let collected = rig.collect(false).await.unwrap();
    assert_eq!(collected, would);
    assert!(collected.removed_bytes > 100 * 10);
    assert_eq!(rig.objects().await.len(), 5);
    assert!(rig.objects().await.contains(&foreign.to_owned()));
    assert_eq!(rig.remote_keys().await, rig.keys(0..100, EXPIRY));
    assert_eq!(rig.collect(false).await.unwrap().removed, [] as [String; 0]);
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_removed_while_a_manifest_cannot_be_read() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    run.put(&rig.keys(0..100, EXPIRY)).await;
    run.snapshot().await;
    run.full_snapshot().await;
    rig.clock.advance(AGE * 2);
    let before = rig.objects().await;
    let key = "manifests/node-7.json";
    rig.storage.inner_put(key, "{}").await;
    let refused = rig.collect(false).await.unwrap_err();
    assert!(refused.to_string().contains(key), "{refused}");
    rig.storage.inner.delete(key).await.unwrap();
    rig.storage
        .goes_wrong(|name, key| (name == "get" && key.starts_with("manifests/")).then_some(DOWN));
    rig.collect(false).await.unwrap_err();
    assert_eq!(rig.objects().await, before);
    rig.storage.works();
    assert_eq!(rig.collect(false).await.unwrap().removed.len(), 1);
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_removed_while_a_node_has_objects_and_no_manifest() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    run.put(&rig.keys(0..100, EXPIRY)).await;
    run.snapshot().await;
    run.stop().await;
    let key = manifest_key(NODE);
    rig.storage.inner.delete(&key).await.unwrap();
    rig.clock.advance(AGE * 2);
    let before = rig.objects().await;
    assert!(!before.is_empty());
    for dry_run in [true, false] {
        let refused = rig.collect(dry_run).await.unwrap_err().to_string();
        assert!(refused.contains(&key), "{refused}");
    }
    assert_eq!(rig.objects().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_has_a_manifest_before_its_first_object() {
    let rig = Rig::new().await;
    rig.make_disk();
    // There are files before the storage answers for the first time.
    rig.storage.all(DOWN);
    let run = rig.start().await;
    run.put(&rig.keys(0..100, EXPIRY)).await;
    run.snapshots.request(false, far()).await.unwrap_err();
    assert_eq!(rig.remote().await, None);
    // The upload ends at the first object, as with a crash.
    rig.storage.all_of("put_file", DOWN);
    run.snapshots.request(false, far()).await.unwrap_err();
    assert_eq!(rig.remote().await.unwrap().files.len(), 0);
    rig.storage.works();
    run.snapshot().await;
    assert_eq!(rig.remote_keys().await, rig.keys(0..100, EXPIRY));
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_cannot_be_removed_does_not_keep_the_others() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    for round in 0..4 {
        run.put(&rig.keys(round * 10..round * 10 + 10, EXPIRY))
            .await;
        run.snapshot().await;
    }
    let deltas = rig.objects().await;
    run.full_snapshot().await;
    rig.clock.advance(AGE * 2);
    let stays = deltas[1].clone();
    let refused = stays.clone();
    rig.storage
        .goes_wrong(move |name, key| (name == "delete" && key == refused).then_some(DOWN));
    // Of one node, as it does it by itself.
    let collected = SnapshotStore::new(rig.storage.clone())
        .collect_garbage(Some(NODE), AGE, false)
        .await
        .unwrap();
    assert_eq!(collected.removed.len(), deltas.len() - 1);
    let failed: Vec<&String> = collected.failed.iter().map(|(key, _)| key).collect();
    assert_eq!(failed, [&stays]);
    rig.storage.works();
    assert_eq!(rig.collect(false).await.unwrap().removed, [stays]);
    let none = SnapshotStore::new(rig.storage.clone())
        .collect_garbage(Some(NodeId(7)), AGE, false)
        .await
        .unwrap();
    assert_eq!(none.seen, 0);
    run.stop().await;
}
