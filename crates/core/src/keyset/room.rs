//! How segments get more room and give it back: rewriting, splitting, merging.

use super::{
    InsertError, KeySet, SEGMENT_EXTENTS_MAX, Segment, Slot, Sweep, Times,
    layout::Place,
    segment::Probe,
    segment::{Builder, extents_for},
    slot::Needle,
};

/// Two halves with at most this many extents together become one segment again: half of what a segment can hold, so that a
/// split does not follow soon.
const MERGED_EXTENTS_MAX: usize = SEGMENT_EXTENTS_MAX / 2;

/// Entries that a half of a split segment has room for beyond its even share, so that it is not full at once.
const HALF_HEADROOM: usize = 300;

impl KeySet {
    /// Inserts an absent entry whose segment has no room: makes room first.
    #[cold]
    pub(super) fn insert_with_room(&mut self, slot: Slot, times: Times) -> Result<(), InsertError> {
        loop {
            let (place, number) = self.locate(slot.fingerprint());
            let segment = &mut self.segments[number];
            if let Probe::Vacant(position) = segment.probe(Needle::new(slot.fingerprint()), place)
                && !segment.is_full()
                && segment.insert(position, slot)
            {
                self.len += 1;
                return Ok(());
            }
            self.make_room(place, number, times)?;
        }
    }

    /// Rewrites a segment so that it has more room, or splits it.
    fn make_room(&mut self, place: Place, number: usize, times: Times) -> Result<(), InsertError> {
        let segment = &self.segments[number];
        let needed = extents_for(segment.kept(times)).max(1);
        // A segment that has no room without being full has entries up to its end: whatever their number, it needs more slots.
        let least = if segment.is_full() {
            needed
        } else {
            needed.max(segment.extent_count() + 1)
        };
        for extents in least..=SEGMENT_EXTENTS_MAX {
            if let Some(roomier) = self.build(&[number], segment.depth(), extents, times)? {
                self.install(number, roomier);
                return Ok(());
            }
        }
        self.split(place, number, times)
    }

    /// A new segment from those entries of old ones, in order, that may not be purged. `None` when they do not fit.
    fn build(
        &self,
        from: &[usize],
        depth: u32,
        extents: usize,
        times: Times,
    ) -> Result<Option<Segment>, InsertError> {
        let mut builder = Builder::new(depth, extents, &self.arena)?;
        let fits = from.iter().all(|number| {
            self.segments[*number].visit(|slot| {
                times.purges(slot.expiry_seconds())
                    || builder.push(slot, self.layout.place(slot.top()))
            })
        });
        Ok(fits.then(|| builder.finish()))
    }

    /// Puts a segment in the place of an older one.
    pub(super) fn install(&mut self, number: usize, segment: Segment) {
        self.len += segment.entries();
        let mut old = std::mem::replace(&mut self.segments[number], segment);
        self.len -= old.entries();
        old.clear(&self.arena);
    }

    /// Splits a segment in two by one more bit.
    pub(super) fn split(
        &mut self,
        place: Place,
        number: usize,
        times: Times,
    ) -> Result<(), InsertError> {
        let depth = self.segments[number].depth();
        self.directories[place.phase].make_room_for_split(depth)?;
        let [lower, upper] = self.build_halves(number, times)?;
        let new = self.unused.pop().unwrap_or_else(|| {
            self.segments.push(Segment::new(0));
            self.segments.len() - 1
        });
        self.install(number, lower);
        self.install(new, upper);
        let directory = &mut self.directories[place.phase];
        let span = directory.span(place.directory_index(directory.depth()), depth);
        directory.split(span, new);
        Ok(())
    }

    fn build_halves(&self, number: usize, times: Times) -> Result<[Segment; 2], InsertError> {
        let segment = &self.segments[number];
        let depth = segment.depth();
        // Hashes fall into both halves nearly evenly. With too little for one it is done once more with more.
        let expected =
            extents_for(segment.kept(times) / 2 + HALF_HEADROOM).min(SEGMENT_EXTENTS_MAX);
        let mut extents = [expected; 2];
        loop {
            let [lower, upper] =
                extents.map(|extents| Builder::new(depth + 1, extents, &self.arena));
            let mut builders = [lower?, upper?];
            let mut half = 0;
            let fits = segment.visit(|slot| {
                let place = self.layout.place(slot.top());
                half = usize::from(place.is_upper_half(depth));
                times.purges(slot.expiry_seconds()) || builders[half].push(slot, place)
            });
            if fits {
                return Ok(builders.map(Builder::finish));
            }
            if extents[half] == SEGMENT_EXTENTS_MAX {
                return Err(InsertError::Skewed);
            }
            extents[half] += 1;
        }
    }

    /// Reclaims what may be reclaimed in one segment (tens of microseconds) and returns where to go on; `None` at the end.
    ///
    /// When there is no memory to rewrite a segment with, it is left for the next sweep.
    pub fn sweep(&mut self, from: Sweep, times: Times) -> Option<Sweep> {
        let directory = self.directories.get(from.phase)?;
        if from.index >= directory.len() {
            return Some(Sweep {
                phase: from.phase + 1,
                index: 0,
            });
        }
        let number = directory.segment(from.index);
        let segment = &self.segments[number];
        let next = Sweep {
            phase: from.phase,
            index: directory.span(from.index, segment.depth()).end,
        };
        let kept = segment.kept(times);
        if kept < segment.entries() {
            self.shrink(number, kept, times);
            self.merge_halves(from, number, times);
        }
        Some(next)
    }

    fn shrink(&mut self, number: usize, kept: usize, times: Times) {
        let depth = self.segments[number].depth();
        for extents in extents_for(kept)..=self.segments[number].extent_count() {
            match self.build(&[number], depth, extents, times) {
                Ok(Some(smaller)) => return self.install(number, smaller),
                Ok(None) => {}
                Err(_) => return,
            }
        }
    }

    /// Makes one segment of two halves that have become small.
    fn merge_halves(&mut self, at: Sweep, number: usize, times: Times) {
        let directory = &self.directories[at.phase];
        let Some(depth) = self.segments[number].depth().checked_sub(1) else {
            return;
        };
        let span = directory.span(at.index, depth);
        let lower = directory.segment(span.start);
        let upper = directory.segment(span.start + span.len() / 2);
        let same_depth = self.segments[lower].depth() == self.segments[upper].depth();
        let extents = extents_for(self.segments[lower].entries() + self.segments[upper].entries());
        if !same_depth || extents > MERGED_EXTENTS_MAX {
            return;
        }
        if let Ok(Some(merged)) = self.build(&[lower, upper], depth, extents, times) {
            self.install(lower, merged);
            self.install(upper, Segment::new(0));
            self.directories[at.phase].merge(span, lower);
            self.unused.push(upper);
        }
    }
}
