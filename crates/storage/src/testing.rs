//! For tests, of this crate and of others (feature `testing`): a bucket of a real S3 server.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use aws_sdk_s3::{
    Client,
    config::{BehaviorVersion, Credentials, Region},
};
use keydb_core::random;

use crate::{ObjectStorage, S3Options, StorageUrl};

/// A new bucket of the server that `TEST_S3_ENDPOINT` names, for one test.
#[derive(Debug, Clone)]
pub struct TestBucket {
    /// Its name.
    pub name: String,
    /// How it is reached.
    pub options: S3Options,
}

impl TestBucket {
    /// A new bucket; `None`, said loudly, where there is no S3 server to test with.
    ///
    /// # Panics
    /// When the server does not make the bucket; or, in continuous integration (`CI` is set), when there is no server.
    pub async fn new() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let Ok(endpoint) = std::env::var("TEST_S3_ENDPOINT") else {
            assert!(
                std::env::var_os("CI").is_none(),
                "TEST_S3_ENDPOINT is not set; continuous integration tests with a real S3 server: scripts/minio with cargo test"
            );
            eprintln!(
                "SKIPPED: there is no S3 server to test with. To run this test: scripts/minio with cargo test"
            );
            return None;
        };
        let var = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
        let access_key = (
            var("TEST_S3_ACCESS_KEY_ID"),
            var("TEST_S3_SECRET_ACCESS_KEY"),
        );
        let name = format!(
            "test-{:016x}-{}",
            random::u64(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .credentials_provider(Credentials::new(
                &access_key.0,
                &access_key.1,
                None,
                None,
                "test",
            ))
            .region(Region::new("us-east-1"))
            .endpoint_url(&endpoint)
            .force_path_style(true)
            .build();
        Client::from_conf(config)
            .create_bucket()
            .bucket(&name)
            .send()
            .await
            .unwrap_or_else(|error| panic!("bucket {name} at {endpoint}: {error:?}"));
        Some(Self {
            name,
            options: S3Options {
                endpoint: Some(endpoint),
                region: None,
                access_key: Some(access_key),
            },
        })
    }

    /// The storage below `prefix` in the bucket.
    ///
    /// # Panics
    /// When the prefix is not possible.
    pub fn open(&self, prefix: &str) -> Arc<dyn ObjectStorage> {
        let url = StorageUrl::s3(&self.name, prefix).expect("a bucket of a test has a name");
        url.open(&self.options)
            .expect("opening a bucket does nothing yet")
    }
}
