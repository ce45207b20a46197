//! The thread that writes and syncs: everything that waits at once.

use std::{
    fs::{self, File},
    io::{self, IoSlice, Write},
    time::{Duration, Instant},
};

use keydb_core::{Lsn, Record, RecordBody, SEGMENT_HEADER_BYTES, SegmentHeader, encode_record};

use super::{
    JournalError, Shared,
    files::{self, SegmentFile, Segments},
    prepare::{Prepared, budget},
};
use crate::{disk::failpoint, lock::lock};

/// After so long without anything to write, a mark says what is synced, so that later damage to the last records can be told
/// from a write that was cut short.
const MARK_AFTER: Duration = Duration::from_millis(50);

/// A segment with fewer bytes than this is not closed only because a snapshot has what is in it.
const CUT_BYTES_MIN: u64 = 4 << 20;

/// The end of a segment that no record takes.
const ZEROS_BYTES_MIN: u64 = 8;

/// How many pieces one call of the system writes at most.
const SLICES_MAX: usize = 1024;

/// Writes until the journal is closed or fails.
pub(super) fn run(shared: &Shared, last: Lsn, closed: Segments) {
    let _guard = FailOnPanic(shared);
    let mut writer = Writer {
        shared,
        current: None,
        closed,
        last,
        marked: true,
    };
    if let Err(error) = writer.run() {
        tracing::error!("the journal has failed: {error}");
        shared.queue.fail(error);
    }
}

/// Without the writer nothing is committed any more, and nobody must wait for it.
struct FailOnPanic<'a>(&'a Shared);

impl Drop for FailOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let defect = io::Error::other("the writer panicked");
            let dir = &self.0.config.dir;
            self.0.queue.fail(JournalError::io("write", dir, &defect));
        }
    }
}

struct Writer<'a> {
    shared: &'a Shared,
    current: Option<Current>,
    closed: Segments,
    /// The last record that was written.
    last: Lsn,
    /// The last record that was written is followed by a mark, or was there before.
    marked: bool,
}

/// The segment that is written to.
struct Current {
    segment: SegmentFile,
    file: File,
    used_bytes: u64,
}

