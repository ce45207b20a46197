//! Reads, lists and looks over a bad connection.

use futures_util::TryStreamExt;

use super::*;

/// Bytes in which no part looks like another.
pub(super) fn varied(count: usize) -> Bytes {
    (0..count as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

pub(super) async fn all_of(stream: ObjectStream) -> Result<Bytes, StorageError> {
    let chunks: Vec<Bytes> = stream.bytes.try_collect().await?;
    Ok(chunks.concat().into())
}

async fn read(storage: &S3Storage, key: &str, range: Range<u64>) -> Result<Bytes, StorageError> {
    all_of(storage.get_range(key, range).await?.unwrap()).await
}

#[tokio::test]
async fn an_object_is_read_whatever_happens_to_the_first_attempt() {
    let setup = Setup::new().await;
    let bytes = varied(300_000);
    let version = setup.create("key", bytes.clone()).await;
    for fault in PASSING {
        setup.proxy.plan(Operation::GetObject, [fault]);
        let object = setup.storage.get("key").await.unwrap().unwrap();
        assert!(object.bytes == bytes, "{fault:?}");
        assert_eq!(object.version, version);

        setup.proxy.plan(Operation::GetObject, [fault]);
        let part = read(&setup.storage, "key", 1000..200_000).await.unwrap();
        assert!(part == bytes[1000..200_000], "{fault:?}");

        setup.proxy.plan(Operation::HeadObject, [fault]);
        let info = setup.storage.head("key").await.unwrap().unwrap();
        assert_eq!(info.size_bytes, 300_000);

        setup.proxy.plan(Operation::GetObject, [fault]);
        assert_eq!(setup.storage.get("none").await, Ok(None), "{fault:?}");
        setup.proxy.plan(Operation::HeadObject, [fault]);
        assert_eq!(setup.storage.head("none").await, Ok(None), "{fault:?}");
    }
}

#[tokio::test]
async fn a_stream_that_breaks_off_goes_on_where_it_stopped() {
    const BYTES: usize = 32 << 20;
    let setup = Setup::new().await;
    let bytes = varied(BYTES);
    setup.create("key", bytes.clone()).await;
    // More often than a call is tried, yet each time after much.
    setup.proxy.plan(
        Operation::GetObject,
        [
            Fault::ReplyCut,
            Fault::ReplyCut,
            Fault::ReplyCut,
            Fault::Answer(503, "SlowDown"),
            Fault::ReplyCut,
            Fault::ReplyLost,
            Fault::ReplyCut,
        ],
    );
    let read = read(&setup.storage, "key", 5..BYTES as u64 - 5)
        .await
        .unwrap();
    assert!(read == bytes[5..BYTES - 5]);
    assert_eq!(setup.proxy.seen(Operation::GetObject), 8);
}

#[tokio::test]
async fn a_stream_that_gets_nowhere_ends_with_an_error() {
    let setup = Setup::new().await;
    setup.create("key", varied(100_000)).await;
    setup.proxy.always(Operation::GetObject, Fault::ReplyCut);
    let error = read(&setup.storage, "key", 0..u64::MAX).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Unavailable, "{error}");
    let error = setup.storage.get("key").await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Unavailable, "{error}");
    // The same number for each: one layer of attempts.
    let attempts = LIMITS.attempts_max as usize;
    assert_eq!(setup.proxy.seen(Operation::GetObject), 2 * attempts);
}

#[tokio::test]
async fn an_object_that_is_replaced_or_removed_while_it_is_streamed_is_an_error_not_a_mixture() {
    for removed in [false, true] {
        let setup = Setup::new().await;
        let version = setup.create("key", varied(8 << 20)).await;
        setup.proxy.plan(Operation::GetObject, [Fault::ReplyCut]);
        let stream = setup.storage.get_range("key", 0..u64::MAX).await.unwrap();
        let mut stream = stream.unwrap().bytes;
        assert!(stream.try_next().await.unwrap().is_some());
        if removed {
            setup.direct.delete("key").await.unwrap();
        } else {
            let put = setup
                .direct
                .put_if_match("key", vec![1; 8 << 20].into(), &version);
            done(put.await);
        }
        let error = stream.try_for_each(async |_| Ok(())).await.unwrap_err();
        assert!(error.to_string().contains("replaced or removed"), "{error}");
    }
}

