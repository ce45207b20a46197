//! The bulk of copies on its way into this node: keys, and what claims were told. It goes its own way, on a thread of its own and within
//! the budget of moves, while the records of the same session go on.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use keydb_core::{
    AnswerEntry, CopyId, Entry, Expiry, FINGERPRINT_BYTES, Fingerprint, InsertError, Lsn,
    OperationAnswers, OperationId, PackedFingerprints, RangeId, UnixMillis, Write,
    record_bytes_max,
};
use keydb_proto::shard::{CopyAnswers, CopyEntries, CopyName};
use tokio::{runtime::Handle, sync::mpsc, time::sleep};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::warn;

use super::objects::MERGE_ENTRIES;
use crate::{
    background,
    disk::journal::{Journal, Reservation, Space},
    lock::lock,
    node::Node,
    ranges::owned::OwnedRange,
};

/// So many messages wait; while they are so many, the session takes in nothing more.
const WAITING_MAX: usize = 32;
/// While more than these wait, nothing is put off: records and *begin* come by the same session.
const WAITING_FREELY: usize = 8;
/// After so many operations it is looked at what they have cost.
const ANSWERS_AT_ONCE: usize = 64;
/// How long is waited for room on a full disk.
const FULL_PAUSE: Duration = Duration::from_millis(500);

/// A copy that comes in.
#[derive(Debug, Clone)]
pub(super) struct Incoming {
    pub(super) copy: CopyId,
    pub(super) range: Arc<OwnedRange>,
}

/// The copies that come in by a session. What is no part of them any more is left out.
#[derive(Debug, Default)]
pub(super) struct Copies(Mutex<BTreeMap<RangeId, Incoming>>);

impl Copies {
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<RangeId, Incoming>) -> T) -> T {
        f(&mut lock(&self.0))
    }

    /// The copy of this name, if it still comes in.
    pub(super) fn find(&self, name: &CopyName) -> Option<Incoming> {
        let incoming = self.with(|all| all.get(&RangeId(name.range_id)).cloned());
        incoming.filter(|it| it.copy.to_bytes() == *name.copy)
    }

    /// Whether this copy still comes in.
    pub(super) fn has(&self, incoming: &Incoming) -> bool {
        self.with(|all| {
            all.get(&incoming.range.id)
                .is_some_and(|it| it.copy == incoming.copy)
        })
    }
}

/// One message of the bulk, in the order in which they came.
#[derive(Debug)]
pub(super) enum Bulk {
    Entries(CopyEntries),
    Answers(CopyAnswers),
    /// All that was sent before it is to be in, and on this disk as far as it goes there, before this comes out again.
    Done(Done),
}

/// What is next for a copy.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) incoming: Incoming,
    /// Its keys are still to be pulled from object storage.
    pub(super) is_to_be_pulled: bool,
}

/// Takes in the bulk that comes by one session.
#[derive(Debug)]
pub(super) struct BulkQueue {
    bulk: mpsc::Sender<Bulk>,
    done: mpsc::UnboundedReceiver<Result<Done, String>>,
    _is_over: DropGuard,
}

impl BulkQueue {
    /// # Errors
    /// When the system has no room for a thread.
    pub(super) fn start(node: &Arc<Node>, copies: &Arc<Copies>) -> Result<Self, String> {
        let (bulk, waiting) = mpsc::channel(WAITING_MAX);
        let (report, done) = mpsc::unbounded_channel();
        let is_over = CancellationToken::new();
        let (node, copies) = (Arc::clone(node), Arc::clone(copies));
        let (ended, runtime) = (is_over.clone(), Handle::current());
        let started = background::run("keydb-bulk", move || {
            let take_in = take_in(&node, &copies, waiting, &report);
            let taken_in = runtime.block_on(async {
                tokio::select! {
                    biased;
                    () = ended.cancelled() => Ok(()),
                    taken_in = take_in => taken_in,
                }
            });
            if let Err(reason) = taken_in {
                let _ = report.send(Err(reason));
            }
        });
        started.map_err(|error| format!("there is no thread for what comes: {error}"))?;
        Ok(Self {
            bulk,
            done,
            _is_over: is_over.drop_guard(),
        })
    }

    /// Waits while too much waits.
    pub(super) async fn put(&self, bulk: Bulk) -> Result<(), String> {
        let put = self.bulk.send(bulk).await;
        put.map_err(|_| "what comes is not taken in any more".to_owned())
    }

    pub(super) async fn done(&mut self) -> Result<Done, String> {
        let ended = || Err("what comes is not taken in any more".to_owned());
        self.done.recv().await.unwrap_or_else(ended)
    }
}

/// Runs until the session ends, on a thread of its own.
async fn take_in(
    node: &Node,
    copies: &Copies,
    mut waiting: mpsc::Receiver<Bulk>,
    report: &mpsc::UnboundedSender<Result<Done, String>>,
) -> Result<(), String> {
    let mut budget = node.moves.budget.on_this_thread();
    let mut written = Lsn::ZERO;
    while let Some(bulk) = waiting.recv().await {
        let mut pause = || {
            if waiting.len() > WAITING_FREELY {
                budget.charge(0);
            } else {
                budget.spend(0);
            }
        };
        match bulk {
            Bulk::Entries(entries) => merge(node, copies, &entries, &mut pause)?,
            Bulk::Answers(answers) => {
                let lsn = remember(node, copies, &answers, &mut pause).await?;
                written = written.max(lsn);
            }
            Bulk::Done(done) => {
                if let Some(journal) = node.journal() {
                    let committed = journal.wait_committed(written).await;
                    committed.map_err(|error| error.to_string())?;
                }
                let _ = report.send(Ok(done));
            }
        }
    }
    Ok(())
}

