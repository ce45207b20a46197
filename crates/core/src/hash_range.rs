//! Hash ranges: contiguous slices of a fingerprint's top 64 bits, with a stable id and explicit bounds.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A hash range's id, stable for the cluster's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RangeId(pub u32);

impl fmt::Display for RangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The most hash ranges a cluster can start with.
pub const HASH_RANGES_MAX: u32 = 65_536;

/// How many hash ranges were asked for, when that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{count} hash ranges are not possible; a cluster has 1 to {HASH_RANGES_MAX}")]
pub struct RangeCountError {
    /// The refused count.
    pub count: u32,
}

/// The bounds of a hash range: all fingerprints whose top 64 bits lie in `start..=last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HashRange {
    start: u64,
    last: u64,
}

impl HashRange {
    /// All fingerprints.
    pub const ALL: Self = Self {
        start: 0,
        last: u64::MAX,
    };

    /// The range `start..=last`; `None` when `last` lies before `start`.
    pub const fn new(start: u64, last: u64) -> Option<Self> {
        if start <= last {
            Some(Self { start, last })
        } else {
            None
        }
    }

    /// The first top-64-bits value that belongs to the range.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// The last top-64-bits value that belongs to the range.
    pub const fn last(self) -> u64 {
        self.last
    }

    /// Whether a fingerprint with these top 64 bits belongs to the range.
    #[inline]
    pub const fn contains(self, top: u64) -> bool {
        self.start <= top && top <= self.last
    }

    /// `count` ranges as equal as can be, in order, which cover everything.
    ///
    /// # Errors
    /// When `count` is 0 or above [`HASH_RANGES_MAX`].
    pub fn split_evenly(count: u32) -> Result<Vec<Self>, RangeCountError> {
        if count == 0 || count > HASH_RANGES_MAX {
            return Err(RangeCountError { count });
        }
        let start_of = |index: u32| ((u128::from(index) << 64) / u128::from(count)) as u64;
        let ranges = (0..count).map(|index| Self {
            start: start_of(index),
            last: if index + 1 == count {
                u64::MAX
            } else {
                start_of(index + 1) - 1
            },
        });
        Ok(ranges.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_even_split_covers_everything_without_gap_or_overlap() {
        for count in [1, 2, 3, 7, 128, 1000, HASH_RANGES_MAX] {
            let ranges = HashRange::split_evenly(count).unwrap();
            assert_eq!(ranges.len(), count as usize);
            assert_eq!(ranges[0].start(), 0);
            assert_eq!(ranges[ranges.len() - 1].last(), u64::MAX);
            assert!(
                ranges
                    .windows(2)
                    .all(|pair| pair[0].last().checked_add(1) == Some(pair[1].start()))
            );
            let sizes = ranges.iter().map(|range| range.last() - range.start());
            let (least, most) = sizes.fold((u64::MAX, 0), |(least, most), size| {
                (least.min(size), most.max(size))
            });
            assert!(most - least <= 1, "{count}");
        }
    }

    #[test]
    fn no_and_too_many_ranges_are_refused() {
        assert_eq!(
            HashRange::split_evenly(0),
            Err(RangeCountError { count: 0 })
        );
        assert!(HashRange::split_evenly(HASH_RANGES_MAX + 1).is_err());
    }
}
