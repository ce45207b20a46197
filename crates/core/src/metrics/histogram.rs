//! How long things take.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// The upper bounds of a histogram's buckets, in microseconds; what took longer is in one more. The same for all: from what a lookup
/// in memory takes to what a caller waits for at most.
pub const BOUNDS_MICROS: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000,
];

/// Counts how long something took each time. Recording is two relaxed additions.
///
/// ```
/// use std::time::Duration;
///
/// let histogram = keydb_core::metrics::Histogram::default();
/// histogram.record(Duration::from_micros(100));
/// histogram.record(Duration::from_secs(11));
/// let durations = histogram.read();
/// assert_eq!((durations.counts[0], durations.counts[16]), (1, 1));
/// assert_eq!(durations.sum, Duration::from_micros(11_000_100));
/// ```
#[derive(Debug, Default)]
pub struct Histogram {
    counts: [AtomicU64; BOUNDS_MICROS.len() + 1],
    sum_nanos: AtomicU64,
}

impl Histogram {
    /// Something took so long.
    #[inline]
    pub fn record(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_MICROS.partition_point(|bound| bound * 1000 < nanos);
        self.counts[bucket].fetch_add(1, Relaxed);
        self.sum_nanos.fetch_add(nanos, Relaxed);
    }

    /// What was recorded so far.
    pub fn read(&self) -> Durations {
        Durations {
            counts: std::array::from_fn(|bucket| self.counts[bucket].load(Relaxed)),
            sum: Duration::from_nanos(self.sum_nanos.load(Relaxed)),
        }
    }
}

/// What a [`Histogram`] had recorded at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Durations {
    /// How often something took longer than the bound before and not longer than this one.
    pub counts: [u64; BOUNDS_MICROS.len() + 1],
    /// How long it took altogether.
    pub sum: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_below_the_first_bound_that_is_not_shorter() {
        let histogram = Histogram::default();
        for micros in [0, 100, 101, 1_000, 1_001, 10_000_000, 10_000_001] {
            histogram.record(Duration::from_micros(micros));
        }
        histogram.record(Duration::from_nanos(100_001));
        let mut expected = [0; BOUNDS_MICROS.len() + 1];
        for bucket in [0, 0, 1, 1, 3, 4, 15, 16] {
            expected[bucket] += 1;
        }
        assert_eq!(histogram.read().counts, expected);
    }
}
