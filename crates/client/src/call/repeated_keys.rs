//! Keys that a call has more than once.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use keydb_core::Fingerprint;

use super::outcome::{Answer, Outcome};

/// Which keys of a call were in an earlier part of it.
#[derive(Default)]
pub(super) struct RepeatedKeys {
    /// Where each key was first.
    first: FingerprintMap<usize>,
    /// Positions of later occurrences in other parts, and of the first.
    found: Vec<(usize, usize)>,
}

impl RepeatedKeys {
    /// The positions of `part`, which begins at `start`, that no earlier part had.
    pub(super) fn without(&mut self, part: &[Fingerprint], start: usize) -> Vec<usize> {
        let mut new = Vec::with_capacity(part.len());
        for (position, fingerprint) in (start..).zip(part) {
            let first = *self.first.entry(*fingerprint).or_insert(position);
            if first < start {
                self.found.push((position, first));
            } else {
                new.push(position);
            }
        }
        new
    }

    /// Gives the later occurrences what follows from the first.
    pub(super) fn fill_in<A: Answer>(self, outcomes: &mut [Outcome<A>]) {
        for (position, first) in self.found {
            outcomes[position] = match outcomes[first] {
                Outcome::Answered(answer) => Outcome::Answered(answer.of_repeat()),
                other => other,
            };
        }
    }
}

pub(crate) type FingerprintMap<V> = HashMap<Fingerprint, V, BuildHasherDefault<FingerprintHasher>>;

/// A fingerprint is a hash already.
#[derive(Default)]
pub(crate) struct FingerprintHasher(u64);

impl Hasher for FingerprintHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u128(&mut self, value: u128) {
        self.0 = value as u64;
    }
}
