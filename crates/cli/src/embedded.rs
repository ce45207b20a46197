//! A key set of this process, for what needs no cluster.

use keydb_core::{
    Arena, Bitmap, Claim, Clock, Expiry, ExpiryError, Fingerprint, HashRange, HashSeed,
    InsertError, KeyError, KeySet, PackedFingerprints, Provisioner, Times, Ttl, random,
};
use keydb_node::SystemClock;

/// All keys in one key set, under a seed of their own.
#[derive(Debug)]
pub(crate) struct EmbeddedKeys {
    keys: KeySet,
    seed: HashSeed,
    clock: SystemClock,
    ttl: Ttl,
    packed: Vec<u8>,
    /// Takes memory ahead of need for as long as it is there.
    _provisioner: Provisioner,
}

/// Why the key set does not take a batch. Keys before the failing one may be stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EmbeddedError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Expiry(#[from] ExpiryError),
    #[error(transparent)]
    Insert(#[from] InsertError),
}

impl EmbeddedKeys {
    /// An empty key set; what is stored lives for `ttl`.
    pub(crate) fn new(ttl: Ttl) -> Self {
        let arena = Arena::new();
        Self {
            keys: KeySet::new(HashRange::ALL, &arena),
            seed: HashSeed::new(random::u64()),
            clock: SystemClock::new(),
            ttl,
            packed: Vec::new(),
            _provisioner: Provisioner::start(&arena),
        }
    }

    /// Stores the keys that are absent, and says which those were.
    pub(crate) fn claim(
        &mut self,
        keys: impl Iterator<Item: AsRef<[u8]>>,
    ) -> Result<Vec<Claim>, EmbeddedError> {
        let (times, expiry) = self.times()?;
        self.pack(keys)?;
        let packed = packed(&self.packed);
        let mut first = Bitmap::new(packed.len());
        self.keys.claim(packed, expiry, times, &mut first, 0)?;
        let claim = |is_first| {
            if is_first {
                Claim::First
            } else {
                Claim::Duplicate
            }
        };
        Ok((0..packed.len())
            .map(|index| claim(first.get(index)))
            .collect())
    }

    /// Which of the keys are there.
    pub(crate) fn get(
        &mut self,
        keys: impl Iterator<Item: AsRef<[u8]>>,
    ) -> Result<Vec<bool>, EmbeddedError> {
        self.pack(keys)?;
        let packed = packed(&self.packed);
        let mut present = Bitmap::new(packed.len());
        let times = Times::at(self.clock.now());
        self.keys.get(packed, times, &mut present, 0);
        Ok((0..packed.len()).map(|index| present.get(index)).collect())
    }

    /// Stores the keys.
    pub(crate) fn put(
        &mut self,
        keys: impl Iterator<Item: AsRef<[u8]>>,
    ) -> Result<(), EmbeddedError> {
        let (times, expiry) = self.times()?;
        self.pack(keys)?;
        Ok(self.keys.put(packed(&self.packed), expiry, times)?)
    }

    fn times(&self) -> Result<(Times, Expiry), ExpiryError> {
        let now = self.clock.now();
        Ok((Times::at(now), Expiry::after(now, self.ttl)?))
    }

    fn pack(&mut self, keys: impl Iterator<Item: AsRef<[u8]>>) -> Result<(), KeyError> {
        self.packed.clear();
        for key in keys {
            let fingerprint = Fingerprint::of(key.as_ref(), self.seed)?;
            self.packed.extend_from_slice(&fingerprint.to_bytes());
        }
        Ok(())
    }
}

fn packed(bytes: &[u8]) -> PackedFingerprints<'_> {
    PackedFingerprints::new(bytes).expect("whole fingerprints were put there")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_keys_is_the_first() {
        let mut keys = EmbeddedKeys::new("1h".parse().unwrap());
        assert_eq!(
            keys.claim(["a", "b", "a"].iter()).unwrap(),
            [Claim::First, Claim::First, Claim::Duplicate]
        );
        keys.put(["c"].iter()).unwrap();
        assert_eq!(
            keys.get(["a", "c", "d"].iter()).unwrap(),
            [true, true, false]
        );
        assert!(matches!(
            keys.claim([""].iter()),
            Err(EmbeddedError::Key(KeyError::Empty))
        ));
    }
}
