//! Writing and removing.

use std::path::Path;

use aws_sdk_s3::{
    Client,
    primitives::ByteStream,
    types::{CompletedMultipartUpload, CompletedPart},
};
use bytes::Bytes;
use keydb_core::OperationId;
use tokio::{fs::File, io::AsyncReadExt};

use super::{
    S3Storage,
    failure::{Failure, classify, of_write, text},
    read::version,
    retry::Attempts,
};
use crate::{Put, StorageError, Version};

/// The name of what each write draws, among the object's metadata.
pub(super) const NONCE: &str = "keydb-write";

/// Files up to this size are written in one piece.
const PART_BYTES_MIN: u64 = 8 << 20;
/// S3 takes 10,000 parts.
const PARTS_MAX: u64 = 9000;

impl S3Storage {
    /// Writes an object that has `expected`, or, without it, that does not exist.
    pub(super) async fn put(
        &self,
        key: &str,
        bytes: Bytes,
        expected: Option<&Version>,
    ) -> Result<Put, StorageError> {
        let full_key = self.full_key(key)?;
        let nonce = OperationId::random().to_string();
        let mut attempts = Attempts::new();
        let mut unclear = false;
        loop {
            let request = self
                .client()
                .await
                .put_object()
                .bucket(&self.bucket)
                .key(&full_key)
                .metadata(NONCE, &nonce)
                .set_if_match(expected.map(|version| version.tag().to_owned()))
                .set_if_none_match(expected.is_none().then(|| "*".to_owned()))
                .body(ByteStream::from(bytes.clone()));
            let error = match request.send().await {
                Ok(reply) => return Ok(Put::Done(version(reply.e_tag(), || self.place(key))?)),
                Err(error) => error,
            };
            let failure = classify(&error);
            match failure {
                Failure::ConditionFailed | Failure::NotFound if !unclear => {
                    return Ok(Put::Conflict);
                }
                Failure::Unclear => unclear = true,
                _ => {}
            }
            if unclear && let Some(put) = self.find_own(key, &nonce).await {
                return Ok(put);
            }
            let again = match failure {
                Failure::Busy | Failure::NotSent | Failure::Unclear => attempts.again().await,
                _ => false,
            };
            if !again {
                let why = text(&error);
                return Err(of_write("write", &self.place(key), failure, unclear, &why));
            }
        }
    }

    /// After an attempt whose outcome is unknown: whether the object is this write's.
    async fn find_own(&self, key: &str, nonce: &str) -> Option<Put> {
        let found = self.look_at(key).await.ok()??;
        (found.nonce.as_deref() == Some(nonce)).then_some(Put::Done(found.version))
    }

    /// Writes an object that does not exist from a file.
    pub(super) async fn upload(&self, key: &str, file: &Path) -> Result<Put, StorageError> {
        self.full_key(key)?;
        let cannot_read = |error: std::io::Error| {
            StorageError::refused(format!("cannot read {}: {error}", file.display()))
        };
        let mut source = File::open(file).await.map_err(cannot_read)?;
        let size = source.metadata().await.map_err(cannot_read)?.len();
        if size <= PART_BYTES_MIN {
            let mut bytes = Vec::new();
            source.read_to_end(&mut bytes).await.map_err(cannot_read)?;
            return self.put(key, bytes.into(), None).await;
        }
        // The condition counts at the end; this spares the transfer.
        if self.look_at(key).await?.is_some() {
            return Ok(Put::Conflict);
        }
        let nonce = OperationId::random().to_string();
        let mut upload = self.begin_upload(key, &nonce).await?;
        let part_bytes = PART_BYTES_MIN.max(size.div_ceil(PARTS_MAX));
        let mut parts = Vec::new();
        let mut sent = 0;
        while sent < size {
            let mut bytes = Vec::with_capacity(part_bytes as usize);
            (&mut source)
                .take(part_bytes)
                .read_to_end(&mut bytes)
                .await
                .map_err(cannot_read)?;
            if bytes.is_empty() {
                return Err(StorageError::refused(format!(
                    "{} became shorter while it was uploaded",
                    file.display()
                )));
            }
            sent += bytes.len() as u64;
            let number = parts.len() as i32 + 1;
            parts.push(self.send_part(key, &upload, number, bytes.into()).await?);
        }
        let put = self.complete(key, &upload, parts, &nonce).await;
        upload.done = !matches!(put, Err(_) | Ok(Put::Conflict));
        put
    }

