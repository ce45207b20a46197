//! Sessions in which this node is the owner: what it commits of tapped ranges, and copies of them.
//!
//! A copy is read from the range's key set after its tap was opened, and sent on when all that was applied by then is committed: what a
//! crash of this node would forget must not reach another one. Everything that must come behind committed records goes through the tap.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use keydb_core::{
    CopyId, Entry, FINGERPRINT_BYTES, Fingerprint, Incarnation, Lsn, NodeId, OperationAnswers,
    RangeId, RecordBody, decode_record, moving::Event,
};
use keydb_proto::shard::{
    BeginRange, CopyAnswer, CopyAnswers, CopyEnd, CopyEntries, CopyObjects, CopyRequest,
    ForwardedKeys, ForwardedRecord, NotTapped, OwnerMessage, StraightCopy, SuccessorMessage,
    Tapped as TappedMessage, owner_message::Message, successor_message,
};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::{info, warn};

use crate::{
    disk::journal::{Journal, TapNotes, Tapped},
    node::Node,
    ranges::owned::OwnedRange,
};

/// So many copies are made for one successor at the same time.
const COPIES_MAX: usize = 2;
/// So many keys are read under one lock, and so many are sent at once.
const SCAN_ENTRIES: usize = 4096;
const CHUNK_ENTRIES: usize = 16 * SCAN_ENTRIES;
/// So many operations' answers are sent at once.
const CHUNK_ANSWERS: usize = 1024;
/// How long the upload of ranges that move may take before they are sent straight.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(20);
/// How many messages wait to be sent.
const MESSAGES_MAX: usize = 8;
/// A successor that takes nothing for so long is given up; sooner where those who write wait for it.
const STALL_MAX: Duration = Duration::from_secs(10);
const STALL_MAX_OF_WRITERS: Duration = Duration::from_secs(1);
const WRITERS_WAIT_BYTES: usize = 16 << 20;

/// The sessions by their successors: one each.
#[derive(Debug, Default)]
pub(crate) struct OwnerSessions {
    open: Mutex<HashMap<NodeId, Arc<OwnerSession>>>,
    tasks: Mutex<JoinSet<()>>,
}

/// What has been tapped for one successor.
#[derive(Debug)]
pub(super) struct OwnerSession {
    peer: NodeId,
    peer_disk: Incarnation,
    notes: TapNotes,
    state: Mutex<SessionState>,
    ended: CancellationToken,
}

#[derive(Debug, Default)]
struct SessionState {
    copies: BTreeMap<RangeId, CopyId>,
    not_uploaded: Vec<RangeId>,
    /// What is to be sent where its note comes out of the tap.
    noted: HashMap<u64, Message>,
    next_note: u64,
}

/// A copy in the making.
type Work<'a> = BoxFuture<'a, Result<(), String>>;

/// The ranges that were tapped and whose copies are to be made.
#[derive(Debug, Default)]
struct Waiting {
    /// The successor pulls them from object storage, once they are all there.
    uploads: Vec<RangeId>,
    /// Their keys are sent. The next is the last.
    straight: Vec<(RangeId, Arc<OwnedRange>)>,
}

impl Waiting {
    fn straight(&mut self, node: &Node, id: RangeId) {
        if let Some(range) = node.moves.range(id) {
            self.straight.insert(0, (id, range));
        }
    }
}

/// Who takes the messages of a session.
type Messages = mpsc::Sender<Result<OwnerMessage, Status>>;

