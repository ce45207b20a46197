//! Waiting for the requests that were inside ranges when these were shut.
//!
//! A request [enters](Grace::enter) before it looks whether a range is open, and leaves when all that it has applied is in the journal.
//! Whoever has shut a range [waits](Grace::passed) until every request has left that was inside then: those that enter later see that
//! it is shut. Requests count themselves in one of two places, which take turns: so nobody waits for requests that came later.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::sync::Mutex;

/// How often it is looked whether the last request has left.
const LOOK_INTERVAL: Duration = Duration::from_micros(200);

/// The requests that are at work on keys.
#[derive(Debug, Default)]
pub(crate) struct Grace {
    turn: AtomicUsize,
    inside: [AtomicUsize; 2],
    one_at_a_time: Mutex<()>,
}

/// A request that is at work on keys, until it is dropped.
#[derive(Debug)]
pub(crate) struct Inside<'a>(&'a AtomicUsize);

impl Grace {
    /// A request begins its work.
    pub(crate) fn enter(&self) -> Inside<'_> {
        loop {
            let turn = self.turn.load(Ordering::SeqCst);
            let inside = &self.inside[turn % 2];
            inside.fetch_add(1, Ordering::SeqCst);
            if self.turn.load(Ordering::SeqCst) == turn {
                return Inside(inside);
            }
            inside.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Waits until all requests have left that were inside when this was called.
    pub(crate) async fn passed(&self) {
        let _one = self.one_at_a_time.lock().await;
        let turn = self.turn.fetch_add(1, Ordering::SeqCst);
        while self.inside[turn % 2].load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_that_were_inside_are_waited_for_and_later_ones_are_not() {
        let grace = Arc::new(Grace::default());
        for _ in 0..3 {
            let early = grace.enter();
            let waiting = tokio::spawn({
                let grace = Arc::clone(&grace);
                async move { grace.passed().await }
            });
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(!waiting.is_finished());
            let late = grace.enter();
            drop(early);
            waiting.await.unwrap();
            drop(late);
        }
    }
}
