//! What every backend must do. Each backend runs all of it with [`conformance_tests!`].

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use futures_util::TryStreamExt;
use tokio::{sync::Barrier, task::JoinSet};

use crate::{
    ListPage, Object, ObjectStorage, Put, Reread, StorageErrorKind, Version, testing::TestBucket,
};

pub(crate) const WRITERS: usize = 16;
const RACES: usize = 40;

/// A storage under test: several handles on the same objects, and whatever must outlive them.
pub(crate) struct Handles {
    pub(crate) handles: Vec<Arc<dyn ObjectStorage>>,
    pub(crate) _dir: Option<tempfile::TempDir>,
    pub(crate) _bucket: Option<TestBucket>,
}

/// Handles that are all the same storage.
pub(crate) fn handles_of(storage: Arc<dyn ObjectStorage>) -> Handles {
    Handles {
        handles: vec![storage; WRITERS],
        _dir: None,
        _bucket: None,
    }
}

impl Handles {
    pub(crate) fn one(&self) -> &dyn ObjectStorage {
        &*self.handles[0]
    }
}

/// One test for each function of this module that tests a behaviour, run with `$open`: an expression that opens a new, empty
/// storage's [`Handles`], or says with `None` that there is none here.
macro_rules! conformance_tests {
    ($open:expr) => {
        $crate::conformance::conformance_tests!($open;
            what_was_written_is_read_back
            an_object_that_was_never_written_is_none
            what_has_not_changed_is_not_read_again
            creating_an_object_that_exists_is_a_conflict
            replacing_an_outdated_version_is_a_conflict
            replacing_an_object_that_does_not_exist_is_a_conflict
            bytes_that_were_never_there_are_another_version
            an_object_may_be_empty
            an_object_may_have_a_mebibyte
            keys_that_share_a_beginning_are_different_objects
            of_racing_creators_exactly_one_wins
            of_racing_replacers_exactly_one_wins
            no_increment_by_compare_and_swap_is_lost
            a_reader_sees_only_whole_writes
            a_file_becomes_an_object_once
            an_empty_file_becomes_an_empty_object
            a_stream_becomes_an_object_once
            a_stream_that_fails_or_has_another_length_writes_nothing
            parts_of_an_object_are_read_as_streams
            what_is_known_of_an_object_is_its_size_and_time
            objects_are_listed_in_order_by_prefix_and_in_pages
            a_removed_object_is_gone_and_may_be_removed_again
            of_racing_files_exactly_one_wins
            invalid_keys_are_refused
            time_does_not_go_back
        );
    };
    ($open:expr; $($name:ident)+) => {
        mod conforms {
            use super::*;

            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
                async fn $name() {
                    if let Some(storage) = Option::<$crate::conformance::Handles>::from($open) {
                        $crate::conformance::$name(storage).await;
                    }
                }
            )+
        }
    };
}
pub(crate) use conformance_tests;

fn done(put: Put) -> Version {
    match put {
        Put::Done(version) => version,
        Put::Conflict => panic!("a conflict where the condition held"),
    }
}

async fn create(storage: &dyn ObjectStorage, key: &str, bytes: impl Into<Bytes>) -> Version {
    done(storage.put_if_absent(key, bytes.into()).await.unwrap())
}

async fn read(storage: &dyn ObjectStorage, key: &str) -> Object {
    storage.get(key).await.unwrap().expect("the object exists")
}

pub(crate) async fn what_was_written_is_read_back(storage: Handles) {
    let storage = storage.one();
    let all_bytes: Bytes = (0..=255).collect();
    let first = create(storage, "a/b-c_d.json", all_bytes.clone()).await;
    let object = read(storage, "a/b-c_d.json").await;
    assert_eq!((object.bytes, &object.version), (all_bytes, &first));

    let put = storage.put_if_match("a/b-c_d.json", "two".into(), &first);
    let second = done(put.await.unwrap());
    assert_ne!(first, second);
    let object = read(storage, "a/b-c_d.json").await;
    assert_eq!((&object.bytes[..], object.version), (&b"two"[..], second));
}