impl OwnerSessions {
    /// Serves `peer`, whose requests are `incoming`. An older session with it ends.
    pub(super) fn serve(
        &self,
        node: &Arc<Node>,
        (peer, peer_disk): (NodeId, Incarnation),
        incoming: Streaming<SuccessorMessage>,
    ) -> Option<mpsc::Receiver<Result<OwnerMessage, Status>>> {
        // Only who has a journal knows what is committed.
        let (tap, notes) = node.committed_records()?.tap();
        let session = Arc::new(OwnerSession {
            peer,
            peer_disk,
            notes,
            state: Mutex::default(),
            ended: CancellationToken::new(),
        });
        let older = lock(&self.open).insert(peer, Arc::clone(&session));
        if let Some(older) = older {
            older.ended.cancel();
        }
        let (messages, outgoing) = mpsc::channel(MESSAGES_MAX);
        let node = Arc::clone(node);
        let mut tasks = lock(&self.tasks);
        // Those that have ended are forgotten.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            info!(node = %node.config.id, successor = %session.peer, "a session that moves ranges begins");
            let why = run(&node, &session, tap, incoming, messages).await;
            session.ended.cancel();
            node.moves.sessions.forget(&session);
            let copies = std::mem::take(&mut session.state().copies);
            node.moves.on(
                copies
                    .into_iter()
                    .map(|(range, copy)| (range, Event::TapEnded(copy))),
            );
            info!(node = %node.config.id, successor = %session.peer, "a session that moves ranges has ended: {why}");
        });
        Some(outgoing)
    }

    fn forget(&self, session: &Arc<OwnerSession>) {
        let mut open = lock(&self.open);
        if open
            .get(&session.peer)
            .is_some_and(|it| Arc::ptr_eq(it, session))
        {
            open.remove(&session.peer);
        }
    }

    /// Sends *begin* for a range behind all that is committed, on the session that has brought this copy.
    pub(super) fn begin(&self, range: RangeId, lineage: u64, generation: u64, copy: CopyId) {
        let open = lock(&self.open);
        let has_it = |it: &&Arc<OwnerSession>| it.state().copies.get(&range) == Some(&copy);
        if let Some(session) = open.values().find(has_it) {
            session.send(Message::Begin(BeginRange {
                range_id: range.0,
                lineage,
                generation,
                copy: copy.to_bytes().to_vec().into(),
            }));
        }
    }

    /// Ends all sessions, whatever they are at.
    pub(crate) fn abort(&self) {
        lock(&self.tasks).abort_all();
    }

    /// Ends the sessions with successors whose disk is not the one that `named` says. Returns what had been tapped for them.
    pub(super) fn end_others(
        &self,
        named: impl Fn(NodeId) -> Option<Incarnation>,
    ) -> Vec<(RangeId, CopyId)> {
        let open = lock(&self.open);
        let others = open
            .values()
            .filter(|it| named(it.peer) != Some(it.peer_disk));
        let mut copies = Vec::new();
        for session in others {
            session.ended.cancel();
            copies.extend(std::mem::take(&mut session.state().copies));
        }
        copies
    }
}

impl OwnerSession {
    /// Sends a message behind all that is committed.
    fn send(&self, message: Message) {
        let mut state = self.state();
        let note = state.next_note;
        state.next_note += 1;
        state.noted.insert(note, message);
        self.notes.put(note);
    }

    fn state(&self) -> MutexGuard<'_, SessionState> {
        lock(&self.state)
    }
}

/// Runs a session until it ends. Returns why it did.
async fn run(
    node: &Arc<Node>,
    session: &Arc<OwnerSession>,
    mut tap: crate::disk::journal::Tap,
    mut incoming: Streaming<SuccessorMessage>,
    messages: Messages,
) -> String {
    let Some(journal) = node.committed_records() else {
        return "the node has no journal".to_owned();
    };
    // Requests that have begun before may not be recorded where there is a tap only while ranges move.
    node.grace.passed().await;
    let disk_id = journal.disk_id();
    let mut waiting = Waiting::default();
    let mut copying: FuturesUnordered<Work<'_>> = FuturesUnordered::new();
    let mut uploading: FuturesUnordered<Work<'_>> = FuturesUnordered::new();
    loop {
        while copying.len() < COPIES_MAX
            && let Some((id, range)) = waiting.straight.pop()
        {
            let messages = messages.clone();
            copying.push(Box::pin(async move {
                copy(node, journal, id, &range, &messages).await
            }));
        }
        if uploading.is_empty() && !waiting.uploads.is_empty() {
            let ranges = std::mem::take(&mut waiting.uploads);
            let (session, messages) = (Arc::clone(session), messages.clone());
            uploading.push(Box::pin(async move {
                upload(node, journal, &session, ranges, &messages).await
            }));
        }
        let sent = tokio::select! {
            () = session.ended.cancelled() => Err("a newer one has begun, or the node ends".to_owned()),
            tapped = tap.next() => match tapped {
                None => Err("the journal is closed".to_owned()),
                Some(Tapped::Record(record)) => match forwarded(session, &record, disk_id) {
                    Ok(None) => Ok(()),
                    Ok(Some(message)) => send(journal, &messages, Message::Record(message)).await,
                    Err(reason) => Err(reason),
                },
                Some(Tapped::Note(note)) => {
                    let message = session.state().noted.remove(&note);
                    match message {
                        Some(message) => send(journal, &messages, message).await,
                        None => Ok(()),
                    }
                }
            },
            request = incoming.message() => match request {
                Ok(Some(SuccessorMessage { message: Some(message) })) => {
                    take_in(node, session, message, &mut waiting);
                    Ok(())
                }
                Ok(Some(_)) => Ok(()),
                Ok(None) => Err("the successor has ended it".to_owned()),
                Err(status) => Err(status.message().to_owned()),
            },
            Some(copied) = copying.next() => copied,
            Some(uploaded) = uploading.next() => uploaded,
        };
        // Of what could not be uploaded the keys are sent.
        for id in std::mem::take(&mut session.state().not_uploaded) {
            waiting.straight(node, id);
        }
        if let Err(why) = sent {
            return why;
        }
    }
}

