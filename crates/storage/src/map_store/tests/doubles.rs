//! The map in storage that goes wrong, and storages that do not keep their word.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use keydb_core::{ClusterMap, ManualClock, UnixMillis};

use crate::{
    ListPage, MAP_KEY, MapStore, MemoryStorage, Object, ObjectInfo, ObjectStorage, ObjectStream,
    Put, StorageError, Version,
    testing::{FaultyStorage, StorageFault},
};

/// Storage in which nothing goes wrong yet.
pub(super) fn storage() -> Arc<FaultyStorage> {
    Arc::new(FaultyStorage::new(Arc::new(ManualClock::new(UnixMillis(
        1,
    )))))
}

/// What happens with one write of the map.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Write {
    /// It goes wrong. What was late until then is done before.
    Meets(StorageFault),
    /// Another writer changes the map just before it.
    Outrun,
    /// It is done, its reply lost, and another writer changes the map before it is read again.
    ReplyLostAndOverwritten,
}

/// The next writes and reads of the map go wrong like this, in this order, and then no more.
pub(super) fn plan(
    storage: &Arc<FaultyStorage>,
    writes: impl IntoIterator<Item = Write>,
    reads: impl IntoIterator<Item = Option<StorageFault>>,
) {
    let mut writes: VecDeque<_> = writes.into_iter().collect();
    let mut reads: VecDeque<_> = reads.into_iter().collect();
    let mut is_overwritten = false;
    let weak = Arc::downgrade(storage);
    storage.goes_wrong(move |call, key| {
        let storage = weak.upgrade().unwrap();
        let overwrite = || {
            let change = change_by_another(&storage.inner).now_or_never();
            change.expect("memory does not wait");
        };
        match (call, key) {
            ("get", MAP_KEY) => {
                if std::mem::take(&mut is_overwritten) {
                    overwrite();
                }
                reads.pop_front().flatten()
            }
            ("put", MAP_KEY) => {
                let landed = storage.land().now_or_never();
                landed.expect("memory does not wait");
                match writes.pop_front()? {
                    Write::Meets(fault) => Some(fault),
                    Write::Outrun => {
                        overwrite();
                        None
                    }
                    Write::ReplyLostAndOverwritten => {
                        is_overwritten = true;
                        Some(StorageFault::ReplyLost)
                    }
                }
            }
            _ => None,
        }
    });
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
        Err(StorageError::refused("no permission"))
    }

    async fn get_range(
        &self,
        _: &str,
        _: Range<u64>,
    ) -> Result<Option<ObjectStream>, StorageError> {
        Err(StorageError::refused("no permission"))
    }

    async fn head(&self, _: &str) -> Result<Option<ObjectInfo>, StorageError> {
        Err(StorageError::refused("no permission"))
    }

    async fn list(&self, _: &str, _: Option<&str>) -> Result<ListPage, StorageError> {
        Ok(ListPage {
            objects: Vec::new(),
            more: false,
        })
    }

    async fn delete(&self, _: &str) -> Result<(), StorageError> {
        Err(StorageError::refused("no permission"))
    }

    async fn now(&self) -> Result<UnixMillis, StorageError> {
        Ok(UnixMillis(1))
    }
}
