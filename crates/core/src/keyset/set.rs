//! The key set's operations.

use std::sync::Arc;

use super::{
    Arena, Entry, InsertError, Segment, Slot, Times,
    directory::Directory,
    layout::{Layout, PHASES, Place},
    segment::Probe,
    slot::Needle,
};
use crate::{Bitmap, Expiry, Fingerprint, HashRange, PackedFingerprints};

/// While one group of this many keys is worked on, memory is fetched for the next: enough to hide an access, few enough for the
/// first-level cache.
const GROUP_KEYS: usize = 16;

/// Cache lines from a key's home on that a lookup nearly always ends in.
const GET_LINES: usize = 2;

/// Cache lines from a key's home on in which an insert nearly always finds its empty slot.
const INSERT_LINES: usize = 6;

/// The keys of one hash range, in memory, in fingerprint order: 16 bytes a slot, ordered linear probing in segments.
///
/// Operations take fingerprints of this range only; the caller checks that they are.
///
/// ```
/// use keydb_core::{Arena, Bitmap, Expiry, Fingerprint, HashRange, HashSeed, KeySet, PackedFingerprints, Times, UnixMillis};
///
/// let mut keys = KeySet::new(HashRange::ALL, &Arena::new());
/// let fingerprint = Fingerprint::of(b"order-17", HashSeed::new(1))?.to_bytes();
/// let batch = PackedFingerprints::new(&fingerprint)?;
/// let now = UnixMillis(1_700_000_000_000);
/// let expiry = Expiry::after(now, "30d".parse()?)?;
///
/// let mut first = Bitmap::new(1);
/// keys.claim(batch, expiry, Times::at(now), &mut first, 0)?;
/// assert!(first.get(0));
///
/// let mut present = Bitmap::new(1);
/// keys.get(batch, Times::at(now), &mut present, 0);
/// assert!(present.get(0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct KeySet {
    bounds: HashRange,
    pub(super) layout: Layout,
    pub(super) directories: [Directory; PHASES],
    pub(super) segments: Vec<Segment>,
    /// Numbers of segments that were merged into others.
    pub(super) unused: Vec<usize>,
    pub(super) len: usize,
    pub(super) arena: Arc<Arena>,
}

impl KeySet {
    /// An empty set for a range, with memory from `arena`.
    pub fn new(bounds: HashRange, arena: &Arc<Arena>) -> Self {
        Self {
            bounds,
            layout: Layout::new(bounds),
            directories: std::array::from_fn(Directory::new),
            segments: (0..PHASES).map(|_| Segment::new(0)).collect(),
            unused: Vec::new(),
            len: 0,
            arena: Arc::clone(arena),
        }
    }

    /// The range's bounds.
    pub const fn bounds(&self) -> HashRange {
        self.bounds
    }

    /// How many keys are held, those that have expired but are not reclaimed yet included.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether no key is held.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that the set takes, directories included.
    pub fn memory_bytes(&self) -> usize {
        let extents: usize = self.segments.iter().map(Segment::extent_count).sum();
        let directories: usize = self.directories.iter().map(Directory::memory_bytes).sum();
        extents * super::EXTENT_BYTES
            + directories
            + self.segments.capacity() * size_of::<Segment>()
            + self.unused.capacity() * size_of::<usize>()
    }

    /// Starts fetching the memory that a lookup of `keys` will touch. A hint.
    pub fn prefetch(&self, keys: PackedFingerprints<'_>) {
        self.fetch(keys, GET_LINES);
    }

    /// Turns bit `offset + i` of `present` on if key `i` is there.
    pub fn get(
        &self,
        keys: PackedFingerprints<'_>,
        times: Times,
        present: &mut Bitmap,
        offset: usize,
    ) {
        let mut offset = offset;
        self.look_up(keys, times, |found| {
            present.or(offset, found);
            offset += 1;
            true
        });
    }

    /// Tells `each` of one key after the other whether it is there, until that says false. Returns what it said last.
    #[inline]
    fn look_up(
        &self,
        keys: PackedFingerprints<'_>,
        times: Times,
        mut each: impl FnMut(bool) -> bool,
    ) -> bool {
        let mut located = [(Place::default(), 0); GROUP_KEYS];
        for group in groups(keys) {
            // Nothing moves under a lookup, so what was found out for the fetch still holds.
            let here = located;
            for (at, key) in located.iter_mut().zip(group.next.iter()) {
                *at = self.locate(key);
                self.segments[at.1].prefetch(at.0, GET_LINES);
            }
            for (key, (place, number)) in group.keys.iter().zip(here) {
                let found = match self.segments[number].probe(Needle::new(key), place) {
                    Probe::Found(_, slot) => slot.is_live(times.now),
                    Probe::Vacant(_) => false,
                };
                if !each(found) {
                    return false;
                }
            }
        }
        true
    }

