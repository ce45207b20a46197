//! What a key set is told and what it tells.

use std::fmt;

use crate::{Expiry, Fingerprint, UnixMillis, UnixSeconds};

/// How long an entry stays after its expiry, in seconds: a clock that was wrong and is set right finds it still there.
const PURGE_DELAY_SECONDS: u32 = 3600;

/// One key of a set, in 16 bytes. Ordered by fingerprint, then by expiry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry(u128);

impl Entry {
    /// The key with this fingerprint, there until `expiry`.
    #[inline]
    pub const fn new(fingerprint: Fingerprint, expiry: Expiry) -> Self {
        Self((fingerprint.as_u128() << 32) | expiry.as_unix_seconds() as u128)
    }

    /// Which key.
    #[inline]
    pub const fn fingerprint(self) -> Fingerprint {
        Fingerprint::from_parts((self.0 >> 64) as u64, (self.0 >> 32) as u32)
    }

    /// When it is no longer there.
    #[inline]
    pub const fn expiry(self) -> Expiry {
        Expiry::from_unix_seconds(self.0 as u32).expect("an entry is made with an expiry, never 0")
    }

    /// Fingerprint above expiry, as a slot has them.
    #[inline]
    pub(super) const fn as_bits(self) -> u128 {
        self.0
    }

    /// From a slot's bits; `None` for those of an empty one.
    #[inline]
    pub(super) const fn from_bits(bits: u128) -> Option<Self> {
        if bits as u32 == 0 {
            None
        } else {
            Some(Self(bits))
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} until {}",
            self.fingerprint(),
            self.expiry().as_unix_seconds()
        )
    }
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
