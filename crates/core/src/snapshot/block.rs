//! Blocks: some thousand entries, fingerprints and expiries in columns of their own.

use std::io;

use super::{
    expiries::{BLOCK_ENTRIES_MAX, ExpiryDecoder, ExpiryEncoder},
    gaps::{self, Gaps},
};
use crate::{Entry, FINGERPRINT_BYTES, Fingerprint, HashRange, bytes::Reader};

/// Entries in a block, all but a section's last: enough that what a block takes by itself does not count, few enough that coding
/// one does not stop others for long.
pub const BLOCK_ENTRIES: usize = 8192;

/// A reader takes blocks of up to so many bytes: twice what as many entries as it takes can have.
pub(super) const BLOCK_BYTES_MAX: usize = 2 * BLOCK_ENTRIES_MAX * size_of::<Entry>();

/// Appends a block of at least one entry.
pub(super) fn encode(
    entries: &[Entry],
    expiries: &mut ExpiryEncoder,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    let [first, .., last] = entries else {
        let [only] = entries else {
            return Ok(());
        };
        return encode_between(*only, *only, entries, expiries, out);
    };
    encode_between(*first, *last, entries, expiries, out)
}

fn encode_between(
    first: Entry,
    last: Entry,
    entries: &[Entry],
    expiries: &mut ExpiryEncoder,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    out.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    out.extend_from_slice(&first.fingerprint().to_bytes());
    // Parameter and length of the gaps, known once they are written.
    let head_at = out.len();
    out.extend_from_slice(&[0; 5]);
    let gaps_at = out.len();
    let fingerprints = entries.iter().map(|entry| entry.fingerprint());
    out.reserve(entries.len() * FINGERPRINT_BYTES);
    let parameter = gaps::encode(first.fingerprint(), last.fingerprint(), fingerprints, out);
    let gaps_bytes = (out.len() - gaps_at) as u32;
    out[head_at] = parameter;
    out[head_at + 1..gaps_at].copy_from_slice(&gaps_bytes.to_le_bytes());
    let seconds = entries.iter().map(|entry| entry.expiry().as_unix_seconds());
    expiries.encode(seconds, out)
}

/// A block's payload, read as far as its fingerprints' gaps.
struct Parts<'a> {
    count: usize,
    first: Fingerprint,
    parameter: u8,
    gaps: &'a [u8],
    expiries: Reader<'a>,
}

impl<'a> Parts<'a> {
    fn read(payload: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(payload);
        let count = usize::try_from(reader.u32()?).ok()?;
        let first = Fingerprint::from_bytes(&reader.array()?);
        let parameter = reader.u8()?;
        let gaps_bytes = usize::try_from(reader.u32()?).ok()?;
        let gaps = reader.take(gaps_bytes)?;
        Some(Self {
            count,
            first,
            parameter,
            gaps,
            expiries: reader,
        })
    }
}

/// Reads a block's payload into `out`. Its entries must lie in `bounds` and behind `after`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn decode(
    payload: &[u8],
    bounds: HashRange,
    after: Option<Fingerprint>,
    expiries: &mut ExpiryDecoder,
    out: &mut Vec<Entry>,
) -> Result<(), &'static str> {
    out.clear();
    let Parts {
        count,
        first,
        parameter,
        gaps,
        expiries: mut reader,
    } = Parts::read(payload).ok_or("the block ends early")?;
    if !(1..=BLOCK_ENTRIES_MAX).contains(&count) {
        return Err("the block has no entries, or too many");
    }
    if after.is_some_and(|after| first <= after) {
        return Err("the block begins before the one ahead of it ends");
    }
    if first.top() < bounds.start() {
        return Err("an entry lies outside of its section's bounds");
    }
    let mut gaps = Gaps::new(first, parameter, gaps).ok_or("the gaps' parameter is too large")?;
    let mut expiries_of_block = expiries
        .decode(count, &mut reader)
        .ok_or("the expiries are not as many as the entries")?;
    if !reader.rest().is_empty() {
        return Err("something lies behind the block's expiries");
    }
    let mut expiry = || {
        expiries_of_block
            .next()
            .flatten()
            .ok_or("an expiry is 0 or too late")
    };
    let last = Fingerprint::from_parts(bounds.last(), u32::MAX).as_u128();
    out.reserve(count);
    if first.as_u128() > last {
        return Err("an entry lies outside of its section's bounds");
    }
    out.push(Entry::new(first, expiry()?));
    for _ in 1..count {
        let value = gaps
            .next(last)
            .ok_or("an entry lies outside of its section's bounds")?;
        let fingerprint = Fingerprint::from_parts((value >> 32) as u64, value as u32);
        out.push(Entry::new(fingerprint, expiry()?));
    }
    if gaps.is_at_end() {
        Ok(())
    } else {
        Err("the gaps are not as many as the entries")
    }
}
