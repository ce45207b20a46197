//! What a record says, and how it is written.

use std::borrow::Cow;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::{
    Expiry, FINGERPRINT_BYTES, Incarnation, Lsn, OperationId, PackedFingerprints, RangeId,
    UnixMillis,
    bytes::{VARINT_BYTES_MAX, push_varint},
};

/// The longest record. A longer one is never written, and a length above it is damage.
pub const RECORD_BYTES_MAX: usize = 16 << 20;

/// Every record begins with this.
pub(super) const MAGIC: [u8; 4] = *b"KJRC";

/// What lies before a record's body.
pub(super) const HEAD_BYTES: usize = 40;

/// What the check of the head covers: magic and length.
pub(super) const CHECKED_HEAD_BYTES: usize = 8;

/// The checksum, behind everything else.
pub(super) const CHECKSUM_BYTES: usize = size_of::<u64>();

/// Records begin at multiples of this in their segment.
pub(super) const ALIGNMENT: usize = 8;

pub(super) const KIND_EMPTY: u8 = 0;
pub(super) const KIND_MARK: u8 = 1;
pub(super) const KIND_WRITE: u8 = 2;

/// The flag of a write that has an operation's id.
pub(super) const FLAG_OPERATION: u8 = 1;

/// One record of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its place; a [`RecordBody::Mark`] has that of the record before it.
    pub lsn: Lsn,
    /// Everything up to here was known to be synced when the record was written; at most `lsn`.
    pub synced: Lsn,
    /// The writer's clock.
    pub written: UnixMillis,
    /// What it says.
    pub body: RecordBody<'a>,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordBody<'a> {
    /// Nothing: its LSN was taken and not used.
    Empty,
    /// Nothing new, only what is synced. It uses up no LSN.
    Mark,
    /// Keys that were applied.
    Write(Write<'a>),
}

/// Keys that were applied at once: of one admitted put or claim, or a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write<'a> {
    /// Until when they live.
    pub expiry: Expiry,
    /// The claim's operation.
    pub operation: Option<OperationId>,
    /// What the operation was told, as the node's answer memory encodes it.
    pub answers: &'a [u8],
    /// How many of the keys belong to which range.
    pub groups: Cow<'a, [RecordGroup]>,
    /// The keys, in the groups' order. For a claim: only those that were absent.
    pub fingerprints: PackedFingerprints<'a>,
}

/// A run of keys of one range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordGroup {
    /// Which range.
    pub range: RangeId,
    /// Under which generation of its ownership.
    pub generation: u64,
    /// How many keys.
    pub count: u32,
}

/// What checksums of `disk_id`'s records are salted with.
#[inline]
pub(super) fn salt(disk_id: Incarnation) -> u64 {
    xxh3_64(&disk_id.to_bytes())
}

/// The check of a record's first [`CHECKED_HEAD_BYTES`].
#[inline]
pub(super) fn head_check(head: &[u8], salt: u64) -> u32 {
    xxh3_64_with_seed(head, salt) as u32
}

/// The checksum of a record's other bytes.
#[inline]
pub(super) fn checksum(bytes: &[u8], salt: u64) -> u64 {
    xxh3_64_with_seed(bytes, salt)
}

/// The size that no record with so many groups, keys and bytes of answers exceeds.
pub const fn record_bytes_max(groups: usize, keys: usize, answers_bytes: usize) -> usize {
    const FIXED_BYTES: usize = HEAD_BYTES
        + size_of::<u32>()
        + size_of::<OperationId>()
        + 2 * VARINT_BYTES_MAX
        + ALIGNMENT
        + CHECKSUM_BYTES;
    FIXED_BYTES + answers_bytes + groups * 3 * VARINT_BYTES_MAX + keys * FINGERPRINT_BYTES
}

/// Appends a record: a multiple of 8 bytes.
///
/// # Panics
/// When the groups' counts do not add up to the number of fingerprints, or the record is longer than [`RECORD_BYTES_MAX`]: nobody
/// could read it back.
pub fn encode_record(out: &mut Vec<u8>, disk_id: Incarnation, record: &Record<'_>) {
    let (kind, flags) = match &record.body {
        RecordBody::Empty => (KIND_EMPTY, 0),
        RecordBody::Mark => (KIND_MARK, 0),
        RecordBody::Write(write) if write.operation.is_some() => (KIND_WRITE, FLAG_OPERATION),
        RecordBody::Write(_) => (KIND_WRITE, 0),
    };
    let start = out.len();
    let mut head = [0; HEAD_BYTES];
    head[..4].copy_from_slice(&MAGIC);
    head[12] = kind;
    head[13] = flags;
    head[16..24].copy_from_slice(&record.lsn.0.to_le_bytes());
    head[24..32].copy_from_slice(&record.synced.0.to_le_bytes());
    head[32..40].copy_from_slice(&record.written.0.to_le_bytes());
    if let RecordBody::Write(write) = &record.body {
        out.reserve(record_bytes_max(
            write.groups.len(),
            write.fingerprints.len(),
            write.answers.len(),
        ));
        out.extend_from_slice(&head);
        push_write(out, write);
    } else {
        out.extend_from_slice(&head);
    }
    let unpadded = out.len() - start;
    let length = unpadded.next_multiple_of(ALIGNMENT) + CHECKSUM_BYTES;
    assert!(
        length <= RECORD_BYTES_MAX,
        "a record of {length} bytes is longer than {RECORD_BYTES_MAX}"
    );
    out.resize(start + length - CHECKSUM_BYTES, 0);
    let salt = salt(disk_id);
    let record = &mut out[start..];
    record[4..8].copy_from_slice(&(length as u32).to_le_bytes());
    let head_check = head_check(&record[..CHECKED_HEAD_BYTES], salt);
    record[8..12].copy_from_slice(&head_check.to_le_bytes());
    let checksum = checksum(record, salt);
    out.extend_from_slice(&checksum.to_le_bytes());
}

fn push_write(out: &mut Vec<u8>, write: &Write<'_>) {
    out.extend_from_slice(&write.expiry.as_unix_seconds().to_le_bytes());
    if let Some(operation) = write.operation {
        out.extend_from_slice(&operation.to_bytes());
    }
    push_varint(out, write.answers.len() as u64);
    out.extend_from_slice(write.answers);
    push_varint(out, write.groups.len() as u64);
    let mut keys = 0;
    for group in write.groups.iter() {
        push_varint(out, u64::from(group.range.0));
        push_varint(out, group.generation);
        push_varint(out, u64::from(group.count));
        keys += group.count as usize;
    }
    assert_eq!(
        keys,
        write.fingerprints.len(),
        "the groups of a record have as many keys as it has fingerprints"
    );
    out.extend_from_slice(write.fingerprints.as_bytes());
}
