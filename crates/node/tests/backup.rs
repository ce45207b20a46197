//! Backups of a cluster, as a node makes them.

#![allow(clippy::unwrap_used, reason = "a test that fails here has failed")]

mod support;

use std::{path::PathBuf, sync::Arc};

use keydb_core::{
    Backup, ClusterMap, Durability, Manifest, OperationId, Origin, Phase, Target, UnixMillis,
};
use keydb_node::NodeConfig;
use keydb_proto::{
    error_code,
    shard::{BackupReply, BackupRequest, ErrorCode, admin_service_client::AdminServiceClient},
};
use keydb_storage::{
    BACKUP_KEY, BACKUP_RECORD_KEY, LocalStorage, MAP_KEY, ObjectStorage, SnapshotStore, StorageUrl,
    manifest_key, object_key,
    testing::{DOWN, StorageFault},
};
use support::{cluster::*, *};
use tempfile::TempDir;
use tonic::{Status, transport::Channel};
use xxhash_rust::xxh3::xxh3_64;

/// One caller, and where it wants its backups.
struct Caller {
    admin: AdminServiceClient<Channel>,
    request: BackupRequest,
}

impl Caller {
    async fn of(node: &RunningNode, map: &ClusterMap, to: &TempDir, name: &str) -> Self {
        let at = format!("http://{}", node.address);
        Self {
            admin: AdminServiceClient::connect(at).await.unwrap(),
            request: BackupRequest {
                cluster_id: map.cluster_id.to_bytes().to_vec().into(),
                operation_id: OperationId::random().to_bytes().to_vec().into(),
                to: format!("file://{}", to.path().display()),
                name: name.to_owned(),
                check: false,
            },
        }
    }

    /// One call, which says how far it is.
    async fn call(&self) -> Result<BackupReply, Status> {
        let reply = self.admin.clone().backup(self.request.clone()).await;
        Ok(reply?.into_inner())
    }

    async fn check(&self) -> Result<BackupReply, Status> {
        let request = BackupRequest {
            check: true,
            ..self.request.clone()
        };
        Ok(self.admin.clone().backup(request).await?.into_inner())
    }

    /// Calls until the backup is complete.
    async fn done(&self) -> BackupReply {
        loop {
            let reply = self.call().await.unwrap();
            if reply.complete {
                return reply;
            }
        }
    }

    #[track_caller]
    fn refused(result: Result<BackupReply, Status>, code: ErrorCode, words: &str) {
        let status = result.unwrap_err();
        assert_eq!(error_code(&status), Some(code), "{status:?}");
        let message = status.message();
        assert!(message.contains(words), "{words:?} is not in {message:?}");
    }
}

fn dir(to: &TempDir, name: &str) -> PathBuf {
    to.path().canonicalize().unwrap().join(name)
}

async fn read(to: &TempDir, name: &str, key: &str) -> Option<bytes::Bytes> {
    let storage = LocalStorage::open(&dir(to, name)).unwrap();
    Some(storage.get(key).await.unwrap()?.bytes)
}

/// Checks that everything is there that a complete backup lists and that a node needs, and nothing else.
async fn check_whole(to: &TempDir, name: &str, map: &ClusterMap) -> (Backup, Manifest) {
    let backup = Backup::from_json(&read(to, name, BACKUP_KEY).await.unwrap()).unwrap();
    assert!(backup.complete);
    assert_eq!((&*backup.name, backup.cluster_id), (name, map.cluster_id));
    for object in &backup.objects {
        let bytes = read(to, name, &object.key).await.unwrap();
        let found = (bytes.len() as u64, xxh3_64(&bytes));
        assert_eq!(found, (object.size_bytes, object.xxh3), "{}", object.key);
    }
    let stored = read(to, name, MAP_KEY).await.unwrap();
    let stored = ClusterMap::from_json(&stored).unwrap();
    assert_eq!((backup.lineage, backup.epoch), stored.version());
    let storage = LocalStorage::open(&dir(to, name)).unwrap();
    let listed = storage.list("", None).await.unwrap().objects;
    let mut listed: Vec<_> = listed.into_iter().map(|object| object.key).collect();
    listed.retain(|key| ![BACKUP_KEY, BACKUP_RECORD_KEY].contains(&&**key));
    assert!(listed.iter().eq(backup.objects.iter().map(|it| &it.key)));
    let store = SnapshotStore::new(Arc::new(storage));
    let node = map.nodes[0].id;
    let (manifest, _) = store.manifest(map.cluster_id, node).await.unwrap().unwrap();
    for file in &manifest.files {
        let read = store.read(node, file, Origin::from(map), |_| Ok(()));
        read.await.unwrap();
    }
    (backup, manifest)
}

