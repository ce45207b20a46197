//! Small calls at a node that has no room for new keys: keys that are there are answered for, whoever they travel with.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something unexpected happens"
)]

mod support;

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use keydb_client::{Claim::Duplicate, Client, ErrorKind, NotApplied, WriteError};
use keydb_core::Fingerprint;
use keydb_proto::{
    refusal_status,
    shard::{ClaimReply, ErrorCode, GetReply, PutReply},
};
use support::{
    LONG,
    fake::{Fake, NOW_MS, Notes, Script, header, one_node},
    hour,
};
use tokio::{sync::Semaphore, time::timeout};

type Keys = &'static [&'static str];

/// A node with these keys, which takes no others. It answers its first request when the test lets it.
struct FullNode {
    _fake: Fake,
    client: Client,
    gate: Arc<Semaphore>,
    /// Of each request that writes: how many keys it had, and a claim's operation.
    writes: Notes<(usize, Bytes)>,
    gets: Notes<usize>,
}

impl FullNode {
    async fn start(code: ErrorCode, keys: Keys) -> Self {
        let (listener, map) = one_node(16).await;
        let seed = map.hash.seed;
        let known: HashSet<[u8; 12]> = keys
            .iter()
            .map(|key| Fingerprint::of(key.as_bytes(), seed).unwrap().to_bytes())
            .collect();
        let gate = Arc::new(Semaphore::new(0));
        let (writes, gets) = (Notes::new(), Notes::new());
        let mut script = Script::of(&map);
        let (of_get, noted) = (known.clone(), gets.clone());
        script.get = Box::new(move |request| {
            let (keys, _) = request.fingerprints.as_chunks::<12>();
            noted.add(keys.len());
            let mut present = vec![0; keys.len().div_ceil(8)];
            for (at, _) in keys.iter().enumerate().filter(|it| of_get.contains(it.1)) {
                present[at / 8] |= 1 << (at % 8);
            }
            let reply = GetReply {
                header: header(1, NOW_MS),
                present: present.into(),
                refused: Vec::new(),
            };
            Box::pin(async { Ok(reply) })
        });
        let write = {
            let (gate, noted) = (Arc::clone(&gate), writes.clone());
            move |fingerprints: &Bytes, operation: Bytes| {
                let (keys, _) = fingerprints.as_chunks::<12>();
                let is_first = noted.add((keys.len(), operation)) == 0;
                let result = match keys.iter().all(|key| known.contains(key)) {
                    true => Ok(keys.len().div_ceil(8)),
                    false => Err(refusal_status(code, "no room")),
                };
                let gate = Arc::clone(&gate);
                async move {
                    if is_first {
                        gate.acquire().await.unwrap().forget();
                    }
                    result
                }
            }
        };
        let put = write.clone();
        script.put = Box::new(move |request| {
            let put = put(&request.fingerprints, Bytes::new());
            Box::pin(async move {
                put.await.map(|_| PutReply {
                    header: header(1, NOW_MS),
                    refused: Vec::new(),
                })
            })
        });
        script.claim = Box::new(move |request| {
            let claim = write(&request.fingerprints, request.operation_id);
            Box::pin(async move {
                claim.await.map(|bytes| ClaimReply {
                    header: header(1, NOW_MS),
                    first: vec![0; bytes].into(),
                    ..ClaimReply::default()
                })
            })
        });
        let fake = Fake::start(listener, script).await;
        let mut config = fake.config().with_retry_count(Some(1));
        config.coalescing.as_mut().unwrap().wait_max = Duration::from_secs(5);
        Self {
            client: Client::connect(config).await.unwrap(),
            _fake: fake,
            gate,
            writes,
            gets,
        }
    }

