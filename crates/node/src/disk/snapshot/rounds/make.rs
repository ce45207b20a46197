//! Making snapshot files.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use keydb_core::{
    Entry, FileKind, Fingerprint, Lsn, ManifestFile, RangeId, SectionHeader, SnapshotHeader,
    SnapshotKind, SnapshotWriter, UnixSeconds,
};
use keydb_storage::snapshot_file_name;

use super::{changes::Changes, pace::Pace};
use crate::{
    disk::failpoint,
    disk::snapshot::{error::RoundError, local::file_path, shared::Shared},
    ranges::owned::{OwnedRange, OwnedRanges},
};

/// So many keys are copied under one lock.
pub(super) const SCAN_ENTRIES: usize = 1024;

/// After so many bytes a file in the making is synced, so that the journal's syncs never wait for much of it.
const SYNC_BYTES: usize = 256 << 10;

/// A file that is written and synced, and has its name only when it is [published](Self::publish).
#[derive(Debug)]
pub(super) struct Unpublished {
    temporary: PathBuf,
    path: PathBuf,
    file: ManifestFile,
}

impl Unpublished {
    /// Gives the file its name; for good once `local::sync_files` has been called.
    pub(super) fn publish(self) -> Result<ManifestFile, RoundError> {
        failpoint::hit("snapshot.rename", &self.path)
            .and_then(|()| fs::rename(&self.temporary, &self.path))
            .map_err(cannot("rename", &self.temporary))?;
        Ok(self.file)
    }
}

/// Writes `changes` as the delta behind `from` up to `to`.
pub(super) fn delta(
    shared: &Shared,
    table: &OwnedRanges,
    changes: &mut Changes,
    (from, to): (Lsn, Lsn),
    pace: &mut Pace<'_>,
) -> Result<Unpublished, RoundError> {
    let mut making = Making::start(shared, table, SnapshotKind::Delta, None, (from, to))?;
    let written = making.changes(table, changes, pace);
    making.end(written)
}

/// Writes all keys of `range`; everything up to `to` is in its key set already.
pub(super) fn full(
    shared: &Shared,
    table: &OwnedRanges,
    range: &OwnedRange,
    to: Lsn,
    pace: &mut Pace<'_>,
) -> Result<Unpublished, RoundError> {
    let kind = SnapshotKind::Full;
    let mut making = Making::start(shared, table, kind, Some(range.id), (Lsn::ZERO, to))?;
    let written = making.all_keys(range, pace);
    making.end(written)
}

/// Writes all keys that `ranges`, which are not ready, have so far as a delta behind `from` up to `to`.
pub(super) fn unready(
    shared: &Shared,
    table: &OwnedRanges,
    ranges: &[&OwnedRange],
    (from, to): (Lsn, Lsn),
    pace: &mut Pace<'_>,
) -> Result<Unpublished, RoundError> {
    let mut making = Making::start(shared, table, SnapshotKind::Delta, None, (from, to))?;
    let mut ranges = ranges.to_vec();
    ranges.sort_unstable_by_key(|range| range.bounds.start());
    let written = ranges
        .iter()
        .try_for_each(|range| making.all_keys(range, pace));
    making.end(written)
}

/// A file in the making.
pub(super) struct Making {
    writer: SnapshotWriter<BufWriter<Target>>,
    temporary: PathBuf,
    path: PathBuf,
    header: SnapshotHeader,
    /// The ranges that it has sections for.
    sections: Vec<RangeId>,
}

impl Making {
    pub(super) fn start(
        shared: &Shared,
        table: &OwnedRanges,
        kind: SnapshotKind,
        range: Option<RangeId>,
        (lsn_from, lsn_to): (Lsn, Lsn),
    ) -> Result<Self, RoundError> {
        let node = &shared.node;
        let map = &table.current_map.map;
        let disk_id = shared.data_dir.disk_id();
        let now = node.clock.now();
        let purge_before = node.clock.times_at(now).purge_before;
        let header = SnapshotHeader {
            kind: FileKind::from(kind),
            cluster_id: map.cluster_id,
            lineage: map.lineage,
            seed_digest: map.hash.seed.digest(),
            node: node.id,
            disk_id,
            incarnation: node.incarnation,
            lsn_from,
            lsn_to,
            created: now,
            purge_before,
            parents: Vec::new(),
        };
        let path = file_path(
            &shared.data_dir,
            &snapshot_file_name(disk_id, lsn_to, range),
        );
        let temporary = path.with_extension("tmp");
        let dir = path.parent().unwrap_or(&path);
        fs::create_dir_all(dir).map_err(cannot("create", dir))?;
        let writer = failpoint::hit("snapshot.create", &temporary)
            .and_then(|()| Target::create(&temporary))
            .and_then(|target| SnapshotWriter::new(BufWriter::new(target), &header))
            .map_err(cannot("create", &temporary))?;
        Ok(Self {
            writer,
            temporary,
            path,
            header,
            sections: Vec::new(),
        })
    }