pub(crate) async fn what_has_not_changed_is_not_read_again(storage: Handles) {
    let storage = storage.one();
    let first = create(storage, "key", "first").await;
    let again = async |known| storage.get_if_changed("key", known).await.unwrap();
    assert_eq!(again(&first).await, Reread::Unchanged);
    let put = storage.put_if_match("key", "second".into(), &first);
    let second = done(put.await.unwrap());
    let now = Some(read(storage, "key").await);
    assert_eq!(again(&first).await, Reread::Changed(now));
    assert_eq!(again(&second).await, Reread::Unchanged);
    storage.delete("key").await.unwrap();
    assert_eq!(again(&second).await, Reread::Changed(None));
}

pub(crate) async fn an_object_that_was_never_written_is_none(storage: Handles) {
    let storage = storage.one();
    assert_eq!(storage.get("nothing").await, Ok(None));
    create(storage, "something", "x").await;
    assert_eq!(storage.get("nothing").await, Ok(None));
}

pub(crate) async fn creating_an_object_that_exists_is_a_conflict(storage: Handles) {
    let storage = storage.one();
    let version = create(storage, "key", "first").await;
    for bytes in ["first", "second"] {
        let put = storage.put_if_absent("key", bytes.into()).await;
        assert_eq!(put, Ok(Put::Conflict));
    }
    let object = read(storage, "key").await;
    assert_eq!(
        (&object.bytes[..], object.version),
        (&b"first"[..], version)
    );
}

pub(crate) async fn replacing_an_outdated_version_is_a_conflict(storage: Handles) {
    let storage = storage.one();
    let old = create(storage, "key", "first").await;
    let new = done(
        storage
            .put_if_match("key", "second".into(), &old)
            .await
            .unwrap(),
    );
    let put = storage.put_if_match("key", "third".into(), &old).await;
    assert_eq!(put, Ok(Put::Conflict));
    let object = read(storage, "key").await;
    assert_eq!((&object.bytes[..], object.version), (&b"second"[..], new));
}

pub(crate) async fn replacing_an_object_that_does_not_exist_is_a_conflict(storage: Handles) {
    let storage = storage.one();
    let version = create(storage, "other", "x").await;
    let put = storage.put_if_match("key", "y".into(), &version).await;
    assert_eq!(put, Ok(Put::Conflict));
    assert_eq!(storage.get("key").await, Ok(None));
}

pub(crate) async fn bytes_that_were_never_there_are_another_version(storage: Handles) {
    let storage = storage.one();
    let mut versions = vec![create(storage, "key", "0").await];
    for bytes in ["1", "2", "3", "4"] {
        let last = versions.last().unwrap();
        let put = storage.put_if_match("key", bytes.into(), last).await;
        let version = done(put.unwrap());
        assert!(!versions.contains(&version), "{version:?} came back");
        assert_eq!(read(storage, "key").await.version, version);
        versions.push(version);
    }
    for outdated in &versions[..versions.len() - 1] {
        let put = storage.put_if_match("key", "5".into(), outdated).await;
        assert_eq!(put, Ok(Put::Conflict));
    }
}

pub(crate) async fn an_object_may_be_empty(storage: Handles) {
    let storage = storage.one();
    let version = create(storage, "key", "").await;
    let object = read(storage, "key").await;
    assert_eq!((object.bytes.len(), &object.version), (0, &version));
    assert_eq!(
        storage.put_if_absent("key", "x".into()).await,
        Ok(Put::Conflict)
    );
    done(
        storage
            .put_if_match("key", "x".into(), &version)
            .await
            .unwrap(),
    );
    assert_eq!(read(storage, "key").await.bytes, "x");
}

pub(crate) async fn an_object_may_have_a_mebibyte(storage: Handles) {
    let storage = storage.one();
    let bytes: Bytes = (0..1_u32 << 20)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    create(storage, "key", bytes.clone()).await;
    assert!(read(storage, "key").await.bytes == bytes);
}

pub(crate) async fn keys_that_share_a_beginning_are_different_objects(storage: Handles) {
    let storage = storage.one();
    let keys = ["a", "a/b", "a/b/c", "a-b", "a.b", "ab", "a_b", ".a", "-a"];
    for key in keys {
        create(storage, key, key).await;
    }
    for key in keys {
        assert_eq!(read(storage, key).await.bytes, key);
    }
}

