//! What is known of a part whenever it ends.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    time::Duration,
};

use keydb_core::{NodeId, RangeId};
use tokio::time::Instant;

use crate::{call::outcome::Outcome, cluster::Node, error::ErrorKind};

/// How far a part is. It outlives the work on the part, which may be dropped at any time.
#[derive(Debug)]
pub(crate) struct PartProgress {
    /// Of each key, by position.
    states: Vec<AtomicU8>,
    talk: Mutex<Talk>,
}

/// It was not sent, or refused for certain.
const NOT_APPLIED: u8 = 0;
/// It was sent, and there is no answer.
const UNCERTAIN: u8 = 1;
const ANSWERED: u8 = 2;

#[derive(Debug, Default)]
struct Talk {
    /// Requests on their way, by node.
    sent: BTreeMap<NodeId, (usize, String)>,
    last_error: Option<(ErrorKind, Arc<str>)>,
    /// Ranges whose hand-over is waited for: since when, and what was said of them last.
    hand_overs: BTreeMap<RangeId, (Instant, Arc<str>)>,
    /// From when on no sending is valid any more.
    valid_until: Option<Instant>,
}

impl PartProgress {
    /// Of a part with so many keys.
    pub(super) fn new(count: usize) -> Self {
        let mut states = Vec::new();
        states.resize_with(count, || AtomicU8::new(NOT_APPLIED));
        Self {
            states,
            talk: Mutex::default(),
        }
    }

    /// Keys are on their way.
    pub(super) fn sent(&self, positions: &[u32]) {
        self.mark(positions, UNCERTAIN);
    }

    /// Keys that have been [sent](Self::sent) were not applied.
    pub(super) fn not_applied(&self, positions: &[u32]) {
        self.mark(positions, NOT_APPLIED);
    }

    /// Keys that have been [sent](Self::sent) have their answers.
    pub(super) fn answered(&self, positions: &[u32]) {
        self.mark(positions, ANSWERED);
    }

    fn mark(&self, positions: &[u32], state: u8) {
        for position in positions {
            self.states[*position as usize].store(state, Relaxed);
        }
    }

    /// What is known of a key, whose answer is `answer` if it has one.
    pub(crate) fn outcome<A>(&self, position: usize, answer: A) -> Outcome<A> {
        match self.states[position].load(Relaxed) {
            ANSWERED => Outcome::Answered(answer),
            UNCERTAIN => Outcome::MaybeApplied,
            _ => Outcome::NotApplied,
        }
    }

    /// A request to `node` is on its way, which takes it for valid until then.
    pub(super) fn request_begins(&self, node: &Node, valid_until: Instant) {
        self.talk(|talk| {
            talk.valid_until = talk.valid_until.max(Some(valid_until));
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

    /// Until when a node may still come by a request; `None`: there was none.
    pub(crate) fn valid_until(&self) -> Option<Instant> {
        self.talk(|talk| talk.valid_until)
    }

    pub(super) fn error(&self, kind: ErrorKind, message: &Arc<str>) {
        self.talk(|talk| talk.last_error = Some((kind, Arc::clone(message))));
    }

    /// A range is being handed over, as a node says.
    pub(super) fn waits(&self, range: RangeId, message: &Arc<str>) {
        self.talk(|talk| {
            let wait = talk.hand_overs.entry(range);
            wait.or_insert_with(|| (Instant::now(), Arc::clone(message)))
                .1 = Arc::clone(message);
        });
    }

    /// How long a range's hand-over was waited for, if it was.
    pub(super) fn waits_no_more(&self, range: RangeId) -> Option<Duration> {
        let wait = self.talk(|talk| talk.hand_overs.remove(&range));
        wait.map(|(since, _)| since.elapsed())
    }

    /// The same of all ranges that still wait.
    pub(super) fn still_waiting(&self) -> Vec<(RangeId, Duration)> {
        let waits = self.talk(|talk| std::mem::take(&mut talk.hand_overs));
        let waits = waits.into_iter();
        waits
            .map(|(range, (since, _))| (range, since.elapsed()))
            .collect()
    }

    fn talk<T>(&self, with: impl FnOnce(&mut Talk) -> T) -> T {
        with(&mut self.talk.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What a call whose time is up was waiting for, and what the last error was about.
    pub(super) fn waiting_for(&self) -> (ErrorKind, String) {
        self.talk(|talk| {
            let nodes: Vec<&str> = talk.sent.values().map(|(_, node)| node.as_str()).collect();
            let mut text = match nodes.is_empty() {
                true => "it was waiting to send a request".to_owned(),
                false => format!("no answer from {}", nodes.join(", ")),
            };
            let mut kind = ErrorKind::Deadline;
            if let Some((_, message)) = talk.hand_overs.values().next() {
                kind = ErrorKind::NotReady;
                text.push_str("; a hash range is being handed over: ");
                text.push_str(message);
            } else if let Some((last, error)) = &talk.last_error {
                kind = *last;
                text.push_str("; the last error: ");
                text.push_str(error);
            }
            (kind, text)
        })
    }
}
