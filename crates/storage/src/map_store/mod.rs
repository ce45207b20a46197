//! The cluster map in object storage: created once, changed by compare-and-swap only.
//!
//! **After a write whose outcome is unknown** the map is read again. Each write carries a nonce of its own, so a writer that finds
//! its nonce knows that it succeeded. A map with another nonce proves nothing: the write may have been applied and overwritten,
//! or, while the object has the version that the write is conditional on, may yet be applied. So the change is decided anew, by
//! the map that is there, and written under the version that is there: of that write and one still under way at most one is
//! applied. A call that fails after a write in doubt always says that the outcome is unknown.

mod error;
mod exclusivity;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use keydb_core::{ClusterMap, MapError, NewCluster, OperationId, random};
use tokio::time::{Instant, sleep};

pub use self::error::{InitError, MapStoreError, OtherCluster, UpdateError};
use crate::{
    MANIFESTS, ObjectStorage, Put, Reread, SNAPSHOTS, StorageError, StorageErrorKind, Version,
};

/// The key of the object that is the cluster map.
pub const MAP_KEY: &str = "cluster-map.json";

const ATTEMPTS_MAX: u32 = 32;
/// No new attempt starts later than this after the first.
const ATTEMPTS_DEADLINE: Duration = Duration::from_secs(30);
const BACKOFF_MIN: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// The cluster map in object storage.
#[derive(Debug, Clone)]
pub struct MapStore {
    storage: Arc<dyn ObjectStorage>,
}

/// How [`MapStore::init`] ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Init {
    /// This call created the cluster.
    Created(ClusterMap),
    /// There was one already; nothing was changed.
    Existing(ClusterMap),
}

/// How [`MapStore::restore`] ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Whether this call wrote it. Otherwise there was one that is not older, and nothing was changed.
    pub written: bool,
    /// The map that is there now.
    pub map: ClusterMap,
}

impl MapStore {
    /// The map in this storage.
    pub fn new(storage: Arc<dyn ObjectStorage>) -> Self {
        Self { storage }
    }

    /// The storage that the map is in.
    pub fn storage(&self) -> &Arc<dyn ObjectStorage> {
        &self.storage
    }

    /// Reads the map; `None` when the cluster has not been created.
    ///
    /// # Errors
    /// When it cannot be read, or is not a map that this build can use.
    pub async fn load(&self) -> Result<Option<ClusterMap>, MapStoreError> {
        Ok(self.read().await?.map(|(map, _)| map))
    }

    /// [`load`](Self::load) for whoever has loaded it before: `None` when it is still the same as then. `known` is what the last call
    /// left there, or `None`; a failure leaves it alone.
    ///
    /// # Errors
    /// When it cannot be read, or is not a map that this build can use.
    pub async fn load_if_changed(
        &self,
        known: &mut Option<Version>,
    ) -> Result<Option<Option<ClusterMap>>, MapStoreError> {
        let object = match known {
            None => self.storage.get(MAP_KEY).await?,
            Some(version) => match self.storage.get_if_changed(MAP_KEY, version).await? {
                Reread::Unchanged => return Ok(None),
                Reread::Changed(object) => object,
            },
        };
        let Some(object) = object else {
            *known = None;
            return Ok(Some(None));
        };
        let map = ClusterMap::from_json(&object.bytes)?;
        *known = Some(object.version);
        Ok(Some(Some(map)))
    }