/// Takes in what the successor asks for.
fn take_in(
    node: &Node,
    session: &OwnerSession,
    message: successor_message::Message,
    waiting: &mut Waiting,
) {
    match message {
        successor_message::Message::Copy(CopyRequest {
            range_id,
            lineage,
            generation,
        }) => {
            let id = RangeId(range_id);
            match node.moves.tap(session.peer, id, lineage, generation) {
                Some((copy, range)) => {
                    session.state().copies.insert(id, copy);
                    session.send(Message::Tapped(TappedMessage {
                        range_id,
                        copy: copy.to_bytes().to_vec().into(),
                    }));
                    // Without snapshots there is nothing to be pulled.
                    if node.disk().is_some() {
                        waiting.uploads.push(id);
                    } else {
                        waiting.straight.insert(0, (id, range));
                    }
                }
                None => session.send(Message::NotTapped(NotTapped { range_id })),
            }
        }
        successor_message::Message::Straight(StraightCopy { range_id }) => {
            waiting.straight(node, RangeId(range_id));
        }
        successor_message::Message::Ping(ping) => session.send(Message::Pong(ping)),
        successor_message::Message::Published(version) => {
            if let Some(map) = node.membership.state().map() {
                node.hear_of_map(map, (version.lineage, version.epoch));
            }
        }
        successor_message::Message::Hello(_) => {}
    }
}

async fn send(journal: &Journal, messages: &Messages, message: Message) -> Result<(), String> {
    let stall_max = if journal.tapped_bytes() > WRITERS_WAIT_BYTES {
        STALL_MAX_OF_WRITERS
    } else {
        STALL_MAX
    };
    let message = OwnerMessage {
        message: Some(message),
    };
    match timeout(stall_max, messages.send(Ok(message))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err("the successor has gone away".to_owned()),
        Err(_) => Err(format!(
            "the successor has taken nothing for {} ms",
            stall_max.as_millis()
        )),
    }
}

/// What of a committed record is for this session's successor, if any of it is.
fn forwarded(
    session: &OwnerSession,
    record: &[u8],
    disk_id: Incarnation,
) -> Result<Option<ForwardedRecord>, String> {
    let (record, _) = decode_record(record, disk_id)
        .map_err(|error| format!("a committed record cannot be read: {error}"))?;
    let RecordBody::Write(write) = record.body else {
        return Ok(None);
    };
    let state = session.state();
    let is_tapped = |range: RangeId| state.copies.contains_key(&range);
    let mut groups = Vec::new();
    let mut fingerprints = Vec::new();
    let mut start = 0;
    for group in write.groups.iter() {
        let end = start + group.count as usize;
        if is_tapped(group.range) {
            groups.push(ForwardedKeys {
                range_id: group.range.0,
                key_count: group.count,
            });
            fingerprints.extend_from_slice(write.fingerprints.slice(start, end).as_bytes());
        }
        start = end;
    }
    let answers = match write.operation {
        Some(operation) => OperationAnswers::decode(write.answers)
            .ok_or_else(|| format!("the answers of operation {operation} cannot be read"))?
            .only(is_tapped),
        None => OperationAnswers::default(),
    };
    if groups.is_empty() && answers.is_empty() {
        return Ok(None);
    }
    let operation = write.operation.filter(|_| !answers.is_empty());
    Ok(Some(ForwardedRecord {
        written_unix_ms: record.written.0,
        expiry_seconds: write.expiry.as_unix_seconds(),
        operation_id: operation
            .map(|id| id.to_bytes().to_vec())
            .unwrap_or_default()
            .into(),
        answers: answers.as_bytes().to_vec().into(),
        groups,
        fingerprints: fingerprints.into(),
    }))
}

