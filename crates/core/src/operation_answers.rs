//! What an operation was told, as journals, files and nodes' memories have it: a row of parts, one for each sending that had
//! something new to say.
//!
//! ```text
//! part    := expiry (4 bytes, little-endian, seconds since 1970)
//!            groups × 2 + (1 if there are unknown bits) (varint)
//!            group × groups
//!            first bits of all groups, in order, padded to whole bytes
//!            unknown bits likewise, if there are any
//! group   := range (varint)  count (varint)  digest (4 bytes, little-endian; none if count is 0)
//! ```
//!
//! A count of 0 stands for a range that was applied in part. The digest is that of all keys that were sent; where the key set refused
//! one of them, only those before it are counted and answered. A range lies in one part only: a newer answer replaces an older.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::Arc,
};

use crate::{
    Bitmap, Expiry, RangeId,
    bytes::{Reader, VARINT_BYTES_MAX, push_varint},
};

/// What one operation was told, range by range.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OperationAnswers(Arc<[u8]>);

/// The answers of one sending, while they come in.
#[derive(Debug)]
pub struct AnswersDraft {
    expiry: Expiry,
    groups: Vec<u8>,
    group_count: u64,
    first: Bits,
    /// Shorter than `first` where the keys at the end were all known.
    unknown: Bits,
}

/// The answers to one range's keys.
#[derive(Debug, Clone)]
pub struct RangeAnswers {
    digest: u32,
    count: usize,
    expiry: Expiry,
    answers: Arc<[u8]>,
    first_bit: usize,
    unknown_bit: Option<usize>,
}

impl RangeAnswers {
    /// The low half of the XXH3-64 of all of the range's fingerprints, in the order in which they were sent.
    pub const fn digest(&self) -> u32 {
        self.digest
    }

    /// How many keys are answered, from the first on: fewer than were sent where the next one was refused; 0 when they were applied in
    /// part, and nobody knows which.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// When the keys that were first expire, and the answers with them.
    pub const fn expiry(&self) -> Expiry {
        self.expiry
    }

    /// Writes the answers into bits `offset..offset + count` of a reply's bitmaps. The one of unknown keys is made, as long as
    /// `first`, when there is the first of them.
    pub fn answer(&self, first: &mut Bitmap, unknown: &mut Option<Bitmap>, offset: usize) {
        for index in 0..self.count {
            first.or(offset + index, bit(&self.answers, self.first_bit + index));
        }
        let Some(unknown_bit) = self.unknown_bit else {
            return;
        };
        for index in 0..self.count {
            if bit(&self.answers, unknown_bit + index) {
                unknown
                    .get_or_insert_with(|| Bitmap::new(first.len()))
                    .or(offset + index, true);
            }
        }
    }
}

impl AnswersDraft {
    /// Of a sending whose new keys live until `expiry`.
    pub fn new(expiry: Expiry) -> Self {
        Self {
            expiry,
            groups: Vec::new(),
            group_count: 0,
            first: Bits::default(),
            unknown: Bits::default(),
        }
    }

    /// The answers of this draft count until `expiry` at most.
    pub fn expire_by(&mut self, expiry: Expiry) {
        self.expiry = self.expiry.min(expiry);
    }

    /// Adds the answers to one range's keys, which have this `digest`: bits `offset..offset + count` of the bitmaps. There is at
    /// least one.
    pub fn group(
        &mut self,
        range: RangeId,
        digest: u32,
        count: usize,
        first: &Bitmap,
        unknown: Option<&Bitmap>,
        offset: usize,
    ) {
        self.head(range, count);
        self.groups.extend_from_slice(&digest.to_le_bytes());
        let bits = offset..offset + count;
        if let Some(unknown) = unknown.filter(|unknown| unknown.count_in(bits.clone()) > 0) {
            self.unknown.pad_to(self.first.len);
            self.unknown.extend(unknown, bits.clone());
        }
        self.first.extend(first, bits);
    }

    /// Adds a range of which nobody knows what was applied.
    pub fn group_partially_applied(&mut self, range: RangeId) {
        self.head(range, 0);
    }

    /// The answers; empty when there are no groups.
    pub fn encode(&self) -> OperationAnswers {
        let mut out = Vec::new();
        self.encode_to(&mut out);
        OperationAnswers(out.into())
    }

    fn encode_to(&self, out: &mut Vec<u8>) {
        if self.group_count == 0 {
            return;
        }
        let has_unknown = self.unknown.len > 0;
        let bits_bytes = self.first.bytes.len() * (1 + usize::from(has_unknown));
        out.reserve(4 + VARINT_BYTES_MAX + self.groups.len() + bits_bytes);
        out.extend_from_slice(&self.expiry.as_unix_seconds().to_le_bytes());
        push_varint(out, self.group_count * 2 + u64::from(has_unknown));
        out.extend_from_slice(&self.groups);
        out.extend_from_slice(&self.first.bytes);
        if has_unknown {
            out.extend_from_slice(&self.unknown.bytes);
            // Groups without unknown keys may have come after the last one with them.
            out.resize(
                out.len() + self.first.bytes.len() - self.unknown.bytes.len(),
                0,
            );
        }
    }

    fn head(&mut self, range: RangeId, count: usize) {
        if self.groups.capacity() == 0 {
            self.groups.reserve(1024);
        }
        push_varint(&mut self.groups, u64::from(range.0));
        push_varint(&mut self.groups, count as u64);
        self.group_count += 1;
    }
}

