//! The project's only `unsafe`: memory from the system, and the processor's prefetch.
//!
//! Memory is handed out once and never taken back, so that what points into it is an ordinary `&'static mut`: everything above
//! this module is safe code. The [`Arena`](super::Arena) reuses what is no longer needed.
#![expect(
    unsafe_code,
    reason = "the one place where memory is taken from the system by hand"
)]

use std::sync::{Mutex, PoisonError};

use super::{EXTENT_SLOTS, Extent, Slot};

/// Slots in a chunk: 2 MiB, the size of a huge page.
const CHUNK_SLOTS: usize = if cfg!(miri) { 4 } else { 128 } * EXTENT_SLOTS;

/// Extents in a chunk.
pub(super) const CHUNK_EXTENTS: usize = CHUNK_SLOTS / EXTENT_SLOTS;

/// Addresses are reserved 64 MiB at a time, since the number of a process's mappings is limited.
const REGION_SLOTS: usize = 32 * CHUNK_SLOTS;

/// Reserved addresses that nobody has touched yet, so that no memory is behind them.
static UNTOUCHED: Mutex<&'static mut [Slot]> = Mutex::new(&mut []);

/// Takes a chunk of resident, empty memory from the system; `None` when it has none left.
pub(super) fn take_chunk() -> Option<Vec<Extent>> {
    let chunk = {
        let mut untouched = UNTOUCHED.lock().unwrap_or_else(PoisonError::into_inner);
        if untouched.is_empty() {
            *untouched = reserve_region()?;
        }
        let (chunk, rest) = std::mem::take(&mut *untouched).split_at_mut(CHUNK_SLOTS);
        *untouched = rest;
        chunk
    };
    // The first touch of each page is what takes memory, and may take milliseconds: here, not in the middle of an insert.
    const PAGE_SLOTS: usize = 4096 / size_of::<Slot>();
    chunk
        .iter_mut()
        .step_by(PAGE_SLOTS)
        .for_each(|slot| *slot = Slot::EMPTY);
    Some(chunk.as_chunks_mut().0.iter_mut().collect())
}

/// Reserves addresses, aligned for huge pages. They read as empty slots.
#[cfg(not(miri))]
fn reserve_region() -> Option<&'static mut [Slot]> {
    const CHUNK_BYTES: usize = CHUNK_SLOTS * size_of::<Slot>();
    const REGION_BYTES: usize = REGION_SLOTS * size_of::<Slot>();
    let mut map = memmap2::MmapMut::map_anon(REGION_BYTES + CHUNK_BYTES).ok()?;
    let skip = map.as_ptr().align_offset(CHUNK_BYTES);
    // Advice that the system does not know costs speed only.
    #[cfg(target_os = "linux")]
    let _ = map.advise_range(memmap2::Advice::HugePage, skip, REGION_BYTES);
    let region = map[skip..skip + REGION_BYTES].as_mut_ptr();
    // From here on the mapping lives as long as the process.
    std::mem::forget(map);
    // SAFETY: the range was in bounds of a readable and writable mapping, and is aligned to CHUNK_BYTES, a multiple of a slot's
    // alignment. The mapping is never unmapped, and nothing else refers to it: its owner is forgotten. `Slot` is a transparent
    // u128, for which every bit pattern is valid; the system hands out anonymous memory zeroed, so all slots are empty.
    Some(unsafe { std::slice::from_raw_parts_mut(region.cast(), REGION_SLOTS) })
}

/// Miri has no memory maps.
#[cfg(miri)]
fn reserve_region() -> Option<&'static mut [Slot]> {
    Some(vec![Slot::EMPTY; REGION_SLOTS].leak())
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
