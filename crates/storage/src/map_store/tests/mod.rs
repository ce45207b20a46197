mod doubles;
mod on_s3;

use std::convert::Infallible;

use keydb_core::Durability;
use tokio::task::JoinSet;

use self::doubles::{
    Breach, BrokenStorage,
    Write::{Meets, Outrun, ReplyLostAndOverwritten},
    change_by_another, plan, storage,
};
use super::*;
use crate::{
    LocalStorage,
    testing::{
        DOWN, FaultyStorage,
        StorageFault::{Refused, ReplyLost, RequestLate, RequestLost},
    },
};

fn three_nodes() -> NewCluster {
    NewCluster {
        addresses: (0..3).map(|id| format!("keydb-{id}:50051")).collect(),
        range_count: 16,
        durability: Durability::Memory,
    }
}

/// A cluster's map in storage that will go wrong as planned.
async fn cluster() -> (Arc<FaultyStorage>, MapStore) {
    let storage = storage();
    let store = MapStore::new(storage.clone());
    store.init(&three_nodes()).await.unwrap();
    (storage, store)
}

async fn stored(storage: &FaultyStorage) -> ClusterMap {
    let store = MapStore::new(storage.inner.clone());
    store.load().await.unwrap().unwrap()
}

/// A change that shows how often it was applied: node 0 counts one loss more.
fn count_loss(map: &ClusterMap) -> Result<Option<ClusterMap>, Infallible> {
    let mut next = map.successor();
    next.nodes[0].loss_count += 1;
    Ok(Some(next))
}

/// A change that is wanted once.
fn set_zone(map: &ClusterMap) -> Result<Option<ClusterMap>, Infallible> {
    let mut next = map.successor();
    next.nodes[0].zone = "a".to_owned();
    Ok((map.nodes[0].zone != "a").then_some(next))
}