impl OperationAnswers {
    /// Answers that were read from somewhere; `None` when the bytes are not that.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        each_group(bytes, |_| {})?;
        Some(Self(bytes.into()))
    }

    /// The bytes that they are in journals and files.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether they say nothing of any range.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What was answered for each range.
    pub fn ranges(&self) -> HashMap<RangeId, RangeAnswers> {
        let mut out = HashMap::new();
        self.each_range(|range, answers| {
            out.insert(range, answers);
        });
        out
    }

    /// These and `newer` ones, which replace these where they are of the same range.
    #[must_use]
    pub fn followed_by(&self, newer: &Self) -> Self {
        self.without(newer).and(newer)
    }

    /// These and those of other ranges.
    #[must_use]
    pub fn and(&self, others: &Self) -> Self {
        Self([&self.0[..], &others.0].concat().into())
    }

    /// What was answered for ranges that `others` do not have.
    #[must_use]
    pub fn without(&self, others: &Self) -> Self {
        let mut ranges = HashSet::new();
        // They were read before, so there is nothing that could not be.
        let _ = each_group(&others.0, |group| {
            ranges.insert(group.range);
        });
        let is_in_others = |range| ranges.contains(&range);
        // Mostly they have none of them.
        if self.has_any(is_in_others) {
            self.only(|range| !is_in_others(range))
        } else {
            self.clone()
        }
    }

    /// Whether anything was answered for any of the ranges that are `wanted`.
    pub fn has_any(&self, wanted: impl Fn(RangeId) -> bool) -> bool {
        let mut has = false;
        // They were read before, so there is nothing that could not be.
        let _ = each_group(&self.0, |group| has |= wanted(group.range));
        has
    }

    /// What was answered for the ranges that are to be `kept`.
    #[must_use]
    pub fn only(&self, kept: impl Fn(RangeId) -> bool) -> Self {
        Self(self.encode_only(kept).into())
    }

    fn encode_only(&self, kept: impl Fn(RangeId) -> bool) -> Vec<u8> {
        let mut out = Vec::new();
        let mut draft: Option<AnswersDraft> = None;
        self.each_range(|range, group| {
            if !kept(range) {
                return;
            }
            // Groups that expire together need not have been sent together to share a part.
            if draft
                .as_ref()
                .is_none_or(|draft| draft.expiry != group.expiry)
                && let Some(full) = draft.replace(AnswersDraft::new(group.expiry))
            {
                full.encode_to(&mut out);
            }
            let draft = draft.get_or_insert_with(|| AnswersDraft::new(group.expiry));
            if group.count == 0 {
                draft.group_partially_applied(range);
                return;
            }
            let mut first = Bitmap::new(group.count);
            let mut unknown = None;
            group.answer(&mut first, &mut unknown, 0);
            draft.group(
                range,
                group.digest,
                group.count,
                &first,
                unknown.as_ref(),
                0,
            );
        });
        if let Some(draft) = draft {
            draft.encode_to(&mut out);
        }
        out
    }

    fn each_range(&self, mut each: impl FnMut(RangeId, RangeAnswers)) {
        let read = each_group(&self.0, |group| {
            let answers = RangeAnswers {
                digest: group.digest,
                count: group.count,
                expiry: group.expiry,
                answers: Arc::clone(&self.0),
                first_bit: group.first_bit,
                unknown_bit: group.unknown_bit,
            };
            each(group.range, answers);
        });
        read.expect("answers are made by this module, or were checked when they were decoded");
    }
}

/// A group, and where its bits are in the answers' bytes.
struct Group {
    range: RangeId,
    digest: u32,
    count: usize,
    expiry: Expiry,
    first_bit: usize,
    unknown_bit: Option<usize>,
}

/// Goes over all groups of all parts; `None` when it meets something else.
fn each_group(bytes: &[u8], mut each: impl FnMut(Group)) -> Option<()> {
    let mut reader = Reader::new(bytes);
    while !reader.rest().is_empty() {
        let expiry = Expiry::from_unix_seconds(reader.u32()?)?;
        let head = reader.varint()?;
        let mut bits: usize = 0;
        let mut groups = Vec::new();
        for _ in 0..head / 2 {
            let range = RangeId(u32::try_from(reader.varint()?).ok()?);
            let count = usize::try_from(reader.varint()?).ok()?;
            let digest = if count == 0 { 0 } else { reader.u32()? };
            groups.push((range, digest, count, bits));
            bits = bits.checked_add(count)?;
        }
        let first_at = bytes.len() - reader.rest().len();
        let column_bytes = bits.div_ceil(8);
        reader.take(column_bytes)?;
        let has_unknown = head % 2 == 1;
        if has_unknown {
            reader.take(column_bytes)?;
        }
        for (range, digest, count, before) in groups {
            let unknown_at = first_at + column_bytes;
            each(Group {
                range,
                digest,
                count,
                expiry,
                first_bit: first_at * 8 + before,
                unknown_bit: has_unknown.then_some(unknown_at * 8 + before),
            });
        }
    }
    Some(())
}

fn bit(bytes: &[u8], index: usize) -> bool {
    bytes[index / 8] >> (index % 8) & 1 == 1
}

/// Bits that are appended, least significant first.
#[derive(Debug, Default)]
struct Bits {
    bytes: Vec<u8>,
    len: usize,
}

impl Bits {
    /// Appends the bits of `range`.
    fn extend(&mut self, bits: &Bitmap, range: Range<usize>) {
        for (word, count) in bits.words(range) {
            let used = self.len % 8;
            let word = word << used | u64::from(self.bytes.pop_if(|_| used > 0).unwrap_or(0));
            let bytes = (used + count).div_ceil(8);
            self.bytes.extend_from_slice(&word.to_le_bytes()[..bytes]);
            self.len += count;
        }
    }

    /// Appends zeros up to `len` bits.
    fn pad_to(&mut self, len: usize) {
        self.bytes.resize(len.div_ceil(8), 0);
        self.len = len;
    }
}
