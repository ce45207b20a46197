//! Objects in a bucket of Amazon S3 or of a server that speaks its protocol.
//!
//! **Objects** are byte for byte what the caller wrote, so other tools can read them. An object's version is its ETag, which most
//! servers make from the bytes; that is why [`ObjectStorage::put_if_match`] asks for bytes that the object never had.
//!
//! **Conditional writes** are the server's (`If-None-Match: *`, `If-Match: <ETag>`). 412 means that the condition does not hold, 409
//! that another write was under way, which is tried again.
//!
//! **A lost reply** leaves in doubt whether a write was applied. Each write carries a random nonce in the object's metadata
//! (`x-amz-meta-keydb-write`). When an attempt ended in doubt and a later one fails its condition, or all fail, the object is looked
//! at: with the call's own nonce it was written by this call. Otherwise the outcome stays unknown, for the write may have been
//! applied and replaced since, or may land later.
//!
//! **Retries** are made here and nowhere else (`attempts`); each attempt and each call has its time.
//!
//! **Large files** go up in parts (`multipart`), large objects come down as streams that are taken up again where they broke off
//! (`download`).

mod attempts;
mod client;
mod date;
mod download;
mod failure;
mod multipart;
mod options;
mod put;
mod sweep;

use std::{
    fmt::{self, Debug},
    ops::Range,
    path::Path,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use aws_sdk_s3::{
    Client,
    operation::{head_object::HeadObjectOutput, list_objects_v2::ListObjectsV2Output},
    primitives::DateTime,
};
use bytes::Bytes;
use keydb_core::UnixMillis;
use tokio::time::Instant;

pub use self::options::S3Options;
use self::{
    attempts::{Attempts, Limits},
    failure::{Failure, FailureKind},
    put::Condition,
};
use crate::{
    LIST_PAGE_MAX, ListPage, MAP_KEY, OBJECT_BYTES_MAX, Object, ObjectInfo, ObjectStorage,
    ObjectStream, Put, Reread, StorageError, Version, check_key,
};

/// The size of a part of a large file. Two are in memory at a time.
const PART_BYTES: u64 = 8 << 20;

/// Object storage in a bucket of Amazon S3 or of a compatible server.
#[derive(Clone)]
pub(crate) struct S3Storage {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    bucket: String,
    /// What the keys of all objects begin with: empty, or ending in a slash.
    prefix: String,
    /// What is shown of it all, in messages.
    name: String,
    limits: Limits,
    part_bytes: u64,
    /// When abandoned uploads were looked for last.
    swept: Mutex<Option<Instant>>,
}

impl Debug for S3Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Storage({})", self.inner.name)
    }
}

impl S3Storage {
    /// The objects of `bucket` whose keys begin with `prefix` and a slash; all of them when the prefix is empty. Nothing is sent yet.
    ///
    /// # Errors
    /// `Refused`, when the options make no sense.
    pub(crate) fn open(
        bucket: &str,
        prefix: &str,
        options: &S3Options,
    ) -> Result<Self, StorageError> {
        Self::with_limits(bucket, prefix, options, Limits::DEFAULT, PART_BYTES)
    }

    fn with_limits(
        bucket: &str,
        prefix: &str,
        options: &S3Options,
        limits: Limits,
        part_bytes: u64,
    ) -> Result<Self, StorageError> {
        let client = client::client(options)?;
        let slash = if prefix.is_empty() { "" } else { "/" };
        let at = match options.checked_endpoint()? {
            Some(endpoint) => format!(" at {endpoint}"),
            None => String::new(),
        };
        Ok(Self {
            inner: Arc::new(Inner {
                client,
                bucket: bucket.to_owned(),
                prefix: format!("{prefix}{slash}"),
                name: format!(
                    "s3://{bucket}{}{prefix}{at}",
                    if prefix.is_empty() { "" } else { "/" }
                ),
                limits,
                part_bytes,
                swept: Mutex::default(),
            }),
        })
    }

    /// The attempts of a call without a large body.
    fn attempts(&self) -> Attempts {
        self.inner.limits.attempts(self.inner.limits.attempt)
    }

    /// The key in the bucket.
    fn full_key(&self, key: &str) -> String {
        format!("{}{key}", self.inner.prefix)
    }

