//! Committed records on their way to other nodes.
//!
//! A tap gets every record that is committed after it was opened, in order, as it was encoded; whoever has opened it decodes what it
//! needs, outside the writer's thread. What is put into it with [`Tap::put`] comes behind all records that were committed before.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::lock::lock;

/// The taps of one journal.
#[derive(Debug, Default)]
pub(super) struct Taps {
    any: AtomicBool,
    open: Mutex<Vec<UnboundedSender<Tapped>>>,
    waiting_bytes: Arc<AtomicUsize>,
}

/// What comes out of a tap.
#[derive(Debug)]
pub(crate) enum Tapped {
    /// A committed record, encoded.
    Record(Bytes),
    /// What was put there: bytes that mean something to whoever has opened the tap.
    Note(u64),
}

/// A tap. It is closed when this is dropped.
#[derive(Debug)]
pub(crate) struct Tap {
    queue: UnboundedReceiver<Tapped>,
    waiting_bytes: Arc<AtomicUsize>,
}

/// Puts notes into a tap.
#[derive(Debug, Clone)]
pub(crate) struct TapNotes(UnboundedSender<Tapped>);

impl Taps {
    pub(super) fn are_open(&self) -> bool {
        self.any.load(Ordering::SeqCst)
    }

    pub(super) fn open(&self) -> (Tap, TapNotes) {
        let (sender, queue) = unbounded_channel();
        let mut open = lock(&self.open);
        open.push(sender.clone());
        self.any.store(true, Ordering::SeqCst);
        let tap = Tap {
            queue,
            waiting_bytes: Arc::clone(&self.waiting_bytes),
        };
        (tap, TapNotes(sender))
    }

    pub(super) fn push(&self, record: &Bytes) {
        let mut open = lock(&self.open);
        open.retain(|tap| {
            self.waiting_bytes
                .fetch_add(record.len(), Ordering::Relaxed);
            let is_open = tap.send(Tapped::Record(record.clone())).is_ok();
            if !is_open {
                self.waiting_bytes
                    .fetch_sub(record.len(), Ordering::Relaxed);
            }
            is_open
        });
        self.any.store(!open.is_empty(), Ordering::SeqCst);
    }

    /// How many bytes of records wait in all taps.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes.load(Ordering::Relaxed)
    }
}

impl Tap {
    /// What comes next.
    pub(crate) async fn next(&mut self) -> Option<Tapped> {
        let next = self.queue.recv().await;
        self.count(next.as_ref());
        next
    }

    fn count(&self, taken: Option<&Tapped>) {
        if let Some(Tapped::Record(record)) = taken {
            self.waiting_bytes
                .fetch_sub(record.len(), Ordering::Relaxed);
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.queue.close();
        while let Ok(left) = self.queue.try_recv() {
            self.count(Some(&left));
        }
    }
}

impl TapNotes {
    /// Puts a note behind everything that is committed by now. Nobody hears of it where the tap is closed.
    pub(crate) fn put(&self, note: u64) {
        let _ = self.0.send(Tapped::Note(note));
    }
}
