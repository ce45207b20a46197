//! Snapshot files there and back, and what becomes of damaged ones.

use std::collections::BTreeMap;

use proptest::{collection, prelude::*};

use super::*;
use crate::{
    ClusterId, Entry, Expiry, Fingerprint, HashRange, HashSeed, Incarnation, Lsn, NodeId, RangeId,
    SnapshotKind, UnixMillis, UnixSeconds,
};

fn header(kind: FileKind) -> SnapshotHeader {
    SnapshotHeader {
        kind,
        cluster_id: ClusterId::from_bytes([1; 16]),
        lineage: 2,
        seed_digest: 3,
        node: NodeId(4),
        disk_id: Incarnation::from_bytes([5; 16]),
        incarnation: Incarnation::from_bytes([6; 16]),
        lsn_from: Lsn(7),
        lsn_to: Lsn(8),
        created: UnixMillis(9),
        purge_before: UnixSeconds(10),
        parents: vec!["first".to_owned(), "second".to_owned()],
    }
}

fn section(range: u32, start: u64, last: u64) -> SectionHeader {
    SectionHeader {
        range: RangeId(range),
        generation: 100 + u64::from(range),
        bounds: HashRange::new(start, last).unwrap(),
    }
}

fn entry(top: u64, low: u32, expiry: u32) -> Entry {
    Entry::new(
        Fingerprint::from_parts(top, low),
        Expiry::from_unix_seconds(expiry).unwrap(),
    )
}

type Sections = Vec<(SectionHeader, Vec<Entry>)>;

/// What a decoder told.
#[derive(Debug, PartialEq)]
struct Told {
    header: Option<SnapshotHeader>,
    sections: Sections,
    totals: Totals,
}

fn write(header: &SnapshotHeader, sections: &Sections, portion: usize) -> (Vec<u8>, Totals) {
    let mut writer = SnapshotWriter::new(Vec::new(), header).unwrap();
    for (section, entries) in sections {
        writer.begin_section(*section).unwrap();
        for entries in entries.chunks(portion) {
            writer.entries(entries).unwrap();
        }
    }
    writer.finish().unwrap()
}

fn read(mut decoder: SnapshotDecoder, file: &[u8], portion: usize) -> Result<Told, SnapshotError> {
    let mut header = None;
    let mut sections: Sections = Vec::new();
    let mut end = None;
    for bytes in file.chunks(portion) {
        decoder.feed(bytes);
        while let Some(event) = decoder.next_event()? {
            assert_eq!(end, None, "nothing comes behind the end");
            match event {
                Event::Header(read) => header = Some(read.clone()),
                Event::Section(section) => sections.push((section, Vec::new())),
                Event::Entries(entries) => {
                    sections.last_mut().unwrap().1.extend_from_slice(entries)
                }
                Event::End(totals) => end = Some(totals),
            }
        }
    }
    let totals = decoder.finish()?;
    assert!(end.is_none_or(|end| end == totals));
    Ok(Told {
        header,
        sections,
        totals,
    })
}

fn read_whole(file: &[u8], portion: usize) -> Result<Told, SnapshotError> {
    read(SnapshotDecoder::new().unwrap(), file, portion)
}

/// Two sections with entries and one without.
fn small() -> (SnapshotHeader, Sections, Vec<u8>) {
    let header = header(FileKind::Delta);
    let sections = vec![
        (
            section(0, 0, 999),
            vec![entry(0, 0, 1), entry(5, 1, 70_000), entry(999, u32::MAX, 9)],
        ),
        (section(1, 1000, 1999), vec![]),
        (
            section(9, 2000, u64::MAX),
            vec![entry(2000, 0, 5), entry(u64::MAX, u32::MAX, u32::MAX)],
        ),
    ];
    let (file, _) = write(&header, &sections, 2);
    (header, sections, file)
}

