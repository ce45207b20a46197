//! The journal's directory.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use keydb_core::Lsn;
use rustix::fs::OFlags;

use super::JournalError;
use crate::disk::failpoint;

const EXTENSION: &str = "journal";
const PREPARED_PREFIX: &str = "prepared-";

/// What a segment is prepared with: in pieces, each on the disk before the next, so that a sync of the journal never waits for much
/// more. Aligned for writes past the page cache.
static ZEROS: Zeros = Zeros([0; 1 << 20]);

const DIRECT_ALIGNMENT: u64 = 4096;

/// How much of a file is looked at at once.
const CHUNK_BYTES: u64 = 1 << 20;

#[repr(C, align(4096))]
struct Zeros([u8; 1 << 20]);

/// A segment's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SegmentFile {
    pub(super) first: Lsn,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
}

/// The segments that nothing is written to any more, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Segments(Vec<SegmentFile>);

impl SegmentFile {
    pub(super) fn new(dir: &Path, first: Lsn) -> Self {
        Self {
            first,
            path: dir.join(format!("{:020}.{EXTENSION}", first.0)),
            bytes: 0,
        }
    }
}

impl Segments {
    /// Those in `dir`, which is made if it is not there, up to the record `last`. What an earlier process had prepared is removed.
    pub(super) fn open(dir: &Path, last: Lsn) -> Result<Self, JournalError> {
        let io = |action| move |error| JournalError::io(action, dir, &error);
        fs::create_dir_all(dir).map_err(io("create directory"))?;
        sync_dir(dir.parent().unwrap_or(dir))?;
        for entry in fs::read_dir(dir).map_err(io("read directory"))? {
            let path = entry.map_err(io("read directory"))?.path();
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            if name.starts_with(PREPARED_PREFIX.as_bytes()) {
                remove(&path)?;
            }
        }
        let mut segments = list(dir)?;
        // One that was begun and has no record is replaced by the next one that is written, which has its name.
        segments.retain(|segment| segment.first <= last);
        if let Some(last) = segments.last_mut() {
            last.bytes = File::open(&last.path)
                .and_then(|mut file| used_bytes(&mut file))
                .map_err(|error| JournalError::io("read", &last.path, &error))?;
        }
        Ok(Self(segments))
    }

    pub(super) fn extend(&mut self, segments: impl IntoIterator<Item = SegmentFile>) {
        self.0.extend(segments);
    }

    /// Takes out those whose records are all up to `covered`, the oldest first; `end` is the first LSN that lies behind them all.
    pub(super) fn cut(&mut self, covered: Lsn, end: Lsn) -> Vec<SegmentFile> {
        let next_firsts = self.0.iter().skip(1).map(|next| next.first);
        let ends = next_firsts.chain([end]);
        let count = ends.take_while(|end| *end <= covered.next()).count();
        self.0.drain(..count.min(self.0.len())).collect()
    }

    /// Gives back what the last one had prepared and not used, now that another segment follows it.
    pub(super) fn end_last(&self) -> Result<(), JournalError> {
        let Some(last) = self.0.last() else {
            return Ok(());
        };
        OpenOptions::new()
            .write(true)
            .open(&last.path)
            .and_then(|file| file.set_len(last.bytes))
            .map_err(|error| JournalError::io("end", &last.path, &error))
    }

    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|segment| segment.bytes).sum()
    }
}

/// The segments in `dir`, the oldest first.
pub(super) fn list(dir: &Path) -> Result<Vec<SegmentFile>, JournalError> {
    let failed = |error| JournalError::io("read directory", dir, &error);
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        let first = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .filter(|stem| stem.len() == 20)
            .and_then(|stem| stem.parse().ok())
            .filter(|first| *first > 0);
        if let (Some(first), true) = (first, path.extension().is_some_and(|e| e == EXTENSION)) {
            let bytes = match entry.metadata() {
                Ok(metadata) => metadata.len(),
                // The node that writes the journal has just removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            segments.push(SegmentFile {
                first: Lsn(first),
                path,
                bytes,
            });
        }
    }
    segments.sort_by_key(|segment| segment.first);
    Ok(segments)
}

