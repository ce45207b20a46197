//! What stands for a key: the top 96 bits of XXH3-128 under the cluster's seed.
//!
//! The hash is XXH3-128 with a 64-bit seed as <https://github.com/Cyan4973/xxHash> (`doc/xxhash_spec.md`) defines it. On the
//! wire and in files a fingerprint is 12 bytes, big-endian, so that byte order is fingerprint order.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 65_536;

/// The size of a packed fingerprint, in bytes.
pub const FINGERPRINT_BYTES: usize = 12;

/// A 96-bit fingerprint. Ordered as a number, which is also the order of its packed bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(u128);

/// Why a key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The key has no bytes. Nearly always an event whose id is missing.
    #[error("the key is empty; a key has 1 to {KEY_BYTES_MAX} bytes")]
    Empty,
    /// The key is longer than [`KEY_BYTES_MAX`].
    #[error("the key has {length} bytes; a key has 1 to {KEY_BYTES_MAX} bytes")]
    TooLong {
        /// The key's length in bytes.
        length: usize,
    },
}

impl Fingerprint {
    /// The smallest one.
    pub const MIN: Self = Self(0);

    /// The largest one.
    pub const MAX: Self = Self((1 << 96) - 1);

    /// The fingerprint of `key` under `seed`.
    ///
    /// # Errors
    /// When the key is empty or longer than [`KEY_BYTES_MAX`].
    #[inline]
    pub fn of(key: &[u8], seed: HashSeed) -> Result<Self, KeyError> {
        match key.len() {
            0 => Err(KeyError::Empty),
            1..=KEY_BYTES_MAX => Ok(Self(xxh3_128_with_seed(key, seed.0) >> 32)),
            length => Err(KeyError::TooLong { length }),
        }
    }

    /// From its top 64 and low 32 bits.
    #[inline]
    pub const fn from_parts(top: u64, low: u32) -> Self {
        Self(((top as u128) << 32) | low as u128)
    }

    /// The top 64 bits: what decides the hash range.
    #[inline]
    pub const fn top(self) -> u64 {
        (self.0 >> 32) as u64
    }

    /// The low 32 bits.
    #[inline]
    pub const fn low(self) -> u32 {
        self.0 as u32
    }

    /// The fingerprint as a number below 2^96.
    #[inline]
    pub const fn as_u128(self) -> u128 {
        self.0
    }

    /// The next larger one; `None` for [`MAX`](Self::MAX).
    pub const fn successor(self) -> Option<Self> {
        if self.0 == Self::MAX.0 {
            None
        } else {
            Some(Self(self.0 + 1))
        }
    }

    /// The packed form: 12 bytes, big-endian.
    #[inline]
    pub fn to_bytes(self) -> [u8; FINGERPRINT_BYTES] {
        let mut out = [0; FINGERPRINT_BYTES];
        out[..8].copy_from_slice(&self.top().to_be_bytes());
        out[8..].copy_from_slice(&self.low().to_be_bytes());
        out
    }

    /// From the packed form.
    #[inline]
    pub fn from_bytes(bytes: &[u8; FINGERPRINT_BYTES]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *bytes;
        Self::from_parts(
            u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            u32::from_be_bytes([i, j, k, l]),
        )
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:024x}", self.0)
    }
}

/// The seed of a cluster's hash: random per cluster, so that outsiders cannot prepare collisions. Written as 16 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HashSeed(u64);

impl HashSeed {
    /// A seed of the given value.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The seed as a number: for formats that must carry the seed itself.
    pub(crate) const fn value(self) -> u64 {
        self.0
    }

    /// What tells this seed from others without giving it away: files of another cluster are recognised by it. The first 8 bytes,
    /// little-endian, of SHA-256 over `keydb hash seed` and the seed as 8 bytes, little-endian.
    pub fn digest(self) -> u64 {
        first_8_bytes(
            Sha256::new()
                .chain_update(b"keydb hash seed")
                .chain_update(self.0.to_le_bytes()),
        )
    }
}

impl fmt::Display for HashSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for HashSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whoever holds the seed can prepare collisions: keep it out of logs.
        f.write_str("HashSeed(…)")
    }
}

impl From<HashSeed> for String {
    fn from(seed: HashSeed) -> Self {
        seed.to_string()
    }
}

impl TryFrom<String> for HashSeed {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let error = "the hash seed is not 16 hex digits";
        if text.len() != 16 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(error);
        }
        u64::from_str_radix(&text, 16).map(Self).map_err(|_| error)
    }
}

/// The first 8 bytes of what was hashed, little-endian.
pub(crate) fn first_8_bytes(hashed: Sha256) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = hashed.finalize().0;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// A view of fingerprints that lie packed one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedFingerprints<'a>(&'a [[u8; FINGERPRINT_BYTES]]);

