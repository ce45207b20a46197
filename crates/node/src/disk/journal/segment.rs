//! Reading one segment, a part at a time: what is held of it is a chunk, or as much as the longest record takes.

use std::{
    fs::File,
    io::Read,
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
const ZEROS: [u8; 4096] = [0; 4096];

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

    /// Checks a segment that no other follows, and whose file has `bytes`: as long as that is so, nothing is cut off it.
    pub(super) fn check_last(&self, bytes: u64) -> Result<(), JournalError> {
        let prepared_bytes = self.header.prepared_bytes;
        if bytes >= prepared_bytes {
            return Ok(());
        }
        Err(self.damaged(
            bytes,
            format!(
                "its file ends there, and was made with {prepared_bytes} bytes: its end is missing, or the segment that followed it"
            ),
        ))
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
            // Piece by piece, as most of a segment may be zeros.
            let mut pieces = self.buffer.chunks(ZEROS.len());
            let first = pieces.position(|piece| *piece != ZEROS[..piece.len()]);
            let first = first.map(|index| index * ZEROS.len());
            is_zeros &= first.is_none();
            if self.at_end {
                break;
            }
            // A record may not have been read to its end.
            let length = self.buffer.len();
            let kept = first
                .unwrap_or(length)
                .max(length.saturating_sub(RECORD_BYTES_MAX));
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

#[cfg(test)]
mod tests {
    use std::fs;

    use keydb_core::{ClusterId, Incarnation, NodeId, UnixMillis, encode_record};

    use super::*;

    const DISK: Incarnation = Incarnation::from_bytes([7; 16]);

    /// A segment's first bytes, up to where its records begin.
    fn header() -> Vec<u8> {
        let header = SegmentHeader {
            cluster_id: ClusterId::from_bytes([1; 16]),
            disk_id: DISK,
            node: NodeId(3),
            first_lsn: Lsn(1),
            previous_last_lsn: Lsn::ZERO,
            prepared_bytes: 64 << 20,
            created: UnixMillis(0),
            required_features: 0,
        };
        header.encode()
    }

    fn push(bytes: &mut Vec<u8>, lsn: u64, synced: u64, answers: &[u8]) {
        let write = keydb_core::Write {
            expiry: keydb_core::Expiry::from_unix_seconds(1).unwrap(),
            operation: None,
            answers,
            groups: (&[][..]).into(),
            fingerprints: keydb_core::PackedFingerprints::new(&[]).unwrap(),
        };
        let record = Record {
            lsn: Lsn(lsn),
            synced: Lsn(synced),
            written: UnixMillis(0),
            body: RecordBody::Write(write),
        };
        encode_record(bytes, DISK, &record);
    }

    /// Where the records of a file with these bytes end, how many there are, and how much was held of it at most.
    fn read(bytes: &[u8], length: u64) -> (Result<End, JournalError>, usize, usize) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("segment");
        fs::write(&path, bytes).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(length).unwrap();
        let mut reader = SegmentReader::open_any(&path).unwrap();
        let mut records = 0;
        let end = reader.read(|_, _| {
            records += 1;
            Ok(())
        });
        (end, records, reader.buffer.capacity())
    }

    #[test]
    fn of_prepared_space_no_more_than_a_few_chunks_are_held() {
        let mut bytes = header();
        for lsn in 1..=5000 {
            push(&mut bytes, lsn, 0, &[9; 1000]);
        }
        let (end, records, held) = read(&bytes, 64 << 20);
        let end = end.unwrap();
        assert_eq!((end.last, records, end.torn), (Lsn(5000), 5000, None));
        assert_eq!(end.offset, bytes.len() as u64);
        assert!(held <= 4 * CHUNK_BYTES, "{held}");
    }

    #[test]
    fn of_a_torn_end_no_more_than_the_longest_record_is_held() {
        let mut bytes = header();
        push(&mut bytes, 1, 0, b"");
        let end_of_first = bytes.len() as u64;
        bytes.resize(40 << 20, 0xA5);
        let (end, records, held) = read(&bytes, 64 << 20);
        let end = end.unwrap();
        assert_eq!((end.last, records, end.offset), (Lsn(1), 1, end_of_first));
        assert!(end.torn.is_some());
        assert!(held <= 2 * (RECORD_BYTES_MAX + CHUNK_BYTES), "{held}");
    }

    #[test]
    fn the_longest_records_are_read_wherever_they_begin() {
        let longest = vec![9; RECORD_BYTES_MAX - 100];
        for before in [0, CHUNK_BYTES - 64, CHUNK_BYTES - 100] {
            let mut bytes = header();
            push(&mut bytes, 1, 0, &vec![1; before]);
            push(&mut bytes, 2, 0, &longest);
            push(&mut bytes, 3, 0, b"");
            let (end, records, _) = read(&bytes, 20 << 20);
            let end = end.unwrap();
            assert_eq!((end.last, records, end.torn), (Lsn(3), 3, None));
        }
    }

    #[test]
    fn a_record_that_proves_damage_is_found_however_far_behind_it_lies_and_wherever_it_begins() {
        let mut damaged = header();
        push(&mut damaged, 1, 0, b"");
        let at = damaged.len() as u64;
        for length in [100, RECORD_BYTES_MAX - 100] {
            for distance in [2 * CHUNK_BYTES - 24, 3 * CHUNK_BYTES, 18 << 20] {
                for filling in [0, 0xA5] {
                    let mut bytes = damaged.clone();
                    bytes.extend_from_slice(&[0; 8]);
                    bytes.resize(bytes.len() + distance, filling);
                    let place = bytes.len();
                    push(&mut bytes, 7, 6, &vec![3; length]);
                    let (end, _, _) = read(&bytes, 40 << 20);
                    let error = end.err().unwrap().to_string();
                    let offset = format!("is damaged at byte {at}: ");
                    let proof = format!("LSN 2 was synced, as the record at byte {place} says");
                    assert!(error.contains(&offset) && error.contains(&proof), "{error}");
                }
            }
        }
    }
}
