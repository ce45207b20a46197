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

/// How many keys ahead of the one in work memory is fetched: enough to hide an access, few enough for the first cache.
const PREFETCH_KEYS: usize = 16;

/// The keys of one hash range. See the [module](super) for its shape.
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

    /// Starts fetching the memory that an operation on `keys` will touch. A hint.
    pub fn prefetch(&self, keys: PackedFingerprints<'_>) {
        keys.iter().for_each(|key| self.prefetch_one(key));
    }

    /// Turns bit `offset + i` of `present` on if key `i` is there.
    pub fn get(
        &self,
        keys: PackedFingerprints<'_>,
        times: Times,
        present: &mut Bitmap,
        offset: usize,
    ) {
        self.prefetch_first(keys);
        for (index, key) in keys.iter().enumerate() {
            self.prefetch_ahead(keys, index);
            let (place, number) = self.locate(key);
            let found = match self.segments[number].probe(Needle::new(key), place) {
                Probe::Found(_, slot) => slot.is_live(times.now),
                Probe::Vacant(_) => false,
            };
            present.or(offset + index, found);
        }
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
        self.prefetch_first(keys);
        for (index, key) in keys.iter().enumerate() {
            self.prefetch_ahead(keys, index);
            self.store(Slot::new(key, expiry), times, Slot::max)?;
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
        self.prefetch_first(keys);
        for (index, key) in keys.iter().enumerate() {
            self.prefetch_ahead(keys, index);
            let mut was_live = false;
            self.store(Slot::new(key, expiry), times, |new, old| {
                was_live = old.is_live(times.now);
                if was_live { old } else { new }
            })?;
            first.or(offset + index, !was_live);
        }
        Ok(())
    }

    /// Takes over `entries`: the union, of equal keys the later expiry.
    ///
    /// # Errors
    /// When an entry could not be inserted; those before it are merged.
    pub fn merge(
        &mut self,
        entries: impl IntoIterator<Item = Entry>,
        times: Times,
    ) -> Result<(), InsertError> {
        let mut slots = entries
            .into_iter()
            .map(|entry| Slot::new(entry.fingerprint, entry.expiry));
        slots.try_for_each(|slot| self.store(slot, times, Slot::max))
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

    #[inline]
    fn prefetch_one(&self, key: Fingerprint) {
        let (place, number) = self.locate(key);
        self.segments[number].prefetch(place);
    }

    #[inline]
    fn prefetch_first(&self, keys: PackedFingerprints<'_>) {
        self.prefetch(keys.slice(0, keys.len().min(PREFETCH_KEYS)));
    }

    #[inline]
    fn prefetch_ahead(&self, keys: PackedFingerprints<'_>, index: usize) {
        if index + PREFETCH_KEYS < keys.len() {
            self.prefetch_one(keys.get(index + PREFETCH_KEYS));
        }
    }

    /// Stores `slot`; where its key has an entry already, what `choose(slot, entry)` says.
    #[inline]
    fn store(
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

impl Drop for KeySet {
    fn drop(&mut self) {
        self.segments
            .iter_mut()
            .for_each(|segment| segment.clear(&self.arena));
    }
}
