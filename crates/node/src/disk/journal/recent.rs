//! The records of the last while, as what a delta snapshot is made of.

use std::collections::VecDeque;

use keydb_core::Lsn;

/// Records since the last time.
#[derive(Debug)]
pub(crate) enum Recent {
    /// All of them.
    Records {
        /// They are those behind this one.
        from: Lsn,
        /// Up to this one.
        to: Lsn,
        /// Each as it was encoded, in order.
        records: Vec<Vec<u8>>,
    },
    /// There were too many to keep.
    Gap {
        /// They go up to this one, which may lie behind what was asked for.
        to: Lsn,
    },
}

/// Keeps records until they are taken.
#[derive(Debug)]
pub(super) struct Keeper {
    bytes_max: usize,
    bytes: usize,
    /// The last record that was taken.
    taken: Lsn,
    /// The last record that was added.
    added: Lsn,
    records: VecDeque<Vec<u8>>,
    /// Some were dropped since.
    gap: bool,
}

impl Keeper {
    pub(super) fn new(taken: Lsn, bytes_max: usize) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            taken,
            added: taken,
            records: VecDeque::new(),
            gap: false,
        }
    }

    /// Adds the record that follows the last one.
    pub(super) fn push(&mut self, record: Vec<u8>) {
        self.added = self.added.next();
        if self.gap {
            return;
        }
        self.bytes += record.len();
        self.records.push_back(record);
        if self.bytes > self.bytes_max {
            self.gap = true;
            self.bytes = 0;
            self.records = VecDeque::new();
        }
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes the records up to `to`, which have all been added.
    pub(super) fn take(&mut self, to: Lsn) -> Recent {
        let from = self.taken;
        // Where some were dropped, those behind `to` may be among them.
        let to = if self.gap { self.added } else { to.max(from) };
        self.taken = to;
        if std::mem::take(&mut self.gap) {
            return Recent::Gap { to };
        }
        let records: Vec<Vec<u8>> = self.records.drain(..(to.0 - from.0) as usize).collect();
        self.bytes -= records.iter().map(Vec::len).sum::<usize>();
        Recent::Records { from, to, records }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(recent: Recent) -> (u64, u64, Option<Vec<usize>>) {
        match recent {
            Recent::Records { from, to, records } => {
                (from.0, to.0, Some(records.iter().map(Vec::len).collect()))
            }
            Recent::Gap { to } => (0, to.0, None),
        }
    }

    #[test]
    fn records_are_taken_once_and_in_order() {
        let mut keeper = Keeper::new(Lsn(10), 100);
        for bytes in [1, 2, 3] {
            keeper.push(vec![0; bytes]);
        }
        assert_eq!(lengths(keeper.take(Lsn(12))), (10, 12, Some(vec![1, 2])));
        keeper.push(vec![0; 4]);
        assert_eq!(lengths(keeper.take(Lsn(14))), (12, 14, Some(vec![3, 4])));
        assert_eq!(lengths(keeper.take(Lsn(14))), (14, 14, Some(vec![])));
        assert_eq!(keeper.bytes(), 0);
    }

    #[test]
    fn too_many_records_are_a_gap_up_to_the_last_one_and_then_it_goes_on() {
        let mut keeper = Keeper::new(Lsn(0), 100);
        for _ in 0..3 {
            keeper.push(vec![0; 40]);
        }
        assert_eq!(lengths(keeper.take(Lsn(1))), (0, 3, None));
        keeper.push(vec![0; 5]);
        assert_eq!(lengths(keeper.take(Lsn(4))), (3, 4, Some(vec![5])));
    }
}
