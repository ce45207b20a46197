//! Objects in this process's memory: for tests, and for what needs no other process.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use keydb_core::{Clock, UnixMillis};

use crate::{Object, ObjectStorage, Put, StorageError, Version, check_key};

/// Object storage in this process's memory; gone with it. Share one through an `Arc`.
#[derive(Debug)]
pub struct MemoryStorage {
    objects: Mutex<HashMap<String, Object>>,
    clock: Arc<dyn Clock>,
}

impl MemoryStorage {
    /// Empty storage, whose own time is `clock`'s.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            objects: Mutex::default(),
            clock,
        }
    }

    fn objects(&self) -> MutexGuard<'_, HashMap<String, Object>> {
        // Each change is one insertion, so a panic elsewhere cannot have left half of one.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn object(bytes: Bytes) -> Object {
    Object {
        bytes,
        version: Version::random(),
    }
}

#[async_trait]
impl ObjectStorage for MemoryStorage {
    async fn get(&self, key: &str) -> Result<Option<Object>, StorageError> {
        check_key(key)?;
        Ok(self.objects().get(key).cloned())
    }

    async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<Put, StorageError> {
        check_key(key)?;
        Ok(match self.objects().entry(key.to_owned()) {
            Entry::Occupied(_) => Put::Conflict,
            Entry::Vacant(entry) => Put::Done(entry.insert(object(bytes)).version.clone()),
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
            Some(current) if current.version == *version => {
                *current = object(bytes);
                Put::Done(current.version.clone())
            }
            _ => Put::Conflict,
        })
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