#[tokio::test]
async fn an_object_that_is_replaced_while_it_is_read_at_once_is_read_anew() {
    let setup = Setup::new().await;
    let version = setup.create("key", varied(1 << 20)).await;
    setup
        .proxy
        .plan(Operation::GetObject, [Fault::ReplyCut, Fault::Held]);
    let storage = Arc::clone(&setup.storage);
    let reading = tokio::spawn(async move { storage.get("key").await });
    setup.proxy.wait_for(Operation::GetObject, 2).await;
    let put = setup
        .direct
        .put_if_match("key", vec![1; 1 << 20].into(), &version);
    let replaced = done(put.await);
    setup.proxy.release();
    let object = reading.await.unwrap().unwrap().unwrap();
    assert_eq!(object.version, replaced);
    assert!(object.bytes.len() == 1 << 20 && object.bytes.iter().all(|byte| *byte == 1));
}

#[tokio::test]
async fn more_than_a_page_is_listed_whatever_happens_to_each_first_attempt() {
    // Not on another server: only in this process are a thousand objects quickly made.
    let bucket = TestBucket::in_process().await;
    let proxy = FaultProxy::before(&bucket).await;
    let (storage, direct) = (limited(proxy.bucket(), LIMITS), limited(&bucket, LIMITS));
    let names: Vec<String> = (0..1005)
        .map(|number| format!("many/{number:04}"))
        .collect();
    for name in &names {
        done(direct.put_if_absent(name, "x".into()).await);
    }
    for fault in PASSING {
        let mut found: Vec<String> = Vec::new();
        loop {
            proxy.plan(Operation::ListObjects, [fault]);
            let after = found.last().cloned();
            let page = storage.list("many/", after.as_deref()).await.unwrap();
            found.extend(page.objects.into_iter().map(|object| object.key));
            if !page.more {
                break;
            }
        }
        assert!(found == names, "{fault:?}");
    }
    proxy.always(Operation::ListObjects, Fault::Answer(500, "InternalError"));
    let error = storage.list("", None).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn the_time_is_told_whatever_happens_to_the_first_attempt() {
    let setup = Setup::new().await;
    let before = setup.direct.now().await.unwrap();
    for fault in PASSING {
        setup.proxy.plan(Operation::HeadObject, [fault]);
        assert!(setup.storage.now().await.unwrap() >= before, "{fault:?}");
    }
    // A server that refuses knows the time too.
    let fault = Fault::Answer(403, "RequestTimeTooSkewed");
    setup.proxy.always(Operation::HeadObject, fault);
    assert!(setup.storage.now().await.unwrap() >= before);
}

#[tokio::test]
async fn reads_from_a_server_that_says_nothing_end() {
    let setup = Setup::with(IMPATIENT).await;
    setup.create("key", varied(100_000)).await;
    for operation in [
        Operation::GetObject,
        Operation::HeadObject,
        Operation::ListObjects,
    ] {
        setup.proxy.always(operation, Fault::Silence);
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), varied(6 << 20)).unwrap();
    let errors = [
        setup.storage.get("key").await.err(),
        setup.storage.get_range("key", 0..9).await.err(),
        setup.storage.head("key").await.err(),
        setup.storage.list("", None).await.err(),
        setup.storage.now().await.err(),
        // It looks first.
        setup.storage.put_file("file", file.path()).await.err(),
    ];
    for error in errors {
        let error = error.unwrap();
        assert_eq!(error.kind(), StorageErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains("no answer within"), "{error}");
    }
}

#[tokio::test]
async fn a_reply_that_stands_still_in_the_middle_ends() {
    let setup = Setup::with(IMPATIENT).await;
    setup.create("key", varied(100_000)).await;
    setup.proxy.always(Operation::GetObject, Fault::ReplyStall);
    let error = setup.storage.get("key").await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Unavailable, "{error}");
    let error = read(&setup.storage, "key", 0..u64::MAX).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Unavailable, "{error}");
    setup.create("other", "x").await;
    setup
        .proxy
        .always(Operation::ListObjects, Fault::ReplyStall);
    let error = setup.storage.list("", None).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn only_the_stores_own_word_for_it_means_that_there_is_no_object() {
    let setup = Setup::new().await;
    setup.create("key", "here").await;
    for code in ["", "NotFound", "PageNotFound"] {
        for operation in [
            Operation::GetObject,
            Operation::HeadObject,
            Operation::DeleteObject,
        ] {
            setup.proxy.always(operation, Fault::Answer(404, code));
        }
        let error = setup.storage.get("key").await.unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::Unavailable, "{code:?}");
        let part = setup.storage.get_range("key", 0..4).await;
        assert!(part.is_err(), "{code:?}");
        let error = setup.storage.head("key").await.unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::Unavailable, "{code:?}");
        let error = setup.storage.delete("key").await.unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::OutcomeUnknown, "{code:?}");
    }
    let stored = setup.stored("key").await.unwrap();
    assert_eq!(&*stored.bytes, b"here");
}
