//! The memory of recent claims' answers: a lost reply must not turn a first into a duplicate.
//!
//! A claim carries an operation id. What it was told is remembered here by (operation id, range), with a digest of the range's
//! fingerprints, until it is too old or the memory is full (then the oldest go first). A later sending of the same operation is
//! answered, range by range, like this:
//!
//! | this operation's earlier answers for the range | keys that are absent now | keys that are present now |
//! | --- | --- | --- |
//! | remembered, same keys in the same order, not yet expired: [`Recall::Same`] | as before, nothing applied | as before |
//! | remembered for the first ones of the same keys, before the one that the key set refused: [`Recall::Prefix`] | as before; the rest stored, `First` | as before; the rest `Unknown` |
//! | remembered, but for other keys, or expired, or applied only in part: [`Recall::Doubt`] | stored, `First` | `Unknown` |
//! | not remembered, and earlier sendings may have been applied (`attempt > 0`): [`Recall::Nothing`] | stored, `First` | `Unknown` |
//! | not remembered, and this is the first sending (`attempt == 0`): [`Recall::Nothing`] | stored, `First` | `Duplicate` |
//!
//! A first sending whose range is remembered as [`Recall::Same`] or [`Recall::Doubt`] is refused as a whole: its id was used before.
//!
//! Why `Unknown` and never `Duplicate`: the key may be present through an earlier sending of this very operation, whose reply
//! nobody got. Saying `Duplicate` would then mean that nobody was ever told `First`.
//!
//! **Equal keys in one request.** The first occurrence of an absent key is `First`. Later ones are `Duplicate`, also in doubt,
//! because this very reply tells somebody `First`. Every occurrence of a key that was present before is `Unknown` in doubt, the
//! second one too: nobody may ever have been told `First` for it. Equal keys never lie in two ranges, and a range appears at most
//! once in a claim.
//!
//! **Whatever is applied is recorded,** also when the caller goes away or the request is dropped half-way: what a chunk of a
//! request applies is [remembered](Operation::remember) with its journal record, before the request waits for anything. A range
//! that is in work at that time is recorded as applied in part. Of one that the key set refused half-way, the answers to the keys before
//! the refused one are recorded, with the digest of all: nobody was told them, but a repeat is.
//!
//! **It survives restarts:** a journal record carries the answers that belong to it, and when the journal is cut, a file with all
//! remembered answers takes their place. A repeat's answers are told when the record that they came with is committed.
//!
//! **One at a time.** An operation is registered from [`begin`](AnswerMemory::begin) until its [`Operation`] is dropped. A repeat
//! that comes in between is told to wait and to begin again; it then finds the answers.
//!
//! **What this relies on:** a sending with `attempt == 0` does not arrive after a later sending of the same operation was
//! answered *and* forgotten. The requests' `not_after` sees to that as long as it is not later than the moment at which the caller
//! sends again.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use keydb_core::{
    AnswerEntry, AnswersDraft, Bitmap, Expiry, Lsn, OperationAnswers, OperationId,
    PackedFingerprints, RangeAnswers, RangeId, UnixMillis,
};
use tokio::sync::watch;
use xxhash_rust::xxh3::xxh3_64;

/// What one operation takes besides its encoded answers: its places in the two indexes, and the allocation.
const ENTRY_OVERHEAD_BYTES: usize = 160;

/// So many operations are looked at under one lock.
const ENTRIES_AT_ONCE: usize = 64;

/// The node's memory of recent claims' answers.
#[derive(Debug)]
pub(crate) struct AnswerMemory {
    bytes_max: usize,
    age_max: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The operations in work, with a channel for those who wait for the end, if anyone does.
    in_flight: HashMap<OperationId, Option<watch::Sender<()>>>,
    remembered: HashMap<OperationId, Entry>,
    /// The remembered operations by their [`Entry::place`].
    oldest_first: BTreeMap<u64, OperationId>,
    next_place: u64,
    /// Of these ranges nothing is known from places before these.
    forgotten: BTreeMap<RangeId, u64>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    answers: OperationAnswers,
    place: u64,
    recorded: UnixMillis,
    /// The last journal record that they came with.
    lsn: Lsn,
}

