//! What files and objects are called.

use keydb_core::{Incarnation, Lsn, NodeId, RangeId, random};

/// The folder of all manifests in object storage.
pub(super) const MANIFESTS: &str = "manifests/";
/// The folder of all snapshot files there.
pub(super) const OBJECTS: &str = "snapshots/";

/// The key of a node's manifest in object storage.
pub fn manifest_key(node: NodeId) -> String {
    format!("{MANIFESTS}node-{node}.json")
}

/// The key of the object that is `node`'s snapshot file of this name.
pub fn object_key(node: NodeId, file: &str) -> String {
    format!("{OBJECTS}node-{node}/{file}")
}

/// A name that no file has had yet: that of a delta, or of a full file of `range`.
pub(super) fn file_name(disk_id: Incarnation, lsn_to: Lsn, range: Option<RangeId>) -> String {
    let unique = random::u64() as u32;
    let kind = range.map_or_else(|| "delta".to_owned(), |range| format!("full-{range}"));
    format!("{disk_id}-{:020}-{unique:08x}-{kind}.keydb", lsn_to.0)
}
