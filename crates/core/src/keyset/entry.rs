//! What a key set is told and what it tells.

use crate::{Expiry, Fingerprint, UnixMillis, UnixSeconds};

/// How long an entry stays after its expiry, in seconds: a clock that was wrong and is set right finds it still there.
const PURGE_DELAY_SECONDS: u32 = 3600;

/// One key of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Which key.
    pub fingerprint: Fingerprint,
    /// When it is no longer there.
    pub expiry: Expiry,
}

/// Why a key could not be inserted. It was not, and keys that were there before still are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InsertError {
    /// The system has no memory left.
    #[error("the system has no memory left for more keys")]
    OutOfMemory,
    /// More fingerprints lie close together than hashing would ever bring about.
    #[error(
        "too many fingerprints lie close together: they are not hashes of keys under this cluster's seed"
    )]
    Skewed,
}

/// The times that an operation goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// A key is there while this is before its expiry.
    pub now: UnixSeconds,
    /// Entries with an expiry at or before this may be reclaimed.
    pub purge_before: UnixSeconds,
}

impl Times {
    /// Now, and reclaiming what expired an hour ago.
    pub fn at(now: UnixMillis) -> Self {
        let now = now.seconds();
        Self {
            now,
            purge_before: UnixSeconds(now.0.saturating_sub(PURGE_DELAY_SECONDS)),
        }
    }

    /// Whether an entry with this expiry may be reclaimed.
    #[inline]
    pub(super) const fn purges(self, expiry_seconds: u32) -> bool {
        expiry_seconds <= self.purge_before.0
    }
}

/// How far a sweep has come. The default is the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sweep {
    pub(super) phase: usize,
    pub(super) index: usize,
}