/// What [`AnswerMemory::begin`] found.
#[derive(Debug)]
pub(crate) enum Begin<'a> {
    /// The operation is this caller's until it is dropped.
    Registered(Operation<'a>),
    /// Another sending of it is in work. Wait until the channel closes, then begin again.
    InFlight(watch::Receiver<()>),
}

/// An operation in work: what is remembered of it, and what is newly answered. Dropping it records the new answers.
#[derive(Debug)]
pub(crate) struct Operation<'a> {
    memory: &'a AnswerMemory,
    id: OperationId,
    begun: UnixMillis,
    expiry: Expiry,
    remembered: HashMap<RangeId, RangeAnswers>,
    remembered_lsn: Lsn,
    draft: AnswersDraft,
    /// The range that is being applied.
    in_work: Option<RangeId>,
}

/// What is remembered of an operation's earlier answers for one range.
#[derive(Debug)]
pub(crate) enum Recall<'a> {
    /// The answers to these very keys.
    Same(&'a RangeAnswers),
    /// The answers to the first of these very keys. The key set refused the next one; the others were not applied with them.
    Prefix(&'a RangeAnswers),
    /// Something was applied, but what these keys were told is not known (any more).
    Doubt,
    /// Nothing.
    Nothing,
}

/// The keys of one range in a claim, as a repeat is recognised by them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClaimedKeys {
    /// The range.
    pub(crate) range: RangeId,
    digest: u32,
    count: usize,
}

impl ClaimedKeys {
    /// Of these keys in this order. There is at least one.
    pub(crate) fn new(range: RangeId, keys: PackedFingerprints<'_>) -> Self {
        Self {
            range,
            digest: xxh3_64(keys.as_bytes()) as u32,
            count: keys.len(),
        }
    }

    /// The first `count` of them: recognised as a part of all.
    pub(crate) const fn prefix(self, count: usize) -> Self {
        Self { count, ..self }
    }
}

impl AnswerMemory {
    /// A memory that takes at most `bytes_max` bytes and forgets what is older than `age_max`.
    pub(crate) fn new(bytes_max: usize, age_max: Duration) -> Self {
        Self {
            bytes_max,
            age_max,
            state: Mutex::default(),
        }
    }