/// The bytes are not a whole number of fingerprints.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the fingerprints have {length} bytes, which is not a multiple of {FINGERPRINT_BYTES}")]
pub struct PackedLengthError {
    /// How many bytes there are.
    pub length: usize,
}

impl<'a> PackedFingerprints<'a> {
    /// Views `bytes` as fingerprints.
    ///
    /// # Errors
    /// When the length is not a multiple of [`FINGERPRINT_BYTES`].
    pub fn new(bytes: &'a [u8]) -> Result<Self, PackedLengthError> {
        match bytes.as_chunks() {
            (fingerprints, []) => Ok(Self(fingerprints)),
            _ => Err(PackedLengthError {
                length: bytes.len(),
            }),
        }
    }

    /// How many fingerprints.
    pub const fn len(self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub const fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// The fingerprint at `index`, which must be below [`len`](Self::len).
    #[inline]
    pub fn get(self, index: usize) -> Fingerprint {
        Fingerprint::from_bytes(&self.0[index])
    }

    /// The packed bytes.
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0.as_flattened()
    }

    /// The fingerprints from `start` up to, not including, `end`.
    pub fn slice(self, start: usize, end: usize) -> Self {
        Self(&self.0[start..end])
    }

    /// The fingerprints in order.
    #[inline]
    pub fn iter(self) -> impl ExactSizeIterator<Item = Fingerprint> + 'a {
        self.0.iter().map(Fingerprint::from_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with the C library's Python binding (xxhash 4.1.0, `xxh3_128_hexdigest(key, seed)`), first 24 digits.
    const VECTORS: &[(&[u8], u64, &str)] = include!("fingerprint_vectors.in");

    /// Likewise, seed 42, keys of bytes `i % 251`: the lengths at which XXH3 changes its way of hashing, and the longest key.
    const BY_LENGTH: &[(usize, &str)] = &[
        (240, "8e76dd8a173ddbc5ba3788eb"),
        (241, "d591e680c65b77ff26e3d358"),
        (1024, "832903ce8ee6dbb5b0e3ba3f"),
        (KEY_BYTES_MAX, "615f0a3fd3935a54d8ae1ac5"),
    ];

    #[test]
    fn fingerprints_equal_those_of_the_reference_implementation() {
        for (key, seed, expected) in VECTORS {
            let fingerprint = Fingerprint::of(key, HashSeed::new(*seed)).unwrap();
            assert_eq!(
                format!("{fingerprint:?}"),
                *expected,
                "{} bytes, seed {seed:x}",
                key.len()
            );
        }
        for (length, expected) in BY_LENGTH {
            let key: Vec<u8> = (0..*length).map(|index| (index % 251) as u8).collect();
            let fingerprint = Fingerprint::of(&key, HashSeed::new(42)).unwrap();
            assert_eq!(format!("{fingerprint:?}"), *expected, "{length} bytes");
        }
    }

    #[test]
    fn an_empty_and_an_overlong_key_are_refused() {
        let seed = HashSeed::new(0);
        assert_eq!(Fingerprint::of(b"", seed), Err(KeyError::Empty));
        let long = vec![b'x'; KEY_BYTES_MAX + 1];
        assert_eq!(
            Fingerprint::of(&long, seed),
            Err(KeyError::TooLong {
                length: KEY_BYTES_MAX + 1
            })
        );
        assert!(Fingerprint::of(&long[1..], seed).is_ok());
    }

    #[test]
    fn packed_order_is_numerical_order() {
        let a = Fingerprint::from_parts(1, u32::MAX);
        let b = Fingerprint::from_parts(2, 0);
        assert!(a < b && a.to_bytes() < b.to_bytes());
        assert_eq!(Fingerprint::from_bytes(&a.to_bytes()), a);
    }

    #[test]
    fn a_length_that_is_not_a_multiple_of_twelve_is_refused() {
        assert_eq!(
            PackedFingerprints::new(&[0; 13]).map(|_| ()),
            Err(PackedLengthError { length: 13 })
        );
        assert_eq!(PackedFingerprints::new(&[0; 24]).unwrap().len(), 2);
    }

    #[test]
    fn a_seed_is_sixteen_hex_digits_and_hidden_in_debug_output() {
        let seed = HashSeed::try_from("00000000000000ff".to_owned()).unwrap();
        assert_eq!(seed, HashSeed::new(255));
        assert!(HashSeed::try_from("ff".to_owned()).is_err());
        assert!(HashSeed::try_from("+0000000000000ff".to_owned()).is_err());
        assert!(!format!("{seed:?}").contains("ff"));
    }

    #[test]
    fn the_digest_of_a_seed_is_the_documented_one() {
        // printf 'keydb hash seed\xff\0\0\0\0\0\0\0' | sha256sum
        assert_eq!(
            HashSeed::new(255).digest().to_le_bytes(),
            [0x2b, 0x71, 0xff, 0xed, 0xb6, 0x29, 0x4c, 0x45]
        );
    }
}
