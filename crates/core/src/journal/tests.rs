//! Records and headers there and back, and what becomes of damaged ones.

use std::borrow::Cow;

use proptest::{collection, option, prelude::*};
use xxhash_rust::xxh3::xxh3_64;

use super::*;
use crate::{
    ClusterId, Expiry, FINGERPRINT_BYTES, Incarnation, Lsn, NodeId, OperationId,
    PackedFingerprints, RangeId, UnixMillis,
};

const DISK: Incarnation = Incarnation::from_bytes([7; 16]);

fn header() -> SegmentHeader {
    SegmentHeader {
        cluster_id: ClusterId::from_bytes([1; 16]),
        disk_id: DISK,
        node: NodeId(3),
        first_lsn: Lsn(101),
        previous_last_lsn: Lsn(100),
        prepared_bytes: 64 << 20,
        created: UnixMillis(1_700_000_000_123),
        required_features: 0,
    }
}

fn groups(counts: &[u32]) -> Vec<RecordGroup> {
    let group = |(index, count): (usize, &u32)| RecordGroup {
        range: RangeId(index as u32 * 100),
        generation: u64::MAX >> index,
        count: *count,
    };
    counts.iter().enumerate().map(group).collect()
}

fn write<'a>(groups: &'a [RecordGroup], fingerprints: &'a [u8], answers: &'a [u8]) -> Write<'a> {
    Write {
        expiry: Expiry::from_unix_seconds(1_700_000_000).unwrap(),
        operation: Some(OperationId::from_bytes([9; 16])),
        answers,
        groups: Cow::Borrowed(groups),
        fingerprints: PackedFingerprints::new(fingerprints).unwrap(),
    }
}

