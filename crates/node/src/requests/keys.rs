//! Requests for keys: checked as a whole, then worked on range by range.
//!
//! Before anything is applied, a request that writes may wait for memory, for room in the journal, and for the end of a claim that it
//! repeats; at its end, for its commit. In between large requests make room for others between steps. No lock is held then: each
//! range's lock is held for one step at most.

use std::{collections::HashSet, sync::Arc, time::Duration};

use keydb_core::{
    Bitmap, Expiry, Fingerprint, InsertError, KeySet, OperationId, PackedFingerprints, Times, Ttl,
    UnixMillis,
};
use keydb_proto::{
    refusal_status,
    shard::{
        ClaimReply, ClaimRequest, ErrorCode, GetReply, GetRequest, PutReply, PutRequest, RangeKeys,
        RangeRefusal, RefusalCode, RequestHeader,
    },
};
use tokio::sync::watch;
use tonic::Status;

use crate::{
    node::{MembershipState, Node},
    ranges::owned::{OwnedRange, OwnedRanges},
    requests::answers::{Begin, ClaimedKeys, Operation, Recall},
    requests::commit::Commit,
    requests::memory_limit,
    requests::plan::{self, Group, Plan},
    requests::put_with_expiries::put_each,
    requests::read_only_claim::{claim_known, recall},
};

/// So many keys are worked on before others get their turn.
pub(crate) const STEP_KEYS: usize = 4096;

/// A group's memory is fetched while the one before it is worked on. With groups of eight keys and tens of millions resident,
/// one group ahead was measured best; two to four ahead cost more than they gained.
const PREFETCH_GROUPS: usize = 1;

/// So many keys of a group are fetched ahead; more would push each other out of the first-level cache.
const PREFETCH_KEYS: usize = 32;

/// How often a request that waits for another one looks at the clock.
const WAIT_STEP: Duration = Duration::from_millis(50);

/// Which of the keys exist?
pub(crate) async fn get(node: &Node, request: &GetRequest) -> Result<GetReply, Status> {
    let _permit = node.in_flight.enter()?;
    let (membership_state, now) = admit(node, request.header.as_ref())?;
    let table = table(node, &membership_state)?;
    let plan = plan(node, table, &request.ranges, &request.fingerprints)?;
    let times = node.times_at(now);
    let mut commit = Commit::of_read(node.journal());
    let mut present = Bitmap::new(plan.fingerprints.len());
    let mut pace = Pace::default();
    for position in 0..plan.groups.len() {
        prefetch(table, &plan, position + PREFETCH_GROUPS);
        let group = plan.groups[position];
        let range = owned(table, group);
        for (start, end) in steps(group) {
            if pace.spend(end - start) {
                tokio::task::yield_now().await;
            }
            let keys = plan.fingerprints.slice(start, end);
            let set = range.read();
            set.get(keys, times, &mut present, start);
            commit.found(range, keys, &present, start);
        }
    }
    commit.committed().await?;
    Ok(GetReply {
        header: Some(node.reply_header(membership_state.map())),
        present: present.into_bytes().into(),
        refused: plan.refused,
    })
}

/// The keys exist until at least now + TTL.
pub(crate) async fn put(node: &Node, request: &PutRequest) -> Result<PutReply, Status> {
    let _permit = node.in_flight.enter()?;
    let (membership_state, now) = admit(node, request.header.as_ref())?;
    let table = table(node, &membership_state)?;
    if !request.expiries.is_empty() {
        return put_each(node, &membership_state, table, request, now).await;
    }
    let ttl = plan::ttl(request.ttl_seconds)?;
    let mut plan = plan(node, table, &request.ranges, &request.fingerprints)?;
    memory_limit::check(node, table, &plan, node.times_at(now)).await?;
    let mut commit = commit_of(node, &plan).await?;
    let now = still_in_time(node, request.header.as_ref())?;
    let mut moment = Moment::new(node, now, ttl)?;
    let mut pace = Pace::default();
    for position in 0..plan.groups.len() {
        prefetch(table, &plan, position + PREFETCH_GROUPS);
        let group = plan.groups[position];
        let range = owned(table, group);
        for (start, end) in steps(group) {
            if pace.spend(end - start) {
                commit.append(moment.expiry, None, &[], moment.now);
                tokio::task::yield_now().await;
                moment.renew(node, ttl);
            }
            let keys = plan.fingerprints.slice(start, end);
            commit.begin();
            let mut set = range.write();
            let stored = set.put(keys, moment.expiry, moment.times);
            commit.put(range, &set, keys, moment.times, &stored);
            drop(set);
            // The caller hears that any may have been stored.
            if let Err(error) = stored {
                plan.refused.push(full(range, error));
                break;
            }
        }
    }
    commit.append(moment.expiry, None, &[], moment.now);
    commit.committed().await?;
    Ok(PutReply {
        header: Some(node.reply_header(membership_state.map())),
        refused: plan.refused,
    })
}

