//! What somebody should know of the node.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use keydb_core::NodeId;
use tracing::{info, warn};

/// A node's warnings, by their subject: in its status as long as they hold, and in the log when that begins and ends.
#[derive(Debug)]
pub(crate) struct Warnings {
    node: NodeId,
    texts: Mutex<BTreeMap<&'static str, String>>,
}

impl Warnings {
    pub(crate) fn new(node: NodeId) -> Self {
        Self {
            node,
            texts: Mutex::default(),
        }
    }

    /// Warns of `subject` with `text`, or, with `None`, no more.
    pub(crate) fn set(&self, subject: &'static str, text: Option<String>) {
        let mut texts = self.texts();
        match text {
            Some(text) => {
                let before = texts.insert(subject, text.clone());
                if before.as_ref() != Some(&text) {
                    warn!(node = %self.node, "{text}");
                }
            }
            None => {
                if texts.remove(subject).is_some() {
                    info!(node = %self.node, "no longer: {subject}");
                }
            }
        }
    }

    /// The texts.
    pub(crate) fn all(&self) -> Vec<String> {
        self.texts().values().cloned().collect()
    }

    fn texts(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.texts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
