//! Fingerprints as gaps: Rice codes, in one stream of bits.
//!
//! Hashes are uniform, so the gaps between sorted ones are distributed geometrically, for which Rice's code (a fixed number of low
//! bits, and the rest in unary) is within 0.12 bits of the least possible, at any density. A gap is less 1: equal fingerprints
//! cannot be written. Bits are taken from bytes lowest first.

use crate::Fingerprint;

/// The most low bits that a code can have.
const PARAMETER_MAX: u32 = 95;

/// Bits that are written at once.
const WORD_BITS: u32 = u32::BITS;

/// Appends the gaps between `fingerprints`, which ascend, and returns how many low bits each code has. There is at least one
/// fingerprint; the first is not written.
pub(super) fn encode(
    first: Fingerprint,
    last: Fingerprint,
    fingerprints: impl ExactSizeIterator<Item = Fingerprint>,
    out: &mut Vec<u8>,
) -> u8 {
    let parameter = parameter(first, last, fingerprints.len());
    let low_mask = (1_u128 << parameter) - 1;
    let mut pending = 0_u128;
    let mut pending_bits = 0;
    // At most 31 bits are pending before, and a code's low part has at most 95.
    let mut put = |bits: u128, count: u32| {
        pending |= bits << pending_bits;
        pending_bits += count;
        while pending_bits >= WORD_BITS {
            out.extend_from_slice(&(pending as u32).to_le_bytes());
            pending >>= WORD_BITS;
            pending_bits -= WORD_BITS;
        }
    };
    let mut previous = first.as_u128();
    for fingerprint in fingerprints.skip(1) {
        let gap = fingerprint.as_u128() - previous - 1;
        previous = fingerprint.as_u128();
        put(gap & low_mask, parameter);
        let mut ones = gap >> parameter;
        while ones >= u128::from(WORD_BITS) {
            put(u128::from(u32::MAX), WORD_BITS);
            ones -= u128::from(WORD_BITS);
        }
        put((1 << ones) - 1, ones as u32 + 1);
    }
    let rest_bytes = pending_bits.div_ceil(8) as usize;
    out.extend_from_slice(&pending.to_le_bytes()[..rest_bytes]);
    parameter as u8
}

/// The number of low bits that makes the codes shortest. So many that 2^bits is at most 0.96 of the mean gap: from there on, one
/// more bit would cost more than it saves. It also bounds the unary parts of all codes together to about two bits a code,
/// whatever the fingerprints.
fn parameter(first: Fingerprint, last: Fingerprint, count: usize) -> u32 {
    let gaps = count.saturating_sub(1).max(1) as u128;
    let mean = (last.as_u128() - first.as_u128()) / gaps;
    (mean - mean / 25).max(1).ilog2()
}

/// A stream of gaps that nobody vouches for.
pub(super) struct Gaps<'a> {
    bytes: &'a [u8],
    at_bit: usize,
    parameter: u32,
    previous: u128,
}

impl<'a> Gaps<'a> {
    /// Of the fingerprints behind `first`; `None` when no code has so many low bits.
    pub(super) fn new(first: Fingerprint, parameter: u8, bytes: &'a [u8]) -> Option<Self> {
        let parameter = u32::from(parameter);
        (parameter <= PARAMETER_MAX).then_some(Self {
            bytes,
            at_bit: 0,
            parameter,
            previous: first.as_u128(),
        })
    }

    /// The next fingerprint; `None` when it would lie beyond `last`, or the bits run out in its unary part. Zeros are read behind
    /// the end, which [`is_at_end`](Self::is_at_end) notices.
    #[inline]
    pub(super) fn next(&mut self, last: u128) -> Option<u128> {
        let word = self.word();
        let low = word & ((1 << self.parameter) - 1);
        let mut valid_bits = u128::BITS - 7 - self.parameter;
        let mut ones = (word >> self.parameter).trailing_ones().min(valid_bits);
        self.at_bit += self.parameter as usize + ones as usize;
        let mut high = u128::from(ones);
        while ones == valid_bits {
            valid_bits = u128::BITS - 7;
            ones = self.word().trailing_ones().min(valid_bits);
            self.at_bit += ones as usize;
            high += u128::from(ones);
        }
        self.at_bit += 1;
        // The stream is far shorter than 2^32 bits, and `parameter` is below 96.
        let gap = (high << self.parameter) + low;
        let value = self.previous + gap + 1;
        self.previous = value;
        (value <= last).then_some(value)
    }

    /// Whether exactly all bytes were used.
    pub(super) fn is_at_end(&self) -> bool {
        self.at_bit.div_ceil(8) == self.bytes.len()
            && (self.at_bit.is_multiple_of(8)
                || self
                    .bytes
                    .last()
                    .is_some_and(|last| last >> (self.at_bit % 8) == 0))
    }

    /// At least 121 bits from here on, zeros behind the end.
    #[inline]
    fn word(&self) -> u128 {
        let rest = self.bytes.get(self.at_bit / 8..).unwrap_or_default();
        let word = match rest.first_chunk() {
            Some(chunk) => u128::from_le_bytes(*chunk),
            None => {
                let mut padded = [0; size_of::<u128>()];
                padded[..rest.len()].copy_from_slice(rest);
                u128::from_le_bytes(padded)
            }
        };
        word >> (self.at_bit % 8)
    }
}
