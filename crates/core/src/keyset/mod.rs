//! The key set: the keys of one hash range, in memory, in fingerprint order.
//!
//! # Shape
//! **Ordered linear probing in segments.** A [`slot`](Slot) is 16 bytes: 96 bits of fingerprint, 32 bits of expiry; 0 is empty.
//! A segment covers a contiguous part of the range, and a key's home in it is `position = part of the segment × slots`. Entries
//! lie in fingerprint order at or behind their home, without an empty slot between home and entry. So a lookup starts at home and
//! stops at the first larger entry or empty slot; an insert shifts the entries up to the next empty slot by one; and a plain scan
//! reads the whole set in order.
//!
//! A segment is 1 to 8 *extents* of 16 KiB from a shared [`Arena`]. A full one takes one more extent; a full one of 8 splits into
//! two of 5. The load so swings by a fifth over a segment's life, and since hashes are uniform, all segments of equal width would
//! swing together. Therefore segments come in 8 widths, the [`layout`]'s *phases*, a ratio of 2^(1/8) apart: at any moment they
//! are spread over the whole swing, and the set takes the same number of bytes a key at every fill.
//!
//! # Invariants
//! - `segments[..]` partition the range; the slots of one hold its entries in strictly ascending fingerprint order.
//! - Between an entry's home and its slot no slot is empty.
//! - A segment's `entries` never exceeds its limit, so that every probe meets an empty slot soon.
//! - An operation that fails has changed nothing for the key at which it failed.

mod arena;
mod directory;
mod entry;
mod layout;
mod memory;
mod merge;
mod room;
mod scan;
mod segment;
mod set;
mod slot;
#[cfg(test)]
mod tests;

pub use arena::{Arena, Provisioner};
pub use entry::{Entry, InsertError, Sweep, Times};
pub use set::KeySet;

use segment::Segment;
use slot::Slot;

/// Slots in an extent: 16 KiB.
const EXTENT_SLOTS: usize = 1024;

/// An extent's size.
const EXTENT_BYTES: usize = EXTENT_SLOTS * size_of::<Slot>();

/// The most extents a segment has; a full one of this many splits.
const SEGMENT_EXTENTS_MAX: usize = 8;

/// The unit in which segments take memory. It lives as long as the process and has one owner at a time.
type Extent = &'static mut [Slot; EXTENT_SLOTS];
