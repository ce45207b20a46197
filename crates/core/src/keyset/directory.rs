//! One phase's directory: which segment holds which part of the phase.

use super::InsertError;

/// A directory may have this many entries for each segment. Those of uniform fingerprints stay far below.
const ENTRIES_PER_SEGMENT_MAX: usize = 64;

/// And this many in any case: fingerprints that come in ascending order need all of a directory's depth before its upper half has
/// segments of its own.
const ENTRIES_MAX: usize = 8192;

/// 2^depth segment numbers. A segment of depth d stands in 2^(depth - d) neighbouring entries.
#[derive(Debug)]
pub(super) struct Directory {
    depth: u32,
    numbers: Vec<u32>,
    segment_count: usize,
}

impl Directory {
    /// With one segment, of depth 0.
    pub(super) fn new(segment: usize) -> Self {
        Self {
            depth: 0,
            numbers: vec![segment as u32],
            segment_count: 1,
        }
    }

    #[inline]
    pub(super) const fn depth(&self) -> u32 {
        self.depth
    }

    /// The segment at `index`, which must be below 2^depth.
    #[inline]
    pub(super) fn segment(&self, index: usize) -> usize {
        self.numbers[index] as usize
    }

    /// How many entries there are: 2^depth.
    pub(super) const fn len(&self) -> usize {
        self.numbers.len()
    }

    pub(super) const fn memory_bytes(&self) -> usize {
        self.numbers.capacity() * size_of::<u32>()
    }

    /// The indexes at which the segment of `depth` that stands at `index` does.
    pub(super) const fn span(&self, index: usize, depth: u32) -> std::ops::Range<usize> {
        let width = 1 << (self.depth - depth);
        let start = index & !(width - 1);
        start..start + width
    }

    /// Makes sure that a segment of `depth` can be split.
    ///
    /// # Errors
    /// When the directory would become large for its segments.
    pub(super) fn make_room_for_split(&mut self, depth: u32) -> Result<(), InsertError> {
        if depth < self.depth {
            return Ok(());
        }
        let entries_max = ENTRIES_MAX.max((self.segment_count + 1) * ENTRIES_PER_SEGMENT_MAX);
        if self.numbers.len() * 2 > entries_max {
            return Err(InsertError::Skewed);
        }
        self.numbers = self
            .numbers
            .iter()
            .flat_map(|number| [*number; 2])
            .collect();
        self.depth += 1;
        Ok(())
    }

    /// The upper half of `span` is from now on `upper`'s.
    pub(super) fn split(&mut self, span: std::ops::Range<usize>, upper: usize) {
        debug_assert!(span.len() >= 2, "make_room_for_split came first");
        let middle = span.start + span.len() / 2;
        self.numbers[middle..span.end].fill(upper as u32);
        self.segment_count += 1;
    }

    /// All of `span` is from now on one segment's.
    pub(super) fn merge(&mut self, span: std::ops::Range<usize>, segment: usize) {
        self.numbers[span].fill(segment as u32);
        self.segment_count -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_gets_deep_on_one_side_but_not_without_end() {
        let mut directory = Directory::new(0);
        let mut depth = 0;
        while directory.make_room_for_split(depth).is_ok() {
            directory.split(directory.span(0, depth), depth as usize + 1);
            depth += 1;
        }
        assert_eq!(directory.len(), ENTRIES_MAX);
    }
}
