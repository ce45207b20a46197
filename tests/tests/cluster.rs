//! A whole cluster, seen from its clients: three nodes on real sockets, the map in object storage.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../../crates/client/tests/support/cluster.rs"]
#[expect(
    unreachable_pub,
    dead_code,
    reason = "the client's tests and examples use other parts of it"
)]
mod cluster;

use std::{
    collections::HashMap,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use cluster::Cluster;
use keydb_client::{Claim, Ttl};

fn hour() -> Ttl {
    Ttl::from_seconds(3600).unwrap()
}

/// Numbers that look random and are the same in every run (SplitMix64: Steele et al., OOPSLA 2014).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn keys(&mut self, kinds: u64) -> Vec<String> {
        let count = [1, 3, 40, 1000, 20_000][self.below(5) as usize];
        (0..count)
            .map(|_| format!("key-{}", self.below(kinds)))
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_answers_as_a_plain_set_does() {
    let cluster = Cluster::start(3).await;
    let mut config = cluster.config();
    // So that large calls are cut into parts, whose repeated keys must still be seen in order.
    config.keys_per_request_max = 1500;
    let client = keydb_client::Client::connect(config).await.unwrap();
    let mut present = HashMap::new();
    let mut numbers = Numbers(7);
    for _ in 0..120 {
        let keys = numbers.keys(30_000);
        match numbers.below(3) {
            0 => {
                let expected: Vec<bool> =
                    keys.iter().map(|key| present.contains_key(key)).collect();
                assert_eq!(client.get(&keys).await.unwrap(), expected);
            }
            1 => {
                client.put(&keys, hour()).await.unwrap();
                present.extend(keys.into_iter().map(|key| (key, ())));
            }
            _ => {
                let expected: Vec<Claim> = keys
                    .iter()
                    .map(|key| match present.insert(key.clone(), ()) {
                        None => Claim::First,
                        Some(()) => Claim::Duplicate,
                    })
                    .collect();
                assert_eq!(client.claim(&keys, hour()).await.unwrap(), expected);
            }
        }
    }
    client.close(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_claim_the_same_keys_at_once_share_them_out() {
    const CLIENTS: usize = 6;
    const KEYS: usize = 30_000;
    let cluster = Cluster::start(3).await;
    let firsts: &'static [AtomicUsize] =
        Vec::leak((0..KEYS).map(|_| AtomicUsize::new(0)).collect());
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        let connected = cluster.client().await;
        clients.push(tokio::spawn(async move {
            // Each in batches of its own size; one of them key by key.
            let batch = [1, 100, 700, 1000, 3000, 9000][client];
            for start in (0..KEYS).step_by(batch) {
                let numbers = start..(start + batch).min(KEYS);
                let claims = match batch {
                    1 => vec![
                        connected
                            .claim_one(start.to_string(), hour())
                            .await
                            .unwrap(),
                    ],
                    _ => {
                        let keys = numbers.clone().map(|number| number.to_string());
                        connected.claim(keys, hour()).await.unwrap()
                    }
                };
                for (number, claim) in numbers.zip(claims) {
                    assert_ne!(claim, Claim::Unknown, "no reply was lost");
                    if claim == Claim::First {
                        firsts[number].fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
    assert!(
        firsts
            .iter()
            .all(|firsts| firsts.load(Ordering::Relaxed) == 1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_empty_is_a_stated_loss() {
    let mut cluster = Cluster::start(3).await;
    let mut config = cluster.config();
    config.retry_count = Some(50);
    let client = keydb_client::Client::connect(config).await.unwrap();
    let keys: Vec<String> = (0..3000).map(|number| number.to_string()).collect();
    client.put(&keys, hour()).await.unwrap();
    cluster.stop(1).await;
    cluster.restart(1).await;
    let lost = client
        .get(&keys)
        .await
        .unwrap()
        .iter()
        .filter(|present| !**present)
        .count();
    assert!((500..1500).contains(&lost), "{lost} keys were the node's");
    let map = cluster.map_store().load().await.unwrap().unwrap();
    let losses: Vec<u32> = map.nodes.iter().map(|node| node.loss_count).collect();
    assert_eq!(losses, [0, 1, 0]);
    assert!(map.nodes[1].last_loss_ms.is_some());
}
