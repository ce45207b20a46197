//! The real clock.

use std::{
    fs,
    time::{Duration, SystemTime},
};

use keydb_core::{Clock, SinceBoot, UnixMillis};

/// Where Linux says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The wall clock at the time of [`new`](Self::new), and from there on the time since, sleep included: it never jumps, neither
/// when somebody sets the wall clock nor when the machine wakes up.
#[derive(Debug)]
pub struct SystemClock {
    wall_at_start: UnixMillis,
    started: Duration,
    boot_id: Option<String>,
}

impl SystemClock {
    /// A clock that shows the wall clock's time now.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the clock that others are told to use"
    )]
    pub fn new() -> Self {
        let wall = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            wall_at_start: UnixMillis(0).plus(wall),
            started: since_boot(),
            boot_id: fs::read_to_string(BOOT_ID)
                .ok()
                .map(|text| text.trim().to_owned()),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> UnixMillis {
        self.wall_at_start
            .plus(since_boot().saturating_sub(self.started))
    }

    fn since_boot(&self) -> Option<SinceBoot> {
        Some(SinceBoot {
            boot_id: self.boot_id.clone()?,
            elapsed_ms: u64::try_from(since_boot().as_millis()).ok()?,
        })
    }
}

fn since_boot() -> Duration {
    use rustix::time::{ClockId, clock_gettime};

    #[cfg(any(target_os = "linux", target_os = "android"))]
    let clock = ClockId::Boottime;
    // Elsewhere the monotonic clock is the nearest there is.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let clock = ClockId::Monotonic;
    let time = clock_gettime(clock);
    // The time since boot is neither negative nor are its nanoseconds.
    Duration::new(
        time.tv_sec.try_into().unwrap_or(0),
        time.tv_nsec.try_into().unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_its_start_on_it_goes_by_the_time_since_boot_whatever_the_wall_clock_shows() {
        let hour = Duration::from_secs(3600);
        // The wall clock was set back, or forward, by many years since.
        for wall_at_start in [UnixMillis(5_000), UnixMillis(9_000_000_000_000)] {
            let clock = SystemClock {
                wall_at_start,
                started: since_boot().saturating_sub(hour),
                boot_id: None,
            };
            let gone = clock.now().0 - wall_at_start.0;
            let hour_ms = 3_600_000.min(since_boot().as_millis() as u64);
            assert!((hour_ms..hour_ms + 600_000).contains(&gone), "{gone}");
        }
    }

    #[test]
    fn it_starts_at_the_wall_clocks_time_and_does_not_go_back() {
        #[expect(
            clippy::disallowed_methods,
            reason = "this is what it is compared with"
        )]
        let wall = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap();
        let clock = SystemClock::new();
        let first = clock.now();
        assert!(first >= UnixMillis(wall.as_millis() as u64));
        assert!(first < UnixMillis(wall.as_millis() as u64 + 60_000));
        assert!(clock.now() >= first);
    }
}