    /// What a message says that was not possible.
    fn what(&self, action: &str, key: &str) -> String {
        format!("{action} object {key:?} in {}", self.inner.name)
    }

    /// What the server says of an object without sending it; `None` when there is none.
    async fn look_at(
        &self,
        key: &str,
        attempts: &mut Attempts,
    ) -> Result<Option<HeadObjectOutput>, Failure> {
        let request = || {
            let head = self.inner.client.head_object();
            head.bucket(&self.inner.bucket)
                .key(self.full_key(key))
                .send()
        };
        match attempts.run(request).await {
            Ok(head) => Ok(Some(head)),
            // An answer without a body does not say what is missing; one to a read does.
            Err(failure) if failure.kind == FailureKind::UnexplainedNotFound => {
                let request = || {
                    let get = self.inner.client.get_object();
                    get.bucket(&self.inner.bucket)
                        .key(self.full_key(key))
                        .range("bytes=0-0")
                        .send()
                };
                match attempts.run(request).await {
                    Err(failure) if failure.kind == FailureKind::NotFound => Ok(None),
                    Ok(_) => Err(Failure::replaced()),
                    Err(failure) if failure.kind == FailureKind::OutOfRange => {
                        Err(Failure::replaced())
                    }
                    Err(failure) => Err(failure),
                }
            }
            Err(failure) => Err(failure),
        }
    }

    async fn list_page(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<ListObjectsV2Output, Failure> {
        let request = || {
            let list = self.inner.client.list_objects_v2();
            list.bucket(&self.inner.bucket)
                .prefix(self.full_key(prefix))
                .set_start_after(after.map(|after| self.full_key(after)))
                .max_keys(LIST_PAGE_MAX as i32)
                .send()
        };
        self.attempts().run(request).await
    }
}

fn millis(time: Option<&DateTime>) -> Result<UnixMillis, Failure> {
    let millis = time.and_then(|time| u64::try_from(time.to_millis().ok()?).ok());
    millis
        .map(UnixMillis)
        .ok_or_else(|| Failure::incomplete("time"))
}

impl S3Storage {
    /// Reads an object, unless it has the version `known`.
    async fn read(&self, key: &str, known: Option<&Version>) -> Result<Reread, StorageError> {
        check_key(key)?;
        let what = self.what("read", key);
        let mut attempts = self.attempts();
        loop {
            let known = known.map(Version::tag);
            let opened = self.open_object(key, None, None, known, &mut attempts);
            let opened = match opened.await {
                Ok(opened) => opened,
                Err(failure) if failure.kind == FailureKind::NotModified => {
                    return Ok(Reread::Unchanged);
                }
                Err(failure) if failure.kind == FailureKind::NotFound => {
                    return Ok(Reread::Changed(None));
                }
                Err(failure) => return Err(failure.not_applied(&what)),
            };
            if opened.size_bytes > OBJECT_BYTES_MAX {
                return Err(StorageError::refused(format!(
                    "object {key:?} in {} has {} bytes; it is read as a whole up to {OBJECT_BYTES_MAX}",
                    self.inner.name, opened.size_bytes
                )));
            }
            let version = Version::new(&opened.etag);
            match self.collect(key, opened).await {
                // Not every server knows the condition.
                Ok(_) if known == Some(version.tag()) => return Ok(Reread::Unchanged),
                Ok(bytes) => return Ok(Reread::Changed(Some(Object { bytes, version }))),
                // Replaced while it was read: there is a newer one.
                Err(failure)
                    if failure.kind == FailureKind::ConditionFailed && attempts.again().await => {}
                Err(failure) => return Err(failure.not_applied(&what)),
            }
        }
    }
}

fn size(length: Option<i64>) -> Result<u64, Failure> {
    let size = length.and_then(|length| u64::try_from(length).ok());
    size.ok_or_else(|| Failure::incomplete("length"))
}

#[async_trait]
impl ObjectStorage for S3Storage {
    async fn get(&self, key: &str) -> Result<Option<Object>, StorageError> {
        match self.read(key, None).await? {
            Reread::Changed(object) => Ok(object),
            Reread::Unchanged => Err(StorageError::refused(format!(
                "{}: the server says that object {key:?} has not changed, which was not asked",
                self.inner.name
            ))),
        }
    }

