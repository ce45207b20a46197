//! The records of the last while: what a delta snapshot is made of.

use std::collections::VecDeque;

use bytes::Bytes;
use keydb_core::{Incarnation, Lsn, Record, encode_record};

/// The committed records behind those that snapshot files have, as far as they can be kept.
///
/// Records that could not be kept are *lost* to deltas, not to the node: the key sets have what they say, so full files that are
/// begun later have it too.
#[derive(Debug)]
pub(crate) struct Recent {
    /// Up to here the records are not there: files have them, or they are lost.
    from: Lsn,
    /// Up to here they are.
    to: Lsn,
    /// Each as it was encoded, in order.
    records: VecDeque<Bytes>,
    bytes: usize,
    /// How many of them somebody is looking at, to write a file of them. They do not count, unless there come to be as many again.
    looked_at_bytes: usize,
    bytes_max: usize,
    /// Records up to here are lost.
    lost: Option<Lsn>,
    /// There were too many. None is kept until somebody has looked: the next round makes full files anyway.
    has_overflowed: bool,
}

/// Some of them, and what is to be known of the others.
#[derive(Debug)]
pub(crate) struct RecentRecords {
    /// They are those behind this one.
    pub(crate) from: Lsn,
    /// Up to this one.
    pub(crate) to: Lsn,
    /// Each as it was encoded, in order.
    pub(crate) records: Vec<Bytes>,
    /// Records up to this one are lost to deltas.
    pub(crate) lost: Option<Lsn>,
}

impl Recent {
    /// For files that have everything up to `from`; of at most so many bytes.
    pub(crate) const fn new(from: Lsn, bytes_max: usize) -> Self {
        Self {
            from,
            to: from,
            records: VecDeque::new(),
            bytes: 0,
            looked_at_bytes: 0,
            bytes_max,
            lost: None,
            has_overflowed: false,
        }
    }

    /// Adds what was read from the journal at the start, one record after the other. Those that files have are left out.
    pub(crate) fn replayed(&mut self, record: &Record<'_>, disk_id: Incarnation) {
        if record.lsn <= self.to {
            return;
        }
        if record.lsn != self.to.next() {
            // Nobody kept those in between.
            self.to = Lsn(record.lsn.0 - 1);
            self.lose(self.to);
        }
        let mut bytes = Vec::new();
        encode_record(&mut bytes, disk_id, record);
        self.push(bytes);
    }

    /// Adds the record that follows the last one.
    pub(super) fn push(&mut self, record: impl Into<Bytes>) {
        let record = record.into();
        self.to = self.to.next();
        self.bytes += record.len();
        self.records.push_back(record);
        let new_bytes = self.bytes - self.looked_at_bytes;
        self.has_overflowed |= new_bytes > self.bytes_max || self.bytes > 2 * self.bytes_max;
        if self.has_overflowed {
            self.lose(self.to);
        }
    }

    /// How many bytes they have that nobody is looking at, and how many they may have.
    pub(super) const fn bytes(&self) -> (usize, usize) {
        (self.bytes - self.looked_at_bytes, self.bytes_max)
    }

    /// The last record.
    pub(crate) const fn to(&self) -> Lsn {
        self.to
    }

    /// The records up to `to`, to be looked at; none where more than those are lost. Where too many had come, they are kept again from
    /// here on.
    pub(super) fn up_to(&mut self, to: Lsn) -> RecentRecords {
        self.has_overflowed = false;
        let to = to.clamp(self.from, self.to);
        let count = (to.0 - self.from.0) as usize;
        let records: Vec<Bytes> = self.records.iter().take(count).cloned().collect();
        self.looked_at_bytes = records.iter().map(Bytes::len).sum();
        RecentRecords {
            from: self.from,
            to,
            records,
            lost: self.lost,
        }
    }

    /// Files have the records up to `to`.
    pub(super) fn written(&mut self, to: Lsn) {
        while self.from < to
            && let Some(record) = self.records.pop_front()
        {
            self.from = self.from.next();
            self.bytes -= record.len();
            self.looked_at_bytes = self.looked_at_bytes.saturating_sub(record.len());
        }
        self.from = self.from.max(to);
    }

    /// Gives up the records up to `to`: full files are to have what they say.
    pub(super) fn lose(&mut self, to: Lsn) {
        self.lost = self.lost.max(Some(to));
        self.written(to);
    }

