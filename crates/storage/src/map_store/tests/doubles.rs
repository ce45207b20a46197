//! Storages that go wrong: one behind a bad connection, and several that do not keep their word.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use keydb_core::{ClusterMap, ManualClock, UnixMillis};

use crate::{
    ListPage, MAP_KEY, MapStore, MemoryStorage, Object, ObjectInfo, ObjectStorage, ObjectStream,
    Put, StorageError, StorageErrorKind, Version,
};

pub(super) fn memory() -> Arc<MemoryStorage> {
    Arc::new(MemoryStorage::new(Arc::new(ManualClock::new(UnixMillis(
        1,
    )))))
}

/// What goes wrong with one read or write of the map.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fault {
    /// Nothing.
    Nothing,
    /// It fails and is not applied.
    Unavailable,
    /// It fails, is not applied, and never will be.
    Refused,
    /// The write is applied and its reply lost.
    ReplyLost,
    /// The write is lost.
    RequestLost,
    /// The write is applied only when the next one comes.
    RequestLate,
    /// The write is applied, its reply lost, and another writer changes the map in between.
    ReplyLostAndOverwritten,
    /// Another writer changes the map just before the write.
    Outrun,
}

/// Correct storage behind a bad connection. It fails as planned, in the plan's order, and then no more.
#[derive(Debug)]
pub(super) struct FaultyStorage {
    pub(super) inner: Arc<MemoryStorage>,
    pub(super) writes: Mutex<VecDeque<Fault>>,
    pub(super) reads: Mutex<VecDeque<Fault>>,
    late: Mutex<Option<(Bytes, Option<Version>)>>,
}

impl FaultyStorage {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: memory(),
            writes: Mutex::default(),
            reads: Mutex::default(),
            late: Mutex::default(),
        })
    }

    async fn apply(&self, bytes: Bytes, version: Option<&Version>) -> Result<Put, StorageError> {
        match version {
            None => self.inner.put_if_absent(MAP_KEY, bytes).await,
            Some(version) => self.inner.put_if_match(MAP_KEY, bytes, version).await,
        }
    }

    async fn put_map(&self, bytes: Bytes, version: Option<&Version>) -> Result<Put, StorageError> {
        let late = self.late.lock().unwrap().take();
        if let Some((bytes, version)) = late {
            self.apply(bytes, version.as_ref()).await.map(drop)?;
        }
        let unknown = Err(StorageError::new(
            StorageErrorKind::OutcomeUnknown,
            "the reply was lost",
        ));
        let fault = self.writes.lock().unwrap().pop_front();
        match fault.unwrap_or(Fault::Nothing) {
            Fault::Nothing => self.apply(bytes, version).await,
            Fault::Unavailable => Err(unavailable()),
            Fault::Refused => Err(refused()),
            Fault::ReplyLost => self.apply(bytes, version).await.and(unknown),
            Fault::RequestLost => unknown,
            Fault::RequestLate => {
                *self.late.lock().unwrap() = Some((bytes, version.cloned()));
                unknown
            }
            Fault::ReplyLostAndOverwritten => {
                self.apply(bytes, version).await.map(drop)?;
                change_by_another(&self.inner).await;
                unknown
            }
            Fault::Outrun => {
                change_by_another(&self.inner).await;
                self.apply(bytes, version).await
            }
        }
    }
}

/// Another writer's change: node 2 counts one loss more.
pub(super) async fn change_by_another(storage: &Arc<MemoryStorage>) -> ClusterMap {
    let store = MapStore::new(storage.clone());
    let changed = store.update(|map| {
        let mut next = map.successor();
        next.nodes[2].loss_count += 1;
        Ok::<_, Infallible>(Some(next))
    });
    changed.await.unwrap()
}

fn unavailable() -> StorageError {
    StorageError::new(StorageErrorKind::Unavailable, "no connection")
}

fn refused() -> StorageError {
    StorageError::new(StorageErrorKind::Refused, "no permission")
}

#[async_trait]
impl ObjectStorage for FaultyStorage {
    async fn get(&self, key: &str) -> Result<Option<Object>, StorageError> {
        let fault = self.reads.lock().unwrap().pop_front();
        match fault.unwrap_or(Fault::Nothing) {
            Fault::Unavailable => Err(unavailable()),
            Fault::Refused => Err(refused()),
            _ => self.inner.get(key).await,
        }
    }

    async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<Put, StorageError> {
        match key {
            MAP_KEY => self.put_map(bytes, None).await,
            _ => self.inner.put_if_absent(key, bytes).await,
        }
    }

    async fn put_if_match(
        &self,
        key: &str,
        bytes: Bytes,
        version: &Version,
    ) -> Result<Put, StorageError> {
        match key {
            MAP_KEY => self.put_map(bytes, Some(version)).await,
            _ => self.inner.put_if_match(key, bytes, version).await,
        }
    }

