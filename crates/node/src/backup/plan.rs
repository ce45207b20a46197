//! What belongs into a backup, as object storage says it at one moment.

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use keydb_core::{ClusterId, ClusterMap, Manifest, NodeId};
use keydb_storage::{MAP_KEY, SnapshotStore, manifest_key};

use super::obstacle::Obstacle;

/// So many manifests are read at the same time.
const READS_AT_ONCE: usize = 16;

/// A cluster map, and the manifests of its members.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) map: ClusterMap,
    /// In the order of the nodes.
    pub(super) manifests: Vec<Manifest>,
    /// The objects that these are, by their keys, byte for byte; the map comes first.
    pub(super) documents: Vec<(String, Bytes)>,
}

/// The map that is stored, and its bytes.
pub(super) async fn stored_map(
    source: &SnapshotStore,
    cluster: ClusterId,
) -> Result<(ClusterMap, Bytes), Obstacle> {
    let object = source.storage().get(MAP_KEY).await?;
    let bytes = object
        .ok_or_else(|| {
            Obstacle::not_possible(
                "object storage has no cluster map: keydb recover --map puts it back",
            )
        })?
        .bytes;
    match ClusterMap::from_json(&bytes) {
        Ok(map) if map.cluster_id == cluster => Ok((map, bytes)),
        Ok(map) => Err(Obstacle::not_possible(format!(
            "the cluster map in object storage is of cluster {}, not of {cluster}",
            map.cluster_id
        ))),
        Err(error) => Err(Obstacle::not_possible(error.to_string())),
    }
}

/// Whether a backup can be made of a cluster with this map.
pub(super) fn check(map: &ClusterMap) -> Result<(), Obstacle> {
    if !map.durability.has_disk() {
        return Err(Obstacle::not_possible(
            "durability is memory: nothing is kept that a backup could be made of",
        ));
    }
    if let Some(target) = &map.target {
        return Err(Obstacle::conflict(format!(
            "scaling operation {} is under way, so hash ranges are on their way from node to node; make the backup when it has ended, or abort it",
            target.operation_id
        )));
    }
    let moving = map.ranges.iter();
    let mut moving = moving.filter(|range| range.successor.is_some() || range.from.is_some());
    match moving.next() {
        None => Ok(()),
        Some(range) => Err(Obstacle::conflict(format!(
            "hash range {} is being handed over to node {}; make the backup when that is done",
            range.id,
            range.successor.unwrap_or(range.owner)
        ))),
    }
}

impl Plan {
    /// What is there now.
    pub(super) async fn read(source: &SnapshotStore, cluster: ClusterId) -> Result<Self, Obstacle> {
        let (map, map_bytes) = stored_map(source, cluster).await?;
        check(&map)?;
        let mut ids: Vec<NodeId> = map.nodes.iter().map(|node| node.id).collect();
        ids.sort_unstable();
        let reads: Vec<_> = ids
            .into_iter()
            .map(|id| manifest(source, cluster, id))
            .collect();
        let mut reads = stream::iter(reads).buffered(READS_AT_ONCE);
        let mut documents = vec![(MAP_KEY.to_owned(), map_bytes)];
        let mut manifests = Vec::new();
        while let Some(read) = reads.next().await {
            if let Some((manifest, bytes)) = read? {
                documents.push((manifest_key(manifest.node), bytes));
                manifests.push(manifest);
            }
        }
        let plan = Self {
            map,
            manifests,
            documents,
        };
        plan.check_ranges()?;
        Ok(plan)
    }

    /// Each range has to be in its owner's manifest.
    fn check_ranges(&self) -> Result<(), Obstacle> {
        for (index, range) in self.map.ranges.iter().enumerate() {
            let owner = range.owner;
            let found = self.manifests.binary_search_by_key(&owner, |it| it.node);
            let named = found.ok().and_then(|at| self.manifests[at].range(range.id));
            let bounds = named.and_then(|named| named.bounds());
            if bounds != Some(self.map.bounds(index)) {
                return Err(Obstacle::not_possible(format!(
                    "the manifest of node {} does not name hash range {} yet: have snapshots made, and try again",
                    range.owner, range.id
                )));
            }
        }
        Ok(())
    }
}

/// The manifest of `node` and its bytes; `None` where it has none.
async fn manifest(
    source: &SnapshotStore,
    cluster: ClusterId,
    node: NodeId,
) -> Result<Option<(Manifest, Bytes)>, Obstacle> {
    let key = manifest_key(node);
    let Some(object) = source.storage().get(&key).await? else {
        return Ok(None);
    };
    match Manifest::from_json(&object.bytes) {
        Ok(manifest) if manifest.cluster_id == cluster && manifest.node == node => {
            Ok(Some((manifest, object.bytes)))
        }
        Ok(other) => Err(Obstacle::not_possible(format!(
            "object {key:?} belongs to node {} of cluster {}",
            other.node, other.cluster_id
        ))),
        Err(error) => Err(Obstacle::not_possible(format!("object {key:?}: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use keydb_core::{
        CopyId, Durability, HandedFrom, NewCluster, OperationId, Phase, Target, UnixMillis,
    };

    use super::*;

    #[test]
    fn while_ranges_move_there_is_no_backup() {
        let map = ClusterMap::create(&NewCluster {
            addresses: ["a:1", "b:1"].map(str::to_owned).to_vec(),
            range_count: 4,
            durability: Durability::Journal,
        })
        .unwrap();
        assert!(check(&map).is_ok());
        let operation_id = OperationId::random();
        let mut scaling = map.clone();
        scaling.target = Some(Target {
            operation_id,
            addresses: vec!["a:1".to_owned()],
            phase: Phase::Copy,
            started_ms: UnixMillis(1),
            moves: None,
            unknown: Default::default(),
        });
        let refused = check(&scaling).unwrap_err().to_string();
        assert!(refused.contains(&operation_id.to_string()), "{refused}");
        let mut handed = map.clone();
        handed.ranges[1].from = Some(HandedFrom {
            node: NodeId(1),
            generation: 1,
            copy: CopyId::random(),
            unknown: Default::default(),
        });
        let refused = check(&handed).unwrap_err().to_string();
        assert!(refused.contains("hash range 1 "), "{refused}");
        let mut memory = map;
        memory.durability = Durability::Memory;
        let refused = check(&memory).unwrap_err().to_string();
        assert!(refused.contains("durability is memory"), "{refused}");
    }
}
