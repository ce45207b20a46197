//! How a section begins: which range its entries belong to.

use crate::{HashRange, RangeId, bytes::Reader};

/// The size of a section header's payload.
pub(super) const SECTION_BYTES: usize = 32;

/// Which range a section's entries belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SectionHeader {
    /// Which range.
    pub range: RangeId,
    /// Under which generation of its ownership.
    pub generation: u64,
    /// The range's bounds; no entry lies outside.
    pub bounds: HashRange,
}

impl SectionHeader {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&u64::from(self.range.0).to_le_bytes());
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.bounds.start().to_le_bytes());
        out.extend_from_slice(&self.bounds.last().to_le_bytes());
    }

    /// Reads [`SECTION_BYTES`]; `None` when there are fewer, or they are not a section's.
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let range = RangeId(u32::try_from(reader.u64()?).ok()?);
        let generation = reader.u64()?;
        let start = reader.u64()?;
        let last = reader.u64()?;
        Some(Self {
            range,
            generation,
            bounds: HashRange::new(start, last)?,
        })
    }
}
