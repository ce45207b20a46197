//! Reading a snapshot file into key sets.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    sync::Arc,
};

use keydb_core::{
    Event, InsertError, ManifestFile, Origin, OtherFile, RangeId, SnapshotDecoder, SnapshotError,
    Times, Totals,
};

use crate::ranges::owned::OwnedRange;

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
    #[error(transparent)]
    OtherFile(#[from] OtherFile),
    #[error("its section of range {0} has other bounds than the range")]
    OtherBounds(RangeId),
    #[error("range {0}: {1}")]
    NoRoom(RangeId, InsertError),
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
                    return Err(LoadError::OtherBounds(range.id));
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
                origin.check_header(header, expected)?;
            }
            each(event)?;
        }
    }
    let totals = decoder.finish()?;
    expected.check_totals(totals)?;
    Ok(totals)
}
