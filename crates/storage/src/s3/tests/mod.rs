mod credentials;
mod reads;
mod uploads;
mod writes;

use std::{sync::Arc, time::Duration};

use super::*;
use crate::{
    StorageErrorKind, StorageUrl,
    conformance::{Handles, WRITERS, conformance_tests},
    testing::{Fault, FaultProxy, Operation, TestBucket},
};

/// Short pauses and much patience: what fails, fails because of what was planned.
const LIMITS: Limits = Limits {
    attempts_max: 4,
    backoff_min: Duration::from_millis(1),
    call: Duration::from_secs(60),
    attempt: Duration::from_secs(30),
    transfer: Duration::from_secs(60),
    stall: Duration::from_secs(30),
};
/// No patience, for servers that say nothing.
const IMPATIENT: Limits = Limits {
    attempt: Duration::from_millis(100),
    transfer: Duration::from_millis(300),
    stall: Duration::from_millis(100),
    ..LIMITS
};
/// The least that S3 takes.
const PART_BYTES_MIN: u64 = 5 << 20;

impl S3Storage {
    /// The bucket's objects below no prefix, with short pauses between attempts.
    pub(crate) fn hasty(bucket: &TestBucket) -> Arc<Self> {
        limited(bucket, LIMITS)
    }
}

fn limited(bucket: &TestBucket, limits: Limits) -> Arc<S3Storage> {
    let storage = S3Storage::with_limits(&bucket.name, "", &bucket.options, limits, PART_BYTES_MIN);
    Arc::new(storage.unwrap())
}

/// A bucket behind a bad connection, and by a good one.
struct Setup {
    proxy: FaultProxy,
    storage: Arc<S3Storage>,
    direct: Arc<S3Storage>,
}

impl Setup {
    async fn new() -> Self {
        Self::with(LIMITS).await
    }

    async fn with(limits: Limits) -> Self {
        let bucket = TestBucket::any().await;
        let proxy = FaultProxy::before(&bucket).await;
        Self {
            storage: limited(proxy.bucket(), limits),
            direct: limited(&bucket, LIMITS),
            proxy,
        }
    }

    /// Writes an object by the good connection.
    async fn create(&self, key: &str, bytes: impl Into<Bytes>) -> Version {
        done(self.direct.put_if_absent(key, bytes.into()).await)
    }

    async fn stored(&self, key: &str) -> Option<Object> {
        self.direct.get(key).await.unwrap()
    }
}

fn done(put: Result<Put, StorageError>) -> Version {
    match put {
        Ok(Put::Done(version)) => version,
        other => panic!("{other:?}"),
    }
}

/// What passes by itself, of replies without and with a body.
const PASSING: [Fault; 8] = [
    Fault::Slow(Duration::from_millis(20)),
    Fault::Answer(500, "InternalError"),
    Fault::Answer(503, "SlowDown"),
    Fault::Answer(409, "ConditionalRequestConflict"),
    Fault::AppliedAnswer(500, "InternalError"),
    Fault::RequestCut,
    Fault::ReplyCut,
    Fault::ReplyLost,
];

/// A bucket of its own on a real S3 server, where there is one.
async fn open() -> Option<Handles> {
    let bucket = TestBucket::new().await?;
    Some(Handles {
        handles: (0..WRITERS).map(|_| bucket.open("some/prefix")).collect(),
        _bucket: Some(bucket),
        _dir: None,
    })
}

conformance_tests!(open().await);

/// The same on a server in this process.
mod in_process {
    use super::*;

    async fn open() -> Handles {
        let bucket = TestBucket::in_process().await;
        Handles {
            handles: (0..WRITERS).map(|_| bucket.open("some/prefix")).collect(),
            _bucket: Some(bucket),
            _dir: None,
        }
    }

    conformance_tests!(open().await);
}

