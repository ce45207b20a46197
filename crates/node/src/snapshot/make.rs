//! Making snapshot files.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use keydb_core::{
    Entry, FileKind, Fingerprint, Lsn, ManifestFile, RangeId, RecordBody, SectionHeader,
    SnapshotHeader, SnapshotKind, SnapshotWriter, Times, UnixSeconds, decode_record,
};

use super::{Shared, file_path, names::file_name};
use crate::{
    data_dir, failpoint,
    table::{OwnedRange, Table},
};

/// So many keys are copied under one lock.
const SCAN_ENTRIES: usize = 4096;

/// After so much work in a row it rests, [`REST_FACTOR`] times as long as it has worked.
const WORK_SLICE: Duration = Duration::from_millis(1);
const REST_FACTOR: u32 = 3;

/// Keeps encoding within its share of a core.
pub(super) struct Pace {
    since: Instant,
    hurry: bool,
}

impl Pace {
    /// A pace; with `hurry` there is no rest.
    pub(super) fn new(hurry: bool) -> Self {
        Self {
            since: Instant::now(),
            hurry,
        }
    }

    /// To be called without a lock.
    pub(super) fn rest(&mut self) {
        let worked = self.since.elapsed();
        if worked >= WORK_SLICE && !self.hurry {
            std::thread::sleep(worked * REST_FACTOR);
            self.since = Instant::now();
        }
    }
}

/// A file that is written and synced, and has its name only when it is [put to use](Self::publish).
pub(super) struct Unpublished {
    temporary: PathBuf,
    path: PathBuf,
    pub(super) file: ManifestFile,
}

impl Unpublished {
    /// Gives the file its name, for good.
    pub(super) fn publish(self) -> Result<ManifestFile, String> {
        let renamed = failpoint::hit("snapshot.rename", &self.path)
            .and_then(|()| fs::rename(&self.temporary, &self.path));
        renamed.map_err(|error| cannot("rename", &self.path, &error))?;
        let dir = self.path.parent().unwrap_or(&self.path);
        failpoint::hit("snapshot.sync_dir", dir).map_err(|error| cannot("sync", dir, &error))?;
        data_dir::sync_dir(dir).map_err(|error| error.to_string())?;
        Ok(self.file)
    }
}

/// The entries of encoded journal records, in fingerprint order, each key once.
pub(super) fn entries_of(
    records: Vec<Vec<u8>>,
    disk_id: keydb_core::Incarnation,
) -> Result<Vec<Entry>, String> {
    let mut entries = Vec::new();
    for bytes in records {
        let (record, _) = decode_record(&bytes, disk_id).map_err(|error| error.to_string())?;
        if let RecordBody::Write(write) = record.body {
            entries.extend(
                write
                    .fingerprints
                    .iter()
                    .map(|fingerprint| Entry::new(fingerprint, write.expiry)),
            );
        }
    }
    entries.sort_unstable();
    // Of equal keys the last one has the latest expiry.
    entries.reverse();
    entries.dedup_by_key(|entry| entry.fingerprint());
    entries.reverse();
    Ok(entries)
}

/// Writes what is in `entries`, by range, as the delta behind `from` up to `to`.
pub(super) fn delta(
    shared: &Shared,
    table: &Table,
    entries: &[Entry],
    (from, to): (Lsn, Lsn),
    pace: &mut Pace,
) -> Result<Unpublished, String> {
    let mut making = Making::start(shared, table, SnapshotKind::Delta, None, (from, to))?;
    let mut ranges: Vec<&OwnedRange> = table.ranges().iter().map(|range| &**range).collect();
    ranges.sort_unstable_by_key(|range| range.bounds.start());
    let mut rest = entries;
    for range in ranges {
        // What lies before it belongs to ranges that this node does not own any more.
        let begin = rest.partition_point(|entry| entry.fingerprint().top() < range.bounds.start());
        rest = &rest[begin..];
        let end = rest.partition_point(|entry| entry.fingerprint().top() <= range.bounds.last());
        let (own, behind) = rest.split_at(end);
        rest = behind;
        if own.is_empty() {
            continue;
        }
        making.begin(range)?;
        for chunk in own.chunks(SCAN_ENTRIES) {
            making.entries(chunk)?;
            pace.rest();
        }
    }
    making.end()
}

