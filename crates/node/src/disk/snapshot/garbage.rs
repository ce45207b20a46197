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

use futures_util::{StreamExt, stream};
use keydb_core::{Manifest, ManifestError, NodeId, UnixMillis};
use keydb_storage::{MANIFESTS, ObjectInfo, ObjectStorage, SNAPSHOTS, StorageError};
use tokio::time::{sleep, timeout};
use tracing::info;

use super::{
    Shared, manifest_key,
    names::{is_object_key, node_of_object},
    object_key,
};

/// Objects that no manifest names are removed when they are this old.
pub(super) const GARBAGE_AGE: Duration = Duration::from_secs(3600);
const GARBAGE_INTERVAL: Duration = Duration::from_secs(3600);
/// The first time comes sooner: a node may be restarted before an hour has passed.
const GARBAGE_DELAY: Duration = Duration::from_secs(600);

/// Younger objects may belong to an upload that is under way, whatever somebody asks for.
pub const GARBAGE_AGE_MIN: Duration = Duration::from_secs(20 * 60);

/// So many objects are removed at the same time.
const REMOVALS_AT_ONCE: usize = 16;
/// So many are removed between two looks at what manifests name.
const REMOVALS_A_LOOK: usize = 1000;

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
    /// The keys of those that could not be removed, and why.
    pub failed: Vec<(String, StorageError)>,
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

/// Removes this node's garbage from time to time.
pub(super) async fn run(shared: Arc<Shared>) {
    let node = &shared.node;
    sleep(GARBAGE_DELAY).await;
    loop {
        let collecting =
            collect_garbage(&*shared.storage, Some(node.config.id), GARBAGE_AGE, false);
        let problem = match timeout(GARBAGE_INTERVAL, collecting).await {
            Ok(Ok(collected)) => {
                info!(
                    objects = collected.removed.len(),
                    bytes = collected.removed_bytes,
                    failed = collected.failed.len(),
                    "removed objects that no manifest names"
                );
                let failed = collected.failed.first();
                failed.map(|(key, error)| {
                    let count = collected.failed.len();
                    format!("{count} of them; the first is {key:?}: {error}")
                })
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("it takes longer than an hour".to_owned()),
        };
        let text = |problem| format!("objects that no manifest names cannot be removed: {problem}");
        node.warn_of("garbage", problem.map(text));
        sleep(GARBAGE_INTERVAL).await;
    }
}

/// Removes the snapshot objects, of one node or of all, that are older than `age` and that no manifest names; with `dry_run` only says
/// which those are. Objects whose names are not those of snapshot files are nobody's to remove. One that cannot be removed stays, and
/// is among the [`failed`](Collected::failed).
///
/// # Errors
/// When the storage fails otherwise, or a manifest cannot be read. What was removed until then was garbage.
pub async fn collect_garbage(
    storage: &dyn ObjectStorage,
    node: Option<NodeId>,
    age: Duration,
    dry_run: bool,
) -> Result<Collected, GarbageError> {
    let now = storage.now().await?;
    let folder = node.map_or_else(|| SNAPSHOTS.to_owned(), |node| object_key(node, ""));
    let mut objects = list_all(storage, &folder).await?;
    objects.retain(|object| is_object_key(&object.key));
    let is_old = |modified: UnixMillis| modified.plus(age) < now;
    let mut collected = Collected {
        seen: objects.len(),
        ..Collected::default()
    };
    let mut named = named_objects(storage, node, &objects).await?;
    let mut named_at = Instant::now();
    let old: Vec<&ObjectInfo> = objects
        .iter()
        .filter(|object| is_old(object.modified))
        .collect();
    for some in old.chunks(REMOVALS_A_LOOK) {
        if named_at.elapsed() > MANIFESTS_AGE_MAX {
            named = named_objects(storage, node, &objects).await?;
            named_at = Instant::now();
        }
        let mut removals = Vec::new();
        for object in some {
            if !named.contains(&object.key) {
                removals.push(remove(storage, (*object).clone(), dry_run));
            }
        }
        let mut removals = stream::iter(removals).buffered(REMOVALS_AT_ONCE);
        while let Some((object, removed)) = removals.next().await {
            match removed {
                Ok(()) => {
                    collected.removed_bytes += object.size_bytes;
                    collected.removed.push(object.key);
                }
                Err(error) => collected.failed.push((object.key, error)),
            }
        }
    }
    Ok(collected)
}

async fn remove(
    storage: &dyn ObjectStorage,
    object: ObjectInfo,
    dry_run: bool,
) -> (ObjectInfo, Result<(), StorageError>) {
    let removed = match dry_run {
        true => Ok(()),
        false => storage.delete(&object.key).await,
    };
    (object, removed)
}

/// The keys of the objects that manifests name. Each node of one of `objects` must have one.
async fn named_objects(
    storage: &dyn ObjectStorage,
    node: Option<NodeId>,
    objects: &[ObjectInfo],
) -> Result<HashSet<String>, GarbageError> {
    let mut named = HashSet::new();
    let mut nodes = HashSet::new();
    let keys = match node {
        Some(node) => vec![manifest_key(node)],
        None => {
            let manifests = list_all(storage, MANIFESTS).await?;
            manifests.into_iter().map(|info| info.key).collect()
        }
    };
    for key in keys {
        // One that has gone since is missed below.
        let Some(object) = storage.get(&key).await? else {
            continue;
        };
        let manifest = Manifest::from_json(&object.bytes)
            .map_err(|error| GarbageError::Manifest { key, error })?;
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
