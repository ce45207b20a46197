//! The trait that every backend implements.

use std::{fmt, fmt::Debug, ops::Range, path::Path, sync::Arc};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream::BoxStream};
use keydb_core::{UnixMillis, random};

use crate::{StorageError, StorageErrorKind};

/// What an object was when it was read or written, for a conditional write. Opaque: only equality means something, and only
/// between versions of one object.
///
/// A version may be made from the object's bytes. So a version that still matches proves that nobody wrote in between only as long
/// as nobody writes bytes that the object had before: what is replaced with [`ObjectStorage::put_if_match`] must carry something
/// that is drawn anew for each write, as the cluster map's and the manifests' `write_nonce` is.
#[derive(Clone, PartialEq, Eq)]
pub struct Version(Arc<str>);

impl Version {
    /// For backends: the version that `tag` stands for.
    pub fn new(tag: &str) -> Self {
        Self(tag.into())
    }

    /// For backends: the text that the version was made from.
    pub fn tag(&self) -> &str {
        &self.0
    }

    /// A version that no object ever had: 128 random bits as 32 hex digits.
    pub(crate) fn random() -> Self {
        Self::new(&format!("{:032x}", u128::from_be_bytes(random::bytes())))
    }
}

impl Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Version({})", self.0)
    }
}

/// An object as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its content.
    pub bytes: Bytes,
    /// What it was, for [`ObjectStorage::put_if_match`].
    pub version: Version,
}

/// What has become of an object that was read before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reread {
    /// It still has the version that it had.
    Unchanged,
    /// It has another one, or is gone.
    Changed(Option<Object>),
}

/// What is known of an object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its key.
    pub key: String,
    /// Its size.
    pub size_bytes: u64,
    /// When it was written, by the storage's clock.
    pub modified: UnixMillis,
}

/// A part of the objects whose keys begin in the same way.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListPage {
    /// In ascending order of their keys, by bytes.
    pub objects: Vec<ObjectInfo>,
    /// Whether there are more behind the last one.
    pub more: bool,
}

/// The bytes of an object as they come in.
pub struct ObjectStream {
    /// The whole object's size.
    pub size_bytes: u64,
    /// The bytes that were asked for, in order. An error ends it; an end without one means that all of them came.
    pub bytes: BoxStream<'static, Result<Bytes, StorageError>>,
}

impl Debug for ObjectStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectStream")
            .field("size_bytes", &self.size_bytes)
            .finish_non_exhaustive()
    }
}

impl ObjectStream {
    /// All bytes, of an object of at most [`OBJECT_BYTES_MAX`] whose whole is streamed.
    pub(crate) async fn collect(mut self) -> Result<Bytes, StorageError> {
        let mut all = BytesMut::new();
        while let Some(chunk) = self.bytes.next().await {
            all.extend_from_slice(&chunk?);
            if all.len() as u64 > self.size_bytes.min(OBJECT_BYTES_MAX) {
                break;
            }
        }
        check_length(self.size_bytes, all.len() as u64)?;
        Ok(all.freeze())
    }
}

/// Checks that as many bytes of an object came as were announced.
pub(crate) fn check_length(announced: u64, came: u64) -> Result<(), StorageError> {
    if announced == came {
        return Ok(());
    }
    Err(StorageError::new(
        StorageErrorKind::Unavailable,
        format!("{came} bytes came of an object of {announced}; nothing was written"),
    ))
}

/// The largest object that [`ObjectStorage::get`] reads.
pub const OBJECT_BYTES_MAX: u64 = 64 << 20;

/// How many objects a [`ListPage`] has at most.
pub const LIST_PAGE_MAX: usize = 1000;

/// How a conditional write ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a conflict means that nothing was written"]
pub enum Put {
    /// It is written, durably, and this is its version.
    Done(Version),
    /// The condition did not hold; nothing was written.
    Conflict,
}

/// Named, immutable-by-replacement objects that several processes share.
///
/// What every backend keeps: a read sees one whole write, never a mix or a part; an object whose write was reported as
/// [`Put::Done`] is there until a later write replaces it; of writers with the same condition at most one wins. Which keys are
/// allowed, [`check_key`](crate::check_key) says; others are `Refused`. Dropping a call's future does not undo the call.
#[async_trait]
pub trait ObjectStorage: Send + Sync + Debug + 'static {
    /// Reads an object of at most [`OBJECT_BYTES_MAX`]; `None` when there is no such object.
    ///
    /// # Errors
    /// When it could not be read; an object that is there but damaged or too large is `Refused`, never `None`.
    async fn get(&self, key: &str) -> Result<Option<Object>, StorageError>;

    /// [`get`](Self::get) for whoever has the version `known` of the object already: where that is still the one, its bytes need not
    /// come again.
    ///
    /// # Errors
    /// Those of [`get`](Self::get).
    async fn get_if_changed(&self, key: &str, known: &Version) -> Result<Reread, StorageError> {
        Ok(match self.get(key).await? {
            Some(object) if object.version == *known => Reread::Unchanged,
            found => Reread::Changed(found),
        })
    }

    /// Writes an object that does not exist yet; a conflict when it does.
    ///
    /// # Errors
    /// `Unavailable` and `Refused`: nothing was written. `OutcomeUnknown`: it may have been.
    async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<Put, StorageError>;

    /// Replaces an object that still has this version; a conflict when it has another one or does not exist.
    ///
    /// # Errors
    /// `Unavailable` and `Refused`: nothing was written. `OutcomeUnknown`: it may have been.
    async fn put_if_match(
        &self,
        key: &str,
        bytes: Bytes,
        version: &Version,
    ) -> Result<Put, StorageError>;

    /// Writes an object that does not exist yet from a file, which may be large and does not change; a conflict when the object
    /// exists.
    ///
    /// # Errors
    /// `Unavailable` and `Refused`: nothing was written. `OutcomeUnknown`: it may have been.
    async fn put_file(&self, key: &str, file: &Path) -> Result<Put, StorageError>;

    /// Writes an object that does not exist yet from a stream of all of its bytes; a conflict when the object exists. Nothing is
    /// written where the stream fails, or has another length than it announced.
    ///
    /// # Errors
    /// `Unavailable` and `Refused`: nothing was written. `OutcomeUnknown`: it may have been.
    async fn put_stream(&self, key: &str, stream: ObjectStream) -> Result<Put, StorageError> {
        let bytes = stream.collect().await?;
        self.put_if_absent(key, bytes).await
    }

    /// The bytes of an object in `range`, as much of it as lies within the object; `None` when there is no such object.
    ///
    /// # Errors
    /// When it could not be read; that may also turn out in the middle of the stream.
    async fn get_range(
        &self,
        key: &str,
        range: Range<u64>,
    ) -> Result<Option<ObjectStream>, StorageError>;

    /// What is known of an object; `None` when there is no such object.
    ///
    /// # Errors
    /// When the storage did not say.
    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StorageError>;

    /// The first [`LIST_PAGE_MAX`] objects whose keys begin with `prefix` and, where that is given, lie behind `after`.
    ///
    /// # Errors
    /// When the storage did not say.
    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<ListPage, StorageError>;

    /// Removes an object. Where there is none, that is well.
    ///
    /// # Errors
    /// `OutcomeUnknown`: it may be gone, or be gone later.
    async fn delete(&self, key: &str) -> Result<(), StorageError>;

    /// The storage's own time, which is the same for all that use it.
    ///
    /// # Errors
    /// When the storage did not say.
    async fn now(&self) -> Result<UnixMillis, StorageError>;
}
