//! How often object storage is called, what comes of it, and how long it takes.

use std::{
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use async_trait::async_trait;
use bytes::Bytes;
use keydb_core::{
    UnixMillis,
    metrics::{Histogram, MetricsText, registry},
};

use crate::{
    ListPage, Object, ObjectInfo, ObjectStorage, ObjectStream, Put, Reread, StorageError,
    StorageErrorKind, Version,
};

/// What is called, as metrics name it.
#[derive(Debug, Clone, Copy)]
enum Call {
    Get,
    GetRange,
    Put,
    Upload,
    Head,
    List,
    Delete,
    Now,
}

const CALLS: [&str; 8] = [
    "get",
    "get_range",
    "put",
    "upload",
    "head",
    "list",
    "delete",
    "now",
];

/// How a call ends, as metrics name it.
#[derive(Debug, Clone, Copy)]
enum Ended {
    Ok,
    Conflict,
    Unavailable,
    OutcomeUnknown,
    Refused,
}

const OUTCOMES: [&str; 5] = [
    "ok",
    "conflict",
    "unavailable",
    "outcome_unknown",
    "refused",
];

/// Counts of calls that have ended.
#[derive(Debug, Default)]
pub struct StorageCalls {
    /// By [`Call`] and [`Ended`].
    ended: [[AtomicU64; OUTCOMES.len()]; CALLS.len()],
    /// By [`Call`].
    durations: [Histogram; CALLS.len()],
}

impl StorageCalls {
    /// Writes them.
    pub fn write(&self, text: &mut MetricsText) {
        let mut samples = text.begin(&registry::STORAGE_CALLS);
        for (call, ended) in CALLS.iter().zip(&self.ended) {
            for (outcome, count) in OUTCOMES.iter().zip(ended) {
                samples.add(&[call, outcome], count.load(Relaxed));
            }
        }
        let mut samples = text.begin(&registry::STORAGE_CALL_DURATION_SECONDS);
        for (call, durations) in CALLS.iter().zip(&self.durations) {
            samples.add_durations(&[call], &durations.read());
        }
    }

    async fn count<T>(
        &self,
        call: Call,
        work: impl Future<Output = Result<T, StorageError>>,
        is_conflict: impl FnOnce(&T) -> bool,
    ) -> Result<T, StorageError> {
        let since = Instant::now();
        let result = work.await;
        let outcome = match &result {
            Ok(done) if is_conflict(done) => Ended::Conflict,
            Ok(_) => Ended::Ok,
            Err(error) => match error.kind() {
                StorageErrorKind::Unavailable => Ended::Unavailable,
                StorageErrorKind::OutcomeUnknown => Ended::OutcomeUnknown,
                StorageErrorKind::Refused => Ended::Refused,
            },
        };
        self.ended[call as usize][outcome as usize].fetch_add(1, Relaxed);
        self.durations[call as usize].record(since.elapsed());
        result
    }
}

/// A storage whose calls are counted.
#[derive(Debug)]
pub struct MeasuredStorage {
    inner: Arc<dyn ObjectStorage>,
    calls: Arc<StorageCalls>,
}

impl MeasuredStorage {
    /// Counts the calls of `inner` in `calls`.
    pub fn new(inner: Arc<dyn ObjectStorage>, calls: Arc<StorageCalls>) -> Self {
        Self { inner, calls }
    }

    async fn read<T>(
        &self,
        call: Call,
        work: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        self.calls.count(call, work, |_| false).await
    }

    async fn write(
        &self,
        call: Call,
        work: impl Future<Output = Result<Put, StorageError>>,
    ) -> Result<Put, StorageError> {
        let is_conflict = |put: &Put| *put == Put::Conflict;
        self.calls.count(call, work, is_conflict).await
    }
}

#[async_trait]
impl ObjectStorage for MeasuredStorage {
    async fn get(&self, key: &str) -> Result<Option<Object>, StorageError> {
        self.read(Call::Get, self.inner.get(key)).await
    }

    async fn get_if_changed(&self, key: &str, known: &Version) -> Result<Reread, StorageError> {
        self.read(Call::Get, self.inner.get_if_changed(key, known))
            .await
    }

    async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<Put, StorageError> {
        self.write(Call::Put, self.inner.put_if_absent(key, bytes))
            .await
    }

    async fn put_if_match(
        &self,
        key: &str,
        bytes: Bytes,
        version: &Version,
    ) -> Result<Put, StorageError> {
        self.write(Call::Put, self.inner.put_if_match(key, bytes, version))
            .await
    }

    async fn put_file(&self, key: &str, file: &Path) -> Result<Put, StorageError> {
        self.write(Call::Upload, self.inner.put_file(key, file))
            .await
    }

    async fn put_stream(&self, key: &str, stream: ObjectStream) -> Result<Put, StorageError> {
        self.write(Call::Upload, self.inner.put_stream(key, stream))
            .await
    }

    async fn get_range(
        &self,
        key: &str,
        range: Range<u64>,
    ) -> Result<Option<ObjectStream>, StorageError> {
        self.read(Call::GetRange, self.inner.get_range(key, range))
            .await
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StorageError> {
        self.read(Call::Head, self.inner.head(key)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<ListPage, StorageError> {
        self.read(Call::List, self.inner.list(prefix, after)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StorageError> {
        self.read(Call::Delete, self.inner.delete(key)).await
    }

    async fn now(&self) -> Result<UnixMillis, StorageError> {
        self.read(Call::Now, self.inner.now()).await
    }
}

#[cfg(test)]
mod tests {
    use keydb_core::ManualClock;

    use super::*;
    use crate::MemoryStorage;

    #[tokio::test]
    async fn calls_are_counted_by_kind_and_outcome() {
        let calls = Arc::new(StorageCalls::default());
        let clock = Arc::new(ManualClock::new(UnixMillis(0)));
        let storage = MeasuredStorage::new(Arc::new(MemoryStorage::new(clock)), Arc::clone(&calls));
        let put = |key| storage.put_if_absent(key, Bytes::from("x"));
        assert!(matches!(put("a").await, Ok(Put::Done(_))));
        assert_eq!(put("a").await, Ok(Put::Conflict));
        assert!(put("/no/key").await.is_err());
        assert!(storage.get("a").await.is_ok());
        assert!(storage.list("", None).await.is_ok());
        let mut text = MetricsText::default();
        calls.write(&mut text);
        let text = text.into_text();
        let counted: Vec<&str> = text
            .lines()
            .filter(|line| line.contains("calls_total{") && !line.ends_with(" 0"))
            .collect();
        assert_eq!(
            counted,
            [
                "keydb_storage_calls_total{call=\"get\",outcome=\"ok\"} 1",
                "keydb_storage_calls_total{call=\"put\",outcome=\"ok\"} 1",
                "keydb_storage_calls_total{call=\"put\",outcome=\"conflict\"} 1",
                "keydb_storage_calls_total{call=\"put\",outcome=\"refused\"} 1",
                "keydb_storage_calls_total{call=\"list\",outcome=\"ok\"} 1",
            ]
        );
        assert!(text.contains("keydb_storage_call_duration_seconds_count{call=\"put\"} 3\n"));
    }
}
