use std::sync::Arc;

use super::*;
use crate::{
    StorageUrl,
    conformance::{Handles, WRITERS, conformance_tests},
    testing::TestBucket,
};

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
    let storage = S3Storage::new("no-such-bucket", "", &bucket.options);
    let error = storage.put_if_absent("key", "x".into()).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Refused, "{error}");
    assert!(error.to_string().contains("no-such-bucket"), "{error}");
    assert!(error.to_string().contains("NoSuchBucket"), "{error}");
}

#[tokio::test]
async fn a_wrong_secret_is_refused_and_not_shown() {
    let bucket = TestBucket::any().await;
    let mut options = bucket.options.clone();
    options.access_key = Some(("keydb-test".to_owned(), "hunter2-hunter2".to_owned()));
    let storage = S3Storage::new(&bucket.name, "", &options);
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
    assert!(error.to_string().contains("s3://bucket/key"), "{error}");
    let error = storage.now().await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn an_upload_that_fails_leaves_nothing_behind() {
    let bucket = TestBucket::any().await;
    let storage = Arc::new(S3Storage::new(&bucket.name, "", &bucket.options));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![7; 80 << 20]).unwrap();
    let uploading = tokio::spawn({
        let (storage, path) = (Arc::clone(&storage), file.path().to_owned());
        async move { storage.put_file("key", &path).await }
    });
    let client = storage.client().await.clone();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
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
        assert!(tokio::time::Instant::now() < deadline, "no upload began");
        assert!(!uploading.is_finished(), "the upload was over too soon");
        tokio::task::yield_now().await;
    }
    uploading.abort();
    let _ = uploading.await;
    while !uploads().await.is_empty() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the upload was not aborted"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(storage.get("key").await, Ok(None));
}
