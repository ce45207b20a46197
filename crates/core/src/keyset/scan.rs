//! Reading a set in portions, while it changes in between.

use super::{Entry, KeySet, Slot};
use crate::Fingerprint;

impl KeySet {
    /// Appends the entries from `from` on, in fingerprint order, at most `entries_max` (and at least one, if there is one), and
    /// returns where to go on; `None` when nothing can follow. The start is `Fingerprint::MIN`.
    ///
    /// The work is that of reading so many entries, so a caller who lets others at the set between calls never keeps them long.
    /// However the set changes meanwhile, an entry that is there from before the first call until after the last is returned
    /// exactly once. Entries that have expired but are not reclaimed yet are among them.
    pub fn scan(
        &self,
        from: Fingerprint,
        entries_max: usize,
        out: &mut Vec<Entry>,
    ) -> Option<Fingerprint> {
        let bounds = self.bounds();
        let from = from.max(Fingerprint::from_parts(bounds.start(), 0));
        if from.top() > bounds.last() {
            return None;
        }
        let room_end = out.len() + entries_max.max(1);
        let (place, number) = self.locate(from);
        let mut phase = place.phase;
        let mut index = place.directory_index(self.directories[phase].depth());
        let mut segment = &self.segments[number];
        let mut take = |slot: Slot| {
            out.extend(slot.entry());
            out.len() < room_end
        };
        // No entry from `from` on lies before its home.
        let mut is_read = segment.visit_from(place, |slot| slot.fingerprint() < from || take(slot));
        while is_read {
            index = self.directories[phase].span(index, segment.depth()).end;
            if index == self.directories[phase].len() {
                phase += 1;
                index = 0;
            }
            segment = &self.segments[self.directories.get(phase)?.segment(index)];
            is_read = segment.visit(&mut take);
        }
        out.last()?.fingerprint().successor()
    }
}
