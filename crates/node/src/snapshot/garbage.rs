//! Objects that no manifest names.

use std::{collections::HashSet, time::Duration};

use keydb_core::{Manifest, ManifestError, UnixMillis};
use keydb_storage::{ObjectInfo, ObjectStorage, StorageError};

use super::{
    names::{MANIFESTS, OBJECTS},
    object_key,
};

/// What [`collect_garbage`] removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// The keys of the objects.
    pub removed: Vec<String>,
    /// How many bytes they had.
    pub removed_bytes: u64,
    /// How many objects there were.
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
}

/// Removes the snapshot objects that are older than `age` and that no manifest names; with `dry_run` only says which those are.
///
/// An object is uploaded before a manifest names it, so objects younger than that are left alone; and objects are listed before
/// the manifests are read, so that what is named in the meantime is found named.
///
/// # Errors
/// When the storage fails, or a manifest cannot be read. What was removed until then was garbage.
pub async fn collect_garbage(
    storage: &dyn ObjectStorage,
    age: Duration,
    dry_run: bool,
) -> Result<Collected, GarbageError> {
    let now = storage.now().await?;
    let objects = list_all(storage, OBJECTS).await?;
    let mut named = HashSet::new();
    for manifest in list_all(storage, MANIFESTS).await? {
        let Some(object) = storage.get(&manifest.key).await? else {
            continue;
        };
        let manifest =
            Manifest::from_json(&object.bytes).map_err(|error| GarbageError::Manifest {
                key: manifest.key,
                error,
            })?;
        let keys = manifest.files.iter();
        named.extend(keys.map(|file| object_key(manifest.node, &file.name)));
    }
    let is_old = |modified: UnixMillis| modified.plus(age) < now;
    let mut collected = Collected {
        seen: objects.len(),
        ..Collected::default()
    };
    for object in objects {
        if named.contains(&object.key) || !is_old(object.modified) {
            continue;
        }
        if !dry_run {
            storage.delete(&object.key).await?;
        }
        collected.removed_bytes += object.size_bytes;
        collected.removed.push(object.key);
    }
    Ok(collected)
}

async fn list_all(
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
