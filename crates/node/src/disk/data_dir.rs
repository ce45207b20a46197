//! A node's data directory: its lock, what it is, and the newest cluster map that it went by.
//!
//! ```text
//! lock            held while a process uses the directory
//! node.json       whose disk this is: cluster, node, disk id
//! map.json        the newest cluster map, so that a start needs no object storage
//! manifest.json   which snapshot files make up the node's ranges
//! journal/        what was written since
//! snapshots/      the snapshot files
//! answers         the remembered answers to claims whose journal records are gone
//! decisions.json  what the node has decided about ranges that move
//! published.json  which manifests of this disk object storage may have
//! clock.json      the clock as object storage has confirmed it last
//! clean           there when the node stopped cleanly
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
};

use keydb_core::{ClusterId, ClusterMap, Incarnation, NodeId};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::disk::failpoint;

/// A large file is written in pieces of this size.
const PIECE_BYTES: usize = 256 << 10;

const FORMAT: u32 = 1;
const IDENTITY: &str = "node.json";
const MAP: &str = "map.json";
const LOCK: &str = "lock";
const ANSWERS: &str = "answers";
const JOURNAL: &str = "journal";

/// What stands in the way of using a data directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataDirError {
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another process uses it.
    #[error("data directory {} is used by another process; stop that one first, or set KEYDB_DATA_DIR to another directory", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// It belongs to another node or cluster.
    #[error("data directory {} belongs to node {found_node} of cluster {found_cluster}, not to node {node} of cluster {cluster}; set KEYDB_DATA_DIR to the directory of this node", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// The node that it belongs to.
        found_node: NodeId,
        /// And its cluster.
        found_cluster: ClusterId,
        /// The node that was started.
        node: NodeId,
        /// And its cluster.
        cluster: ClusterId,
    },
    /// A file is not what it should be.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// What a data directory is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    format: u32,
    cluster_id: ClusterId,
    node: NodeId,
    disk_id: Incarnation,
}

/// A data directory, used by this process alone while this lives.
#[derive(Debug)]
pub(crate) struct DataDir {
    root: PathBuf,
    identity: Identity,
    _lock: File,
}

impl DataDir {
    /// Opens the directory of `node`; makes it, with a disk id of its own, when it is not there or empty.
    pub(crate) fn open(
        root: &Path,
        cluster: ClusterId,
        node: NodeId,
    ) -> Result<Self, DataDirError> {
        fs::create_dir_all(root).map_err(io_error("create directory", root))?;
        let lock_path = root.join(LOCK);
        let lock = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&lock_path)
            .map_err(io_error("open", &lock_path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(DataDirError::InUse {
                    path: root.to_owned(),
                });
            }
            Err(error) => return Err(io_error("lock", &lock_path)(error.into())),
        }
        let identity = match read(&root.join(IDENTITY))? {
            Some(json) => parse_identity(root, &json)?,
            None => make_identity(root, cluster, node)?,
        };
        if identity.cluster_id != cluster || identity.node != node {
            return Err(DataDirError::Foreign {
                path: root.to_owned(),
                found_node: identity.node,
                found_cluster: identity.cluster_id,
                node,
                cluster,
            });
        }
        Ok(Self {
            root: root.to_owned(),
            identity,
            _lock: lock,
        })
    }

    /// The disk's id.
    pub(crate) const fn disk_id(&self) -> Incarnation {
        self.identity.disk_id
    }

    /// The directory itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where the journal is.
    pub(crate) fn journal(&self) -> PathBuf {
        self.root.join(JOURNAL)
    }

    /// Where the remembered answers are.
    pub(crate) fn answers(&self) -> PathBuf {
        self.root.join(ANSWERS)
    }

    /// Keeps `map` as the newest one.
    pub(crate) fn save_map(&self, map: &ClusterMap) -> Result<(), DataDirError> {
        replace(&self.root.join(MAP), &map.to_json())
    }
}

/// The newest map that the node whose data directory is `root` went by, if there is one.
///
/// # Errors
/// When it cannot be read, or is not a map that this build can use.
pub fn saved_map(root: &Path) -> Result<Option<ClusterMap>, DataDirError> {
    let path = root.join(MAP);
    let Some(json) = read(&path)? else {
        return Ok(None);
    };
    match ClusterMap::from_json(&json) {
        Ok(map) => Ok(Some(map)),
        Err(error) => Err(DataDirError::Damaged {
            path,
            reason: error.to_string(),
        }),
    }
}

/// The id of the disk in the directory `root`, if there is one.
pub(crate) fn saved_disk_id(root: &Path) -> Result<Option<Incarnation>, DataDirError> {
    match read(&root.join(IDENTITY))? {
        Some(json) => parse_identity(root, &json).map(|identity| Some(identity.disk_id)),
        None => Ok(None),
    }
}

/// Replaces a file as a whole: a crash leaves the old one or the new one.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), DataDirError> {
    replace_in_pieces(path, bytes, || {})
}

/// [`replace`] for large files: each [`PIECE_BYTES`] are synced by themselves, so that the journal's syncs never wait for much more,
/// and `rest` is called between them.
pub(crate) fn replace_in_pieces(
    path: &Path,
    bytes: &[u8],
    mut rest: impl FnMut(),
) -> Result<(), DataDirError> {
    let temporary = path.with_extension("tmp");
    let written = failpoint::hit("data_dir.write", &temporary)
        .and_then(|()| File::create(&temporary))
        .and_then(|mut file| {
            for (index, piece) in bytes.chunks(PIECE_BYTES).enumerate() {
                if index > 0 {
                    file.sync_data()?;
                    rest();
                }
                file.write_all(piece)?;
            }
            file.sync_all()
        });
    if let Err(error) = written {
        // What it takes may be just what is missing elsewhere.
        let _ = fs::remove_file(&temporary);
        return Err(io_error("write", &temporary)(error));
    }
    failpoint::hit("data_dir.rename", path)
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(io_error("replace", path))?;
    sync_dir(path.parent().unwrap_or(path))
}

