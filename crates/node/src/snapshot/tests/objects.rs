//! Garbage, and looking at what is there.

use bytes::Bytes;

use super::{faulty::Fault, *};

const AGE: Duration = Duration::from_secs(3600);

impl Rig {
    async fn objects(&self) -> Vec<String> {
        let page = self.storage.inner.list("snapshots/", None).await.unwrap();
        page.objects.into_iter().map(|object| object.key).collect()
    }

    async fn collect(&self, dry_run: bool) -> Result<Collected, GarbageError> {
        collect_garbage(&*self.storage, AGE, dry_run).await
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
    let put = rig
        .storage
        .inner
        .put_if_absent(foreign, Bytes::from("mine"))
        .await;
    assert!(matches!(put, Ok(Put::Done(_))));
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
    let put = rig
        .storage
        .inner
        .put_if_absent(key, Bytes::from("{}"))
        .await;
    assert!(matches!(put, Ok(Put::Done(_))));
    let refused = rig.collect(false).await.unwrap_err();
    assert!(refused.to_string().contains(key), "{refused}");
    rig.storage.inner.delete(key).await.unwrap();
    rig.storage.goes_wrong(|name, key| {
        (name == "get" && key.starts_with("manifests/")).then_some(Fault::Fails)
    });
    rig.collect(false).await.unwrap_err();
    assert_eq!(rig.objects().await, before);
    rig.storage.works();
    assert_eq!(rig.collect(false).await.unwrap().removed.len(), 1);
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_object_storage_can_be_listed_and_checked() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    run.put(&rig.keys(0..1000, EXPIRY)).await;
    run.full_snapshot().await;
    run.put(&rig.keys(1000..1100, EXPIRY)).await;
    run.snapshot().await;
    run.stop().await;
    let storage = &*rig.storage;
    let listed = list_manifests(storage).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].key, manifest_key(NODE));
    let manifest = listed[0].manifest.as_ref().unwrap();
    assert_eq!(kinds(manifest), (1, 4));
    let mut entries = 0;
    for file in &manifest.files {
        let checked = check_object(storage, &rig.map, NODE, file).await.unwrap();
        let footer = read_footer(storage, &object_key(NODE, &file.name))
            .await
            .unwrap();
        assert_eq!(checked.totals, footer.totals);
        let sections: Vec<_> = footer
            .sections
            .iter()
            .map(|section| section.header)
            .collect();
        assert_eq!(checked.sections, sections);
        entries += checked.totals.entries;
    }
    assert_eq!(entries, 1100);

    let file = &manifest.files[0];
    let key = object_key(NODE, &file.name);
    let bytes = storage.inner.get(&key).await.unwrap().unwrap().bytes;
    let becomes = async |bytes: Vec<u8>| {
        storage.inner.delete(&key).await.unwrap();
        let put = storage.inner.put_if_absent(&key, bytes.into()).await;
        assert!(matches!(put, Ok(Put::Done(_))));
        let refused = check_object(storage, &rig.map, NODE, file)
            .await
            .unwrap_err();
        assert!(refused.to_string().contains(&key), "{refused}");
        refused
    };
    let mut flipped = bytes.to_vec();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    assert!(matches!(
        becomes(flipped).await,
        ObjectError::Unusable { .. }
    ));
    let short = bytes[..bytes.len() - 1].to_vec();
    assert!(matches!(becomes(short).await, ObjectError::Unusable { .. }));
    assert!(read_footer(storage, &key).await.is_err());
    let other = object_key(NODE, &manifest.files[1].name);
    let other = storage.inner.get(&other).await.unwrap().unwrap().bytes;
    assert!(matches!(
        becomes(other.to_vec()).await,
        ObjectError::Foreign { .. }
    ));
    storage.inner.delete(&key).await.unwrap();
    let refused = check_object(storage, &rig.map, NODE, file)
        .await
        .unwrap_err();
    assert!(matches!(refused, ObjectError::Missing { .. }), "{refused}");
    assert!(matches!(
        read_footer(storage, &key).await,
        Err(ObjectError::Missing { .. })
    ));
}