#[tokio::test]
async fn prefixes_of_a_bucket_are_storages_of_their_own() {
    let bucket = TestBucket::any().await;
    let (one, other) = (bucket.open("one"), bucket.open("one-more"));
    let put = one.put_if_absent("key", "1".into()).await.unwrap();
    assert!(matches!(put, Put::Done(_)));
    assert_eq!(other.get("key").await, Ok(None));
    let put = other.put_if_absent("key", "2".into()).await.unwrap();
    assert!(matches!(put, Put::Done(_)));
    let keys = |page: ListPage| -> Vec<String> {
        page.objects.into_iter().map(|object| object.key).collect()
    };
    assert_eq!(keys(one.list("", None).await.unwrap()), ["key"]);
    assert_eq!(
        keys(bucket.open("").list("", None).await.unwrap()),
        ["one-more/key", "one/key"]
    );
}

#[tokio::test]
async fn a_bucket_that_does_not_exist_is_refused_by_name() {
    let bucket = TestBucket::any().await;
    let storage = S3Storage::open("no-such-bucket", "", &bucket.options).unwrap();
    let error = storage.put_if_absent("key", "x".into()).await.unwrap_err();
    assert!(error.to_string().contains("NoSuchBucket"), "{error}");
    for error in [
        error,
        storage.get("key").await.unwrap_err(),
        storage.get_range("key", 0..9).await.unwrap_err(),
        storage.head("key").await.unwrap_err(),
        storage.list("", None).await.unwrap_err(),
        storage.delete("key").await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), StorageErrorKind::Refused, "{error}");
        assert!(error.to_string().contains("no-such-bucket"), "{error}");
    }
}

#[tokio::test]
async fn a_wrong_secret_is_refused_and_not_shown() {
    let bucket = TestBucket::any().await;
    let mut options = bucket.options.clone();
    options.access_key = Some(("keydb-test".to_owned(), "hunter2-hunter2".to_owned()));
    let storage = S3Storage::open(&bucket.name, "", &options).unwrap();
    let error = storage.get("key").await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Refused, "{error}");
    assert!(!format!("{error} {error:?} {storage:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable() {
    // Nobody listens at a port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let options = S3Options {
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        region: None,
        access_key: Some(("id".to_owned(), "secret".to_owned())),
    };
    let storage = StorageUrl::s3("bucket", "")
        .unwrap()
        .open(&options)
        .unwrap();
    let error = storage.get("key").await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Unavailable, "{error}");
    assert!(
        error.to_string().contains("\"key\" in s3://bucket"),
        "{error}"
    );
    // There was no connection: a write was not even sent.
    let error = storage.put_if_absent("key", "x".into()).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Unavailable, "{error}");
    let error = storage.now().await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn an_upload_that_fails_leaves_nothing_behind() {
    let bucket = TestBucket::any().await;
    let storage = Arc::new(S3Storage::open(&bucket.name, "", &bucket.options).unwrap());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![7; 80 << 20]).unwrap();
    let uploading = tokio::spawn({
        let (storage, path) = (Arc::clone(&storage), file.path().to_owned());
        async move { storage.put_file("key", &path).await }
    });
    let client = bucket.client();
    let deadline = Instant::now() + Duration::from_secs(30);
    let uploads = async || {
        let reply = client
            .list_multipart_uploads()
            .bucket(&bucket.name)
            .prefix("key")
            .send()
            .await
            .unwrap();
        let ids = reply
            .uploads()
            .iter()
            .filter_map(|upload| upload.upload_id());
        ids.map(str::to_owned).collect::<Vec<_>>()
    };
    // With a part, it is known to the uploader as well.
    let has_part = async || {
        let Some(id) = uploads().await.pop() else {
            return false;
        };
        let parts = client
            .list_parts()
            .bucket(&bucket.name)
            .key("key")
            .upload_id(id);
        parts
            .send()
            .await
            .is_ok_and(|reply| !reply.parts().is_empty())
    };
    while !has_part().await {
        assert!(Instant::now() < deadline, "no upload began");
        assert!(!uploading.is_finished(), "the upload was over too soon");
        tokio::task::yield_now().await;
    }
    uploading.abort();
    let _ = uploading.await;
    while !uploads().await.is_empty() {
        assert!(Instant::now() < deadline, "the upload was not aborted");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(storage.get("key").await, Ok(None));
}
