//! Snapshot files: entries of hash ranges in fingerprint order. `docs/formats.md` has every field.
//!
//! ```text
//! file    := "KEYDBSNP"  HEAD frame  section ×  FOOT frame  trailer
//! section := SECT frame  BLCK frame ×
//! frame   := tag (4 bytes)  payload's length (4)  payload  XXH3-64 of tag, length and payload (8)
//! trailer := the FOOT frame's length (8)  "KEYDBEND"
//! ```
//!
//! A [`SnapshotWriter`] writes one from front to back. A [`SnapshotDecoder`] reads one from front to back, with the memory of a
//! block, from bytes that come in any portions. The [`Footer`] repeats the header and says where sections and blocks lie, so that
//! one section can be read by itself: [`SnapshotDecoder::of_section`].
//!
//! **Fail closed.** The checksum of every frame behind the header is salted with the header's, so that frames of different files
//! never mix; a footer that does not name exactly what was read, a file that ends early, or entries out of order or out of their
//! section's bounds are errors.

mod block;
mod decoder;
mod error;
mod expiries;
mod footer;
mod frame;
mod gaps;
mod header;
mod section;
#[cfg(test)]
mod tests;
mod writer;

pub use block::BLOCK_ENTRIES;
pub use decoder::{Event, SnapshotDecoder};
pub use error::SnapshotError;
pub use footer::{BlockEntry, Footer, FooterError, SectionEntry, TRAILER_BYTES, Totals};
pub use header::{FileKind, SnapshotHeader};
pub use section::SectionHeader;
pub use writer::SnapshotWriter;