    /// Registers a sending of the operation `id` whose new keys are going to live until `expiry`.
    pub(crate) fn begin(&self, id: OperationId, now: UnixMillis, expiry: Expiry) -> Begin<'_> {
        let mut state = self.state();
        if let Some(waited_for) = state.in_flight.get_mut(&id) {
            let sender = waited_for.get_or_insert_with(|| watch::channel(()).0);
            return Begin::InFlight(sender.subscribe());
        }
        state.forget(usize::MAX, self.too_old(now));
        state.in_flight.insert(id, None);
        let found = state
            .remembered
            .get(&id)
            .map(|entry| (state.known(entry), entry.lsn));
        drop(state);
        let remembered_lsn = found.as_ref().map_or(Lsn::ZERO, |(_, lsn)| *lsn);
        Begin::Registered(Operation {
            memory: self,
            id,
            begun: now,
            expiry,
            remembered: found.map_or_else(HashMap::new, |(answers, _)| answers.ranges()),
            remembered_lsn,
            draft: AnswersDraft::new(expiry),
            in_work: None,
        })
    }

    /// Takes over answers from a file or a journal, whose entries are given in the order in which they were recorded.
    pub(crate) fn restore(&self, entry: AnswerEntry) {
        self.add(entry.operation, entry.recorded, entry.lsn, entry.answers);
    }

    /// Takes over answers that came with a copy of ranges, to be told once this node's record `lsn` is committed. What is remembered
    /// of the operation and a range already is newer, and stays. Returns what was taken over.
    pub(crate) fn restore_older(&self, entry: AnswerEntry, lsn: Lsn) -> OperationAnswers {
        if entry.answers.is_empty() {
            return entry.answers;
        }
        let mut state = self.state();
        let Some(newer) = state.take(entry.operation) else {
            let answers = entry.answers.clone();
            self.keep(&mut state, entry.operation, entry.recorded, lsn, answers);
            return entry.answers;
        };
        let taken = entry.answers.without(&newer.answers);
        let answers = taken.and(&newer.answers);
        let lsn = lsn.max(newer.lsn);
        self.keep(&mut state, entry.operation, newer.recorded, lsn, answers);
        taken
    }

    /// Forgets what was remembered of a range until now.
    pub(crate) fn forget_range(&self, range: RangeId) {
        let mut state = self.state();
        let next_place = state.next_place;
        state.forgotten.insert(range, next_place);
    }

    /// What is remembered of the ranges that are to be `kept`, the oldest first, and the newest record that these answers came with,
    /// as far as is known: nobody may be told before that is committed. See [`entries`](Self::entries) for `pause`.
    pub(crate) fn of_ranges(
        &self,
        kept: &dyn Fn(RangeId) -> bool,
        mut pause: impl FnMut(),
    ) -> (Vec<AnswerEntry>, Lsn) {
        let mut entries = self.entries(&mut pause);
        let mut looked_at = 0;
        entries.retain_mut(|entry| {
            looked_at += 1;
            if looked_at % ENTRIES_AT_ONCE == 0 {
                pause();
            }
            if !entry.answers.has_any(kept) {
                return false;
            }
            entry.answers = entry.answers.only(kept);
            true
        });
        let newest = entries.iter().map(|entry| entry.lsn).max();
        (entries, newest.unwrap_or_default())
    }

    /// The journal has no record behind `last`: what came with one is not waited for.
    pub(crate) fn committed_to(&self, last: Lsn) {
        let mut state = self.state();
        for entry in state.remembered.values_mut() {
            entry.lsn = entry.lsn.min(last);
        }
    }

    /// All that is remembered, the oldest first. Claims go on meanwhile; `pause` is called again and again without a lock, and has to
    /// sleep for a moment each time, or they would hardly get a turn.
    pub(crate) fn entries(&self, mut pause: impl FnMut()) -> Vec<AnswerEntry> {
        let mut entries = Vec::new();
        let mut next = 0;
        let mut places = Vec::with_capacity(ENTRIES_AT_ONCE);
        let end = self.state().next_place;
        loop {
            let before = entries.len();
            let state = self.state();
            let forgotten = state.forgotten.clone();
            for (place, id) in state.oldest_first.range(next..).take(ENTRIES_AT_ONCE) {
                let entry = &state.remembered[id];
                next = place + 1;
                entries.push(AnswerEntry {
                    operation: *id,
                    recorded: entry.recorded,
                    lsn: entry.lsn,
                    answers: entry.answers.clone(),
                });
                places.push(*place);
            }
            drop(state);
            for (entry, place) in entries[before..].iter_mut().zip(places.drain(..)) {
                if let Some(known) = still_known(&entry.answers, place, &forgotten) {
                    entry.answers = known;
                }
            }
            if entries.len() - before < ENTRIES_AT_ONCE {
                break;
            }
            // What comes behind that comes no faster than it is looked at.
            if next < end {
                pause();
            }
        }
        // An operation that was recorded again meanwhile has got another place: the last one has all of it.
        let mut seen = HashSet::new();
        let mut last_first: Vec<AnswerEntry> = entries.into_iter().rev().collect();
        last_first.retain(|entry| seen.insert(entry.operation) && !entry.answers.is_empty());
        last_first.reverse();
        last_first
    }

    /// Forgets what has become too old.
    pub(crate) fn forget_old(&self, now: UnixMillis) {
        let too_old = self.too_old(now);
        self.state().forget(usize::MAX, too_old);
    }

    /// How many bytes the remembered answers take.
    pub(crate) fn bytes(&self) -> usize {
        self.state().bytes
    }

    /// How many operations are remembered.
    pub(crate) fn operations(&self) -> usize {
        self.state().remembered.len()
    }

    /// What was recorded at or before this time is too old.
    fn too_old(&self, now: UnixMillis) -> Option<UnixMillis> {
        let age_max_ms = u64::try_from(self.age_max.as_millis()).unwrap_or(u64::MAX);
        now.0.checked_sub(age_max_ms).map(UnixMillis)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("nothing panics while the memory of answers is locked")
    }

    fn add(&self, id: OperationId, recorded: UnixMillis, lsn: Lsn, part: OperationAnswers) {
        if part.is_empty() {
            return;
        }
        let mut state = self.state();
        let (answers, newest_lsn) = match state.take(id) {
            None => (part, lsn),
            Some(earlier) => (earlier.answers.followed_by(&part), lsn.max(earlier.lsn)),
        };
        self.keep(&mut state, id, recorded, newest_lsn, answers);
    }

    /// Makes room for an operation that is not remembered, and remembers it; not where it is too large.
    fn keep(
        &self,
        state: &mut State,
        id: OperationId,
        recorded: UnixMillis,
        lsn: Lsn,
        answers: OperationAnswers,
    ) {
        if let Some(rest_bytes) = self.bytes_max.checked_sub(cost_bytes(&answers)) {
            state.forget(rest_bytes, None);
            state.insert(id, recorded, lsn, answers);
        }
    }

    fn end(&self, id: OperationId) {
        // Closing the channel, at the end of this function, wakes those who wait.
        let _waited_for = self.state().in_flight.remove(&id);
    }
}

