//! A slot: 96 bits of fingerprint above 32 bits of expiry.

use super::Entry;
use crate::{Expiry, Fingerprint, UnixSeconds};

/// An entry, or nothing (0: no entry has expiry 0). Slots compare as their fingerprints do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub(super) struct Slot(u128);

impl Slot {
    pub(super) const EMPTY: Self = Self(0);

    #[inline]
    pub(super) const fn new(fingerprint: Fingerprint, expiry: Expiry) -> Self {
        Self((fingerprint.as_u128() << 32) | expiry.as_unix_seconds() as u128)
    }

    #[inline]
    pub(super) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[inline]
    pub(super) const fn fingerprint(self) -> Fingerprint {
        Fingerprint::from_parts((self.0 >> 64) as u64, (self.0 >> 32) as u32)
    }

    /// The top 64 bits of the fingerprint.
    #[inline]
    pub(super) const fn top(self) -> u64 {
        (self.0 >> 64) as u64
    }

    /// The expiry in Unix seconds; 0 for an empty slot.
    #[inline]
    pub(super) const fn expiry_seconds(self) -> u32 {
        self.0 as u32
    }

    #[inline]
    pub(super) const fn is_live(self, now: UnixSeconds) -> bool {
        now.0 < self.expiry_seconds()
    }

    /// The entry; `None` for an empty slot.
    #[inline]
    pub(super) const fn entry(self) -> Option<Entry> {
        Entry::from_bits(self.0)
    }
}

impl From<Entry> for Slot {
    #[inline]
    fn from(entry: Entry) -> Self {
        Self(entry.as_bits())
    }
}

/// What a probe looks for: stops at the first slot that is empty or not before a fingerprint, in one comparison.
#[derive(Clone, Copy)]
pub(super) struct Needle {
    fingerprint: Fingerprint,
    /// One less than the smallest slot that can hold the fingerprint. Under wrapping subtraction of 1 an empty slot becomes the
    /// largest number, so `slot - 1 >= bound` holds for it as well.
    bound: u128,
}

impl Needle {
    #[inline]
    pub(super) const fn new(fingerprint: Fingerprint) -> Self {
        let smallest = fingerprint.as_u128() << 32 | 1;
        Self {
            fingerprint,
            bound: smallest - 1,
        }
    }

    /// Whether `slot` is empty or holds this fingerprint or a larger one.
    #[inline]
    pub(super) const fn stops_at(self, slot: Slot) -> bool {
        slot.0.wrapping_sub(1) >= self.bound
    }

    /// Whether `slot` holds this fingerprint.
    #[inline]
    pub(super) const fn is_in(self, slot: Slot) -> bool {
        !slot.is_empty() && slot.0 >> 32 == self.fingerprint.as_u128()
    }
}
