//! Large files: uploaded in parts, which become an object all at once or not at all.
//!
//! An upload that fails is aborted, so that its parts cost no space; so is one whose future is dropped. Those of a process that died
//! are found by `sweep`.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
};

use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use keydb_core::OperationId;
use tokio::{runtime::Handle, task::spawn_blocking, try_join};

use super::{
    S3Storage,
    failure::{Failure, FailureKind},
    put::{Condition, NONCE_NAME},
};
use crate::{Put, StorageError, Version, check_key};

/// S3 takes 10,000 parts; larger files have larger ones.
const PARTS_MAX: u64 = 9000;
/// How often an upload begins anew because another write to the object was under way when it was to be completed.
const UPLOADS_MAX: u32 = 3;

/// How an upload ended that did not fail altogether.
enum Completed {
    Put(Put),
    /// Another write was under way; all has to be uploaded again.
    Busy(Failure),
}

/// A file that becomes an object.
struct Source {
    file: Arc<File>,
    size_bytes: u64,
    /// How messages name it.
    name: String,
}

impl S3Storage {
    pub(super) async fn upload(&self, key: &str, path: &Path) -> Result<Put, StorageError> {
        check_key(key)?;
        let what = self.what("write", key);
        let source = Source::open(path).await?;
        if source.size_bytes <= self.inner.part_bytes {
            let bytes = source.read(0, source.size_bytes).await;
            let bytes = bytes.map_err(|failure| failure.not_applied(&what))?;
            return self.put(key, bytes, Condition::Absent).await;
        }
        self.sweep_abandoned_uploads(key).await;
        let mut uploads = 0;
        loop {
            // Completing it would find out too; this spares the transfer.
            match self.look_at(key, &mut self.attempts()).await {
                Ok(None) => {}
                Ok(Some(_)) => return Ok(Put::Conflict),
                Err(failure) => return Err(failure.not_applied(&what)),
            }
            uploads += 1;
            match self.upload_once(key, &source, &what).await? {
                Completed::Put(put) => return Ok(put),
                Completed::Busy(failure) if uploads == UPLOADS_MAX => {
                    return Err(failure.not_applied(&what));
                }
                Completed::Busy(_) => {}
            }
        }
    }

    async fn upload_once(
        &self,
        key: &str,
        source: &Source,
        what: &str,
    ) -> Result<Completed, StorageError> {
        let nonce = OperationId::random().to_string();
        let begin = || {
            let create = self.inner.client.create_multipart_upload();
            create
                .bucket(&self.inner.bucket)
                .key(self.full_key(key))
                .metadata(NONCE_NAME, &nonce)
                .send()
        };
        let begun = self.attempts().run(begin).await;
        let begun = begun.map_err(|failure| failure.not_applied(what))?;
        let Some(id) = begun.upload_id() else {
            return Err(Failure::incomplete("upload id").not_applied(what));
        };
        let upload = Upload {
            storage: self.clone(),
            full_key: self.full_key(key),
            id: id.to_owned(),
            over: false,
        };
        let parts = match upload.send_parts(source).await {
            Ok(parts) => parts,
            Err(failure) => {
                upload.abort().await;
                return Err(failure.not_applied(what));
            }
        };
        match upload.complete(&parts).await {
            Ok(version) => {
                upload.over();
                Ok(Completed::Put(Put::Done(version)))
            }
            Err(failure) if failure.kind == FailureKind::Busy && !failure.in_doubt => {
                upload.abort().await;
                Ok(Completed::Busy(failure))
            }
            // The upload is gone and nobody completed it: somebody removed it as abandoned.
            Err(failure) if failure.kind == FailureKind::NotFound && !failure.in_doubt => {
                upload.over();
                Err(failure.not_applied(what))
            }
            Err(failure) => {
                let settled = self.settle(key, &nonce, failure, "write").await;
                upload.abort().await;
                settled.map(Completed::Put)
            }
        }
    }
}

