//! Objects that no manifest names.
//!
//! An object is uploaded before a manifest names it, so young ones are left alone. Objects are listed before the manifests are read,
//! so that what was named in the meantime is found named; and the manifests are read again, when that was a while ago, before more
//! is removed.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use keydb_core::{Manifest, NodeId, UnixMillis};

use super::{
    error::GarbageError,
    names::{MANIFESTS, SNAPSHOTS, is_object_key, manifest_key, node_of_object, object_key},
    store::SnapshotStore,
};
use crate::{ObjectInfo, StorageError};

/// Younger objects may belong to an upload that is under way, whatever somebody asks for.
pub const GARBAGE_AGE_MIN: Duration = Duration::from_secs(20 * 60);

/// So many objects are removed at the same time.
const REMOVALS_AT_ONCE: usize = 16;
/// So many are removed between two looks at what manifests name.
const REMOVALS_A_LOOK: usize = 1000;

/// What manifests say is read again after this time.
const MANIFESTS_AGE_MAX: Duration = Duration::from_secs(30);

/// What [`SnapshotStore::collect_garbage`] removed.
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

impl SnapshotStore {
    /// Removes the snapshot objects, of one node or of all, that are older than `age` and that no manifest names; with `dry_run` only
    /// says which those are. Objects whose names are not those of snapshot files are nobody's to remove. One that cannot be removed
    /// stays, and is among the [`failed`](Collected::failed).
    ///
    /// # Errors
    /// When the storage fails otherwise, or a manifest cannot be read. What was removed until then was garbage.
    pub async fn collect_garbage(
        &self,
        node: Option<NodeId>,
        age: Duration,
        dry_run: bool,
    ) -> Result<Collected, GarbageError> {
        let now = self.storage().now().await?;
        let folder = node.map_or_else(|| SNAPSHOTS.to_owned(), |node| object_key(node, ""));
        let mut objects = self.list(&folder).await?;
        objects.retain(|object| is_object_key(&object.key));
        let is_old = |modified: UnixMillis| modified.plus(age) < now;
        let mut collected = Collected {
            seen: objects.len(),
            ..Collected::default()
        };
        let mut named = self.named_objects(node, &objects).await?;
        let mut named_at = Instant::now();
        let old: Vec<&ObjectInfo> = objects
            .iter()
            .filter(|object| is_old(object.modified))
            .collect();
        for some in old.chunks(REMOVALS_A_LOOK) {
            if named_at.elapsed() > MANIFESTS_AGE_MAX {
                named = self.named_objects(node, &objects).await?;
                named_at = Instant::now();
            }
            let unnamed = some.iter().filter(|object| !named.contains(&object.key));
            let removals: Vec<_> = unnamed
                .map(|object| self.remove((*object).clone(), dry_run))
                .collect();
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
        &self,
        object: ObjectInfo,
        dry_run: bool,
    ) -> (ObjectInfo, Result<(), StorageError>) {
        let removed = match dry_run {
            true => Ok(()),
            false => self.storage().delete(&object.key).await,
        };
        (object, removed)
    }

    /// The keys of the objects that manifests name. Each node of one of `objects` must have one.
    async fn named_objects(
        &self,
        node: Option<NodeId>,
        objects: &[ObjectInfo],
    ) -> Result<HashSet<String>, GarbageError> {
        let mut named = HashSet::new();
        let mut nodes = HashSet::new();
        let keys = match node {
            Some(node) => vec![manifest_key(node)],
            None => {
                let manifests = self.list(MANIFESTS).await?;
                manifests.into_iter().map(|info| info.key).collect()
            }
        };
        for key in keys {
            // One that has gone since is missed below.
            let Some(object) = self.storage().get(&key).await? else {
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
}