impl Writer<'_> {
    fn run(&mut self) -> Result<(), JournalError> {
        self.tell_size();
        loop {
            let patience = (!self.marked).then_some(MARK_AFTER);
            let mut work = self.shared.queue.next_work(patience);
            *lock(&self.shared.busy_since) = Some(Instant::now());
            if !work.records.is_empty() {
                self.write(&work.records)?;
                self.sync()?;
                self.shared.queue.commit(&mut work.records, self.last);
                self.marked = false;
            }
            if work.idle || (work.closing && !self.marked) {
                self.mark()?;
            }
            if let Some(covered) = work.cut {
                self.cut(covered)?;
            }
            self.tell_size();
            *lock(&self.shared.busy_since) = None;
            if work.closing {
                self.sync()?;
                self.closed
                    .extend(self.current.take().map(Current::into_segment));
                return Ok(());
            }
        }
    }

    /// Writes records, which follow the last one.
    fn write(&mut self, records: &[Vec<u8>]) -> Result<(), JournalError> {
        let mut rest = records;
        while !rest.is_empty() {
            let room = self
                .current
                .as_ref()
                .map_or(0, |current| self.capacity() - current.used_bytes);
            let mut bytes = 0;
            let fitting = rest
                .iter()
                .take_while(|record| {
                    bytes += record.len() as u64;
                    bytes <= room
                })
                .count();
            if fitting == 0 {
                self.next_segment(rest[0].len() as u64)?;
                continue;
            }
            let (now, later) = rest.split_at(fitting);
            if let Some(current) = &mut self.current {
                current.write(now)?;
            }
            self.last = Lsn(self.last.0 + now.len() as u64);
            rest = later;
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), JournalError> {
        let Some(current) = &self.current else {
            return Ok(());
        };
        let path = &current.segment.path;
        let since = Instant::now();
        let synced = failpoint::hit("journal.sync", path).and_then(|()| current.file.sync_data());
        self.shared.syncs.record(since.elapsed());
        synced.map_err(|error| JournalError::io("sync", path, &error))
    }

    /// Says what is synced, where there is room to say it. It need not be synced itself: it says nothing new.
    fn mark(&mut self) -> Result<(), JournalError> {
        self.marked = true;
        let mut bytes = Vec::new();
        let mark = Record {
            lsn: self.last,
            synced: self.last,
            written: self.shared.config.clock.now(),
            body: RecordBody::Mark,
        };
        encode_record(&mut bytes, self.shared.config.identity.disk_id, &mark);
        let size = bytes.len() as u64;
        let capacity = self.capacity();
        if let Some(current) = &mut self.current
            && current.used_bytes + size <= capacity
            && self.shared.room.take(size)
        {
            current.write(&[bytes])?;
        }
        Ok(())
    }

    /// Goes on in a new segment, which must take a record of `record_bytes`.
    fn next_segment(&mut self, record_bytes: u64) -> Result<(), JournalError> {
        let config = &self.shared.config;
        let failed = |action, reason| {
            let segment = SegmentFile::new(&config.dir, self.last.next());
            JournalError::io(action, &segment.path, &io::Error::other(reason))
        };
        if record_bytes + SEGMENT_HEADER_BYTES as u64 > self.capacity() {
            return Err(failed("write", "a record is larger than a segment"));
        }
        let prepared = self
            .shared
            .room
            .next_segment()
            .ok_or_else(|| failed("create", "the journal was closed"))?;
        self.begin_segment(prepared)
    }

    /// Goes on in a new segment before this one is full, where nobody was promised what is left of it.
    fn exchange_segment(&mut self, covered: Lsn) -> Result<(), JournalError> {
        let used_bytes = self.current.as_ref().map_or(0, |current| {
            current.used_bytes - SEGMENT_HEADER_BYTES as u64
        });
        let unused_bytes = budget(self.shared.config.segment_bytes).saturating_sub(used_bytes);
        let Some(prepared) = self.shared.room.exchange(unused_bytes, covered) else {
            return Ok(());
        };
        self.begin_segment(prepared)
    }

    /// Begins another segment, and then gives back what the last one did not use: one that is shorter than it was made always has a
    /// successor, so that it is noticed when that is missing.
    fn begin_segment(&mut self, prepared: Prepared) -> Result<(), JournalError> {
        // The new one's header says where this one ended.
        self.sync()?;
        let config = &self.shared.config;
        let segment = SegmentFile::new(&config.dir, self.last.next());
        let failed = |action: &'static str| {
            let path = segment.path.clone();
            move |error: io::Error| JournalError::io(action, &path, &error)
        };
        let header = SegmentHeader {
            cluster_id: config.identity.cluster_id,
            disk_id: config.identity.disk_id,
            node: config.identity.node,
            first_lsn: segment.first,
            previous_last_lsn: self.last,
            prepared_bytes: config.segment_bytes,
            created: config.clock.now(),
            required_features: 0,
        };
        let mut file = prepared.file;
        // The file is at its end after its preparation.
        io::Seek::rewind(&mut file).map_err(failed("write"))?;
        file.write_all(&header.encode()).map_err(failed("write"))?;
        file.sync_data().map_err(failed("sync"))?;
        failpoint::hit("journal.rename", &segment.path)
            .and_then(|()| fs::rename(&prepared.path, &segment.path))
            .map_err(failed("create"))?;
        files::sync_dir(&config.dir)?;
        let begun = Current {
            segment,
            file,
            used_bytes: SEGMENT_HEADER_BYTES as u64,
        };
        let previous = self.current.replace(begun);
        if let Some(previous) = &previous {
            let used_bytes = previous.used_bytes - SEGMENT_HEADER_BYTES as u64;
            self.shared
                .room
                .segment_left(used_bytes, config.segment_bytes);
        }
        self.closed.extend(previous.map(Current::into_segment));
        self.closed.end_last()
    }

    /// How much of a segment is used at most: there are always zeros behind the last record, which can be given back.
    fn capacity(&self) -> u64 {
        self.shared.config.segment_bytes - ZEROS_BYTES_MIN
    }

    /// Removes the segments whose records are all up to `covered`.
    fn cut(&mut self, covered: Lsn) -> Result<(), JournalError> {
        let is_covered = covered >= self.last
            && self
                .current
                .as_ref()
                .is_some_and(|current| current.used_bytes >= CUT_BYTES_MIN);
        if is_covered {
            self.exchange_segment(covered)?;
        }
        let end = self
            .current
            .as_ref()
            .map_or(self.last.next(), |current| current.segment.first);
        // Without a segment to write to, the last one says where the journal ends.
        let covered = if self.current.is_some() {
            covered
        } else {
            Lsn(covered.0.min(self.last.0.saturating_sub(1)))
        };
        let superseded = self.closed.cut(covered, end);
        self.shared.room.remove(superseded);
        Ok(())
    }

    fn tell_size(&self) {
        let current = self
            .current
            .as_ref()
            .map_or(0, |current| current.used_bytes);
        self.shared
            .queue
            .set_file_bytes(self.closed.bytes() + current);
    }
}

impl Current {
    /// Its file, to which nothing is written any more.
    fn into_segment(self) -> SegmentFile {
        SegmentFile {
            bytes: self.used_bytes,
            ..self.segment
        }
    }

    fn write(&mut self, records: &[Vec<u8>]) -> Result<(), JournalError> {
        let written = failpoint::hit("journal.write", &self.segment.path).and_then(|()| {
            records
                .chunks(SLICES_MAX)
                .try_for_each(|records| write_all(&mut self.file, records))
        });
        written.map_err(|error| JournalError::io("write", &self.segment.path, &error))?;
        self.used_bytes += records
            .iter()
            .map(|record| record.len() as u64)
            .sum::<u64>();
        Ok(())
    }
}

fn write_all(file: &mut File, pieces: &[Vec<u8>]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        match file.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut rest, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