/// What an operation with these answers takes.
fn cost_bytes(answers: &OperationAnswers) -> usize {
    answers.as_bytes().len() + ENTRY_OVERHEAD_BYTES
}

/// What is still known of answers from `place`; nothing where that is all of them.
fn still_known(
    answers: &OperationAnswers,
    place: u64,
    forgotten: &BTreeMap<RangeId, u64>,
) -> Option<OperationAnswers> {
    let is_forgotten = |range| forgotten.get(&range).is_some_and(|floor| place < *floor);
    let has_forgotten = !forgotten.is_empty() && answers.has_any(is_forgotten);
    has_forgotten.then(|| answers.only(|range| !is_forgotten(range)))
}

impl State {
    fn insert(
        &mut self,
        id: OperationId,
        recorded: UnixMillis,
        lsn: Lsn,
        answers: OperationAnswers,
    ) {
        let place = self.next_place;
        self.next_place += 1;
        self.bytes += cost_bytes(&answers);
        self.oldest_first.insert(place, id);
        let entry = Entry {
            answers,
            place,
            recorded,
            lsn,
        };
        self.remembered.insert(id, entry);
    }

    /// Takes out what is still known of an operation.
    fn take(&mut self, id: OperationId) -> Option<Entry> {
        let mut entry = self.remove(id)?;
        if let Some(known) = still_known(&entry.answers, entry.place, &self.forgotten) {
            entry.answers = known;
        }
        Some(entry)
    }

    fn remove(&mut self, id: OperationId) -> Option<Entry> {
        let entry = self.remembered.remove(&id)?;
        self.oldest_first.remove(&entry.place);
        self.bytes -= cost_bytes(&entry.answers);
        Some(entry)
    }

    /// What is still known of an entry's answers.
    fn known(&self, entry: &Entry) -> OperationAnswers {
        let known = still_known(&entry.answers, entry.place, &self.forgotten);
        known.unwrap_or_else(|| entry.answers.clone())
    }

