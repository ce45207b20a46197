//! What each fuzz target does with its input. `crates/core/tests/corpus.rs` does the same with the committed corpus, on any
//! toolchain.
//!
//! Nearly all inputs end at a checksum. So each decoder gets every input twice: as it is, and with checksums made right, which is
//! what bytes look like that somebody wrote on purpose or a faulty writer left.

use std::collections::BTreeMap;

use keydb_core::{
    AnswersDraft, AnswersFile, Backup, Bitmap, ClusterMap, Event, Expiry, Fingerprint, Footer,
    Incarnation, Manifest, OperationAnswers, RangeAnswers, RangeId, SegmentHeader, SnapshotDecoder,
    SnapshotError, TRAILER_BYTES, Totals, decode_record, encode_record, find_record,
};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// What a target does with an input.
pub type Target = fn(&[u8]);

/// The targets by name.
pub const TARGETS: [(&str, Target); 9] = [
    ("record", record),
    ("segment_header", segment_header),
    ("snapshot", snapshot),
    ("footer", footer),
    ("answers", answers),
    ("operation_answers", operation_answers),
    ("manifest", manifest),
    ("cluster_map", cluster_map),
    ("backup", backup),
];

const DISK: Incarnation = Incarnation::from_bytes(*b"the fixture disk");

/// A record of the journal.
pub fn record(data: &[u8]) {
    try_record(data);
    let length = data.len() & !7;
    if length < 16 {
        return;
    }
    let salt = xxh3_64(&DISK.to_bytes());
    let mut sealed = data[..length].to_vec();
    sealed[..4].copy_from_slice(b"KJRC");
    sealed[4..8].copy_from_slice(&(length as u32).to_le_bytes());
    let check = xxh3_64_with_seed(&sealed[..8], salt) as u32;
    sealed[8..12].copy_from_slice(&check.to_le_bytes());
    seal(&mut sealed, salt);
    try_record(&sealed);
}

fn try_record(bytes: &[u8]) {
    if let Ok((record, length)) = decode_record(bytes, DISK) {
        assert!(length <= bytes.len() && length.is_multiple_of(8));
        let mut again = Vec::new();
        encode_record(&mut again, DISK, &record);
        // Numbers can be written longer than they need be, so the bytes may differ.
        assert_eq!(decode_record(&again, DISK), Ok((record, again.len())));
    }
    if let Some((offset, record)) = find_record(bytes, 8, DISK) {
        assert_eq!(
            decode_record(&bytes[offset..], DISK).map(|(record, _)| record),
            Ok(record)
        );
    }
}

/// The header of a segment of the journal.
pub fn segment_header(data: &[u8]) {
    try_segment_header(data);
    let mut sealed = data.to_vec();
    sealed.resize(keydb_core::SEGMENT_HEADER_BYTES, 0);
    sealed[..12].copy_from_slice(b"KEYDBJNL\x01\0\0\0");
    seal(&mut sealed, 0);
    try_segment_header(&sealed);
}

fn try_segment_header(bytes: &[u8]) {
    if let Ok(header) = SegmentHeader::decode(bytes) {
        assert!(bytes.starts_with(&header.encode()));
    }
}

/// A snapshot file. The first byte says in what portions it comes in.
pub fn snapshot(data: &[u8]) {
    let Some((portion, file)) = data.split_first() else {
        return;
    };
    let portion = 1 + usize::from(*portion);
    let _ = read_snapshot(file, portion);
    let mut sealed = file.to_vec();
    seal_frames(&mut sealed);
    if let Ok(totals) = read_snapshot(&sealed, portion) {
        assert_eq!(totals.bytes, sealed.len() as u64);
        let footer = Footer::decode(&sealed, totals.bytes);
        assert_eq!(footer.map(|footer| footer.totals), Ok(totals));
    }
}

