//! What all calls and background tasks of a client work with.

use std::time::Duration;

use tokio::{runtime::Handle, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{cluster::Router, config::ClientConfig, counters::Counters, observer::Observer};

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: ClientConfig,
    pub(crate) router: Router,
    pub(crate) counters: Counters,
    /// Cancelled when the client is closed or its last clone dropped.
    pub(crate) closed: CancellationToken,
    /// The runtime that the client was connected in. Its connections live there, and so must every task that serves several
    /// callers.
    pub(crate) runtime: Handle,
    /// Every task that outlives the call that started it.
    pub(crate) tasks: TaskTracker,
}

impl Shared {
    /// Waits for `work` unless the client is closed first.
    pub(crate) async fn unless_closed<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        // The end comes first: it frees room at nodes, and what waited for it must not be sent any more.
        tokio::select! {
            biased;
            () = self.closed.cancelled() => None,
            done = work => Some(done),
        }
    }

    /// Tells the observer, if there is one.
    pub(crate) fn observe(&self, tell: impl FnOnce(&dyn Observer)) {
        if let Some(observer) = &self.config.observer {
            tell(&*observer.0);
        }
    }
}

/// When a call ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    pub(crate) at: Instant,
    /// How long the call may take altogether.
    pub(crate) timeout: Duration,
}

impl Deadline {
    /// Of a call that began at `since`.
    pub(crate) fn new(since: Instant, timeout: Duration) -> Self {
        Self {
            at: since + timeout,
            timeout,
        }
    }
}
