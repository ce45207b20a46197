//! The journal's bytes: what was applied, in order, in segments. `docs/formats.md` has every field.
//!
//! A segment is a [`SegmentHeader`] and records, one behind the other, each a multiple of 8 bytes long. A record's checksum is
//! salted with the disk's id, so that what another disk wrote is never taken for this one's. A segment may be longer than its
//! records: zeros follow then.
//!
//! **Torn or damaged?** A write that a crash cut short leaves a record that does not decode, and nothing that it told of was
//! acknowledged. Damage looks the same, but what was synced may have been acknowledged. Therefore records say up to where the
//! journal was known to be synced when they were written, and a [`RecordBody::Mark`] says so when nothing else is written: if any
//! record that still decodes says that a bad one had been synced, that one is damaged. [`find_record`] finds those that still
//! decode.

mod decode;
mod record;
mod segment;
#[cfg(test)]
mod tests;

pub use decode::{RecordError, decode_record, find_record};
pub use record::{
    RECORD_BYTES_MAX, Record, RecordBody, RecordGroup, Write, encode_record, record_bytes_max,
};
pub use segment::{JournalError, SEGMENT_HEADER_BYTES, SegmentHeader};
