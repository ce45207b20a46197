//! How keys wait for their ranges' hand-overs.

use std::time::Duration;

use keydb_core::random;

/// A hand-over takes milliseconds: the first pause while it goes on, and the longest.
const PAUSE: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// How far a sending's keys have got in waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HandOver {
    /// Whether they went to another node since the last pause.
    pub(super) switched: bool,
    pauses: u32,
}

impl HandOver {
    /// They do not wait.
    pub(super) const NONE: Self = Self {
        switched: false,
        pauses: 0,
    };

    /// They go to another node, at once.
    pub(super) fn switched(self) -> (Self, Duration) {
        let switched = true;
        (Self { switched, ..self }, Duration::ZERO)
    }

    /// They are sent again after a pause.
    pub(super) fn paused(self) -> (Self, Duration) {
        let pause = random::backoff(PAUSE, PAUSE_MAX, self.pauses);
        let pauses = self.pauses + 1;
        let switched = false;
        (Self { switched, pauses }, pause)
    }
}
