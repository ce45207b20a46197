//! The one place where randomness enters: identities that must differ between clusters, processes and operations.

use std::time::Duration;

/// 16 bytes from the operating system's random source.
///
/// # Panics
/// When the operating system has no random source: nothing here can be unique without one.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the place that others are told to use"
)]
pub fn bytes() -> [u8; 16] {
    let mut out = [0; 16];
    getrandom::fill(&mut out).expect("the operating system has a random source");
    out
}

/// 64 random bits.
pub fn u64() -> u64 {
    u128::from_ne_bytes(bytes()) as u64
}

/// The pause before retry `retry` (counted from 0): `first`, doubled each time, no more than `max` unless `first` is, and shortened
/// at random by up to half, so that callers that failed together do not come back together.
pub fn backoff(first: Duration, max: Duration, retry: u32) -> Duration {
    shortened(first, max, retry, u64())
}

fn shortened(first: Duration, max: Duration, retry: u32, random: u64) -> Duration {
    let full = first
        .saturating_mul(1_u32.checked_shl(retry).unwrap_or(u32::MAX))
        .min(max.max(first));
    let fraction = (random >> 32) as f64 / f64::from(u32::MAX);
    full.mul_f64(1.0 - fraction / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_secs(2);

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
            assert_eq!(shortened(first, MAX, retry, 0).as_millis(), full_ms);
            assert_eq!(
                shortened(first, MAX, retry, u64::MAX).as_millis(),
                full_ms / 2
            );
        }
    }

    #[test]
    fn a_first_pause_above_the_cap_is_kept() {
        let first = Duration::from_secs(5);
        assert_eq!(shortened(first, MAX, 3, 0), first);
        assert_eq!(shortened(Duration::ZERO, MAX, 3, 0), Duration::ZERO);
    }
}
