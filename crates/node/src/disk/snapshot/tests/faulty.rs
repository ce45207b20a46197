//! Object storage that goes wrong as it is told to.

use std::{fmt, ops::Range, path::Path};

use async_trait::async_trait;
use bytes::Bytes;
use keydb_storage::{
    ListPage, MemoryStorage, Object, ObjectInfo, ObjectStorage, ObjectStream, Put, StorageError,
    StorageErrorKind, Version,
};

use super::*;

/// How a call goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing is done.
    Fails,
    /// It is done, but nobody gets to know.
    LosesReply,
    /// It is not done, nobody gets to know, and it is done when [`Faulty::land`] is called.
    IsLate,
    /// It waits until [`Faulty::release`].
    Hangs,
}

type Rule = Box<dyn FnMut(&str, &str) -> Option<Fault> + Send>;

pub(super) struct Faulty {
    pub(super) inner: MemoryStorage,
    rule: Mutex<Rule>,
    late: Mutex<Vec<(String, Bytes, Version)>>,
    released: watch::Sender<bool>,
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty").finish_non_exhaustive()
    }
}

impl Faulty {
    pub(super) fn new(clock: Arc<ManualClock>) -> Self {
        Self {
            inner: MemoryStorage::new(clock),
            rule: Mutex::new(Box::new(|_, _| None)),
            late: Mutex::default(),
            released: watch::Sender::new(false),
        }
    }

    /// From now on, calls go wrong as `rule` says for their name and key.
    pub(super) fn goes_wrong(
        &self,
        rule: impl FnMut(&str, &str) -> Option<Fault> + Send + 'static,
    ) {
        *lock(&self.rule) = Box::new(rule);
    }

    pub(super) fn works(&self) {
        self.goes_wrong(|_, _| None);
    }

    /// Lets go of the calls that hang.
    pub(super) fn release(&self) {
        self.released.send_replace(true);
    }

    /// Does what is late. Returns how often that still changed anything.
    pub(super) async fn land(&self) -> usize {
        let late = std::mem::take(&mut *lock(&self.late));
        let mut changed = 0;
        for (key, bytes, version) in late {
            let put = self.inner.put_if_match(&key, bytes, &version).await;
            changed += usize::from(put != Ok(Put::Conflict));
        }
        changed
    }

    fn error(kind: StorageErrorKind) -> StorageError {
        StorageError::new(kind, "the storage is out of order")
    }

    async fn before(&self, call: &str, key: &str) -> Result<Option<Fault>, StorageError> {
        let fault = (lock(&self.rule))(call, key);
        match fault {
            Some(Fault::Fails) => Err(Self::error(StorageErrorKind::Unavailable)),
            Some(Fault::Hangs) => {
                let mut released = self.released.subscribe();
                let _ = released.wait_for(|released| *released).await;
                Ok(None)
            }
            fault => Ok(fault),
        }
    }

    fn after<T>(fault: Option<Fault>, result: T) -> Result<T, StorageError> {
        match fault {
            Some(Fault::LosesReply) => Err(Self::error(StorageErrorKind::OutcomeUnknown)),
            _ => Ok(result),
        }
    }
}

#[async_trait]
impl ObjectStorage for Faulty {
    async fn get(&self, key: &str) -> Result<Option<Object>, StorageError> {
        self.before("get", key).await?;
        self.inner.get(key).await
    }

    async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<Put, StorageError> {
        let fault = self.before("put", key).await?;
        Self::after(fault, self.inner.put_if_absent(key, bytes).await?)
    }

    async fn put_if_match(
        &self,
        key: &str,
        bytes: Bytes,
        version: &Version,
    ) -> Result<Put, StorageError> {
        let fault = self.before("put", key).await?;
        if fault == Some(Fault::IsLate) {
            lock(&self.late).push((key.to_owned(), bytes, version.clone()));
            return Err(Self::error(StorageErrorKind::OutcomeUnknown));
        }
        Self::after(fault, self.inner.put_if_match(key, bytes, version).await?)
    }

    async fn put_file(&self, key: &str, file: &Path) -> Result<Put, StorageError> {
        let fault = self.before("put_file", key).await?;
        Self::after(fault, self.inner.put_file(key, file).await?)
    }

    async fn get_range(
        &self,
        key: &str,
        range: Range<u64>,
    ) -> Result<Option<ObjectStream>, StorageError> {
        self.before("get_range", key).await?;
        self.inner.get_range(key, range).await
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StorageError> {
        self.before("head", key).await?;
        self.inner.head(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<ListPage, StorageError> {
        self.before("list", prefix).await?;
        self.inner.list(prefix, after).await
    }

    async fn delete(&self, key: &str) -> Result<(), StorageError> {
        self.before("delete", key).await?;
        self.inner.delete(key).await
    }

    async fn now(&self) -> Result<UnixMillis, StorageError> {
        self.inner.now().await
    }
}
