//! The footer: what a file holds, and where.

use std::ops::Range;

use super::{
    SectionHeader, SnapshotError, SnapshotHeader,
    frame::{self, FRAME_BYTES, FrameHead, NO_SALT, Tag},
    header,
    section::SECTION_BYTES,
};
use crate::{Fingerprint, bytes::Reader};

/// How a file ends.
pub(super) const END_MAGIC: [u8; 8] = *b"KEYDBEND";

/// The size of what lies behind the footer's frame: its length, and the last magic bytes.
pub const TRAILER_BYTES: usize = 16;

/// What a section takes in the footer's payload.
const SECTION_ENTRY_BYTES: usize = SECTION_BYTES + 24;

/// What a block takes in the footer's payload.
const BLOCK_ENTRY_BYTES: usize = 24;

/// How much there is in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// The file's size.
    pub bytes: u64,
    /// How many entries.
    pub entries: u64,
    /// How many sections.
    pub sections: u64,
}

/// One section, as the footer has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SectionEntry {
    /// Which range.
    pub header: SectionHeader,
    /// Where it lies in the file.
    pub bytes: Range<u64>,
    /// How many entries it has.
    pub entries: u64,
    /// Its blocks, as indexes into [`Footer::blocks`].
    pub blocks: Range<usize>,
}

/// One block, as the footer has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockEntry {
    /// Its first fingerprint.
    pub first: Fingerprint,
    /// How many entries it has.
    pub count: u32,
    /// Where its frame begins in the file.
    pub offset: u64,
}

/// What a file holds, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    /// The file's header once more.
    pub header: SnapshotHeader,
    /// The sections in the file's order.
    pub sections: Vec<SectionEntry>,
    /// The blocks in the file's order.
    pub blocks: Vec<BlockEntry>,
    /// How much there is.
    pub totals: Totals,
}

/// Why no footer could be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FooterError {
    /// It is longer than the bytes that were given.
    #[error("the snapshot file's footer takes its last {needed_bytes} bytes")]
    TailTooShort {
        /// How many of the file's last bytes are needed.
        needed_bytes: u64,
    },
    /// It cannot be used.
    #[error(transparent)]
    Unusable(#[from] SnapshotError),
}

impl Footer {
    /// Reads the footer from the last bytes of a file of `file_bytes` bytes. Some kilobytes suffice for most files.
    ///
    /// # Errors
    /// When more of the file's last bytes are needed, or the footer cannot be used.
    pub fn decode(tail: &[u8], file_bytes: u64) -> Result<Self, FooterError> {
        let damaged = |what: &str| SnapshotError::Damaged {
            offset: file_bytes.saturating_sub(TRAILER_BYTES as u64),
            what: what.to_owned(),
        };
        if file_bytes < TRAILER_BYTES as u64 {
            return Err(SnapshotError::Truncated { bytes: file_bytes }.into());
        }
        let Some((front, trailer)) = tail.split_last_chunk::<TRAILER_BYTES>() else {
            return Err(FooterError::TailTooShort {
                needed_bytes: TRAILER_BYTES as u64,
            });
        };
        let frame_bytes = read_trailer(trailer).ok_or_else(|| {
            damaged("it does not end as a snapshot file does: it is cut short or damaged")
        })?;
        let needed_bytes = frame_bytes.saturating_add(TRAILER_BYTES as u64);
        if needed_bytes > file_bytes {
            return Err(damaged("its footer would be longer than the file").into());
        }
        let frame = usize::try_from(frame_bytes)
            .ok()
            .and_then(|frame_bytes| front.len().checked_sub(frame_bytes))
            .map(|start| &front[start..])
            .ok_or(FooterError::TailTooShort { needed_bytes })?;
        Ok(Self::decode_frame(
            frame,
            file_bytes - needed_bytes,
            file_bytes,
        )?)
    }

    fn decode_frame(frame: &[u8], offset: u64, file_bytes: u64) -> Result<Self, SnapshotError> {
        let damaged = |what: &str| SnapshotError::Damaged {
            offset,
            what: what.to_owned(),
        };
        let is_footer = FrameHead::read(frame)
            .is_some_and(|head| head.tag == Some(Tag::Footer) && head.frame_bytes() == frame.len());
        if !is_footer {
            return Err(damaged("no footer begins here"));
        }
        let payload = frame::payload(frame, NO_SALT)
            .ok_or_else(|| damaged("the footer's checksum does not match"))?;
        let mut reader = Reader::new(payload);
        let header = reader
            .u32()
            .and_then(|length| reader.take(usize::try_from(length).ok()?))
            .ok_or_else(|| damaged("the footer ends early"))?;
        let header = SnapshotHeader::decode(header, offset)?;
        let footer = Self::read(header, &mut reader, offset)
            .filter(|_| reader.rest().is_empty())
            .ok_or_else(|| damaged("the footer contradicts itself"))?;
        if footer.totals.bytes == file_bytes {
            Ok(footer)
        } else {
            Err(damaged("the footer is that of a file of another size"))
        }
    }

