//! Streams of objects. One that breaks off is taken up again where it stopped, as long as the object is the same.

use std::ops::Range;

use aws_sdk_s3::primitives::ByteStream;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use tokio::time::timeout;

use super::{
    S3Storage,
    attempts::Attempts,
    failure::{Failure, FailureKind},
    size,
};
use crate::ObjectStream;

/// An object, or a part of it, that the server has begun to send.
pub(super) struct Opened {
    pub(super) etag: String,
    /// The whole object's size.
    pub(super) size_bytes: u64,
    /// Which of its bytes come.
    range: Range<u64>,
    body: ByteStream,
}

/// What is left of a download.
struct Download {
    storage: S3Storage,
    key: String,
    etag: String,
    /// The bytes that have not come yet.
    left: Range<u64>,
    /// `None` after it broke off.
    body: Option<ByteStream>,
    attempts: Attempts,
    /// How many bytes came since the attempts were counted anew.
    progress_bytes: u64,
}

/// So many bytes are worth a new count of attempts: a long stream may break off often, one that gets nowhere may not.
const PROGRESS_BYTES: u64 = 1 << 20;

impl S3Storage {
    /// Asks for an object or a part of it, if it has the one ETag, and has not the other.
    pub(super) async fn open_object(
        &self,
        key: &str,
        range: Option<&Range<u64>>,
        etag: Option<&str>,
        known: Option<&str>,
        attempts: &mut Attempts,
    ) -> Result<Opened, Failure> {
        let header = range.map(|range| match range.end {
            u64::MAX => format!("bytes={}-", range.start),
            end => format!("bytes={}-{}", range.start, end - 1),
        });
        let request = || {
            let get = self.inner.client.get_object();
            get.bucket(&self.inner.bucket)
                .key(self.full_key(key))
                .set_range(header.clone())
                .set_if_match(etag.map(str::to_owned))
                .set_if_none_match(known.map(str::to_owned))
                .send()
        };
        let answer = attempts.run(request).await?;
        let length = size(answer.content_length())?;
        let (size_bytes, start) = match range {
            None => (length, 0),
            Some(range) => {
                let text = answer.content_range().unwrap_or_default();
                let (start, size_bytes) = parse_content_range(text).ok_or_else(|| {
                    Failure::refused(format!(
                        "asked for a part of it, the server answered with content range {text:?}"
                    ))
                })?;
                if start != range.start || start + length != size_bytes.min(range.end) {
                    return Err(Failure::refused(format!(
                        "asked for bytes {range:?}, the server answered with content range {text:?}"
                    )));
                }
                (size_bytes, start)
            }
        };
        let etag = answer.e_tag().ok_or_else(|| Failure::incomplete("ETag"))?;
        Ok(Opened {
            etag: etag.to_owned(),
            size_bytes,
            range: start..start + length,
            body: answer.body,
        })
    }

    /// A stream of the part of `range` that lies within the object; `None` when there is no object.
    pub(super) async fn stream(
        &self,
        key: &str,
        range: Range<u64>,
    ) -> Result<Option<ObjectStream>, Failure> {
        let mut attempts = self.attempts();
        if range.start < range.end {
            match self
                .open_object(key, Some(&range), None, None, &mut attempts)
                .await
            {
                Ok(opened) => {
                    let size_bytes = opened.size_bytes;
                    let download = self.download(key, opened);
                    let bytes = stream::try_unfold(download, |mut download| async {
                        let chunk = download.next().await.map_err(|failure| {
                            failure.not_applied(&download.storage.what("read", &download.key))
                        })?;
                        Ok(chunk.map(|chunk| (chunk, download)))
                    });
                    return Ok(Some(ObjectStream {
                        size_bytes,
                        bytes: bytes.boxed(),
                    }));
                }
                Err(failure) if failure.kind == FailureKind::NotFound => return Ok(None),
                Err(failure) if failure.kind == FailureKind::OutOfRange => {}
                Err(failure) => return Err(failure),
            }
        }
        // A part without bytes cannot be asked for.
        let Some(head) = self.look_at(key, &mut attempts).await? else {
            return Ok(None);
        };
        Ok(Some(ObjectStream {
            size_bytes: size(head.content_length())?,
            bytes: stream::empty().boxed(),
        }))
    }

    /// All bytes of an object that is not too large for that.
    pub(super) async fn collect(&self, key: &str, opened: Opened) -> Result<Bytes, Failure> {
        let collect = async {
            let mut bytes =
                BytesMut::with_capacity(usize::try_from(opened.size_bytes).unwrap_or(0));
            let mut download = self.download(key, opened);
            while let Some(chunk) = download.next().await? {
                bytes.extend_from_slice(&chunk);
            }
            Ok(bytes.freeze())
        };
        let limit = self.inner.limits.transfer;
        timeout(limit, collect)
            .await
            .unwrap_or_else(|_| Err(Failure::timeout(limit)))
    }

    fn download(&self, key: &str, opened: Opened) -> Download {
        Download {
            storage: self.clone(),
            key: key.to_owned(),
            etag: opened.etag,
            left: opened.range,
            body: Some(opened.body),
            attempts: self.attempts(),
            progress_bytes: 0,
        }
    }
}

impl Download {
    /// The next bytes; `None` when all have come. A failed condition means that the object is not the same any more.
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        while !self.left.is_empty() {
            let body = match &mut self.body {
                Some(body) => body,
                None => {
                    let opened = self.storage.open_object(
                        &self.key,
                        Some(&self.left),
                        Some(&self.etag),
                        None,
                        &mut self.attempts,
                    );
                    let opened = opened.await.map_err(gone)?;
                    self.body.insert(opened.body)
                }
            };
            let stall = self.storage.inner.limits.stall;
            let broke_off = match timeout(stall, body.next()).await {
                Ok(Some(Ok(chunk))) if chunk.is_empty() => continue,
                Ok(Some(Ok(chunk))) if chunk.len() as u64 <= self.left.end - self.left.start => {
                    self.left.start += chunk.len() as u64;
                    self.progress_bytes += chunk.len() as u64;
                    if self.progress_bytes >= PROGRESS_BYTES {
                        self.attempts.renew();
                        self.progress_bytes = 0;
                    }
                    return Ok(Some(chunk));
                }
                Ok(Some(Ok(_))) => "the server sent more than it announced".to_owned(),
                Ok(Some(Err(error))) => format!("the transfer broke off: {error}"),
                Ok(None) => "the transfer ended early".to_owned(),
                Err(_) => Failure::timeout(stall).reason,
            };
            self.body = None;
            let reason = format!(
                "{broke_off}, {} bytes before its end",
                self.left.end - self.left.start
            );
            tracing::debug!(key = self.key, reason, "taking a download up again");
            if !self.attempts.again().await {
                return Err(Failure::broke_off(reason));
            }
        }
        Ok(None)
    }
}

/// What it means when an object that was there is not to be had with the same ETag.
fn gone(failure: Failure) -> Failure {
    match failure.kind {
        FailureKind::ConditionFailed | FailureKind::NotFound | FailureKind::OutOfRange => {
            Failure::replaced()
        }
        _ => failure,
    }
}

/// The first byte and the whole size in `bytes 0-99/1234`.
fn parse_content_range(text: &str) -> Option<(u64, u64)> {
    let (range, size_bytes) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.parse().ok()?, size_bytes.parse().ok()?))
}