    fn changes(
        &mut self,
        table: &OwnedRanges,
        changes: &mut Changes,
        pace: &mut Pace<'_>,
    ) -> Result<(), RoundError> {
        let purge_before = self.header.purge_before;
        let mut ranges: Vec<(usize, &OwnedRange)> = table
            .ranges()
            .iter()
            .map(|range| &**range)
            .enumerate()
            .collect();
        ranges.sort_unstable_by_key(|(_, range)| range.bounds.start());
        for (index, range) in ranges {
            let section = changes.section(index, range.bounds, purge_before);
            pace.rest()?;
            if section.is_empty() {
                continue;
            }
            self.section(range)?;
            for chunk in section.chunks(SCAN_ENTRIES) {
                self.entries(chunk)?;
                pace.rest()?;
            }
        }
        Ok(())
    }

    fn all_keys(&mut self, range: &OwnedRange, pace: &mut Pace<'_>) -> Result<(), RoundError> {
        let purge_before = self.header.purge_before.0;
        self.section(range)?;
        let mut chunk: Vec<Entry> = Vec::with_capacity(SCAN_ENTRIES);
        let mut next = Some(Fingerprint::from_parts(range.bounds.start(), 0));
        while let Some(from) = next {
            chunk.clear();
            next = range.read().scan(from, SCAN_ENTRIES, &mut chunk);
            chunk.retain(|entry| entry.expiry().as_unix_seconds() > purge_before);
            self.entries(&chunk)?;
            pace.rest()?;
        }
        Ok(())
    }

    /// What expired before this is left out.
    pub(super) fn purge_before(&self) -> UnixSeconds {
        self.header.purge_before
    }

    pub(super) fn section(&mut self, range: &OwnedRange) -> Result<(), RoundError> {
        self.sections.push(range.id);
        self.writer
            .begin_section(SectionHeader {
                range: range.id,
                generation: range.generation,
                bounds: range.bounds,
            })
            .map_err(cannot("write", &self.temporary))
    }

    pub(super) fn entries(&mut self, entries: &[Entry]) -> Result<(), RoundError> {
        failpoint::hit("snapshot.write", &self.temporary)
            .and_then(|()| self.writer.entries(entries))
            .map_err(cannot("write", &self.temporary))
    }

    /// Makes it a file, if its content was `written`.
    pub(super) fn end(self, written: Result<(), RoundError>) -> Result<Unpublished, RoundError> {
        let Self {
            writer,
            temporary,
            path,
            header,
            mut sections,
        } = self;
        sections.sort_unstable();
        if let Err(error) = written {
            discard(&temporary);
            return Err(error);
        }
        let finished = writer.finish().and_then(|(buffer, totals)| {
            let target = buffer.into_inner().map_err(|error| error.into_error())?;
            failpoint::hit("snapshot.sync", &temporary)?;
            target.file.sync_all()?;
            Ok(totals)
        });
        let totals = finished.map_err(cannot("write", &temporary))?;
        let name = path.file_name().and_then(|name| name.to_str());
        let file = ManifestFile {
            name: name.unwrap_or_default().to_owned(),
            kind: header.kind.snapshot().unwrap_or(SnapshotKind::Full),
            disk_id: header.disk_id,
            lsn_from: header.lsn_from,
            lsn_to: header.lsn_to,
            size_bytes: totals.bytes,
            entries: totals.entries,
            created_ms: header.created,
            ranges: sections,
            unknown: serde_json::Map::new(),
        };
        Ok(Unpublished {
            temporary,
            path,
            file,
        })
    }
}

/// A file that is synced while it is written.
struct Target {
    file: File,
    unsynced_bytes: usize,
}

impl Target {
    fn create(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: File::create(path)?,
            unsynced_bytes: 0,
        })
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.unsynced_bytes += written;
        if self.unsynced_bytes >= SYNC_BYTES {
            self.file.sync_data()?;
            self.unsynced_bytes = 0;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// What could not be done, with a file in the making or its directory.
fn cannot(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RoundError {
    let path = path.to_owned();
    move |error| {
        discard(&path);
        RoundError::Io {
            action,
            path,
            error,
        }
    }
}

/// A file in the making that does not become one: what it takes may be just what is missing. Should it stay, the next start
/// removes it.
fn discard(path: &Path) {
    if path.extension().is_some_and(|extension| extension == "tmp") {
        let _ = fs::remove_file(path);
    }
}
