//! Where a fingerprint's segment and home slot are.
//!
//! A range's top bits are stretched to a *position* of 64 bits, and the position's top byte picks one of 8 **phases**, whose
//! widths are a ratio of 2^(1/8) apart. The offset in the phase is stretched to 64 bits again: its top bits are the index into the
//! phase's directory, as in extendible hashing (Fagin et al., ACM TODS 4/3, 1979), and the bits behind a segment's own depth are
//! the part of the segment at which the key is at home.
//!
//! All of it is monotone, so slots are in fingerprint order, and exact under splitting: the two halves of a segment are the two
//! values of one more bit.

use crate::HashRange;

pub(super) const PHASES: usize = 8;

/// The phases' widths in 256ths of the range: 23 × 2^(i/8), rounded so that they add up.
const PHASE_WIDTHS: [u8; PHASES] = [23, 25, 28, 30, 33, 36, 39, 42];

struct Phase {
    start: u64,
    /// 2^68 / width: `offset × stretch >> 60` maps the phase's offsets to all of 64 bits.
    stretch: u64,
}

const PHASE_TABLE: [Phase; PHASES] = {
    let mut table = [const {
        Phase {
            start: 0,
            stretch: 0,
        }
    }; PHASES];
    let (mut phase, mut start) = (0, 0_u64);
    while phase < PHASES {
        let width = PHASE_WIDTHS[phase] as u64;
        table[phase] = Phase {
            start: start << 56,
            stretch: ((1_u128 << 68) / width as u128) as u64,
        };
        start += width;
        phase += 1;
    }
    assert!(start == 256);
    table
};

const PHASE_OF_TOP_BYTE: [u8; 256] = {
    let mut table = [0; 256];
    let (mut byte, mut phase) = (0, 0);
    let mut end = PHASE_WIDTHS[0] as usize;
    while byte < table.len() {
        if byte == end {
            phase += 1;
            end += PHASE_WIDTHS[phase] as usize;
        }
        table[byte] = phase as u8;
        byte += 1;
    }
    table
};

/// The mapping for one range.
#[derive(Debug)]
pub(super) struct Layout {
    start: u64,
    shift: u32,
    /// 2^127 / (range width << shift), so that `(offset << shift) × stretch >> 63` maps the range's offsets to all of 64 bits.
    stretch: u64,
}

/// A place in a phase, as a 64-bit fraction of the phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Place {
    pub(super) phase: usize,
    pub(super) fraction: u64,
}

impl Layout {
    pub(super) const fn new(range: HashRange) -> Self {
        let last_offset = range.last() - range.start();
        // Chosen so that the width, shifted, lies in (2^63, 2^64]: the stretch then fits 64 bits. A range of one value has only
        // the offset 0, which every stretch maps to 0.
        let shift = if last_offset == 0 {
            0
        } else {
            last_offset.leading_zeros()
        };
        let width = (last_offset as u128 + 1) << shift;
        let stretch = if last_offset == 0 {
            0
        } else {
            ((1_u128 << 127) / width) as u64
        };
        Self {
            start: range.start(),
            shift,
            stretch,
        }
    }

    /// The place of a fingerprint with these top 64 bits.
    #[inline]
    pub(super) const fn place(&self, top: u64) -> Place {
        // For a fingerprint outside of the range this gives some place: wrong, but a place.
        let offset = top.wrapping_sub(self.start) << self.shift;
        let position = ((offset as u128 * self.stretch as u128) >> 63) as u64;
        let phase = PHASE_OF_TOP_BYTE[(position >> 56) as usize] as usize;
        let Phase { start, stretch } = PHASE_TABLE[phase];
        let fraction = (((position - start) as u128 * stretch as u128) >> 60) as u64;
        Place { phase, fraction }
    }
}

impl Place {
    /// The index into a directory of 2^`depth` entries.
    #[inline]
    pub(super) const fn directory_index(self, depth: u32) -> usize {
        ((self.fraction >> 1) >> (63 - depth)) as usize
    }

    /// Whether a segment of this depth that `other` lies in has this place as well.
    #[inline]
    pub(super) const fn is_in_same_segment(self, other: Self, depth: u32) -> bool {
        self.phase == other.phase && ((self.fraction ^ other.fraction) >> 1) >> (63 - depth) == 0
    }

    /// The home slot in a segment of this depth that has `home_slots` of them.
    #[inline]
    pub(super) const fn home(self, depth: u32, home_slots: usize) -> usize {
        (((self.fraction << depth) as u128 * home_slots as u128) >> 64) as usize
    }

    /// Which half of a segment of this depth the place lies in.
    #[inline]
    pub(super) const fn is_upper_half(self, depth: u32) -> bool {
        self.fraction << depth >> 63 == 1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_phases_are_an_eighth_of_an_octave_apart() {
        for (index, width) in PHASE_WIDTHS.iter().enumerate() {
            let ideal = f64::from(PHASE_WIDTHS[0]) * 2_f64.powf(index as f64 / 8.0);
            assert!(
                (f64::from(*width) - ideal).abs() < 0.75,
                "{width} for {ideal}"
            );
        }
    }

    proptest! {
        #[test]
        fn places_ascend_with_fingerprints_and_fill_the_phases(bounds in any::<(u64, u64)>(), a: u64, b: u64) {
            let range = HashRange::new(bounds.0.min(bounds.1), bounds.0.max(bounds.1)).unwrap();
            let layout = Layout::new(range);
            let inside = |value: u64| match (range.last() - range.start()).checked_add(1) {
                Some(width) => range.start() + value % width,
                None => value,
            };
            let (low, high) = (inside(a).min(inside(b)), inside(a).max(inside(b)));
            prop_assert!(layout.place(low) <= layout.place(high));
            prop_assert_eq!(layout.place(range.start()), Place { phase: 0, fraction: 0 });
            if range.last() - range.start() > 1 << 20 {
                let last = layout.place(range.last());
                prop_assert!(last.phase == PHASES - 1 && last.fraction > u64::MAX - (u64::MAX >> 12));
            }
        }

        #[test]
        fn a_split_keeps_the_order_of_homes(fraction: u64, depth in 0_u32..20, home_slots in 1_usize..8192) {
            let place = Place { phase: 0, fraction };
            prop_assert_eq!(place.directory_index(depth + 1) % 2 == 1, place.is_upper_half(depth));
            prop_assert_eq!(place.directory_index(depth + 1) / 2, place.directory_index(depth));
            prop_assert!(place.home(depth, home_slots) < home_slots);
        }
    }
}
