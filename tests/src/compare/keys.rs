//! The keys that both stores get: 36-byte UUID texts, made before any clock runs.

/// The length of each key in bytes.
pub(crate) const KEY_BYTES: usize = 36;

/// Keys one after the other; a key is a function of its number alone.
pub(crate) struct Keys(Vec<u8>);

impl Keys {
    /// So many keys, one for each number in this order: they are read as a stream, as events come in.
    pub(crate) fn of(count: usize, number: impl Fn(u64) -> u64) -> Self {
        let mut bytes = Vec::with_capacity(count * KEY_BYTES);
        for number in (0..count as u64).map(number) {
            bytes.extend(uuid_text(mix(2 * number), mix(2 * number + 1)));
        }
        Self(bytes)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len() / KEY_BYTES
    }

    pub(crate) fn get(&self, index: usize) -> &[u8] {
        &self.0[index * KEY_BYTES..(index + 1) * KEY_BYTES]
    }

    pub(crate) fn range(&self, range: std::ops::Range<usize>) -> impl Iterator<Item = &[u8]> + '_ {
        self.0[range.start * KEY_BYTES..range.end * KEY_BYTES].chunks_exact(KEY_BYTES)
    }
}

/// SplitMix64's finaliser (Steele et al., OOPSLA 2014): a bijection, so no two numbers give the same key.
pub(crate) fn mix(number: u64) -> u64 {
    let mut x = number
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        .wrapping_add(0x1234_5678_9ABC_DEF1);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

fn uuid_text(high: u64, low: u64) -> [u8; KEY_BYTES] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut out = [b'-'; KEY_BYTES];
    let places = (0..KEY_BYTES).filter(|place| ![8, 13, 18, 23].contains(place));
    for (nibble, place) in places.enumerate() {
        let word = if nibble < 16 { high } else { low };
        out[place] = DIGITS[(word >> (60 - 4 * (nibble % 16)) & 15) as usize];
    }
    out
}
