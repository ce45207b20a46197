//! The journal by itself, as the benchmark `journal` needs it. Nothing else uses it.

use std::{path::Path, sync::Arc};

use keydb_core::{
    ClusterId, Expiry, Incarnation, Lsn, NodeId, PackedFingerprints, RangeId, RecordGroup, Write,
    record_bytes_max,
};

use super::{Identity, JournalConfig, JournalError};
use crate::SystemClock;

/// A journal in a directory of its own.
#[derive(Debug)]
pub struct Journal(super::Journal);

impl Journal {
    /// A new one; nothing may be in `dir`.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub fn open(dir: &Path) -> Result<Self, JournalError> {
        let identity = Identity {
            cluster_id: ClusterId::from_bytes([1; 16]),
            node: NodeId(0),
            disk_id: Incarnation::from_bytes([2; 16]),
        };
        let clock = Arc::new(SystemClock::new());
        let config = JournalConfig::new(dir.to_owned(), identity, true, clock);
        super::Journal::open(
            config,
            super::Recent::new(Lsn::ZERO, super::RECENT_BYTES_MAX),
        )
        .map(Self)
    }

    /// Appends a record of these keys and waits until it is committed.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub async fn put(&self, keys: PackedFingerprints<'_>, expiry: Expiry) -> Result<(), String> {
        let groups = [RecordGroup {
            range: RangeId(0),
            generation: 1,
            count: keys.len() as u32,
        }];
        let bytes = record_bytes_max(groups.len(), keys.len(), 0);
        let space = self.0.admit(bytes).await.map_err(|full| full.to_string())?;
        let reservation = space.begin();
        let lsn = reservation.lsn();
        let write = Write {
            expiry,
            operation: None,
            answers: &[],
            groups: (&groups[..]).into(),
            fingerprints: keys,
        };
        reservation.append(&write, self.0.shared.config.clock.now());
        let committed = self.0.wait_committed(lsn).await;
        committed.map_err(|error| error.to_string())
    }

    /// As many bytes as were written, and in how many group commits.
    pub fn written(&self) -> (u64, u64) {
        (self.0.bytes(), self.0.shared.queue.commits())
    }

    /// Forgets what was written, as after a snapshot.
    pub fn cut(&self) {
        self.0.cut(self.0.committed());
    }
}