    /// Forgets the oldest operations until at most `bytes_max` remain and the oldest was recorded after `too_old`.
    fn forget(&mut self, bytes_max: usize, too_old: Option<UnixMillis>) {
        while let Some((_, &id)) = self.oldest_first.first_key_value() {
            let recorded = self.remembered[&id].recorded;
            if self.bytes <= bytes_max && too_old.is_none_or(|too_old| recorded > too_old) {
                break;
            }
            self.remove(id);
        }
        if !self.forgotten.is_empty() {
            let oldest = self.oldest_first.first_key_value().map(|(place, _)| *place);
            self.forgotten
                .retain(|_, floor| oldest.is_some_and(|oldest| oldest < *floor));
        }
    }
}

impl Operation<'_> {
    /// What is remembered of the earlier answers to `keys`.
    pub(crate) fn recall(&self, keys: ClaimedKeys) -> Recall<'_> {
        match self.remembered.get(&keys.range) {
            None => Recall::Nothing,
            Some(answers)
                if (1..=keys.count).contains(&answers.count())
                    && answers.digest() == keys.digest
                    && answers.expiry().is_live(self.begun.seconds()) =>
            {
                if answers.count() == keys.count {
                    Recall::Same(answers)
                } else {
                    Recall::Prefix(answers)
                }
            }
            Some(_) => Recall::Doubt,
        }
    }

    /// Whether anything is remembered of earlier sendings.
    pub(crate) fn is_remembered(&self) -> bool {
        !self.remembered.is_empty()
    }

    /// The journal record that must be committed before remembered answers are told.
    pub(crate) const fn remembered_lsn(&self) -> Lsn {
        self.remembered_lsn
    }

    /// New keys live until `expiry` from here on. To be said right after a [`part`](Self::part) was taken.
    pub(crate) fn expire_at(&mut self, expiry: Expiry) {
        self.expiry = expiry;
        self.draft = AnswersDraft::new(expiry);
    }

    /// The answers that are recorded next count until `expiry` at most, as some of them are older.
    pub(crate) fn expire_by(&mut self, expiry: Expiry) {
        self.draft.expire_by(expiry);
    }

    /// Nothing of the range that is in work was applied after all.
    pub(crate) fn nothing_applied(&mut self) {
        self.in_work = None;
    }

    /// Says that `range` is being applied from here on. Until [`record`](Self::record), it counts as applied in part.
    pub(crate) fn apply(&mut self, range: RangeId) {
        if self.in_work != Some(range) {
            self.leave_partially_applied();
            self.in_work = Some(range);
        }
    }

    /// The answers since the last part; a range that is in work is in it as applied in part.
    pub(crate) fn part(&mut self) -> OperationAnswers {
        let mut draft = std::mem::replace(&mut self.draft, AnswersDraft::new(self.expiry));
        if let Some(range) = self.in_work {
            draft.group_partially_applied(range);
        }
        draft.encode()
    }

    /// Remembers a [`part`](Self::part), which goes into the journal record `lsn` next.
    pub(crate) fn remember(&self, part: OperationAnswers, lsn: Lsn) {
        self.memory.add(self.id, self.begun, lsn, part);
    }

    /// Records what `keys`, which have just been applied, are told: bits `offset..` of the reply's bitmaps.
    pub(crate) fn record(
        &mut self,
        keys: ClaimedKeys,
        first: &Bitmap,
        unknown: Option<&Bitmap>,
        offset: usize,
    ) {
        debug_assert_eq!(self.in_work, Some(keys.range));
        self.in_work = None;
        self.draft
            .group(keys.range, keys.digest, keys.count, first, unknown, offset);
    }

    fn leave_partially_applied(&mut self) {
        if let Some(range) = self.in_work.take() {
            self.draft.group_partially_applied(range);
        }
    }
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        let part = self.part();
        // A request remembers its parts itself; this one it was kept from by a panic.
        self.memory.add(self.id, self.begun, Lsn::ZERO, part);
        self.memory.end(self.id);
    }
}