    /// Every range has a full file that was begun behind `lost`.
    pub(super) fn recovered(&mut self, lost: Lsn) {
        self.lost = self.lost.filter(|it| *it > lost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recent(from: u64, bytes: &[usize]) -> Recent {
        let mut recent = Recent::new(Lsn(from), 100);
        bytes.iter().for_each(|bytes| recent.push(vec![0; *bytes]));
        recent
    }

    fn lengths(records: RecentRecords) -> (u64, u64, Vec<usize>, Option<u64>) {
        let lengths = records.records.iter().map(Bytes::len).collect();
        let lost = records.lost.map(|lost| lost.0);
        (records.from.0, records.to.0, lengths, lost)
    }

    #[test]
    fn records_that_follow_each_other_are_kept_until_a_file_has_them() {
        let mut recent = recent(10, &[1, 2, 3]);
        assert_eq!(lengths(recent.up_to(Lsn(12))), (10, 12, vec![1, 2], None));
        assert_eq!(recent.bytes(), (3, 100));
        recent.written(Lsn(12));
        recent.push(vec![0; 4]);
        assert_eq!(lengths(recent.up_to(Lsn(99))), (12, 14, vec![3, 4], None));
        recent.written(Lsn(14));
        assert_eq!(lengths(recent.up_to(Lsn(14))), (14, 14, vec![], None));
        assert_eq!(recent.bytes(), (0, 100));
    }

    #[test]
    fn more_bytes_than_may_be_kept_are_lost_until_somebody_looks_and_those_behind_are_kept() {
        let mut recent = recent(0, &[60, 40]);
        assert_eq!((recent.bytes(), recent.lost), ((100, 100), None));
        for _ in 0..2 {
            recent.push(vec![0; 1]);
        }
        assert_eq!(lengths(recent.up_to(Lsn(2))), (4, 4, vec![], Some(4)));
        recent.push(vec![0; 5]);
        assert_eq!(lengths(recent.up_to(Lsn(5))), (4, 5, vec![5], Some(4)));
        // A file of some that were lost meanwhile.
        recent.written(Lsn(2));
        assert_eq!(lengths(recent.up_to(Lsn(5))), (4, 5, vec![5], Some(4)));
    }

    #[test]
    fn what_is_being_written_takes_no_room_from_what_comes_meanwhile() {
        let mut recent = recent(0, &[60]);
        recent.up_to(Lsn(1));
        recent.push(vec![0; 90]);
        assert_eq!(recent.up_to(Lsn(1)).lost, None);
        recent.written(Lsn(1));
        assert_eq!(recent.bytes(), (90, 100));
        // Where it comes to nothing, there is an end to it as well.
        recent.up_to(Lsn(2));
        recent.push(vec![0; 60]);
        recent.up_to(Lsn(3));
        recent.push(vec![0; 60]);
        assert_eq!(recent.up_to(Lsn(4)).lost, Some(Lsn(4)));
    }

    #[test]
    fn what_is_lost_later_is_not_in_files_that_were_made_before() {
        let mut recent = recent(10, &[1, 1]);
        recent.lose(Lsn(11));
        assert_eq!(lengths(recent.up_to(Lsn(12))), (11, 12, vec![1], Some(11)));
        recent.lose(Lsn(12));
        recent.recovered(Lsn(11));
        assert_eq!(recent.up_to(Lsn(12)).lost, Some(Lsn(12)));
        recent.recovered(Lsn(12));
        assert_eq!(recent.up_to(Lsn(12)).lost, None);
    }

    #[test]
    fn of_a_journal_that_begins_later_the_records_in_between_are_lost() {
        let body = keydb_core::RecordBody::Empty;
        let record = |lsn| Record {
            lsn: Lsn(lsn),
            synced: Lsn::ZERO,
            written: keydb_core::UnixMillis(0),
            body: body.clone(),
        };
        let disk_id = Incarnation::from_bytes([1; 16]);
        let mut recent = Recent::new(Lsn(10), 1000);
        for lsn in [9, 10, 13, 14] {
            recent.replayed(&record(lsn), disk_id);
        }
        let records = recent.up_to(Lsn(99));
        assert_eq!((records.from, records.to), (Lsn(12), Lsn(14)));
        assert_eq!((records.records.len(), records.lost), (2, Some(Lsn(12))));
    }
}
