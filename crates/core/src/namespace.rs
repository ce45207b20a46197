//! Key spaces within a cluster.

use sha2::{Digest, Sha256};

use crate::{HashSeed, fingerprint::first_8_bytes};

/// The longest namespace, in bytes.
pub const NAMESPACE_BYTES_MAX: usize = 255;

/// A key space of its own: a key of one namespace is never taken for the same key of another. The default one has no name.
///
/// Only those who hash keys know of namespaces: each has a hash seed of its own, see [`HashSeed::in_namespace`]. Nodes, files and the
/// wire have fingerprints, of whichever namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Namespace(Box<[u8]>);

/// Why bytes cannot be a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the namespace has {length} bytes; a namespace has 1 to {NAMESPACE_BYTES_MAX} bytes")]
pub struct NamespaceError {
    /// How many they are.
    pub length: usize,
}

impl Namespace {
    /// The namespace of this name, any 1 to [`NAMESPACE_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// When it has none, or more.
    pub fn new(name: impl AsRef<[u8]>) -> Result<Self, NamespaceError> {
        let name = name.as_ref();
        match name.len() {
            1..=NAMESPACE_BYTES_MAX => Ok(Self(name.into())),
            length => Err(NamespaceError { length }),
        }
    }

    /// Its name; empty for the default one.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl HashSeed {
    /// The seed that keys of `namespace` are hashed with in a cluster that has this one. For the default namespace it is this one;
    /// otherwise the first 8 bytes, little-endian, of SHA-256 over `keydb namespace`, this seed as 8 bytes, little-endian, the
    /// name's length as one byte, and the name.
    #[must_use]
    pub fn in_namespace(self, namespace: &Namespace) -> Self {
        let name = namespace.as_bytes();
        if name.is_empty() {
            return self;
        }
        Self::new(first_8_bytes(
            Sha256::new()
                .chain_update(b"keydb namespace")
                .chain_update(self.value().to_le_bytes())
                .chain_update([name.len() as u8])
                .chain_update(name),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Fingerprint;

    const SEED: HashSeed = HashSeed::new(0x0123_4567_89ab_cdef);

    fn fingerprint(namespace: &[u8], key: &[u8]) -> Fingerprint {
        let namespace = if namespace.is_empty() {
            Namespace::default()
        } else {
            Namespace::new(namespace).unwrap()
        };
        Fingerprint::of(key, SEED.in_namespace(&namespace)).unwrap()
    }

    #[test]
    fn a_key_is_another_one_in_each_namespace_wherever_name_and_key_meet() {
        let pairs: [(&[u8], &[u8]); 7] = [
            (b"", b"abc"),
            (b"a", b"bc"),
            (b"ab", b"c"),
            (b"", b"\x01abc"),
            (b"", b"\x02abc"),
            (b"a\0", b"bc"),
            (b"A", b"bc"),
        ];
        for (index, (namespace, key)) in pairs.into_iter().enumerate() {
            assert_eq!(fingerprint(namespace, key), fingerprint(namespace, key));
            for (other, key_of_other) in &pairs[..index] {
                assert_ne!(
                    fingerprint(namespace, key),
                    fingerprint(other, key_of_other)
                );
            }
        }
    }

    #[test]
    fn the_default_namespace_leaves_the_clusters_seed_as_it_is() {
        let unnamed = Fingerprint::of(b"key", SEED).unwrap();
        assert_eq!(fingerprint(b"", b"key"), unnamed);
    }

    #[test]
    fn the_seed_of_a_namespace_is_the_one_that_is_documented() {
        // python3 -c 'import hashlib; print(hashlib.sha256(b"keydb namespace" + bytes.fromhex("efcdab8967452301") + b"\x06orders").digest()[:8][::-1].hex())'
        let seed = SEED.in_namespace(&Namespace::new("orders").unwrap());
        assert_eq!(seed.to_string(), "aafb6c1383d07e98");
    }

    #[test]
    fn a_name_has_1_to_255_bytes() {
        assert_eq!(Namespace::new(""), Err(NamespaceError { length: 0 }));
        assert!(Namespace::new([0; 255]).is_ok());
        let error = Namespace::new([0; 256]).unwrap_err().to_string();
        assert_eq!(
            error,
            "the namespace has 256 bytes; a namespace has 1 to 255 bytes"
        );
    }
}
