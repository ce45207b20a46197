//! Several delta files become one, so that small deltas need no full files to take their place.
//!
//! Range by range the files' sections are read side by side and written as one, so no more than a few blocks of each file are in
//! memory.

use std::{
    cmp::Reverse, collections::BinaryHeap, fs::File, io, ops::Range, os::unix::fs::FileExt,
    sync::Arc,
};

use keydb_core::{
    Entry, Event, Fingerprint, Footer, FooterError, Lsn, ManifestFile, Origin, RangeId,
    SectionEntry, SnapshotDecoder, SnapshotKind, UnixSeconds,
};

use super::{
    make::{Making, SCAN_ENTRIES, Unpublished},
    pace::Pace,
};
use crate::{
    disk::snapshot::{error::RoundError, local::file_path, shared::Shared},
    ranges::owned::{OwnedRange, OwnedRanges},
};

/// How much of a file's end is read for its footer, unless that is longer.
const FOOTER_BYTES: u64 = 16 << 10;
/// How much of a section is read at once.
const CHUNK_BYTES: u64 = 64 << 10;

/// Writes what the delta files `deltas` have of `ranges` as one delta. For each of its ranges it takes their place.
///
/// # Errors
/// When one of them cannot be read or is damaged, the file cannot be written, or the node ends.
pub(super) fn deltas(
    shared: &Shared,
    table: &OwnedRanges,
    deltas: &[ManifestFile],
    ranges: &[&Arc<OwnedRange>],
    pace: &mut Pace<'_>,
) -> Result<Unpublished, RoundError> {
    let sources: Vec<Source<'_>> = deltas
        .iter()
        .map(|delta| Source::open(shared, delta, Origin::from(&table.current_map.map)))
        .collect::<Result<_, _>>()?;
    let lsn_from = deltas.iter().map(|delta| delta.lsn_from).min();
    let lsn_to = deltas.iter().map(|delta| delta.lsn_to).max();
    let lsns = (lsn_from.unwrap_or(Lsn::ZERO), lsn_to.unwrap_or(Lsn::ZERO));
    let mut making = Making::start(shared, table, SnapshotKind::Delta, None, lsns)?;
    let mut ranges = ranges.to_vec();
    ranges.sort_unstable_by_key(|range| range.bounds.start());
    let written = ranges
        .iter()
        .try_for_each(|range| merge_range(&mut making, &sources, range, pace));
    making.end(written)
}

/// A delta file that is merged with others.
struct Source<'a> {
    delta: &'a ManifestFile,
    file: File,
    footer: Footer,
}

impl<'a> Source<'a> {
    fn open(shared: &Shared, delta: &'a ManifestFile, origin: Origin) -> Result<Self, RoundError> {
        let path = file_path(&shared.data_dir, &delta.name);
        let cannot =
            |reason: &dyn std::fmt::Display| RoundError::unreadable(path.display(), reason);
        let file = File::open(&path).map_err(|error| cannot(&error))?;
        let footer = read_footer(&file, delta.size_bytes).map_err(|error| cannot(&error))?;
        origin
            .check_header(&footer.header, delta)
            .and_then(|()| delta.check_totals(footer.totals))
            .map_err(|error| cannot(&error))?;
        Ok(Self {
            delta,
            file,
            footer,
        })
    }

    /// Its section of a range that it is a part of.
    fn section(&self, range: RangeId) -> Result<Option<Section<'_>>, RoundError> {
        if !self.delta.is_part_of(range) {
            return Ok(None);
        }
        let Some(entry) = self.footer.section(range) else {
            let reason = format!(
                "it has no section of range {range}, and the manifest says that it has one"
            );
            return Err(RoundError::unreadable(&self.delta.name, &reason));
        };
        Section::begin(self, entry).map(Some)
    }
}

