//! Uploads to storage that fails, is slow, or loses replies.

use futures_util::FutureExt;
use keydb_core::Incarnation;
use keydb_storage::testing::StorageFault::{ReplyLost, RequestLate};

use super::*;
use crate::disk::failpoint::{self, Action};

#[tokio::test(flavor = "multi_thread")]
async fn during_an_outage_rounds_go_on_the_disk_stays_bounded_and_then_everything_is_uploaded() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    run.put(&rig.keys(0..20_000, EXPIRY)).await;
    run.full_snapshot().await;
    let state_bytes = rig.file_bytes();
    rig.storage.all(DOWN);
    for round in 0..16 {
        // The same keys over and over: the state stays as large as it is.
        run.put(&rig.keys(round * 100..round * 100 + 5000, EXPIRY + round))
            .await;
        let refused = run.full_snapshot_refused().await;
        assert!(refused.contains("connection refused"), "{refused}");
        eventually(async || rig.file_bytes() <= 2 * state_bytes + 65_536).await;
    }
    let status = run.snapshots.status();
    assert_eq!(status.local.lsn, run.journal.committed());
    assert!(status.uploaded.lsn < status.local.lsn);
    let warnings = run.node.warnings.all();
    assert!(
        warnings
            .iter()
            .any(|text| text.contains("connection refused")),
        "{warnings:?}"
    );
    rig.storage.works();
    run.snapshot().await;
    assert_eq!(rig.remote_keys().await, run.keys());
    assert_eq!(run.node.warnings.all(), [] as [String; 0]);
    assert_eq!(
        run.snapshots.status().uploaded,
        run.snapshots.status().local
    );
    run.stop().await;
}

