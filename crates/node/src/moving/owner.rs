//! Sessions in which this node is the owner: what it commits of tapped ranges, and copies of them.
//!
//! A copy is read from the range's key set after its tap was opened, and sent on when all that was applied by then is committed: what a
//! crash of this node would forget must not reach another one. Everything that must come behind committed records goes through the tap.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use keydb_core::{
    CopyId, Entry, FINGERPRINT_BYTES, Fingerprint, Incarnation, Lsn, NodeId, OperationAnswers,
    RangeId, RecordBody, decode_record, moving::Event,
};
use keydb_proto::shard::{
    BeginRange, CopyAnswer, CopyAnswers, CopyEntries, CopyName, CopyRequest, ForwardedKeys,
    ForwardedRecord, OwnerMessage, StraightCopy, SuccessorMessage, owner_message::Message,
    successor_message,
};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::{info, warn};

use crate::{
    background,
    disk::failpoint,
    disk::journal::{Journal, Tap, TapNotes, Tapped},
    lock::lock,
    node::Node,
    ranges::owned::OwnedRange,
};

/// So many copies are made for one successor at the same time.
const COPIES_MAX: usize = 2;
/// So many keys are read under one lock, and so many are sent at once.
const SCAN_ENTRIES: usize = 1024;
const CHUNK_ENTRIES: usize = 64 * SCAN_ENTRIES;
/// So many bytes of answers are sent at once, each operation's with so many more.
const CHUNK_ANSWER_BYTES: usize = 1 << 20;
const ANSWER_HEAD_BYTES: usize = 32;
/// How long the upload of ranges that move may take before they are sent straight.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(20);
/// How many messages wait to be sent.
const MESSAGES_MAX: usize = 8;
/// A successor that takes nothing for so long is given up; sooner where those who write wait for it.
const STALL_MAX: Duration = Duration::from_secs(10);
const STALL_MAX_OF_WRITERS: Duration = Duration::from_secs(1);
const STALL_LOOK_INTERVAL: Duration = Duration::from_millis(100);
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
    /// *Begin* of these waits in the tap.
    begins: BTreeSet<RangeId>,
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
    uploads: Vec<(RangeId, CopyId)>,
    /// Their keys are sent. The next is the last.
    straight: Vec<(RangeId, CopyId, Arc<OwnedRange>)>,
}

impl Waiting {
    /// A range was tapped, and the successor told.
    fn copy(&mut self, node: &Node, session: &OwnerSession, id: RangeId) {
        // Without snapshots there is nothing to be pulled.
        if node.disk().is_none() {
            self.straight(node, session, id);
        } else {
            let copy = session.state().copies.get(&id).copied();
            self.uploads.extend(copy.map(|copy| (id, copy)));
        }
    }