fn is_snapshot(name: &str, key: &str) -> bool {
    name == "get_range" && key.starts_with("snapshots/")
}

/// After so many reads of snapshot files no more of them ends.
fn hangs_after(count: usize) -> impl FnMut(&str, &str) -> Option<StorageFault> {
    let mut reads = 0;
    move |name, key| {
        reads += usize::from(is_snapshot(name, key));
        (is_snapshot(name, key) && reads > count).then_some(StorageFault::Hangs)
    }
}

#[tokio::test]
async fn a_backup_has_what_object_storage_has_and_is_made_once() {
    let (cluster, node, mut client, map) =
        Cluster::with_snapshot(Durability::Journal, 0..1000, true).await;
    cluster.put(&mut client, &map, 1000..1100).await;
    cluster.snapshot(&mut client, false).await;
    let to = tempfile::tempdir().unwrap();
    let caller = Caller::of(&node, &map, &to, "monday").await;
    assert!(!caller.check().await.unwrap().complete);
    assert!(!dir(&to, "monday").exists());
    let made = caller.done().await;
    assert!(!made.existed);
    assert_eq!(made.operation_id, caller.request.operation_id);
    let (backup, manifest) = check_whole(&to, "monday", &map).await;
    assert_eq!(made.complete_to_unix_ms, manifest.complete_to_ms.0);
    assert_eq!((made.entries, made.objects), (1100, 9));
    assert_eq!(backup.nodes[0].ranges, 8);
    assert_eq!(backup.created_ms, START);

    // A lost reply: the same call finds it made. Another one finds it there.
    let reads = cluster.storage.seen("get_range");
    for (caller, is_own) in [
        (&caller, true),
        (&Caller::of(&node, &map, &to, "monday").await, false),
    ] {
        let again = caller.done().await;
        assert!(again.existed || is_own);
        assert_eq!(again.operation_id, made.operation_id);
        assert!(caller.check().await.unwrap().complete);
    }
    assert_eq!(cluster.storage.seen("get_range"), reads);
    node.stop().await;
}

#[tokio::test]
async fn a_backup_that_a_killed_node_had_begun_is_gone_on_with() {
    let (cluster, node, _, map) = Cluster::with_snapshot(Durability::Journal, 0..1000, true).await;
    let to = tempfile::tempdir().unwrap();
    let caller = Caller::of(&node, &map, &to, "monday").await;
    cluster.storage.goes_wrong(hangs_after(3));
    let begun = caller.call().await.unwrap();
    assert_eq!((begun.complete, begun.objects), (false, 8));
    assert_eq!(begun.objects_done, 3);
    // Somebody else's call for it waits as well.
    let other = Caller::of(&node, &map, &to, "monday").await;
    assert_eq!(other.call().await.unwrap().objects_done, 3);
    let tuesday = Caller::of(&node, &map, &to, "tuesday").await.call().await;
    Caller::refused(tuesday, ErrorCode::Overloaded, "3 of 8 objects");
    node.kill().await;
    assert!(read(&to, "monday", BACKUP_KEY).await.is_none());
    cluster.storage.works();

    let (node, _client) = cluster.loaded().await;
    let before = cluster.storage.seen("get_range");
    let caller = Caller::of(&node, &map, &to, "monday").await;
    let made = caller.done().await;
    assert!(!made.existed);
    assert_eq!(cluster.storage.seen("get_range") - before, 5);
    check_whole(&to, "monday", &map).await;
    node.stop().await;
}

