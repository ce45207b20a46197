//! The key set: skeleton.
use crate::{Bitmap, Expiry, Fingerprint, HashRange, PackedFingerprints, UnixMillis, UnixSeconds};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Arena.
#[derive(Debug, Default)]
pub struct Arena(Mutex<()>);
impl Arena {
    /// New.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }
    /// Bytes taken from the system.
    pub fn resident_bytes(&self) -> usize {
        0
    }
}
/// Takes memory ahead of need on a thread of its own until dropped.
#[derive(Debug)]
pub struct Provisioner(());
impl Provisioner {
    /// Starts the thread.
    pub fn start(_arena: &Arc<Arena>) -> Self {
        Self(())
    }
}
/// One key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Which.
    pub fingerprint: Fingerprint,
    /// Until when.
    pub expiry: Expiry,
}
/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InsertError {
    /// The system gives no more memory.
    #[error("the system gives no more memory for keys")]
    OutOfMemory,
    /// Skewed.
    #[error("too many fingerprints lie too close together; they are not hashes of keys")]
    Skewed,
}
/// The times that an operation goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// What is live is decided by this.
    pub now: UnixSeconds,
    /// Entries whose expiry is at or before this may be reclaimed.
    pub purge_before: UnixSeconds,
}
impl Times {
    /// Now, and an hour before it.
    pub fn at(now: UnixMillis) -> Self {
        let now = now.seconds();
        Self {
            now,
            purge_before: UnixSeconds(now.0.saturating_sub(3600)),
        }
    }
}
/// Where a sweep stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sweep(u128);
/// The keys of one hash range.
#[derive(Debug)]
pub struct KeySet {
    bounds: HashRange,
    map: BTreeMap<Fingerprint, Expiry>,
}
impl KeySet {
    /// New.
    pub fn new(bounds: HashRange, _arena: &Arc<Arena>) -> Self {
        Self {
            bounds,
            map: BTreeMap::new(),
        }
    }
    /// Bounds; every fingerprint handed in must lie in them (the caller checks).
    pub fn bounds(&self) -> HashRange {
        self.bounds
    }
    /// Keys held, expired ones not yet reclaimed included.
    pub fn len(&self) -> usize {
        self.map.len()
    }
    /// Whether none.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
    /// Bytes.
    pub fn memory_bytes(&self) -> usize {
        self.map.len() * 20
    }
    /// Hint: starts fetching the memory that an operation on these keys will touch.
    pub fn prefetch(&self, _keys: PackedFingerprints<'_>) {}
    /// Sets bit `offset + i` of `present` if key i is there.
    pub fn get(
        &self,
        keys: PackedFingerprints<'_>,
        times: Times,
        present: &mut Bitmap,
        offset: usize,
    ) {
        for (i, key) in keys.iter().enumerate() {
            present.or(
                offset + i,
                self.map.get(&key).is_some_and(|e| e.is_live(times.now)),
            );
        }
    }
    /// Later expiry wins.
    ///
    /// # Errors
    /// Keys before the failing one are stored.
    pub fn put(
        &mut self,
        keys: PackedFingerprints<'_>,
        expiry: Expiry,
        _times: Times,
    ) -> Result<(), InsertError> {
        for key in keys.iter() {
            let e = self.map.entry(key).or_insert(expiry);
            *e = (*e).max(expiry);
        }
        Ok(())
    }
    /// Sets bit `offset + i` of `first` if key i was absent (it is stored now).
    ///
    /// # Errors
    /// Keys before the failing one are stored.
    pub fn claim(
        &mut self,
        keys: PackedFingerprints<'_>,
        expiry: Expiry,
        times: Times,
        first: &mut Bitmap,
        offset: usize,
    ) -> Result<(), InsertError> {
        for (i, key) in keys.iter().enumerate() {
            let was = self.map.get(&key).is_some_and(|e| e.is_live(times.now));
            if !was {
                self.map.insert(key, expiry);
            }
            first.or(offset + i, !was);
        }
        Ok(())
    }
    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = Entry> + '_ {
        self.map.iter().map(|(f, e)| Entry {
            fingerprint: *f,
            expiry: *e,
        })
    }
    /// Union, the later expiry wins.
    ///
    /// # Errors
    /// Entries before the failing one are merged.
    pub fn merge(
        &mut self,
        entries: impl IntoIterator<Item = Entry>,
        _times: Times,
    ) -> Result<(), InsertError> {
        for entry in entries {
            let e = self.map.entry(entry.fingerprint).or_insert(entry.expiry);
            *e = (*e).max(entry.expiry);
        }
        Ok(())
    }
    /// Reclaims purgeable entries from a bounded part (some ten microseconds); returns where to go on, `None` at the end.
    pub fn sweep(&mut self, _from: Sweep, times: Times) -> Option<Sweep> {
        self.map
            .retain(|_, e| e.as_unix_seconds() > times.purge_before.0);
        None
    }
}
