//! What files and objects are called.

use keydb_core::{Incarnation, Lsn, NodeId, RangeId, random};

/// What the keys of all nodes' manifests begin with.
pub const MANIFESTS: &str = "manifests/";

/// What the keys of all nodes' snapshot files begin with.
pub const SNAPSHOTS: &str = "snapshots/";

/// The key of the object that makes a storage a backup. It lists the others, and is written last, and once.
pub const BACKUP_KEY: &str = "backup.json";

/// The key of the object that says how far a backup is, of the same form: changed by compare-and-swap only.
pub const BACKUP_RECORD_KEY: &str = "backup-begun.json";

/// What every snapshot file's name ends in.
pub const SNAPSHOT_EXTENSION: &str = "keydb";

/// The key of a node's manifest.
pub fn manifest_key(node: NodeId) -> String {
    format!("{MANIFESTS}node-{node}.json")
}

/// The key of the object that is `node`'s snapshot file of this name.
pub fn object_key(node: NodeId, file: &str) -> String {
    format!("{SNAPSHOTS}node-{node}/{file}")
}

/// Whether an object of this key can be a snapshot file.
pub(super) fn is_object_key(key: &str) -> bool {
    node_of_object(key).is_some()
}

/// The node whose snapshot file an object of this key can be.
pub(super) fn node_of_object(key: &str) -> Option<NodeId> {
    let (folder, file) = key.strip_prefix(SNAPSHOTS)?.split_once('/')?;
    let node = folder.strip_prefix("node-")?.parse().ok()?;
    let (_, extension) = file.rsplit_once('.')?;
    (!file.contains('/') && extension == SNAPSHOT_EXTENSION).then_some(NodeId(node))
}

/// A name that no file has had yet: that of a delta, or of a full file of `range`, which `disk_id` makes of what it wrote up to
/// `lsn_to`.
pub fn snapshot_file_name(disk_id: Incarnation, lsn_to: Lsn, range: Option<RangeId>) -> String {
    let unique = random::u64() as u32;
    let kind = range.map_or_else(|| "delta".to_owned(), |range| format!("full-{range}"));
    let lsn = lsn_to.0;
    format!("{disk_id}-{lsn:020}-{unique:08x}-{kind}.{SNAPSHOT_EXTENSION}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_snapshot_files_are_told_from_others() {
        let disk_id = Incarnation::from_bytes([7; 16]);
        for range in [None, Some(RangeId(127))] {
            let name = snapshot_file_name(disk_id, Lsn(u64::MAX), range);
            let key = object_key(NodeId(12), &name);
            assert_eq!(node_of_object(&key), Some(NodeId(12)), "{name}");
        }
        for key in [
            "snapshots/notes.keydb",
            "snapshots/node-x/a.keydb",
            "snapshots/node-1/a/b.keydb",
            "snapshots/node-1/a.txt",
            "manifests/node-1.json",
        ] {
            assert!(!is_object_key(key), "{key}");
        }
    }
}
