//! Reading a journal back.
//!
//! LSNs have no gaps, within a segment and from one to the next, whose header says where the one before it ended. So what is
//! missing is noticed, except at the very end. There, a record that does not decode is either a write that a crash cut short,
//! which nobody was told of, or damage. It is damage if any record behind it, a mark included, says that it had been synced.
//! Otherwise the journal ends before it, and what is behind it is overwritten.
//!
//! The last segment's file has the size that it was prepared with. One that is shorter was cut by somebody, or followed by a segment
//! that is not there any more.

use std::{
    fs::OpenOptions,
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
    time::{Duration, Instant},
};

use keydb_core::{Lsn, Record, RecordBody, UnixMillis};
use tracing::{info, warn};

use super::{
    Identity, JournalError,
    files::{self, SegmentFile},
    segment::{End, SegmentReader},
};
use crate::disk::failpoint;

/// How often the progress is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(3);

/// How much of a segment is written again at once.
const REWRITE_BYTES: u64 = 1 << 20;

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

/// Hands the journal's records behind `after` to `each`, in order, and has its last segment end behind the last one: what was read
/// is synced then. Snapshots have everything up to `covered`; of records up to there, those that are gone are not missed.
///
/// # Errors
/// When the journal is damaged or not complete: what was acknowledged is not all there.
pub(crate) fn replay(
    dir: &Path,
    identity: &Identity,
    covered: Lsn,
    after: Lsn,
    mut each: impl FnMut(&Record<'_>) -> Result<(), String>,
) -> Result<Replayed, JournalError> {
    let incomplete = |path: &Path, reason: String| JournalError::Incomplete {
        path: path.to_owned(),
        reason,
    };
    let is_there = dir
        .try_exists()
        .map_err(|error| JournalError::io("read directory", dir, &error))?;
    let segments = if is_there {
        files::list(dir)?
    } else {
        Vec::new()
    };
    let mut replayed = Replayed {
        last: covered,
        ..Replayed::default()
    };
    let Some(first) = segments.first() else {
        if covered > Lsn::ZERO {
            return Err(incomplete(
                dir,
                format!("it has no segment, but snapshots go up to LSN {covered}"),
            ));
        }
        return Ok(replayed);
    };
    if first.first > covered.next() {
        return Err(incomplete(
            dir,
            format!(
                "snapshots go up to LSN {covered}, and the oldest segment begins at LSN {}: those in between are missing",
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
        let is_last = index + 1 == segments.len();
        if is_last {
            reader.check_last(segment.bytes)?;
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
        if let Some(reason) = &end.torn {
            if !is_last {
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
                "the journal's last write was cut short; nobody was told of it, and it is overwritten: {reason}"
            );
        }
        if is_last {
            end_here(&segment.path, &end)?;
        }
    }
    if last < covered {
        return Err(incomplete(
            dir,
            format!("it ends at LSN {last}, but snapshots go up to LSN {covered}"),
        ));
    }
    replayed.last = last;
    Ok(replayed)
}

/// Has a segment end behind its last record: what a write that was cut short has left there is overwritten with zeros. From here on
/// others are told of what was read, so it must be on the disk.
///
/// A sync alone does not do that. After one that failed, the operating system may take the pages for clean and give them to whoever
/// reads, though the disk never got them; the next sync has nothing to write then and succeeds. So all of it is written again. A crash
/// meanwhile does no harm: the bytes are the same.
fn end_here(path: &Path, end: &End) -> Result<(), JournalError> {
    failpoint::hit("journal.end", path)
        .and_then(|()| OpenOptions::new().read(true).write(true).open(path))
        .and_then(|mut file| {
            write_again(&mut file, end.offset)?;
            if end.torn.is_some() {
                let bytes = file.metadata()?.len();
                io::copy(
                    &mut io::repeat(0).take(bytes.saturating_sub(end.offset)),
                    &mut file,
                )?;
            }
            file.sync_all()
        })
        .map_err(|error| JournalError::io("end", path, &error))
}

/// Writes the first `bytes` of a file anew, as they are, and stays behind them.
fn write_again(file: &mut (impl Read + Write + Seek), bytes: u64) -> io::Result<()> {
    let mut chunk = Vec::new();
    let mut offset = 0;
    file.seek(SeekFrom::Start(0))?;
    while offset < bytes {
        chunk.resize((bytes - offset).min(REWRITE_BYTES) as usize, 0);
        file.read_exact(&mut chunk)?;
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(&chunk)?;
        offset += chunk.len() as u64;
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A file whose sync failed: what is read comes from memory, and the disk has only what was written since.
    struct Unsynced {
        memory: io::Cursor<Vec<u8>>,
        disk: Vec<u8>,
    }

    impl Read for Unsynced {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.memory.read(buffer)
        }
    }

    impl Write for Unsynced {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let at = self.memory.position() as usize;
            let written = self.memory.write(bytes)?;
            self.disk[at..at + written].copy_from_slice(&bytes[..written]);
            Ok(written)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seek for Unsynced {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.memory.seek(to)
        }
    }

    #[test]
    fn all_that_is_kept_reaches_a_disk_that_has_none_of_it() {
        let bytes = 2 * REWRITE_BYTES as usize + 17;
        let content: Vec<u8> = (0..bytes + 100).map(|at| (at % 251) as u8 + 1).collect();
        let mut file = Unsynced {
            memory: io::Cursor::new(content.clone()),
            disk: vec![0; content.len()],
        };
        write_again(&mut file, bytes as u64).unwrap();
        assert_eq!(file.disk[..bytes], content[..bytes]);
        assert_eq!(file.disk[bytes..], [0; 100]);
        assert_eq!(file.memory.position(), bytes as u64);
        assert_eq!(file.memory.into_inner(), content);
    }
}