fn record(lsn: u64, body: RecordBody<'_>) -> Record<'_> {
    Record {
        lsn: Lsn(lsn),
        synced: Lsn(lsn.saturating_sub(2)),
        written: UnixMillis(1_700_000_000_000 + lsn),
        body,
    }
}

fn encode(record: &Record<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    encode_record(&mut out, DISK, record);
    out
}

/// A mark, a write and an empty record one behind the other, and where each begins.
fn small_journal() -> (Vec<u8>, Vec<usize>) {
    let groups = groups(&[2, 0, 1]);
    let fingerprints = [5; 3 * FINGERPRINT_BYTES];
    let bodies = [
        RecordBody::Mark,
        RecordBody::Write(write(&groups, &fingerprints, b"answers")),
        RecordBody::Empty,
    ];
    let mut bytes = Vec::new();
    let mut starts = Vec::new();
    for (lsn, body) in (10..).zip(bodies) {
        starts.push(bytes.len());
        encode_record(&mut bytes, DISK, &record(lsn, body));
    }
    (bytes, starts)
}

proptest! {
    #[test]
    fn a_record_reads_back_as_it_was_written(
        lsn in 1_u64..u64::MAX,
        synced in any::<u64>(),
        written: u64,
        expiry in 1_u32..,
        operation in option::of(any::<[u8; 16]>()),
        answers in collection::vec(any::<u8>(), 0..200),
        keys in collection::vec((any::<u32>(), any::<u64>(), 0_u32..50), 0..60),
        seed: u8,
        rest in collection::vec(any::<u8>(), 0..40),
    ) {
        let groups: Vec<RecordGroup> = keys
            .iter()
            .map(|(range, generation, count)| RecordGroup { range: RangeId(*range), generation: *generation, count: *count })
            .collect();
        let count: usize = groups.iter().map(|group| group.count as usize).sum();
        let fingerprints: Vec<u8> = (0..count * FINGERPRINT_BYTES).map(|at| (at as u8).wrapping_mul(seed)).collect();
        let written = Record {
            lsn: Lsn(lsn),
            synced: Lsn(synced % (lsn + 1)),
            written: UnixMillis(written),
            body: RecordBody::Write(Write {
                expiry: Expiry::from_unix_seconds(expiry).unwrap(),
                operation: operation.map(OperationId::from_bytes),
                answers: &answers,
                groups: Cow::Borrowed(&groups),
                fingerprints: PackedFingerprints::new(&fingerprints).unwrap(),
            }),
        };
        let mut bytes = encode(&written);
        let length = bytes.len();
        prop_assert!(length.is_multiple_of(8));
        prop_assert!(length <= record_bytes_max(groups.len(), count, answers.len()));
        bytes.extend(&rest);
        let (read, taken) = decode_record(&bytes, DISK).unwrap();
        prop_assert_eq!(taken, length);
        prop_assert_eq!(read, written);
    }

    #[test]
    fn any_bytes_are_an_error_or_a_record_and_never_a_panic(bytes in collection::vec(any::<u8>(), 0..200), from in 0_usize..300) {
        let _ = decode_record(&bytes, DISK);
        let _ = find_record(&bytes, from, DISK);
        let _ = SegmentHeader::decode(&bytes);
    }
}

#[test]
fn records_without_content_read_back() {
    for body in [RecordBody::Empty, RecordBody::Mark] {
        let written = record(5, body);
        let bytes = encode(&written);
        assert_eq!(bytes.len(), 48);
        let (read, length) = decode_record(&bytes, DISK).unwrap();
        assert_eq!((read, length), (written, 48));
    }
    let before_everything = Record {
        synced: Lsn::ZERO,
        ..record(0, RecordBody::Mark)
    };
    assert!(decode_record(&encode(&before_everything), DISK).is_ok());
}

#[test]
fn the_end_is_where_no_bytes_or_zeros_come_next() {
    for length in [0, 1, 7, 8, 4096] {
        let zeros = vec![0; length];
        assert_eq!(
            decode_record(&zeros, DISK).err(),
            Some(RecordError::End),
            "{length}"
        );
    }
    assert!(matches!(
        decode_record(&[0, 0, 1], DISK),
        Err(RecordError::Damaged { .. })
    ));
}

#[test]
fn a_record_that_is_cut_anywhere_is_damaged() {
    let (bytes, starts) = small_journal();
    for cut in 1..starts[1] {
        assert!(
            matches!(
                decode_record(&bytes[..cut], DISK),
                Err(RecordError::Damaged { .. })
            ),
            "cut at {cut}"
        );
        // As it looks in a segment that was filled with zeros before.
        let mut zeroed = bytes[..starts[1]].to_vec();
        zeroed[cut..].fill(0);
        assert!(decode_record(&zeroed, DISK).is_err(), "zeros from {cut} on");
    }
}

#[test]
fn a_flipped_byte_makes_its_record_damaged_and_the_next_one_is_found() {
    let (bytes, starts) = small_journal();
    for at in 0..bytes.len() {
        for bit in [0x01, 0x80] {
            let mut flipped = bytes.clone();
            flipped[at] ^= bit;
            let hit = starts.iter().rposition(|start| *start <= at).unwrap();
            for (index, start) in starts.iter().enumerate() {
                let read = decode_record(&flipped[*start..], DISK);
                if index == hit {
                    assert!(
                        matches!(read, Err(RecordError::Damaged { .. })),
                        "flipped at {at}"
                    );
                } else {
                    assert!(read.is_ok(), "flipped at {at}, record {index}");
                }
            }
            let found = find_record(&flipped, starts[hit], DISK).map(|(offset, _)| offset);
            assert_eq!(found, starts.get(hit + 1).copied(), "flipped at {at}");
        }
    }
}

#[test]
fn a_damaged_length_is_noticed_before_the_bytes_that_it_asks_for_are_there() {
    let mut bytes = encode(&record(5, RecordBody::Empty));
    bytes[6] ^= 0x01;
    let error = decode_record(&bytes, DISK).unwrap_err().to_string();
    assert!(error.contains("check of its length"), "{error}");
}

#[test]
fn a_count_of_groups_that_does_not_fit_the_record_takes_no_memory() {
    // The answers become a number of groups, as large as can be written.
    let mut answers = [0xff; 10];
    answers[9] = 1;
    let bytes = encode(&record(5, RecordBody::Write(write(&[], &[], &answers))));
    let answers_length = 40 + 4 + 16;
    let changed = sealed(bytes, |bytes| bytes[answers_length] = 0);
    assert!(matches!(
        decode_record(&changed, DISK),
        Err(RecordError::Unreadable { .. })
    ));
}

#[test]
fn the_next_record_is_found_behind_zeros_and_at_boundaries_only() {
    let mark = encode(&record(12, RecordBody::Mark));
    let mut bytes = vec![0; 4096];
    bytes.extend_from_slice(&mark);
    let (offset, found) = find_record(&bytes, 3, DISK).unwrap();
    assert_eq!((offset, found.lsn, found.synced), (4096, Lsn(12), Lsn(10)));
    assert!(find_record(&bytes, 4097, DISK).is_none());
    bytes.insert(0, 0);
    assert!(find_record(&bytes, 0, DISK).is_none());
}

#[test]
fn what_another_disk_wrote_is_no_record() {
    let bytes = encode(&record(5, RecordBody::Empty));
    let other = Incarnation::from_bytes([8; 16]);
    assert!(matches!(
        decode_record(&bytes, other),
        Err(RecordError::Damaged { .. })
    ));
    assert!(find_record(&bytes, 0, other).is_none());
}

/// Changes a record's bytes and makes its checksums right again.
fn sealed(mut bytes: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    change(&mut bytes);
    let salt = record::salt(DISK);
    let check = record::head_check(&bytes[..8], salt);
    bytes[8..12].copy_from_slice(&check.to_le_bytes());
    let content = bytes.len() - record::CHECKSUM_BYTES;
    let sum = record::checksum(&bytes[..content], salt);
    bytes[content..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

#[test]
fn an_intact_record_that_is_not_understood_is_never_taken_for_a_torn_one() {
    let groups = groups(&[1]);
    let body = RecordBody::Write(write(&groups, &[1; FINGERPRINT_BYTES], b""));
    let bytes = encode(&record(5, body));
    let first_varint = 40 + 4 + 16;
    let changes: [(&str, usize, u8); 8] = [
        ("kind", 12, 9),
        ("flag", 13, 2),
        ("reserved byte", 14, 1),
        ("more synced than there is", 24, 6),
        ("expiry 0", 40, 0),
        ("answers longer than the record", first_varint, 100),
        ("more groups than fit", first_varint + 1, 100),
        ("padding", bytes.len() - 9, 1),
    ];
    for (what, at, value) in changes {
        let changed = sealed(bytes.clone(), |bytes| {
            if what == "expiry 0" {
                bytes[at..at + 4].fill(0);
            }
            bytes[at] = value;
        });
        assert!(
            matches!(
                decode_record(&changed, DISK),
                Err(RecordError::Unreadable { .. })
            ),
            "{what}"
        );
    }
    let unchanged = sealed(bytes, |_| {});
    assert!(decode_record(&unchanged, DISK).is_ok());
}

#[test]
fn lengths_that_no_record_has_are_damage() {
    let bytes = encode(&record(5, RecordBody::Empty));
    for length in [0, 8, 40, 49, RECORD_BYTES_MAX as u32 + 8, u32::MAX] {
        let mut changed = bytes.clone();
        changed[4..8].copy_from_slice(&length.to_le_bytes());
        let check = record::head_check(&changed[..8], record::salt(DISK));
        changed[8..12].copy_from_slice(&check.to_le_bytes());
        assert!(
            matches!(
                decode_record(&changed, DISK),
                Err(RecordError::Damaged { .. })
            ),
            "{length}"
        );
    }
}

#[test]
#[should_panic(expected = "as many keys")]
fn a_record_whose_groups_do_not_add_up_is_not_written() {
    let groups = groups(&[2]);
    let body = RecordBody::Write(write(&groups, &[1; FINGERPRINT_BYTES], b""));
    encode(&record(5, body));
}

#[test]
fn a_segment_header_reads_back() {
    let bytes = header().encode();
    assert_eq!(bytes.len(), SEGMENT_HEADER_BYTES);
    assert_eq!(SegmentHeader::decode(&bytes), Ok(header()));
    let with_records = [bytes, vec![1; 100]].concat();
    assert_eq!(SegmentHeader::decode(&with_records), Ok(header()));
}

#[test]
fn a_segment_header_that_is_cut_or_flipped_anywhere_is_refused() {
    let bytes = header().encode();
    for at in 0..bytes.len() {
        assert!(SegmentHeader::decode(&bytes[..at]).is_err(), "cut at {at}");
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x10;
        assert!(
            matches!(
                SegmentHeader::decode(&flipped),
                Err(JournalError::Damaged(_))
            ),
            "flipped at {at}"
        );
    }
}

#[test]
fn a_segment_of_another_format_or_with_unknown_features_is_refused_by_name() {
    let refusal = |header: SegmentHeader| {
        SegmentHeader::decode(&header.encode())
            .unwrap_err()
            .to_string()
    };
    let features = SegmentHeader {
        required_features: 4,
        ..header()
    };
    assert!(refusal(features).contains("features 0x4"));
    let mut newer = header().encode();
    newer[8] = 2;
    let (content, sum) = newer.split_last_chunk_mut::<8>().unwrap();
    *sum = xxh3_64(content).to_le_bytes();
    let error = SegmentHeader::decode(&newer).unwrap_err();
    assert!(error.to_string().contains("format 2"));
    let backwards = SegmentHeader {
        first_lsn: Lsn(100),
        ..header()
    };
    assert!(refusal(backwards).contains("begins with LSN 100"));
}
