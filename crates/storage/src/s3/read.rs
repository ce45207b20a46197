//! Reading, listing and looking.

use std::ops::Range;

use aws_sdk_s3::{operation::get_object::GetObjectOutput, primitives::ByteStream};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use keydb_core::UnixMillis;

use super::{
    S3Storage,
    failure::{Failure, classify, of_read, text},
    retry::Attempts,
    write::NONCE,
};
use crate::{
    LIST_PAGE_MAX, ListPage, OBJECT_BYTES_MAX, Object, ObjectInfo, ObjectStream, StorageError,
    StorageErrorKind, Version,
};

/// What a look at an object shows.
pub(super) struct Found {
    pub(super) info: ObjectInfo,
    pub(super) version: Version,
    /// What its writer drew.
    pub(super) nonce: Option<String>,
}

impl S3Storage {
    pub(super) async fn read_object(&self, key: &str) -> Result<Option<Object>, StorageError> {
        let mut attempts = Attempts::new();
        loop {
            let Some(reply) = self.get_object(key, None, None).await? else {
                return Ok(None);
            };
            let size = reply.content_length().unwrap_or(0).max(0) as u64;
            if size > OBJECT_BYTES_MAX {
                return Err(StorageError::refused(format!(
                    "{} has {size} bytes; it is read as a whole up to {OBJECT_BYTES_MAX}",
                    self.place(key)
                )));
            }
            let version = version(reply.e_tag(), || self.place(key))?;
            let why = match reply.body.collect().await {
                Ok(body) => {
                    let bytes = body.into_bytes();
                    if bytes.len() as u64 == size {
                        return Ok(Some(Object { bytes, version }));
                    }
                    format!("{} bytes came, and {size} were promised", bytes.len())
                }
                Err(error) => error.to_string(),
            };
            if !attempts.again().await {
                return Err(of_read("read", &self.place(key), Failure::Unclear, &why));
            }
        }
    }

    pub(super) async fn stream(
        &self,
        key: &str,
        range: Range<u64>,
    ) -> Result<Option<ObjectStream>, StorageError> {
        let empty = |size_bytes| ObjectStream {
            size_bytes,
            bytes: stream::empty().boxed(),
        };
        let Some(found) = self.look_at(key).await? else {
            return Ok(None);
        };
        let size_bytes = found.info.size_bytes;
        let end = range.end.min(size_bytes);
        if range.start >= end {
            return Ok(Some(empty(size_bytes)));
        }
        let reading = Reading {
            storage: Self::new(
                &self.bucket,
                self.prefix.trim_end_matches('/'),
                &self.options,
            ),
            key: key.to_owned(),
            version: found.version,
            next: range.start,
            end,
            body: None,
            attempts: Attempts::new(),
        };
        // The same connections serve all parts.
        let client = self.client().await.clone();
        let _ = reading.storage.client.set(client);
        Ok(Some(ObjectStream {
            size_bytes,
            bytes: stream::try_unfold(reading, Reading::next).boxed(),
        }))
    }

    /// The object, or a range of it; of this version only, where one is given. `None` when there is no such object.
    async fn get_object(
        &self,
        key: &str,
        range: Option<Range<u64>>,
        version: Option<&Version>,
    ) -> Result<Option<GetObjectOutput>, StorageError> {
        let full_key = self.full_key(key)?;
        let mut attempts = Attempts::new();
        loop {
            let request = self
                .client()
                .await
                .get_object()
                .bucket(&self.bucket)
                .key(&full_key)
                .set_if_match(version.map(|version| version.tag().to_owned()))
                .set_range(
                    range
                        .as_ref()
                        .map(|range| format!("bytes={}-{}", range.start, range.end - 1)),
                );
            let error = match request.send().await {
                Ok(reply) => return Ok(Some(reply)),
                Err(error) => error,
            };
            let failure = classify(&error);
            match failure {
                Failure::NotFound => return Ok(None),
                Failure::ConditionFailed => {
                    return Err(StorageError::refused(format!(
                        "{} was replaced while it was read",
                        self.place(key)
                    )));
                }
                Failure::Permanent => {}
                _ if attempts.again().await => continue,
                _ => {}
            }
            return Err(of_read("read", &self.place(key), failure, &text(&error)));
        }
    }