/// Lets one writer a handle race for `key`; what the winners wrote.
async fn race(storage: &Handles, key: &str, version: Option<&Version>) -> Vec<Object> {
    let start = Arc::new(Barrier::new(storage.handles.len()));
    let mut writers = JoinSet::new();
    for (writer, handle) in storage.handles.iter().enumerate() {
        let (handle, start) = (handle.clone(), start.clone());
        let (key, version) = (key.to_owned(), version.cloned());
        writers.spawn(async move {
            // Never written to this key before, as callers promise.
            let nonce = keydb_core::random::u64();
            let bytes = Bytes::from(format!("writer {writer}, {nonce:016x}"));
            start.wait().await;
            let put = match &version {
                None => handle.put_if_absent(&key, bytes.clone()).await,
                Some(version) => handle.put_if_match(&key, bytes.clone(), version).await,
            };
            match put.unwrap() {
                Put::Done(version) => Some(Object { bytes, version }),
                Put::Conflict => None,
            }
        });
    }
    writers.join_all().await.into_iter().flatten().collect()
}

pub(crate) async fn of_racing_creators_exactly_one_wins(storage: Handles) {
    for round in 0..RACES {
        let key = format!("race-{round}");
        let winners = race(&storage, &key, None).await;
        assert_eq!(winners.len(), 1, "{winners:?}");
        assert_eq!(read(storage.one(), &key).await, winners[0]);
    }
}

pub(crate) async fn of_racing_replacers_exactly_one_wins(storage: Handles) {
    let mut version = create(storage.one(), "key", "first").await;
    for _ in 0..RACES {
        let winners = race(&storage, "key", Some(&version)).await;
        assert_eq!(winners.len(), 1, "{winners:?}");
        assert_eq!(read(storage.one(), "key").await, winners[0]);
        version = winners[0].version.clone();
    }
}

/// Adds 1 to the decimal number in `key`, as often as `times` says, against others who do the same.
pub(crate) async fn increment(storage: &dyn ObjectStorage, key: &str, times: usize) {
    for _ in 0..times {
        loop {
            let object = read(storage, key).await;
            let count: usize = std::str::from_utf8(&object.bytes).unwrap().parse().unwrap();
            let next = Bytes::from((count + 1).to_string());
            let put = storage.put_if_match(key, next, &object.version).await;
            if put.unwrap() != Put::Conflict {
                break;
            }
        }
    }
}

pub(crate) async fn no_increment_by_compare_and_swap_is_lost(storage: Handles) {
    const TIMES: usize = 8;
    create(storage.one(), "count", "0").await;
    let mut writers = JoinSet::new();
    for handle in storage.handles.iter().cloned() {
        writers.spawn(async move { increment(&*handle, "count", TIMES).await });
    }
    writers.join_all().await;
    let count = read(storage.one(), "count").await.bytes;
    assert_eq!(count, (storage.handles.len() * TIMES).to_string());
}

pub(crate) async fn a_reader_sees_only_whole_writes(storage: Handles) {
    const BYTES: usize = 200_000;
    let mut version = create(storage.one(), "key", vec![0; BYTES]).await;
    let reader = storage.handles[1].clone();
    let reader = tokio::spawn(async move {
        let mut seen: Vec<u8> = Vec::new();
        while seen.last() != Some(&200) {
            let bytes = read(&*reader, "key").await.bytes;
            assert_eq!(bytes.len(), BYTES);
            assert!(bytes.iter().all(|byte| *byte == bytes[0]));
            seen.push(bytes[0]);
        }
        assert!(seen.is_sorted(), "{seen:?}");
    });
    for write in 1..=200 {
        let put = storage
            .one()
            .put_if_match("key", vec![write; BYTES].into(), &version);
        version = done(put.await.unwrap());
    }
    reader.await.unwrap();
}

