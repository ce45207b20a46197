//! Object storage that goes wrong as a test tells it to.

use std::{
    fmt,
    ops::Range,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use keydb_core::{Clock, ManualClock, UnixMillis};
use keydb_storage::{
    ListPage, MemoryStorage, Object, ObjectInfo, ObjectStorage, ObjectStream, Put, StorageError,
    StorageErrorKind, Version,
};
use tokio::sync::watch;

/// How a call goes wrong. None of them does anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It fails for this reason, and may work later.
    Fails(&'static str),
    /// It is not allowed.
    Refused,
    /// It waits until the rule changes, and goes by the new one then.
    Hangs,
}

pub(crate) const DOWN: Fault = Fault::Fails("connection refused");

type Rule = Box<dyn Fn(&str, &str) -> Option<Fault> + Send>;

/// Storage with a clock of its own.
pub(crate) struct Faulty {
    pub(crate) inner: MemoryStorage,
    pub(crate) clock: Arc<ManualClock>,
    rule: Mutex<Rule>,
    changed: watch::Sender<()>,
    succeeded: AtomicUsize,
    failed: AtomicUsize,
    hanging: AtomicUsize,
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty").finish_non_exhaustive()
    }
}

impl Faulty {
    pub(crate) fn new(now: UnixMillis) -> Self {
        let clock = Arc::new(ManualClock::new(now));
        Self {
            inner: MemoryStorage::new(Arc::clone(&clock) as _),
            clock,
            rule: Mutex::new(Box::new(|_, _| None)),
            changed: watch::Sender::new(()),
            succeeded: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
            hanging: AtomicUsize::new(0),
        }
    }

    /// From now on, calls go wrong as `rule` says for their name and key.
    pub(crate) fn goes_wrong(&self, rule: impl Fn(&str, &str) -> Option<Fault> + Send + 'static) {
        *self.rule.lock().unwrap() = Box::new(rule);
        self.changed.send_replace(());
    }

    /// From now on every call goes wrong like this.
    pub(crate) fn all(&self, fault: Fault) {
        self.goes_wrong(move |_, _| Some(fault));
    }

    pub(crate) fn works(&self) {
        self.goes_wrong(|_, _| None);
    }

    /// How many calls have not gone wrong.
    pub(crate) fn succeeded(&self) -> usize {
        self.succeeded.load(Ordering::SeqCst)
    }

    /// How many calls have failed.
    pub(crate) fn failed(&self) -> usize {
        self.failed.load(Ordering::SeqCst)
    }

    /// How many calls hang right now.
    pub(crate) fn hanging(&self) -> usize {
        self.hanging.load(Ordering::SeqCst)
    }

    /// The bytes of an object that is there, whatever goes wrong.
    pub(crate) async fn inner_get(&self, key: &str) -> Bytes {
        self.inner.get(key).await.unwrap().unwrap().bytes
    }

    /// Writes an object in the place of any other, whatever goes wrong.
    pub(crate) async fn inner_put(&self, key: &str, bytes: impl Into<Bytes>) {
        self.inner.delete(key).await.unwrap();
        let put = self.inner.put_if_absent(key, bytes.into()).await.unwrap();
        assert_ne!(put, Put::Conflict);
    }

    async fn call(&self, call: &str, key: &str) -> Result<(), StorageError> {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let fault = (self.rule.lock().unwrap())(call, key);
            let error = |kind, reason: &str| {
                self.failed.fetch_add(1, Ordering::SeqCst);
                Err(StorageError::new(kind, format!("object {key:?}: {reason}")))
            };
            match fault {
                None => {
                    self.succeeded.fetch_add(1, Ordering::SeqCst);
                    return Ok(());
                }
                Some(Fault::Fails(reason)) => return error(StorageErrorKind::Unavailable, reason),
                Some(Fault::Refused) => return error(StorageErrorKind::Refused, "access denied"),
                Some(Fault::Hangs) => {
                    let _hangs = Hangs::new(&self.hanging);
                    changed.changed().await.unwrap();
                }
            }
        }
    }
}

/// Counts a call that hangs, and one that was given up no more.
struct Hangs<'a>(&'a AtomicUsize);

impl<'a> Hangs<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Hangs<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl ObjectStorage for Faulty {
    async fn get(&self, key: &str) -> Result<Option<Object>, StorageError> {
        self.call("get", key).await?;
        self.inner.get(key).await
    }

    async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<Put, StorageError> {
        self.call("put", key).await?;
        self.inner.put_if_absent(key, bytes).await
    }

    async fn put_if_match(
        &self,
        key: &str,
        bytes: Bytes,
        version: &Version,
    ) -> Result<Put, StorageError> {
        self.call("put", key).await?;
        self.inner.put_if_match(key, bytes, version).await
    }

    async fn put_file(&self, key: &str, file: &Path) -> Result<Put, StorageError> {
        self.call("put_file", key).await?;
        self.inner.put_file(key, file).await
    }

    async fn get_range(
        &self,
        key: &str,
        range: Range<u64>,
    ) -> Result<Option<ObjectStream>, StorageError> {
        self.call("get_range", key).await?;
        self.inner.get_range(key, range).await
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StorageError> {
        self.call("head", key).await?;
        self.inner.head(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<ListPage, StorageError> {
        self.call("list", prefix).await?;
        self.inner.list(prefix, after).await
    }

    async fn delete(&self, key: &str) -> Result<(), StorageError> {
        self.call("delete", key).await?;
        self.inner.delete(key).await
    }

    async fn now(&self) -> Result<UnixMillis, StorageError> {
        self.call("now", "").await?;
        Ok(self.clock.now())
    }
}