    /// Changes the map: `change` gets the current map and returns the next one, usually its
    /// [`successor`](ClusterMap::successor) edited, or `None` when there is nothing to do. Returns the map that is in force
    /// afterwards.
    ///
    /// `change` is called again, with the map of then, when another writer was faster or the storage did not answer; so it must
    /// decide by the map alone whether the change is still wanted. The next map's `write_nonce` is set here. While the storage
    /// is unavailable it is tried again, with pauses; no attempt starts later than half a minute after the first.
    ///
    /// # Errors
    /// All kinds but [`OutcomeUnknown`](UpdateError::OutcomeUnknown) mean that nothing was changed by this call.
    pub async fn update<E>(
        &self,
        mut change: impl FnMut(&ClusterMap) -> Result<Option<ClusterMap>, E>,
    ) -> Result<ClusterMap, UpdateError<E>> {
        let mut attempts = Attempts::new();
        let mut own_nonces: Vec<OperationId> = Vec::new();
        // The last write of unknown outcome, with the version that it was to replace.
        let mut in_doubt: Option<(Version, StorageError)> = None;
        loop {
            let (map, version) = match self.read().await {
                Ok(Some(read)) => read,
                Ok(None) => return Err(or_in_doubt(in_doubt, UpdateError::NoMap)),
                Err(MapStoreError::Storage(error))
                    if error.kind() != StorageErrorKind::Refused && attempts.again().await =>
                {
                    tracing::debug!(%error, "reading the cluster map again");
                    continue;
                }
                Err(error) => return Err(or_in_doubt(in_doubt, error.into())),
            };
            if own_nonces.contains(&map.write_nonce) {
                return Ok(map);
            }
            let mut next = match change(&map) {
                Ok(Some(next)) => next,
                Ok(None) => {
                    return match in_doubt {
                        Some((replaced, doubt)) if replaced == version => {
                            Err(UpdateError::OutcomeUnknown(doubt))
                        }
                        _ => Ok(map),
                    };
                }
                Err(error) => return Err(or_in_doubt(in_doubt, UpdateError::Change(error))),
            };
            next.write_nonce = OperationId::random();
            let json = match check_next(&map, &next) {
                Ok(json) => json,
                Err(error) => return Err(or_in_doubt(in_doubt, error)),
            };
            let failure = match self.storage.put_if_match(MAP_KEY, json, &version).await {
                Ok(Put::Done(_)) => return Ok(next),
                Ok(Put::Conflict) => UpdateError::Contended {
                    attempts: attempts.made,
                },
                Err(error) => {
                    if error.kind() == StorageErrorKind::OutcomeUnknown {
                        tracing::warn!(%error, epoch = next.epoch, "reading the cluster map again to see whether it was changed");
                        own_nonces.push(next.write_nonce);
                        in_doubt = Some((version, error.clone()));
                    }
                    if error.kind() == StorageErrorKind::Refused {
                        return Err(or_in_doubt(in_doubt, UpdateError::NotWritten(error)));
                    }
                    UpdateError::NotWritten(error)
                }
            };
            if !attempts.again().await {
                return Err(or_in_doubt(in_doubt, failure));
            }
        }
    }

    /// Creates the cluster's first map, after proving with racing writers that the storage's conditional writes are exclusive.
    /// Where there is a map already, nothing is done; so running it again, or several times at once, is harmless. Where there is
    /// none, and yet what nodes of a cluster write, the map was removed: another one would end that cluster.
    ///
    /// The proof writes a few small objects under `init-probe/` and removes them again.
    ///
    /// # Errors
    /// All kinds but [`OutcomeUnknown`](InitError::OutcomeUnknown) mean that this call wrote no map.
    pub async fn init(&self, new: &NewCluster) -> Result<Init, InitError> {
        let map = ClusterMap::create(new)?;
        if let Some(existing) = self.load().await? {
            return Ok(Init::Existing(existing));
        }
        for prefix in [MANIFESTS, SNAPSHOTS] {
            let page = self.storage.list(prefix, None).await?;
            if let Some(object) = page.objects.into_iter().next() {
                return Err(InitError::MapRemoved { object: object.key });
            }
        }
        exclusivity::prove(&self.storage).await?;
        let json = Bytes::from(map.to_json());
        let mut attempts = Attempts::new();
        let mut in_doubt = None;
        loop {
            let mut failure = match self.storage.put_if_absent(MAP_KEY, json.clone()).await {
                Ok(Put::Done(_)) => return Ok(Init::Created(map)),
                Ok(Put::Conflict) => InitError::NotExclusive {
                    found: format!("creating object {MAP_KEY:?} met a conflict, yet there is none"),
                },
                Err(error) => {
                    match error.kind() {
                        StorageErrorKind::Refused => {
                            return Err(init_failed(in_doubt, error.into()));
                        }
                        StorageErrorKind::OutcomeUnknown => in_doubt = Some(error.clone()),
                        StorageErrorKind::Unavailable => {}
                    }
                    InitError::Storage(error)
                }
            };
            match self.load().await {
                // A node may already have changed it; the id, drawn above, is still this call's own.
                Ok(Some(found)) if found.cluster_id == map.cluster_id => {
                    return Ok(Init::Created(found));
                }
                Ok(Some(found)) => return Ok(Init::Existing(found)),
                Ok(None) => {}
                Err(MapStoreError::Storage(error)) if error.kind() != StorageErrorKind::Refused => {
                    failure = InitError::Load(error.into());
                }
                Err(error) => return Err(init_failed(in_doubt, error.into())),
            }
            if !attempts.again().await {
                return Err(init_failed(in_doubt, failure));
            }
        }
    }

