//! How long to wait before trying again.

use std::time::Duration;

/// The longest pause.
const DELAY_MAX: Duration = Duration::from_secs(2);

/// The pause before retry `retry` (counted from 0): `first`, doubled each time, capped, and shortened at random by up to half, so
/// that callers that failed together do not come back together.
pub(crate) fn pause(first: Duration, retry: u32) -> Duration {
    delay(first, retry, keydb_core::random::u64())
}

fn delay(first: Duration, retry: u32, random: u64) -> Duration {
    let full = first
        .saturating_mul(1_u32.checked_shl(retry).unwrap_or(u32::MAX))
        .min(DELAY_MAX.max(first));
    let fraction = (random >> 32) as f64 / f64::from(u32::MAX);
    full.mul_f64(1.0 - fraction / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_cap_and_lose_at_most_half() {
        let first = Duration::from_millis(100);
        for (retry, full_ms) in [
            (0, 100),
            (1, 200),
            (2, 400),
            (5, 2000),
            (31, 2000),
            (99, 2000),
        ] {
            assert_eq!(delay(first, retry, 0).as_millis(), full_ms);
            assert_eq!(delay(first, retry, u64::MAX).as_millis(), full_ms / 2);
        }
    }

    #[test]
    fn a_first_pause_above_the_cap_is_kept() {
        let first = Duration::from_secs(5);
        assert_eq!(delay(first, 3, 0), first);
        assert_eq!(delay(Duration::ZERO, 3, 0), Duration::ZERO);
    }
}