fn read_snapshot(file: &[u8], portion: usize) -> Result<Totals, SnapshotError> {
    let mut decoder = SnapshotDecoder::new().expect("there is memory");
    let mut bounds = None;
    let mut last: Option<Fingerprint> = None;
    let mut read = 0;
    for bytes in file.chunks(portion) {
        decoder.feed(bytes);
        while let Some(event) = decoder.next_event()? {
            match event {
                Event::Section(section) => {
                    bounds = Some(section.bounds);
                    last = None;
                }
                Event::Entries(entries) => {
                    let bounds = bounds.expect("entries come in a section");
                    for entry in entries {
                        assert!(bounds.contains(entry.fingerprint().top()));
                        assert!(last.is_none_or(|last| last < entry.fingerprint()));
                        last = Some(entry.fingerprint());
                    }
                    read += entries.len() as u64;
                }
                Event::Header(_) | Event::End(_) => {}
            }
        }
    }
    let totals = decoder.finish()?;
    assert_eq!(totals.entries, read);
    Ok(totals)
}

/// Makes the checksums of a snapshot file's frames right.
fn seal_frames(file: &mut [u8]) {
    let mut at = 8;
    let mut salt = 0;
    loop {
        let Some(head) = file.get(at..).and_then(<[u8]>::first_chunk::<8>) else {
            return;
        };
        let [.., a, b, c, d] = *head;
        let frame_bytes = u32::from_le_bytes([a, b, c, d]) as usize + 16;
        let is_footer = head.starts_with(b"FOOT");
        let Some(frame) = file.get_mut(at..at.saturating_add(frame_bytes)) else {
            return;
        };
        let checksum = seal(frame, if is_footer { 0 } else { salt });
        if at == 8 {
            salt = checksum;
        }
        at += frame_bytes;
    }
}

/// A snapshot file's footer: the input is its payload.
pub fn footer(data: &[u8]) {
    let _ = Footer::decode(data, data.len() as u64);
    let frame_bytes = data.len() + 16;
    let mut tail = b"FOOT".to_vec();
    tail.extend_from_slice(&(data.len() as u32).to_le_bytes());
    tail.extend_from_slice(data);
    tail.extend_from_slice(&[0; 8]);
    seal(&mut tail, 0);
    tail.extend_from_slice(&(frame_bytes as u64).to_le_bytes());
    tail.extend_from_slice(b"KEYDBEND");
    // Behind the header's copy and the two counts.
    let named_bytes = data
        .first_chunk()
        .and_then(|length| {
            let at = (u32::from_le_bytes(*length) as usize).checked_add(12)?;
            data.get(at..)?.first_chunk()
        })
        .map_or(tail.len() as u64, |size| u64::from_le_bytes(*size));
    if let Ok(footer) = Footer::decode(&tail, named_bytes) {
        assert_eq!(footer.totals.bytes, named_bytes);
        let end = named_bytes - (frame_bytes + TRAILER_BYTES) as u64;
        for section in &footer.sections {
            assert!(section.bytes.start < section.bytes.end && section.bytes.end <= end);
            assert!(footer.blocks.get(section.blocks.clone()).is_some());
            assert!(SnapshotDecoder::of_section(&footer, section).is_ok());
        }
    }
}

/// A file of remembered answers.
pub fn answers(data: &[u8]) {
    try_answers(data);
    let mut sealed = b"KEYDBANS\x01\0\0\0\0\0\0\0".to_vec();
    sealed.extend_from_slice(data.get(16..).unwrap_or_default());
    seal(&mut sealed, 0);
    try_answers(&sealed);
}

fn try_answers(bytes: &[u8]) {
    if let Ok(file) = AnswersFile::decode(bytes) {
        assert_eq!(file.encode(), bytes);
    }
}