/// Inserts the keys that are absent, and says which those were.
pub(crate) async fn claim(node: &Node, request: &ClaimRequest) -> Result<ClaimReply, Status> {
    let _permit = node.in_flight.enter()?;
    let id = plan::operation_id(&request.operation_id)?;
    plan::check_ranges_once(&request.ranges)?;
    loop {
        // After a wait, this may have become another one.
        let (membership_state, now) = admit(node, request.header.as_ref())?;
        let table = table(node, &membership_state)?;
        let ttl = plan::ttl(request.ttl_seconds)?;
        let plan = plan(node, table, &request.ranges, &request.fingerprints)?;
        if request.only_remembered {
            match node
                .answers
                .begin(id, now, Moment::new(node, now, ttl)?.expiry)
            {
                Begin::Registered(operation) => {
                    let recalled = recall(node, table, plan, operation).await?;
                    return Ok(recalled.reply(node, &membership_state));
                }
                Begin::InFlight(ended) => wait(ended).await,
            }
            continue;
        }
        memory_limit::check(node, table, &plan, node.times_at(now)).await?;
        let commit = commit_of(node, &plan).await;
        let now = still_in_time(node, request.header.as_ref())?;
        let moment = Moment::new(node, now, ttl)?;
        match node.answers.begin(id, now, moment.expiry) {
            Begin::Registered(operation) => {
                check_unused(&operation, table, &plan)?;
                let commit = match commit {
                    Ok(commit) => commit,
                    Err(full) => {
                        let known = claim_known(node, table, plan, operation, moment.times).await?;
                        return known
                            .map(|known| known.reply(node, &membership_state))
                            .ok_or(full);
                    }
                };
                let mut claiming = Claiming::new(id, operation, plan, commit, ttl, moment);
                claiming.run(node, table).await;
                return claiming.reply(node, &membership_state).await;
            }
            Begin::InFlight(ended) => {
                drop(commit);
                wait(ended).await;
            }
        }
    }
}

/// A first sending has an operation id that nobody has used: its answers would be those of somebody else, who was told them.
fn check_unused(
    operation: &Operation<'_>,
    table: &OwnedRanges,
    plan: &Plan<'_>,
) -> Result<(), Status> {
    if !operation.is_remembered() {
        return Ok(());
    }
    let is_used = |group: &Group| {
        let claimed = ClaimedKeys::new(owned(table, *group).id, plan.keys(*group));
        // What the key set refused half-way was not applied as far as its sender knows, who may send it again like this.
        group.attempt == 0 && matches!(operation.recall(claimed), Recall::Same(_) | Recall::Doubt)
    };
    if plan.groups.iter().any(is_used) {
        return Err(refusal_status(
            ErrorCode::OperationIdUsed,
            "the operation id was used before: to repeat that claim, say that it is a repeat; for another claim take another id. Nothing was applied",
        ));
    }
    Ok(())
}

/// Room in the journal for everything that the request may write.
async fn commit_of<'a>(node: &'a Node, plan: &Plan<'_>) -> Result<Commit<'a>, Status> {
    let keys: usize = plan
        .groups
        .iter()
        .map(|group| group.end - group.start)
        .sum();
    // A chunk ends where the next step would make it larger than a step may be; so any two of them have more keys than that.
    let chunks = 1 + 2 * keys / STEP_KEYS;
    Commit::of_write(node.journal(), keys, plan.groups.len(), chunks).await
}

async fn wait(mut ended: watch::Receiver<()>) {
    // Either way the caller looks again.
    let _ = tokio::time::timeout(WAIT_STEP, ended.changed()).await;
}

/// The time that a step goes by. It is taken after what was waited for, and anew after each turn of others: a key must not be stored
/// with an expiry that is over, nor one that is over be found present.
struct Moment {
    now: UnixMillis,
    times: Times,
    /// When the keys that the step stores expire.
    expiry: Expiry,
}

