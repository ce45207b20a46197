//! Sessions in which this node is the successor: it asks for copies, and applies what comes.
//!
//! What comes as records goes through this node's own journal, under its own LSNs, and so into its snapshots. What comes as a copy is in
//! the key set only, until a full snapshot of the range is made of that: then the copy is secured.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use keydb_core::{
    AnswerEntry, CopyId, Expiry, FINGERPRINT_BYTES, Lsn, NodeId, OperationAnswers,
    PackedFingerprints, RangeId, RecordGroup, UnixMillis, Write, moving::Event, record_bytes_max,
};
use keydb_proto::shard::{
    BeginRange, CopyName, CopyRequest, ForwardedRecord, MapVersion, OwnerMessage, Ping,
    StraightCopy, SuccessorHello, SuccessorMessage, move_service_client::MoveServiceClient,
    owner_message::Message, successor_message,
};
use tokio::{
    sync::{Notify, mpsc},
    task::{JoinError, JoinSet},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tracing::{info, warn};

use super::{
    bulk::{Bulk, BulkQueue, Copies, Done, Incoming, no_room_for_all, operation_id, room},
    objects,
};
use crate::{
    disk::failpoint,
    disk::journal::{Journal, Reservation, Space},
    lock::lock,
    node::Node,
    requests,
};

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long is waited before a session that has ended is begun again.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// So many ranges are asked for at once; the next when one of them is secured.
const RANGES_MAX: usize = 8;
/// How often it is looked what is to be asked for, and how far behind the owner the node is.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// An owner of which nothing comes for so long is given up: there is always the answer to a ping.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// A ping that is not answered for so long is sent again.
const PING_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// A node that is not further behind than this may publish.
const LAG_MAX: Duration = Duration::from_millis(100);
/// A range that the owner did not tap is asked for again after this.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(300);
/// How long a full snapshot and its upload may take.
const SECURE_TIMEOUT: Duration = Duration::from_secs(120);
/// What fails is tried again after this, from its beginning on.
const SECURE_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// What one message of an owner has at most.
const MESSAGE_BYTES_MAX: usize = 32 << 20;

/// The sessions by their owners.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    tasks: JoinSet<NodeId>,
    open: HashMap<NodeId, Arc<Link>>,
}

/// What others are to know of a session.
#[derive(Debug, Default)]
pub(super) struct Link {
    state: Mutex<LinkState>,
    /// There is a map that the owner is to hear of.
    has_published: Notify,
}

#[derive(Debug, Default)]
struct LinkState {
    /// When the node was as far as the owner, and how long that had taken.
    caught_up: Option<(Instant, Duration)>,
    /// A map that the owner is to hear of.
    published: Option<(u64, u64)>,
}

impl Link {
    /// Whether little is on its way.
    fn is_close(&self) -> bool {
        lock(&self.state)
            .caught_up
            .is_some_and(|(at, lag)| lag <= LAG_MAX && at.elapsed() <= 3 * LOOK_INTERVAL)
    }

    fn change<T>(&self, change: impl FnOnce(&mut LinkState) -> T) -> T {
        change(&mut lock(&self.state))
    }
}

impl Sessions {
    /// Sees to it that there is a session with each of `owners`.
    pub(super) fn keep(&mut self, node: &Arc<Node>, owners: &BTreeSet<NodeId>) {
        while let Some(ended) = self.tasks.try_join_next() {
            if let Ok(owner) = ended {
                self.open.remove(&owner);
            }
        }
        for owner in owners {
            if self.open.contains_key(owner) {
                continue;
            }
            let link = Arc::new(Link::default());
            self.open.insert(*owner, Arc::clone(&link));
            let (node, owner) = (Arc::clone(node), *owner);
            self.tasks.spawn(async move {
                let why = match run(&node, owner, &link).await {
                    Ok(()) => "there is nothing to be moved any more".to_owned(),
                    Err(why) => {
                        sleep(AGAIN_AFTER).await;
                        why
                    }
                };
                info!(node = %node.config.id, %owner, "a session that brings ranges has ended: {why}");
                owner
            });
        }
    }

    /// Whether this node is nearly as far as `owner`.
    pub(super) fn is_close(&self, owner: NodeId) -> bool {
        self.open.get(&owner).is_some_and(|link| link.is_close())
    }