/// As fingerprints are in life, and as they never are: crowded, far apart, both at once, at the ends.
fn fingerprints() -> impl Strategy<Value = Vec<u128>> {
    let mixed = collection::vec((any::<u128>(), 32_u32..128), 0..300).prop_map(|numbers| {
        numbers
            .iter()
            .map(|(number, shift)| number >> shift)
            .collect()
    });
    prop_oneof![2 => around_a_base(), 1 => mixed]
}

fn around_a_base() -> impl Strategy<Value = Vec<u128>> {
    let spread = prop_oneof![Just(0_u32), 0_u32..90];
    (
        spread,
        any::<u128>(),
        collection::vec(any::<u128>(), 0..300),
    )
        .prop_map(|(shift, base, numbers)| {
            let within = |number: u128| number >> 32 >> shift;
            let base = (base >> 32) & !within(u128::MAX);
            numbers
                .iter()
                .map(|number| base | within(*number))
                .collect()
        })
}

fn expiries() -> impl Strategy<Value = Vec<u32>> {
    let width = prop_oneof![Just(0_u32), 0..3600_u32, 0..2_592_000_u32, 0..u32::MAX - 1];
    (
        width,
        1_u32..2_000_000_000,
        collection::vec(any::<u32>(), 1..300),
    )
        .prop_map(|(width, base, numbers)| {
            let later = |number: u32| ((u64::from(number) * u64::from(width)) >> 32) as u32;
            numbers
                .iter()
                .map(|number| base.saturating_add(later(*number)))
                .collect()
        })
}

fn sections() -> impl Strategy<Value = Sections> {
    collection::vec((fingerprints(), expiries()), 0..4).prop_map(|sections| {
        let section_of = |(range, (fingerprints, expiries)): (usize, (Vec<u128>, Vec<u32>))| {
            let expiries = expiries.iter().cycle();
            let entries: BTreeMap<u128, u32> =
                fingerprints.into_iter().zip(expiries.copied()).collect();
            let entries: Vec<Entry> = entries
                .into_iter()
                .map(|(number, expiry)| entry((number >> 32) as u64, number as u32, expiry))
                .collect();
            (section(range as u32, 0, u64::MAX), entries)
        };
        sections.into_iter().enumerate().map(section_of).collect()
    })
}

proptest! {
    #[test]
    fn a_file_reads_back_as_it_was_written(sections in sections(), written in 1_usize..400, portion in 1_usize..5000) {
        let header = header(FileKind::Full);
        let (file, totals) = write(&header, &sections, written);
        prop_assert_eq!(totals.bytes, file.len() as u64);
        let told = read_whole(&file, portion).unwrap();
        prop_assert_eq!(&told, &Told { header: Some(header.clone()), sections: sections.clone(), totals });

        let footer = Footer::decode(&file, file.len() as u64).unwrap();
        prop_assert_eq!(&footer.header, &header);
        prop_assert_eq!(footer.totals, totals);
        for (entry, section) in footer.sections.iter().zip(&sections) {
            let decoder = SnapshotDecoder::of_section(&footer, entry).unwrap();
            let bytes = &file[entry.bytes.start as usize..entry.bytes.end as usize];
            let told = read(decoder, bytes, portion).unwrap();
            prop_assert_eq!(told.header, None);
            prop_assert_eq!(&told.sections, std::slice::from_ref(section));
        }
    }

    #[test]
    fn any_bytes_are_an_error_and_never_a_panic(bytes in collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(read_whole(&bytes, 100).is_err());
        prop_assert!(Footer::decode(&bytes, bytes.len() as u64).is_err());
    }

    #[test]
    fn any_block_is_an_error_or_ascends_within_its_bounds(
        mut payload in collection::vec(any::<u8>(), 40..200),
        count in 0_u8..20,
        parameter in 0_u8..100,
        gaps_bytes in 0_u8..60,
        planes in 0_u8..6,
    ) {
        payload[..4].copy_from_slice(&u32::from(count).to_le_bytes());
        payload[16] = parameter;
        payload[17..21].copy_from_slice(&u32::from(gaps_bytes).to_le_bytes());
        if let Some(at) = payload.get_mut(25 + usize::from(gaps_bytes)) {
            *at = planes;
        }
        let bounds = HashRange::new(1 << 60, u64::MAX - (1 << 60)).unwrap();
        let mut entries = Vec::new();
        let mut decoder = expiries::ExpiryDecoder::new().unwrap();
        if block::decode(&payload, bounds, None, &mut decoder, &mut entries).is_ok() {
            prop_assert_eq!(entries.len(), usize::from(count));
            prop_assert!(entries.is_sorted_by(|a, b| a.fingerprint() < b.fingerprint()));
            prop_assert!(entries.iter().all(|entry| bounds.contains(entry.fingerprint().top())));
        }
    }
}