impl Moment {
    /// # Errors
    /// When keys cannot live as long as from `now` on for `ttl`.
    fn new(node: &Node, now: UnixMillis, ttl: Ttl) -> Result<Self, Status> {
        Ok(Self {
            now,
            times: node.times_at(now),
            expiry: Expiry::after(now, ttl)
                .map_err(|error| refusal_status(ErrorCode::InvalidRequest, error.to_string()))?,
        })
    }

    /// Goes by the time now.
    fn renew(&mut self, node: &Node, ttl: Ttl) {
        let now = node.clock.now();
        self.now = now;
        self.times = node.times_at(now);
        // Part of the request is applied, so this is no time to refuse it. It can only fail near the year 2106.
        self.expiry = Expiry::after(now, ttl).unwrap_or(self.expiry);
    }
}

/// One claim while it is being worked on.
struct Claiming<'a> {
    id: OperationId,
    operation: Operation<'a>,
    plan: Plan<'a>,
    commit: Commit<'a>,
    ttl: Ttl,
    moment: Moment,
    first: Bitmap,
    unknown: Option<Bitmap>,
    repeated_ranges: Vec<u32>,
    /// The groups that the key set refused half-way: this reply tells nothing of them. What the keys before the refused one would
    /// have been told is remembered for a repeat.
    partially_applied: Vec<Group>,
}

impl<'a> Claiming<'a> {
    fn new(
        id: OperationId,
        operation: Operation<'a>,
        plan: Plan<'a>,
        commit: Commit<'a>,
        ttl: Ttl,
        moment: Moment,
    ) -> Self {
        Self {
            id,
            operation,
            commit,
            ttl,
            moment,
            first: Bitmap::new(plan.fingerprints.len()),
            unknown: None,
            repeated_ranges: Vec::new(),
            partially_applied: Vec::new(),
            plan,
        }
    }

    async fn run(&mut self, node: &Node, table: &OwnedRanges) {
        let mut pace = Pace::default();
        for position in 0..self.plan.groups.len() {
            prefetch(table, &self.plan, position + PREFETCH_GROUPS);
            let group = self.plan.groups[position];
            self.group(node, owned(table, group), group, &mut pace)
                .await;
        }
        self.append();
    }

    async fn group(&mut self, node: &Node, range: &OwnedRange, group: Group, pace: &mut Pace) {
        let keys = self.plan.keys(group);
        let claimed = ClaimedKeys::new(range.id, keys);
        let mut known = 0;
        let mut known_until = None;
        let in_doubt = match self.operation.recall(claimed) {
            Recall::Same(answers) => {
                answers.answer(&mut self.first, &mut self.unknown, group.start);
                self.commit.wait_for(self.operation.remembered_lsn());
                self.repeated_ranges.push(range.id.0);
                return;
            }
            Recall::Prefix(answers) => {
                answers.answer(&mut self.first, &mut self.unknown, group.start);
                self.commit.wait_for(self.operation.remembered_lsn());
                known = answers.count();
                known_until = Some(answers.expiry());
                true
            }
            Recall::Doubt => true,
            Recall::Nothing => group.attempt > 0,
        };
        let new = Group {
            start: group.start + known,
            ..group
        };
        let mut applied = group.end;
        for (start, end) in steps(new) {
            if pace.spend(end - start) {
                self.append();
                tokio::task::yield_now().await;
                self.moment.renew(node, self.ttl);
                self.operation.expire_at(self.moment.expiry);
            }
            self.operation.apply(range.id);
            self.commit.begin();
            let keys = self.plan.fingerprints.slice(start, end);
            let mut set = range.write();
            let stored = set.claim(
                keys,
                self.moment.expiry,
                self.moment.times,
                &mut self.first,
                start,
            );
            self.commit.claimed(range, keys, &self.first, start);
            if let Err(error) = stored {
                applied = start + present_prefix(&set, keys, self.moment.times);
                drop(set);
                self.plan.refused.push(full(range, error));
                self.partially_applied.push(group);
                break;
            }
        }
        if applied == new.start {
            // The first new key was refused: what is remembered is still all that there is.
            self.operation.nothing_applied();
            return;
        }
        if in_doubt {
            self.doubt(group.start, new.start, applied);
        }
        if let Some(expiry) = known_until {
            self.operation.expire_by(expiry);
        }
        let answered = claimed.prefix(applied - group.start);
        self.operation
            .record(answered, &self.first, self.unknown.as_ref(), group.start);
    }