    /// Whether all of `keys` are there.
    pub fn has_all(&self, keys: PackedFingerprints<'_>, times: Times) -> bool {
        self.look_up(keys, times, |found| found)
    }

    /// Stores `keys` until at least `expiry`; never shortens a life.
    ///
    /// # Errors
    /// When a key could not be inserted; those before it are stored.
    pub fn put(
        &mut self,
        keys: PackedFingerprints<'_>,
        expiry: Expiry,
        times: Times,
    ) -> Result<(), InsertError> {
        for group in groups(keys) {
            self.fetch(group.next, INSERT_LINES);
            for key in group.keys.iter() {
                self.store(Slot::new(key, expiry), times, Slot::max)?;
            }
        }
        Ok(())
    }

    /// Stores those of `keys` that are absent until `expiry`, and turns bit `offset + i` of `first` on for each of them. Of
    /// equal keys the first one counts.
    ///
    /// # Errors
    /// When a key could not be inserted; those before it are stored.
    pub fn claim(
        &mut self,
        keys: PackedFingerprints<'_>,
        expiry: Expiry,
        times: Times,
        first: &mut Bitmap,
        offset: usize,
    ) -> Result<(), InsertError> {
        let mut offset = offset;
        for group in groups(keys) {
            self.fetch(group.next, INSERT_LINES);
            for key in group.keys.iter() {
                let mut was_live = false;
                self.store(Slot::new(key, expiry), times, |new, old| {
                    was_live = old.is_live(times.now);
                    if was_live { old } else { new }
                })?;
                first.or(offset, !was_live);
                offset += 1;
            }
        }
        Ok(())
    }

    /// All entries in fingerprint order, those that have expired but are not reclaimed yet included.
    pub fn iter(&self) -> impl Iterator<Item = Entry> + '_ {
        let segments = self.directories.iter().flat_map(move |directory| {
            let mut index = 0;
            std::iter::from_fn(move || {
                (index < directory.len()).then(|| {
                    let segment = &self.segments[directory.segment(index)];
                    index = directory.span(index, segment.depth()).end;
                    segment
                })
            })
        });
        segments.flat_map(Segment::iter).filter_map(Slot::entry)
    }

    /// Where a fingerprint is at home: its place and its segment's number.
    #[inline]
    pub(super) fn locate(&self, fingerprint: Fingerprint) -> (Place, usize) {
        let place = self.layout.place(fingerprint.top());
        let directory = &self.directories[place.phase];
        (
            place,
            directory.segment(place.directory_index(directory.depth())),
        )
    }

    /// Starts fetching the memory that an insert of `fingerprint` will touch. A hint.
    #[inline]
    pub(super) fn fetch_for_insert(&self, fingerprint: Fingerprint) {
        let (place, number) = self.locate(fingerprint);
        self.segments[number].prefetch(place, INSERT_LINES);
    }

    /// All at once and without a branch on what is read, so that the reads of directory and segments overlap as well.
    #[inline]
    fn fetch(&self, keys: PackedFingerprints<'_>, lines: usize) {
        for key in keys.iter() {
            let (place, number) = self.locate(key);
            self.segments[number].prefetch(place, lines);
        }
    }

    /// Stores `slot`; where its key has an entry already, what `choose(slot, entry)` says.
    #[inline]
    pub(super) fn store(
        &mut self,
        slot: Slot,
        times: Times,
        choose: impl FnOnce(Slot, Slot) -> Slot,
    ) -> Result<(), InsertError> {
        let (place, number) = self.locate(slot.fingerprint());
        let segment = &mut self.segments[number];
        match segment.probe(Needle::new(slot.fingerprint()), place) {
            Probe::Found(position, old) => segment.replace(position, choose(slot, old)),
            Probe::Vacant(position) if !segment.is_full() && segment.insert(position, slot) => {
                self.len += 1;
            }
            Probe::Vacant(_) => self.insert_with_room(slot, times)?,
        }
        Ok(())
    }
}

/// Keys to work on, and those that come next.
struct Group<'a> {
    keys: PackedFingerprints<'a>,
    next: PackedFingerprints<'a>,
}

/// Cuts keys into groups. The first one is empty: it only has the first keys as its next.
fn groups(keys: PackedFingerprints<'_>) -> impl Iterator<Item = Group<'_>> {
    let end = move |start: usize| (start + GROUP_KEYS).min(keys.len());
    let first = Group {
        keys: keys.slice(0, 0),
        next: keys.slice(0, end(0)),
    };
    let rest = (0..keys.len()).step_by(GROUP_KEYS).map(move |start| Group {
        keys: keys.slice(start, end(start)),
        next: keys.slice(end(start), end(end(start))),
    });
    std::iter::once(first).chain(rest)
}

impl Drop for KeySet {
    fn drop(&mut self) {
        self.segments
            .iter_mut()
            .for_each(|segment| segment.clear(&self.arena));
    }
}
