//! Copying snapshot objects to another storage. Every byte is checked on its way, so a copy is the file that the manifest names.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use keydb_core::{Event, ManifestFile, NodeId, Origin, SnapshotDecoder};
use xxhash_rust::xxh3::Xxh3;

use super::{error::SnapshotReadError, names::object_key, read::no_memory, store::SnapshotStore};
use crate::{ObjectStorage, ObjectStream, Put, StorageError};

/// Why an object was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// It cannot be used, or not be read.
    #[error(transparent)]
    Source(SnapshotReadError),
    /// It cannot be written. Whether it was all the same, another look tells.
    #[error(transparent)]
    Destination(StorageError),
}

impl SnapshotStore {
    /// Copies `node`'s snapshot object `file` of a cluster to the same key of `to`. Returns the XXH3-64 of its bytes; `None` where `to`
    /// has such an object. For each piece of it `pace` is called with the time that checking it took, and its bytes.
    ///
    /// # Errors
    /// When it is not the file that the manifest names, or cannot be read or written; then `to` does not have it.
    pub async fn copy<F>(
        &self,
        node: NodeId,
        file: &ManifestFile,
        origin: Origin,
        to: &dyn ObjectStorage,
        pace: impl Fn(Duration, u64) -> F + Send + 'static,
    ) -> Result<Option<u64>, CopyError>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let key = object_key(node, &file.name);
        let (stream, verdict) = self
            .checked(node, file, origin, pace)
            .await
            .map_err(CopyError::Source)?;
        let put = to.put_stream(&key, stream).await;
        match verdict.take() {
            // Whether it has gone meanwhile, not every storage says.
            Some(Err(SnapshotReadError::Storage(error))) => {
                let gone = matches!(self.storage().head(&key).await, Ok(None));
                Err(CopyError::Source(match gone {
                    true => SnapshotReadError::Missing,
                    false => error.into(),
                }))
            }
            Some(Err(error)) => Err(CopyError::Source(error)),
            Some(Ok(checksum)) => match put.map_err(CopyError::Destination)? {
                Put::Done(_) => Ok(Some(checksum)),
                Put::Conflict => Ok(None),
            },
            None => put.map(|_| None).map_err(CopyError::Destination),
        }
    }

    /// Reads `node`'s snapshot object `file` of a cluster from front to back. Returns the XXH3-64 of its bytes. `pace` is as that of
    /// [`copy`](Self::copy).
    ///
    /// # Errors
    /// When it is not the file that the manifest names, or cannot be read.
    pub async fn checksum<F>(
        &self,
        node: NodeId,
        file: &ManifestFile,
        origin: Origin,
        pace: impl Fn(Duration, u64) -> F + Send + 'static,
    ) -> Result<u64, SnapshotReadError>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (mut stream, verdict) = self.checked(node, file, origin, pace).await?;
        while let Some(Ok(_)) = stream.bytes.next().await {}
        verdict.take().unwrap_or(Err(SnapshotReadError::Missing))
    }

    /// A stream of the object's bytes that fails where they are not what they should be, and what has become of it.
    async fn checked<F>(
        &self,
        node: NodeId,
        file: &ManifestFile,
        origin: Origin,
        pace: impl Fn(Duration, u64) -> F + Send + 'static,
    ) -> Result<(ObjectStream, Verdict), SnapshotReadError>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let key = object_key(node, &file.name);
        let source = self.storage().get_range(&key, 0..u64::MAX).await?;
        let source = source.ok_or(SnapshotReadError::Missing)?;
        if source.size_bytes != file.size_bytes {
            return Err(SnapshotReadError::Damaged(format!(
                "it has {} bytes, and the manifest says {}",
                source.size_bytes, file.size_bytes
            )));
        }
        let verdict = Verdict::default();
        let checker = Checker {
            decoder: SnapshotDecoder::new().map_err(no_memory)?,
            checksum: Box::default(),
            origin,
            file: file.clone(),
        };
        let state = (source.bytes, checker, pace, verdict.clone());
        let bytes = stream::try_unfold(
            state,
            |(mut bytes, mut checker, pace, verdict)| async move {
                let checked = match bytes.next().await {
                    Some(Ok(chunk)) => {
                        let begun = Instant::now();
                        let checked = checker.feed(&chunk);
                        pace(begun.elapsed(), chunk.len() as u64).await;
                        checked.map(|()| chunk)
                    }
                    Some(Err(error)) => Err(error.into()),
                    None => match checker.finish() {
                        Ok(checksum) => {
                            verdict.set(Ok(checksum));
                            return Ok(None);
                        }
                        Err(error) => return Err(verdict.fail(error)),
                    },
                };
                match checked {
                    Ok(chunk) => Ok(Some((chunk, (bytes, checker, pace, verdict)))),
                    Err(error) => Err(verdict.fail(error)),
                }
            },
        );
        let stream = ObjectStream {
            size_bytes: file.size_bytes,
            bytes: bytes.boxed(),
        };
        Ok((stream, verdict))
    }
}

/// What has become of a stream; nothing before its end.
#[derive(Clone, Default)]
struct Verdict(Arc<Mutex<Option<Result<u64, SnapshotReadError>>>>);

impl Verdict {
    fn set(&self, verdict: Result<u64, SnapshotReadError>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(verdict);
    }

    fn take(&self) -> Option<Result<u64, SnapshotReadError>> {
        let mut verdict = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        verdict.take()
    }

    /// What the stream ends with.
    fn fail(&self, error: SnapshotReadError) -> StorageError {
        let ends_with = match &error {
            SnapshotReadError::Storage(error) => error.clone(),
            other => StorageError::refused(other.to_string()),
        };
        self.set(Err(error));
        ends_with
    }
}

/// Checks a snapshot file on its way.
struct Checker {
    decoder: SnapshotDecoder,
    checksum: Box<Xxh3>,
    origin: Origin,
    file: ManifestFile,
}

impl Checker {
    fn feed(&mut self, chunk: &Bytes) -> Result<(), SnapshotReadError> {
        self.checksum.update(chunk);
        self.decoder.feed(chunk);
        while let Some(event) = self.decoder.next_event()? {
            if let Event::Header(header) = &event {
                self.origin.check_header(header, &self.file)?;
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<u64, SnapshotReadError> {
        self.file.check_totals(self.decoder.finish()?)?;
        Ok(self.checksum.digest())
    }
}
