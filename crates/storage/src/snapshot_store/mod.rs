//! Snapshots in object storage: each node's files, and the manifest that names them.
//!
//! A node's manifest is there before its first file is, so files without a manifest show that it was removed; and an object is
//! uploaded before a manifest names it, so young ones that no manifest names are left alone.

mod copy;
mod error;
mod garbage;
mod names;
mod read;
mod store;

pub use copy::CopyError;
pub use error::{GarbageError, ManifestReadError, SnapshotReadError};
pub use garbage::{Collected, GARBAGE_AGE_MIN};
pub use names::{
    BACKUP_KEY, BACKUP_RECORD_KEY, MANIFESTS, SNAPSHOT_EXTENSION, SNAPSHOTS, manifest_key,
    object_key, snapshot_file_name,
};
pub use store::SnapshotStore;
