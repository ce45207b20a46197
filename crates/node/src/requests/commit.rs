//! The commit rule: a reply that tells of a write waits until that write is committed.
//!
//! A request that writes is applied in chunks. A chunk is applied under one LSN: the LSN is reserved, the key sets are changed
//! and the changed keys marked as uncommitted under the range's lock, and then the chunk's record goes into the journal. Nothing
//! waits in between, so a chunk is never half in the journal, also when the caller goes away. At the end the request waits until
//! the last LSN that its reply tells of is committed: of its own chunks, of the uncommitted keys that it found present, and of
//! the remembered answers that it repeats.
//!
//! What is remembered of a claim's answers keeps to the same rule: the record that has them comes behind all records that they
//! rest on. A claim that has stored nothing does not wait for that record: a crash that forgets it forgets no key, and a repeat is
//! told `Unknown`.
//!
//! Without a journal (`memory` mode) there is nothing to wait for and nothing to mark.

use keydb_core::{
    Bitmap, Expiry, FINGERPRINT_BYTES, Fingerprint, InsertError, KeySet, Lsn, OperationId,
    PackedFingerprints, RecordGroup, Times, UnixMillis, Write,
};
use keydb_proto::{refusal_status, shard::ErrorCode};
use tonic::Status;

use crate::{
    disk::journal::{Journal, Reservation, Space},
    ranges::owned::OwnedRange,
    ranges::uncommitted::Locked,
    requests::plan::Plan,
    requests::steps::STEP_KEYS,
};

/// What a record takes at most besides what its groups and keys do.
const RECORD_BYTES: usize = 256;
/// What a group takes at most, its answers' head included.
const GROUP_BYTES: usize = 64;
/// What a key takes at most: the fingerprint and its answer's two bits.
const KEY_BYTES: usize = FINGERPRINT_BYTES + 1;

/// What one request writes and tells of.
#[derive(Debug)]
pub(crate) struct Commit<'a> {
    journal: Option<&'a Journal>,
    /// Where there is no journal: what records writes while they are to go to another node as well.
    recorder: Option<&'a Journal>,
    /// Room for what the request writes.
    space: Option<Space>,
    chunk: Option<Chunk>,
    /// What the reply tells of is committed when this is.
    wait_lsn: Lsn,
}

/// What is applied under one LSN.
#[derive(Debug)]
struct Chunk {
    reservation: Reservation,
    /// Of a record that comes later, where the answers rest on writes behind the chunk.
    answers: Option<Reservation>,
    groups: Vec<RecordGroup>,
    fingerprints: Vec<u8>,
}

impl<'a> Commit<'a> {
    /// For a request that writes nothing.
    pub(crate) const fn of_read(journal: Option<&'a Journal>) -> Self {
        Self {
            journal,
            recorder: None,
            space: None,
            chunk: None,
            wait_lsn: Lsn::ZERO,
        }
    }

    /// For a request that writes all keys of `plan`, with so many expiries. Waits for room in the journal.
    ///
    /// # Errors
    /// When the disk has none. Nothing was applied.
    pub(crate) async fn of_plan(
        journal: Option<&'a Journal>,
        plan: &Plan<'_>,
        expiries: usize,
    ) -> Result<Self, Status> {
        let groups = plan.groups.iter();
        let keys: usize = groups.map(|group| group.end - group.start).sum();
        // A chunk ends with its expiry, or where the next step would make it larger than a step may be; so any two of them that follow
        // each other have another expiry or more keys than that.
        let chunks = expiries + 2 * keys / STEP_KEYS;
        Self::of_write(journal, keys, plan.groups.len(), chunks).await
    }

    /// For a request that writes at most `keys` keys in `groups` groups and `chunks` chunks. Waits for room in the journal.
    ///
    /// # Errors
    /// When the disk has none. Nothing was applied.
    async fn of_write(
        journal: Option<&'a Journal>,
        keys: usize,
        groups: usize,
        chunks: usize,
    ) -> Result<Self, Status> {
        let mut commit = Self::of_read(journal);
        if let Some(journal) = journal {
            // A group that is cut by the end of a chunk is in both; a chunk's answers may be in a record of their own.
            let bytes =
                2 * chunks * RECORD_BYTES + (groups + chunks) * GROUP_BYTES + keys * KEY_BYTES;
            let space = journal.admit(bytes).await.map_err(|full| {
                refusal_status(
                    ErrorCode::DiskFull,
                    format!("{full}; nothing was applied, try again when there is room"),
                )
            })?;
            commit.space = Some(space);
        }
        Ok(commit)
    }