/// What was made, renamed or removed in `dir` is so for good.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), DataDirError> {
    failpoint::hit("data_dir.sync", dir)
        .and_then(|()| File::open(dir)?.sync_all())
        .map_err(io_error("sync directory", dir))
}

/// [`replace`] with `value` as JSON, which has only strings for its objects' keys.
pub(crate) fn replace_json(path: &Path, value: &impl Serialize) -> Result<(), DataDirError> {
    let json =
        serde_json::to_vec_pretty(value).expect("what has only string keys always serialises");
    replace(path, &json)
}

/// What a file has as JSON; `None` when it is not there.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, DataDirError> {
    let Some(json) = read(path)? else {
        return Ok(None);
    };
    serde_json::from_slice(&json)
        .map(Some)
        .map_err(|error| DataDirError::Damaged {
            path: path.to_owned(),
            reason: error.to_string(),
        })
}

/// A whole file; `None` when it is not there.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, DataDirError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read", path)(error)),
    }
}

fn parse_identity(root: &Path, json: &[u8]) -> Result<Identity, DataDirError> {
    let damaged = |reason: String| DataDirError::Damaged {
        path: root.join(IDENTITY),
        reason,
    };
    let identity: Identity =
        serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))?;
    if identity.format != FORMAT {
        return Err(damaged(format!(
            "it has format {}, and this build reads {FORMAT}",
            identity.format
        )));
    }
    Ok(identity)
}

fn make_identity(
    root: &Path,
    cluster_id: ClusterId,
    node: NodeId,
) -> Result<Identity, DataDirError> {
    for content in [JOURNAL, "manifest.json", "snapshots"] {
        let path = root.join(content);
        if fs::exists(&path).map_err(io_error("read", &path))? {
            return Err(DataDirError::Damaged {
                path: root.join(IDENTITY),
                reason: format!("it is missing, though there is a {content} beside it"),
            });
        }
    }
    let identity = Identity {
        format: FORMAT,
        cluster_id,
        node,
        disk_id: Incarnation::random(),
    };
    replace_json(&root.join(IDENTITY), &identity)?;
    // The directory itself must be there after a loss of power as well.
    if let Some(parent) = root.parent().filter(|parent| parent.is_dir()) {
        sync_dir(parent)?;
    }
    Ok(identity)
}

impl DataDirError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        io_error(action, path)(source)
    }
}

fn io_error<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> DataDirError + use<'a> {
    move |source| DataDirError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use keydb_core::{Durability, NewCluster};

    use super::*;

    const NODE: NodeId = NodeId(3);

    fn cluster() -> ClusterId {
        ClusterId::from_bytes([9; 16])
    }

    #[test]
    fn a_directory_keeps_its_disk_id() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/b");
        let first = DataDir::open(&root, cluster(), NODE).unwrap().disk_id();
        let again = DataDir::open(&root, cluster(), NODE).unwrap().disk_id();
        assert_eq!(first, again);
        let other = tempfile::tempdir().unwrap();
        let other = DataDir::open(other.path(), cluster(), NODE).unwrap();
        assert_ne!(other.disk_id(), first);
    }

    #[test]
    fn a_directory_in_use_is_refused_by_name_until_it_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataDir::open(dir.path(), cluster(), NODE).unwrap();
        let refused = DataDir::open(dir.path(), cluster(), NODE).unwrap_err();
        assert!(matches!(refused, DataDirError::InUse { .. }), "{refused}");
        assert!(refused.to_string().contains(dir.path().to_str().unwrap()));
        drop(held);
        DataDir::open(dir.path(), cluster(), NODE).unwrap();
    }

    #[test]
    fn the_directory_of_another_node_or_cluster_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(DataDir::open(dir.path(), cluster(), NODE).unwrap());
        for (cluster, node) in [
            (cluster(), NodeId(4)),
            (ClusterId::from_bytes([8; 16]), NODE),
        ] {
            let refused = DataDir::open(dir.path(), cluster, node).unwrap_err();
            assert!(matches!(refused, DataDirError::Foreign { .. }), "{refused}");
        }
    }

    #[test]
    fn a_directory_with_data_and_without_identity_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(DataDir::open(dir.path(), cluster(), NODE).unwrap());
        fs::create_dir(dir.path().join("journal")).unwrap();
        fs::remove_file(dir.path().join("node.json")).unwrap();
        let refused = DataDir::open(dir.path(), cluster(), NODE).unwrap_err();
        assert!(
            refused.to_string().contains("node.json is damaged"),
            "{refused}"
        );
    }

    #[test]
    fn the_saved_map_is_read_back_and_damage_to_it_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(saved_map(dir.path()).unwrap(), None);
        let data_dir = DataDir::open(dir.path(), cluster(), NODE).unwrap();
        let map = ClusterMap::create(&NewCluster {
            addresses: vec!["a:1".to_owned()],
            range_count: 4,
            durability: Durability::Journal,
        })
        .unwrap();
        data_dir.save_map(&map).unwrap();
        assert_eq!(saved_map(dir.path()).unwrap(), Some(map));
        fs::write(dir.path().join("map.json"), "{").unwrap();
        assert!(saved_map(dir.path()).is_err());
    }
}