/// Enough entries for several blocks, spread as hashes are.
fn many(count: u64) -> Vec<Entry> {
    let step = u64::MAX / count;
    (0..count)
        .map(|index| {
            let jitter = index.wrapping_mul(0x9E37_79B9_7F4A_7C15) % step;
            entry(
                index * step + jitter,
                jitter as u32,
                1 + jitter as u32 % 5000,
            )
        })
        .collect()
}

#[test]
fn sections_of_many_blocks_read_back_and_the_footer_knows_where_blocks_begin() {
    let header = header(FileKind::Full);
    let entries = many(3 * BLOCK_ENTRIES as u64 + 5);
    let sections = vec![(section(0, 0, u64::MAX), entries.clone())];
    let (file, _) = write(&header, &sections, 4096);
    assert_eq!(read_whole(&file, 1000).unwrap().sections, sections);
    let footer = Footer::decode(&file, file.len() as u64).unwrap();
    let counts: Vec<u32> = footer.blocks.iter().map(|block| block.count).collect();
    assert_eq!(counts, [8192, 8192, 8192, 5]);
    for (block, entries) in footer.blocks.iter().zip(entries.chunks(BLOCK_ENTRIES)) {
        assert_eq!(block.first, entries[0].fingerprint());
        assert!(file[block.offset as usize..].starts_with(b"BLCK"));
    }
}

#[test]
fn a_decoder_keeps_no_more_than_a_block() {
    let sections = vec![(section(0, 0, u64::MAX), many(20 * BLOCK_ENTRIES as u64))];
    let (file, _) = write(&header(FileKind::Full), &sections, 4096);
    let mut decoder = SnapshotDecoder::new().unwrap();
    for bytes in file.chunks(10_000) {
        decoder.feed(bytes);
        while decoder.next_event().unwrap().is_some() {}
        assert!(
            decoder.memory_bytes() < 500_000,
            "{}",
            decoder.memory_bytes()
        );
    }
}

#[test]
fn a_decoder_whose_events_were_not_taken_does_not_say_that_nothing_is_missing() {
    let (_, _, file) = small();
    let mut decoder = SnapshotDecoder::new().unwrap();
    decoder.feed(&file);
    assert!(decoder.finish().is_err());
}

#[test]
fn a_file_that_is_cut_anywhere_is_an_error() {
    let (_, _, file) = small();
    for cut in 0..file.len() {
        assert!(
            matches!(
                read_whole(&file[..cut], 64),
                Err(SnapshotError::Truncated { bytes }) if bytes == cut as u64
            ),
            "cut at {cut}"
        );
        assert!(
            Footer::decode(&file[..cut], cut as u64).is_err(),
            "footer, cut at {cut}"
        );
    }
    assert!(read_whole(&file, 64).is_ok());
}

#[test]
fn a_flipped_byte_anywhere_is_an_error() {
    let (_, _, file) = small();
    let footer_at = Footer::decode(&file, file.len() as u64).unwrap().sections[2]
        .bytes
        .end as usize;
    for at in 0..file.len() {
        for bit in [0x01, 0x20, 0x80] {
            let mut flipped = file.clone();
            flipped[at] ^= bit;
            assert!(read_whole(&flipped, 64).is_err(), "flipped at {at}");
            assert_eq!(
                Footer::decode(&flipped, file.len() as u64).is_err(),
                at >= footer_at,
                "footer, flipped at {at}"
            );
        }
    }
}