impl Run {
    /// Asks for full files, which are made but cannot be uploaded.
    async fn full_snapshot_refused(&self) -> String {
        let committed = self.journal.committed();
        let refused = self.snapshots.request(true, far()).await.unwrap_err();
        eventually(async || self.local().lsn >= committed).await;
        refused
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_that_is_down_from_the_start_holds_up_nothing_but_uploads() {
    let rig = Rig::new().await;
    rig.make_disk();
    rig.storage.all(DOWN);
    let run = rig.start().await;
    run.put(&rig.keys(0..100, EXPIRY)).await;
    run.full_snapshot_refused().await;
    run.put(&rig.keys(100..200, EXPIRY)).await;
    run.stop().await;
    assert_eq!(rig.remote().await, None);
    let run = rig.start().await;
    assert_eq!(run.keys(), rig.keys(0..200, EXPIRY));
    rig.storage.works();
    run.snapshot().await;
    assert_eq!(rig.remote_keys().await, rig.keys(0..200, EXPIRY));
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_that_are_lost_cost_an_attempt_and_nothing_else() {
    for (call, when) in [("put_file", 1), ("put_file", 3), ("put", 1), ("put", 2)] {
        let rig = Rig::new().await;
        let run = rig.start().await;
        run.put(&rig.keys(0..100, EXPIRY)).await;
        let mut calls = 0;
        rig.storage.goes_wrong(move |name, _| {
            calls += u32::from(name == call);
            (name == call && calls == when).then_some(ReplyLost)
        });
        for keys in [0..0, 100..200] {
            run.put(&rig.keys(keys, EXPIRY)).await;
            // The attempt that has lost a reply may be this request's.
            let _ = run.snapshots.request(true, far()).await;
        }
        run.snapshot().await;
        assert_eq!(
            rig.remote_keys().await,
            rig.keys(0..200, EXPIRY),
            "{call} {when}"
        );
        run.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_lands_late_does_not_replace_a_newer_one() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    run.put(&rig.keys(0..100, EXPIRY)).await;
    run.snapshot().await;
    let mut puts = 0;
    rig.storage.goes_wrong(move |name, key| {
        let is_manifest = name == "put" && key.starts_with("manifests/");
        puts += u32::from(is_manifest);
        (is_manifest && puts == 1).then_some(RequestLate)
    });
    run.put(&rig.keys(100..200, EXPIRY)).await;
    run.snapshot().await;
    let manifest = rig.remote().await.unwrap();
    assert_eq!(rig.storage.land().await, 0);
    assert_eq!(rig.remote().await.unwrap(), manifest);
    run.put(&rig.keys(200..300, EXPIRY)).await;
    run.snapshot().await;
    assert_eq!(rig.remote_keys().await, rig.keys(0..300, EXPIRY));
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_manifest_that_lands_first_is_seen_and_replaced() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    run.put(&rig.keys(0..100, EXPIRY)).await;
    run.snapshot().await;
    rig.storage.goes_wrong(|name, key| {
        (name == "put" && key.starts_with("manifests/")).then_some(RequestLate)
    });
    run.put(&rig.keys(100..200, EXPIRY)).await;
    run.snapshots.request(false, far()).await.unwrap_err();
    assert_eq!(rig.storage.land().await, 1);
    rig.storage.works();
    run.snapshot().await;
    assert_eq!(rig.remote_keys().await, rig.keys(0..200, EXPIRY));
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_hangs_holds_up_neither_rounds_nor_the_end_and_its_files_stay() {
    let rig = Rig::new().await;
    let run = Arc::new(rig.start().await);
    run.put(&rig.keys(0..1000, EXPIRY)).await;
    rig.storage.all_of("put_file", Hangs);
    let request = tokio::spawn({
        let run = Arc::clone(&run);
        async move { run.snapshots.request(true, far()).await.map(|_| ()) }
    });
    let uploading = async || run.snapshots.shared.state().uploading.clone();
    eventually(async || {
        uploading()
            .await
            .is_some_and(|manifest| kinds(&manifest) == (0, 4))
    })
    .await;
    for round in 0..3 {
        run.put(&rig.keys(round * 100..1000, EXPIRY + round)).await;
        let committed = run.journal.committed();
        run.snapshots.shared.request(true).unwrap();
        eventually(async || run.local().lsn >= committed).await;
    }
    // Those that are being uploaded, and the newest ones.
    eventually(async || rig.files().len() == 8).await;

    // A node that stops does not wait for it.
    run.snapshots.close(Instant::now()).await.unwrap();
    assert_eq!(request.await.unwrap(), Err(STOPPING.to_owned()));
    let run = Arc::into_inner(run).unwrap();
    let keys = run.keys();
    run.kill().await;
    rig.storage.works();
    let run = rig.start().await;
    assert_eq!(run.keys(), keys);
    assert_eq!(rig.files().len(), 4);
    run.snapshot().await;
    assert_eq!(rig.remote_keys().await, keys);
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_an_upload_that_hangs_gives_up_the_files_that_were_replaced() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    run.put(&rig.keys(0..1000, EXPIRY)).await;
    rig.storage.all_of("put_file", Hangs);
    run.snapshots.shared.request(true).unwrap();
    eventually(async || run.snapshots.shared.state().uploading.is_some()).await;
    run.put(&rig.keys(0..1000, EXPIRY + 1)).await;
    run.snapshots.shared.request(true).unwrap();
    eventually(async || rig.files().len() == 8).await;
    // The journal is to leave more room than any disk has.
    run.journal.reserve(1 << 60);
    let mut spaces = Vec::new();
    while let Ok(space) = run.journal.admit(100_000).await {
        spaces.push(space);
    }
    eventually(async || rig.files().len() == 4).await;
    let warnings = run.node.warnings.all();
    assert!(
        warnings.iter().any(|it| it.contains("the disk is full")),
        "{warnings:?}"
    );
    run.journal.reserve(0);
    rig.storage.works();
    run.snapshot().await;
    assert_eq!(rig.remote_keys().await, rig.keys(0..1000, EXPIRY + 1));
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_uploads_come_to_an_end_however_fast_their_files_are_replaced() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    rig.storage.all_of("put_file", Hangs);
    run.put(&rig.keys(0..1000, EXPIRY)).await;
    run.snapshots.shared.request(true).unwrap();
    eventually(async || {
        let uploading = run.snapshots.shared.state().uploading.clone();
        uploading.is_some_and(|manifest| kinds(&manifest) == (0, 4))
    })
    .await;
    let uploading = run.snapshots.shared.state().uploading.clone().unwrap();
    run.put(&rig.keys(0..1000, EXPIRY + 1)).await;
    run.snapshots.shared.request(true).unwrap();
    eventually(async || run.local().lsn > uploading.lsn).await;
    rig.storage.works();
    // First the one, then the other.
    eventually(async || rig.remote().await.is_some_and(|it| it.lsn >= uploading.lsn)).await;
    run.snapshot().await;
    assert_eq!(rig.remote_keys().await, rig.keys(0..1000, EXPIRY + 1));
    assert_eq!(
        rig.storage
            .inner
            .list("snapshots/", None)
            .await
            .unwrap()
            .objects
            .len(),
        8
    );
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_was_given_up_leaves_the_manifest_to_the_one_that_took_its_place() {
    let mut rig = Rig::new().await;
    let old = rig.start().await;
    let keys = rig.keys(0..100, EXPIRY);
    old.put(&keys).await;
    old.snapshot().await;
    old.put(&rig.keys(100..200, EXPIRY)).await;

    // The new disk takes over what object storage has, while the old one still runs.
    let old_dir = std::mem::replace(&mut rig.dir, tempfile::tempdir().unwrap());
    let data_dir = DataDir::open(&rig.root(), rig.map.cluster_id, NODE).unwrap();
    let adopted = Manifest {
        disk_id: data_dir.disk_id(),
        lsn: Lsn::ZERO,
        ..rig.remote().await.unwrap()
    };
    save(&data_dir, &adopted).unwrap();
    std::fs::create_dir(rig.root().join("snapshots")).unwrap();
    for file in &adopted.files {
        let from = old_dir.path().join("data/snapshots").join(&file.name);
        std::fs::copy(from, file_path(&data_dir, &file.name)).unwrap();
    }
    drop(data_dir);
    let new = rig.start().await;
    assert_eq!(new.keys(), keys);
    new.put(&rig.keys(200..300, EXPIRY)).await;
    new.snapshot().await;
    let manifest = rig.remote().await.unwrap();
    assert_eq!(manifest.disk_id, new.data_dir.disk_id());

    let refused = old.snapshots.request(false, far()).await.unwrap_err();
    assert!(refused.contains("it was replaced"), "{refused}");
    assert_eq!(rig.remote().await.unwrap(), manifest);
    old.kill().await;

    // Once it has full files of its own, it needs none of the old disk's.
    assert!(
        manifest
            .files
            .iter()
            .any(|file| file.disk_id != manifest.disk_id)
    );
    new.put(&rig.keys(300..400, EXPIRY)).await;
    new.full_snapshot().await;
    let manifest = rig.remote().await.unwrap();
    assert!(
        manifest
            .files
            .iter()
            .all(|file| file.disk_id == manifest.disk_id)
    );
    assert_eq!(rig.remote_keys().await, new.keys());
    assert_eq!(new.keys().len(), 300);
    new.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_is_not_this_nodes_or_is_damaged_is_not_replaced() {
    let rig = Rig::new().await;
    rig.make_disk();
    let key = manifest_key(NODE);
    let other = Manifest::new(
        keydb_core::ClusterId::from_bytes([1; 16]),
        1,
        NODE,
        Incarnation::from_bytes([2; 16]),
    );
    for bytes in [other.to_json(), b"{".to_vec()] {
        rig.storage.inner_put(&key, bytes.clone()).await;
        let run = rig.start().await;
        let refused = run.snapshots.request(false, far()).await.unwrap_err();
        assert!(refused.contains(&key), "{refused}");
        run.stop().await;
        assert_eq!(rig.storage.inner_get(&key).await, bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_uploaded_again_when_the_manifest_that_named_them_is_gone() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    run.put(&rig.keys(0..100, EXPIRY)).await;
    run.full_snapshot().await;
    let storage = &rig.storage.inner;
    storage.delete(&manifest_key(NODE)).await.unwrap();
    let gone = object_key(NODE, &run.local().files[1].name);
    storage.delete(&gone).await.unwrap();
    run.put(&rig.keys(100..200, EXPIRY)).await;
    run.snapshot().await;
    assert_eq!(rig.remote_keys().await, rig.keys(0..200, EXPIRY));
    run.stop().await;
}

#[tokio::test]
async fn an_object_that_was_removed_before_it_was_named_is_uploaded_again() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    run.put(&rig.keys(0..100, EXPIRY)).await;
    // Files get there, the manifest does not.
    rig.storage
        .goes_wrong(|name, key| (name == "put" && key.starts_with("manifests/")).then_some(DOWN));
    run.snapshots.shared.request(true).unwrap();
    let storage = &rig.storage.inner;
    let objects = async || storage.list("snapshots/", None).await.unwrap().objects;
    eventually(async || run.snapshots.shared.progress.borrow().uploads_failed.count > 0).await;
    let object = objects().await[0].key.clone();
    storage.delete(&object).await.unwrap();
    pass(Duration::from_secs(700)).await;
    rig.storage.works();
    run.snapshot().await;
    assert_eq!(rig.remote_keys().await, run.keys());

    // One that stood there for long is removed just after it was named.
    let object = object_key(NODE, &run.local().files[1].name);
    storage.delete(&object).await.unwrap();
    pass(Duration::from_secs(400)).await;
    run.snapshot().await;
    assert!(storage.head(&object).await.unwrap().is_some());
    run.stop().await;
}

/// Lets time go by, in the middle of which nothing is done.
async fn pass(duration: Duration) {
    tokio::time::pause();
    tokio::time::advance(duration).await;
    tokio::time::resume();
}

#[tokio::test]
async fn what_is_gone_from_object_storage_is_mended_from_the_disk_though_nothing_is_written() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    run.put(&rig.keys(0..100, EXPIRY)).await;
    run.full_snapshot().await;
    let manifest = run.local();
    let object = |index: usize| object_key(NODE, &manifest.files[index].name);
    let storage = &rig.storage.inner;
    for wait in [Duration::from_secs(301), Duration::from_secs(3601)] {
        storage.delete(&object(1)).await.unwrap();
        rig.storage.inner_put(&object(2), "too short").await;
        pass(wait).await;
        eventually(async || {
            let size = storage.head(&object(2)).await.unwrap().unwrap().size_bytes;
            size == manifest.files[2].size_bytes
                && storage.head(&object(1)).await.unwrap().is_some()
        })
        .await;
        assert_eq!(rig.remote_keys().await, run.keys());
    }
    assert_eq!(run.node.warnings.all(), [] as [String; 0]);

    // What is on the disk no more either is told of.
    storage.delete(&object(1)).await.unwrap();
    std::fs::remove_file(file_path(&run.data_dir, &manifest.files[1].name)).unwrap();
    pass(Duration::from_secs(3601)).await;
    eventually(async || {
        let warnings = run.node.warnings.all();
        warnings
            .iter()
            .any(|text| text.contains(&manifest.files[1].name))
    })
    .await;
    run.stop().await;
}

#[tokio::test]
async fn what_was_uploaded_long_ago_is_looked_for_just_before_it_is_named() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    run.put(&rig.keys(0..100, EXPIRY)).await;
    let mut files = 0;
    let storage = Arc::clone(&rig.storage.inner);
    let (note, objects_when_named) = std::sync::mpsc::channel();
    rig.storage.goes_wrong(move |name, key| {
        if name == "put" && key.starts_with("manifests/") {
            let objects = storage.list("snapshots/", None).now_or_never();
            note.send(objects.unwrap().unwrap().objects.len()).unwrap();
        }
        files += u32::from(name == "put_file");
        (name == "put_file" && files == 4).then_some(Hangs)
    });
    run.snapshots.shared.request(true).unwrap();
    let storage = &rig.storage.inner;
    let objects = async || storage.list("snapshots/", None).await.unwrap().objects;
    eventually(async || objects().await.len() == 3).await;
    let gone = objects().await[0].key.clone();
    storage.delete(&gone).await.unwrap();
    pass(Duration::from_secs(700)).await;
    rig.storage.release();
    eventually(async || rig.remote().await.is_some_and(|it| !it.files.is_empty())).await;
    assert_eq!(objects_when_named.try_iter().next(), Some(4));
    assert_eq!(rig.remote_keys().await, run.keys());
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_that_nobody_asked_for_and_that_comes_early_is_not_uploaded() {
    let mut rig = Rig::new().await;
    rig.recent_bytes_max = 64 << 10;
    let run = rig.start().await;
    run.put(&rig.keys(0..40_000, EXPIRY)).await;
    run.full_snapshot().await;
    let before = rig.remote().await.unwrap();
    run.put(&rig.keys(40_000..44_000, EXPIRY)).await;
    eventually(async || run.local().lsn > before.lsn).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(rig.remote().await.unwrap(), before);
    run.snapshot().await;
    assert_eq!(rig.remote_keys().await, run.keys());
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rounds_that_come_early_again_and_again_do_not_put_off_the_uploads() {
    let mut rig = Rig::new().await;
    rig.recent_bytes_max = 64 << 10;
    rig.interval = Duration::from_millis(400);
    let run = rig.start().await;
    run.put(&rig.keys(0..40_000, EXPIRY)).await;
    run.full_snapshot().await;
    let before = rig.remote().await.unwrap().lsn;
    for start in (40_000..).step_by(4000) {
        assert!(start < 440_000, "a hundred rounds, and no upload");
        // So much that a round is made at the next look.
        run.put(&rig.keys(start..start + 4000, EXPIRY)).await;
        let written = run.journal.committed();
        eventually(async || run.local().lsn >= written).await;
        if rig.remote().await.unwrap().lsn > before {
            break;
        }
    }
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_published_that_the_disk_could_not_write_down_before() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    run.put(&rig.keys(0..100, EXPIRY)).await;
    run.snapshot().await;
    // A manifest is on the disk, and the disk full before it is published.
    rig.storage.all_of("put_file", DOWN);
    run.put(&rig.keys(100..200, EXPIRY)).await;
    run.snapshots.request(false, far()).await.unwrap_err();
    let full = failpoint::arm("data_dir.write", &rig.root(), Action::Fail(28), 0);
    rig.storage.works();
    let failures = || run.snapshots.shared.progress.borrow().uploads_failed.count;
    let before = failures();
    eventually(async || failures() >= before + 2).await;
    drop(full);
    // What object storage has is what the disk knows of, so it is not taken for a copy of itself.
    run.kill().await;
    let run = rig.start().await;
    assert_eq!(run.keys(), rig.keys(0..200, EXPIRY));
    run.snapshot().await;
    assert_eq!(rig.remote_keys().await, run.keys());
    run.stop().await;
}

#[tokio::test]
async fn of_a_range_that_has_all_its_keys_files_that_are_nowhere_are_made_again() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    run.put(&rig.keys(0..100, EXPIRY)).await;
    run.full_snapshot().await;
    let lost = run.local().files[1].name.clone();
    std::fs::remove_file(rig.root().join("snapshots").join(&lost)).unwrap();
    let object = object_key(NODE, &lost);
    rig.storage.inner.delete(&object).await.unwrap();
    // A newer manifest is on its way when it is missed at the hourly look.
    rig.storage
        .goes_wrong(|name, key| (name == "put" && key.starts_with("manifests/")).then_some(DOWN));
    run.put(&rig.keys(100..200, EXPIRY)).await;
    run.snapshots.shared.request(false).unwrap();
    eventually(async || run.snapshots.shared.progress.borrow().uploads_failed.count > 0).await;
    pass(Duration::from_secs(4000)).await;
    let warned = || {
        let warnings = run.node.warnings.all();
        warnings
            .iter()
            .any(|text| text.contains("neither on the disk"))
    };
    eventually(async || warned()).await;
    // Its upload is no such look, and does not make up for it.
    rig.storage.works();
    let local = run.local().write_nonce;
    eventually(async || rig.remote().await.unwrap().write_nonce == local).await;
    assert!(warned());
    run.snapshot().await;
    run.snapshot().await;
    assert!(run.local().file(&lost).is_none());
    eventually(async || !warned()).await;
    run.kill().await;
    let run = rig.start().await;
    assert_eq!(run.keys(), rig.keys(0..200, EXPIRY));
    run.stop().await;
}