    async fn begin_upload(&self, key: &str, nonce: &str) -> Result<Upload, StorageError> {
        let full_key = self.full_key(key)?;
        let client = self.client().await;
        let mut attempts = Attempts::new();
        loop {
            let request = client
                .create_multipart_upload()
                .bucket(&self.bucket)
                .key(&full_key)
                .metadata(NONCE, nonce);
            let error = match request.send().await {
                Ok(reply) => {
                    let id = reply.upload_id().ok_or_else(|| {
                        StorageError::refused(format!(
                            "{}: the server gives the upload no id",
                            self.place(key)
                        ))
                    })?;
                    return Ok(Upload {
                        client: client.clone(),
                        bucket: self.bucket.clone(),
                        key: full_key,
                        id: id.to_owned(),
                        done: false,
                    });
                }
                Err(error) => error,
            };
            let failure = classify(&error);
            if failure == Failure::Permanent || !attempts.again().await {
                let why = text(&error);
                return Err(of_write("upload", &self.place(key), failure, false, &why));
            }
        }
    }

    async fn send_part(
        &self,
        key: &str,
        upload: &Upload,
        number: i32,
        bytes: Bytes,
    ) -> Result<CompletedPart, StorageError> {
        let mut attempts = Attempts::new();
        loop {
            let request = upload
                .client
                .upload_part()
                .bucket(&upload.bucket)
                .key(&upload.key)
                .upload_id(&upload.id)
                .part_number(number)
                .body(ByteStream::from(bytes.clone()));
            let error = match request.send().await {
                Ok(reply) => {
                    return Ok(CompletedPart::builder()
                        .part_number(number)
                        .set_e_tag(reply.e_tag().map(str::to_owned))
                        .build());
                }
                Err(error) => error,
            };
            let failure = classify(&error);
            let final_ = matches!(failure, Failure::Permanent | Failure::NotFound);
            if final_ || !attempts.again().await {
                let why = text(&error);
                return Err(of_write("upload", &self.place(key), failure, false, &why));
            }
        }
    }

    async fn complete(
        &self,
        key: &str,
        upload: &Upload,
        parts: Vec<CompletedPart>,
        nonce: &str,
    ) -> Result<Put, StorageError> {
        let parts = CompletedMultipartUpload::builder()
            .set_parts(Some(parts))
            .build();
        let mut attempts = Attempts::new();
        let mut unclear = false;
        loop {
            let request = upload
                .client
                .complete_multipart_upload()
                .bucket(&upload.bucket)
                .key(&upload.key)
                .upload_id(&upload.id)
                .multipart_upload(parts.clone())
                .if_none_match("*");
            let error = match request.send().await {
                Ok(reply) => return Ok(Put::Done(version(reply.e_tag(), || self.place(key))?)),
                Err(error) => error,
            };
            let failure = classify(&error);
            match failure {
                Failure::ConditionFailed if !unclear => return Ok(Put::Conflict),
                Failure::Unclear => unclear = true,
                _ => {}
            }
            if unclear && let Some(put) = self.find_own(key, nonce).await {
                return Ok(put);
            }
            let again = match failure {
                Failure::Busy | Failure::NotSent | Failure::Unclear => attempts.again().await,
                _ => false,
            };
            if !again {
                let why = text(&error);
                return Err(of_write("upload", &self.place(key), failure, unclear, &why));
            }
        }
    }

    pub(super) async fn remove(&self, key: &str) -> Result<(), StorageError> {
        let full_key = self.full_key(key)?;
        let mut attempts = Attempts::new();
        let mut unclear = false;
        loop {
            let request = self
                .client()
                .await
                .delete_object()
                .bucket(&self.bucket)
                .key(&full_key);
            let error = match request.send().await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            let failure = classify(&error);
            unclear |= failure == Failure::Unclear;
            match failure {
                Failure::NotFound => return Ok(()),
                Failure::Permanent => {}
                _ if attempts.again().await => continue,
                _ => {}
            }
            let why = text(&error);
            return Err(of_write("remove", &self.place(key), failure, unclear, &why));
        }
    }
}

/// An upload in parts. Unless it is done, it is aborted when this is dropped.
struct Upload {
    client: Client,
    bucket: String,
    key: String,
    id: String,
    done: bool,
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let request = self
            .client
            .abort_multipart_upload()
            .bucket(&self.bucket)
            .key(&self.key)
            .upload_id(&self.id);
        // Outside of a runtime there is nobody to send it; the bucket's rule for incomplete uploads has to do.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = request.send().await {
                    tracing::debug!("an upload was not aborted: {}", text(&error));
                }
            });
        }
    }
}
