//! Reading a journal back.
//!
//! LSNs have no gaps, within a segment and from one to the next, whose header says where the one before it ended. So what is
//! missing is noticed, except at the very end. There, a record that does not decode is either a write that a crash cut short,
//! which nobody was told of, or damage. It is damage if any record behind it, a mark included, says that it had been synced.
//! Otherwise the journal ends before it, and what is behind it is cut off.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use keydb_core::{
    Lsn, Record, RecordBody, RecordError, SEGMENT_HEADER_BYTES, SegmentHeader, UnixMillis,
    decode_record, find_record,
};
use tracing::{info, warn};

use super::{
    Identity, JournalError,
    files::{self, SegmentFile},
};

/// How much of a file is read at once, at least.
const CHUNK_BYTES: usize = 1 << 20;

/// How often the progress is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(3);

/// What was found in a journal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Replayed {
    /// The last record.
    pub(crate) last: Lsn,
    /// The latest time that a record was written at.
    pub(crate) last_written: UnixMillis,
    /// How many records were handed over.
    pub(crate) records: u64,
}

/// Where a segment's records end.
pub(super) struct End {
    /// The last record of the journal up to here.
    pub(super) last: Lsn,
    /// Where the last record that decodes ends.
    pub(super) offset: u64,
    /// What comes there does not decode, and nothing says that it was synced.
    pub(super) torn: Option<String>,
}

/// Hands the journal's records behind `after` to `each`, in order, and cuts off a torn end.
///
/// # Errors
/// When the journal is damaged or not complete: what was acknowledged is not all there.
pub(crate) fn replay(
    dir: &Path,
    identity: &Identity,
    after: Lsn,
    mut each: impl FnMut(&Record<'_>) -> Result<(), String>,
) -> Result<Replayed, JournalError> {
    let incomplete = |path: &Path, reason: String| JournalError::Incomplete {
        path: path.to_owned(),
        reason,
    };
    let segments = if dir.is_dir() {
        files::list(dir)?
    } else {
        Vec::new()
    };
    let mut replayed = Replayed {
        last: after,
        ..Replayed::default()
    };
    let Some(first) = segments.first() else {
        if after > Lsn::ZERO {
            return Err(incomplete(
                dir,
                format!("it has no segment, but snapshots go up to LSN {after}"),
            ));
        }
        return Ok(replayed);
    };
    if first.first > after.next() {
        return Err(incomplete(
            dir,
            format!(
                "snapshots go up to LSN {after}, and the oldest segment begins at LSN {}: those in between are missing",
                first.first
            ),
        ));
    }
    let mut progress = Progress::new(&segments);
    let mut last = Lsn(first.first.0 - 1);
    for (index, segment) in segments.iter().enumerate() {
        let mut reader = SegmentReader::open(segment, identity)?;
        if reader.header.previous_last_lsn != last || segment.first != last.next() {
            return Err(incomplete(
                &segment.path,
                format!(
                    "it follows LSN {}, but what lies before it ends at LSN {last}",
                    reader.header.previous_last_lsn
                ),
            ));
        }
        let end = reader.read(|_, record| {
            if record.lsn <= after || matches!(record.body, RecordBody::Mark) {
                return Ok(());
            }
            replayed.records += 1;
            replayed.last_written = replayed.last_written.max(record.written);
            progress.log(record.lsn);
            each(record)
        })?;
        last = end.last;
        progress.bytes_done += segment.bytes;
        let Some(reason) = end.torn else { continue };
        if index + 1 < segments.len() {
            return Err(JournalError::Damaged {
                path: segment.path.clone(),
                offset: end.offset,
                reason: format!("{reason}, and there are later segments"),
            });
        }
        warn!(
            path = %segment.path.display(),
            offset = end.offset,
            last = %end.last,
            "the journal's last write was cut short; nobody was told of it, and it is cut off: {reason}"
        );
        cut(&segment.path, end.offset)?;
    }
    if last < after {
        return Err(incomplete(
            dir,
            format!("it ends at LSN {last}, but snapshots go up to LSN {after}"),
        ));
    }
    replayed.last = last;
    Ok(replayed)
}

fn cut(path: &Path, offset: u64) -> Result<(), JournalError> {
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|file| {
            file.set_len(offset)?;
            file.sync_all()
        })
        .map_err(|error| JournalError::io("cut", path, &error))
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
            self.buffer.drain(..done);
            self.offset += done as u64;
            // The record may only not have been read to its end.
            if !self.at_end {
                self.read_more()?;
                continue;
            }
            return self.end(last, &failure);
        }
    }

    /// The records end here. Why?
    fn end(&self, last: Lsn, failure: &RecordError) -> Result<End, JournalError> {
        if let RecordError::Unreadable { .. } = failure {
            return Err(self.damaged(self.offset, failure.to_string()));
        }
        let mut found_any = false;
        let mut from = 0;
        while let Some((at, record)) = find_record(&self.buffer, from, self.header.disk_id) {
            if record.synced > last {
                return Err(self.damaged(
                    self.offset,
                    format!(
                        "{failure}; LSN {} was synced, as the record at byte {} says",
                        last.next(),
                        self.offset + at as u64
                    ),
                ));
            }
            found_any = true;
            from = at + 1;
        }
        let is_clean =
            *failure == RecordError::End && !found_any && self.buffer.iter().all(|byte| *byte == 0);
        Ok(End {
            last,
            offset: self.offset,
            torn: (!is_clean).then(|| failure.to_string()),
        })
    }

    fn read_more(&mut self) -> Result<(), JournalError> {
        let before = self.buffer.len();
        let more = CHUNK_BYTES.max(before) as u64;
        let io = |error: io::Error| JournalError::io("read", &self.path, &error);
        self.file
            .seek(SeekFrom::Start(self.offset + before as u64))
            .map_err(io)?;
        (&mut self.file)
            .take(more)
            .read_to_end(&mut self.buffer)
            .map_err(io)?;
        self.at_end = ((self.buffer.len() - before) as u64) < more;
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

/// Says now and then how far the reading has come.
struct Progress {
    bytes: u64,
    bytes_done: u64,
    last_log: Instant,
}

impl Progress {
    fn new(segments: &[SegmentFile]) -> Self {
        let bytes = segments.iter().map(|segment| segment.bytes).sum();
        info!(segments = segments.len(), bytes, "reading the journal");
        Self {
            bytes,
            bytes_done: 0,
            last_log: Instant::now(),
        }
    }

    fn log(&mut self, lsn: Lsn) {
        if self.last_log.elapsed() >= LOG_INTERVAL {
            self.last_log = Instant::now();
            info!(%lsn, bytes = self.bytes, done = self.bytes_done, "reading the journal");
        }
    }
}
