//! How an operation's answers lie in memory: a row of parts, one for each sending that had something new to say.
//!
//! ```text
//! part    := expiry (4 bytes, little-endian, seconds since 1970)
//!            groups × 2 + (1 if there are unknown bits) (varint)
//!            group × groups
//!            first bits of all groups, in order, padded to whole bytes
//!            unknown bits likewise, if there are any
//! group   := range (varint)  count (varint)  digest (8 bytes, little-endian; none if count is 0)
//! ```
//!
//! A count of 0 stands for a range that was applied in part. A range lies in one part only: a newer answer replaces an older.

use std::{collections::HashMap, sync::Arc};

use keydb_core::{Bitmap, Expiry, RangeId};

/// The answers of one sending, while they come in.
#[derive(Debug)]
pub(super) struct Draft {
    expiry: Expiry,
    groups: Vec<u8>,
    group_count: u64,
    first: Bits,
    /// Shorter than `first` where the keys at the end were all known.
    unknown: Bits,
}

/// The remembered answers to one range's keys.
#[derive(Debug, Clone)]
pub(crate) struct Remembered {
    pub(super) digest: u64,
    pub(super) count: usize,
    pub(super) expiry: Expiry,
    answers: Arc<[u8]>,
    first_bit: usize,
    unknown_bit: Option<usize>,
}