/// Bytes in which no part looks like another.
fn varied(count: usize) -> Vec<u8> {
    (0..count as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

fn file_of(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

async fn streamed(storage: &dyn ObjectStorage, key: &str, range: Range<u64>) -> (u64, Vec<u8>) {
    let object = storage.get_range(key, range).await.unwrap().unwrap();
    let chunks: Vec<Bytes> = object.bytes.try_collect().await.unwrap();
    (object.size_bytes, chunks.concat())
}

/// More than one part of a multipart upload, and not a whole number of parts.
const LARGE_BYTES: usize = 19 << 20 | 12_345;

pub(crate) async fn a_file_becomes_an_object_once(storage: Handles) {
    let storage = storage.one();
    for size in [1, 1000, LARGE_BYTES] {
        let bytes = varied(size);
        let file = file_of(&bytes);
        let key = format!("large/{size}");
        done(storage.put_file(&key, file.path()).await.unwrap());
        let (size_bytes, read) = streamed(storage, &key, 0..u64::MAX).await;
        assert_eq!(size_bytes, size as u64);
        assert!(read == bytes, "{size}");
        let other = file_of(b"other");
        let put = storage.put_file(&key, other.path()).await;
        assert_eq!(put, Ok(Put::Conflict));
        let put = storage.put_if_absent(&key, "other".into()).await;
        assert_eq!(put, Ok(Put::Conflict));
        assert!(streamed(storage, &key, 0..u64::MAX).await.1 == bytes);
    }
}

pub(crate) async fn an_empty_file_becomes_an_empty_object(storage: Handles) {
    let storage = storage.one();
    let file = file_of(b"");
    done(storage.put_file("empty", file.path()).await.unwrap());
    assert_eq!(read(storage, "empty").await.bytes, "");
    assert_eq!(streamed(storage, "empty", 0..10).await, (0, Vec::new()));
}

/// `bytes` in pieces, and then perhaps an error, of an object that is said to have this size.
fn stream_of(
    bytes: &[u8],
    size_bytes: usize,
    error: Option<crate::StorageError>,
) -> crate::ObjectStream {
    let pieces = bytes.chunks(700_000).map(Bytes::copy_from_slice).map(Ok);
    let pieces: Vec<_> = pieces.chain(error.map(Err)).collect();
    crate::ObjectStream {
        size_bytes: size_bytes as u64,
        bytes: Box::pin(futures_util::stream::iter(pieces)),
    }
}

pub(crate) async fn a_stream_becomes_an_object_once(storage: Handles) {
    let storage = storage.one();
    for size in [0, 1, 1000, LARGE_BYTES] {
        let bytes = varied(size);
        let key = format!("streamed/{size}");
        let put = storage.put_stream(&key, stream_of(&bytes, size, None));
        done(put.await.unwrap());
        let (size_bytes, read) = streamed(storage, &key, 0..u64::MAX).await;
        assert_eq!(size_bytes, size as u64);
        assert!(read == bytes, "{size}");
        let put = storage.put_stream(&key, stream_of(b"other", 5, None));
        assert_eq!(put.await, Ok(Put::Conflict));
        assert!(streamed(storage, &key, 0..u64::MAX).await.1 == bytes);
    }
}

pub(crate) async fn a_stream_that_fails_or_has_another_length_writes_nothing(storage: Handles) {
    let storage = storage.one();
    for size in [1000, LARGE_BYTES] {
        let bytes = varied(size);
        let refused = crate::StorageError::refused("it is damaged");
        for stream in [
            stream_of(&bytes, size, Some(refused)),
            stream_of(&bytes, size + 1, None),
            stream_of(&bytes, size - 1, None),
        ] {
            storage.put_stream("streamed", stream).await.unwrap_err();
            assert_eq!(storage.head("streamed").await, Ok(None));
        }
    }
}

pub(crate) async fn parts_of_an_object_are_read_as_streams(storage: Handles) {
    let storage = storage.one();
    let bytes = varied(3 << 20);
    let size = bytes.len() as u64;
    create(storage, "key", bytes.clone()).await;
    for range in [
        0..1,
        7..5000,
        1..size,
        size - 1..size,
        size - 5..size + 5,
        size..size + 1,
        9..9,
    ] {
        let (size_bytes, read) = streamed(storage, "key", range.clone()).await;
        let part = &bytes[range.start.min(size) as usize..range.end.min(size) as usize];
        assert_eq!(size_bytes, size, "{range:?}");
        assert!(read == part, "{range:?}");
    }
    assert!(storage.get_range("none", 0..1).await.unwrap().is_none());
}

pub(crate) async fn what_is_known_of_an_object_is_its_size_and_time(storage: Handles) {
    let storage = storage.one();
    let before = storage.now().await.unwrap();
    create(storage, "key", "12345").await;
    let after = storage.now().await.unwrap();
    let info = storage.head("key").await.unwrap().unwrap();
    assert_eq!((&*info.key, info.size_bytes), ("key", 5));
    // Some storages tell the time in seconds.
    assert!(
        info.modified.0 + 1000 > before.0 && info.modified.0 < after.0 + 1000,
        "{before:?} {info:?} {after:?}"
    );
    assert_eq!(storage.head("none").await, Ok(None));
}

pub(crate) async fn objects_are_listed_in_order_by_prefix_and_in_pages(storage: Handles) {
    const COUNT: usize = 1005;
    let storage = storage.one();
    assert_eq!(storage.list("", None).await, Ok(ListPage::default()));
    let names: Vec<String> = (0..COUNT)
        .map(|number| format!("many/{number:04}"))
        .collect();
    for name in &names {
        create(storage, name, "x").await;
    }
    for name in ["a", "many.txt", "manz"] {
        create(storage, name, "x").await;
    }
    let mut found = Vec::new();
    let mut pages = 0;
    loop {
        let after = found.last().cloned();
        let page = storage.list("many/", after.as_deref()).await.unwrap();
        found.extend(page.objects.into_iter().map(|object| object.key));
        pages += 1;
        if !page.more {
            break;
        }
    }
    assert!(found == names);
    assert_eq!(pages, 2);
    let page = storage.list("many/100", Some("many/1002")).await.unwrap();
    let keys: Vec<&str> = page.objects.iter().map(|object| &*object.key).collect();
    assert_eq!(keys, ["many/1003", "many/1004"]);
    assert!(!page.more);
}

pub(crate) async fn a_removed_object_is_gone_and_may_be_removed_again(storage: Handles) {
    let storage = storage.one();
    create(storage, "key", "x").await;
    create(storage, "other", "x").await;
    for _ in 0..2 {
        assert_eq!(storage.delete("key").await, Ok(()));
        assert_eq!(storage.get("key").await, Ok(None));
    }
    assert!(storage.get("other").await.unwrap().is_some());
    create(storage, "key", "y").await;
}

pub(crate) async fn of_racing_files_exactly_one_wins(storage: Handles) {
    let mut writers = JoinSet::new();
    for (writer, handle) in storage.handles.iter().cloned().enumerate() {
        writers.spawn(async move {
            let content = format!("writer {writer}");
            let file = file_of(content.as_bytes());
            let put = handle.put_file("key", file.path()).await.unwrap();
            matches!(put, Put::Done(_)).then_some(content)
        });
    }
    let winners: Vec<String> = writers.join_all().await.into_iter().flatten().collect();
    assert_eq!(winners.len(), 1, "{winners:?}");
    assert_eq!(read(storage.one(), "key").await.bytes, winners[0]);
}

pub(crate) async fn invalid_keys_are_refused(storage: Handles) {
    let storage = storage.one();
    let version = create(storage, "key", "x").await;
    for key in [
        "",
        "/key",
        "key/",
        "a//b",
        "../key",
        "a/./b",
        "a b",
        "~lock",
        "ключ",
        &"k".repeat(201),
    ] {
        let errors = [
            storage.get(key).await.unwrap_err(),
            storage.put_if_absent(key, "x".into()).await.unwrap_err(),
            storage
                .put_if_match(key, "x".into(), &version)
                .await
                .unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), StorageErrorKind::Refused, "{error}");
            assert!(error.to_string().contains("is not allowed"), "{error}");
        }
    }
}

pub(crate) async fn time_does_not_go_back(storage: Handles) {
    let mut last = storage.one().now().await.unwrap();
    assert!(
        last.0 > 1_600_000_000_000,
        "{last:?} is not a time of today"
    );
    for handle in storage.handles.iter().cycle().take(100) {
        let now = handle.now().await.unwrap();
        assert!(now >= last, "{now:?} came after {last:?}");
        last = now;
    }
}
