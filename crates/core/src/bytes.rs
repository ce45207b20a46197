//! Reading and writing of numbers in files: little-endian, or as LEB128 varints.

/// Reads from the front of bytes that nobody vouches for: whatever is missing is `None`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// What was not read yet.
    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(crate) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A varint; `None` as well when it does not fit.
    pub(crate) fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return None;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
}

/// The most bytes that [`push_varint`] appends.
pub(crate) const VARINT_BYTES_MAX: usize = 10;

/// Appends 7 bits a byte, the lowest first; all bytes but the last have their top bit set.
#[inline]
pub(crate) fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_varint_reads_back(value: u64, shift in 0_u32..64) {
            let mut bytes = Vec::new();
            push_varint(&mut bytes, value >> shift);
            prop_assert!(bytes.len() <= VARINT_BYTES_MAX);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.varint(), Some(value >> shift));
            prop_assert!(reader.rest().is_empty());
            prop_assert_eq!(Reader::new(&bytes[..bytes.len() - 1]).varint(), None);
        }
    }

    #[test]
    fn a_varint_of_more_than_64_bits_is_none() {
        assert_eq!(Reader::new(&[0xff; 11]).varint(), None);
        let mut bytes = [0xff; 10];
        bytes[9] = 1;
        assert_eq!(Reader::new(&bytes).varint(), Some(u64::MAX));
        bytes[9] = 2;
        assert_eq!(Reader::new(&bytes).varint(), None);
    }
}
