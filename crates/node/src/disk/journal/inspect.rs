//! Looking at a journal from outside: also while a node writes it, and on a copy.

use std::path::{Path, PathBuf};

use keydb_core::{Lsn, OperationId, RecordBody, SegmentHeader, UnixMillis};

use super::{
    JournalError, files,
    segment::{End, SegmentReader},
};

/// What [`inspect`] comes by.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Found {
    /// A segment begins.
    Segment {
        /// Its file.
        path: PathBuf,
        /// Its size, prepared space included.
        bytes: u64,
        /// What it says of itself.
        header: SegmentHeader,
    },
    /// A record.
    Record {
        /// Where it is in the segment.
        offset: u64,
        /// Its place.
        lsn: Lsn,
        /// The last one that was known to be synced when it was written.
        synced: Lsn,
        /// When it was written.
        written: UnixMillis,
        /// What it is: `write`, `mark` or `empty`.
        kind: &'static str,
        /// How many keys it has.
        keys: usize,
        /// The claim that it belongs to.
        operation: Option<OperationId>,
    },
    /// A segment ends.
    End {
        /// Where its records end.
        offset: u64,
        /// Its last record.
        last: Lsn,
        /// Why there are no more, where that is a write that was cut short.
        torn: Option<String>,
    },
}

/// Shows `each` what is in the journal in `dir`, in order.
///
/// # Errors
/// When the journal is damaged or not complete, as for a node that starts with it. The torn end of the last segment is none.
pub fn inspect(dir: &Path, mut each: impl FnMut(Found)) -> Result<(), JournalError> {
    let segments = files::list(dir)?;
    let mut before: Option<(SegmentHeader, Lsn)> = None;
    for (index, segment) in segments.iter().enumerate() {
        let mut reader = SegmentReader::open_any(&segment.path)?;
        each(Found::Segment {
            path: segment.path.clone(),
            bytes: segment.bytes,
            header: reader.header,
        });
        if let Some((other, last)) = &before {
            let same = (other.cluster_id, other.node, other.disk_id)
                == (
                    reader.header.cluster_id,
                    reader.header.node,
                    reader.header.disk_id,
                );
            if !same || reader.header.previous_last_lsn != *last {
                return Err(JournalError::Incomplete {
                    path: segment.path.clone(),
                    reason: format!(
                        "it follows LSN {} of disk {}, but what lies before it ends at LSN {last} of disk {}",
                        reader.header.previous_last_lsn, reader.header.disk_id, other.disk_id
                    ),
                });
            }
        }
        let is_last = index + 1 == segments.len();
        // A node that writes meanwhile may have gone on in another one.
        let still_last = || {
            let now = files::list(dir)?;
            Ok::<_, JournalError>(now.last().is_none_or(|last| last.first == segment.first))
        };
        if is_last && still_last()? {
            reader.check_last(segment.bytes)?;
        }
        let End { last, offset, torn } = reader.read(|offset, record| {
            let (kind, keys, operation) = match &record.body {
                RecordBody::Empty => ("empty", 0, None),
                RecordBody::Mark => ("mark", 0, None),
                RecordBody::Write(write) => ("write", write.fingerprints.len(), write.operation),
            };
            each(Found::Record {
                offset,
                lsn: record.lsn,
                synced: record.synced,
                written: record.written,
                kind,
                keys,
                operation,
            });
            Ok(())
        })?;
        if let (Some(reason), false) = (&torn, is_last) {
            return Err(JournalError::Damaged {
                path: segment.path.clone(),
                offset,
                reason: format!("{reason}, and there are later segments"),
            });
        }
        before = Some((reader.header, last));
        each(Found::End { offset, last, torn });
    }
    Ok(())
}
