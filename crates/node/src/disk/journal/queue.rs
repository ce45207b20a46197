//! Records on their way to the disk, and those who wait for them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use keydb_core::{Lsn, Record, RecordBody, UnixMillis, Write, encode_record};
use tokio::sync::{Notify, oneshot};

use super::{JournalError, Shared, recent::Recent, tap::Taps};
use crate::lock::lock;

/// So long a record that nobody waits for may be kept from the disk, so that many go there together.
const LATE_MAX: Duration = Duration::from_millis(10);

/// What waits to be written, and what is.
#[derive(Debug)]
pub(super) struct Queue {
    /// The LSN that the next chunk takes.
    next: AtomicU64,
    appended: AtomicU64,
    committed: AtomicU64,
    file_bytes: AtomicU64,
    /// How often records were committed, many at once.
    commits: AtomicU64,
    order: Mutex<Order>,
    /// There are records that nobody waits for yet. Whoever begins to wait says so.
    may_be_late: AtomicBool,
    /// Told when there is something for the writer to do.
    work: Condvar,
    waiters: Mutex<BinaryHeap<Waiter>>,
    recent: Mutex<Recent>,
    taps: Taps,
    synced: bool,
    error: OnceLock<JournalError>,
    failed: Notify,
}

/// Puts records in order.
#[derive(Debug)]
struct Order {
    /// The LSN that is to be appended next.
    expected: Lsn,
    /// Records that came before their predecessors: at most one a thread.
    parked: BTreeMap<Lsn, Vec<u8>>,
    /// Records in order, for the writer.
    ready: Vec<Vec<u8>>,
    /// When the first of them came.
    ready_since: Option<Instant>,
    /// Somebody waits for one of them, or is about to.
    is_urgent: bool,
    cut: Option<Lsn>,
    closing: bool,
}

/// What the writer is to do next.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// Records to be written, in order.
    pub(super) records: Vec<Vec<u8>>,
    /// Segments up to here may go.
    pub(super) cut: Option<Lsn>,
    /// Nothing comes after this.
    pub(super) closing: bool,
    /// Nothing came for a while.
    pub(super) idle: bool,
}

#[derive(Debug)]
struct Waiter {
    lsn: Reverse<Lsn>,
    wake: oneshot::Sender<()>,
}

/// Room that was promised to one request. What is not used of it is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Space {
    shared: Arc<Shared>,
    left: Arc<AtomicU64>,
}

/// An LSN that was taken: what is applied under it goes into the journal with [`append`](Self::append).
#[derive(Debug)]
pub(crate) struct Reservation {
    shared: Arc<Shared>,
    left: Arc<AtomicU64>,
    lsn: Lsn,
    used: bool,
}

impl Queue {
    /// Behind the last of the records `recent`.
    pub(super) fn new(recent: Recent, synced: bool) -> Self {
        let last = recent.to();
        Self {
            next: AtomicU64::new(last.next().0),
            appended: AtomicU64::new(last.0),
            committed: AtomicU64::new(last.0),
            file_bytes: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            order: Mutex::new(Order {
                expected: last.next(),
                parked: BTreeMap::new(),
                ready: Vec::new(),
                ready_since: None,
                is_urgent: false,
                cut: None,
                closing: false,
            }),
            may_be_late: AtomicBool::new(false),
            work: Condvar::new(),
            waiters: Mutex::default(),
            recent: Mutex::new(recent),
            taps: Taps::default(),
            synced,
            error: OnceLock::new(),
            failed: Notify::new(),
        }
    }

    pub(super) fn taken(&self) -> Lsn {
        Lsn(self.next.load(Ordering::Acquire) - 1)
    }

    pub(super) fn appended(&self) -> Lsn {
        Lsn(self.appended.load(Ordering::Acquire))
    }

    pub(super) fn committed(&self) -> Lsn {
        Lsn(self.committed.load(Ordering::Acquire))
    }

