//! The project's only `unsafe`: chunks of memory from the system, and the processor's prefetch.
//!
//! A chunk is handed out once and never taken back, so that what points into it is an ordinary `&'static mut`: everything above
//! this module is safe code. The [`Arena`](super::Arena) reuses what is no longer needed.
#![expect(
    unsafe_code,
    reason = "the one place where memory is taken from the system by hand"
)]

use super::{EXTENT_SLOTS, Extent, Slot};

/// Extents in a chunk: together 2 MiB, the size of a huge page.
pub(super) const CHUNK_EXTENTS: usize = if cfg!(miri) { 4 } else { 128 };

const CHUNK_BYTES: usize = CHUNK_EXTENTS * EXTENT_SLOTS * size_of::<Slot>();

/// Takes a chunk of resident, empty memory from the system; `None` when it has none left.
#[cfg(not(miri))]
pub(super) fn take_chunk() -> Option<Vec<Extent>> {
    use memmap2::{Advice, MmapMut, MmapOptions};

    // Twice the size, so that an aligned chunk lies in it. The rest is never touched: it costs addresses, not memory.
    let map: MmapMut = MmapOptions::new().len(2 * CHUNK_BYTES).map_anon().ok()?;
    let skip = map.as_ptr().align_offset(CHUNK_BYTES);
    let bytes: &'static mut [u8] = {
        let map: &'static mut MmapMut = Box::leak(Box::new(map));
        // Advice that the system does not know costs speed only. With it, 512 page faults become one.
        let _ = map.advise_range(Advice::HugePage, skip, CHUNK_BYTES);
        let _ = map.advise_range(Advice::PopulateWrite, skip, CHUNK_BYTES);
        &mut map[skip..skip + CHUNK_BYTES]
    };
    // SAFETY: `Slot` is a transparent u128, for which every bit pattern is valid. The bytes are aligned to CHUNK_BYTES, a multiple
    // of a slot's alignment, are exactly CHUNK_BYTES long, live for ever (the map is leaked), and `bytes`, the only reference to
    // them, is given up for the new one. The system hands out anonymous memory zeroed: all slots are empty.
    let slots: &'static mut [Slot] = unsafe {
        std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), CHUNK_BYTES / size_of::<Slot>())
    };
    Some(into_extents(slots))
}

/// Miri has no memory maps.
#[cfg(miri)]
pub(super) fn take_chunk() -> Option<Vec<Extent>> {
    Some(into_extents(
        vec![Slot::EMPTY; CHUNK_EXTENTS * EXTENT_SLOTS].leak(),
    ))
}

fn into_extents(slots: &'static mut [Slot]) -> Vec<Extent> {
    slots.as_chunks_mut().0.iter_mut().collect()
}

/// Asks the processor to fetch the cache line of `slot`. A hint: it changes no value.
#[inline]
pub(super) fn prefetch(slot: &Slot) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: prefetching needs nothing: it has no effect but on the caches, for any address. This one is even valid.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(slot).cast());
    }
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    // SAFETY: as above; the instruction reads no memory in the program's sense and leaves flags and stack alone.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) std::ptr::from_ref(slot), options(nostack, preserves_flags, readonly));
    }
    #[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
    let _ = slot;
}