/// Writes all keys of `range`; everything up to `to` is in its key set already.
pub(super) fn full(
    shared: &Shared,
    table: &Table,
    range: &OwnedRange,
    to: Lsn,
    pace: &mut Pace,
) -> Result<Unpublished, String> {
    let mut making = Making::start(
        shared,
        table,
        SnapshotKind::Full,
        Some(range.id),
        (Lsn::ZERO, to),
    )?;
    making.begin(range)?;
    let purge_before = making.purge_before.0;
    let mut chunk: Vec<Entry> = Vec::with_capacity(SCAN_ENTRIES);
    let mut next = Some(Fingerprint::from_parts(range.bounds.start(), 0));
    while let Some(from) = next {
        chunk.clear();
        next = range.read().scan(from, SCAN_ENTRIES, &mut chunk);
        chunk.retain(|entry| entry.expiry().as_unix_seconds() > purge_before);
        making.entries(&chunk)?;
        pace.rest();
    }
    making.end()
}

struct Making {
    writer: SnapshotWriter<BufWriter<File>>,
    temporary: PathBuf,
    path: PathBuf,
    header: SnapshotHeader,
    purge_before: UnixSeconds,
}

impl Making {
    fn start(
        shared: &Shared,
        table: &Table,
        kind: SnapshotKind,
        range: Option<RangeId>,
        (lsn_from, lsn_to): (Lsn, Lsn),
    ) -> Result<Self, String> {
        let node = &shared.node;
        let map = &table.in_force.map;
        let disk_id = shared.data_dir.disk_id();
        let now = node.clock.now();
        // A wrong clock must not cost keys.
        let purge_before = if node.clock_is_trusted() {
            Times::at(now).purge_before
        } else {
            UnixSeconds(0)
        };
        let header = SnapshotHeader {
            kind: FileKind::from(kind),
            cluster_id: map.cluster_id,
            lineage: map.lineage,
            seed_digest: map.hash.seed.digest(),
            node: node.config.id,
            disk_id,
            incarnation: node.incarnation,
            lsn_from,
            lsn_to,
            created: now,
            purge_before,
            parents: Vec::new(),
        };
        let path = file_path(&shared.data_dir, &file_name(disk_id, lsn_to, range));
        let temporary = path.with_extension("tmp");
        let dir = path.parent().unwrap_or(&path);
        fs::create_dir_all(dir).map_err(|error| cannot("create", dir, &error))?;
        let writer = failpoint::hit("snapshot.create", &temporary)
            .and_then(|()| File::create(&temporary))
            .and_then(|file| SnapshotWriter::new(BufWriter::new(file), &header))
            .map_err(|error| cannot("create", &temporary, &error))?;
        Ok(Self {
            writer,
            temporary,
            path,
            header,
            purge_before,
        })
    }

    fn begin(&mut self, range: &OwnedRange) -> Result<(), String> {
        self.writer
            .begin_section(SectionHeader {
                range: range.id,
                generation: range.generation,
                bounds: range.bounds,
            })
            .map_err(|error| cannot("write", &self.temporary, &error))
    }

    fn entries(&mut self, entries: &[Entry]) -> Result<(), String> {
        failpoint::hit("snapshot.write", &self.temporary)
            .and_then(|()| self.writer.entries(entries))
            .map_err(|error| cannot("write", &self.temporary, &error))
    }

    fn end(self) -> Result<Unpublished, String> {
        let Self {
            writer,
            temporary,
            path,
            header,
            ..
        } = self;
        let written = writer.finish().and_then(|(buffer, totals)| {
            let file = buffer.into_inner().map_err(|error| error.into_error())?;
            failpoint::hit("snapshot.sync", &temporary)?;
            file.sync_all()?;
            Ok(totals)
        });
        let totals = written.map_err(|error| cannot("write", &temporary, &error))?;
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
            .to_owned();
        Ok(Unpublished {
            temporary,
            path,
            file: ManifestFile {
                name,
                kind: header.kind.snapshot().unwrap_or(SnapshotKind::Full),
                disk_id: header.disk_id,
                lsn_from: header.lsn_from,
                lsn_to: header.lsn_to,
                size_bytes: totals.bytes,
                entries: totals.entries,
                created_ms: header.created,
                unknown: serde_json::Map::new(),
            },
        })
    }
}

/// What could not be done with a file. A file in the making is left: the next start removes it.
fn cannot(action: &str, path: &Path, error: &std::io::Error) -> String {
    // What it takes may be just what is missing.
    if path.extension().is_some_and(|extension| extension == "tmp") {
        let _ = fs::remove_file(path);
    }
    format!("cannot {action} {}: {error}", path.display())
}