fn read_footer(file: &File, size_bytes: u64) -> Result<Footer, io::Error> {
    let mut tail_bytes = FOOTER_BYTES.min(size_bytes);
    loop {
        let mut tail = vec![0; tail_bytes as usize];
        file.read_exact_at(&mut tail, size_bytes - tail_bytes)?;
        match Footer::decode(&tail, size_bytes) {
            Ok(footer) => return Ok(footer),
            Err(FooterError::TailTooShort { needed_bytes }) if needed_bytes > tail_bytes => {
                tail_bytes = needed_bytes.min(size_bytes);
            }
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

/// A section that is being read.
struct Section<'a> {
    source: &'a Source<'a>,
    decoder: SnapshotDecoder,
    /// Which bytes of the file have not been read yet.
    left: Range<u64>,
    /// Entries that have been read, those before `at` already taken.
    entries: Vec<Entry>,
    at: usize,
}

impl<'a> Section<'a> {
    fn begin(source: &'a Source<'a>, entry: &SectionEntry) -> Result<Self, RoundError> {
        let decoder = SnapshotDecoder::of_section(&source.footer, entry);
        let mut section = Self {
            source,
            decoder: decoder.map_err(|error| RoundError::unreadable("no memory", &error))?,
            left: entry.bytes.clone(),
            entries: Vec::new(),
            at: 0,
        };
        section.fill()?;
        Ok(section)
    }

    fn first(&self) -> Option<Fingerprint> {
        self.entries.get(self.at).map(|entry| entry.fingerprint())
    }

    /// Takes the first entry, which is there.
    fn take(&mut self) -> Result<Entry, RoundError> {
        let entry = self.entries[self.at];
        self.at += 1;
        if self.at == self.entries.len() {
            self.fill()?;
        }
        Ok(entry)
    }

    /// Reads the next entries; none are left where there are no more.
    fn fill(&mut self) -> Result<(), RoundError> {
        self.entries.clear();
        self.at = 0;
        let name = &self.source.delta.name;
        let damaged = |error: &dyn std::fmt::Display| RoundError::unreadable(name, error);
        while self.entries.is_empty() {
            match self.decoder.next_event().map_err(|error| damaged(&error))? {
                Some(Event::Entries(entries)) => self.entries.extend_from_slice(entries),
                Some(_) => {}
                None if self.left.is_empty() => return Ok(()),
                None => {
                    let bytes = CHUNK_BYTES.min(self.left.end - self.left.start);
                    let mut chunk = vec![0; bytes as usize];
                    let read = self.source.file.read_exact_at(&mut chunk, self.left.start);
                    read.map_err(|error| damaged(&error))?;
                    self.decoder.feed(&chunk);
                    self.left.start += bytes;
                }
            }
        }
        Ok(())
    }

    /// Whether nothing of it was missing.
    fn finish(self) -> Result<(), RoundError> {
        let name = &self.source.delta.name;
        let finished = self.decoder.finish();
        finished
            .map(|_| ())
            .map_err(|error| RoundError::unreadable(name, &error))
    }
}

/// Writes what the sources have of `range`: each key once, with its latest expiry, without what has expired for long.
fn merge_range(
    making: &mut Making,
    sources: &[Source<'_>],
    range: &OwnedRange,
    pace: &mut Pace<'_>,
) -> Result<(), RoundError> {
    let mut sections = Vec::new();
    for source in sources {
        sections.extend(source.section(range.id)?);
    }
    if sections.is_empty() {
        return Ok(());
    }
    let purge_before = making.purge_before();
    making.section(range)?;
    let mut heads: BinaryHeap<Reverse<(Fingerprint, usize)>> = (0..)
        .zip(&sections)
        .filter_map(|(index, section)| Some(Reverse((section.first()?, index))))
        .collect();
    let mut chunk: Vec<Entry> = Vec::with_capacity(SCAN_ENTRIES);
    let mut last: Option<Entry> = None;
    while let Some(Reverse((_, index))) = heads.pop() {
        let entry = sections[index].take()?;
        heads.extend(sections[index].first().map(|next| Reverse((next, index))));
        last = match last {
            Some(before) if before.fingerprint() == entry.fingerprint() => {
                Some(if before.expiry() < entry.expiry() {
                    entry
                } else {
                    before
                })
            }
            before => {
                chunk.extend(before.filter(|it| is_kept(it, purge_before)));
                Some(entry)
            }
        };
        if chunk.len() == SCAN_ENTRIES {
            making.entries(&chunk)?;
            chunk.clear();
            pace.rest()?;
        }
    }
    chunk.extend(last.filter(|it| is_kept(it, purge_before)));
    making.entries(&chunk)?;
    sections.into_iter().try_for_each(Section::finish)?;
    pace.rest()
}

fn is_kept(entry: &Entry, purge_before: UnixSeconds) -> bool {
    entry.expiry().as_unix_seconds() > purge_before.0
}
