//! The end of a node that a part of it asks for.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use crate::NodeError;

/// Why the node is to end, if it is.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    reason: Mutex<Option<NodeError>>,
    asked: Notify,
}

impl Ending {
    /// Has the node end; the first reason counts.
    pub(crate) fn end(&self, reason: NodeError) {
        let mut first = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(reason);
        self.asked.notify_one();
    }

    /// Waits until somebody has the node end.
    pub(crate) async fn asked(&self) -> NodeError {
        loop {
            self.asked.notified().await;
            let mut reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(reason) = reason.take() {
                return reason;
            }
        }
    }
}