#[test]
fn a_flipped_byte_anywhere_in_a_section_that_is_read_by_itself_is_an_error() {
    let (_, _, file) = small();
    let footer = Footer::decode(&file, file.len() as u64).unwrap();
    for section in &footer.sections {
        let bytes = &file[section.bytes.start as usize..section.bytes.end as usize];
        let decoder = || SnapshotDecoder::of_section(&footer, section).unwrap();
        for at in 0..bytes.len() {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 0x10;
            assert!(read(decoder(), &flipped, 64).is_err(), "flipped at {at}");
            assert!(read(decoder(), &bytes[..at], 64).is_err(), "cut at {at}");
        }
        let longer = [bytes, bytes].concat();
        assert!(read(decoder(), &longer, 64).is_err());
        assert!(read(decoder(), bytes, 64).is_ok());
    }
}

#[test]
fn a_missing_or_repeated_part_and_bytes_behind_the_end_are_errors() {
    let (_, _, file) = small();
    let footer = Footer::decode(&file, file.len() as u64).unwrap();
    let section = &footer.sections[0];
    let block = footer.blocks[0].offset as usize..section.bytes.end as usize;
    let whole = section.bytes.start as usize..section.bytes.end as usize;
    for (part, repeated) in [
        (block, "before the one ahead of it ends"),
        (whole, "range 0 has a second section"),
    ] {
        let without = [&file[..part.start], &file[part.end..]].concat();
        let error = read_whole(&without, 64).unwrap_err().to_string();
        assert!(error.contains("does not name what was read"), "{error}");
        let twice = [&file[..part.end], &file[part.start..]].concat();
        let error = read_whole(&twice, 64).unwrap_err().to_string();
        assert!(error.contains(repeated), "{error}");
    }
    let error = read_whole(&[&file[..], b"x"].concat(), 64).unwrap_err();
    assert!(error.to_string().contains("bytes follow its end"));
}

#[test]
fn the_bytes_of_another_section_are_not_taken_for_the_one_that_was_asked_for() {
    let sections = vec![
        (section(0, 0, 999), vec![entry(5, 0, 7)]),
        (section(1, 1000, 1999), vec![entry(1005, 0, 7)]),
    ];
    let (file, _) = write(&header(FileKind::Delta), &sections, 1);
    let footer = Footer::decode(&file, file.len() as u64).unwrap();
    let bytes = |index: usize| {
        let bytes = footer.sections[index].bytes.clone();
        &file[bytes.start as usize..bytes.end as usize]
    };
    assert_eq!(bytes(0).len(), bytes(1).len());
    let decoder = || SnapshotDecoder::of_section(&footer, &footer.sections[0]).unwrap();
    assert!(read(decoder(), bytes(0), 64).is_ok());
    let error = read(decoder(), bytes(1), 64).unwrap_err().to_string();
    assert!(
        error.contains("not the one that the footer names"),
        "{error}"
    );
}

#[test]
fn gaps_that_say_more_than_the_entries_are_errors() {
    let entries = [entry(1, 0, 7), entry(2, 0, 7), entry(4, 0, 7)];
    let mut expiries = expiries::ExpiryEncoder::new().unwrap();
    let mut payload = Vec::new();
    block::encode(&entries, &mut expiries, &mut payload).unwrap();
    let mut decoder = expiries::ExpiryDecoder::new().unwrap();
    let mut out = Vec::new();
    let mut decode = |payload: &[u8]| {
        block::decode(payload, HashRange::ALL, None, &mut decoder, &mut out).map(|()| out.clone())
    };
    assert_eq!(decode(&payload), Ok(entries.to_vec()));
    let (gaps_length, gaps) = (17, 21);
    let gaps_end = gaps + usize::from(payload[gaps_length]);
    let more = Err("the gaps are not as many as the entries");

    let mut left_over_bit = payload.clone();
    left_over_bit[gaps_end - 1] |= 0x80;
    assert_eq!(decode(&left_over_bit), more);
    let mut left_over_byte = payload;
    left_over_byte.insert(gaps_end, 0);
    left_over_byte[gaps_length] += 1;
    assert_eq!(decode(&left_over_byte), more);
}