    pub(super) async fn look_at(&self, key: &str) -> Result<Option<Found>, StorageError> {
        let full_key = self.full_key(key)?;
        let mut attempts = Attempts::new();
        loop {
            let request = self
                .client()
                .await
                .head_object()
                .bucket(&self.bucket)
                .key(&full_key);
            let error = match request.send().await {
                Ok(reply) => {
                    return Ok(Some(Found {
                        info: ObjectInfo {
                            key: key.to_owned(),
                            size_bytes: reply.content_length().unwrap_or(0).max(0) as u64,
                            modified: unix_ms(reply.last_modified()),
                        },
                        version: version(reply.e_tag(), || self.place(key))?,
                        nonce: reply
                            .metadata()
                            .and_then(|metadata| metadata.get(NONCE))
                            .cloned(),
                    }));
                }
                Err(error) => error,
            };
            let failure = classify(&error);
            match failure {
                Failure::NotFound => return Ok(None),
                Failure::Permanent => {}
                _ if attempts.again().await => continue,
                _ => {}
            }
            return Err(of_read("look at", &self.place(key), failure, &text(&error)));
        }
    }

    pub(super) async fn list_objects(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<ListPage, StorageError> {
        let mut attempts = Attempts::new();
        loop {
            let request = self
                .client()
                .await
                .list_objects_v2()
                .bucket(&self.bucket)
                .prefix(format!("{}{prefix}", self.prefix))
                .set_start_after(after.map(|after| format!("{}{after}", self.prefix)))
                .max_keys(LIST_PAGE_MAX as i32);
            let error = match request.send().await {
                Ok(reply) => {
                    let objects = reply.contents().iter().filter_map(|object| {
                        Some(ObjectInfo {
                            key: object.key()?.strip_prefix(&self.prefix)?.to_owned(),
                            size_bytes: object.size().unwrap_or(0).max(0) as u64,
                            modified: unix_ms(object.last_modified()),
                        })
                    });
                    return Ok(ListPage {
                        objects: objects.collect(),
                        more: reply.is_truncated().unwrap_or(false),
                    });
                }
                Err(error) => error,
            };
            let failure = classify(&error);
            if failure == Failure::Permanent
                || failure == Failure::NotFound
                || !attempts.again().await
            {
                return Err(of_read("list", &self.place(prefix), failure, &text(&error)));
            }
        }
    }
}

/// A part of an object that is being read.
struct Reading {
    storage: S3Storage,
    key: String,
    version: Version,
    next: u64,
    end: u64,
    body: Option<ByteStream>,
    attempts: Attempts,
}

impl Reading {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, StorageError> {
        while self.next < self.end {
            let mut body = match self.body.take() {
                Some(body) => body,
                None => self.open().await?,
            };
            let why = match body.next().await {
                Some(Ok(bytes)) => {
                    self.next += bytes.len() as u64;
                    self.body = Some(body);
                    return Ok(Some((bytes, self)));
                }
                Some(Err(error)) => error.to_string(),
                None => "it ended early".to_owned(),
            };
            if !self.attempts.again().await {
                let place = self.storage.place(&self.key);
                return Err(of_read(
                    "read",
                    &format!("{place} from byte {}", self.next),
                    Failure::Unclear,
                    &why,
                ));
            }
        }
        Ok(None)
    }

    async fn open(&self) -> Result<ByteStream, StorageError> {
        let range = Some(self.next..self.end);
        let reply = self
            .storage
            .get_object(&self.key, range, Some(&self.version))
            .await?;
        let reply = reply.ok_or_else(|| {
            StorageError::new(
                StorageErrorKind::Refused,
                format!(
                    "{} was removed while it was read",
                    self.storage.place(&self.key)
                ),
            )
        })?;
        Ok(reply.body)
    }
}

/// The version that an ETag stands for.
pub(super) fn version(
    e_tag: Option<&str>,
    place: impl FnOnce() -> String,
) -> Result<Version, StorageError> {
    e_tag
        .map(Version::new)
        .ok_or_else(|| StorageError::refused(format!("{}: the server gives no ETag", place())))
}

fn unix_ms(time: Option<&aws_sdk_s3::primitives::DateTime>) -> UnixMillis {
    let ms = time.and_then(|time| u64::try_from(time.to_millis().ok()?).ok());
    UnixMillis(ms.unwrap_or(0))
}