    /// Puts back a map that was in force, as it was, where the storage has none any more, or an older one.
    ///
    /// # Errors
    /// All kinds but [`OutcomeUnknown`](UpdateError::OutcomeUnknown) mean that nothing was changed.
    pub async fn restore(&self, map: &ClusterMap) -> Result<Restored, UpdateError<OtherCluster>> {
        let json = Bytes::from(map.to_json());
        let mut attempts = Attempts::new();
        let mut in_doubt: Option<StorageError> = None;
        let restored = |written, map: ClusterMap| Ok(Restored { written, map });
        let or_in_doubt = |in_doubt: Option<StorageError>, error| {
            in_doubt.map_or(error, UpdateError::OutcomeUnknown)
        };
        loop {
            let found = match self.read().await {
                Ok(found) => found,
                Err(MapStoreError::Storage(error))
                    if error.kind() != StorageErrorKind::Refused && attempts.again().await =>
                {
                    continue;
                }
                Err(error) => return Err(or_in_doubt(in_doubt, error.into())),
            };
            let put = match found {
                None => self.storage.put_if_absent(MAP_KEY, json.clone()).await,
                Some((found, _)) if found.cluster_id != map.cluster_id => {
                    let found = found.cluster_id;
                    let error = UpdateError::Change(OtherCluster { found });
                    return Err(or_in_doubt(in_doubt, error));
                }
                Some((found, _)) if in_doubt.is_some() && found == *map => {
                    return restored(true, found);
                }
                Some((found, _)) if found.version() >= map.version() => {
                    return restored(false, found);
                }
                Some((_, version)) => {
                    let json = json.clone();
                    self.storage.put_if_match(MAP_KEY, json, &version).await
                }
            };
            let failure = match put {
                Ok(Put::Done(_)) => return restored(true, map.clone()),
                Ok(Put::Conflict) => UpdateError::Contended {
                    attempts: attempts.made,
                },
                Err(error) => {
                    match error.kind() {
                        StorageErrorKind::Refused => {
                            return Err(or_in_doubt(in_doubt, UpdateError::NotWritten(error)));
                        }
                        StorageErrorKind::OutcomeUnknown => in_doubt = Some(error.clone()),
                        StorageErrorKind::Unavailable => {}
                    }
                    UpdateError::NotWritten(error)
                }
            };
            if !attempts.again().await {
                return Err(or_in_doubt(in_doubt, failure));
            }
        }
    }

    async fn read(&self) -> Result<Option<(ClusterMap, Version)>, MapStoreError> {
        let Some(object) = self.storage.get(MAP_KEY).await? else {
            return Ok(None);
        };
        Ok(Some((
            ClusterMap::from_json(&object.bytes)?,
            object.version,
        )))
    }
}

/// The next map's JSON, when it may follow the current one.
fn check_next<E>(current: &ClusterMap, next: &ClusterMap) -> Result<Bytes, UpdateError<E>> {
    if next.version() <= current.version() {
        return Err(UpdateError::NotNewer {
            current: current.version(),
            next: next.version(),
        });
    }
    if next.cluster_id != current.cluster_id {
        return Err(UpdateError::Invalid(MapError::Inconsistent(format!(
            "it is of cluster {}, the current one of cluster {}",
            next.cluster_id, current.cluster_id
        ))));
    }
    let json = next.to_json();
    // What cannot be read again would end the cluster.
    ClusterMap::from_json(&json).map_err(UpdateError::Invalid)?;
    Ok(json.into())
}

/// How an update ends that fails with `error`, where an earlier write of it may have been applied or may yet be.
fn or_in_doubt<E>(
    in_doubt: Option<(Version, StorageError)>,
    error: UpdateError<E>,
) -> UpdateError<E> {
    in_doubt.map_or(error, |(_, doubt)| UpdateError::OutcomeUnknown(doubt))
}

fn init_failed(in_doubt: Option<StorageError>, error: InitError) -> InitError {
    in_doubt.map_or(error, InitError::OutcomeUnknown)
}

/// Bounds and paces the attempts of one call.
struct Attempts {
    started: Instant,
    made: u32,
}

impl Attempts {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            made: 1,
        }
    }

    /// Waits until the next attempt is due; false when there is to be none.
    async fn again(&mut self) -> bool {
        if self.made >= ATTEMPTS_MAX || self.started.elapsed() >= ATTEMPTS_DEADLINE {
            return false;
        }
        sleep(random::backoff(BACKOFF_MIN, BACKOFF_MAX, self.made - 1)).await;
        self.made += 1;
        true
    }
}

#[cfg(test)]
mod tests;
