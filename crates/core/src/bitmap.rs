//! One bit an answer.

use std::ops::Range;

/// So many bits lie in the eight bytes from the first one's on, wherever in its byte that is.
const WORD_BITS: usize = 56;

/// Bits in order, as they travel on the wire: bit `i` is bit `i % 8` (least significant first) of byte `i / 8`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bitmap {
    bytes: Vec<u8>,
    len: usize,
}

impl Bitmap {
    /// `len` bits, all off.
    pub fn new(len: usize) -> Self {
        Self {
            bytes: vec![0; len.div_ceil(8)],
            len,
        }
    }

    /// From wire bytes; `None` unless there are exactly as many bytes as `len` bits need, with nothing set behind them.
    pub fn from_bytes(bytes: Vec<u8>, len: usize) -> Option<Self> {
        let tail_clear =
            len.is_multiple_of(8) || bytes.last().is_some_and(|last| last >> (len % 8) == 0);
        (bytes.len() == len.div_ceil(8) && tail_clear).then_some(Self { bytes, len })
    }

    /// The wire bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// How many bits.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bits.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bit at `index`, which must be below [`len`](Self::len).
    #[inline]
    pub fn get(&self, index: usize) -> bool {
        debug_assert!(index < self.len);
        self.bytes[index / 8] >> (index % 8) & 1 == 1
    }

    /// Turns the bit at `index` on if `on` is true; never turns one off.
    #[inline]
    pub fn or(&mut self, index: usize, on: bool) {
        debug_assert!(index < self.len);
        self.bytes[index / 8] |= u8::from(on) << (index % 8);
    }

    /// Turns every bit off.
    pub fn clear(&mut self) {
        self.bytes.fill(0);
    }

    /// Whether any bit is on.
    pub fn any(&self) -> bool {
        self.bytes.iter().any(|byte| *byte != 0)
    }

    /// The bits at `start` and behind it, the first one least significant: 56 of them, zeros behind the end.
    #[inline]
    fn word(&self, start: usize) -> u64 {
        let from = self.bytes.get(start / 8..).unwrap_or_default();
        let mut word = [0; 8];
        match from.first_chunk() {
            Some(all) => word = *all,
            None => word[..from.len()].copy_from_slice(from),
        }
        u64::from_le_bytes(word) >> (start % 8)
    }

    /// The bits of `range`, some at a time: each time a word, the first one least significant, and how many bits it has.
    pub(crate) fn words(&self, range: Range<usize>) -> impl Iterator<Item = (u64, usize)> {
        debug_assert!(range.end <= self.len);
        let Range { start, end } = range;
        (start..end).step_by(WORD_BITS).map(move |at| {
            let count = WORD_BITS.min(end - at);
            (self.word(at) & ((1 << count) - 1), count)
        })
    }

    /// How many of the bits of `range` are on.
    #[inline]
    pub fn count_in(&self, range: Range<usize>) -> usize {
        let words = self.words(range);
        words.map(|(word, _)| word.count_ones() as usize).sum()
    }

    /// How many bits are on.
    pub fn count(&self) -> usize {
        self.bytes
            .iter()
            .map(|byte| byte.count_ones() as usize)
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_read_back_as_they_were_set() {
        let mut bits = Bitmap::new(11);
        for index in [0, 7, 8, 10] {
            bits.or(index, true);
        }
        bits.or(7, false);
        assert_eq!(bits.count(), 4);
        let back = Bitmap::from_bytes(bits.clone().into_bytes(), 11).unwrap();
        assert_eq!(back, bits);
        assert!(back.get(10) && !back.get(9));
    }

    #[test]
    fn the_bits_of_a_part_are_counted_wherever_it_begins_and_ends() {
        let mut bits = Bitmap::new(131);
        (0..131).step_by(3).for_each(|index| bits.or(index, true));
        for start in 0..131 {
            for end in start..=131 {
                let expected = (start..end).filter(|index| bits.get(*index)).count();
                assert_eq!(bits.count_in(start..end), expected, "{start}..{end}");
                let lengths = bits.words(start..end).map(|(_, count)| count);
                assert_eq!(lengths.sum::<usize>(), end - start);
            }
        }
    }

    #[test]
    fn bytes_of_the_wrong_length_or_with_stray_bits_are_refused() {
        assert!(Bitmap::from_bytes(vec![0; 2], 17).is_none());
        assert!(Bitmap::from_bytes(vec![0; 3], 16).is_none());
        assert!(Bitmap::from_bytes(vec![0b1000], 3).is_none());
        assert!(Bitmap::from_bytes(vec![0b111], 3).is_some());
        assert!(Bitmap::from_bytes(vec![], 0).is_some());
    }
}
