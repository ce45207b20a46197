//! Objects in an S3 bucket, of AWS or of any server that speaks the same.
//!
//! **Retries** are made here and nowhere else; the SDK's own are off. Only so is it known whether a conditional write that meets a
//! conflict may have met itself: a first attempt has not, a repeat may have. Every write carries a nonce in its metadata, so after
//! an attempt whose outcome is unknown the object is looked at: if it has the nonce, the write has succeeded. 412 means that the
//! condition did not hold; 409 that another write was under way at the same time, and that it is worth another try.
//!
//! **Versions** are ETags, which S3 makes from the content: see [`Version`](crate::Version) for what that asks of callers.
//!
//! **Large files** are uploaded in parts, a part in memory at a time. An upload that fails or is dropped is aborted. Streams that
//! break off are taken up where they stopped, of the same version of the object.
//!
//! **Checksums** are sent and checked only where S3 requires them, because servers other than AWS's differ in which they know;
//! snapshot files and manifests carry their own.

mod failure;
mod read;
mod retry;
mod write;

#[cfg(test)]
mod tests;

use std::{fmt, ops::Range, path::Path, sync::Mutex, time::Duration};

use async_trait::async_trait;
use aws_sdk_s3::{
    Client,
    config::{
        BehaviorVersion, ConfigBag, Credentials, Intercept, Region, RequestChecksumCalculation,
        ResponseChecksumValidation, RuntimeComponents, StalledStreamProtectionConfig,
        interceptors::BeforeDeserializationInterceptorContextRef, retry::RetryConfig,
        timeout::TimeoutConfig,
    },
    error::BoxError,
    primitives::{DateTime, DateTimeFormat},
};
use bytes::Bytes;
use keydb_core::UnixMillis;
use tokio::sync::OnceCell;

use self::retry::Attempts;
use crate::{
    ListPage, Object, ObjectInfo, ObjectStorage, ObjectStream, Put, StorageError, StorageErrorKind,
    Version, check_key,
};

const REGION_DEFAULT: &str = "us-east-1";

/// How long a connection may take to be made, and how long one attempt may take in all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a body may stand still.
const STALL_GRACE: Duration = Duration::from_secs(20);

/// How an S3 bucket is reached, besides its name.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct S3Options {
    /// Where the server is, such as `http://minio:9000`; AWS's own when there is none. Objects are then addressed by path.
    pub endpoint: Option<String>,
    /// The region; `us-east-1` when there is none.
    pub region: Option<String>,
    /// Id and secret of an access key; the SDK's chain of providers (environment, profile, instance role) when there is none.
    pub access_key: Option<(String, String)>,
}

impl fmt::Debug for S3Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Options")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("access_key_id", &self.access_key.as_ref().map(|(id, _)| id))
            .finish_non_exhaustive()
    }
}

/// Object storage in an S3 bucket, below a prefix.
pub(crate) struct S3Storage {
    bucket: String,
    /// Empty, or ends in a slash.
    prefix: String,
    options: S3Options,
    client: OnceCell<Client>,
}

