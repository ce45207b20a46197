//! What was done about the limit on the key sets' memory.

use std::sync::atomic::{AtomicU64, Ordering};

use keydb_core::UnixMillis;
use tokio::sync::Mutex;

/// What was done about the memory limit.
#[derive(Debug, Default)]
pub(crate) struct Reclaiming {
    /// When the last pass over all keys ended. Locked while one is made.
    pub(super) last_pass: Mutex<Option<UnixMillis>>,
    shed_keys: AtomicU64,
}

impl Reclaiming {
    /// Keys that were dropped before their time.
    pub(crate) fn shed_keys(&self) -> u64 {
        self.shed_keys.load(Ordering::Relaxed)
    }

    /// So many more were dropped. Returns how many that are altogether.
    pub(super) fn shed(&self, keys: u64) -> u64 {
        self.shed_keys.fetch_add(keys, Ordering::Relaxed) + keys
    }
}
