//! What is known of a part whenever it ends.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
};

use keydb_core::NodeId;

use crate::{call::Failure, error::NotApplied, node::Node};

/// How far a part is. It outlives the work on the part, which may be dropped at any time.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Keys that nodes have answered for.
    answered: AtomicUsize,
    /// Other keys that were sent and not refused for certain.
    uncertain: AtomicUsize,
    /// Which those are (and some that have been answered), by position; empty where nobody asks for single keys.
    uncertain_at: Vec<AtomicBool>,
    talk: Mutex<Talk>,
}

#[derive(Debug, Default)]
struct Talk {
    /// Requests on their way, by node.
    sent: BTreeMap<NodeId, (usize, String)>,
    last_error: Option<Arc<str>>,
}

impl Progress {
    /// Of a part with so many keys, each of which has a caller of its own.
    pub(super) fn of_single_keys(count: usize) -> Self {
        let mut progress = Self::default();
        progress
            .uncertain_at
            .resize_with(count, AtomicBool::default);
        progress
    }

    /// Keys are on their way, and have not been before.
    pub(super) fn sent_first(&self, positions: &[u32]) {
        self.uncertain.fetch_add(positions.len(), Relaxed);
        self.mark(positions, true);
    }

    /// Keys that have been [sent](Self::sent_first) were not applied.
    pub(super) fn not_applied(&self, positions: &[u32]) {
        self.uncertain.fetch_sub(positions.len(), Relaxed);
        self.mark(positions, false);
    }

    fn mark(&self, positions: &[u32], uncertain: bool) {
        if !self.uncertain_at.is_empty() {
            for position in positions {
                self.uncertain_at[*position as usize].store(uncertain, Relaxed);
            }
        }
    }

    /// So many keys that have been [sent](Self::sent_first) have their answers.
    pub(super) fn answered(&self, keys: usize) {
        self.uncertain.fetch_sub(keys, Relaxed);
        self.answered.fetch_add(keys, Relaxed);
    }

    /// A part of `keys` keys that ends like this.
    pub(super) fn failure(&self, keys: usize, reason: NotApplied) -> Failure {
        Failure {
            reason,
            keys,
            answered: self.answered.load(Relaxed),
            uncertain: self.uncertain.load(Relaxed),
        }
    }

    /// A key that gets no answer, in a part of [single keys](Self::of_single_keys).
    pub(crate) fn failure_of_key(&self, position: u32, reason: NotApplied) -> Failure {
        let uncertain = self.uncertain_at[position as usize].load(Relaxed);
        Failure {
            reason,
            keys: 1,
            answered: 0,
            uncertain: uncertain.into(),
        }
    }

    /// A request to `node` is on its way.
    pub(super) fn request_begins(&self, node: &Node) {
        self.talk(|talk| {
            let entry = talk.sent.entry(node.id());
            entry.or_insert_with(|| (0, node.to_string())).0 += 1;
        });
    }

    /// A request to `node` has been answered, or has failed.
    pub(super) fn request_ends(&self, node: &Node) {
        self.talk(|talk| {
            if let Some((count, _)) = talk.sent.get_mut(&node.id()) {
                *count -= 1;
                if *count == 0 {
                    talk.sent.remove(&node.id());
                }
            }
        });
    }

    pub(super) fn error(&self, message: &Arc<str>) {
        self.talk(|talk| talk.last_error = Some(Arc::clone(message)));
    }

    fn talk<T>(&self, with: impl FnOnce(&mut Talk) -> T) -> T {
        with(&mut self.talk.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What a call whose time is up was waiting for.
    pub(super) fn waiting_for(&self) -> String {
        self.talk(|talk| {
            let mut text = match talk.sent.values().next() {
                Some(_) => {
                    let nodes: Vec<&str> =
                        talk.sent.values().map(|(_, node)| node.as_str()).collect();
                    format!("no answer from {}", nodes.join(", "))
                }
                None => "it was waiting to send a request".to_owned(),
            };
            if let Some(error) = &talk.last_error {
                text.push_str("; the last error: ");
                text.push_str(error);
            }
            text
        })
    }
}
