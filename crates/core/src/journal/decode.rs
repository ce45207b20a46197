//! How records are read back, from bytes that nobody vouches for.

use std::borrow::Cow;

use super::record::{
    ALIGNMENT, CHECKED_HEAD_BYTES, CHECKSUM_BYTES, FLAG_OPERATION, HEAD_BYTES, KIND_EMPTY,
    KIND_MARK, KIND_WRITE, MAGIC, RECORD_BYTES_MAX, Record, RecordBody, RecordGroup, Write,
    checksum, head_check, salt,
};
use crate::{
    Expiry, FINGERPRINT_BYTES, Incarnation, Lsn, OperationId, PackedFingerprints, RangeId,
    UnixMillis, bytes::Reader,
};

/// The bytes of the smallest group: three varints.
const GROUP_BYTES_MIN: usize = 3;

/// Why there is no record to be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// No bytes are left, or zeros come next. Whether a record follows them after all, [`find_record`] tells.
    #[error("there is no record")]
    End,
    /// The bytes are not those that this disk wrote: a write was cut short, or they were damaged.
    #[error("the record is damaged or cut short: {what}")]
    Damaged {
        /// What is wrong.
        what: String,
    },
    /// The bytes are those that this disk wrote (the checksum matches), but this build cannot read them. Never a torn write.
    #[error("the record is intact, but this build cannot read it: {what}")]
    Unreadable {
        /// What is not understood.
        what: String,
    },
}

fn damaged(what: impl Into<String>) -> RecordError {
    RecordError::Damaged { what: what.into() }
}

fn unreadable(what: impl Into<String>) -> RecordError {
    RecordError::Unreadable { what: what.into() }
}

/// Reads the record that `bytes` begin with; with it comes the number of bytes that it takes.
///
/// # Errors
/// When there is none, or none that can be read.
pub fn decode_record(
    bytes: &[u8],
    disk_id: Incarnation,
) -> Result<(Record<'_>, usize), RecordError> {
    decode(bytes, salt(disk_id))
}

/// The next record that can be read, at an offset of `from` or above that is a multiple of 8; with it comes its offset.
///
/// It hashes each run of bytes that begins as one of this disk's records does, and that is next to nothing but records.
pub fn find_record(bytes: &[u8], from: usize, disk_id: Incarnation) -> Option<(usize, Record<'_>)> {
    let salt = salt(disk_id);
    let offsets = (from.next_multiple_of(ALIGNMENT)..bytes.len()).step_by(ALIGNMENT);
    offsets
        .filter(|offset| bytes[*offset..].starts_with(&MAGIC))
        .find_map(|offset| {
            let (record, _) = decode(&bytes[offset..], salt).ok()?;
            Some((offset, record))
        })
}

fn decode(bytes: &[u8], salt: u64) -> Result<(Record<'_>, usize), RecordError> {
    let first = &bytes[..bytes.len().min(ALIGNMENT)];
    if first.iter().all(|byte| *byte == 0) {
        return Err(RecordError::End);
    }
    let length = record_length(bytes, salt)?;
    let Some(record) = bytes.get(..length) else {
        return Err(damaged(format!(
            "it has {length} bytes, of which {} are there",
            bytes.len()
        )));
    };
    let (content, sum) = record
        .split_last_chunk()
        .ok_or_else(|| damaged("it is shorter than a checksum"))?;
    if checksum(content, salt) != u64::from_le_bytes(*sum) {
        return Err(damaged("its checksum does not match"));
    }
    Ok((read(content)?, length))
}

/// The whole record's length.
fn record_length(bytes: &[u8], salt: u64) -> Result<usize, RecordError> {
    let too_short = || damaged(format!("only {} bytes are there", bytes.len()));
    let mut reader = Reader::new(bytes);
    let checked = reader.take(CHECKED_HEAD_BYTES).ok_or_else(too_short)?;
    let check = reader.u32().ok_or_else(too_short)?;
    if !checked.starts_with(&MAGIC) {
        return Err(damaged("it does not begin as a record does"));
    }
    if head_check(checked, salt) != check {
        return Err(damaged("the check of its length does not match"));
    }
    let length = Reader::new(&checked[MAGIC.len()..])
        .u32()
        .ok_or_else(too_short)? as usize;
    let possible = HEAD_BYTES + CHECKSUM_BYTES..=RECORD_BYTES_MAX;
    if !possible.contains(&length) || !length.is_multiple_of(ALIGNMENT) {
        return Err(damaged(format!("{length} is not the length of a record")));
    }
    Ok(length)
}