impl Remembered {
    /// Writes the answers into bits `offset..` of a reply's bitmaps.
    pub(crate) fn answer(&self, first: &mut Bitmap, unknown: &mut Option<Bitmap>, offset: usize) {
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

impl Draft {
    pub(super) fn new(expiry: Expiry) -> Self {
        Self {
            expiry,
            groups: Vec::new(),
            group_count: 0,
            first: Bits::default(),
            unknown: Bits::default(),
        }
    }

    /// Adds the answers to one range's keys: bits `offset..offset + count` of the bitmaps.
    pub(super) fn group(
        &mut self,
        range: RangeId,
        digest: u64,
        count: usize,
        first: &Bitmap,
        unknown: Option<&Bitmap>,
        offset: usize,
    ) {
        self.head(range, count);
        self.groups.extend_from_slice(&digest.to_le_bytes());
        let bits = offset..offset + count;
        let any_unknown = unknown.filter(|unknown| bits.clone().any(|index| unknown.get(index)));
        if let Some(unknown) = any_unknown {
            self.unknown.pad_to(self.first.len);
            self.unknown
                .extend(bits.clone().map(|index| unknown.get(index)));
        }
        self.first.extend(bits.map(|index| first.get(index)));
    }

    /// Adds a range of which nobody knows what was applied.
    pub(super) fn group_in_part(&mut self, range: RangeId) {
        self.head(range, 0);
    }

    /// The part; nothing when there are no groups.
    pub(super) fn encode(&self) -> Vec<u8> {
        if self.group_count == 0 {
            return Vec::new();
        }
        let has_unknown = self.unknown.len > 0;
        let bits_bytes = self.first.bytes.len() * (1 + usize::from(has_unknown));
        let mut out = Vec::with_capacity(4 + 10 + self.groups.len() + bits_bytes);
        out.extend_from_slice(&self.expiry.as_unix_seconds().to_le_bytes());
        push_varint(&mut out, self.group_count * 2 + u64::from(has_unknown));
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
        out
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

/// All ranges in an operation's answers.
pub(super) fn remembered_groups(answers: Arc<[u8]>) -> HashMap<RangeId, Remembered> {
    let mut out = HashMap::new();
    for_each_group(&answers, |range, group| {
        out.insert(range, group);
    });
    out
}

/// The parts `older` without the ranges that the parts `newer` have as well.
pub(super) fn without_ranges_of(older: &Arc<[u8]>, newer: &[u8]) -> Vec<u8> {
    let replaced = remembered_groups(newer.into());
    let mut out = Vec::new();
    let mut draft: Option<Draft> = None;
    for_each_group(older, |range, group| {
        if replaced.contains_key(&range) {
            return;
        }
        // Groups that expire together need not have been sent together to share a part.
        if draft
            .as_ref()
            .is_none_or(|draft| draft.expiry != group.expiry)
            && let Some(full) = draft.replace(Draft::new(group.expiry))
        {
            out.append(&mut full.encode());
        }
        let draft = draft.get_or_insert_with(|| Draft::new(group.expiry));
        if group.count == 0 {
            draft.group_in_part(range);
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
        out.append(&mut draft.encode());
    }
    out
}

fn for_each_group(answers: &Arc<[u8]>, mut each: impl FnMut(RangeId, Remembered)) {
    let mut at = 0;
    while at < answers.len() {
        let expiry = u32::from_le_bytes(take(answers, &mut at));
        let expiry = Expiry::from_unix_seconds(expiry).expect("an encoded expiry is not 0");
        let head = take_varint(answers, &mut at);
        let has_unknown = head % 2 == 1;
        let groups: Vec<(RangeId, usize, u64)> = (0..head / 2)
            .map(|_| {
                let range = take_varint(answers, &mut at);
                let count = take_varint(answers, &mut at);
                let digest = if count == 0 {
                    0
                } else {
                    u64::from_le_bytes(take(answers, &mut at))
                };
                (RangeId(range as u32), count as usize, digest)
            })
            .collect();
        let bits: usize = groups.iter().map(|(_, count, _)| count).sum();
        let unknown_at = at + bits.div_ceil(8);
        let mut before = 0;
        for (range, count, digest) in groups {
            let group = Remembered {
                digest,
                count,
                expiry,
                answers: Arc::clone(answers),
                first_bit: at * 8 + before,
                unknown_bit: has_unknown.then_some(unknown_at * 8 + before),
            };
            each(range, group);
            before += count;
        }
        at = unknown_at + if has_unknown { bits.div_ceil(8) } else { 0 };
    }
}

/// Whether these bytes are answers as [`Draft::encode`] makes them. Only such may be read by the other functions.
pub(super) fn is_valid(answers: &[u8]) -> bool {
    let mut rest = answers;
    while !rest.is_empty() {
        if check_part(&mut rest).is_none() {
            return false;
        }
    }
    true
}

/// Goes over one part; `None` when it is not one.
fn check_part(rest: &mut &[u8]) -> Option<()> {
    let expiry = u32::from_le_bytes(take_checked(rest)?);
    Expiry::from_unix_seconds(expiry)?;
    let head = checked_varint(rest)?;
    let mut bits: usize = 0;
    for _ in 0..head / 2 {
        u32::try_from(checked_varint(rest)?).ok()?;
        let count = usize::try_from(checked_varint(rest)?).ok()?;
        if count > 0 {
            let _digest: [u8; 8] = take_checked(rest)?;
        }
        bits = bits.checked_add(count)?;
    }
    let columns = 1 + usize::from(head % 2 == 1);
    rest.split_off(..bits.div_ceil(8).checked_mul(columns)?)?;
    Some(())
}

fn take_checked<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    rest.split_off(..N)?.try_into().ok()
}

fn checked_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..63).step_by(7) {
        let byte = *rest.split_off_first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn bit(bytes: &[u8], index: usize) -> bool {
    bytes[index / 8] >> (index % 8) & 1 == 1
}

fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(bytes: &[u8], at: &mut usize) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = bytes[*at];
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

fn take<const N: usize>(bytes: &[u8], at: &mut usize) -> [u8; N] {
    let out = bytes[*at..*at + N]
        .try_into()
        .expect("the slice has the array's length");
    *at += N;
    out
}

/// Bits that are appended, least significant first.
#[derive(Debug, Default)]
struct Bits {
    bytes: Vec<u8>,
    len: usize,
}

impl Bits {
    fn extend(&mut self, bits: impl Iterator<Item = bool>) {
        for bit in bits {
            if self.len.is_multiple_of(8) {
                self.bytes.push(0);
            }
            self.bytes[self.len / 8] |= u8::from(bit) << (self.len % 8);
            self.len += 1;
        }
    }

    /// Appends zeros up to `len` bits.
    fn pad_to(&mut self, len: usize) {
        self.bytes.resize(len.div_ceil(8), 0);
        self.len = len;
    }
}
