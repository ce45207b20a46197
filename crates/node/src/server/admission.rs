//! Admission and draining: which requests may still come in, and when the last one has left.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use keydb_proto::{refusal_status, shard::ErrorCode};
use tokio::sync::Notify;
use tonic::Status;

/// The requests for keys that are being worked on.
#[derive(Debug)]
pub(crate) struct InFlight {
    count: AtomicUsize,
    count_max: usize,
    stopping: AtomicBool,
    left: Notify,
}

/// One request's place among those in flight; gives it back when dropped.
#[derive(Debug)]
pub(crate) struct Permit<'a>(&'a InFlight);

impl InFlight {
    /// Room for `count_max` requests.
    pub(crate) fn new(count_max: usize) -> Self {
        Self {
            count: AtomicUsize::new(0),
            count_max,
            stopping: AtomicBool::new(false),
            left: Notify::new(),
        }
    }

    /// Admits a request, unless the node stops or is full.
    pub(crate) fn enter(&self) -> Result<Permit<'_>, Status> {
        // Counted before looking at `stopping`, so that whoever sets that and then sees a count of 0 has seen the last request.
        let before = self.count.fetch_add(1, Ordering::SeqCst);
        let ticket = Permit(self);
        if self.stopping.load(Ordering::SeqCst) {
            return Err(refusal_status(
                ErrorCode::Stopping,
                "the node is stopping; nothing was applied",
            ));
        }
        if before >= self.count_max {
            return Err(refusal_status(
                ErrorCode::Overloaded,
                format!(
                    "{before} requests are in flight, and requests_in_flight_max is {}; nothing was applied, try again later",
                    self.count_max
                ),
            ));
        }
        Ok(ticket)
    }

    /// Admits nothing any more.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// Whether no more requests are admitted.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// How many are in flight.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// Waits until none is in flight. Only ends for good after [`stop`](Self::stop).
    pub(crate) async fn drained(&self) {
        loop {
            let left = self.left.notified();
            if self.count() == 0 {
                return;
            }
            left.await;
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::SeqCst) == 1
            && self.0.stopping.load(Ordering::SeqCst)
        {
            self.0.left.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use keydb_proto::error_code;

    use super::*;

    #[test]
    fn a_full_node_refuses_and_takes_requests_again_when_one_has_left() {
        let requests = InFlight::new(2);
        let first = requests.enter().unwrap();
        let _second = requests.enter().unwrap();
        let refused = requests.enter().unwrap_err();
        assert_eq!(error_code(&refused), Some(ErrorCode::Overloaded));
        assert!(refused.message().contains("requests_in_flight_max is 2"));
        assert_eq!(requests.count(), 2);
        drop(first);
        assert!(requests.enter().is_ok());
    }

    #[tokio::test]
    async fn a_stopping_node_refuses_and_is_drained_when_the_last_request_has_left() {
        let requests = InFlight::new(2);
        let ticket = requests.enter().unwrap();
        requests.stop();
        let refused = requests.enter().unwrap_err();
        assert_eq!(error_code(&refused), Some(ErrorCode::Stopping));
        let mut drained = std::pin::pin!(requests.drained());
        assert!(futures_util::poll!(&mut drained).is_pending());
        drop(ticket);
        drained.await;
    }
}