    async fn put_file(&self, key: &str, file: &Path) -> Result<Put, StorageError> {
        self.inner.put_file(key, file).await
    }

    async fn get_range(
        &self,
        key: &str,
        range: Range<u64>,
    ) -> Result<Option<ObjectStream>, StorageError> {
        self.inner.get_range(key, range).await
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StorageError> {
        self.inner.head(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<ListPage, StorageError> {
        self.inner.list(prefix, after).await
    }

    async fn delete(&self, key: &str) -> Result<(), StorageError> {
        self.inner.delete(key).await
    }

    async fn now(&self) -> Result<UnixMillis, StorageError> {
        self.inner.now().await
    }
}

/// How a [`BrokenStorage`] breaks its word.
#[derive(Debug, Clone, Copy)]
pub(super) enum Breach {
    /// Writes whatever the condition, as servers do that do not know the headers.
    IgnoresBothConditions,
    /// Creates what exists.
    IgnoresIfAbsent,
    /// Replaces what has another version.
    IgnoresIfMatch,
    /// Creates what should have been replaced.
    ReplacesNothing,
    /// Checks the condition, and writes a moment later.
    ChecksThenWrites,
    /// Says that there was a conflict, and writes all the same.
    WritesDespiteConflict,
    /// Says that it wrote, and did not.
    ForgetsWrites,
    /// Says that there was a conflict where there was none.
    RefusesEverything,
}

/// Storage that does not keep its word.
#[derive(Debug)]
pub(super) struct BrokenStorage {
    breach: Breach,
    objects: Mutex<HashMap<String, Object>>,
}

impl BrokenStorage {
    pub(super) fn new(breach: Breach) -> Arc<Self> {
        Arc::new(Self {
            breach,
            objects: Mutex::default(),
        })
    }

    pub(super) fn keys(&self) -> Vec<String> {
        self.objects.lock().unwrap().keys().cloned().collect()
    }

    async fn put(&self, key: &str, bytes: Bytes, expected: Option<&Version>) -> Put {
        let current = self.objects.lock().unwrap().get(key).cloned();
        let current = current.map(|object| object.version);
        let holds = current.as_ref() == expected;
        let goes_on = match self.breach {
            Breach::IgnoresBothConditions => true,
            Breach::IgnoresIfAbsent => holds || expected.is_none(),
            Breach::IgnoresIfMatch => holds || (expected.is_some() && current.is_some()),
            Breach::ReplacesNothing => holds || (expected.is_some() && current.is_none()),
            Breach::RefusesEverything => false,
            Breach::ChecksThenWrites | Breach::WritesDespiteConflict | Breach::ForgetsWrites => {
                holds
            }
        };
        if matches!(self.breach, Breach::ChecksThenWrites) {
            tokio::task::yield_now().await;
        }
        let version = Version::random();
        let writes = goes_on || matches!(self.breach, Breach::WritesDespiteConflict);
        if writes && !(matches!(self.breach, Breach::ForgetsWrites) && expected.is_some()) {
            let object = Object {
                bytes,
                version: version.clone(),
            };
            self.objects.lock().unwrap().insert(key.to_owned(), object);
        }
        if goes_on {
            Put::Done(version)
        } else {
            Put::Conflict
        }
    }
}

#[async_trait]
impl ObjectStorage for BrokenStorage {
    async fn get(&self, key: &str) -> Result<Option<Object>, StorageError> {
        Ok(self.objects.lock().unwrap().get(key).cloned())
    }

    async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<Put, StorageError> {
        Ok(self.put(key, bytes, None).await)
    }

    async fn put_if_match(
        &self,
        key: &str,
        bytes: Bytes,
        version: &Version,
    ) -> Result<Put, StorageError> {
        Ok(self.put(key, bytes, Some(version)).await)
    }

    async fn put_file(&self, _: &str, _: &Path) -> Result<Put, StorageError> {
        Err(refused())
    }

    async fn get_range(
        &self,
        _: &str,
        _: Range<u64>,
    ) -> Result<Option<ObjectStream>, StorageError> {
        Err(refused())
    }

    async fn head(&self, _: &str) -> Result<Option<ObjectInfo>, StorageError> {
        Err(refused())
    }

    async fn list(&self, _: &str, _: Option<&str>) -> Result<ListPage, StorageError> {
        Ok(ListPage {
            objects: Vec::new(),
            more: false,
        })
    }

    async fn delete(&self, _: &str) -> Result<(), StorageError> {
        Err(refused())
    }

    async fn now(&self) -> Result<UnixMillis, StorageError> {
        Ok(UnixMillis(1))
    }
}
