//! Large files and streams: uploaded in parts, which become an object all at once or not at all.
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
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use keydb_core::OperationId;
use tokio::{runtime::Handle, task::spawn_blocking, try_join};

use super::{
    S3Storage,
    failure::{Failure, FailureKind},
    put::{Condition, NONCE_NAME},
};
use crate::{
    ObjectStream, Put, StorageError, StorageErrorKind, Version, check_key, object::check_length,
};

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

/// What becomes an object.
enum Source {
    File(SourceFile),
    Stream(tokio::sync::Mutex<SourceStream>),
}

/// A file, of which any part can be read again.
struct SourceFile {
    file: Arc<File>,
    size_bytes: u64,
    /// How messages name it.
    name: String,
}

/// A stream, whose parts come one after the other.
struct SourceStream {
    stream: ObjectStream,
    /// What came with the part before.
    rest: BytesMut,
    came_bytes: u64,
    next: i32,
}

impl S3Storage {
    pub(super) async fn upload(&self, key: &str, path: &Path) -> Result<Put, StorageError> {
        check_key(key)?;
        let what = self.what("write", key);
        let file = SourceFile::open(path).await?;
        if file.size_bytes <= self.inner.part_bytes {
            let bytes = file.read(0, file.size_bytes).await;
            let bytes = bytes.map_err(|failure| failure.not_applied(&what))?;
            return self.put(key, bytes, Condition::Absent).await;
        }
        let source = Source::File(file);
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

    pub(super) async fn upload_stream(
        &self,
        key: &str,
        stream: ObjectStream,
    ) -> Result<Put, StorageError> {
        check_key(key)?;
        if stream.size_bytes <= self.inner.part_bytes {
            let bytes = stream.collect().await?;
            return self.put(key, bytes, Condition::Absent).await;
        }
        let what = self.what("write", key);
        self.sweep_abandoned_uploads(key).await;
        match self.look_at(key, &mut self.attempts()).await {
            Ok(None) => {}
            Ok(Some(_)) => return Ok(Put::Conflict),
            Err(failure) => return Err(failure.not_applied(&what)),
        }
        let source = Source::Stream(tokio::sync::Mutex::new(SourceStream {
            stream,
            rest: BytesMut::new(),
            came_bytes: 0,
            next: 1,
        }));
        match self.upload_once(key, &source, &what).await? {
            Completed::Put(put) => Ok(put),
            Completed::Busy(failure) => Err(failure.not_applied(&what)),
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
    async fn size_bytes(&self) -> u64 {
        match self {
            Self::File(file) => file.size_bytes,
            Self::Stream(stream) => stream.lock().await.stream.size_bytes,
        }
    }

    /// The next part of this size, or what is left, and its number; `None` when all are taken. `taken` counts those of a file.
    async fn take_part(
        &self,
        taken: &AtomicI32,
        part_bytes: u64,
    ) -> Result<Option<(i32, Bytes)>, Failure> {
        let file = match self {
            Self::File(file) => file,
            Self::Stream(stream) => return stream.lock().await.next_part(part_bytes).await,
        };
        let number = taken.fetch_add(1, Ordering::Relaxed) + 1;
        let start = part_bytes * u64::from(number.unsigned_abs() - 1);
        if start >= file.size_bytes {
            return Ok(None);
        }
        let end = (start + part_bytes).min(file.size_bytes);
        Ok(Some((number, file.read(start, end).await?)))
    }
}

impl SourceStream {
    async fn next_part(&mut self, part_bytes: u64) -> Result<Option<(i32, Bytes)>, Failure> {
        let full = usize::try_from(part_bytes).unwrap_or(usize::MAX);
        let failed = |error: StorageError| match error.kind() {
            StorageErrorKind::Refused => Failure::refused(error.to_string()),
            _ => Failure::broke_off(error.to_string()),
        };
        while self.rest.len() < full {
            let Some(chunk) = self.stream.bytes.next().await else {
                check_length(self.stream.size_bytes, self.came_bytes).map_err(failed)?;
                break;
            };
            let chunk = chunk.map_err(failed)?;
            self.came_bytes += chunk.len() as u64;
            self.rest.extend_from_slice(&chunk);
        }
        if self.rest.is_empty() {
            return Ok(None);
        }
        let number = self.next;
        self.next += 1;
        let part = self.rest.split_to(full.min(self.rest.len()));
        Ok(Some((number, part.freeze())))
    }
}

impl SourceFile {
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
        let part_bytes = part_bytes.max(source.size_bytes().await.div_ceil(PARTS_MAX));
        let taken = AtomicI32::new(0);
        let sent = Mutex::new(Vec::new());
        let lane = async || -> Result<(), Failure> {
            while let Some((number, bytes)) = source.take_part(&taken, part_bytes).await? {
                let part = self.send_part(number, bytes).await?;
                sent.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(part);
            }
            Ok(())
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