    /// What calls with these keys are told, of which the first goes alone and the others travel together.
    async fn told<T: Send + 'static, F: Future<Output = Result<T, WriteError>> + Send + 'static>(
        &self,
        keys: &[Keys],
        call: impl Fn(Client, Keys) -> F,
    ) -> Vec<Result<T, WriteError>> {
        let mut calls = Vec::new();
        for keys in keys {
            calls.push(tokio::spawn(call(self.client.clone(), keys)));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.gate.add_permits(1);
        let mut told = Vec::new();
        for call in calls {
            told.push(timeout(LONG, call).await.unwrap().unwrap());
        }
        told
    }

    /// How many keys each request that writes had.
    fn sizes(&self) -> Vec<usize> {
        self.writes.all().iter().map(|it| it.0).collect()
    }
}

#[track_caller]
fn has_no_room<T: std::fmt::Debug>(told: &Result<T, WriteError>, expected: ErrorKind) {
    match told {
        Err(WriteError::NotApplied(
            NotApplied::Refused { kind, .. } | NotApplied::Unavailable { kind, .. },
        )) => assert_eq!(*kind, expected),
        other => panic!("{other:?}"),
    }
}

const CALLS: &[Keys] = &[
    &["a"],
    &["a", "b"],
    &["new"],
    &["b"],
    &["a", "newer"],
    &["c"],
];

#[tokio::test(flavor = "multi_thread")]
async fn claims_of_keys_that_are_there_are_answered_beside_new_ones_over_the_memory_limit() {
    let node = FullNode::start(ErrorCode::OverMemoryLimit, &["a", "b", "c"]).await;
    let claim = async |client: Client, keys: Keys| client.claim(keys, hour()).await;
    let told = node.told(CALLS, claim).await;
    for index in [0, 1, 3, 5] {
        let claims = told[index].as_ref().unwrap();
        assert_eq!(*claims, vec![Duplicate; CALLS[index].len()]);
    }
    for index in [2, 4] {
        has_no_room(&told[index], ErrorKind::MemoryLimit);
    }
    // Whatever there is of them: which ones are there, and these once more, under an operation of their own.
    assert_eq!(node.sizes(), [1, 7, 4]);
    assert_eq!(node.gets.all(), [7]);
    let operations: HashSet<Bytes> = node.writes.all().into_iter().map(|it| it.1).collect();
    assert_eq!(operations.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_of_keys_that_are_there_are_answered_beside_new_ones_when_the_disk_is_full() {
    let node = FullNode::start(ErrorCode::DiskFull, &["a", "b", "c"]).await;
    let claim = async |client: Client, keys: Keys| client.claim(keys, hour()).await;
    let told = node.told(CALLS, claim).await;
    for index in [0, 1, 3, 5] {
        let claims = told[index].as_ref().unwrap();
        assert_eq!(*claims, vec![Duplicate; CALLS[index].len()]);
    }
    for index in [2, 4] {
        has_no_room(&told[index], ErrorKind::DiskFull);
    }
    // The new ones are sent again as ever: there may be room by then.
    let mut sizes = node.sizes();
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 3, 3, 4, 7]);
    let operations: HashSet<Bytes> = node.writes.all().into_iter().map(|it| it.1).collect();
    assert_eq!(operations.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn puts_of_keys_that_are_there_are_done_beside_new_ones_over_the_memory_limit() {
    let node = FullNode::start(ErrorCode::OverMemoryLimit, &["a", "b", "c"]).await;
    let put = async |client: Client, keys: Keys| client.put(keys, hour()).await;
    let told = node.told(CALLS, put).await;
    for index in [0, 1, 3, 5] {
        told[index].as_ref().unwrap();
    }
    for index in [2, 4] {
        has_no_room(&told[index], ErrorKind::MemoryLimit);
    }
    assert_eq!(node.sizes(), [1, 7, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_new_keys_only_is_not_looked_into_further_than_once() {
    let node = FullNode::start(ErrorCode::OverMemoryLimit, &["a"]).await;
    let claim = async |client: Client, keys: Keys| client.claim(keys, hour()).await;
    let told = node.told(&[&["a"], &["x"], &["y"], &["z"]], claim).await;
    assert_eq!(*told[0].as_ref().unwrap(), [Duplicate]);
    for told in &told[1..] {
        has_no_room(told, ErrorKind::MemoryLimit);
    }
    assert_eq!(node.sizes(), [1, 3]);
    assert_eq!(node.gets.all(), [3]);
}
