//! Files that become objects over a bad connection.

use tempfile::NamedTempFile;

use super::{
    reads::{all_of, varied},
    *,
};

/// Three parts, the last one smaller.
const LARGE_BYTES: usize = 12 << 20;

fn file_of(bytes: &[u8]) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

impl Setup {
    /// How many uploads of this key are under way.
    async fn uploads(&self, key: &str) -> usize {
        let client = self.proxy.bucket().client();
        let list = client.list_multipart_uploads();
        let reply = list.bucket(&self.proxy.bucket().name).prefix(key).send();
        reply.await.unwrap().uploads().len()
    }

    async fn stored_file(&self, key: &str) -> Bytes {
        let stream = self.direct.get_range(key, 0..u64::MAX).await.unwrap();
        all_of(stream.unwrap()).await.unwrap()
    }
}

#[tokio::test]
async fn a_small_file_becomes_an_object_whatever_happens_to_the_first_attempt() {
    let setup = Setup::new().await;
    let bytes = varied(300_000);
    let file = file_of(&bytes);
    for (number, fault) in PASSING.into_iter().enumerate() {
        let key = format!("key-{number}");
        setup.proxy.plan(Operation::PutObject, [fault]);
        done(setup.storage.put_file(&key, file.path()).await);
        assert!(setup.stored_file(&key).await == bytes, "{fault:?}");
        let again = setup.storage.put_file(&key, file.path()).await;
        assert_eq!(again, Ok(Put::Conflict));
    }
}

#[tokio::test]
async fn a_large_file_becomes_an_object_whatever_happens_to_a_part_or_the_completion() {
    let setup = Setup::new().await;
    let bytes = varied(LARGE_BYTES);
    let file = file_of(&bytes);
    for operation in [Operation::UploadPart, Operation::CompleteUpload] {
        for (number, fault) in PASSING.into_iter().enumerate() {
            let key = format!("{operation:?}-{number}");
            setup.proxy.plan(operation, [fault]);
            done(setup.storage.put_file(&key, file.path()).await);
            assert!(setup.stored_file(&key).await == bytes, "{key} {fault:?}");
            assert_eq!(setup.uploads(&key).await, 0, "{key} {fault:?}");
        }
    }
}

#[tokio::test]
async fn an_upload_that_may_have_begun_begins_anew_and_the_first_is_swept_away_later() {
    let bucket = TestBucket::in_process().await;
    let proxy = FaultProxy::before(&bucket).await;
    let setup = Setup {
        storage: limited(proxy.bucket(), LIMITS),
        direct: limited(&bucket, LIMITS),
        proxy,
    };
    let bytes = varied(LARGE_BYTES);
    let file = file_of(&bytes);
    for key in ["mine/key", "mine-too/key"] {
        setup
            .proxy
            .plan(Operation::CreateUpload, [Fault::ReplyLost]);
        done(setup.storage.put_file(key, file.path()).await);
        assert!(setup.stored_file(key).await == bytes);
        assert_eq!(setup.uploads(key).await, 1);
    }
    let now = setup.direct.now().await.unwrap();
    for (time, aborted) in [
        (UnixMillis(now.0 - 3_600_000), 0),
        (UnixMillis(now.0 + 3_600_000), 1),
    ] {
        let swept = setup.storage.abort_uploads_begun_before("mine", time).await;
        assert_eq!(swept.unwrap(), aborted);
        assert_eq!(setup.uploads("mine/key").await, 1 - aborted);
    }
    // Somebody else's.
    assert_eq!(setup.uploads("mine-too/key").await, 1);
}