/// Reads a record whose checksum matches.
fn read(content: &[u8]) -> Result<Record<'_>, RecordError> {
    let (kind, flags, lsn, synced, written, body) =
        read_head(content).ok_or_else(|| unreadable("its head ends early"))?;
    let known_flags = if kind == KIND_WRITE {
        FLAG_OPERATION
    } else {
        0
    };
    if flags & !u32::from(known_flags) != 0 {
        return Err(unreadable(format!("flags {flags:#x} of kind {kind}")));
    }
    let (body, padding) = match kind {
        KIND_EMPTY => (RecordBody::Empty, body),
        KIND_MARK => (RecordBody::Mark, body),
        KIND_WRITE => {
            let has_operation = flags & u32::from(FLAG_OPERATION) != 0;
            let (write, padding) = read_write(body, has_operation)
                .ok_or_else(|| unreadable("its content contradicts its length"))?;
            (RecordBody::Write(write), padding)
        }
        _ => return Err(unreadable(format!("kind {kind}"))),
    };
    if padding.len() >= ALIGNMENT || padding.iter().any(|byte| *byte != 0) {
        return Err(unreadable("something lies behind its content"));
    }
    let is_first_possible = matches!(body, RecordBody::Mark) || lsn != Lsn::ZERO;
    if synced > lsn || !is_first_possible {
        return Err(unreadable(format!("LSN {lsn} with {synced} synced")));
    }
    Ok(Record {
        lsn,
        synced,
        written,
        body,
    })
}

type Head<'a> = (u8, u32, Lsn, Lsn, UnixMillis, &'a [u8]);

fn read_head(content: &[u8]) -> Option<Head<'_>> {
    let mut reader = Reader::new(content);
    reader.take(CHECKED_HEAD_BYTES + size_of::<u32>())?;
    let kind = reader.u8()?;
    // The two bytes behind the flags are nobody's yet: they count as flags that nobody knows.
    let flags = u32::from(reader.u8()?) | u32::from(reader.u16()?) << 8;
    let lsn = Lsn(reader.u64()?);
    let synced = Lsn(reader.u64()?);
    let written = UnixMillis(reader.u64()?);
    Some((kind, flags, lsn, synced, written, reader.rest()))
}

fn read_write(body: &[u8], has_operation: bool) -> Option<(Write<'_>, &[u8])> {
    let mut reader = Reader::new(body);
    let expiry = Expiry::from_unix_seconds(reader.u32()?)?;
    let operation = if has_operation {
        Some(OperationId::from_bytes(reader.array()?))
    } else {
        None
    };
    let answers_bytes = reader.varint()?;
    let answers = reader.take(usize::try_from(answers_bytes).ok()?)?;
    let group_count = usize::try_from(reader.varint()?).ok()?;
    if group_count > reader.rest().len() / GROUP_BYTES_MIN {
        return None;
    }
    let mut groups = Vec::with_capacity(group_count);
    let mut keys = 0_usize;
    for _ in 0..group_count {
        let group = RecordGroup {
            range: RangeId(u32::try_from(reader.varint()?).ok()?),
            generation: reader.varint()?,
            count: u32::try_from(reader.varint()?).ok()?,
        };
        keys = keys.checked_add(group.count as usize)?;
        groups.push(group);
    }
    let fingerprints = reader.take(keys.checked_mul(FINGERPRINT_BYTES)?)?;
    let write = Write {
        expiry,
        operation,
        answers,
        groups: Cow::Owned(groups),
        fingerprints: PackedFingerprints::new(fingerprints).ok()?,
    };
    Some((write, reader.rest()))
}