#[tokio::test]
async fn what_is_not_right_at_the_destination_is_copied_again() {
    let (cluster, node, _, map) = Cluster::with_snapshot(Durability::Journal, 0..1000, true).await;
    let to = tempfile::tempdir().unwrap();
    let caller = Caller::of(&node, &map, &to, "monday").await;
    cluster.storage.goes_wrong(hangs_after(3));
    assert_eq!(caller.call().await.unwrap().objects_done, 3);
    cluster.storage.all_of("get_range", DOWN);
    Caller::refused(
        caller.call().await,
        ErrorCode::Conflict,
        "connection refused",
    );
    // Of these three the record has the checksums.
    let files = files(&dir(&to, "monday"));
    let copied = |path: &&PathBuf| path.display().to_string().contains("/snapshots+");
    let copied: Vec<_> = files.iter().filter(copied).collect();
    assert_eq!(copied.len(), 3);
    std::fs::remove_file(copied[0]).unwrap();
    let cut = std::fs::read(copied[1]).unwrap();
    let name = copied[1].file_name().unwrap().to_str().unwrap();
    std::fs::remove_file(copied[1]).unwrap();
    let storage = LocalStorage::open(&dir(&to, "monday")).unwrap();
    let short = bytes::Bytes::copy_from_slice(&cut[..100]);
    let key = name.replace('+', "/");
    let put = storage.put_if_absent(&key, short);
    let _ = put.await.unwrap();
    cluster.storage.works();
    let before = cluster.storage.seen("get_range");
    Caller::of(&node, &map, &to, "monday").await.done().await;
    assert_eq!(cluster.storage.seen("get_range") - before, 7);
    check_whole(&to, "monday", &map).await;
    node.stop().await;
}

#[tokio::test]
async fn objects_that_garbage_collection_takes_meanwhile_are_not_missed() {
    let (cluster, node, mut client, map) =
        Cluster::with_snapshot(Durability::Journal, 0..1000, true).await;
    let to = tempfile::tempdir().unwrap();
    let caller = Caller::of(&node, &map, &to, "monday").await;
    cluster.storage.goes_wrong(hangs_after(2));
    assert_eq!(caller.call().await.unwrap().objects_done, 2);
    let old = cluster.manifest().await;
    cluster.put(&mut client, &map, 1000..1500).await;
    cluster.snapshot(&mut client, true).await;
    for file in &old.files {
        let key = object_key(old.node, &file.name);
        cluster.storage.inner.delete(&key).await.unwrap();
    }
    cluster.storage.works();
    assert_eq!(caller.done().await.entries, 1500);
    let (_, manifest) = check_whole(&to, "monday", &map).await;
    assert_eq!(manifest, cluster.manifest().await);
    node.stop().await;
}

#[tokio::test]
async fn an_object_that_a_manifest_names_and_nobody_has_is_named() {
    let (cluster, node, _, map) = Cluster::with_snapshot(Durability::Journal, 0..1000, true).await;
    let manifest = cluster.manifest().await;
    let key = object_key(manifest.node, &manifest.files[2].name);
    let bytes = cluster.storage.inner_get(&key).await;
    cluster.storage.inner.delete(&key).await.unwrap();
    let to = tempfile::tempdir().unwrap();
    let caller = Caller::of(&node, &map, &to, "monday").await;
    Caller::refused(caller.call().await, ErrorCode::Conflict, &key);
    let mut damaged = bytes.to_vec();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    cluster.storage.inner_put(&key, damaged).await;
    let caller = Caller::of(&node, &map, &to, "monday").await;
    Caller::refused(caller.call().await, ErrorCode::Conflict, &key);
    assert!(read(&to, "monday", BACKUP_KEY).await.is_none());
    // It goes on when that is put right.
    cluster.storage.inner_put(&key, bytes).await;
    Caller::of(&node, &map, &to, "monday").await.done().await;
    check_whole(&to, "monday", &map).await;
    node.stop().await;
}

