//! Storage that goes wrong as a test tells it to.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use keydb_core::{ManualClock, UnixMillis};
use tokio::sync::watch;

use crate::{
    ListPage, MemoryStorage, Object, ObjectInfo, ObjectStorage, ObjectStream, Put, StorageError,
    StorageErrorKind, Version,
};

/// How a call of a [`FaultyStorage`] goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageFault {
    /// Nothing is done, for this reason. Trying again may help.
    Unavailable(&'static str),
    /// Nothing is done, and trying again does not help.
    Refused,
    /// It is done, and the caller does not learn of it.
    ReplyLost,
    /// It is never done, and the caller does not learn of that.
    RequestLost,
    /// A write of bytes is done when [`FaultyStorage::land`] says so, and the caller does not learn of it. Any other call is lost.
    RequestLate,
    /// It waits. When the rule changes it goes by the new one, and when it is [released](FaultyStorage::release) nothing goes wrong.
    Hangs,
}

/// What goes wrong during an outage.
pub const DOWN: StorageFault = StorageFault::Unavailable("connection refused");

type Rule = Box<dyn FnMut(&str, &str) -> Option<StorageFault> + Send>;

/// Storage in memory whose calls go wrong by a rule, which is given each call's name and key. The names are `get`, `put`,
/// `put_file`, `get_range`, `head`, `list` (its key is the prefix), `delete` and `now` (it has no key).
pub struct FaultyStorage {
    /// What it keeps, for looks and changes that do not go wrong.
    pub inner: Arc<MemoryStorage>,
    /// Its time.
    pub clock: Arc<ManualClock>,
    rule: Mutex<Rule>,
    /// How often calls that hang were released. It is also sent when the rule changes.
    released: watch::Sender<usize>,
    late: Mutex<Vec<LateWrite>>,
    counts: Mutex<Counts>,
}

struct LateWrite {
    key: String,
    bytes: Bytes,
    version: Option<Version>,
}

#[derive(Default)]
struct Counts {
    seen: BTreeMap<&'static str, usize>,
    succeeded: usize,
    failed: usize,
    hanging: usize,
}

