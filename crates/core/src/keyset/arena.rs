//! Where extents come from and go back to.
//!
//! Memory is taken from the system in chunks of 2 MiB, ahead of need: the kernel takes up to milliseconds to hand out a huge page,
//! which would otherwise be a stall in the middle of an insert. It is not given back; what one key set frees another one reuses.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use super::{
    EXTENT_BYTES, Extent, InsertError,
    memory::{CHUNK_EXTENTS, take_chunk},
};

/// The provisioner keeps at least this many extents free: 2 to 4 MiB.
const FREE_EXTENTS_MIN: usize = CHUNK_EXTENTS;

/// Extents that outlived their arena. Chunks cannot be unmapped, so the next arena takes these first.
static ORPHANS: Mutex<Vec<Extent>> = Mutex::new(Vec::new());

/// A pool of memory that key sets share.
#[derive(Debug, Default)]
pub struct Arena {
    pool: Mutex<Pool>,
    /// Told when fewer than [`FREE_EXTENTS_MIN`] are free, or at the end.
    low: Condvar,
    inline_chunks: AtomicU64,
}

#[derive(Debug, Default)]
struct Pool {
    free: Vec<Extent>,
    extents: usize,
    stopping: bool,
}

/// No invariant spans the lock: a vector that a panicking thread pushed to is still a vector.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Arena {
    /// An empty pool.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Bytes that this arena holds, in use or free.
    pub fn resident_bytes(&self) -> usize {
        lock(&self.pool).extents * EXTENT_BYTES
    }

    /// Bytes that key sets use; the rest of [`resident_bytes`](Self::resident_bytes) waits to be used.
    pub fn used_bytes(&self) -> usize {
        let pool = lock(&self.pool);
        (pool.extents - pool.free.len()) * EXTENT_BYTES
    }

    /// How often an insert had to take memory from the system itself because none was ready: each is a stall of up to a few
    /// milliseconds.
    pub fn inline_chunks(&self) -> u64 {
        self.inline_chunks.load(Ordering::Relaxed)
    }

    /// An extent with arbitrary old content.
    pub(super) fn take(&self) -> Result<Extent, InsertError> {
        loop {
            let mut pool = lock(&self.pool);
            if let Some(extent) = pool.free.pop() {
                if pool.free.len() < FREE_EXTENTS_MIN {
                    self.low.notify_one();
                }
                return Ok(extent);
            }
            drop(pool);
            self.inline_chunks.fetch_add(1, Ordering::Relaxed);
            // Others may have taken all of it before this one looks again.
            self.add_chunk()?;
        }
    }

    pub(super) fn give_back(&self, extents: impl IntoIterator<Item = Extent>) {
        lock(&self.pool).free.extend(extents);
    }

    fn add_chunk(&self) -> Result<(), InsertError> {
        let orphans = {
            let mut orphans = lock(&ORPHANS);
            let keep = orphans.len().saturating_sub(CHUNK_EXTENTS);
            orphans.split_off(keep)
        };
        let chunk = if orphans.is_empty() {
            take_chunk().ok_or(InsertError::OutOfMemory)?
        } else {
            orphans
        };
        let mut pool = lock(&self.pool);
        pool.extents += chunk.len();
        pool.free.extend(chunk);
        Ok(())
    }

    /// Tops the pool up each time it runs low, until told to stop.
    fn provision(&self) {
        let mut pool = lock(&self.pool);
        while !pool.stopping {
            if pool.free.len() < FREE_EXTENTS_MIN {
                drop(pool);
                // Without memory there is nothing to do but wait: the insert that needs it says so to its caller.
                let added = self.add_chunk().is_ok();
                pool = lock(&self.pool);
                if added {
                    continue;
                }
            }
            pool = self.low.wait(pool).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let pool = self.pool.get_mut().unwrap_or_else(PoisonError::into_inner);
        lock(&ORPHANS).append(&mut pool.free);
    }
}

/// Takes memory from the system ahead of need, on a thread of its own, for as long as it lives.
#[derive(Debug)]
pub struct Provisioner {
    arena: Arc<Arena>,
    thread: Option<JoinHandle<()>>,
}

impl Provisioner {
    /// Starts to keep memory ready in `arena`. When the system gives no thread, inserts take memory themselves.
    pub fn start(arena: &Arc<Arena>) -> Self {
        lock(&arena.pool).stopping = false;
        let thread = std::thread::Builder::new().name("keydb-memory".to_owned());
        let worker = Arc::clone(arena);
        Self {
            arena: Arc::clone(arena),
            thread: thread.spawn(move || worker.provision()).ok(),
        }
    }
}

impl Drop for Provisioner {
    fn drop(&mut self) {
        lock(&self.arena.pool).stopping = true;
        self.arena.low.notify_all();
        if let Some(thread) = self.thread.take() {
            // The thread has nothing to report, and a panic in it was already printed.
            let _ = thread.join();
        }
    }
}
