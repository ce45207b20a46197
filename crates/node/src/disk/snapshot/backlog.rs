//! What was written and is in no snapshot file yet.

use keydb_core::{Incarnation, Lsn, Record, encode_record};

use crate::disk::journal::Recent;

/// The records behind those that files have, as far as they could be kept.
///
/// Records that could not be kept are *lost* to deltas, not to the node: the key sets have what they say, so full files that are
/// begun later have it too.
#[derive(Debug)]
pub(crate) struct Backlog {
    /// Up to here the records are not there: files have them, or they are lost.
    from: Lsn,
    /// Up to here they are.
    to: Lsn,
    records: Vec<Vec<u8>>,
    bytes: usize,
    bytes_max: usize,
    /// Records up to here are lost.
    lost: Option<Lsn>,
    /// The key sets have what was read from the journal at the start.
    all_merged: bool,
}

impl Backlog {
    /// For files that have everything up to `from`.
    pub(crate) const fn new(from: Lsn, bytes_max: usize) -> Self {
        Self {
            from,
            to: from,
            records: Vec::new(),
            bytes: 0,
            bytes_max,
            lost: None,
            all_merged: true,
        }
    }

    /// A range could not take all that the journal has of it.
    pub(crate) fn not_all_merged(&mut self) {
        self.all_merged = false;
    }

    /// Whether the key sets have what was read from the journal at the start, be it lost to deltas or not.
    pub(super) const fn all_merged(&self) -> bool {
        self.all_merged
    }

    /// Adds what was read from the journal at the start, one record after the other. Those that files have are left out.
    pub(crate) fn replayed(&mut self, record: &Record<'_>, disk_id: Incarnation) {
        if record.lsn <= self.to {
            return;
        }
        let mut bytes = Vec::new();
        encode_record(&mut bytes, disk_id, record);
        self.add(Recent::Records {
            from: self.to,
            to: record.lsn,
            records: vec![bytes],
        });
    }

    /// Adds what was written in the meantime.
    pub(super) fn add(&mut self, recent: Recent) {
        match recent {
            Recent::Records { from, to, records } if from == self.to => {
                self.to = to;
                self.bytes += records.iter().map(Vec::len).sum::<usize>();
                self.records.extend(records);
                if self.bytes > self.bytes_max {
                    self.lose();
                }
            }
            // Nobody kept those in between.
            Recent::Records { to, .. } | Recent::Gap { to, .. } => {
                self.to = self.to.max(to);
                self.lose();
            }
        }
    }

    /// Gives up the records: full files are to have what they say.
    pub(super) fn lose(&mut self) {
        self.lost = Some(self.to);
        self.written();
    }

    /// A file has the records.
    pub(super) fn written(&mut self) {
        self.from = self.to;
        self.records = Vec::new();
        self.bytes = 0;
    }

    /// Every range has a full file that was begun behind what was lost.
    pub(super) fn recovered(&mut self) {
        self.lost = None;
    }

    /// The records behind [`from`](Self::from) up to [`to`](Self::to).
    pub(super) fn records(&self) -> &[Vec<u8>] {
        &self.records
    }

    pub(super) const fn from(&self) -> Lsn {
        self.from
    }

    pub(super) const fn to(&self) -> Lsn {
        self.to
    }

    /// Up to where full files are needed, if they are.
    pub(super) const fn lost(&self) -> Option<Lsn> {
        self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(from: u64, lengths: &[usize]) -> Recent {
        Recent::Records {
            from: Lsn(from),
            to: Lsn(from + lengths.len() as u64),
            records: lengths.iter().map(|length| vec![0; *length]).collect(),
        }
    }

    #[test]
    fn records_that_follow_each_other_are_kept_until_a_file_has_them() {
        let mut backlog = Backlog::new(Lsn(10), 100);
        backlog.add(records(10, &[1, 2]));
        backlog.add(records(12, &[3]));
        assert_eq!((backlog.from(), backlog.to()), (Lsn(10), Lsn(13)));
        assert_eq!(backlog.records().len(), 3);
        backlog.written();
        assert_eq!((backlog.from(), backlog.to()), (Lsn(13), Lsn(13)));
        assert!(backlog.records().is_empty());
        assert_eq!(backlog.lost(), None);
    }

    #[test]
    fn records_in_between_that_nobody_kept_are_lost_and_those_behind_are_kept() {
        let mut backlog = Backlog::new(Lsn(10), 100);
        backlog.add(records(12, &[1]));
        assert_eq!(backlog.lost(), Some(Lsn(13)));
        backlog.add(records(13, &[1, 1]));
        assert_eq!((backlog.from(), backlog.to()), (Lsn(13), Lsn(15)));
        assert_eq!(backlog.lost(), Some(Lsn(13)));
        backlog.add(Recent::Gap { to: Lsn(40) });
        assert_eq!(backlog.lost(), Some(Lsn(40)));
        assert!(backlog.records().is_empty());
        backlog.recovered();
        assert_eq!(backlog.lost(), None);
    }

    #[test]
    fn more_bytes_than_may_be_kept_are_lost() {
        let mut backlog = Backlog::new(Lsn(0), 100);
        backlog.add(records(0, &[60]));
        backlog.add(records(1, &[40]));
        assert_eq!(backlog.lost(), None);
        backlog.add(records(2, &[1]));
        assert_eq!(backlog.lost(), Some(Lsn(3)));
        backlog.add(records(3, &[100]));
        assert_eq!((backlog.lost(), backlog.records().len()), (Some(Lsn(3)), 1));
    }
}