    /// Reads what lies behind the header's copy. `end` is where the last section ends.
    fn read(header: SnapshotHeader, reader: &mut Reader<'_>, end: u64) -> Option<Self> {
        let section_count = usize::try_from(reader.u32()?).ok()?;
        let block_count = usize::try_from(reader.u32()?).ok()?;
        let totals = Totals {
            bytes: reader.u64()?,
            entries: reader.u64()?,
            sections: section_count as u64,
        };
        let expected_bytes = section_count
            .checked_mul(SECTION_ENTRY_BYTES)?
            .checked_add(block_count.checked_mul(BLOCK_ENTRY_BYTES)?)?;
        if reader.rest().len() != expected_bytes {
            return None;
        }
        let mut sections: Vec<SectionEntry> = Vec::with_capacity(section_count);
        let mut first_block = 0_usize;
        let mut entries = 0_u64;
        for _ in 0..section_count {
            let header = SectionHeader::read(reader)?;
            let offset = reader.u64()?;
            let section_entries = reader.u64()?;
            let blocks_end = first_block.checked_add(usize::try_from(reader.u64()?).ok()?)?;
            if let Some(before) = sections.last_mut() {
                before.bytes.end = offset;
            }
            sections.push(SectionEntry {
                header,
                bytes: offset..end,
                entries: section_entries,
                blocks: first_block..blocks_end,
            });
            first_block = blocks_end;
            entries = entries.checked_add(section_entries)?;
        }
        let mut blocks = Vec::with_capacity(block_count);
        for _ in 0..block_count {
            blocks.push(BlockEntry {
                first: Fingerprint::from_bytes(&reader.array()?),
                count: reader.u32()?,
                offset: reader.u64()?,
            });
        }
        let is_consistent = first_block == block_count
            && entries == totals.entries
            && sections
                .iter()
                .all(|section| section.is_consistent(&blocks[section.blocks.clone()]));
        is_consistent.then_some(Self {
            header,
            sections,
            blocks,
            totals,
        })
    }

    /// The sections of a range: one, or none.
    pub fn section(&self, range: crate::RangeId) -> Option<&SectionEntry> {
        self.sections
            .iter()
            .find(|section| section.header.range == range)
    }

    /// Writes the footer's frame and the trailer. The total of bytes is what lies ahead of the footer, and becomes the file's.
    pub(super) fn encode(&mut self, out: &mut Vec<u8>) {
        let mut header = Vec::new();
        self.header.encode(&mut header);
        let payload_bytes = 4
            + header.len()
            + 24
            + self.sections.len() * SECTION_ENTRY_BYTES
            + self.blocks.len() * BLOCK_ENTRY_BYTES;
        let frame_bytes = (payload_bytes + FRAME_BYTES) as u64;
        self.totals.bytes += frame_bytes + TRAILER_BYTES as u64;
        frame::begin(out, Tag::Footer);
        out.extend_from_slice(&(header.len() as u32).to_le_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(&(self.sections.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.blocks.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.totals.bytes.to_le_bytes());
        out.extend_from_slice(&self.totals.entries.to_le_bytes());
        for section in &self.sections {
            section.header.encode(out);
            out.extend_from_slice(&section.bytes.start.to_le_bytes());
            out.extend_from_slice(&section.entries.to_le_bytes());
            out.extend_from_slice(&(section.blocks.len() as u64).to_le_bytes());
        }
        for block in &self.blocks {
            out.extend_from_slice(&block.first.to_bytes());
            out.extend_from_slice(&block.count.to_le_bytes());
            out.extend_from_slice(&block.offset.to_le_bytes());
        }
        frame::seal(out, NO_SALT);
        debug_assert_eq!(out.len() as u64, frame_bytes);
        out.extend_from_slice(&frame_bytes.to_le_bytes());
        out.extend_from_slice(&END_MAGIC);
    }

    /// The salt of the file's frames.
    pub(super) fn salt(&self) -> u64 {
        let mut header = Vec::new();
        self.header.encode(&mut header);
        header::salt(&header)
    }
}

impl SectionEntry {
    /// Whether counts and offsets of its blocks agree with it.
    fn is_consistent(&self, blocks: &[BlockEntry]) -> bool {
        let entries: u64 = blocks.iter().map(|block| u64::from(block.count)).sum();
        let offsets = std::iter::once(self.bytes.start)
            .chain(blocks.iter().map(|block| block.offset))
            .chain([self.bytes.end]);
        entries == self.entries && offsets.is_sorted_by(|a, b| a < b)
    }
}

fn read_trailer(trailer: &[u8; TRAILER_BYTES]) -> Option<u64> {
    let (length, magic) = trailer.split_first_chunk()?;
    (magic == END_MAGIC).then_some(u64::from_le_bytes(*length))
}