impl fmt::Debug for FaultyStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyStorage").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FaultyStorage {
    /// Empty storage, in which nothing goes wrong yet.
    pub fn new(clock: Arc<ManualClock>) -> Self {
        Self {
            inner: Arc::new(MemoryStorage::new(Arc::clone(&clock) as _)),
            clock,
            rule: Mutex::new(Box::new(|_, _| None)),
            released: watch::Sender::new(0),
            late: Mutex::default(),
            counts: Mutex::default(),
        }
    }

    /// From now on calls go wrong as `rule` says for their name and key.
    pub fn goes_wrong(
        &self,
        rule: impl FnMut(&str, &str) -> Option<StorageFault> + Send + 'static,
    ) {
        *lock(&self.rule) = Box::new(rule);
        self.released.send_modify(|_| ());
    }

    /// From now on every call goes wrong like this.
    pub fn all(&self, fault: StorageFault) {
        self.goes_wrong(move |_, _| Some(fault));
    }

    /// From now on every call of this name goes wrong like this, and no other.
    pub fn all_of(&self, call: &'static str, fault: StorageFault) {
        self.goes_wrong(move |name, _| (name == call).then_some(fault));
    }

    /// From now on nothing goes wrong.
    pub fn works(&self) {
        self.goes_wrong(|_, _| None);
    }

    /// Has the calls that hang right now go on, whatever the rule is.
    pub fn release(&self) {
        self.released.send_modify(|released| *released += 1);
    }

    /// Does what is late, in order. Returns how many writes still changed anything.
    pub async fn land(&self) -> usize {
        let late = std::mem::take(&mut *lock(&self.late));
        let mut changed = 0;
        for write in late {
            let put = self.inner_put_if(&write.key, write.bytes, write.version.as_ref());
            changed += usize::from(matches!(put.await, Ok(Put::Done(_))));
        }
        changed
    }

    /// How many calls of this name came.
    pub fn seen(&self, call: &str) -> usize {
        lock(&self.counts).seen.get(call).copied().unwrap_or(0)
    }

    /// How many calls have not gone wrong.
    pub fn succeeded(&self) -> usize {
        lock(&self.counts).succeeded
    }

    /// How many calls have failed.
    pub fn failed(&self) -> usize {
        lock(&self.counts).failed
    }

    /// How many calls hang right now.
    pub fn hanging(&self) -> usize {
        lock(&self.counts).hanging
    }

    /// The bytes of an object, whatever goes wrong.
    ///
    /// # Panics
    /// When there is no such object.
    pub async fn inner_get(&self, key: &str) -> Bytes {
        let object = self.inner.get(key).await.expect("the key is valid");
        object.expect("the object is there").bytes
    }

    /// Writes an object, in the place of any other, whatever goes wrong.
    ///
    /// # Panics
    /// When another writer comes in between.
    pub async fn inner_put(&self, key: &str, bytes: impl Into<Bytes>) {
        let found = self.inner.get(key).await.expect("the key is valid");
        let version = found.map(|object| object.version);
        let put = self.inner_put_if(key, bytes.into(), version.as_ref());
        let put = put.await.expect("the key is valid");
        assert_ne!(put, Put::Conflict, "object {key:?} was written by others");
    }

    /// Writes an object that has this version, or, without one, that does not exist.
    async fn inner_put_if(
        &self,
        key: &str,
        bytes: Bytes,
        version: Option<&Version>,
    ) -> Result<Put, StorageError> {
        match version {
            None => self.inner.put_if_absent(key, bytes).await,
            Some(version) => self.inner.put_if_match(key, bytes, version).await,
        }
    }

    /// How a call goes wrong, when it no longer hangs.
    async fn fault(&self, name: &'static str, key: &str) -> Option<StorageFault> {
        *lock(&self.counts).seen.entry(name).or_default() += 1;
        let mut released = self.released.subscribe();
        let before = *released.borrow_and_update();
        loop {
            let fault = (lock(&self.rule))(name, key);
            if fault != Some(StorageFault::Hangs) {
                return fault;
            }
            let _hangs = Hangs::new(&self.counts);
            released.changed().await.expect("the sender is here");
            if *released.borrow_and_update() > before {
                return None;
            }
        }
    }

    async fn call<T>(
        &self,
        name: &'static str,
        key: &str,
        call: impl Future<Output = Result<T, StorageError>> + Send,
    ) -> Result<T, StorageError> {
        let fault = self.fault(name, key).await;
        self.end(fault, name, key, call).await
    }

    async fn put(
        &self,
        key: &str,
        bytes: Bytes,
        version: Option<&Version>,
    ) -> Result<Put, StorageError> {
        let fault = self.fault("put", key).await;
        if fault == Some(StorageFault::RequestLate) {
            lock(&self.late).push(LateWrite {
                key: key.to_owned(),
                bytes: bytes.clone(),
                version: version.cloned(),
            });
        }
        let put = self.inner_put_if(key, bytes, version);
        self.end(fault, "put", key, put).await
    }

    /// Does `call`, if the fault lets it come so far.
    async fn end<T>(
        &self,
        fault: Option<StorageFault>,
        name: &str,
        key: &str,
        call: impl Future<Output = Result<T, StorageError>> + Send,
    ) -> Result<T, StorageError> {
        let Some(fault) = fault else {
            lock(&self.counts).succeeded += 1;
            return call.await;
        };
        if fault == StorageFault::ReplyLost {
            call.await?;
        }
        lock(&self.counts).failed += 1;
        let is_write = ["put", "put_file", "delete"].contains(&name);
        let (kind, reason) = match fault {
            StorageFault::Unavailable(reason) => (StorageErrorKind::Unavailable, reason),
            StorageFault::Refused => (StorageErrorKind::Refused, "access denied"),
            _ if is_write => (StorageErrorKind::OutcomeUnknown, "there was no reply"),
            _ => (StorageErrorKind::Unavailable, "there was no reply"),
        };
        let message = format!("{name} of object {key:?}: {reason}");
        Err(StorageError::new(kind, message))
    }
}

/// Counts a call that hangs, and one that was given up no more.
struct Hangs<'a>(&'a Mutex<Counts>);

impl<'a> Hangs<'a> {
    fn new(counts: &'a Mutex<Counts>) -> Self {
        lock(counts).hanging += 1;
        Self(counts)
    }
}

impl Drop for Hangs<'_> {
    fn drop(&mut self) {
        lock(self.0).hanging -= 1;
    }
}

#[async_trait]
impl ObjectStorage for FaultyStorage {
    async fn get(&self, key: &str) -> Result<Option<Object>, StorageError> {
        self.call("get", key, self.inner.get(key)).await
    }

    async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<Put, StorageError> {
        self.put(key, bytes, None).await
    }

    async fn put_if_match(
        &self,
        key: &str,
        bytes: Bytes,
        version: &Version,
    ) -> Result<Put, StorageError> {
        self.put(key, bytes, Some(version)).await
    }

    async fn put_file(&self, key: &str, file: &Path) -> Result<Put, StorageError> {
        let put = self.inner.put_file(key, file);
        self.call("put_file", key, put).await
    }

    async fn get_range(
        &self,
        key: &str,
        range: Range<u64>,
    ) -> Result<Option<ObjectStream>, StorageError> {
        let get = self.inner.get_range(key, range);
        self.call("get_range", key, get).await
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StorageError> {
        self.call("head", key, self.inner.head(key)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<ListPage, StorageError> {
        let list = self.inner.list(prefix, after);
        self.call("list", prefix, list).await
    }

    async fn delete(&self, key: &str) -> Result<(), StorageError> {
        self.call("delete", key, self.inner.delete(key)).await
    }

    async fn now(&self) -> Result<UnixMillis, StorageError> {
        self.call("now", "", self.inner.now()).await
    }
}
