//! One segment: a table of slots in 0 to 8 extents.

use super::{
    Arena, EXTENT_SLOTS, Extent, InsertError, SEGMENT_EXTENTS_MAX, Slot, Times, layout::Place,
    memory::prefetch, slot::Needle,
};

/// Entries an extent takes before its segment grows: a load of 0.89. Higher saves memory and costs time: how many entries an
/// insert shifts grows with 1 / (1 - load)^2.
const EXTENT_ENTRIES_MAX: usize = 911;

/// Slots at a segment's end that are nobody's home, so that the last entries have room to be shifted to.
const TAIL_SLOTS: usize = 32;

/// Slots in a cache line.
const LINE_SLOTS: usize = 64 / size_of::<Slot>();

/// A table of slots; see the [module](super) for its shape and invariants.
#[derive(Debug)]
pub(super) struct Segment {
    extents: [Option<Extent>; SEGMENT_EXTENTS_MAX],
    extent_count: u32,
    entries: u32,
    /// Slots that can be a home.
    home_slots: u32,
    /// How many of the phase's fraction bits pick this segment.
    depth: u32,
    /// No entry expires before this second. A lower bound: an entry that lives longer now may have set it.
    soonest_expiry: u32,
}

/// Where a slot is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Position {
    extent: usize,
    slot: usize,
}

/// What a probe found.
#[derive(Debug, Clone, Copy)]
pub(super) enum Probe {
    /// The fingerprint's entry.
    Found(Position, Slot),
    /// Where the entry would have to go.
    Vacant(Position),
}

/// How many extents so many entries take; with room for at least one more, unless there are none.
pub(super) const fn extents_for(entries: usize) -> usize {
    if entries == 0 {
        0
    } else {
        entries / EXTENT_ENTRIES_MAX + 1
    }
}

impl Segment {
    /// An empty segment, which takes no memory.
    pub(super) fn new(depth: u32) -> Self {
        Self {
            extents: Default::default(),
            extent_count: 0,
            entries: 0,
            home_slots: 0,
            depth,
            soonest_expiry: u32::MAX,
        }
    }

    #[inline]
    pub(super) const fn depth(&self) -> u32 {
        self.depth
    }

    pub(super) const fn entries(&self) -> usize {
        self.entries as usize
    }

    pub(super) const fn extent_count(&self) -> usize {
        self.extent_count as usize
    }

    /// Whether one more entry needs more room first.
    #[inline]
    pub(super) const fn is_full(&self) -> bool {
        self.entries() >= self.extent_count() * EXTENT_ENTRIES_MAX
    }

    #[inline]
    fn home(&self, place: Place) -> Position {
        let home = place.home(self.depth, self.home_slots as usize);
        Position {
            extent: home / EXTENT_SLOTS,
            slot: home % EXTENT_SLOTS,
        }
    }

    /// Starts fetching `lines` cache lines from the key's home on.
    #[inline]
    pub(super) fn prefetch(&self, place: Place, lines: usize) {
        let home = self.home(place);
        if let Some(Some(extent)) = self.extents.get(home.extent) {
            for line in 0..lines {
                // Behind the extent's end: its last line once more, which costs nothing.
                prefetch(&extent[(home.slot + line * LINE_SLOTS).min(EXTENT_SLOTS - 1)]);
            }
        }
    }

    /// Looks `needle` up from its home on.
    #[inline]
    pub(super) fn probe(&self, needle: Needle, place: Place) -> Probe {
        let home = self.home(place);
        let mut first = home.slot;
        for (index, extent) in self.extents.iter().enumerate().skip(home.extent) {
            let Some(extent) = extent else {
                return Probe::Vacant(Position {
                    extent: index,
                    slot: first,
                });
            };
            for (offset, slot) in extent[first..].iter().enumerate() {
                if needle.stops_at(*slot) {
                    let position = Position {
                        extent: index,
                        slot: first + offset,
                    };
                    return if needle.is_in(*slot) {
                        Probe::Found(position, *slot)
                    } else {
                        Probe::Vacant(position)
                    };
                }
            }
            first = 0;
        }
        Probe::Vacant(Position {
            extent: SEGMENT_EXTENTS_MAX,
            slot: 0,
        })
    }

    /// Overwrites the entry at `position` with one of the same fingerprint.
    #[inline]
    pub(super) fn replace(&mut self, position: Position, slot: Slot) {
        if let Some(extent) = &mut self.extents[position.extent] {
            debug_assert_eq!(extent[position.slot].fingerprint(), slot.fingerprint());
            extent[position.slot] = slot;
        }
    }

    /// Puts an entry at a vacant position and shifts those behind it. False, and nothing changed, when no slot is empty from
    /// there to the end.
    #[inline]
    pub(super) fn insert(&mut self, at: Position, slot: Slot) -> bool {
        let Some(Some(extent)) = self.extents.get_mut(at.extent) else {
            return false;
        };
        if let Some(run) = first_empty(&extent[at.slot..]) {
            extent.copy_within(at.slot..at.slot + run, at.slot + 1);
            extent[at.slot] = slot;
        } else if !self.insert_across_extents(at, slot) {
            return false;
        }
        self.entries += 1;
        self.soonest_expiry = self.soonest_expiry.min(slot.expiry_seconds());
        true
    }