    pub(super) fn file_bytes(&self) -> u64 {
        self.file_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    pub(super) fn set_file_bytes(&self, bytes: u64) {
        self.file_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn recent(&self) -> MutexGuard<'_, Recent> {
        lock(&self.recent)
    }

    /// Where committed records go as well.
    pub(super) const fn taps(&self) -> &Taps {
        &self.taps
    }

    pub(super) fn cut(&self, covered: Lsn) {
        let mut order = lock(&self.order);
        order.cut = order.cut.max(Some(covered));
        self.work.notify_one();
    }

    pub(super) fn close(&self) {
        lock(&self.order).closing = true;
        self.work.notify_one();
    }

    /// Puts a record behind its predecessor. One that is urgent is written at once.
    fn append(&self, lsn: Lsn, record: Vec<u8>, is_urgent: bool) {
        let mut order = lock(&self.order);
        order.is_urgent |= is_urgent;
        if lsn != order.expected {
            order.parked.insert(lsn, record);
            return;
        }
        let mut next = Some(record);
        while let Some(record) = next {
            order.expected = order.expected.next();
            order.ready.push(record);
            let expected = order.expected;
            next = order.parked.remove(&expected);
            // What it was taken for is not known any more.
            order.is_urgent |= next.is_some();
        }
        let appended = Lsn(order.expected.0 - 1);
        self.appended.store(appended.0, Ordering::Release);
        if self.synced {
            let is_first = order.ready_since.is_none();
            order.ready_since.get_or_insert_with(Instant::now);
            self.may_be_late.store(!order.is_urgent, Ordering::SeqCst);
            if order.is_urgent || is_first {
                self.work.notify_one();
            }
        } else {
            // Still under the lock, so that records are kept in order.
            self.commit(&mut order.ready, appended);
        }
    }

    /// The records are safe, up to `last`: they are kept for a while, and those who wait are woken.
    pub(super) fn commit(&self, records: &mut Vec<Vec<u8>>, last: Lsn) {
        let mut recent = lock(&self.recent);
        if self.taps.are_open() {
            for record in records.drain(..) {
                let record = Bytes::from(record);
                self.taps.push(&record);
                recent.push(record);
            }
        } else {
            records.drain(..).for_each(|record| recent.push(record));
        }
        self.committed.store(last.0, Ordering::Release);
        self.commits.fetch_add(1, Ordering::Relaxed);
        drop(recent);
        let mut waiters = lock(&self.waiters);
        while waiters.peek().is_some_and(|waiter| waiter.lsn.0 <= last) {
            if let Some(waiter) = waiters.pop() {
                // Whoever has gone away does not need to be woken.
                let _ = waiter.wake.send(());
            }
        }
    }

    /// Waits for work; for at most `patience`, where that is given.
    pub(super) fn next_work(&self, patience: Option<Duration>) -> Work {
        let mut order = lock(&self.order);
        loop {
            let late_for = order.ready_since.map(|since| since.elapsed());
            let is_due = late_for.is_some_and(|late| order.is_urgent || late >= LATE_MAX);
            // Records may still be parked behind one that is on its way.
            let is_end = order.closing && (order.parked.is_empty() || !order.ready.is_empty());
            if is_due || order.cut.is_some() || is_end {
                order.ready_since = None;
                order.is_urgent = false;
                self.may_be_late.store(false, Ordering::SeqCst);
                return Work {
                    records: std::mem::take(&mut order.ready),
                    cut: order.cut.take(),
                    closing: order.closing && order.parked.is_empty(),
                    idle: false,
                };
            }
            let patience = match late_for {
                Some(late) => Some(LATE_MAX - late),
                None => patience,
            };
            let Some(patience) = patience else {
                order = self
                    .work
                    .wait(order)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let (guard, waited) = self
                .work
                .wait_timeout(order, patience)
                .unwrap_or_else(PoisonError::into_inner);
            order = guard;
            if waited.timed_out() && order.ready_since.is_none() {
                return Work {
                    idle: true,
                    ..Work::default()
                };
            }
        }
    }

    /// Nothing is safe any more.
    pub(super) fn fail(&self, error: JournalError) {
        // The first error is the cause of the others.
        let _ = self.error.set(error);
        self.failed.notify_waiters();
        // Dropping them tells those who wait.
        lock(&self.waiters).clear();
    }

    pub(super) fn error(&self) -> Option<JournalError> {
        self.error.get().cloned()
    }

    pub(super) async fn failed(&self) -> JournalError {
        loop {
            let failed = self.failed.notified();
            if let Some(error) = self.error() {
                return error;
            }
            failed.await;
        }
    }

    pub(super) async fn wait_committed(&self, lsn: Lsn) -> Result<(), JournalError> {
        if lsn <= self.committed() {
            return Ok(());
        }
        let woken = {
            let mut waiters = lock(&self.waiters);
            if lsn <= self.committed() {
                return Ok(());
            }
            if let Some(error) = self.error() {
                return Err(error);
            }
            let (wake, woken) = oneshot::channel();
            waiters.push(Waiter {
                lsn: Reverse(lsn),
                wake,
            });
            woken
        };
        if self.may_be_late.load(Ordering::SeqCst) {
            lock(&self.order).is_urgent = true;
            self.work.notify_one();
        }
        match woken.await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.failed().await),
        }
    }
}

