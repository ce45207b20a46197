//! Keys by number: 36 bytes that look like a random UUID.

/// The length of a key.
pub(crate) const KEY_BYTES: usize = 36;

/// One key.
pub(crate) type Key = [u8; KEY_BYTES];

/// Numbers from here on are never stored.
pub(crate) const ABSENT: u64 = 1 << 63;

/// The two hex digits of each byte.
const HEX: [[u8; 2]; 256] = {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut table = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = [DIGITS[byte >> 4], DIGITS[byte & 15]];
        byte += 1;
    }
    table
};

/// Spreads the bits of a number over all 64, one to one
/// (the finaliser of SplitMix64, <https://prng.di.unimi.it/splitmix64.c>).
#[inline]
pub(crate) const fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Writes key `number` of a seed. Different numbers of a seed give different keys.
#[inline]
pub(crate) fn write(seed: u64, number: u64, key: &mut Key) {
    let high = mixed(seed ^ mixed(number));
    let low = mixed(high ^ seed);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&high.to_be_bytes());
    bytes[8..].copy_from_slice(&low.to_be_bytes());
    // 8-4-4-4-12 digits.
    const AT: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
    for (byte, at) in bytes.into_iter().zip(AT) {
        key[at..at + 2].copy_from_slice(&HEX[usize::from(byte)]);
    }
    for at in [8, 13, 18, 23] {
        key[at] = b'-';
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn key(seed: u64, number: u64) -> Key {
        let mut key = [0; KEY_BYTES];
        write(seed, number, &mut key);
        key
    }

    #[test]
    fn keys_look_like_uuids_and_differ_by_number_and_seed() {
        let text = String::from_utf8(key(1, 2).to_vec()).unwrap();
        let groups: Vec<usize> = text.split('-').map(str::len).collect();
        assert_eq!(groups, [8, 4, 4, 4, 12], "{text}");
        assert!(
            text.bytes()
                .all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
        );
        assert_eq!(key(1, 2), key(1, 2));
        let different: HashSet<Key> = (0..10_000)
            .flat_map(|number| [key(1, number), key(2, number), key(1, number | ABSENT)])
            .collect();
        assert_eq!(different.len(), 30_000);
    }
}