/// What one operation was told: in a record, and in a file of remembered answers.
pub fn operation_answers(data: &[u8]) {
    let Some(answers) = OperationAnswers::decode(data) else {
        return;
    };
    assert_eq!(answers.as_bytes(), data);
    let mut expected = told(&answers);
    let mut draft = AnswersDraft::new(Expiry::from_unix_seconds(1).expect("it is not 0"));
    draft.group_partially_applied(RangeId(0));
    let newer = draft.encode();
    expected.extend(told(&newer));
    let merged = answers.followed_by(&newer);
    assert_eq!(told(&merged), expected);
    let decoded = OperationAnswers::decode(merged.as_bytes());
    assert_eq!(decoded.as_ref(), Some(&merged));
}

/// Of each range everything that the answers say.
fn told(answers: &OperationAnswers) -> BTreeMap<RangeId, (u32, Expiry, Bitmap, Bitmap)> {
    let bits = |range: RangeAnswers| {
        let mut first = Bitmap::new(range.count());
        let mut unknown = None;
        range.answer(&mut first, &mut unknown, 0);
        let unknown = unknown.unwrap_or_else(|| Bitmap::new(range.count()));
        (range.digest(), range.expiry(), first, unknown)
    };
    let ranges = answers.ranges().into_iter();
    ranges.map(|(id, range)| (id, bits(range))).collect()
}

/// A manifest.
pub fn manifest(data: &[u8]) {
    try_manifest(data);
    if let Some(sealed) = with_right_checksum(data) {
        try_manifest(&sealed);
    }
}

/// JSON that ends in a checksum, with the one that is right.
fn with_right_checksum(data: &[u8]) -> Option<Vec<u8>> {
    let end = b"\",\n  \"checksum\": \"0123456789abcdef\"\n}".len() - 1;
    let mut sealed = data[..data.len().checked_sub(end)?].to_vec();
    let sum = xxh3_64(&sealed);
    sealed.extend_from_slice(format!(",\n  \"checksum\": \"{sum:016x}\"\n}}").as_bytes());
    Some(sealed)
}

/// What a backup consists of.
pub fn backup(data: &[u8]) {
    try_backup(data);
    if let Some(sealed) = with_right_checksum(data) {
        try_backup(&sealed);
    }
}

fn try_backup(json: &[u8]) {
    if let Ok(backup) = Backup::from_json(json) {
        assert_eq!(Backup::from_json(&backup.to_json()).as_ref(), Ok(&backup));
        let times = backup.nodes.iter().map(|node| node.complete_to_ms);
        assert!(times.into_iter().all(|time| time >= backup.complete_to()));
    }
}

fn try_manifest(json: &[u8]) {
    if let Ok(mut manifest) = Manifest::from_json(json) {
        assert_eq!(
            Manifest::from_json(&manifest.to_json()).as_ref(),
            Ok(&manifest)
        );
        for range in &manifest.ranges {
            let (base, deltas) = manifest.parts(range);
            assert_eq!(base.is_some(), range.base.is_some());
            assert!(deltas.count() <= manifest.files.len());
        }
        manifest.drop_unneeded_files();
        assert!(Manifest::from_json(&manifest.to_json()).is_ok());
    }
}

/// A cluster map.
pub fn cluster_map(data: &[u8]) {
    if let Ok(map) = ClusterMap::from_json(data) {
        assert_eq!(ClusterMap::from_json(&map.to_json()).as_ref(), Ok(&map));
        for (index, range) in map.ranges.iter().enumerate() {
            let bounds = map.bounds(index);
            assert_eq!(map.range_index_of(bounds.start()), index);
            assert_eq!(map.range_index_of(bounds.last()), index);
            assert!(map.node(range.owner).is_some());
        }
    }
}

/// Makes the checksum at the end of `bytes`, which covers all that is before it, right; returns it. Too few bytes stay as they are.
fn seal(bytes: &mut [u8], salt: u64) -> u64 {
    let Some((content, sum)) = bytes.split_last_chunk_mut::<8>() else {
        return 0;
    };
    let checksum = xxh3_64_with_seed(content, salt);
    *sum = checksum.to_le_bytes();
    checksum
}
