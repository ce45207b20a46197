//! Objects that no manifest names.
//!
//! An object is uploaded before a manifest names it, so young ones are left alone. Objects are listed before the manifests are read,
//! so that what was named in the meantime is found named; and the manifests are read again, when that was a while ago, before more
//! is removed.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use keydb_core::{Manifest, ManifestError, UnixMillis};
use keydb_storage::{MANIFESTS, ObjectInfo, ObjectStorage, SNAPSHOTS, StorageError};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::{
    Shared, manifest_key,
    names::{is_object_key, node_of_object},
    object_key,
};

/// Objects that no manifest names are removed when they are this old.
pub(super) const GARBAGE_AGE: Duration = Duration::from_secs(3600);
const GARBAGE_INTERVAL: Duration = Duration::from_secs(3600);
/// This node does it for the cluster.
const COLLECTOR: u32 = 0;

/// What manifests say is read again after this time.
const MANIFESTS_AGE_MAX: Duration = Duration::from_secs(30);

/// What [`collect_garbage`] removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// The keys of the objects.
    pub removed: Vec<String>,
    /// How many bytes they had.
    pub removed_bytes: u64,
    /// How many snapshot objects there were.
    pub seen: usize,
}

/// Why nothing more was removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GarbageError {
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// What a manifest names is not known, so nothing is garbage for certain.
    #[error("manifest {key:?} cannot be read, so nothing is removed: {error}")]
    Manifest {
        /// The manifest.
        key: String,
        /// What is wrong with it.
        error: ManifestError,
    },
    /// A node has objects and no manifest. Each has one before its first object, so it was removed, and its objects may be all
    /// that is left of the node's keys.
    #[error(
        "there is no manifest {key:?}, but there are objects that it must have named, such as {object:?}; nothing is removed until it is back"
    )]
    NoManifest {
        /// The manifest.
        key: String,
        /// One of the objects.
        object: String,
    },
}

/// Removes garbage from time to time, on one node.
pub(super) async fn run(shared: Arc<Shared>) {
    if shared.node.config.id.0 != COLLECTOR {
        return;
    }
    loop {
        sleep(GARBAGE_INTERVAL).await;
        let collecting = collect_garbage(&*shared.storage, GARBAGE_AGE, false);
        match timeout(GARBAGE_INTERVAL, collecting).await {
            Ok(Ok(collected)) => info!(
                objects = collected.removed.len(),
                bytes = collected.removed_bytes,
                "removed objects that no manifest names"
            ),
            Ok(Err(error)) => warn!("objects that no manifest names are not removed: {error}"),
            Err(_) => warn!("removing objects that no manifest names took too long"),
        }
    }
}

/// Removes the snapshot objects that are older than `age` and that no manifest names; with `dry_run` only says which those are.
/// Objects whose names are not those of snapshot files are nobody's to remove.
///
/// # Errors
/// When the storage fails, or a manifest cannot be read. What was removed until then was garbage.
pub async fn collect_garbage(
    storage: &dyn ObjectStorage,
    age: Duration,
    dry_run: bool,
) -> Result<Collected, GarbageError> {
    let now = storage.now().await?;
    let mut objects = list_all(storage, SNAPSHOTS).await?;
    objects.retain(|object| is_object_key(&object.key));
    let is_old = |modified: UnixMillis| modified.plus(age) < now;
    let mut collected = Collected {
        seen: objects.len(),
        ..Collected::default()
    };
    let mut named = named_objects(storage, &objects).await?;
    let mut named_at = Instant::now();
    for object in objects.iter().filter(|it| is_old(it.modified)) {
        if named_at.elapsed() > MANIFESTS_AGE_MAX {
            named = named_objects(storage, &objects).await?;
            named_at = Instant::now();
        }
        if named.contains(&object.key) {
            continue;
        }
        if !dry_run {
            storage.delete(&object.key).await?;
        }
        collected.removed_bytes += object.size_bytes;
        collected.removed.push(object.key.clone());
    }
    Ok(collected)
}

/// The keys of the objects that manifests name. Each node of one of `objects` must have one.
async fn named_objects(
    storage: &dyn ObjectStorage,
    objects: &[ObjectInfo],
) -> Result<HashSet<String>, GarbageError> {
    let mut named = HashSet::new();
    let mut nodes = HashSet::new();
    for info in list_all(storage, MANIFESTS).await? {
        // One that has gone since is missed below.
        let Some(object) = storage.get(&info.key).await? else {
            continue;
        };
        let manifest =
            Manifest::from_json(&object.bytes).map_err(|error| GarbageError::Manifest {
                key: info.key,
                error,
            })?;
        let files = manifest.files.iter();
        named.extend(files.map(|file| object_key(manifest.node, &file.name)));
        nodes.insert(manifest.node);
    }
    for object in objects {
        if let Some(node) = node_of_object(&object.key).filter(|node| !nodes.contains(node)) {
            return Err(GarbageError::NoManifest {
                key: manifest_key(node),
                object: object.key.clone(),
            });
        }
    }
    Ok(named)
}

pub(super) async fn list_all(
    storage: &dyn ObjectStorage,
    prefix: &str,
) -> Result<Vec<ObjectInfo>, StorageError> {
    let mut all: Vec<ObjectInfo> = Vec::new();
    loop {
        let after = all.last().map(|object| object.key.clone());
        let page = storage.list(prefix, after.as_deref()).await?;
        all.extend(page.objects);
        if !page.more {
            return Ok(all);
        }
    }
}
