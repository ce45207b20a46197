//! What the tests of file formats share.

#![allow(
    dead_code,
    reason = "each test program uses a part of it, and none of them all"
)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{fs, path::PathBuf};

use keydb_core::{
    Entry, Event, Expiry, Fingerprint, SectionHeader, SnapshotDecoder, SnapshotError,
    SnapshotHeader, SnapshotWriter, Totals,
};

pub(crate) type Sections = Vec<(SectionHeader, Vec<Entry>)>;

/// Where a fixture of format version 1 lies.
pub(crate) fn fixture_path(name: &str) -> PathBuf {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/v1");
    PathBuf::from(folder).join(name)
}

/// A fixture of format version 1.
pub(crate) fn fixture(name: &str) -> Vec<u8> {
    fs::read(fixture_path(name)).unwrap()
}

pub(crate) fn seconds(value: u32) -> Expiry {
    Expiry::from_unix_seconds(value).unwrap()
}

pub(crate) fn entry(top: u64, low: u32, expiry: u32) -> Entry {
    Entry::new(Fingerprint::from_parts(top, low), seconds(expiry))
}

pub(crate) fn write_snapshot(header: &SnapshotHeader, sections: &Sections) -> Vec<u8> {
    let mut writer = SnapshotWriter::new(Vec::new(), header).unwrap();
    for (section, entries) in sections {
        writer.begin_section(*section).unwrap();
        writer.entries(entries).unwrap();
    }
    writer.finish().unwrap().0
}

pub(crate) fn read_snapshot(
    file: &[u8],
) -> Result<(SnapshotHeader, Sections, Totals), SnapshotError> {
    let mut decoder = SnapshotDecoder::new().unwrap();
    let mut header = None;
    let mut sections: Sections = Vec::new();
    for bytes in file.chunks(1000) {
        decoder.feed(bytes);
        while let Some(event) = decoder.next_event()? {
            match event {
                Event::Header(read) => header = Some(read.clone()),
                Event::Section(section) => sections.push((section, Vec::new())),
                Event::Entries(entries) => sections.last_mut().unwrap().1.extend(entries),
                Event::End(_) => {}
            }
        }
    }
    let totals = decoder.finish()?;
    Ok((header.unwrap(), sections, totals))
}
