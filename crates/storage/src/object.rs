//! The trait that every backend implements.

use std::{fmt, fmt::Debug, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use keydb_core::{UnixMillis, random};

use crate::StorageError;

/// What an object was when it was read or written, for a conditional write. Opaque: only equality means something, and only
/// between versions of one object.
///
/// Every write makes a version that the object never had before, also when it writes the same bytes. So a version that still
/// matches proves that nobody wrote in between.
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
    /// Reads an object; `None` when there is no such object.
    ///
    /// # Errors
    /// When it could not be read; an object that is there but damaged is `Refused`, never `None`.
    async fn get(&self, key: &str) -> Result<Option<Object>, StorageError>;

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

    /// The storage's own time, which is the same for all that use it.
    ///
    /// # Errors
    /// When the storage did not say.
    async fn now(&self) -> Result<UnixMillis, StorageError>;
}