    /// Ends a chunk: its answers go into the memory of answers, and what was applied into the journal. In this order: a snapshot
    /// round cuts what the journal has when it begins, and by then its file of answers must find those of all these records.
    fn append(&mut self) {
        let part = self.operation.part();
        self.operation
            .remember(part.clone(), self.commit.answers_lsn());
        self.commit.append(
            self.moment.expiry,
            Some(self.id),
            part.as_bytes(),
            self.moment.now,
        );
    }

    /// Marks those of the keys `new..end` that were present before as unknown. A key that this claim stored, the keys from `start`
    /// on included, is not, wherever else it occurs.
    fn doubt(&mut self, start: usize, new: usize, end: usize) {
        let indexed = || (start..).zip(self.plan.fingerprints.slice(start, end).iter());
        let stored: HashSet<Fingerprint> = indexed()
            .filter(|(index, _)| self.first.get(*index))
            .map(|(_, key)| key)
            .collect();
        for (index, key) in indexed().skip(new - start) {
            if !stored.contains(&key) {
                self.unknown
                    .get_or_insert_with(|| Bitmap::new(self.first.len()))
                    .or(index, true);
            }
        }
    }

    async fn reply(
        self,
        node: &Node,
        membership_state: &MembershipState,
    ) -> Result<ClaimReply, Status> {
        // From here on a repeat finds the answers.
        drop(self.operation);
        self.commit.committed().await?;
        let mut first = self.first.into_bytes();
        let mut unknown = self.unknown.map_or_else(Vec::new, Bitmap::into_bytes);
        for group in self.partially_applied {
            clear_bits(&mut first, group.start, group.end);
            if !unknown.is_empty() {
                clear_bits(&mut unknown, group.start, group.end);
            }
        }
        Ok(ClaimReply {
            header: Some(node.reply_header(membership_state.map())),
            first: first.into(),
            unknown: unknown.into(),
            refused: self.plan.refused,
            repeated_ranges: self.repeated_ranges,
        })
    }
}

/// What must hold for every request for keys: it is for this cluster and this node, and in time. Returns how the node stands, and
/// the time that the request goes by.
fn admit(
    node: &Node,
    header: Option<&RequestHeader>,
) -> Result<(Arc<MembershipState>, UnixMillis), Status> {
    let header = plan::header(header)?;
    let membership_state = node.membership_state();
    if let Some(map) = membership_state.map() {
        plan::check_cluster(map.cluster_id, &header.cluster_id)?;
        node.hear_of_map(map, (header.lineage, header.epoch));
    }
    let now = node.clock.now();
    plan::check_target_and_time(node.config.id, now, header)?;
    Ok((membership_state, now))
}

/// What a request that writes must be when it has waited for room: whoever sends it again later relies on it. Returns the time.
pub(crate) fn still_in_time(
    node: &Node,
    header: Option<&RequestHeader>,
) -> Result<UnixMillis, Status> {
    let header = plan::header(header)?;
    let now = node.clock.now();
    plan::check_target_and_time(node.config.id, now, header)?;
    Ok(now)
}

fn table<'a>(
    node: &Node,
    membership_state: &'a MembershipState,
) -> Result<&'a OwnedRanges, Status> {
    membership_state
        .table()
        .ok_or_else(|| node.not_serving(membership_state))
}

pub(crate) fn plan<'a>(
    node: &Node,
    table: &OwnedRanges,
    ranges: &[RangeKeys],
    fingerprints: &'a [u8],
) -> Result<Plan<'a>, Status> {
    Plan::new(
        table,
        ranges,
        fingerprints,
        node.config.limits.request_keys_max,
    )
}

pub(crate) fn owned(table: &OwnedRanges, group: Group) -> &OwnedRange {
    &table.ranges()[group.range]
}

/// Starts fetching the memory that the group at `position` is going to touch.
#[inline]
fn prefetch(table: &OwnedRanges, plan: &Plan<'_>, position: usize) {
    let Some(group) = plan.groups.get(position) else {
        return;
    };
    let end = group.end.min(group.start + PREFETCH_KEYS);
    if let Some(keys) = owned(table, *group).try_read() {
        keys.prefetch(plan.fingerprints.slice(group.start, end));
    }
}

