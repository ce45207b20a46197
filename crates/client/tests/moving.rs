//! Ranges that change owners under a client, at real nodes.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something unexpected happens"
)]

mod support;

use std::time::Duration;

use keydb_client::{Claim::First, Client, ClusterMap, NodeId};
use support::{cluster::Cluster, hour};

/// The map with all ranges of node `from` given to node `to`.
fn moved(map: &ClusterMap, from: NodeId, to: NodeId) -> ClusterMap {
    let mut next = map.successor();
    for range in &mut next.ranges {
        if range.owner == from {
            range.owner = to;
            range.generation += 1;
        }
    }
    next
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_follow_ranges_that_move_without_an_error() {
    let cluster = Cluster::start(3).await;
    let mut config = cluster.config();
    config.retry_count = Some(20);
    config.retry_delay = Duration::from_millis(20);
    let client = Client::connect(config).await.unwrap();
    let load: Vec<_> = (0..4)
        .map(|task| {
            let client = client.clone();
            tokio::spawn(async move {
                for batch in 0..60 {
                    let keys = (0..100).map(|key| format!("{task}/{batch}/{key}"));
                    let claims = client.claim(keys, hour()).await.unwrap();
                    assert_eq!(claims, [First; 100]);
                    let key = format!("{task}/{batch}/single");
                    assert_eq!(client.claim_one(key, hour()).await.unwrap(), First);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            })
        })
        .collect();
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        let store = cluster.map_store();
        let moved = |map: &ClusterMap| Ok::<_, ()>(Some(moved(map, NodeId(from), NodeId(to))));
        store.update(moved).await.unwrap();
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    for task in load {
        task.await.unwrap();
    }
    let map = client.cluster_map();
    let stored = cluster.map_store().load().await.unwrap().unwrap();
    assert_eq!(map.epoch, stored.epoch);
    assert!(map.ranges.iter().all(|range| range.owner == NodeId(0)));
}