    /// Writes go to `recorder` while that is tapped. Waits while too much waits there.
    pub(crate) async fn recorded_by(self, recorder: Option<&'a Journal>) -> Self {
        if let Some(recorder) = recorder {
            recorder.tapped_records_go().await;
        }
        Self { recorder, ..self }
    }

    /// Starts a chunk unless one is open. To be called before the range's lock is taken; nothing may be awaited from here until
    /// [`append`](Self::append).
    pub(crate) fn begin(&mut self) {
        // It is looked at here, where whoever has opened the tap waits for the request to end.
        if let (Some(recorder), None) = (self.recorder, &self.space)
            && recorder.is_tapped()
        {
            self.journal = Some(recorder);
            self.space = Some(recorder.free_space());
        }
        if let (Some(space), None) = (&self.space, &self.chunk) {
            self.chunk = Some(Chunk {
                reservation: space.begin(),
                answers: None,
                groups: Vec::new(),
                fingerprints: Vec::new(),
            });
        }
    }

    /// The keys have been put into `set`, which is that of `range` under its write lock, with this outcome.
    pub(crate) fn put(
        &mut self,
        range: &OwnedRange,
        set: &KeySet,
        keys: PackedFingerprints<'_>,
        times: Times,
        outcome: &Result<(), InsertError>,
    ) {
        if outcome.is_ok() {
            self.stored(range, keys);
        } else {
            // What the set has refused once, it would refuse when the journal is replayed.
            let mut present = Bitmap::new(keys.len());
            set.get(keys, times, &mut present, 0);
            self.claimed(range, keys, &present, 0);
        }
    }

    fn stored(&mut self, range: &OwnedRange, keys: PackedFingerprints<'_>) {
        let Some((chunk, marks)) = self.chunk_and_marks(range) else {
            return;
        };
        chunk.fingerprints.extend_from_slice(keys.as_bytes());
        chunk.group(range, keys.len());
        if let Some(mut marks) = marks {
            let lsn = chunk.reservation.lsn();
            keys.iter().for_each(|key| marks.mark(key, lsn));
        }
    }

    /// Of the keys, those whose bit from `offset` on is on have been stored in `range`, whose write lock is held; the reply tells
    /// of the others that they are there. Returns whether any have been stored.
    pub(crate) fn claimed(
        &mut self,
        range: &OwnedRange,
        keys: PackedFingerprints<'_>,
        first: &Bitmap,
        offset: usize,
    ) -> bool {
        let count = first.count_in(offset..offset + keys.len());
        if count == 0 {
            self.found(range, keys, |_| true);
            return false;
        }
        let Some((chunk, mut marks)) = self.chunk_and_marks(range) else {
            return true;
        };
        let lsn = chunk.reservation.lsn();
        let mut wait_lsn = Lsn::ZERO;
        for (index, key) in (offset..).zip(keys.iter()) {
            if first.get(index) {
                chunk.fingerprints.extend_from_slice(&key.to_bytes());
                if let Some(marks) = &mut marks {
                    marks.mark(key, lsn);
                }
            } else if let Some(marks) = &marks {
                wait_lsn = wait_lsn.max(marks.find(key));
            }
        }
        chunk.group(range, count);
        drop(marks);
        self.wait_for(wait_lsn);
        true
    }

    /// The reply tells of the keys that are `present`, by their index, that they are in `range`, a lock of which is held.
    pub(crate) fn found(
        &mut self,
        range: &OwnedRange,
        keys: PackedFingerprints<'_>,
        present: impl Fn(usize) -> bool,
    ) {
        let Some(journal) = self.journal else { return };
        if self.nothing_is_uncommitted(range) {
            return;
        }
        let marks = range.uncommitted.lock(journal.committed());
        let lsn_of = |(index, key): (usize, Fingerprint)| {
            if present(index) {
                marks.find(key)
            } else {
                Lsn::ZERO
            }
        };
        let newest = keys.iter().enumerate().map(lsn_of).max();
        self.wait_for(newest.unwrap_or_default());
    }