    fn straight(&mut self, node: &Node, session: &OwnerSession, id: RangeId) {
        let copy = session.state().copies.get(&id).copied();
        if let (Some(copy), Some(range)) = (copy, node.moves.range(id)) {
            self.straight.insert(0, (id, copy, range));
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
        let Some(session) = open.values().find(has_it) else {
            return;
        };
        let is_new = session.state().begins.insert(range);
        if is_new {
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
    mut tap: Tap,
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
            && let Some((id, copy, range)) = waiting.straight.pop()
        {
            let (session, messages) = (Arc::clone(session), messages.clone());
            copying.push(Box::pin(async move {
                let to = Destination {
                    node,
                    journal,
                    session: &session,
                    messages: &messages,
                    id,
                    copy,
                };
                to.send_all(&range).await
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
                    match message.filter(|message| may_go(node, session, message)) {
                        Some(message) => {
                            let tapped = match &message {
                                Message::Tapped(tapped) => Some(RangeId(tapped.range_id)),
                                _ => None,
                            };
                            let is_begin = matches!(message, Message::Begin(_));
                            let sent = send(journal, &messages, message).await;
                            if is_begin {
                                failpoint::step("move.begin_sent", &node.config.data_dir);
                            }
                            // Only now: nothing of a copy may come before the successor knows of it.
                            if let Some(id) = tapped {
                                waiting.copy(node, session, id);
                            }
                            sent
                        }
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
        let not_uploaded = std::mem::take(&mut session.state().not_uploaded);
        for id in not_uploaded {
            waiting.straight(node, session, id);
        }
        if let Err(why) = sent {
            return why;
        }
    }
}

/// Whether a message is still to be sent, now that it is its turn. *Begin* counts as sent from here on.
fn may_go(node: &Node, session: &OwnerSession, message: &Message) -> bool {
    let Message::Begin(begin) = message else {
        return true;
    };
    let id = RangeId(begin.range_id);
    session.state().begins.remove(&id);
    node.moves
        .begin_goes(id, begin.lineage, begin.generation, &begin.copy)
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
            failpoint::step("move.tap", &node.config.data_dir);
            match node.moves.tap(session.peer, id, lineage, generation) {
                Some(copy) => {
                    session.state().copies.insert(id, copy);
                    failpoint::step("move.tapped", &node.config.data_dir);
                    session.send(Message::Tapped(name(id, copy)));
                }
                None => session.send(Message::NotTapped(CopyName {
                    range_id,
                    copy: Bytes::new(),
                })),
            }
        }
        successor_message::Message::Straight(StraightCopy { range_id }) => {
            waiting.straight(node, session, RangeId(range_id));
        }
        successor_message::Message::Ping(ping) => {
            // No lock of the session's is held while one of the machines' is taken, nor the same one twice.
            let copies = session.state().copies.clone();
            for (id, copy) in node.moves.not_tapped(&copies) {
                session.state().copies.remove(&id);
                session.send(Message::NotTapped(name(id, copy)));
            }
            session.send(Message::Pong(ping));
        }
        successor_message::Message::Published(version) => {
            node.hear_of_version((version.lineage, version.epoch));
        }
        successor_message::Message::Hello(_) => {}
    }
}

async fn send(journal: &Journal, messages: &Messages, message: Message) -> Result<(), String> {
    let message = OwnerMessage {
        message: Some(message),
    };
    let begun = Instant::now();
    let room = loop {
        match timeout(STALL_LOOK_INTERVAL, messages.reserve()).await {
            Ok(Ok(room)) => break room,
            Ok(Err(_)) => return Err("the successor has gone away".to_owned()),
            Err(_) => {}
        }
        let holds_up_writers = journal.tapped_bytes() > WRITERS_WAIT_BYTES;
        let stall_max = if holds_up_writers {
            STALL_MAX_OF_WRITERS
        } else {
            STALL_MAX
        };
        if begun.elapsed() >= stall_max {
            return Err(format!(
                "the successor has taken nothing for {} ms",
                begun.elapsed().as_millis()
            ));
        }
    };
    room.send(Ok(message));
    Ok(())
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
    node: &Arc<Node>,
    journal: &Journal,
    session: &OwnerSession,
    ranges: Vec<(RangeId, CopyId)>,
    messages: &Messages,
) -> Result<(), String> {
    let deadline = tokio::time::Instant::now() + UPLOAD_TIMEOUT;
    failpoint::step("move.upload", &node.config.data_dir);
    let made = match node.disk().and_then(|disk| disk.snapshots()) {
        Some(snapshots) => snapshots.request_files(deadline).await,
        None => Err("snapshots cannot be made yet".to_owned()),
    };
    match made {
        Ok(()) => {
            failpoint::step("move.uploaded", &node.config.data_dir);
            send_answers(node, journal, &ranges, messages).await?;
            for (id, copy) in ranges {
                send(journal, messages, Message::Objects(name(id, copy))).await?;
            }
        }
        Err(reason) => {
            warn!(node = %node.config.id, ranges = ranges.len(), "ranges that move are sent straight, as they are not in object storage: {reason}");
            let ids = ranges.into_iter().map(|(id, _)| id);
            session.state().not_uploaded.extend(ids);
        }
    }
    Ok(())
}

/// Where a copy goes.
struct Destination<'a> {
    node: &'a Arc<Node>,
    journal: &'a Journal,
    session: &'a OwnerSession,
    messages: &'a Messages,
    id: RangeId,
    copy: CopyId,
}

impl Destination<'_> {
    /// Whether the copy is still the one that is wanted.
    fn is_wanted(&self) -> bool {
        self.session.state().copies.get(&self.id) == Some(&self.copy)
    }

    fn name(&self) -> CopyName {
        name(self.id, self.copy)
    }

    /// Sends all keys of a range, and what recent claims were told of them.
    async fn send_all(&self, range: &OwnedRange) -> Result<(), String> {
        failpoint::step("move.straight", &self.node.config.data_dir);
        let started = Instant::now();
        let mut next = Some(Fingerprint::from_parts(range.bounds.start(), 0));
        let mut chunk: Vec<Entry> = Vec::with_capacity(CHUNK_ENTRIES);
        let mut keys = 0;
        while let Some(from) = next {
            if !self.is_wanted() {
                return Ok(());
            }
            let begun = Instant::now();
            let before = chunk.len();
            next = range.read().scan(from, SCAN_ENTRIES, &mut chunk);
            let new = chunk.len() - before;
            keys += new;
            let work = begun.elapsed();
            if chunk.len() + SCAN_ENTRIES > CHUNK_ENTRIES || next.is_none() {
                committed(self.journal, self.journal.taken()).await?;
                let entries = encode(&chunk);
                chunk.clear();
                let message = Message::Entries(CopyEntries {
                    copy: Some(self.name()),
                    entries: entries.into(),
                });
                send(self.journal, self.messages, message).await?;
            }
            let bytes = (new * (FINGERPRINT_BYTES + 4)) as u64;
            self.node.moves.budget.spend(work, bytes).await;
        }
        let copies = [(self.id, self.copy)];
        send_answers(self.node, self.journal, &copies, self.messages).await?;
        send(self.journal, self.messages, Message::CopyEnd(self.name())).await?;
        failpoint::step("move.straight_sent", &self.node.config.data_dir);
        info!(node = %self.node.config.id, range = %self.id, keys, ms = started.elapsed().as_millis() as u64, "a range was copied");
        Ok(())
    }
}

/// Sends what recent claims were told of the keys of these ranges.
async fn send_answers(
    node: &Arc<Node>,
    journal: &Journal,
    copies: &[(RangeId, CopyId)],
    messages: &Messages,
) -> Result<(), String> {
    let ranges: BTreeSet<RangeId> = copies.iter().map(|(id, _)| *id).collect();
    let owner = Arc::clone(node);
    // It looks at all that is remembered.
    let read = background::run("keydb-answers", move || {
        let mut budget = owner.moves.budget.on_this_thread();
        let is_kept = |range| ranges.contains(&range);
        owner.answers.of_ranges(&is_kept, || budget.spend(0))
    });
    let read = read.map_err(|error| error.to_string())?.await;
    let (answers, newest) = read.map_err(|error| error.to_string())?;
    committed(journal, newest).await?;
    let names: Vec<CopyName> = copies.iter().map(|(id, copy)| name(*id, *copy)).collect();
    let mut answers = answers.into_iter().peekable();
    while answers.peek().is_some() {
        let mut chunk = Vec::new();
        let mut bytes = 0;
        while bytes < CHUNK_ANSWER_BYTES
            && let Some(entry) = answers.next()
        {
            bytes += entry.answers.as_bytes().len() + ANSWER_HEAD_BYTES;
            chunk.push(CopyAnswer {
                operation_id: entry.operation.to_bytes().to_vec().into(),
                recorded_unix_ms: entry.recorded.0,
                answers: entry.answers.as_bytes().to_vec().into(),
            });
        }
        let message = Message::Answers(CopyAnswers {
            copies: names.clone(),
            answers: chunk,
        });
        send(journal, messages, message).await?;
        node.moves.budget.spend(Duration::ZERO, bytes as u64).await;
    }
    Ok(())
}

fn name(range: RangeId, copy: CopyId) -> CopyName {
    CopyName {
        range_id: range.0,
        copy: copy.to_bytes().to_vec().into(),
    }
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