    async fn get_if_changed(&self, key: &str, known: &Version) -> Result<Reread, StorageError> {
        self.read(key, Some(known)).await
    }

    async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<Put, StorageError> {
        self.put(key, bytes, Condition::Absent).await
    }

    async fn put_if_match(
        &self,
        key: &str,
        bytes: Bytes,
        version: &Version,
    ) -> Result<Put, StorageError> {
        self.put(key, bytes, Condition::Match(version)).await
    }

    async fn put_file(&self, key: &str, file: &Path) -> Result<Put, StorageError> {
        self.upload(key, file).await
    }

    async fn put_stream(&self, key: &str, stream: ObjectStream) -> Result<Put, StorageError> {
        self.upload_stream(key, stream).await
    }

    async fn get_range(
        &self,
        key: &str,
        range: Range<u64>,
    ) -> Result<Option<ObjectStream>, StorageError> {
        check_key(key)?;
        let stream = self.stream(key, range).await;
        stream.map_err(|failure| failure.not_applied(&self.what("read", key)))
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StorageError> {
        check_key(key)?;
        let info = async {
            let Some(head) = self.look_at(key, &mut self.attempts()).await? else {
                return Ok(None);
            };
            Ok(Some(ObjectInfo {
                key: key.to_owned(),
                size_bytes: size(head.content_length())?,
                modified: millis(head.last_modified())?,
            }))
        };
        info.await
            .map_err(|failure: Failure| failure.not_applied(&self.what("look at", key)))
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<ListPage, StorageError> {
        let page = async {
            let mut objects: Vec<ObjectInfo> = Vec::new();
            let mut after = after.map(str::to_owned);
            loop {
                let page = self.list_page(prefix, after.as_deref()).await?;
                for object in page.contents() {
                    let full_key = object.key().unwrap_or_default();
                    let Some(key) = full_key.strip_prefix(&self.inner.prefix) else {
                        let reason =
                            format!("the server listed {full_key:?}, which was not asked for");
                        return Err(Failure::refused(reason));
                    };
                    // By a list in another order pages could miss objects.
                    if after.as_deref().is_some_and(|after| key <= after) {
                        let reason = format!(
                            "the server lists {key:?} after {after:?}: not in ascending order"
                        );
                        return Err(Failure::refused(reason));
                    }
                    after = Some(key.to_owned());
                    // Other programs may have objects of other names here.
                    if check_key(key).is_ok() {
                        if objects.len() == LIST_PAGE_MAX {
                            return Ok(ListPage {
                                objects,
                                more: true,
                            });
                        }
                        objects.push(ObjectInfo {
                            key: key.to_owned(),
                            size_bytes: size(object.size())?,
                            modified: millis(object.last_modified())?,
                        });
                    }
                }
                let more = page.is_truncated().unwrap_or_default();
                if !more || objects.len() == LIST_PAGE_MAX {
                    return Ok(ListPage { objects, more });
                }
                if page.contents().is_empty() {
                    return Err(Failure::refused(
                        "the server says that a list goes on, and names nothing".to_owned(),
                    ));
                }
            }
        };
        page.await.map_err(|failure: Failure| {
            let what = format!("list objects {prefix:?}… in {}", self.inner.name);
            failure.not_applied(&what)
        })
    }

    async fn delete(&self, key: &str) -> Result<(), StorageError> {
        check_key(key)?;
        let request = || {
            let delete = self.inner.client.delete_object();
            delete
                .bucket(&self.inner.bucket)
                .key(self.full_key(key))
                .send()
        };
        match self.attempts().run(request).await {
            Ok(_) => Ok(()),
            Err(failure) if failure.kind == FailureKind::NotFound => Ok(()),
            Err(failure) => Err(failure.of_write(&self.what("remove", key))),
        }
    }

    async fn now(&self) -> Result<UnixMillis, StorageError> {
        // Any answer has the time in its head; whether the object exists does not matter.
        let now = self.server_time(&self.full_key(MAP_KEY)).await;
        now.map_err(|failure| {
            failure.not_applied(&format!("learn the time of {}", self.inner.name))
        })
    }
}

#[cfg(test)]
mod tests;