/// Makes a file of `bytes` zeros on the disk, to become a segment, where `reserved_bytes` are left besides; `rest` is called after each
/// piece.
pub(super) fn prepare(
    dir: &Path,
    number: u64,
    bytes: u64,
    reserved_bytes: u64,
    mut rest: impl FnMut(Duration),
) -> io::Result<(PathBuf, File)> {
    let path = dir.join(format!("{PREPARED_PREFIX}{number}"));
    let made = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .and_then(|file| {
            failpoint::hit("journal.prepare", &path)?;
            check_room(&file, bytes.saturating_add(reserved_bytes))?;
            let mut direct = open_direct(&path, bytes);
            let mut done = 0;
            while done < bytes {
                let started = Instant::now();
                let piece = &ZEROS.0[..(bytes - done).min(ZEROS.0.len() as u64) as usize];
                let written = direct.as_ref().map(|file| file.write_all_at(piece, done));
                // Not every file system takes them that says so.
                if !matches!(written, Some(Ok(()))) {
                    direct = None;
                    file.write_all_at(piece, done)?;
                    file.sync_data()?;
                }
                done += piece.len() as u64;
                rest(started.elapsed());
            }
            file.sync_all()?;
            Ok(file)
        });
    match made {
        Ok(file) => Ok((path, file)),
        Err(error) => {
            // What it takes may be just what is missing elsewhere.
            let _ = fs::remove_file(&path);
            Err(error)
        }
    }
}

/// The file once more, for writes past the page cache: a sync after each piece would be a commit of the file system's own journal,
/// and those cost the writer a tenth of its rate. `None` where that is not possible.
fn open_direct(path: &Path, bytes: u64) -> Option<File> {
    if !bytes.is_multiple_of(DIRECT_ALIGNMENT) {
        return None;
    }
    let flags = OFlags::DIRECT.bits().try_into().ok()?;
    OpenOptions::new()
        .write(true)
        .custom_flags(flags)
        .open(path)
        .ok()
}

/// Where there is too little room anyway, nothing is tried: to fill the disk, again and again, would take what others need there.
fn check_room(file: &File, bytes: u64) -> io::Result<()> {
    let system = rustix::fs::fstatvfs(file)?;
    // Not every file system tells.
    let is_known = system.f_blocks > 0;
    if is_known && system.f_bavail.saturating_mul(system.f_frsize) < bytes {
        return Err(rustix::io::Errno::NOSPC.into());
    }
    Ok(())
}

/// How long a file is without the zeros at its end. A record ends with a checksum, at a multiple of eight bytes.
fn used_bytes(file: &mut File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut chunk = Vec::new();
    while end > 0 {
        let start = (end - 1) / CHUNK_BYTES * CHUNK_BYTES;
        file.seek(SeekFrom::Start(start))?;
        chunk.clear();
        file.take(end - start).read_to_end(&mut chunk)?;
        // Most of a segment is zeros at a start, and they are told apart at once.
        if chunk != ZEROS.0[..chunk.len()]
            && let Some(last) = chunk.iter().rposition(|byte| *byte != 0)
        {
            return Ok((start + last as u64 + 1).next_multiple_of(8));
        }
        end = start;
    }
    Ok(0)
}

pub(super) fn sync_dir(dir: &Path) -> Result<(), JournalError> {
    failpoint::hit("journal.sync_dir", dir)
        .and_then(|()| File::open(dir)?.sync_all())
        .map_err(|error| JournalError::io("sync directory", dir, &error))
}

/// Removes a file; harmless when it is not there.
pub(super) fn remove(path: &Path) -> Result<(), JournalError> {
    failpoint::hit("journal.remove", path)
        .and_then(|()| fs::remove_file(path))
        .or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })
        .map_err(|error| JournalError::io("remove", path, &error))
}
