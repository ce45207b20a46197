//! Reading a snapshot file into key sets.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    sync::Arc,
};

use keydb_core::{
    ClusterId, Event, InsertError, ManifestFile, RangeId, SnapshotDecoder, SnapshotError,
    SnapshotHeader, Times, Totals,
};

use crate::ranges::owned::{OwnedRange, OwnedRanges};

/// How much of a file is read at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Why a snapshot file's keys are not all there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// It is not here.
    #[error("it is missing")]
    Missing,
    #[error("it cannot be read: {0}")]
    Io(io::Error),
    #[error(transparent)]
    Damaged(#[from] SnapshotError),
    /// It is not the file that the manifest names.
    #[error("{0}")]
    Foreign(String),
    #[error("range {0}: {1}")]
    NoRoom(RangeId, InsertError),
}

/// What the files of a cluster have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin {
    pub(crate) cluster_id: ClusterId,
    pub(crate) seed_digest: u64,
}

impl Origin {
    /// Of the files of the cluster whose map `table` goes by.
    pub(crate) fn of(table: &OwnedRanges) -> Self {
        let map = &table.current_map.map;
        Self {
            cluster_id: map.cluster_id,
            seed_digest: map.hash.seed.digest(),
        }
    }
}

/// Merges the file at `path` into those of `ranges` that it has sections for.
pub(crate) fn load_file(
    path: &Path,
    expected: &ManifestFile,
    origin: Origin,
    ranges: &[Arc<OwnedRange>],
    times: Times,
) -> Result<Totals, LoadError> {
    let mut into: Option<&OwnedRange> = None;
    read_file(path, expected, origin, |event| {
        match event {
            Event::Section(section) => {
                into = ranges
                    .iter()
                    .map(|range| &**range)
                    .find(|range| range.id == section.range);
                if let Some(range) = into.filter(|range| range.bounds != section.bounds) {
                    return Err(LoadError::Foreign(format!(
                        "its section of range {} has other bounds than the range",
                        range.id
                    )));
                }
            }
            Event::Entries(entries) => {
                if let Some(range) = into {
                    range
                        .write()
                        .merge(entries, times)
                        .map_err(|error| LoadError::NoRoom(range.id, error))?;
                }
            }
            Event::Header(_) | Event::End(_) => {}
        }
        Ok(())
    })
}

/// Reads and checks the file at `path` from front to back.
pub(crate) fn read_file(
    path: &Path,
    expected: &ManifestFile,
    origin: Origin,
    mut each: impl FnMut(Event<'_>) -> Result<(), LoadError>,
) -> Result<Totals, LoadError> {
    let mut file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => LoadError::Missing,
        _ => LoadError::Io(error),
    })?;
    let mut decoder = SnapshotDecoder::new().map_err(LoadError::Io)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(LoadError::Io(error)),
        };
        decoder.feed(&chunk[..read]);
        while let Some(event) = decoder.next_event()? {
            if let Event::Header(header) = &event {
                check_header(header, expected, origin)?;
            }
            each(event)?;
        }
    }
    let totals = decoder.finish()?;
    check_totals(totals, expected)?;
    Ok(totals)
}

/// Checks that a file has as much in it as is expected.
pub(crate) fn check_totals(totals: Totals, expected: &ManifestFile) -> Result<(), LoadError> {
    if totals.bytes != expected.size_bytes || totals.entries != expected.entries {
        return Err(LoadError::Foreign(format!(
            "it has {} entries in {} bytes, and the manifest says {} in {}",
            totals.entries, totals.bytes, expected.entries, expected.size_bytes
        )));
    }
    Ok(())
}

/// Checks that a file is the one that is expected: `header` is the file's.
pub(crate) fn check_header(
    header: &SnapshotHeader,
    expected: &ManifestFile,
    origin: Origin,
) -> Result<(), LoadError> {
    if header.cluster_id != origin.cluster_id {
        return Err(LoadError::Foreign(format!(
            "it belongs to cluster {}, not to {}",
            header.cluster_id, origin.cluster_id
        )));
    }
    if header.seed_digest != origin.seed_digest {
        return Err(LoadError::Foreign(
            "its fingerprints were made with another hash seed".to_owned(),
        ));
    }
    let same = header.kind.snapshot() == Some(expected.kind)
        && header.disk_id == expected.disk_id
        && header.lsn_from == expected.lsn_from
        && header.lsn_to == expected.lsn_to;
    if same {
        Ok(())
    } else {
        Err(LoadError::Foreign(format!(
            "it is {:?} of LSN {} to {} of disk {}, not what the manifest says",
            header.kind, header.lsn_from, header.lsn_to, header.disk_id
        )))
    }
}
