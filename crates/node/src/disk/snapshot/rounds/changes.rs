//! Journal records as what a delta file is made of: by range, in fingerprint order, each key once.

use std::ops::Range;

use bytes::Bytes;
use keydb_core::{
    Entry, Expiry, Fingerprint, HashRange, Incarnation, PackedFingerprints, RecordBody,
    UnixSeconds, decode_record,
};

use super::pace::Pace;
use crate::{disk::snapshot::error::RoundError, ranges::owned::OwnedRanges};

/// The entries of records, by range.
#[derive(Debug)]
pub(super) struct Changes {
    /// Those of the table's first range, then those of the second, and so on.
    entries: Vec<Entry>,
    /// Where those of each range of the table are.
    sections: Vec<Range<usize>>,
}

impl Changes {
    /// Reads encoded records. What they say of ranges that `table` does not have, or that are not `named`, is left out.
    ///
    /// # Errors
    /// When a record cannot be read, or the node ends.
    pub(super) fn read(
        records: &[Bytes],
        disk_id: Incarnation,
        table: &OwnedRanges,
        named: &[bool],
        pace: &mut Pace<'_>,
    ) -> Result<Self, RoundError> {
        let mut counts = vec![0; table.ranges().len()];
        each_group(records, disk_id, table, named, pace, |index, keys, _| {
            counts[index] += keys.len();
        })?;
        let mut sections = Vec::with_capacity(counts.len());
        let mut next = 0;
        for count in counts {
            sections.push(next..next);
            next += count;
        }
        let some_expiry = Expiry::from_unix_seconds(1).expect("1 is an expiry");
        let mut entries = vec![Entry::new(Fingerprint::MIN, some_expiry); next];
        each_group(
            records,
            disk_id,
            table,
            named,
            pace,
            |index, keys, expiry| {
                let end = &mut sections[index].end;
                for fingerprint in keys.iter() {
                    entries[*end] = Entry::new(fingerprint, expiry);
                    *end += 1;
                }
            },
        )?;
        Ok(Self { entries, sections })
    }

    /// How many entries there are, those of one key counted one by one.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many of them are of the range at this index of the table.
    pub(super) fn len_of(&self, index: usize) -> usize {
        self.sections[index].len()
    }

    /// What is to be written of the range at this index, whose bounds these are: in order, of equal keys the later expiry, without
    /// what expired before `purge_before`.
    pub(super) fn section(
        &mut self,
        index: usize,
        bounds: HashRange,
        purge_before: UnixSeconds,
    ) -> &[Entry] {
        let section = &mut self.entries[self.sections[index].clone()];
        section.sort_unstable();
        let mut kept = 0;
        for at in 0..section.len() {
            let entry = section[at];
            let is_last = section
                .get(at + 1)
                .is_none_or(|next| next.fingerprint() != entry.fingerprint());
            if is_last
                && bounds.contains(entry.fingerprint().top())
                && entry.expiry().as_unix_seconds() > purge_before.0
            {
                section[kept] = entry;
                kept += 1;
            }
        }
        &section[..kept]
    }
}

/// Calls `each` with the range's index in `table` for each group of keys of a range that is `named`.
fn each_group(
    records: &[Bytes],
    disk_id: Incarnation,
    table: &OwnedRanges,
    named: &[bool],
    pace: &mut Pace<'_>,
    mut each: impl FnMut(usize, PackedFingerprints<'_>, Expiry),
) -> Result<(), RoundError> {
    for bytes in records {
        let (record, _) = decode_record(bytes, disk_id)
            .map_err(|error| RoundError::unreadable("a recent record of the journal", &error))?;
        if let RecordBody::Write(write) = record.body {
            let mut start = 0;
            let mut guess = 0;
            for group in write.groups.iter() {
                let end = start + group.count as usize;
                if let Some(index) = table.find(group.range, guess) {
                    if named[index] {
                        each(index, write.fingerprints.slice(start, end), write.expiry);
                    }
                    guess = index + 1;
                }
                start = end;
            }
        }
        pace.rest()?;
    }
    Ok(())
}
