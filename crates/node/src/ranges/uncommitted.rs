//! The keys of a range whose write is applied and not yet committed.
//!
//! Whoever tells of such a key must wait for its commit; whoever tells of others must not. It is the writes of a few
//! milliseconds, so a small hash table: open addressing, linear probing, a mark of fingerprint and LSN a slot. A mark whose LSN
//! is committed is dead: it says nothing, and its place may be taken. Dead marks are swept out when the table fills up.
//!
//! Writers mark under the range's write lock, readers look under its read lock. So a reader that sees a key sees its mark.

use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};

use keydb_core::{Fingerprint, Lsn};

/// Slots of the smallest table: a KiB a range.
const SLOTS_MIN: usize = 64;

/// The uncommitted keys of one range.
#[derive(Debug, Default)]
pub(crate) struct Uncommitted {
    /// The newest LSN of a mark: when that is committed, all are.
    newest: AtomicU64,
    marks: Mutex<Marks>,
}

#[derive(Debug, Default)]
struct Marks {
    /// Empty, or a power of two.
    slots: Vec<Mark>,
    /// Slots that have a mark, dead ones included: at most three quarters.
    used: usize,
}

/// LSN 0: the slot is empty.
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    /// The low 64 bits of the fingerprint. Two keys that share them make a reader wait a little longer, nothing else.
    key: u64,
    lsn: Lsn,
}

/// The marks while they are looked at or changed. To be taken with the range's lock held.
#[derive(Debug)]
pub(crate) struct Locked<'a> {
    newest: &'a AtomicU64,
    marks: MutexGuard<'a, Marks>,
    committed: Lsn,
}

impl Uncommitted {
    /// Whether every key of the range is committed, given that everything up to `committed` is.
    #[inline]
    pub(crate) fn is_empty(&self, committed: Lsn) -> bool {
        self.newest.load(Ordering::Acquire) <= committed.0
    }

    /// The marks, given that everything up to `committed` is committed.
    pub(crate) fn lock(&self, committed: Lsn) -> Locked<'_> {
        Locked {
            newest: &self.newest,
            marks: self
                .marks
                .lock()
                .expect("nothing panics while marks are locked"),
            committed,
        }
    }
}

impl Locked<'_> {
    /// Marks `key` as written under `lsn`.
    pub(crate) fn mark(&mut self, key: Fingerprint, lsn: Lsn) {
        if (self.marks.used + 1) * 4 > self.marks.slots.len() * 3 {
            self.marks.sweep(self.committed);
        }
        self.marks.insert(low(key), lsn, self.committed);
        self.newest.fetch_max(lsn.0, Ordering::AcqRel);
    }

    /// The LSN that must be committed before `key` may be told of; [`Lsn::ZERO`] when it is.
    pub(crate) fn find(&self, key: Fingerprint) -> Lsn {
        let key = low(key);
        self.marks
            .chain(key)
            .take_while(|mark| mark.lsn != Lsn::ZERO)
            .filter(|mark| mark.key == key && mark.lsn > self.committed)
            .map(|mark| mark.lsn)
            .max()
            .unwrap_or_default()
    }
}

impl Marks {
    /// The slots from the key's place on.
    fn chain(&self, key: u64) -> impl Iterator<Item = &Mark> {
        let (before, from) = self.slots.split_at(place(key, self.slots.len()));
        from.iter().chain(before)
    }

    fn insert(&mut self, key: u64, lsn: Lsn, committed: Lsn) {
        let mask = self.slots.len() - 1;
        let mut index = place(key, self.slots.len());
        // At least a quarter of the slots is empty.
        loop {
            let slot = &mut self.slots[index];
            if slot.lsn == Lsn::ZERO {
                self.used += 1;
            }
            if slot.lsn <= committed || slot.key == key {
                *slot = Mark {
                    key,
                    lsn: slot.lsn.max(lsn),
                };
                return;
            }
            index = (index + 1) & mask;
        }
    }

    /// Drops dead marks, and sizes the table so that the live ones take at most half.
    fn sweep(&mut self, committed: Lsn) {
        let live: Vec<Mark> = self
            .slots
            .iter()
            .filter(|mark| mark.lsn > committed)
            .copied()
            .collect();
        let len = (live.len() * 2 + 1).next_power_of_two().max(SLOTS_MIN);
        self.slots.clear();
        self.slots.shrink_to(len);
        self.slots.resize(len, Mark::default());
        self.used = 0;
        for mark in live {
            self.insert(mark.key, mark.lsn, committed);
        }
    }
}

/// Fingerprints are hashes: any of their bits do.
fn place(key: u64, slots: usize) -> usize {
    key as usize & slots.saturating_sub(1)
}

const fn low(key: Fingerprint) -> u64 {
    key.as_u128() as u64
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn key(number: u8) -> Fingerprint {
        let mut bytes = [7; 12];
        bytes[11] = number;
        Fingerprint::from_bytes(&bytes)
    }

    #[test]
    fn only_marked_keys_are_found_and_only_until_they_are_committed() {
        let uncommitted = Uncommitted::default();
        assert!(uncommitted.is_empty(Lsn(0)));
        uncommitted.lock(Lsn(0)).mark(key(1), Lsn(5));
        assert!(!uncommitted.is_empty(Lsn(4)));
        assert!(uncommitted.is_empty(Lsn(5)));
        assert_eq!(uncommitted.lock(Lsn(4)).find(key(1)), Lsn(5));
        assert_eq!(uncommitted.lock(Lsn(5)).find(key(1)), Lsn::ZERO);
        assert_eq!(uncommitted.lock(Lsn(0)).find(key(2)), Lsn::ZERO);
    }

    #[test]
    fn a_table_whose_marks_were_committed_becomes_small_again() {
        let uncommitted = Uncommitted::default();
        for number in 0..200 {
            uncommitted.lock(Lsn(0)).mark(key(number), Lsn(3));
        }
        assert!(uncommitted.lock(Lsn(0)).marks.slots.len() >= 256);
        for number in 0..200 {
            uncommitted.lock(Lsn(3)).mark(key(number), Lsn(4));
            uncommitted.lock(Lsn(4)).mark(key(number), Lsn(5));
        }
        uncommitted.lock(Lsn(5)).marks.sweep(Lsn(5));
        assert_eq!(uncommitted.lock(Lsn(5)).marks.slots.len(), SLOTS_MIN);
    }

    proptest! {
        /// Against a plain map from key to its newest LSN.
        #[test]
        fn every_uncommitted_key_is_found_with_its_newest_lsn(
            steps in prop::collection::vec((0_u8..80, 0_u64..4), 1..400),
        ) {
            let uncommitted = Uncommitted::default();
            let mut model = HashMap::new();
            let mut committed = Lsn::ZERO;
            let mut lsn = Lsn::ZERO;
            for (number, lag) in steps {
                lsn = lsn.next();
                uncommitted.lock(committed).mark(key(number), lsn);
                model.insert(number, lsn);
                if lag == 0 {
                    committed = Lsn(lsn.0 - lsn.0.min(40));
                }
                let locked = uncommitted.lock(committed);
                for number in 0..80 {
                    let expected = model
                        .get(&number)
                        .copied()
                        .filter(|lsn| *lsn > committed)
                        .unwrap_or_default();
                    prop_assert_eq!(locked.find(key(number)), expected);
                }
            }
        }
    }
}