impl Space {
    pub(super) fn new(shared: Arc<Shared>, bytes: u64) -> Self {
        Self {
            shared,
            left: Arc::new(AtomicU64::new(bytes)),
        }
    }

    /// Takes the next LSN. Everything behind it waits until it is appended, so nothing may be awaited before that.
    pub(crate) fn begin(&self) -> Reservation {
        Reservation {
            lsn: Lsn(self.shared.queue.next.fetch_add(1, Ordering::AcqRel)),
            shared: Arc::clone(&self.shared),
            left: Arc::clone(&self.left),
            used: false,
        }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.shared
            .room
            .give_back(self.left.swap(0, Ordering::AcqRel));
    }
}

impl Reservation {
    pub(crate) const fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// Puts what was applied into the journal.
    pub(crate) fn append(mut self, write: &Write<'_>, now: UnixMillis) {
        self.used = true;
        // Of what stores nothing, nobody may be waiting.
        let is_urgent = write.groups.iter().next().is_some();
        self.put(RecordBody::Write(write.clone()), now, is_urgent);
    }

    /// The same where nobody is about to wait for it: it goes to the disk with others that are, or a little later.
    pub(crate) fn append_unhurried(mut self, write: &Write<'_>, now: UnixMillis) {
        self.used = true;
        self.put(RecordBody::Write(write.clone()), now, false);
    }

    fn put(&self, body: RecordBody<'_>, now: UnixMillis, is_urgent: bool) {
        let queue = &self.shared.queue;
        let record = Record {
            lsn: self.lsn,
            synced: queue.committed(),
            written: now,
            body,
        };
        let mut bytes = Vec::new();
        encode_record(&mut bytes, self.shared.config.identity.disk_id, &record);
        let size = bytes.len() as u64;
        if self.shared.config.synced {
            // An empty record may be more than was promised; it fits into what is never promised.
            let _ = self
                .left
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| {
                    Some(left.saturating_sub(size))
                });
        }
        queue.append(self.lsn, bytes, is_urgent);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // Others wait behind this LSN, whatever has become of what it was taken for.
        if !self.used {
            let now = self.shared.config.clock.now();
            self.put(RecordBody::Empty, now, false);
        }
    }
}

impl PartialEq for Waiter {
    fn eq(&self, other: &Self) -> bool {
        self.lsn == other.lsn
    }
}

impl Eq for Waiter {}

impl PartialOrd for Waiter {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiter {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.lsn.cmp(&other.lsn)
    }
}
