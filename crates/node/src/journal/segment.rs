//! Reading one segment, a part at a time: what is held of it is a chunk, or as much as the longest record takes.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use keydb_core::{
    Lsn, RECORD_BYTES_MAX, Record, RecordBody, RecordError, SEGMENT_HEADER_BYTES, SegmentHeader,
    decode_record, find_record,
};

use super::{Identity, JournalError, files::SegmentFile};

/// How much of a file is read at once.
const CHUNK_BYTES: usize = 1 << 20;

/// Records begin at multiples of this in their segment.
const ALIGNMENT: usize = 8;

/// Where a segment's records end.
pub(super) struct End {
    /// The last record of the journal up to here.
    pub(super) last: Lsn,
    /// Where the last record that decodes ends.
    pub(super) offset: u64,
    /// What comes there does not decode, and nothing says that it was synced.
    pub(super) torn: Option<String>,
}

/// Reads one segment.
pub(super) struct SegmentReader {
    pub(super) header: SegmentHeader,
    path: PathBuf,
    file: File,
    /// What was read and not decoded yet; it begins at `offset` of the file.
    buffer: Vec<u8>,
    offset: u64,
    at_end: bool,
}

impl SegmentReader {
    /// Opens a segment of this journal.
    pub(super) fn open(segment: &SegmentFile, identity: &Identity) -> Result<Self, JournalError> {
        let reader = Self::open_any(&segment.path)?;
        let found = Identity {
            cluster_id: reader.header.cluster_id,
            node: reader.header.node,
            disk_id: reader.header.disk_id,
        };
        if found != *identity || reader.header.first_lsn != segment.first {
            return Err(JournalError::Incomplete {
                path: segment.path.clone(),
                reason: format!(
                    "it is of node {}, cluster {}, disk {} and begins at LSN {}, not of node {}, cluster {}, disk {}",
                    found.node,
                    found.cluster_id,
                    found.disk_id,
                    reader.header.first_lsn,
                    identity.node,
                    identity.cluster_id,
                    identity.disk_id
                ),
            });
        }
        Ok(reader)
    }

    /// Opens a segment of any journal.
    pub(super) fn open_any(path: &Path) -> Result<Self, JournalError> {
        let io = |error| JournalError::io("read", path, &error);
        let mut file = File::open(path).map_err(io)?;
        let mut bytes = Vec::new();
        (&mut file)
            .take(SEGMENT_HEADER_BYTES as u64)
            .read_to_end(&mut bytes)
            .map_err(io)?;
        let header = SegmentHeader::decode(&bytes).map_err(|error| JournalError::Damaged {
            path: path.to_owned(),
            offset: 0,
            reason: error.to_string(),
        })?;
        Ok(Self {
            header,
            path: path.to_owned(),
            file,
            buffer: Vec::new(),
            offset: SEGMENT_HEADER_BYTES as u64,
            at_end: false,
        })
    }

    /// Hands every record to `each` with its offset, and says where they end.
    pub(super) fn read(
        &mut self,
        mut each: impl FnMut(u64, &Record<'_>) -> Result<(), String>,
    ) -> Result<End, JournalError> {
        let disk_id = self.header.disk_id;
        let mut last = self.header.previous_last_lsn;
        loop {
            let mut done = 0;
            let failure = loop {
                match decode_record(&self.buffer[done..], disk_id) {
                    Ok((record, length)) => {
                        let at = self.offset + done as u64;
                        last = check_order(last, &record)
                            .and_then(|last| each(at, &record).map(|()| last))
                            .map_err(|reason| self.damaged(at, reason))?;
                        done += length;
                    }
                    Err(error) => break error,
                }
            };
            self.drop_front(done);
            if self.is_final(&failure) {
                return self.end(last, &failure);
            }
            self.read_more()?;
        }
    }

    /// Whether what the buffer begins with does not decode, however much follows.
    fn is_final(&self, failure: &RecordError) -> bool {
        let enough = match failure {
            RecordError::End => ALIGNMENT,
            RecordError::Damaged { .. } => RECORD_BYTES_MAX,
            RecordError::Unreadable { .. } => 0,
        };
        self.at_end || self.buffer.len() >= enough
    }

    /// The records end here. Why?
    fn end(&mut self, last: Lsn, failure: &RecordError) -> Result<End, JournalError> {
        let offset = self.offset;
        if let RecordError::Unreadable { .. } = failure {
            return Err(self.damaged(offset, failure.to_string()));
        }
        let mut is_zeros = true;
        loop {
            let mut from = 0;
            while let Some((at, record)) = find_record(&self.buffer, from, self.header.disk_id) {
                if record.synced > last {
                    let reason = format!(
                        "{failure}; LSN {} was synced, as the record at byte {} says",
                        last.next(),
                        self.offset + at as u64
                    );
                    return Err(self.damaged(offset, reason));
                }
                from = at + 1;
            }
            let first = self.buffer.iter().position(|byte| *byte != 0);
            is_zeros &= first.is_none();
            if self.at_end {
                break;
            }
            // A record may not have been read to its end.
            let length = self.buffer.len();
            let kept = first.unwrap_or(length).max(length.saturating_sub(RECORD_BYTES_MAX));
            self.drop_front(kept - kept % ALIGNMENT);
            self.read_more()?;
        }
        let is_clean = *failure == RecordError::End && is_zeros;
        Ok(End {
            last,
            offset,
            torn: (!is_clean).then(|| failure.to_string()),
        })
    }

    /// The first `bytes` of the buffer are done with.
    fn drop_front(&mut self, bytes: usize) {
        self.buffer.drain(..bytes);
        self.offset += bytes as u64;
    }

    fn read_more(&mut self) -> Result<(), JournalError> {
        let read = (&mut self.file)
            .take(CHUNK_BYTES as u64)
            .read_to_end(&mut self.buffer)
            .map_err(|error| JournalError::io("read", &self.path, &error))?;
        self.at_end = read < CHUNK_BYTES;
        Ok(())
    }

    fn damaged(&self, offset: u64, reason: String) -> JournalError {
        JournalError::Damaged {
            path: self.path.clone(),
            offset,
            reason,
        }
    }
}

/// The last LSN with `record` behind `last`.
fn check_order(last: Lsn, record: &Record<'_>) -> Result<Lsn, String> {
    let expected = match record.body {
        RecordBody::Mark => last,
        RecordBody::Empty | RecordBody::Write(_) => last.next(),
    };
    if record.lsn == expected {
        Ok(expected)
    } else {
        Err(format!(
            "the record has LSN {}, where LSN {expected} belongs",
            record.lsn
        ))
    }
}