/// The parts of a group that are worked on under one lock, as `(start, end)`.
pub(crate) fn steps(group: Group) -> impl Iterator<Item = (usize, usize)> {
    (group.start..group.end)
        .step_by(STEP_KEYS)
        .map(move |start| (start, group.end.min(start + STEP_KEYS)))
}

/// Says when others are to have their turn: after every [`STEP_KEYS`] keys.
#[derive(Default)]
pub(crate) struct Pace {
    keys: usize,
}

impl Pace {
    /// To be called, without a lock, before `keys` are worked on. True when it is the others' turn first.
    #[inline]
    pub(crate) fn spend(&mut self, keys: usize) -> bool {
        self.keys += keys;
        let over = self.keys > STEP_KEYS;
        if over {
            self.keys = keys;
        }
        over
    }
}

/// How many of `keys`, from the first on, are in `set`, which refused one of them: it is the first one that is not.
fn present_prefix(set: &KeySet, keys: PackedFingerprints<'_>, times: Times) -> usize {
    let mut present = Bitmap::new(keys.len());
    set.get(keys, times, &mut present, 0);
    (0..keys.len())
        .find(|index| !present.get(*index))
        .unwrap_or(keys.len())
}

pub(crate) fn full(range: &OwnedRange, error: InsertError) -> RangeRefusal {
    RangeRefusal {
        range_id: range.id.0,
        code: RefusalCode::Full.into(),
        owner_node: None,
        owner_address: String::new(),
        generation: range.generation,
        message: format!(
            "range {} cannot take more of these keys, part of which may have been stored: {error}",
            range.id
        ),
    }
}