#[tokio::test]
async fn an_upload_that_fails_for_good_is_aborted_and_leaves_nothing() {
    let setup = Setup::new().await;
    let file = file_of(&varied(LARGE_BYTES));
    for (operation, fault, expected) in [
        (
            Operation::UploadPart,
            Fault::Answer(500, "InternalError"),
            StorageErrorKind::Unavailable,
        ),
        (
            Operation::UploadPart,
            Fault::RequestCut,
            StorageErrorKind::Unavailable,
        ),
        (
            Operation::UploadPart,
            Fault::Answer(403, "AccessDenied"),
            StorageErrorKind::Refused,
        ),
        (
            Operation::CompleteUpload,
            Fault::Answer(503, "SlowDown"),
            StorageErrorKind::Unavailable,
        ),
        (
            Operation::CompleteUpload,
            Fault::Answer(409, "ConditionalRequestConflict"),
            StorageErrorKind::Unavailable,
        ),
        (
            Operation::CompleteUpload,
            Fault::Answer(500, "InternalError"),
            StorageErrorKind::OutcomeUnknown,
        ),
        (
            Operation::CompleteUpload,
            Fault::Late,
            StorageErrorKind::OutcomeUnknown,
        ),
    ] {
        setup.proxy.always(operation, fault);
        // The first request to abort it goes wrong as well.
        setup.proxy.plan(
            Operation::AbortUpload,
            [Fault::Answer(503, "SlowDown"), Fault::ReplyLost],
        );
        let error = setup.storage.put_file("key", file.path()).await;
        let error = error.unwrap_err();
        assert_eq!(error.kind(), expected, "{operation:?} {fault:?}: {error}");
        assert_eq!(setup.uploads("key").await, 0, "{operation:?} {fault:?}");
        assert_eq!(setup.stored("key").await, None, "{operation:?} {fault:?}");
        // What was delayed finds its upload gone.
        for status in setup.proxy.deliver().await {
            assert_eq!(status, 404);
        }
        assert_eq!(setup.stored("key").await, None, "{operation:?} {fault:?}");
        setup.proxy.always(operation, Fault::Nothing);
    }
    done(setup.storage.put_file("key", file.path()).await);
}

#[tokio::test]
async fn a_delayed_completion_does_not_undo_its_own_repetition() {
    let setup = Setup::new().await;
    let bytes = varied(LARGE_BYTES);
    let file = file_of(&bytes);
    setup.proxy.plan(Operation::CompleteUpload, [Fault::Late]);
    let version = done(setup.storage.put_file("key", file.path()).await);
    let statuses = setup.proxy.deliver().await;
    assert_eq!(statuses.len(), 1);
    let mut attempts = setup.direct.attempts();
    let head = setup.direct.look_at("key", &mut attempts).await;
    let head = head.unwrap().unwrap();
    assert_eq!(head.e_tag(), Some(version.tag()), "{statuses:?}");
    assert!(setup.stored_file("key").await == bytes);
}

#[tokio::test]
async fn an_object_that_appears_during_an_upload_is_a_conflict_and_stays() {
    let setup = Setup::new().await;
    let file = file_of(&varied(LARGE_BYTES));
    setup.proxy.plan(Operation::CompleteUpload, [Fault::Held]);
    let storage = Arc::clone(&setup.storage);
    let path = file.path().to_owned();
    let uploading = tokio::spawn(async move { storage.put_file("key", &path).await });
    setup.proxy.wait_for(Operation::CompleteUpload, 1).await;
    setup.create("key", "another's").await;
    setup.proxy.release();
    assert_eq!(uploading.await.unwrap(), Ok(Put::Conflict));
    assert_eq!(setup.stored("key").await.unwrap().bytes, "another's");
    assert_eq!(setup.uploads("key").await, 0);
}

#[tokio::test]
async fn an_upload_to_a_server_that_says_nothing_ends_and_is_aborted() {
    for (operation, expected) in [
        (Operation::CreateUpload, StorageErrorKind::Unavailable),
        (Operation::UploadPart, StorageErrorKind::Unavailable),
        (Operation::CompleteUpload, StorageErrorKind::OutcomeUnknown),
    ] {
        let setup = Setup::with(Limits {
            transfer: Duration::from_secs(2),
            attempt: Duration::from_secs(2),
            attempts_max: 2,
            ..LIMITS
        })
        .await;
        let file = file_of(&varied(LARGE_BYTES));
        setup.proxy.always(operation, Fault::Silence);
        let error = setup.storage.put_file("key", file.path()).await;
        let error = error.unwrap_err();
        assert_eq!(error.kind(), expected, "{operation:?}: {error}");
        assert_eq!(setup.uploads("key").await, 0, "{operation:?}");
    }
}
