//! Taking over entries that come in ascending order, as from a snapshot file.
//!
//! Entries one by one would probe, shift and grow their segment again and again. Those that ascend fall into segments in runs: a
//! run that is long for its segment is merged with the segment's entries into a new one, laid out once, as tight as growth would
//! have made it.

use super::{
    Entry, InsertError, KeySet, SEGMENT_EXTENTS_MAX, Segment, Slot, Times,
    layout::Place,
    segment::{Builder, extents_for},
};

/// A segment is rewritten for a run if it has at most this many entries for each of the run: about as many as are written in the
/// time of one insert.
const REWRITTEN_PER_ENTRY_MAX: usize = 8;

/// How many entries ahead memory is fetched for inserts.
const FETCH_AHEAD_ENTRIES: usize = 16;

impl KeySet {
    /// Takes over `entries`: the union, of equal keys the later expiry. In any order, but fast only where they ascend. Those that
    /// may be reclaimed may be left out.
    ///
    /// # Errors
    /// When an entry could not be inserted; those of smaller index are merged.
    pub fn merge(&mut self, entries: &[Entry], times: Times) -> Result<(), InsertError> {
        let mut done = 0;
        while let Some(first) = entries.get(done) {
            let (place, number) = self.locate(first.fingerprint());
            let segment = &self.segments[number];
            let run = self.run(&entries[done..], place, segment.depth());
            if run.len() * REWRITTEN_PER_ENTRY_MAX >= segment.entries() {
                if self.merge_run(number, run, times)? {
                    done += run.len();
                } else {
                    self.split(place, number, times)?;
                }
                continue;
            }
            for at in done..done + run.len() {
                if let Some(ahead) = entries.get(at + FETCH_AHEAD_ENTRIES) {
                    self.fetch_for_insert(ahead.fingerprint());
                }
                self.store(entries[at].into(), times, Slot::max)?;
            }
            done += run.len();
        }
        Ok(())
    }

    /// The entries at the start that ascend and lie in the same segment, that of `place`.
    fn run<'a>(&self, entries: &'a [Entry], place: Place, depth: u32) -> &'a [Entry] {
        let ends = |pair: &[Entry]| {
            let next = pair[1].fingerprint();
            pair[0].fingerprint() >= next
                || !self
                    .layout
                    .place(next.top())
                    .is_in_same_segment(place, depth)
        };
        match entries.windows(2).position(ends) {
            Some(last) => &entries[..=last],
            None => entries,
        }
    }

    /// Replaces a segment by one that has a run's entries as well. False, and nothing changed, when one has no room for them.
    fn merge_run(
        &mut self,
        number: usize,
        run: &[Entry],
        times: Times,
    ) -> Result<bool, InsertError> {
        let segment = &self.segments[number];
        let mut entries = 0;
        segment.visit_with(run, times, |_| {
            entries += 1;
            true
        });
        for extents in extents_for(entries)..=SEGMENT_EXTENTS_MAX {
            let mut builder = Builder::new(segment.depth(), extents, &self.arena)?;
            let fits = segment.visit_with(run, times, |slot| {
                builder.push(slot, self.layout.place(slot.top()))
            });
            if fits {
                let merged = builder.finish();
                self.install(number, merged);
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Segment {
    /// Calls `visit` with each entry of the segment and of `run`, which ascends, in order, until it returns false. False if it
    /// did. Of equal keys it gets the later expiry; those that may be purged are left out.
    #[inline]
    fn visit_with(&self, run: &[Entry], times: Times, mut visit: impl FnMut(Slot) -> bool) -> bool {
        let mut visit = |slot: Slot| times.purges(slot.expiry_seconds()) || visit(slot);
        let mut run = run.iter().map(|entry| Slot::from(*entry)).peekable();
        let fits = self.visit(|slot| {
            while let Some(new) = run.next_if(|new| new.fingerprint() < slot.fingerprint()) {
                if !visit(new) {
                    return false;
                }
            }
            let same = run.next_if(|new| new.fingerprint() == slot.fingerprint());
            visit(same.map_or(slot, |new| new.max(slot)))
        });
        fits && run.all(visit)
    }
}