fn merge(
    node: &Node,
    copies: &Copies,
    chunk: &CopyEntries,
    pause: &mut impl FnMut(),
) -> Result<(), String> {
    let Some(incoming) = chunk.copy.as_ref().and_then(|name| copies.find(name)) else {
        return Ok(());
    };
    let range = &incoming.range;
    let (packed, rest) = chunk.entries.as_chunks::<{ FINGERPRINT_BYTES + 4 }>();
    if !rest.is_empty() {
        return Err("part of a copy has a broken entry".to_owned());
    }
    let mut entries = Vec::with_capacity(MERGE_ENTRIES);
    for packed in packed.chunks(MERGE_ENTRIES) {
        entries.clear();
        for bytes in packed {
            let (fingerprint, expiry) = bytes.split_at(FINGERPRINT_BYTES);
            let fingerprint = fingerprint.try_into().map_err(|_| "a broken entry")?;
            let fingerprint = Fingerprint::from_bytes(fingerprint);
            let seconds = expiry.try_into().map(u32::from_le_bytes).unwrap_or(0);
            let expiry = Expiry::from_unix_seconds(seconds).ok_or("an entry without expiry")?;
            if !range.bounds.contains(fingerprint.top()) {
                return Err(format!("{fingerprint:?} lies outside range {}", range.id));
            }
            entries.push(Entry::new(fingerprint, expiry));
        }
        let merged = range.write().merge(&entries, node.clock.times());
        merged.map_err(|error| no_room_for_all(range, error))?;
        // The owner has paid for their bytes.
        pause();
    }
    Ok(())
}

/// Takes over what recent claims were told of the copies' keys. It goes through the journal too: their repeats may come to this node.
/// Returns its last record's LSN.
async fn remember(
    node: &Node,
    copies: &Copies,
    batch: &CopyAnswers,
    pause: &mut impl FnMut(),
) -> Result<Lsn, String> {
    let some_expiry = Expiry::from_unix_seconds(u32::MAX).ok_or("no latest expiry")?;
    let names: BTreeMap<RangeId, &[u8]> = batch
        .copies
        .iter()
        .map(|name| (RangeId(name.range_id), &name.copy[..]))
        .collect();
    let mut written = Lsn::ZERO;
    for (index, answer) in batch.answers.iter().enumerate() {
        if index % ANSWERS_AT_ONCE == 0 {
            pause();
        }
        let operation = operation_id(&answer.operation_id)?.ok_or("answers of no operation")?;
        let decoded = OperationAnswers::decode(&answer.answers).ok_or("answers cannot be read")?;
        let is_void = |copies: &BTreeMap<RangeId, Incoming>, range: RangeId| {
            let copy = copies.get(&range).map(|it| it.copy.to_bytes());
            copy.is_none_or(|copy| names.get(&range) != Some(&&copy[..]))
        };
        let kept = |copies: &BTreeMap<RangeId, Incoming>, answers: &OperationAnswers| {
            if answers.has_any(|range| is_void(copies, range)) {
                answers.only(|range| !is_void(copies, range))
            } else {
                answers.clone()
            }
        };
        let answers = copies.with(|copies| kept(copies, &decoded));
        let space = match node.journal() {
            Some(journal) => {
                let bytes = record_bytes_max(0, 0, answer.answers.len());
                Some(room(node, journal, bytes).await)
            }
            None => None,
        };
        let reservation = space.as_ref().map(Space::begin);
        let lsn = reservation.as_ref().map_or(Lsn::ZERO, Reservation::lsn);
        let recorded = UnixMillis(answer.recorded_unix_ms);
        // Under the lock: what a newer copy begins with must not be mixed with this one's.
        let taken = copies.with(|copies| {
            let entry = AnswerEntry {
                operation,
                recorded,
                lsn,
                answers: kept(copies, &answers),
            };
            node.answers.restore_older(entry, lsn)
        });
        if let Some(reservation) = reservation.filter(|_| !taken.is_empty()) {
            let write = Write {
                expiry: some_expiry,
                operation: Some(operation),
                answers: taken.as_bytes(),
                groups: (&[][..]).into(),
                fingerprints: PackedFingerprints::new(&[]).map_err(|error| error.to_string())?,
            };
            reservation.append(&write, recorded);
            written = lsn;
        }
    }
    Ok(written)
}

/// Room for a record. Where there is none, nothing more is taken from the owner, which gives this node up after a while.
pub(super) async fn room(node: &Node, journal: &Journal, bytes: usize) -> Space {
    loop {
        match journal.admit(bytes).await {
            Ok(space) => return space,
            Err(full) => {
                warn!(node = %node.config.id, "ranges that come to this node wait: {full}");
                sleep(FULL_PAUSE).await;
            }
        }
    }
}

pub(super) fn no_room_for_all(range: &OwnedRange, error: InsertError) -> String {
    format!("range {} cannot take all of its keys: {error}", range.id)
}

/// The operation that these bytes name; none where there are none.
pub(super) fn operation_id(bytes: &[u8]) -> Result<Option<OperationId>, String> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let bytes = bytes
        .try_into()
        .map_err(|_| "an operation's id has not 16 bytes")?;
    Ok(Some(OperationId::from_bytes(bytes)))
}