impl fmt::Debug for S3Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Storage")
            .field("bucket", &self.bucket)
            .field("prefix", &self.prefix)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl S3Storage {
    /// The bucket's objects whose keys begin with `prefix`, which has no slash at its ends.
    pub(crate) fn new(bucket: &str, prefix: &str, options: &S3Options) -> Self {
        Self {
            bucket: bucket.to_owned(),
            prefix: if prefix.is_empty() {
                String::new()
            } else {
                format!("{prefix}/")
            },
            options: options.clone(),
            client: OnceCell::new(),
        }
    }

    /// The client; made at its first use, because finding credentials may need the network.
    async fn client(&self) -> &Client {
        self.client.get_or_init(|| self.make_client()).await
    }

    async fn make_client(&self) -> Client {
        let options = &self.options;
        let region = options.region.as_deref().unwrap_or(REGION_DEFAULT);
        let mut config = match &options.access_key {
            Some((id, secret)) => aws_sdk_s3::Config::builder()
                .behavior_version(BehaviorVersion::latest())
                .credentials_provider(Credentials::new(id, secret, None, None, "settings")),
            None => {
                let shared = aws_config::defaults(BehaviorVersion::latest())
                    .region(Region::new(region.to_owned()))
                    .load()
                    .await;
                aws_sdk_s3::config::Builder::from(&shared)
            }
        }
        .region(Region::new(region.to_owned()))
        .retry_config(RetryConfig::disabled())
        .timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                .operation_attempt_timeout(ATTEMPT_TIMEOUT)
                .build(),
        )
        .stalled_stream_protection(
            StalledStreamProtectionConfig::enabled()
                .grace_period(STALL_GRACE)
                .build(),
        )
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        if let Some(endpoint) = &options.endpoint {
            config = config.endpoint_url(endpoint).force_path_style(true);
        }
        Client::from_conf(config.build())
    }

    /// The object's key in the bucket.
    fn full_key(&self, key: &str) -> Result<String, StorageError> {
        check_key(key)?;
        Ok(format!("{}{key}", self.prefix))
    }

    /// Where an object is, for messages.
    fn place(&self, key: &str) -> String {
        let endpoint = self.options.endpoint.as_deref().unwrap_or("AWS");
        format!("s3://{}/{}{key} at {endpoint}", self.bucket, self.prefix)
    }
}

#[async_trait]
impl ObjectStorage for S3Storage {
    async fn get(&self, key: &str) -> Result<Option<Object>, StorageError> {
        self.read_object(key).await
    }

    async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<Put, StorageError> {
        self.put(key, bytes, None).await
    }

    async fn put_if_match(
        &self,
        key: &str,
        bytes: Bytes,
        version: &Version,
    ) -> Result<Put, StorageError> {
        self.put(key, bytes, Some(version)).await
    }

    async fn put_file(&self, key: &str, file: &Path) -> Result<Put, StorageError> {
        self.upload(key, file).await
    }

    async fn get_range(
        &self,
        key: &str,
        range: Range<u64>,
    ) -> Result<Option<ObjectStream>, StorageError> {
        self.stream(key, range).await
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StorageError> {
        let info = self.look_at(key).await?;
        Ok(info.map(|found| found.info))
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<ListPage, StorageError> {
        self.list_objects(prefix, after).await
    }

    async fn delete(&self, key: &str) -> Result<(), StorageError> {
        self.remove(key).await
    }

    async fn now(&self) -> Result<UnixMillis, StorageError> {
        let mut attempts = Attempts::new();
        loop {
            let date = DateHeader::default();
            let heard = date.0.clone();
            let answer = self
                .client()
                .await
                .head_bucket()
                .bucket(&self.bucket)
                .customize()
                .interceptor(date)
                .send()
                .await;
            // A server that refuses tells its time all the same.
            let told = heard.lock().ok().and_then(|heard| heard.clone());
            let time =
                told.and_then(|text| DateTime::from_str(&text, DateTimeFormat::HttpDate).ok());
            if let Some(ms) = time.and_then(|time| u64::try_from(time.to_millis().ok()?).ok()) {
                return Ok(UnixMillis(ms));
            }
            let why = match answer {
                Ok(_) => "there is no Date in its answer".to_owned(),
                Err(error) => failure::text(&error),
            };
            if !attempts.again().await {
                return Err(StorageError::new(
                    StorageErrorKind::Unavailable,
                    format!("{} does not tell the time: {why}", self.place("")),
                ));
            }
        }
    }
}

/// Notes the `Date` header of an answer.
#[derive(Debug, Default)]
struct DateHeader(std::sync::Arc<Mutex<Option<String>>>);

impl Intercept for DateHeader {
    fn name(&self) -> &'static str {
        "DateHeader"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date");
        if let (Some(date), Ok(mut heard)) = (date, self.0.lock()) {
            *heard = Some(date.to_owned());
        }
        Ok(())
    }
}