#[tokio::test]
async fn a_map_that_changes_meanwhile_is_gone_by_and_scaling_ends_the_work() {
    let (cluster, node, _, map) = Cluster::with_snapshot(Durability::Journal, 0..1000, true).await;
    let to = tempfile::tempdir().unwrap();
    let caller = Caller::of(&node, &map, &to, "monday").await;
    cluster.storage.goes_wrong(hangs_after(2));
    caller.call().await.unwrap();
    let changed = cluster.world.edit(|map| map.nodes[0].zone = "a".to_owned());
    let changed = changed.await;
    cluster.storage.works();
    caller.done().await;
    let (backup, _) = check_whole(&to, "monday", &map).await;
    assert_eq!(backup.epoch, changed.epoch);

    let operation_id = OperationId::random();
    let caller = Caller::of(&node, &map, &to, "tuesday").await;
    cluster.storage.goes_wrong(hangs_after(2));
    caller.call().await.unwrap();
    let target = Target {
        operation_id,
        addresses: vec![map.nodes[0].address.clone(), "127.0.0.1:1".to_owned()],
        phase: Phase::Copy,
        started_ms: UnixMillis(1),
        moves: None,
        unknown: Default::default(),
    };
    let begun = cluster.world.edit(|map| map.target = Some(target.clone()));
    begun.await;
    cluster.storage.works();
    let ended = async {
        loop {
            match caller.call().await {
                Ok(reply) => assert!(!reply.complete),
                Err(status) => return Err(status),
            }
        }
    };
    Caller::refused(ended.await, ErrorCode::Conflict, &operation_id.to_string());
    let other = Caller::of(&node, &map, &to, "wednesday").await;
    Caller::refused(other.check().await, ErrorCode::Conflict, "is under way");
    assert!(!dir(&to, "wednesday").exists());
    node.stop().await;
}

#[tokio::test]
async fn a_place_that_cannot_be_is_refused_before_anything_is_written() {
    let cluster = Cluster::created(Durability::Journal).await;
    let own = tempfile::tempdir().unwrap();
    let config = NodeConfig {
        storage_url: Some(StorageUrl::local(own.path()).unwrap()),
        ..cluster.config()
    };
    let (node, mut client) = cluster.loaded_with(config).await;
    cluster.snapshot(&mut client, false).await;
    let map = cluster.world.map().await;
    let to = tempfile::tempdir().unwrap();
    let mut caller = Caller::of(&node, &map, &own, "monday").await;
    for (url, name, words) in [
        (caller.request.to.clone(), "monday", "the cluster's own"),
        (
            format!("{}/missing", caller.request.to),
            "monday",
            "has no directory",
        ),
        ("ftp://host/x".to_owned(), "monday", "known kind"),
        ("s3://B_d".to_owned(), "monday", "bucket's name"),
        (format!("file://{}", to.path().display()), "a/b", "a slash"),
    ] {
        (caller.request.to, caller.request.name) = (url, name.to_owned());
        Caller::refused(caller.check().await, ErrorCode::InvalidRequest, words);
        Caller::refused(caller.call().await, ErrorCode::InvalidRequest, words);
    }
    assert_eq!(files(own.path()).len() + files(to.path()).len(), 0);

    // Something is there that is no backup.
    let storage = LocalStorage::create(&dir(&to, "prod")).unwrap();
    let key = manifest_key(map.nodes[0].id);
    let put = storage.put_if_absent(&key, "{}".into());
    let _ = put.await.unwrap();
    let caller = Caller::of(&node, &map, &to, "prod").await;
    Caller::refused(
        caller.call().await,
        ErrorCode::InvalidRequest,
        "is not empty",
    );
    // Another cluster's backup was begun there.
    let others = ClusterMap::create(&keydb_core::NewCluster {
        addresses: vec!["a:1".to_owned()],
        range_count: 4,
        durability: Durability::Journal,
    });
    let others = Backup::new("x", OperationId::random(), &others.unwrap(), START);
    let storage = LocalStorage::create(&dir(&to, "x")).unwrap();
    let put = storage.put_if_absent(BACKUP_RECORD_KEY, others.to_json().into());
    let _ = put.await.unwrap();
    let caller = Caller::of(&node, &map, &to, "x").await;
    Caller::refused(caller.call().await, ErrorCode::InvalidRequest, "of cluster");
    node.stop().await;
}

#[tokio::test]
async fn where_nothing_is_kept_there_is_nothing_to_back_up() {
    let (_world, map, node, _client) = one_node().await;
    let to = tempfile::tempdir().unwrap();
    let caller = Caller::of(&node, &map, &to, "monday").await;
    let why = "durability is memory";
    Caller::refused(caller.check().await, ErrorCode::NotPossible, why);
    Caller::refused(caller.call().await, ErrorCode::Conflict, why);
    assert_eq!(files(to.path()), [] as [PathBuf; 0]);
    node.stop().await;
}