    /// The reply tells of what is committed with `lsn`.
    pub(crate) fn wait_for(&mut self, lsn: Lsn) {
        self.wait_lsn = self.wait_lsn.max(lsn);
    }

    /// The LSN of the record that takes the open chunk's answers; zero if there is no chunk. What the answers rest on comes before
    /// it: where others wrote that under a later LSN than the chunk's, the answers get a record of their own, whose LSN is taken
    /// here. Otherwise a crash between the two could keep a `Duplicate` whose key it forgets. To be called once, right before
    /// [`append`](Self::append).
    pub(crate) fn answers_lsn(&mut self) -> Lsn {
        let (Some(space), Some(chunk)) = (&self.space, &mut self.chunk) else {
            return Lsn::ZERO;
        };
        if self.wait_lsn <= chunk.reservation.lsn() {
            return chunk.reservation.lsn();
        }
        chunk.answers.insert(space.begin()).lsn()
    }

    /// Ends the open chunk, if there is one: it goes into the journal.
    pub(crate) fn append(
        &mut self,
        expiry: Expiry,
        operation: Option<OperationId>,
        answers: &[u8],
        now: UnixMillis,
    ) {
        let Some(chunk) = self.chunk.take() else {
            return;
        };
        let has_stored = !chunk.groups.is_empty();
        let fingerprints = PackedFingerprints::new(&chunk.fingerprints)
            .expect("whole fingerprints were put there");
        let keys = Write {
            expiry,
            operation: None,
            answers: &[],
            groups: (&chunk.groups[..]).into(),
            fingerprints,
        };
        let lsn = match chunk.answers {
            None => {
                let lsn = chunk.reservation.lsn();
                let all = Write {
                    operation,
                    answers,
                    ..keys
                };
                chunk.reservation.append(&all, now);
                lsn
            }
            Some(later) => {
                let lsn = later.lsn();
                chunk.reservation.append(&keys, now);
                let answers = Write {
                    expiry,
                    operation,
                    answers,
                    groups: (&[][..]).into(),
                    fingerprints: PackedFingerprints::new(&[]).expect("none is a whole number"),
                };
                later.append(&answers, now);
                lsn
            }
        };
        if has_stored {
            self.wait_for(lsn);
        }
    }

    /// Waits until everything that the reply tells of is committed.
    ///
    /// # Errors
    /// When the journal has failed, and the node is about to end. What was written may be there after its next start.
    pub(crate) async fn committed(self) -> Result<(), Status> {
        debug_assert!(self.chunk.is_none());
        // What was not used of it may serve others while this request waits.
        drop(self.space);
        let Some(journal) = self.journal else {
            return Ok(());
        };
        journal
            .wait_committed(self.wait_lsn)
            .await
            .map_err(|failed| Status::unavailable(failed.to_string()))
    }

    /// Whether every key of `range`, a lock of which is held, may be told of at once.
    fn nothing_is_uncommitted(&self, range: &OwnedRange) -> bool {
        let committed = self.journal.map(Journal::committed);
        committed.is_none_or(|committed| range.uncommitted.is_empty(committed))
    }

    /// The open chunk, and the marks of `range` where writes are not committed at once.
    fn chunk_and_marks<'r>(
        &mut self,
        range: &'r OwnedRange,
    ) -> Option<(&mut Chunk, Option<Locked<'r>>)> {
        let journal = self.journal?;
        let marks = journal
            .is_synced()
            .then(|| range.uncommitted.lock(journal.committed()));
        self.chunk.as_mut().map(|chunk| (chunk, marks))
    }
}

impl Chunk {
    fn group(&mut self, range: &OwnedRange, keys: usize) {
        if keys > 0 {
            self.groups.push(RecordGroup {
                range: range.id,
                generation: range.generation,
                count: u32::try_from(keys).expect("a request has fewer keys"),
            });
        }
    }
}

#[cfg(test)]
mod tests;