fn created(init: Result<Init, InitError>) -> ClusterMap {
    match init {
        Ok(Init::Created(map)) => map,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_created_map_is_loaded_and_created_only_once() {
    let store = MapStore::new(storage());
    assert_eq!(store.load().await, Ok(None));
    let map = created(store.init(&three_nodes()).await);
    assert_eq!(store.load().await, Ok(Some(map.clone())));
    assert_eq!(store.init(&three_nodes()).await, Ok(Init::Existing(map)));
}

#[tokio::test]
async fn the_proof_leaves_no_objects_behind() {
    let storage = storage();
    let store = MapStore::new(storage.clone());
    created(store.init(&three_nodes()).await);
    let page = storage.list("", None).await.unwrap();
    let keys: Vec<_> = page.objects.iter().map(|object| &*object.key).collect();
    assert_eq!(keys, [MAP_KEY]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_concurrent_inits_one_creates_and_the_others_find_the_same_map() {
    let dir = tempfile::tempdir().unwrap();
    init_at_once(|| Arc::new(LocalStorage::create(dir.path()).unwrap())).await;
}

/// Has several writers, each with storage of its own that leads to the same objects, create the map.
async fn init_at_once<S: ObjectStorage>(open: impl Fn() -> Arc<S>) {
    let mut inits = JoinSet::new();
    for store in (0..6).map(|_| MapStore::new(open())) {
        inits.spawn(async move { store.init(&three_nodes()).await.unwrap() });
    }
    let inits = inits.join_all().await;
    let created: Vec<_> = inits
        .iter()
        .filter(|init| matches!(init, Init::Created(_)))
        .collect();
    assert_eq!(created.len(), 1);
    let ids = inits.iter().map(|init| match init {
        Init::Created(map) | Init::Existing(map) => map.cluster_id,
    });
    assert_eq!(ids.collect::<std::collections::BTreeSet<_>>().len(), 1);
}

#[tokio::test]
async fn a_cluster_that_cannot_be_is_refused_before_anything_is_written() {
    let storage = BrokenStorage::new(Breach::IgnoresBothConditions);
    let store = MapStore::new(storage.clone());
    let nobody = NewCluster {
        addresses: Vec::new(),
        ..three_nodes()
    };
    assert_eq!(
        store.init(&nobody).await,
        Err(InitError::Invalid(MapError::NoNodes))
    );
    assert_eq!(storage.keys(), [""; 0]);
}

#[tokio::test]
async fn storage_whose_conditional_writes_are_not_exclusive_gets_no_map() {
    for (breach, expected) in [
        (Breach::IgnoresBothConditions, "16 of 16 racing writers"),
        (Breach::IgnoresIfAbsent, "16 of 16 racing writers"),
        (Breach::IgnoresIfMatch, "16 of 16 racing writers"),
        (Breach::ReplacesNothing, "does not exist was replaced"),
        (Breach::ChecksThenWrites, "16 of 16 racing writers"),
        (
            Breach::WritesDespiteConflict,
            "is not what the only successful writer wrote",
        ),
        (Breach::ForgetsWrites, "16 of 16 racing writers"),
        (Breach::RefusesEverything, "none of 16 writers could create"),
    ] {
        let storage = BrokenStorage::new(breach);
        let store = MapStore::new(storage.clone());
        let error = store.init(&three_nodes()).await.unwrap_err();
        assert!(
            matches!(error, InitError::NotExclusive { .. }),
            "{breach:?}: {error}"
        );
        let text = error.to_string();
        assert!(
            text.contains("not exclusive") && text.contains(expected),
            "{breach:?}: {text}"
        );
        assert!(!storage.keys().contains(&MAP_KEY.to_owned()), "{breach:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn init_recognises_its_own_map_after_a_lost_reply() {
    for faults in [
        vec![Meets(ReplyLost)],
        vec![Meets(RequestLost)],
        vec![Meets(RequestLate)],
        vec![Meets(DOWN), Meets(RequestLost), Meets(ReplyLost)],
        vec![ReplyLostAndOverwritten],
    ] {
        let storage = storage();
        plan(&storage, faults.clone(), []);
        let map = created(MapStore::new(storage.clone()).init(&three_nodes()).await);
        assert_eq!(stored(&storage).await, map, "{faults:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn init_says_whether_it_may_have_created_the_cluster() {
    let storage = storage();
    let store = MapStore::new(storage.clone());
    plan(&storage, [Meets(Refused)], []);
    let error = store.init(&three_nodes()).await.unwrap_err();
    assert!(matches!(error, InitError::Storage(_)), "{error}");

    plan(&storage, [Meets(RequestLate), Meets(Refused)], []);
    let error = store.init(&three_nodes()).await.unwrap_err();
    assert!(matches!(error, InitError::OutcomeUnknown(_)), "{error}");
    assert!(stored(&storage).await.epoch == 1, "it was created late");

    let again = store.init(&three_nodes()).await.unwrap();
    assert!(matches!(again, Init::Existing(_)));
}

#[tokio::test]
async fn something_else_in_the_maps_place_is_an_error_and_stays() {
    let storage = storage();
    let put = storage
        .put_if_absent(MAP_KEY, "{\"format\": 2}".into())
        .await;
    assert!(matches!(put, Ok(Put::Done(_))));
    let store = MapStore::new(storage.clone());
    let load = store.load().await.unwrap_err();
    assert!(matches!(
        load,
        MapStoreError::Map(MapError::Unsupported { .. })
    ));
    assert!(load.to_string().contains(MAP_KEY), "{load}");
    let init = store.init(&three_nodes()).await;
    assert_eq!(init, Err(InitError::Load(load.clone())));
    assert_eq!(store.update(count_loss).await, Err(UpdateError::Load(load)));
    let kept = storage.get(MAP_KEY).await.unwrap().unwrap().bytes;
    assert_eq!(kept, "{\"format\": 2}");
}

#[tokio::test]
async fn an_update_changes_the_stored_map_by_one_epoch() {
    let (storage, store) = cluster().await;
    let before = stored(&storage).await;
    let after = store.update(set_zone).await.unwrap();
    assert_eq!(after, stored(&storage).await);
    assert_eq!(
        (after.epoch, &*after.nodes[0].zone),
        (before.epoch + 1, "a")
    );
    assert_ne!(after.write_nonce, before.write_nonce);
    // Nothing to do: nothing is written.
    plan(&storage, [Meets(Refused)], []);
    assert_eq!(store.update(set_zone).await, Ok(after));
}

#[tokio::test]
async fn without_a_map_there_is_nothing_to_update() {
    let store = MapStore::new(storage());
    assert_eq!(store.update(count_loss).await, Err(UpdateError::NoMap));
    assert_eq!(store.load().await, Ok(None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_updates_are_all_applied() {
    let dir = tempfile::tempdir().unwrap();
    update_at_once(|| Arc::new(LocalStorage::create(dir.path()).unwrap())).await;
}

/// Has several writers, each with storage of its own that leads to the same objects, change a new map.
async fn update_at_once<S: ObjectStorage>(open: impl Fn() -> Arc<S>) {
    const WRITERS: u32 = 8;
    const TIMES: u32 = 3;
    let open = || MapStore::new(open());
    open().init(&three_nodes()).await.unwrap();
    let mut writers = JoinSet::new();
    for store in (0..WRITERS).map(|_| open()) {
        writers.spawn(async move {
            for _ in 0..TIMES {
                store.update(count_loss).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    let map = open().load().await.unwrap().unwrap();
    assert_eq!(map.nodes[0].loss_count, WRITERS * TIMES);
    assert_eq!(map.epoch, 1 + u64::from(WRITERS * TIMES));
}

#[tokio::test(start_paused = true)]
async fn an_update_is_applied_exactly_once_whatever_happens_to_its_messages() {
    for faults in [
        vec![Meets(ReplyLost)],
        vec![Meets(RequestLost)],
        vec![Meets(RequestLate)],
        vec![Meets(RequestLate), Meets(RequestLate), Meets(ReplyLost)],
        vec![Meets(DOWN), Meets(RequestLost), Meets(ReplyLost)],
        vec![Outrun, Meets(ReplyLost)],
    ] {
        let (storage, store) = cluster().await;
        plan(&storage, faults.clone(), [None, Some(DOWN)]);
        let map = store.update(count_loss).await.unwrap();
        assert_eq!(map, stored(&storage).await, "{faults:?}");
        assert_eq!(map.nodes[0].loss_count, 1, "{faults:?}");
        let others = faults.iter().filter(|fault| **fault == Outrun).count();
        assert!(map.nodes[2].loss_count as usize <= others, "{faults:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_that_was_applied_and_built_upon_is_not_wanted_again() {
    // In the second the first write lands late, another writer's change on top of it.
    for faults in [
        vec![ReplyLostAndOverwritten],
        vec![Meets(RequestLate), Outrun],
    ] {
        let (storage, store) = cluster().await;
        plan(&storage, faults, []);
        let map = store.update(set_zone).await.unwrap();
        assert_eq!(map, stored(&storage).await);
        let changes = (&*map.nodes[0].zone, map.nodes[2].loss_count);
        assert_eq!((map.epoch, changes), (3, ("a", 1)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_that_may_have_been_applied_is_never_reported_as_not_applied() {
    for (writes, reads) in [
        (vec![Meets(ReplyLost)], vec![None, Some(Refused)]),
        (
            vec![Meets(ReplyLost)],
            [vec![None], vec![Some(DOWN); 100]].concat(),
        ),
        (vec![Meets(RequestLost), Meets(Refused)], vec![]),
        (vec![Meets(RequestLost); 100], vec![]),
        (
            [vec![Meets(RequestLost)], vec![Meets(DOWN); 100]].concat(),
            vec![],
        ),
        (
            [vec![ReplyLostAndOverwritten], vec![Outrun; 100]].concat(),
            vec![],
        ),
    ] {
        let (storage, store) = cluster().await;
        plan(&storage, writes.clone(), reads.clone());
        let error = store.update(count_loss).await.unwrap_err();
        assert!(
            matches!(error, UpdateError::OutcomeUnknown(_)),
            "{error} {writes:?} {reads:?}"
        );
    }
    // The caller's own refusal, and its losing interest in the same map, say as little about the write before.
    for second in [Err("no"), Ok(None)] {
        let (storage, store) = cluster().await;
        plan(&storage, [Meets(RequestLate)], []);
        let mut answers = vec![second, Ok(Some(stored(&storage).await.successor()))];
        let error = store.update(|_| answers.pop().unwrap()).await.unwrap_err();
        assert!(matches!(error, UpdateError::OutcomeUnknown(_)), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_update_gives_up_after_a_bounded_number_of_attempts() {
    let (storage, store) = cluster().await;
    plan(&storage, [Outrun; 1000], []);
    let error = store.update(count_loss).await.unwrap_err();
    assert_eq!(
        error,
        UpdateError::Contended {
            attempts: ATTEMPTS_MAX
        }
    );
    let map = stored(&storage).await;
    assert_eq!(
        (map.nodes[0].loss_count, map.nodes[2].loss_count),
        (0, ATTEMPTS_MAX)
    );

    let (storage, store) = cluster().await;
    plan(&storage, [Meets(DOWN); 1000], []);
    let error = store.update(count_loss).await.unwrap_err();
    assert!(matches!(error, UpdateError::NotWritten(_)), "{error}");

    let (storage, store) = cluster().await;
    plan(&storage, [], [Some(DOWN); 1000]);
    let error = store.update(count_loss).await.unwrap_err();
    assert!(matches!(error, UpdateError::Load(_)), "{error}");
}

#[tokio::test]
async fn a_map_that_is_not_newer_or_not_this_clusters_or_inconsistent_is_not_written() {
    let (storage, store) = cluster().await;
    let before = change_by_another(&storage.inner).await;
    let refused = async |edit: fn(&mut ClusterMap)| {
        let changed = store.update(|map| {
            let mut next = map.successor();
            edit(&mut next);
            Ok::<_, Infallible>(Some(next))
        });
        let error = changed.await.unwrap_err();
        assert_eq!(stored(&storage).await, before);
        error
    };
    for edit in [
        |next: &mut ClusterMap| next.epoch -= 1,
        |next: &mut ClusterMap| next.epoch -= 2,
        |next: &mut ClusterMap| next.lineage -= 1,
    ] {
        let error = refused(edit).await;
        assert!(matches!(error, UpdateError::NotNewer { .. }), "{error}");
        assert!(error.to_string().contains("lineage 1, epoch 2"), "{error}");
    }
    let error = refused(|next| next.cluster_id = keydb_core::ClusterId::random()).await;
    assert!(error.to_string().contains("cluster"), "{error}");
    let error = refused(|next| next.nodes.clear()).await;
    assert!(matches!(error, UpdateError::Invalid(_)), "{error}");
}

#[tokio::test]
async fn the_callers_own_error_comes_back_and_nothing_is_written() {
    let (storage, store) = cluster().await;
    let before = stored(&storage).await;
    let error = store.update(|_| Err("not like this")).await.unwrap_err();
    assert_eq!(error, UpdateError::Change("not like this"));
    assert_eq!(error.to_string(), "not like this");
    assert_eq!(stored(&storage).await, before);
}

#[tokio::test]
async fn no_cluster_is_created_where_another_one_has_lost_its_map() {
    for key in ["manifests/node-0.json", "snapshots/node-2/x.keydb"] {
        let storage = storage();
        let store = MapStore::new(storage.clone());
        let put = storage.put_if_absent(key, Bytes::from("x")).await;
        assert!(matches!(put, Ok(Put::Done(_))));
        let refused = store.init(&three_nodes()).await.unwrap_err();
        let expected = InitError::MapRemoved {
            object: key.to_owned(),
        };
        assert_eq!(refused, expected);
        assert!(refused.to_string().contains("keydb recover --map"));
        assert_eq!(store.load().await, Ok(None));
    }
}

#[tokio::test]
async fn a_map_is_put_back_where_there_is_none_or_an_older_one_and_nowhere_else() {
    let (storage, store) = cluster().await;
    let first = stored(&storage).await;
    let newer = store.update(set_zone).await.unwrap();
    let restore = async |map: &ClusterMap| {
        let restored = store.restore(map).await.unwrap();
        assert_eq!(restored.map, stored(&storage).await);
        (restored.written, restored.map.epoch)
    };
    assert_eq!(restore(&first).await, (false, newer.epoch));
    storage.inner.delete(MAP_KEY).await.unwrap();
    assert_eq!(restore(&first).await, (true, first.epoch));
    assert_eq!(restore(&newer).await, (true, newer.epoch));
    assert_eq!(restore(&newer).await, (false, newer.epoch));

    let (_, other) = cluster().await;
    let refused = other.restore(&newer).await.unwrap_err();
    assert!(
        matches!(refused, UpdateError::Change(OtherCluster { .. })),
        "{refused}"
    );
}