    /// Has all owners hear of a map of this version.
    pub(super) fn published(&self, version: (u64, u64)) {
        for link in self.open.values() {
            link.change(|state| state.published = Some(version));
            link.has_published.notify_one();
        }
    }
}

/// What has become of a copy's next step.
type Ended = (Incoming, Result<(), String>);

struct Session<'a> {
    node: &'a Arc<Node>,
    /// None in `memory` mode.
    journal: Option<&'a Journal>,
    owner: NodeId,
    link: &'a Link,
    requests: mpsc::Sender<SuccessorMessage>,
    copies: Arc<Copies>,
    bulk: BulkQueue,
    /// The ranges that were asked for and not tapped yet; when again, where the owner has said no.
    asked: HashMap<RangeId, Option<Instant>>,
    /// The copies that are pulled from object storage, and those that are got onto the disk.
    pulling: JoinSet<Ended>,
    securing: JoinSet<Ended>,
    /// The last record that was applied.
    applied: Lsn,
    /// The last ping, and when it was sent.
    pings: (u64, Instant),
    is_answered: bool,
    last_heard: Instant,
}

/// Runs a session until nothing is to be moved, or something fails.
async fn run(node: &Arc<Node>, owner: NodeId, link: &Link) -> Result<(), String> {
    let membership_state = node.membership.state();
    let map = membership_state.map().ok_or("there is no map")?;
    let address = map
        .node(owner)
        .map(|entry| entry.address.clone())
        .ok_or("the owner is not a member any more")?;
    let disk_id = map.node(node.config.id).and_then(|entry| entry.disk_id);
    let hello = SuccessorHello {
        cluster_id: map.cluster_id.to_bytes().to_vec().into(),
        node_id: node.config.id.0,
        disk_id: disk_id
            .map(|id| id.to_bytes().to_vec())
            .unwrap_or_default()
            .into(),
        target_node: owner.0,
    };
    drop(membership_state);
    let journal = node.journal();
    if journal.is_none() && node.recorder().is_none() {
        return Err("the journal is not open yet".to_owned());
    }
    let outgoing = &node.config.outgoing;
    let endpoint = outgoing
        .endpoint(&address)
        .map_err(|error| error.to_string())?
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20);
    let channel = timeout(CONNECT_TIMEOUT, outgoing.connect(&endpoint))
        .await
        .map_err(|_| format!("{address} does not answer"))?
        .map_err(|error| format!("{address}: {error}"))?;
    let (requests, outgoing) = mpsc::channel(64);
    let message = successor_message::Message::Hello(hello);
    let _ = requests.try_send(SuccessorMessage {
        message: Some(message),
    });
    let mut client = MoveServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let opened = client.session(ReceiverStream::new(outgoing));
    let mut messages = timeout(CONNECT_TIMEOUT, opened)
        .await
        .map_err(|_| format!("{address} does not answer"))?
        .map_err(|status| status.message().to_owned())?
        .into_inner();
    let copies = Arc::new(Copies::default());
    let mut session = Session {
        node,
        journal,
        owner,
        link,
        requests,
        bulk: BulkQueue::start(node, &copies)?,
        copies,
        asked: HashMap::new(),
        pulling: JoinSet::new(),
        securing: JoinSet::new(),
        applied: Lsn::ZERO,
        pings: (0, Instant::now()),
        is_answered: true,
        last_heard: Instant::now(),
    };
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    let ended = loop {
        let done = tokio::select! {
            message = messages.message() => match message {
                Ok(Some(OwnerMessage { message: Some(message) })) => session.take_in(message).await.map(|()| false),
                Ok(Some(_)) => Ok(false),
                Ok(None) => Err("the owner has ended it".to_owned()),
                Err(status) => Err(status.message().to_owned()),
            },
            done = session.bulk.done() => done.map(|done| session.bulk_is_in(done)).map(|()| false),
            Some(pulled) = session.pulling.join_next() => session.pulled(pulled).map(|()| false),
            Some(secured) = session.securing.join_next() => session.secured(secured).map(|()| false),
            () = link.has_published.notified() => session.look(),
            _ = look.tick() => session.look(),
        };
        match done {
            Ok(false) => {}
            Ok(true) => break Ok(()),
            Err(why) => break Err(why),
        }
    };
    // From here on the bulk finds nothing any more that it belongs to.
    let ended_copies = session.copies.with(std::mem::take).into_iter();
    node.moves
        .on(ended_copies.map(|(range, incoming)| (range, Event::CopyEnded(incoming.copy))));
    ended
}

