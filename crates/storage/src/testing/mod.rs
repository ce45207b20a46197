//! For tests, of this crate and of others (feature `testing`): storage in memory that fails as it is told to
//! ([`FaultyStorage`]); buckets of a real S3 server and of one in the test's own process ([`TestBucket`]), and a bad connection to
//! either ([`FaultProxy`]).

mod faulty;
mod objects;
mod proxy;
mod server;

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use aws_sdk_s3::{
    Client,
    config::{BehaviorVersion, Credentials, Region},
};
use keydb_core::random;

use self::server::Server;
pub use self::{
    faulty::{DOWN, FaultyStorage, StorageFault},
    proxy::{Fault, FaultProxy, Operation},
};
use crate::{ObjectStorage, S3Options, StorageUrl};

/// A new bucket for one test.
#[derive(Debug, Clone)]
pub struct TestBucket {
    /// Its name.
    pub name: String,
    /// How it is reached.
    pub options: S3Options,
    /// The server, when it is this process's; it ends with the last bucket.
    _server: Option<Arc<Server>>,
}

impl TestBucket {
    /// A new bucket of the server that `TEST_S3_ENDPOINT` names; `None`, said loudly, where there is no S3 server to test with.
    ///
    /// # Panics
    /// When the server does not make the bucket; or, in continuous integration (`CI` is set), when there is no server.
    pub async fn new() -> Option<Self> {
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
        Some(Self::create(endpoint, access_key, None).await)
    }

    /// A new bucket of a new server in this process.
    ///
    /// # Panics
    /// When there is no port for it.
    pub async fn in_process() -> Self {
        let access_key = ("keydb-test".to_owned(), "keydb-test-secret".to_owned());
        let server = Server::start(&access_key).await;
        let endpoint = format!("http://{}", server.address);
        Self::create(endpoint, access_key, Some(Arc::new(server))).await
    }

    /// A new bucket of the server that `TEST_S3_ENDPOINT` names, or, without it, of one in this process.
    ///
    /// # Panics
    /// When the server does not make the bucket.
    pub async fn any() -> Self {
        if std::env::var_os("TEST_S3_ENDPOINT").is_some()
            && let Some(bucket) = Self::new().await
        {
            return bucket;
        }
        Self::in_process().await
    }

    async fn create(
        endpoint: String,
        access_key: (String, String),
        server: Option<Arc<Server>>,
    ) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "test-{:016x}-{}",
            random::u64(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        let bucket = Self {
            name,
            options: S3Options {
                endpoint: Some(endpoint),
                region: None,
                access_key: Some(access_key),
            },
            _server: server,
        };
        let made = bucket.client().create_bucket().bucket(&bucket.name).send();
        made.await
            .unwrap_or_else(|error| panic!("{bucket:?}: {error:?}"));
        bucket
    }

    /// The SDK's own client for the bucket's server.
    pub(crate) fn client(&self) -> Client {
        let (id, secret) = self.options.access_key.as_ref().expect("a test has a key");
        let mut config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .credentials_provider(Credentials::new(id, secret, None, None, "test"))
            .region(Region::new("us-east-1"))
            .force_path_style(true);
        config.set_endpoint_url(self.options.endpoint.clone());
        Client::from_conf(config.build())
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
