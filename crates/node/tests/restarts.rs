//! What a start finds that is not what the last stop left: other disks, older copies, damage; and what was begun and not ended.

#![allow(clippy::unwrap_used, reason = "a test that fails here has failed")]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use keydb_core::{
    ClusterMap, Durability, Fingerprint, Incarnation, NodeId, OperationId, SnapshotKind,
};
use keydb_node::NodeError;
use keydb_proto::shard::{OpenRangeRequest, RangeState, RefusalCode};
use keydb_storage::{
    MAP_KEY, ObjectStorage, manifest_key, object_key,
    testing::{DOWN, StorageFault::Hangs},
};
use support::{cluster::*, *};

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for path in files(from) {
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_dir(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// Why a start ends.
async fn refusal(cluster: &Cluster) -> NodeError {
    cluster.start().await.ended().await.unwrap_err()
}

/// Has a range's file vanish from the disk and from object storage; returns a way to bring the object back.
async fn lose_file(cluster: &Cluster, index: usize) -> (u32, String, bytes::Bytes) {
    let (range, _, key) = cluster.lose_local_file(index).await;
    let object = cluster.storage.inner_get(&key).await;
    cluster.storage.delete(&key).await.unwrap();
    (range, key, object)
}

async fn closed(client: &Client) -> Vec<(u32, String)> {
    let closed = ranges(client, RangeState::Closed).await.into_iter();
    closed.map(|range| (range.range_id, range.reason)).collect()
}

#[tokio::test]
async fn an_earlier_disk_that_turns_up_again_is_refused_and_object_storage_keeps_what_is_newer() {
    for durability in [Durability::Snapshot, Durability::Journal] {
        let (cluster, node, _, map) = Cluster::with_snapshot(durability, 0..100, false).await;
        node.kill().await;
        let earlier = cluster.data_dir().with_file_name("earlier");
        fs::rename(cluster.data_dir(), &earlier).unwrap();
        let give_up = async || {
            if durability == Durability::Journal {
                cluster.world.edit(|map| map.nodes[0].disk_id = None).await;
            }
        };

        // While no other disk has made a snapshot, it has the newest that there is.
        give_up().await;
        let node = cluster.start().await;
        node.loaded().await;
        node.kill().await;
        let barren = cluster.data_dir().with_file_name("barren");
        fs::rename(cluster.data_dir(), &barren).unwrap();
        for disk in [&earlier, &barren, &earlier] {
            fs::rename(disk, cluster.data_dir()).unwrap();
            give_up().await;
            let (node, mut client) = cluster.loaded().await;
            assert_eq!(cluster.present(&mut client, &map, 0..100).await, 100);
            node.kill().await;
            fs::rename(cluster.data_dir(), disk).unwrap();
        }
        give_up().await;

        let (node, mut client) = cluster.loaded().await;
        cluster.put(&mut client, &map, 100..200).await;
        cluster.snapshot(&mut client, false).await;
        node.kill().await;
        let later = cluster.data_dir().with_file_name("later");
        fs::rename(cluster.data_dir(), &later).unwrap();
        fs::rename(&earlier, cluster.data_dir()).unwrap();
        give_up().await;
        let newer = cluster.manifest().await;
        // The storage is asked until it answers.
        let hides = |_: &str, key: &str| key.contains("manifests/").then_some(DOWN);
        cluster.storage.goes_wrong(hides);
        let mut node = cluster.start().await;
        let asked = cluster.storage.failed();
        eventually(async || cluster.storage.failed() > asked + 1).await;
        node.ask_to_stop();
        node.ended().await.unwrap();
        cluster.storage.works();
        let error = refusal(&cluster).await;
        assert!(matches!(error, NodeError::EarlierDisk { .. }), "{error}");
        let later_id = newer.disk_id.to_string();
        for words in [
            &*later_id,
            "an earlier disk of node 0",
            "empty data directory",
        ] {
            assert!(error.to_string().contains(words), "{words:?} in {error}");
        }
        assert_eq!(cluster.manifest().await, newer);

        fs::remove_dir_all(cluster.data_dir()).unwrap();
        let (node, mut client) = cluster.loaded().await;
        assert_eq!(cluster.present(&mut client, &map, 0..200).await, 200);
        node.stop().await;
    }
}

/// A cluster whose node was stopped and has a copy of its disk from before its last keys, 100 to 199, in the disk's place; and where the
/// disk itself is.
async fn with_an_earlier_copy() -> (Cluster, ClusterMap, PathBuf) {
    let (cluster, node, _, map) = Cluster::with_snapshot(Durability::Journal, 0..100, false).await;
    node.stop().await;
    let copy = cluster.data_dir().with_file_name("copy");
    copy_dir(&cluster.data_dir(), &copy);

    let (node, mut client) = cluster.loaded().await;
    cluster.put(&mut client, &map, 100..200).await;
    cluster.snapshot(&mut client, false).await;
    node.stop().await;
    let newest = cluster.data_dir().with_file_name("newest");
    fs::rename(cluster.data_dir(), &newest).unwrap();
    fs::rename(&copy, cluster.data_dir()).unwrap();
    (cluster, map, newest)
}

#[tokio::test]
async fn a_copy_of_the_disk_from_an_earlier_time_is_refused() {
    let (cluster, map, newest) = with_an_earlier_copy().await;
    let error = refusal(&cluster).await;
    assert!(matches!(error, NodeError::RolledBack { .. }), "{error}");

    fs::remove_dir_all(cluster.data_dir()).unwrap();
    fs::rename(&newest, cluster.data_dir()).unwrap();
    let (node, mut client) = cluster.loaded().await;
    assert_eq!(cluster.present(&mut client, &map, 0..200).await, 200);
    node.stop().await;
}

#[tokio::test]
async fn a_copy_of_the_disk_that_is_found_out_late_ends_the_node_and_object_storage_keeps_what_is_newer()
 {
    let (cluster, map, _) = with_an_earlier_copy().await;
    let key = manifest_key(NodeId(0));
    let newest = cluster.storage.inner_get(&key).await;

    let manifests = key.clone();
    cluster
        .storage
        .goes_wrong(move |_, key| (key == manifests).then_some(DOWN));
    let (node, mut client) = cluster.loaded().await;
    // It gets further than the disk whose copy it is ever was.
    for start in [1000, 2000, 3000, 4000] {
        cluster.put(&mut client, &map, start..start + 500).await;
    }
    cluster.storage.works();
    let error = node.ended().await.unwrap_err();
    assert!(matches!(error, NodeError::RolledBack { .. }), "{error}");
    assert_eq!(cluster.storage.inner_get(&key).await, newest);
}

#[tokio::test]
async fn a_start_does_not_go_back_to_a_stored_map_that_is_older_than_its_own() {
    let (cluster, node, mut client, map) = Cluster::new(Durability::Journal).await;
    cluster.put(&mut client, &map, 0..100).await;
    let older = cluster.storage.inner_get(MAP_KEY).await;
    let newer = cluster
        .world
        .edit(|map| map.nodes[0].zone = "z".to_owned())
        .await;
    let epoch = async |client: &Client| status(&mut client.clone()).await.header.unwrap().epoch;
    eventually(async || epoch(&client).await == newer.epoch).await;
    node.stop().await;
    cluster.storage.inner_put(MAP_KEY, older).await;

    let (node, mut client) = cluster.loaded().await;
    assert_eq!(epoch(&client).await, newer.epoch);
    assert!(warns(&client, &["older cluster map"]).await);
    assert_eq!(cluster.present(&mut client, &map, 0..200).await, 100);
    node.stop().await;
    let saved = fs::read(cluster.data_dir().join("map.json")).unwrap();
    assert_eq!(
        ClusterMap::from_json(&saved).unwrap().version(),
        newer.version()
    );
}

#[tokio::test]
async fn a_node_that_was_a_member_starts_by_its_saved_map_when_the_stored_one_is_gone() {
    let (cluster, node, mut client, map) = Cluster::new(Durability::Journal).await;
    cluster.put(&mut client, &map, 0..100).await;
    node.stop().await;
    cluster.storage.delete(MAP_KEY).await.unwrap();
    let (node, mut client) = cluster.loaded().await;
    assert_eq!(cluster.present(&mut client, &map, 0..200).await, 100);
    cluster.put(&mut client, &map, 100..200).await;
    assert!(warns(&client, &["no cluster map any more", "keydb recover --map"]).await);
    // When it is back, nothing is left of that.
    let saved = fs::read(cluster.data_dir().join("map.json")).unwrap();
    cluster.storage.inner_put(MAP_KEY, saved).await;
    eventually(async || status(&mut client.clone()).await.warnings.is_empty()).await;
    assert_eq!(cluster.present(&mut client, &map, 0..200).await, 200);
    node.stop().await;
}

#[tokio::test]
async fn a_saved_map_that_names_another_disk_is_not_gone_by() {
    let (cluster, node, mut client, map) = Cluster::new(Durability::Journal).await;
    cluster.put(&mut client, &map, 0..100).await;
    node.stop().await;
    let path = cluster.data_dir().join("map.json");
    let mut saved = ClusterMap::from_json(&fs::read(&path).unwrap()).unwrap();
    saved.epoch += 5;
    saved.nodes[0].disk_id = Some(Incarnation::from_bytes([9; 16]));
    fs::write(&path, saved.to_json()).unwrap();
    let (node, mut client) = cluster.loaded().await;
    assert_eq!(cluster.present(&mut client, &map, 0..200).await, 100);
    node.stop().await;
}

#[tokio::test]
async fn a_disk_that_has_lost_everything_but_its_name_is_refused() {
    for durability in [Durability::Snapshot, Durability::Journal] {
        let (cluster, node, ..) = Cluster::with_snapshot(durability, 0..100, false).await;
        node.stop().await;
        for path in files(&cluster.data_dir()) {
            if path.is_dir() {
                fs::remove_dir_all(path).unwrap();
            } else if !path.ends_with("node.json") {
                fs::remove_file(path).unwrap();
            }
        }
        let error = refusal(&cluster).await.to_string();
        for words in ["manifest.json", "it is missing", "has made snapshots"] {
            assert!(error.contains(words), "{words:?} in {error}");
        }
    }
}

#[tokio::test]
async fn a_new_disk_does_not_take_objects_without_their_manifest_for_a_node_that_never_had_any() {
    for durability in [Durability::Snapshot, Durability::Journal] {
        let (cluster, node, _, map) = Cluster::with_snapshot(durability, 0..100, false).await;
        node.stop().await;
        cluster.lose_disk().await;
        let key = manifest_key(NodeId(0));
        let manifest = cluster.storage.inner_get(&key).await;
        cluster.storage.delete(&key).await.unwrap();
        let error = refusal(&cluster).await.to_string();
        for words in [&*key, "snapshots/node-0/", "it was removed"] {
            assert!(error.contains(words), "{words:?} in {error}");
        }
        // Where its bucket gives it back, the keys are there.
        cluster.storage.inner_put(&key, manifest).await;
        let (node, mut client) = cluster.loaded().await;
        assert_eq!(cluster.present(&mut client, &map, 0..100).await, 100);
        node.stop().await;
    }
}

/// More fingerprints with the same top 64 bits than fit; no hash would ever bring them about.
fn crowd(map: &ClusterMap) -> Vec<Fingerprint> {
    let crowded = (0..60_000).map(|low| Fingerprint::from_parts(5, low));
    crowded.chain(keys(map, 0..100)).collect()
}

#[tokio::test]
async fn after_keys_that_a_range_could_not_take_the_others_are_served_by_the_next_start() {
    for snapshot in [false, true] {
        let (cluster, node, mut client, map) = Cluster::new(Durability::Journal).await;
        let crowd = crowd(&map);
        let put = cluster.world.put_request(&map, &crowd, 60);
        let mut each = cluster.world.put_request(&map, &crowd[30_000..], 0);
        let expiry = (START.0 / 1000) as u32 + 60;
        each.expiries = expiry.to_le_bytes().repeat(crowd.len() - 30_000).into();
        let claim = cluster
            .world
            .claim_request(&map, &crowd, OperationId::random(), 0);
        let refused = [
            client.put(put).await.unwrap().into_inner().refused,
            client.put(each).await.unwrap().into_inner().refused,
            client.claim(claim).await.unwrap().into_inner().refused,
        ];
        for refused in refused {
            assert_eq!(refused.len(), 1);
            assert_eq!(refused[0].code(), RefusalCode::Full);
        }
        let stored = cluster.world.get(&mut client, &map, &crowd).await;
        assert!(stored[..60_000].contains(&true) && stored[..60_000].contains(&false));
        if snapshot {
            cluster.snapshot(&mut client, false).await;
        }

        // Which of them fit depends on the order in which they come. What does not fit is not forgotten either.
        node.kill().await;
        let (node, client) = cluster.loaded().await;
        let found = closed(&client).await;
        if let [(range, reason)] = &found[..] {
            assert_eq!(*range, 0);
            assert!(reason.contains("lie close together"), "{reason}");
        } else {
            let again = cluster.world.get(&mut client.clone(), &map, &crowd).await;
            assert_eq!(again, stored);
        }
        let others = &crowd[60_000..];
        let get = cluster.world.get_request(&map, others);
        let reply = client.clone().get(get).await.unwrap().into_inner();
        assert_eq!(reply.refused.len(), found.len());
        let in_range_0 = |key: &&Fingerprint| map.range_index_of(key.top()) == 0;
        let refused = found.len() * others.iter().filter(in_range_0).count();
        let present: u32 = reply.present.iter().map(|byte| byte.count_ones()).sum();
        assert_eq!(present as usize, others.len() - refused);
        node.kill().await;
        let (node, client) = cluster.loaded().await;
        assert_eq!(closed(&client).await, found);
        node.stop().await;
    }
}

#[tokio::test]
async fn without_the_file_of_answers_a_node_has_all_its_keys_and_repeats_are_unknown() {
    for damage in [true, false] {
        let (cluster, node, mut client, map) = Cluster::new(Durability::Journal).await;
        let world = &cluster.world;
        let (old, new) = (OperationId::from_name("old"), OperationId::from_name("new"));
        let first = keys(&map, 0..50);
        assert_eq!(
            world.claim(&mut client, &map, &first, old, 0).await,
            "F".repeat(50)
        );
        node.stop().await;
        // This stop cuts the journal: what the first claim was told is in the file alone.
        let (node, mut client) = cluster.loaded().await;
        cluster.snapshot(&mut client, true).await;
        let second = keys(&map, 50..100);
        assert_eq!(
            world.claim(&mut client, &map, &second, new, 0).await,
            "F".repeat(50)
        );
        node.kill().await;
        let journal = files(&cluster.data_dir().join("journal"));
        assert!(!journal.is_empty());
        let path = cluster.data_dir().join("answers");
        if damage {
            let mut bytes = fs::read(&path).unwrap();
            bytes[40] ^= 1;
            fs::write(&path, bytes).unwrap();
        } else {
            fs::remove_file(&path).unwrap();
        }

        let (node, mut client) = cluster.loaded().await;
        assert_eq!(cluster.present(&mut client, &map, 0..100).await, 100);
        assert_eq!(
            world.claim(&mut client, &map, &second, new, 1).await,
            "F".repeat(50)
        );
        let repeat = world.claim(&mut client, &map, &first, old, 1).await;
        assert!(
            repeat == "U".repeat(50) || repeat == "F".repeat(50),
            "{repeat}"
        );
        node.stop().await;
    }
}

#[tokio::test]
async fn what_only_the_journal_has_of_a_closed_range_is_there_when_its_file_is_back() {
    for lost in [false, true] {
        let (cluster, node, mut client, map) =
            Cluster::with_snapshot(Durability::Journal, 0..1000, true).await;
        cluster.put(&mut client, &map, 1000..1500).await;
        node.kill().await;
        let (range, key, object) = lose_file(&cluster, 3).await;

        let (node, mut client) = cluster.loaded().await;
        assert_eq!(closed(&client).await[0].0, range);
        // A full one makes the records superfluous, and the journal is cut behind it.
        cluster.snapshot(&mut client, lost).await;
        node.stop().await;
        cluster.storage.inner_put(&key, object).await;
        let (node, mut client) = cluster.loaded().await;
        assert_eq!(closed(&client).await, []);
        assert_eq!(cluster.present(&mut client, &map, 0..2000).await, 1500);
        node.stop().await;
    }
}

#[tokio::test]
async fn what_is_acknowledged_while_other_ranges_are_loading_is_in_the_last_snapshot() {
    let (cluster, node, _, map) = Cluster::with_snapshot(Durability::Snapshot, 0..1000, true).await;
    node.stop().await;
    cluster.lose_local_file(3).await;
    cluster.storage.all_of("get_range", Hangs);
    let losses = async || cluster.world.map().await.nodes[0].loss_count;

    // Asked to stop it keeps them; killed it says that it has lost them.
    for (numbers, killed) in [(1000..1100, false), (1100..1200, true)] {
        let node = cluster.start().await;
        let mut client = node.serving().await;
        let request = cluster
            .world
            .put_request(&map, &keys(&map, numbers), 86_400);
        eventually(async || {
            let mut client = client.clone();
            let refused = client
                .put(request.clone())
                .await
                .unwrap()
                .into_inner()
                .refused;
            refused.len() <= 1
        })
        .await;
        let status = status(&mut client).await;
        assert_eq!(status.ranges[3].state(), RangeState::Loading);
        if killed {
            node.kill().await;
        } else {
            node.stop().await;
        }
    }
    assert_eq!(losses().await, 0);
    cluster.storage.works();
    let (node, mut client) = cluster.loaded().await;
    let of_other_ranges = |from: u32| {
        let numbers = keys(&map, from..from + 100).into_iter();
        numbers
            .filter(|key| map.range_index_of(key.top()) != 3)
            .count()
    };
    let kept = cluster.present(&mut client, &map, 1000..1100).await;
    assert_eq!(kept, of_other_ranges(1000));
    eventually(async || losses().await == 1).await;
    node.stop().await;
}

#[tokio::test]
async fn snapshots_are_made_while_object_storage_holds_up_a_range() {
    let (cluster, node, _, map) = Cluster::with_snapshot(Durability::Journal, 0..1000, true).await;
    node.stop().await;
    cluster.lose_local_file(3).await;
    cluster.storage.all(DOWN);

    let mut config = cluster.config();
    config.snapshot_interval = Duration::from_millis(50);
    let node = cluster.start_with(config).await;
    let mut client = node.serving().await;
    eventually(async || ranges(&client, RangeState::Ready).await.len() == 7).await;
    let put = cluster.world.put_request(&map, &keys(&map, 1000..1100), 60);
    let reply = client.put(put).await.unwrap().into_inner();
    assert_eq!(reply.refused.len(), 1);
    eventually(async || {
        let disk = status(&mut client.clone()).await.disk.unwrap();
        disk.local_lsn == disk.lsn && disk.lsn > 0
    })
    .await;
    cluster.storage.works();
    let mut client = node.loaded().await;
    assert_eq!(cluster.present(&mut client, &map, 0..1000).await, 1000);
    node.stop().await;
}

#[tokio::test]
async fn a_closed_range_that_is_given_up_answers_with_what_is_left_and_stays_open() {
    let (cluster, node, mut client, map) =
        Cluster::with_snapshot(Durability::Journal, 0..200, true).await;
    // Of these the journal knows.
    cluster.put(&mut client, &map, 200..400).await;
    node.kill().await;
    let (range, _, _) = lose_file(&cluster, 2).await;
    let (node, mut client) = cluster.loaded().await;
    assert_eq!(closed(&client).await[0].0, range);
    let request = |range_id| OpenRangeRequest {
        cluster_id: map.cluster_id.to_bytes().to_vec().into(),
        range_id,
    };
    let refused = client.open_range(request(range + 1)).await.unwrap_err();
    assert!(refused.message().contains("is not closed"), "{refused}");
    let refused = client.open_range(request(999)).await.unwrap_err();
    assert!(refused.message().contains("does not own"), "{refused}");

    let opened = client
        .open_range(request(range))
        .await
        .unwrap()
        .into_inner();
    assert!(
        opened.reason.contains(&format!("full-{range}")),
        "{}",
        opened.reason
    );
    let keys = keys(&map, 0..400);
    let is_lost = |(number, key): &(usize, &Fingerprint)| {
        *number < 200 && map.range_index_of(key.top()) == range as usize
    };
    let expected: Vec<bool> = keys.iter().enumerate().map(|it| !is_lost(&it)).collect();
    assert!(expected.contains(&false));
    let left = keys.iter().enumerate().filter(|it| !is_lost(it));
    let left = left.filter(|(_, key)| map.range_index_of(key.top()) == range as usize);
    assert_eq!(opened.keys, left.count() as u64);
    assert_eq!(cluster.world.get(&mut client, &map, &keys).await, expected);
    // Again is no error, and no further loss.
    client.open_range(request(range)).await.unwrap();
    eventually(async || cluster.world.map().await.nodes[0].loss_count == 1).await;
    assert!(status(&mut client).await.warnings[0].contains("was opened without"));

    // Neither a kill right after it nor a new disk closes it again.
    node.kill().await;
    let (node, mut client) = cluster.loaded().await;
    assert_eq!(closed(&client).await, []);
    assert_eq!(cluster.world.get(&mut client, &map, &keys).await, expected);
    assert_eq!(cluster.world.map().await.nodes[0].loss_count, 1);
    node.stop().await;
}

#[tokio::test]
async fn a_range_is_not_given_up_before_all_that_is_left_of_it_is_loaded() {
    let (cluster, node, mut client, map) =
        Cluster::with_snapshot(Durability::Journal, 0..200, true).await;
    cluster.put(&mut client, &map, 200..400).await;
    cluster.snapshot(&mut client, false).await;
    node.kill().await;
    // A delta is nowhere, and the base of one of the ranges that need it takes its time.
    let files = cluster.manifest().await.files;
    let delta = files
        .into_iter()
        .find(|file| file.kind == SnapshotKind::Delta);
    let delta = delta.unwrap().name;
    fs::remove_file(cluster.data_dir().join("snapshots").join(&delta)).unwrap();
    let object = object_key(NodeId(0), &delta);
    cluster.storage.delete(&object).await.unwrap();
    let (range, _, base) = cluster.lose_local_file(2).await;
    cluster
        .storage
        .goes_wrong(move |name, key| (name == "get_range" && key == base).then_some(Hangs));
    let node = cluster.start().await;
    let mut client = node.serving().await;
    eventually(async || closed(&client).await.len() + 1 == map.ranges.len()).await;

    let request = || OpenRangeRequest {
        cluster_id: map.cluster_id.to_bytes().to_vec().into(),
        range_id: range,
    };
    let refused = client.open_range(request()).await.unwrap_err();
    assert!(refused.message().contains("still loading"), "{refused}");
    cluster.storage.works();
    eventually(async || closed(&client).await.len() == map.ranges.len()).await;
    let opened = client.open_range(request()).await.unwrap().into_inner();
    let keys = keys(&map, 0..200);
    let of_range = |key: &&Fingerprint| map.range_index_of(key.top()) == range as usize;
    assert_eq!(opened.keys, keys.iter().filter(of_range).count() as u64);
    node.stop().await;
}