impl Session<'_> {
    /// Asks for what is wanted, and how far the owner is. True when nothing is to be moved any more.
    fn look(&mut self) -> Result<bool, String> {
        if self.last_heard.elapsed() > SILENCE_MAX {
            return Err("nothing comes from the owner".to_owned());
        }
        let owner = self.owner;
        // What the machine has given up is not waited for.
        let arriving: HashMap<RangeId, CopyId> = self
            .node
            .moves
            .look(|id, machine| machine.arriving().map(|copy| (id, copy)))
            .into_iter()
            .collect();
        let (open_copies, unsecured) = self.copies.with(|copies| {
            copies.retain(|id, incoming| arriving.get(id) == Some(&incoming.copy));
            let unsecured = copies.values().filter(|it| !it.range.is_ready()).count();
            (copies.len(), unsecured)
        });
        let wanted: Vec<(RangeId, u64, u64)> = self.node.moves.look(|id, machine| {
            let assignment = machine.assignment();
            (machine.wants_copy_from() == Some(owner)).then_some((
                id,
                assignment.lineage,
                assignment.generation,
            ))
        });
        if wanted.is_empty() && open_copies == 0 {
            return Ok(true);
        }
        let open = self.asked.values().filter(|at| at.is_none()).count();
        let mut free = RANGES_MAX.saturating_sub(unsecured + open);
        let is_full = requests::is_over_memory_limit(self.node);
        self.node.warnings.set(
            "moves",
            is_full.then(|| {
                "ranges that are to come to this node wait: its memory limit is reached".to_owned()
            }),
        );
        for (range, lineage, generation) in wanted {
            let is_asked = self
                .asked
                .get(&range)
                .is_some_and(|again| again.is_none_or(|at| at > Instant::now()));
            if free == 0 || is_asked || is_full {
                continue;
            }
            free -= 1;
            self.asked.insert(range, None);
            self.send(successor_message::Message::Copy(CopyRequest {
                range_id: range.0,
                lineage,
                generation,
            }))?;
        }
        if let Some((lineage, epoch)) = self.link.change(|state| state.published.take()) {
            self.send(successor_message::Message::Published(MapVersion {
                lineage,
                epoch,
            }))?;
        }
        let (number, sent) = self.pings;
        if self.is_answered || sent.elapsed() > PING_AGAIN_AFTER {
            self.pings = (number + 1, Instant::now());
            self.is_answered = false;
            self.send(successor_message::Message::Ping(Ping {
                number: number + 1,
            }))?;
        }
        Ok(false)
    }

    fn send(&self, message: successor_message::Message) -> Result<(), String> {
        let message = SuccessorMessage {
            message: Some(message),
        };
        self.requests
            .try_send(message)
            .map_err(|_| "the owner takes nothing".to_owned())
    }

    async fn take_in(&mut self, message: Message) -> Result<(), String> {
        self.last_heard = Instant::now();
        match message {
            Message::Tapped(tapped) => {
                let range = RangeId(tapped.range_id);
                let copy = copy_id(&tapped.copy)?;
                self.asked.remove(&range);
                self.copies.with(|copies| copies.remove(&range));
                // What is remembered of an earlier copy is older than what this one brings.
                self.node.answers.forget_range(range);
                if let Some(owned) = self.node.moves.copy_begins(self.owner, range, copy) {
                    let incoming = Incoming { copy, range: owned };
                    self.copies.with(|copies| copies.insert(range, incoming));
                }
            }
            Message::NotTapped(not_tapped) => self.not_tapped(&not_tapped),
            Message::Record(record) => self.apply(&record).await?,
            Message::Entries(entries) => self.bulk.put(Bulk::Entries(entries)).await?,
            Message::Answers(answers) => self.bulk.put(Bulk::Answers(answers)).await?,
            Message::CopyEnd(name) => self.bulk_ends(&name, false).await?,
            Message::Objects(name) => self.bulk_ends(&name, true).await?,
            Message::Pong(pong) => {
                if pong.number == self.pings.0 {
                    self.is_answered = true;
                    let lag = self.pings.1.elapsed();
                    self.link
                        .change(|state| state.caught_up = Some((Instant::now(), lag)));
                    self.node.moves.wake();
                }
            }
            Message::Begin(begin) => self.begin(&begin).await?,
        }
        // Taking it in may have waited.
        self.last_heard = Instant::now();
        Ok(())
    }

    /// Applies a committed record of the owner, through the own journal.
    async fn apply(&mut self, record: &ForwardedRecord) -> Result<(), String> {
        let expiry =
            Expiry::from_unix_seconds(record.expiry_seconds).ok_or("a record has no expiry")?;
        let fingerprints =
            PackedFingerprints::new(&record.fingerprints).map_err(|error| error.to_string())?;
        let answers = OperationAnswers::decode(&record.answers)
            .ok_or("answers cannot be read")?
            .only(|range| self.copies.with(|copies| copies.contains_key(&range)));
        let mut groups = Vec::new();
        let mut kept = Vec::new();
        let mut start = 0;
        for group in &record.groups {
            let end = start + group.key_count as usize;
            if end > fingerprints.len() {
                return Err("a record has fewer keys than it says".to_owned());
            }
            let incoming = self
                .copies
                .with(|copies| copies.get(&RangeId(group.range_id)).cloned());
            if let Some(Incoming { range, .. }) = incoming {
                groups.push((range, start, end));
                kept.extend_from_slice(fingerprints.slice(start, end).as_bytes());
            }
            start = end;
        }
        if groups.is_empty() && answers.is_empty() {
            return Ok(());
        }
        failpoint::step("move.apply", &self.node.config.data_dir);
        let space = match self.journal {
            Some(journal) => {
                let keys = kept.len() / FINGERPRINT_BYTES;
                let bytes = record_bytes_max(groups.len(), keys, record.answers.len());
                Some(room(self.node, journal, bytes).await)
            }
            None => None,
        };
        // Nothing may be awaited until the record is appended.
        let reservation = space.as_ref().map(Space::begin);
        let lsn = reservation.as_ref().map_or(Lsn::ZERO, Reservation::lsn);
        let times = self.node.clock.times();
        let mut record_groups = Vec::new();
        for (range, start, end) in groups {
            let keys = fingerprints.slice(start, end);
            if let Err(error) = range.write().put(keys, expiry, times) {
                return Err(no_room_for_all(&range, error));
            }
            record_groups.push(RecordGroup {
                range: range.id,
                generation: range.generation,
                count: (end - start) as u32,
            });
        }
        let operation = operation_id(&record.operation_id)?;
        let written = UnixMillis(record.written_unix_ms);
        if let Some(operation) = operation.filter(|_| !answers.is_empty()) {
            self.node.answers.restore(AnswerEntry {
                operation,
                recorded: written,
                lsn,
                answers: answers.clone(),
            });
        }
        let write = Write {
            expiry,
            operation: operation.filter(|_| !answers.is_empty()),
            answers: answers.as_bytes(),
            groups: (&record_groups[..]).into(),
            fingerprints: PackedFingerprints::new(&kept).map_err(|error| error.to_string())?,
        };
        if let Some(reservation) = reservation {
            // Only *begin* waits for it.
            reservation.append_unhurried(&write, written);
            self.applied = lsn;
        }
        failpoint::step("move.applied", &self.node.config.data_dir);
        Ok(())
    }

    /// What comes of a copy as its bulk has been sent.
    async fn bulk_ends(&self, name: &CopyName, is_to_be_pulled: bool) -> Result<(), String> {
        let Some(incoming) = self.copies.find(name) else {
            return Ok(());
        };
        let done = Done {
            incoming,
            is_to_be_pulled,
        };
        self.bulk.put(Bulk::Done(done)).await
    }

    /// And it is here.
    fn bulk_is_in(&mut self, done: Done) {
        if !self.copies.has(&done.incoming) {
            return;
        }
        if done.is_to_be_pulled {
            self.pull(done.incoming);
        } else {
            self.secure(&done.incoming);
        }
    }

    /// All of a copy is in the key set: it is to get onto the disk.
    fn secure(&mut self, incoming: &Incoming) {
        incoming.range.end_loading();
        let (incoming, node) = (incoming.clone(), Arc::clone(self.node));
        let id = incoming.range.id;
        self.securing.spawn(async move {
            let deadline = Instant::now() + SECURE_TIMEOUT;
            let snapshots = node.disk().and_then(|disk| disk.snapshots());
            let begun = Instant::now();
            let secured = match snapshots {
                Some(snapshots) => snapshots.secure(&[id], deadline).await,
                // There is no disk that it could get onto.
                None if node.recorder().is_some() => Ok(()),
                None => Err("snapshots cannot be made yet".to_owned()),
            };
            if secured.is_err() {
                sleep_until(begun + SECURE_AGAIN_AFTER).await;
            }
            (incoming, secured)
        });
    }

    /// The owner does not tap a range, or a copy is void.
    fn not_tapped(&mut self, name: &CopyName) {
        let id = RangeId(name.range_id);
        if let Some(asked) = self.asked.get_mut(&id) {
            *asked = Some(Instant::now() + ASK_AGAIN_AFTER);
        }
        if let Some(void) = self.copies.find(name) {
            self.copies.with(|copies| copies.remove(&id));
            self.node.moves.on([(id, Event::CopyEnded(void.copy))]);
        }
    }

    /// Object storage has all of a range that does not come by records.
    fn pull(&mut self, incoming: Incoming) {
        let (node, owner) = (Arc::clone(self.node), self.owner);
        let range = Arc::clone(&incoming.range);
        self.pulling.spawn(async move {
            failpoint::step("move.pull", &node.config.data_dir);
            let pulled = match node.disk().and_then(|disk| disk.snapshots()) {
                Some(snapshots) => {
                    let store = snapshots.store().clone();
                    let load = objects::load(Arc::clone(&node), store, owner, range);
                    load.await.map(drop).map_err(|error| error.to_string())
                }
                None => Err("snapshots are not there yet".to_owned()),
            };
            (incoming, pulled)
        });
    }

    fn pulled(&mut self, pulled: Result<Ended, JoinError>) -> Result<(), String> {
        let (incoming, pulled) = pulled.map_err(|error| error.to_string())?;
        if !self.copies.has(&incoming) {
            return Ok(());
        }
        match pulled {
            Ok(()) => {
                failpoint::step("move.pulled", &self.node.config.data_dir);
                self.secure(&incoming);
                Ok(())
            }
            Err(reason) => {
                let id = incoming.range.id;
                warn!(node = %self.node.config.id, range = %id, owner = %self.owner, "a range that is to come from object storage is asked for straight: {reason}");
                let range_id = id.0;
                self.send(successor_message::Message::Straight(StraightCopy {
                    range_id,
                }))
            }
        }
    }

    fn secured(&mut self, secured: Result<Ended, JoinError>) -> Result<(), String> {
        let (incoming, secured) = secured.map_err(|error| error.to_string())?;
        let range = incoming.range.id;
        match secured {
            Ok(()) => {
                failpoint::step("move.secured", &self.node.config.data_dir);
                self.node.moves.on([(range, Event::Secured(incoming.copy))]);
            }
            Err(reason) => {
                // The others go on.
                warn!(node = %self.node.config.id, %range, "a range that comes to this node is not on its disk and in object storage yet: {reason}");
                if self.copies.has(&incoming) {
                    self.secure(&incoming);
                }
            }
        }
        Ok(())
    }

    /// All that came before is committed, and then the owner's word counts.
    async fn begin(&mut self, begin: &BeginRange) -> Result<(), String> {
        let copy = copy_id(&begin.copy)?;
        if let Some(journal) = self.journal {
            let committed = journal.wait_committed(self.applied).await;
            committed.map_err(|error| error.to_string())?;
        }
        let event = Event::Begin {
            lineage: begin.lineage,
            generation: begin.generation,
            copy,
        };
        self.node.moves.on([(RangeId(begin.range_id), event)]);
        // The keys are the node's own from now on: the end of this session changes nothing about them.
        Ok(())
    }
}

fn copy_id(bytes: &[u8]) -> Result<CopyId, String> {
    let bytes = bytes
        .try_into()
        .map_err(|_| "a copy's name has not 16 bytes")?;
    Ok(CopyId::from_bytes(bytes))
}
