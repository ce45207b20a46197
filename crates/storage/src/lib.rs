//! Object storage behind one small trait, and what a cluster keeps in it.
//!
//! - [`ObjectStorage`] is the trait: read, write if absent, write if unchanged, stream large objects from files and back, list,
//!   remove, and the storage's own time. Writes are exclusive: of any number of writers with the same condition, at most one wins.
//! - [`StorageUrl`] is how settings name one: an S3 bucket, or a directory that processes of one machine share
//!   ([`LocalStorage`]). [`MemoryStorage`] keeps objects in this process.
//! - [`MapStore`] keeps the cluster map in object storage: it creates the map once, and changes it by compare-and-swap only.
//! - [`MeasuredStorage`] counts the calls of another one, for metrics.
//! - [`SnapshotStore`] keeps each node's snapshot files there, and the manifests that name them.
//!
//! ```
//! use bytes::Bytes;
//! use keydb_storage::{LocalStorage, ObjectStorage, Put};
//!
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path();
//! # runtime.block_on(async {
//! let storage = LocalStorage::create(dir)?;
//! let Put::Done(version) = storage.put_if_absent("greeting", Bytes::from("hello")).await? else {
//!     panic!("somebody else wrote it first");
//! };
//! storage.put_if_match("greeting", Bytes::from("hello again"), &version).await?;
//! // The version was used up by the write before.
//! assert_eq!(storage.put_if_match("greeting", Bytes::new(), &version).await?, Put::Conflict);
//! # Ok::<(), keydb_storage::StorageError>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(test)]
mod conformance;
mod error;
mod key;
mod local;
mod map_store;
mod measured;
mod memory;
mod object;
mod s3;
mod snapshot_store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod url;

pub use error::{StorageError, StorageErrorKind};
pub use key::{KEY_BYTES_MAX, check_key};
pub use local::LocalStorage;
pub use map_store::{
    Init, InitError, MAP_KEY, MapStore, MapStoreError, OtherCluster, Restored, UpdateError,
};
pub use measured::{MeasuredStorage, StorageCalls};
pub use memory::MemoryStorage;
pub use object::{
    LIST_PAGE_MAX, ListPage, OBJECT_BYTES_MAX, Object, ObjectInfo, ObjectStorage, ObjectStream,
    Put, Reread, Version,
};
pub use s3::S3Options;
pub use snapshot_store::{
    BACKUP_KEY, BACKUP_RECORD_KEY, Collected, CopyError, GARBAGE_AGE_MIN, GarbageError, MANIFESTS,
    ManifestReadError, SNAPSHOT_EXTENSION, SNAPSHOTS, SnapshotReadError, SnapshotStore,
    manifest_key, object_key, snapshot_file_name,
};
pub use url::{StorageUrl, StorageUrlError};