/// Sees to it that object storage has all of these ranges that was there when they were tapped, and says so.
async fn upload(
    node: &Node,
    journal: &Journal,
    session: &OwnerSession,
    ranges: Vec<RangeId>,
    messages: &Messages,
) -> Result<(), String> {
    let deadline = tokio::time::Instant::now() + UPLOAD_TIMEOUT;
    let made = match node.disk().and_then(|disk| disk.snapshots()) {
        Some(snapshots) => snapshots.request(false, deadline).await.map(drop),
        None => Err("snapshots cannot be made yet".to_owned()),
    };
    match made {
        Ok(()) => {
            for range in ranges {
                copy_answers(node, journal, range, messages).await?;
                let objects = Message::Objects(CopyObjects { range_id: range.0 });
                send(journal, messages, objects).await?;
            }
        }
        Err(reason) => {
            warn!(node = %node.config.id, ranges = ranges.len(), "ranges that move are sent straight, as they are not in object storage: {reason}");
            session.state().not_uploaded.extend(ranges);
        }
    }
    Ok(())
}

/// Sends all keys of a range, and what recent claims were told of them.
async fn copy(
    node: &Node,
    journal: &Journal,
    id: RangeId,
    range: &OwnedRange,
    messages: &Messages,
) -> Result<(), String> {
    let started = Instant::now();
    let mut next = Some(Fingerprint::from_parts(range.bounds.start(), 0));
    let mut chunk: Vec<Entry> = Vec::with_capacity(CHUNK_ENTRIES);
    let mut keys = 0;
    while let Some(from) = next {
        let begun = Instant::now();
        let before = chunk.len();
        next = range.read().scan(from, SCAN_ENTRIES, &mut chunk);
        keys += chunk.len() - before;
        let bytes = ((chunk.len() - before) * (FINGERPRINT_BYTES + 4)) as u64;
        if chunk.len() + SCAN_ENTRIES > CHUNK_ENTRIES || next.is_none() {
            committed(journal, journal.taken()).await?;
            let entries = encode(&chunk);
            chunk.clear();
            let message = Message::Entries(CopyEntries {
                range_id: id.0,
                entries: entries.into(),
            });
            send(journal, messages, message).await?;
        }
        node.moves.budget.spend(begun.elapsed(), bytes).await;
    }
    copy_answers(node, journal, id, messages).await?;
    send(
        journal,
        messages,
        Message::CopyEnd(CopyEnd { range_id: id.0 }),
    )
    .await?;
    info!(node = %node.config.id, range = %id, keys, ms = started.elapsed().as_millis() as u64, "a range was copied");
    Ok(())
}

/// Sends what recent claims were told of a range's keys.
async fn copy_answers(
    node: &Node,
    journal: &Journal,
    id: RangeId,
    messages: &Messages,
) -> Result<(), String> {
    let (answers, newest) = node.answers.of_ranges(&|range| range == id);
    committed(journal, newest).await?;
    for answers in answers.chunks(CHUNK_ANSWERS) {
        let answers = answers.iter().map(|entry| CopyAnswer {
            operation_id: entry.operation.to_bytes().to_vec().into(),
            recorded_unix_ms: entry.recorded.0,
            answers: entry.answers.as_bytes().to_vec().into(),
        });
        let message = Message::Answers(CopyAnswers {
            range_id: id.0,
            answers: answers.collect(),
        });
        send(journal, messages, message).await?;
    }
    Ok(())
}

async fn committed(journal: &Journal, lsn: Lsn) -> Result<(), String> {
    let waited = journal.wait_committed(lsn).await;
    waited.map_err(|error| {
        warn!("a copy ends: {error}");
        error.to_string()
    })
}

fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * (FINGERPRINT_BYTES + 4));
    for entry in entries {
        bytes.extend_from_slice(&entry.fingerprint().to_bytes());
        bytes.extend_from_slice(&entry.expiry().as_unix_seconds().to_le_bytes());
    }
    bytes
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
