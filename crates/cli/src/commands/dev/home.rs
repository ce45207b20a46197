//! Where a dev cluster keeps its map and its keys.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use keydb_core::{Clock, ClusterMap, Durability, NewCluster, NodeId};
use keydb_node::NodeConfig;
use keydb_storage::{Init, LocalStorage, MapStore, MemoryStorage, ObjectStorage, StorageUrl};

use crate::{exit::Failure, settings::HASH_RANGES_DEFAULT};

/// The object storage's directory.
const STORAGE: &str = "storage";

/// In this process only, or in a directory: `storage/` is the object storage, `node-N/` each node's data directory.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) dir: Option<PathBuf>,
    pub(super) storage: Arc<dyn ObjectStorage>,
    /// Held for as long as the cluster runs: two of them in one directory would take each other's addresses.
    _lock: Option<fs::File>,
}

impl Home {
    pub(super) fn in_memory(clock: &Arc<dyn Clock>) -> Self {
        Self {
            dir: None,
            storage: Arc::new(MemoryStorage::new(Arc::clone(clock))),
            _lock: None,
        }
    }

    pub(super) fn open(dir: &Path) -> Result<Self, Failure> {
        let cannot = |error: &dyn std::fmt::Display| {
            Failure::failed(format!("cannot use --dir {}: {error}", dir.display()))
        };
        let dir = std::path::absolute(dir).map_err(|error| cannot(&error))?;
        fs::create_dir_all(&dir).map_err(|error| cannot(&error))?;
        let lock = fs::File::create(dir.join("lock")).map_err(|error| cannot(&error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(cannot(
                    &"another `keydb dev` runs with it; stop that one, or give another directory",
                ));
            }
            Err(fs::TryLockError::Error(error)) => return Err(cannot(&error)),
        }
        let storage = LocalStorage::create(&dir.join(STORAGE)).map_err(|error| cannot(&error))?;
        Ok(Self {
            dir: Some(dir),
            storage: Arc::new(storage),
            _lock: Some(lock),
        })
    }

    pub(super) const fn durability(&self) -> Durability {
        match self.dir {
            Some(_) => Durability::Journal,
            None => Durability::Memory,
        }
    }

    /// What the node `id` goes by.
    pub(super) fn node_config(&self, id: NodeId) -> NodeConfig {
        let mut config = NodeConfig::new(id);
        if let Some(dir) = &self.dir {
            config.data_dir = dir.join(format!("node-{id}"));
            config.storage_url = StorageUrl::local(&dir.join(STORAGE)).ok();
        }
        config
    }

    /// Creates the cluster, or, where it is there from before, tells it where its nodes are now.
    pub(super) async fn create(&self, addresses: &[String]) -> Result<(), Failure> {
        let maps = MapStore::new(Arc::clone(&self.storage));
        let new = NewCluster {
            addresses: addresses.to_vec(),
            range_count: HASH_RANGES_DEFAULT,
            durability: self.durability(),
        };
        let made = maps
            .init(&new)
            .await
            .map_err(|error| Failure::failed(format!("cannot create the cluster: {error}")))?;
        let Init::Existing(map) = made else {
            return Ok(());
        };
        if map.nodes.len() != addresses.len() {
            return Err(Failure::usage(format!(
                "the cluster in {} has {} nodes; start it with --nodes {}, or give another --dir",
                self.dir.as_deref().unwrap_or(Path::new("")).display(),
                map.nodes.len(),
                map.nodes.len()
            )));
        }
        // No node runs yet, and nobody else writes this map.
        maps.update(|map| Ok::<_, std::convert::Infallible>(with_addresses(map, addresses)))
            .await
            .map_err(|error| {
                Failure::failed(format!(
                    "cannot write the nodes' addresses into the cluster map: {error}"
                ))
            })?;
        Ok(())
    }
}

/// The map with other addresses, if they are others.
fn with_addresses(map: &ClusterMap, addresses: &[String]) -> Option<ClusterMap> {
    let same = map.nodes.iter().map(|node| &node.address).eq(addresses);
    if same {
        return None;
    }
    let mut next = map.successor();
    for (node, address) in next.nodes.iter_mut().zip(addresses) {
        node.address.clone_from(address);
    }
    Some(next)
}