#[test]
fn frames_of_another_file_do_not_fit_in() {
    let (mut header, sections, file) = small();
    header.incarnation = Incarnation::from_bytes([77; 16]);
    let (other, _) = write(&header, &sections, 2);
    let section = &Footer::decode(&file, file.len() as u64).unwrap().sections[0];
    let bytes = section.bytes.start as usize..section.bytes.end as usize;
    let mixed = [
        &file[..bytes.start],
        &other[bytes.clone()],
        &file[bytes.end..],
    ]
    .concat();
    let error = read_whole(&mixed, 64).unwrap_err().to_string();
    assert!(error.contains("checksum"), "{error}");
}

#[test]
fn a_tail_that_is_too_short_says_how_much_is_needed() {
    let (_, _, file) = small();
    let size = file.len() as u64;
    let mut tail_bytes = 10;
    let footer = loop {
        let tail = &file[file.len() - tail_bytes..];
        match Footer::decode(tail, size) {
            Ok(footer) => break footer,
            Err(FooterError::TailTooShort { needed_bytes }) => {
                assert!(needed_bytes > tail_bytes as u64);
                tail_bytes = needed_bytes as usize;
            }
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(footer.sections.len(), 3);
    assert_eq!(footer.section(RangeId(9)), footer.sections.get(2));
    assert_eq!(footer.section(RangeId(2)), None);
    assert!(
        Footer::decode(&file, size + 1).is_err(),
        "another file's size"
    );
}

#[test]
fn what_is_no_section_is_refused_by_the_writer() {
    let mut writer = SnapshotWriter::new(Vec::new(), &header(FileKind::Full)).unwrap();
    let refusal = |result: std::io::Result<()>| result.unwrap_err().to_string();
    assert!(refusal(writer.entries(&[entry(1, 1, 1)])).contains("need a section"));
    writer.begin_section(section(3, 10, 20)).unwrap();
    assert!(refusal(writer.entries(&[entry(9, 1, 1)])).contains("belong to range 3"));
    assert!(refusal(writer.entries(&[entry(21, 1, 1)])).contains("belong to range 3"));
    writer.entries(&[entry(11, 1, 1)]).unwrap();
    assert!(refusal(writer.entries(&[entry(11, 1, 2)])).contains("out of order"));
    assert!(refusal(writer.begin_section(section(3, 10, 20))).contains("a section already"));
    let long = SnapshotHeader {
        parents: vec!["x".repeat(2 << 20)],
        ..header(FileKind::Full)
    };
    assert!(SnapshotWriter::new(Vec::new(), &long).is_err());
}

#[test]
fn an_export_carries_the_seed_and_no_manifest_names_it() {
    let seed = HashSeed::new(0x1234);
    let header = header(FileKind::Export { seed });
    let (file, _) = write(&header, &vec![], 1);
    assert_eq!(read_whole(&file, 7).unwrap().header, Some(header));
    assert_eq!(FileKind::Export { seed }.snapshot(), None);
    assert_eq!(FileKind::from(SnapshotKind::Delta), FileKind::Delta);
    assert_eq!(FileKind::Full.snapshot(), Some(SnapshotKind::Full));
}

#[test]
fn formats_features_and_codecs_that_are_not_known_are_refused_by_name() {
    let refusal = |at: usize| {
        let mut payload = Vec::new();
        header(FileKind::Full).encode(&mut payload);
        payload[at] ^= 0x40;
        match SnapshotHeader::decode(&payload, 0) {
            Err(SnapshotError::Unsupported { what }) => what,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refusal(0), "format 65");
    assert_eq!(refusal(4), "features 0x40");
    assert_eq!(refusal(8), "kind 65");
    assert_eq!(refusal(9), "codecs [65, 1, 1]");
    assert_eq!(refusal(12), "entries of 32 + 32 bits");
}
