//! Times to live and the moments at which they end.
//!
//! An expiry is a whole second since the Unix epoch, rounded up, so a key never dies before its TTL is over. A key is there
//! while `now < expiry`; afterwards it is as if it had never been.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch: what a clock says.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct UnixMillis(pub u64);

/// Whole seconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixSeconds(pub u32);

impl UnixMillis {
    /// The second that this moment lies in.
    pub fn seconds(self) -> UnixSeconds {
        UnixSeconds(u32::try_from(self.0 / 1000).unwrap_or(u32::MAX))
    }

    /// This moment plus `duration`, at most the end of time.
    pub fn plus(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)),
        )
    }
}

/// The longest TTL: 50 years of 365 days.
pub const TTL_MAX: Duration = Duration::from_secs(50 * 365 * 86_400);

/// How long a key lives: 1 second to [`TTL_MAX`], in whole seconds.
///
/// ```
/// use std::time::Duration;
/// use keydb_core::Ttl;
///
/// assert_eq!(Ttl::new(Duration::from_millis(1500))?, "2s".parse()?);
/// assert!(Ttl::new(Duration::ZERO).is_err());
/// # Ok::<(), keydb_core::TtlError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ttl(u32);

/// Why a TTL cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TtlError {
    /// Zero never means "for ever".
    #[error("TTL 0 is not allowed; a TTL is 1s to 18250d (50 years)")]
    Zero,
    /// Longer than [`TTL_MAX`].
    #[error("TTL of {seconds} s is too long; a TTL is 1s to 18250d (50 years)")]
    TooLong {
        /// The refused TTL in seconds.
        seconds: u64,
    },
    /// Not a whole number with a unit.
    #[error(
        "TTL {text:?} is not a whole number with a unit, such as 90s, 15m, 12h, 30d or 2w; a TTL is 1s to 18250d (50 years)"
    )]
    NotADuration {
        /// The refused text.
        text: String,
    },
}

impl Ttl {
    /// A TTL of `duration`; a fraction of a second counts as a whole one.
    ///
    /// # Errors
    /// When it is zero or longer than [`TTL_MAX`].
    pub fn new(duration: Duration) -> Result<Self, TtlError> {
        Self::from_seconds(
            duration
                .as_secs()
                .saturating_add(u64::from(duration.subsec_nanos() > 0)),
        )
    }

    /// A TTL of `seconds`.
    ///
    /// # Errors
    /// When it is zero or longer than [`TTL_MAX`].
    pub fn from_seconds(seconds: u64) -> Result<Self, TtlError> {
        match u32::try_from(seconds) {
            Ok(0) => Err(TtlError::Zero),
            Ok(whole) if seconds <= TTL_MAX.as_secs() => Ok(Self(whole)),
            _ => Err(TtlError::TooLong { seconds }),
        }
    }

    /// The TTL in seconds.
    pub const fn as_seconds(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}s", self.0)
    }
}

impl std::str::FromStr for Ttl {
    type Err = TtlError;

    /// A whole number and one of the units `s`, `m`, `h`, `d`, `w`, `y` (365 days).
    fn from_str(text: &str) -> Result<Self, TtlError> {
        let not_a_duration = || TtlError::NotADuration {
            text: text.to_owned(),
        };
        let unit = text.chars().last().ok_or_else(not_a_duration)?;
        let unit_seconds: u64 = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            'w' => 7 * 86_400,
            'y' => 365 * 86_400,
            _ => return Err(not_a_duration()),
        };
        let digits = &text[..text.len() - 1];
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(not_a_duration());
        }
        // All digits, so the only failure is a number too large to hold.
        let number: u64 = digits.parse().unwrap_or(u64::MAX);
        Self::from_seconds(number.saturating_mul(unit_seconds))
    }
}

/// The second at which a key is no longer there. Never 0: that marks an empty slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Expiry(u32);