impl Source {
    async fn open(path: &Path) -> Result<Self, StorageError> {
        let path = path.to_owned();
        let name = path.display().to_string();
        let opened = spawn_blocking({
            let name = name.clone();
            move || {
                let cannot_read = |error: io::Error| {
                    StorageError::refused(format!("cannot read {name}: {error}"))
                };
                let file = File::open(&path).map_err(cannot_read)?;
                let size_bytes = file.metadata().map_err(cannot_read)?.len();
                Ok((file, size_bytes))
            }
        });
        let (file, size_bytes) = opened.await.unwrap_or_else(|error| {
            let text = format!("reading {name} did not end: {error}");
            Err(Failure::unread(text).not_applied("write an object"))
        })?;
        Ok(Self {
            file: Arc::new(file),
            size_bytes,
            name,
        })
    }

    async fn read(&self, start: u64, end: u64) -> Result<Bytes, Failure> {
        let file = Arc::clone(&self.file);
        let read = spawn_blocking(move || {
            let length = usize::try_from(end - start).map_err(io::Error::other)?;
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, start)?;
            Ok(Bytes::from(bytes))
        });
        let read: io::Result<Bytes> = read
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)));
        read.map_err(|error| Failure::refused(format!("cannot read {}: {error}", self.name)))
    }
}

/// An upload under way. Dropped, it is aborted by a task of its own.
struct Upload {
    storage: S3Storage,
    full_key: String,
    id: String,
    /// Whether there is nothing left to abort.
    over: bool,
}

impl Upload {
    /// Uploads all parts, two at a time.
    async fn send_parts(&self, source: &Source) -> Result<Vec<CompletedPart>, Failure> {
        let part_bytes = self.storage.inner.part_bytes;
        let part_bytes = part_bytes.max(source.size_bytes.div_ceil(PARTS_MAX));
        let next = AtomicI32::new(1);
        let sent = Mutex::new(Vec::new());
        let lane = async || -> Result<(), Failure> {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let start = part_bytes * u64::from(number.unsigned_abs() - 1);
                if start >= source.size_bytes {
                    return Ok(());
                }
                let end = (start + part_bytes).min(source.size_bytes);
                let part = self
                    .send_part(number, source.read(start, end).await?)
                    .await?;
                sent.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(part);
            }
        };
        try_join!(lane(), lane())?;
        let mut parts = sent.into_inner().unwrap_or_else(PoisonError::into_inner);
        parts.sort_unstable_by_key(CompletedPart::part_number);
        Ok(parts)
    }

    async fn send_part(&self, number: i32, bytes: Bytes) -> Result<CompletedPart, Failure> {
        let inner = &self.storage.inner;
        let request = || {
            let part = inner.client.upload_part();
            part.bucket(&inner.bucket)
                .key(&self.full_key)
                .upload_id(&self.id)
                .part_number(number)
                .body(bytes.clone().into())
                .send()
        };
        let sent = inner
            .limits
            .attempts(inner.limits.transfer)
            .run(request)
            .await?;
        let etag = sent.e_tag().ok_or_else(|| Failure::incomplete("ETag"))?;
        Ok(CompletedPart::builder()
            .part_number(number)
            .e_tag(etag)
            .build())
    }

    /// Makes the parts an object, unless there is one; its version.
    async fn complete(&self, parts: &[CompletedPart]) -> Result<Version, Failure> {
        let inner = &self.storage.inner;
        let request = || {
            let parts = CompletedMultipartUpload::builder().set_parts(Some(parts.to_vec()));
            let complete = inner.client.complete_multipart_upload();
            complete
                .bucket(&inner.bucket)
                .key(&self.full_key)
                .upload_id(&self.id)
                .if_none_match("*")
                .multipart_upload(parts.build())
                .send()
        };
        // The server may have much to put together.
        let completed = inner
            .limits
            .attempts(inner.limits.transfer)
            .run(request)
            .await?;
        let etag = completed.e_tag();
        etag.map(Version::new)
            .ok_or_else(|| Failure::incomplete("ETag"))
    }

    /// Tells the server that this upload will not be completed. If that fails, `sweep` finds it some day.
    async fn abort(mut self) {
        self.send_abort().await;
        self.over = true;
    }

    fn over(mut self) {
        self.over = true;
    }

    async fn send_abort(&self) {
        self.storage.abort_upload(&self.full_key, &self.id).await;
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let aborted = Self {
            storage: self.storage.clone(),
            full_key: std::mem::take(&mut self.full_key),
            id: std::mem::take(&mut self.id),
            over: true,
        };
        // Nobody is left who could wait for it; it ends by itself, after its attempts.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { aborted.send_abort().await });
        }
    }
}