fn clear_bits(bytes: &mut [u8], start: usize, end: usize) {
    for index in start..end {
        bytes[index / 8] &= !(1 << (index % 8));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use keydb_core::{Clock, ClusterMap, Durability, ManualClock, NewCluster, NodeId};
    use keydb_proto::shard::RangeKeys;

    use super::*;
    use crate::{NodeConfig, ranges::owned::CurrentMap};

    const START: UnixMillis = UnixMillis(1_700_000_000_000);

    /// A clock that goes on by five seconds when it has been read so often.
    #[derive(Debug)]
    struct Jumping(AtomicU64);

    impl Clock for Jumping {
        fn now(&self) -> UnixMillis {
            let left = self
                .0
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                    left.checked_sub(1)
                });
            left.map_or(START.plus(Duration::from_secs(5)), |_| START)
        }
    }

    #[tokio::test]
    async fn a_key_lives_as_long_as_was_asked_for_from_the_end_of_the_last_wait_on() {
        let map = ClusterMap::create(&NewCluster {
            addresses: vec!["a:1".to_owned()],
            range_count: 1,
            durability: Durability::Memory,
        })
        .unwrap();
        let key = Fingerprint::from_parts(1, 0).to_bytes().to_vec();
        let claim = || ClaimRequest {
            header: Some(RequestHeader {
                cluster_id: map.cluster_id.to_bytes().to_vec().into(),
                lineage: map.lineage,
                epoch: map.epoch,
                target_node: 0,
                not_after_unix_ms: START.plus(Duration::from_secs(60)).0,
            }),
            ranges: vec![RangeKeys {
                range_id: 0,
                generation: map.ranges[0].generation,
                key_count: 1,
                attempt: 0,
            }],
            fingerprints: key.clone().into(),
            ttl_seconds: 1,
            operation_id: OperationId::random().to_bytes().to_vec().into(),
            only_remembered: false,
        };
        let clock = Arc::new(Jumping(AtomicU64::new(u64::MAX)));
        let node = Node::new(NodeConfig::new(NodeId(0)), clock.clone());
        let ranges = OwnedRanges::new(CurrentMap::new(map.clone()), NodeId(0), &node.arena, None);
        node.set_membership_state(MembershipState::Serving(ranges));
        // The first look is at the request as it comes in; then it has waited.
        clock.0.store(1, Ordering::SeqCst);
        let reply = super::claim(&node, &claim()).await.unwrap();
        assert_eq!(reply.first[0], 1);
        let reply = super::claim(&node, &claim()).await.unwrap();
        assert_eq!(reply.first[0], 0);
    }

    #[tokio::test]
    async fn what_a_key_set_stored_before_it_refused_a_key_is_first_for_the_repeat() {
        const HOUR: Duration = Duration::from_secs(3600);
        let map = ClusterMap::create(&NewCluster {
            addresses: vec!["a:1".to_owned()],
            range_count: 1,
            durability: Durability::Memory,
        })
        .unwrap();
        // No hashes, so that a key set refuses them from some number on.
        let keys = |numbers: std::ops::Range<u64>| -> Vec<u8> {
            numbers
                .flat_map(|number| Fingerprint::from_parts(u64::MAX / 3, number as u32).to_bytes())
                .collect()
        };
        let claim = |packed: Vec<u8>, ttl_seconds, name: &str, attempt| ClaimRequest {
            header: Some(RequestHeader {
                cluster_id: map.cluster_id.to_bytes().to_vec().into(),
                lineage: map.lineage,
                epoch: map.epoch,
                target_node: 0,
                not_after_unix_ms: START.plus(24 * HOUR).0,
            }),
            ranges: vec![RangeKeys {
                range_id: 0,
                generation: map.ranges[0].generation,
                key_count: u32::try_from(packed.len() / 12).unwrap(),
                attempt,
            }],
            fingerprints: packed.into(),
            ttl_seconds,
            operation_id: OperationId::from_name(name).to_bytes().to_vec().into(),
            only_remembered: false,
        };
        let clock = Arc::new(ManualClock::new(START));
        let mut config = NodeConfig::new(NodeId(0));
        config.limits.answer_memory_age = 24 * HOUR;
        let node = Node::new(config, clock.clone());
        let ranges = OwnedRanges::new(CurrentMap::new(map.clone()), NodeId(0), &node.arena, None);
        node.set_membership_state(MembershipState::Serving(ranges));
        // How many there is room for.
        let mut room = 0_u64;
        loop {
            let name = format!("fill {room}");
            let reply = super::claim(&node, &claim(keys(room..room + 1), 1, &name, 0)).await;
            if !reply.unwrap().refused.is_empty() {
                break;
            }
            room += 1;
            assert!(room < 1_000_000);
        }
        let ranges = OwnedRanges::new(CurrentMap::new(map.clone()), NodeId(0), &node.arena, None);
        node.set_membership_state(MembershipState::Serving(ranges));
        // Ten are left, of which one is somebody else's for long. The claim wants twenty more.
        for from in (0..room - 10).step_by(STEP_KEYS) {
            let part = keys(from..(from + STEP_KEYS as u64).min(room - 10));
            let fill = claim(part, 1, &format!("again {from}"), 0);
            assert_eq!(super::claim(&node, &fill).await.unwrap().refused, []);
        }
        let other = claim(keys(room - 10..room - 9), 10_000, "other", 0);
        assert_eq!(super::claim(&node, &other).await.unwrap().first[0], 1);
        let wanted = keys(room - 10..room + 11);
        let reply = super::claim(&node, &claim(wanted.clone(), 10_000, "a", 0)).await;
        assert_eq!(reply.unwrap().refused.len(), 1);
        // What filled it is over for so long that its room is used again.
        clock.advance(2 * HOUR);
        node.trust_clock(true);
        let again = super::claim(&node, &claim(wanted, 10_000, "a", 1))
            .await
            .unwrap();
        assert_eq!(again.refused, []);
        let told = |bytes: &[u8]| -> String {
            (0..21)
                .map(|index| {
                    if bytes[index / 8] >> (index % 8) & 1 == 1 {
                        '1'
                    } else {
                        '0'
                    }
                })
                .collect()
        };
        assert_eq!(told(&again.first), "011111111111111111111");
        assert!(again.unknown.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn only_the_given_bits_are_cleared() {
        let mut bytes = [0xff; 4];
        clear_bits(&mut bytes, 7, 17);
        assert_eq!(bytes, [0x7f, 0x00, 0xfe, 0xff]);
    }

    #[test]
    fn a_group_is_worked_on_in_steps_that_cover_it() {
        let group = Group {
            range: 0,
            start: 10,
            end: 10 + 2 * STEP_KEYS + 1,
            attempt: 0,
        };
        let steps: Vec<_> = steps(group).collect();
        assert_eq!(
            steps,
            [
                (10, 10 + STEP_KEYS),
                (10 + STEP_KEYS, 10 + 2 * STEP_KEYS),
                (10 + 2 * STEP_KEYS, group.end)
            ]
        );
    }

    #[test]
    fn others_get_their_turn_after_a_step_of_keys() {
        let mut pace = Pace::default();
        let turns = (0..10).filter(|_| pace.spend(STEP_KEYS / 2)).count();
        assert_eq!(turns, 4);
    }
}
