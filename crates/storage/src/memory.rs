//! Objects in this process's memory: for tests, and for what needs no other process.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ops::{Bound, Range},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use keydb_core::{Clock, UnixMillis};
use tokio::task::spawn_blocking;

use crate::{
    LIST_PAGE_MAX, ListPage, Object, ObjectInfo, ObjectStorage, ObjectStream, Put, StorageError,
    Version, check_key,
};

/// Object storage in this process's memory; gone with it. Share one through an `Arc`.
#[derive(Debug)]
pub struct MemoryStorage {
    objects: Mutex<BTreeMap<String, Stored>>,
    clock: Arc<dyn Clock>,
}

#[derive(Debug, Clone)]
struct Stored {
    object: Object,
    modified: UnixMillis,
}

impl Stored {
    fn info(&self, key: &str) -> ObjectInfo {
        ObjectInfo {
            key: key.to_owned(),
            size_bytes: self.object.bytes.len() as u64,
            modified: self.modified,
        }
    }
}

impl MemoryStorage {
    /// Empty storage, whose own time is `clock`'s.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            objects: Mutex::default(),
            clock,
        }
    }

    fn stored(&self, bytes: Bytes) -> Stored {
        Stored {
            object: Object {
                bytes,
                version: Version::random(),
            },
            modified: self.clock.now(),
        }
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Stored>> {
        // Each change is one insertion, so a panic elsewhere cannot have left half of one.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl ObjectStorage for MemoryStorage {
    async fn get(&self, key: &str) -> Result<Option<Object>, StorageError> {
        check_key(key)?;
        Ok(self.objects().get(key).map(|stored| stored.object.clone()))
    }

    async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<Put, StorageError> {
        check_key(key)?;
        Ok(match self.objects().entry(key.to_owned()) {
            Entry::Occupied(_) => Put::Conflict,
            Entry::Vacant(entry) => {
                Put::Done(entry.insert(self.stored(bytes)).object.version.clone())
            }
        })
    }

    async fn put_if_match(
        &self,
        key: &str,
        bytes: Bytes,
        version: &Version,
    ) -> Result<Put, StorageError> {
        check_key(key)?;
        Ok(match self.objects().get_mut(key) {
            Some(current) if current.object.version == *version => {
                *current = self.stored(bytes);
                Put::Done(current.object.version.clone())
            }
            _ => Put::Conflict,
        })
    }

    async fn put_file(&self, key: &str, file: &Path) -> Result<Put, StorageError> {
        check_key(key)?;
        let path = file.to_owned();
        let bytes = spawn_blocking(move || std::fs::read(path))
            .await
            .unwrap_or_else(|error| Err(std::io::Error::other(error)))
            .map_err(|error| {
                StorageError::refused(format!("cannot read {}: {error}", file.display()))
            })?;
        self.put_if_absent(key, bytes.into()).await
    }

    async fn get_range(
        &self,
        key: &str,
        range: Range<u64>,
    ) -> Result<Option<ObjectStream>, StorageError> {
        check_key(key)?;
        let Some(object) = self.get(key).await? else {
            return Ok(None);
        };
        let size = object.bytes.len();
        let end = usize::try_from(range.end).unwrap_or(size).min(size);
        let start = usize::try_from(range.start).unwrap_or(size).min(end);
        let part = object.bytes.slice(start..end);
        Ok(Some(ObjectStream {
            size_bytes: size as u64,
            bytes: stream::iter([Ok(part)]).boxed(),
        }))
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StorageError> {
        check_key(key)?;
        Ok(self.objects().get(key).map(|stored| stored.info(key)))
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<ListPage, StorageError> {
        let objects = self.objects();
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut matching = objects
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, stored)| stored.info(key));
        Ok(ListPage {
            objects: matching.by_ref().take(LIST_PAGE_MAX).collect(),
            more: matching.next().is_some(),
        })
    }

    async fn delete(&self, key: &str) -> Result<(), StorageError> {
        check_key(key)?;
        self.objects().remove(key);
        Ok(())
    }

    async fn now(&self) -> Result<UnixMillis, StorageError> {
        Ok(self.clock.now())
    }
}

#[cfg(test)]
mod tests {
    use keydb_core::ManualClock;

    use super::*;
    use crate::conformance::{conformance_tests, handles_of};

    fn open() -> MemoryStorage {
        MemoryStorage::new(Arc::new(ManualClock::new(UnixMillis(1_700_000_000_000))))
    }

    conformance_tests!(handles_of(Arc::new(open())));

    #[tokio::test]
    async fn its_time_is_the_given_clocks() {
        let clock = Arc::new(ManualClock::new(UnixMillis(5_000)));
        let storage = MemoryStorage::new(clock.clone());
        clock.advance(std::time::Duration::from_millis(250));
        assert_eq!(storage.now().await, Ok(UnixMillis(5_250)));
    }
}