    /// As `insert`, where the run of entries reaches into the next extents.
    #[cold]
    fn insert_across_extents(&mut self, at: Position, slot: Slot) -> bool {
        let behind = self.extents[at.extent + 1..]
            .iter()
            .map_while(Option::as_ref)
            .enumerate();
        let end = behind.filter_map(|(index, extent)| {
            first_empty(&extent[..]).map(|run| Position {
                extent: at.extent + 1 + index,
                slot: run,
            })
        });
        let Some(end) = end.into_iter().next() else {
            return false;
        };
        let mut carried = slot;
        let mut first = at.slot;
        let shifted = self.extents[at.extent..=end.extent]
            .iter_mut()
            .map_while(Option::as_mut);
        for (index, extent) in shifted.enumerate() {
            let last = if at.extent + index == end.extent {
                end.slot
            } else {
                EXTENT_SLOTS - 1
            };
            let pushed_out = extent[last];
            extent.copy_within(first..last, first + 1);
            extent[first] = carried;
            carried = pushed_out;
            first = 0;
        }
        debug_assert!(carried.is_empty());
        true
    }

    /// How many entries there are that may not be purged.
    pub(super) fn kept(&self, times: Times) -> usize {
        if times.purges(self.soonest_expiry) {
            self.iter()
                .filter(|slot| !times.purges(slot.expiry_seconds()))
                .count()
        } else {
            self.entries()
        }
    }

    /// Calls `visit` with each entry, in order, until it returns false. False if it did.
    #[inline]
    pub(super) fn visit(&self, mut visit: impl FnMut(Slot) -> bool) -> bool {
        self.extents
            .iter()
            .map_while(Option::as_ref)
            .all(|extent| extent.iter().all(|slot| slot.is_empty() || visit(*slot)))
    }

    /// As `visit`, with the entries at or behind the home of `place`.
    pub(super) fn visit_from(&self, place: Place, mut visit: impl FnMut(Slot) -> bool) -> bool {
        let home = self.home(place);
        let mut first = home.slot;
        let behind = self.extents.iter().map_while(Option::as_ref);
        behind.skip(home.extent).all(|extent| {
            let slots = &extent[std::mem::take(&mut first)..];
            slots.iter().all(|slot| slot.is_empty() || visit(*slot))
        })
    }

    /// The entries in fingerprint order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Slot> + '_ {
        let extents = self.extents.iter().map_while(Option::as_ref);
        extents
            .flat_map(|extent| extent.iter().copied())
            .filter(|slot| !slot.is_empty())
    }

    /// Gives all extents back; the segment is empty then.
    pub(super) fn clear(&mut self, arena: &Arena) {
        arena.give_back(self.extents.iter_mut().filter_map(Option::take));
        *self = Self::new(self.depth);
    }
}

/// A segment in the making: entries are laid out one after the other, in order, into fresh extents.
///
/// A rebuild never works in place: until it has succeeded, the old segment stays as it was.
pub(super) struct Builder<'a> {
    segment: Segment,
    /// The first slot behind the last entry, counted over all extents.
    end: usize,
    arena: &'a Arena,
}

impl<'a> Builder<'a> {
    /// A segment with `extent_count` extents.
    ///
    /// # Errors
    /// When there is no memory for them.
    pub(super) fn new(
        depth: u32,
        extent_count: usize,
        arena: &'a Arena,
    ) -> Result<Self, InsertError> {
        let mut builder = Self {
            segment: Segment::new(depth),
            end: 0,
            arena,
        };
        for extent in &mut builder.segment.extents[..extent_count] {
            // On an error the drop gives back what was taken so far.
            let taken = arena.take()?;
            taken.fill(Slot::EMPTY);
            *extent = Some(taken);
        }
        builder.segment.extent_count = extent_count as u32;
        builder.segment.home_slots =
            (extent_count * EXTENT_SLOTS).saturating_sub(TAIL_SLOTS) as u32;
        Ok(builder)
    }

    /// Lays out one more entry. False when it would have to lie behind the end: the segment needs more extents.
    #[inline]
    pub(super) fn push(&mut self, slot: Slot, place: Place) -> bool {
        let home = place.home(self.segment.depth, self.segment.home_slots as usize);
        let at = home.max(self.end);
        let Some(Some(extent)) = self.segment.extents.get_mut(at / EXTENT_SLOTS) else {
            return false;
        };
        extent[at % EXTENT_SLOTS] = slot;
        self.end = at + 1;
        self.segment.entries += 1;
        self.segment.soonest_expiry = self.segment.soonest_expiry.min(slot.expiry_seconds());
        true
    }

    /// The segment with what was laid out.
    pub(super) fn finish(mut self) -> Segment {
        std::mem::replace(&mut self.segment, Segment::new(0))
    }
}

impl Drop for Builder<'_> {
    fn drop(&mut self) {
        self.segment.clear(self.arena);
    }
}

/// The index of the first empty slot.
#[inline]
fn first_empty(slots: &[Slot]) -> Option<usize> {
    slots.iter().position(|slot| slot.is_empty())
}

#[cfg(test)]
impl Segment {
    /// Asserts what must hold between calls.
    pub(super) fn check(&self, place: impl Fn(Slot) -> Place) {
        let slots: Vec<Slot> = self
            .extents
            .iter()
            .flatten()
            .flat_map(|extent| extent.iter().copied())
            .collect();
        assert_eq!(slots.len(), self.extent_count() * EXTENT_SLOTS);
        assert_eq!(
            slots.iter().filter(|slot| !slot.is_empty()).count(),
            self.entries()
        );
        assert!(
            self.iter()
                .is_sorted_by(|a, b| a.fingerprint() < b.fingerprint()),
            "entries ascend"
        );
        for (index, slot) in slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| !slot.is_empty())
        {
            let home = place(*slot).home(self.depth, self.home_slots as usize);
            assert!(home <= index, "no entry lies before its home");
            assert!(
                slots[home..index].iter().all(|slot| !slot.is_empty()),
                "no gap behind a home"
            );
        }
    }
}