/// The expiry does not fit the 32 bits it is stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "now ({now_ms} ms since 1970) plus a TTL of {ttl} lies past 2106-02-07, the last expiry that can be stored; check the clock"
)]
pub struct ExpiryError {
    /// The clock's time in milliseconds since the Unix epoch.
    pub now_ms: u64,
    /// The TTL.
    pub ttl: Ttl,
}

impl Expiry {
    /// The expiry of a key that is stored at `now` for `ttl`: rounded up, so that it lives at least that long.
    ///
    /// # Errors
    /// When it lies past 2106-02-07, the end of 32-bit seconds.
    pub fn after(now: UnixMillis, ttl: Ttl) -> Result<Self, ExpiryError> {
        let error = ExpiryError { now_ms: now.0, ttl };
        let seconds = now
            .0
            .div_ceil(1000)
            .checked_add(u64::from(ttl.0))
            .ok_or(error)?;
        u32::try_from(seconds)
            .ok()
            .and_then(Self::from_unix_seconds)
            .ok_or(error)
    }

    /// From whole seconds since the Unix epoch; `None` for 0.
    #[inline]
    pub const fn from_unix_seconds(seconds: u32) -> Option<Self> {
        if seconds == 0 {
            None
        } else {
            Some(Self(seconds))
        }
    }

    /// Whole seconds since the Unix epoch.
    #[inline]
    pub const fn as_unix_seconds(self) -> u32 {
        self.0
    }

    /// Whether a key with this expiry is there at `now`.
    #[inline]
    pub const fn is_live(self, now: UnixSeconds) -> bool {
        now.0 < self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_is_one_second_to_fifty_years() {
        assert_eq!(Ttl::new(Duration::ZERO), Err(TtlError::Zero));
        assert_eq!(Ttl::new(Duration::from_nanos(1)).unwrap().as_seconds(), 1);
        assert_eq!(Ttl::new(TTL_MAX).unwrap().as_seconds(), 1_576_800_000);
        assert!(matches!(
            Ttl::new(TTL_MAX + Duration::from_nanos(1)),
            Err(TtlError::TooLong { .. })
        ));
    }

    #[test]
    fn ttl_text_is_a_whole_number_with_a_unit() {
        assert_eq!("30d".parse::<Ttl>().unwrap().as_seconds(), 30 * 86_400);
        assert_eq!("2w".parse::<Ttl>().unwrap().as_seconds(), 14 * 86_400);
        assert_eq!("50y".parse::<Ttl>().unwrap().as_seconds(), 1_576_800_000);
        assert_eq!("0s".parse::<Ttl>(), Err(TtlError::Zero));
        for text in [
            "", "s", "5", "-1s", "+1s", "1.5s", "1 s", "1h30m", "ten", "5µ", "30D",
        ] {
            assert!(
                matches!(text.parse::<Ttl>(), Err(TtlError::NotADuration { .. })),
                "{text:?}"
            );
        }
        for text in ["60y", "18251d", "99999999999999999999999999s"] {
            assert!(
                matches!(text.parse::<Ttl>(), Err(TtlError::TooLong { .. })),
                "{text:?}"
            );
        }
    }

    #[test]
    fn an_expiry_is_rounded_up_so_that_no_key_dies_early() {
        let ttl = Ttl::from_seconds(1).unwrap();
        let expiry = Expiry::after(UnixMillis(10_001), ttl).unwrap();
        assert_eq!(expiry.as_unix_seconds(), 12);
        assert!(expiry.is_live(UnixMillis(11_999).seconds()));
        assert!(!expiry.is_live(UnixMillis(12_000).seconds()));
        assert_eq!(
            Expiry::after(UnixMillis(10_000), ttl)
                .unwrap()
                .as_unix_seconds(),
            11
        );
    }

    #[test]
    fn an_expiry_past_the_last_second_is_an_error() {
        let ttl = Ttl::from_seconds(10).unwrap();
        assert!(Expiry::after(UnixMillis((u64::from(u32::MAX) - 5) * 1000), ttl).is_err());
        assert!(Expiry::after(UnixMillis(u64::MAX), ttl).is_err());
    }
}
