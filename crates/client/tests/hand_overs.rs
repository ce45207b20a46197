//! How the client follows ranges that are handed over, told by two nodes that follow scripts.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something unexpected happens"
)]

mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use keydb_client::{
    AdminClient, Claim::First, Client, ClientConfig, ClusterMap, ErrorKind, GetError, NodeId,
    Observer, Operation, RangeId,
};
use keydb_core::{CopyId, Durability, Entry, Expiry, Fingerprint, HandedFrom, NewCluster};
use keydb_proto::shard::{
    GetReply, OpenRangeReply, PutReply, RangeKeys, RangeRefusal, RefusalCode,
};
use support::{
    fake::{Fake, NOW_MS, Notes, Script, all, all_first, header, map_reply},
    hour, keys, maybe_applied,
};
use tokio::net::TcpListener;
use tonic::Status;

/// The owner before, and its generation.
const A: (u32, u64) = (0, 1);
/// The owner by the map, and its generation.
const B: (u32, u64) = (1, 2);

/// A request for keys.
#[derive(Debug, Clone)]
struct Asked {
    node: u32,
    ranges: Vec<RangeKeys>,
    fingerprints: Vec<u8>,
}

impl Asked {
    /// Who was asked, under which generation, if it was only one.
    fn holder(&self) -> (u32, u64) {
        let generation = self.ranges[0].generation;
        assert!(self.ranges.iter().all(|it| it.generation == generation));
        (self.node, generation)
    }
}

/// What a node makes of a request, by how many requests both nodes had before: a status, or which ranges it refuses.
type Answers = Box<dyn Fn(usize, &RangeKeys) -> Result<Option<RangeRefusal>, Status> + Send + Sync>;

struct Cluster {
    fakes: Vec<Fake>,
    asked: Notes<Asked>,
    map: ClusterMap,
}

impl Cluster {
    /// Node 1 owns all ranges by the map, from node 0.
    async fn start(a: Answers, b: Answers) -> Self {
        let (listeners, map) = handed().await;
        Self::start_as(listeners, map, a, b).await
    }

    async fn start_as(
        listeners: Vec<TcpListener>,
        map: ClusterMap,
        a: Answers,
        b: Answers,
    ) -> Self {
        let asked = Notes::new();
        let mut fakes = Vec::new();
        for ((node, listener), answers) in (0..).zip(listeners).zip([a, b]) {
            let script = script(&map, node, &asked, answers);
            fakes.push(Fake::start(listener, script).await);
        }
        Self { fakes, asked, map }
    }

    /// Settings without a single retry.
    fn config(&self) -> ClientConfig {
        let addresses = self.fakes.iter().map(|fake| fake.address.to_string());
        ClientConfig::new(addresses).with_retry_count(Some(0))
    }

    async fn client(&self) -> Client {
        Client::connect(self.config()).await.unwrap()
    }

    /// Who was asked, in order.
    fn holders(&self) -> Vec<(u32, u64)> {
        self.asked.all().iter().map(Asked::holder).collect()
    }

    fn range_of(&self, key: &str) -> u32 {
        let fingerprint = Fingerprint::of(key.as_bytes(), self.map.hash.seed).unwrap();
        self.map.ranges[self.map.range_index_of(fingerprint.top())]
            .id
            .0
    }
}

async fn handed() -> (Vec<TcpListener>, ClusterMap) {
    let mut listeners = Vec::new();
    for _ in 0..2 {
        listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let addresses = listeners
        .iter()
        .map(|it| it.local_addr().unwrap().to_string());
    let mut map = ClusterMap::create(&NewCluster {
        addresses: addresses.collect(),
        range_count: 8,
        durability: Durability::Memory,
    })
    .unwrap();
    let unknown = map.unknown.clone();
    for range in &mut map.ranges {
        (range.owner, range.generation) = (NodeId(B.0), B.1);
        range.from = Some(HandedFrom {
            node: NodeId(A.0),
            generation: A.1,
            copy: CopyId::random(),
            unknown: unknown.clone(),
        });
    }
    (listeners, map)
}

fn script(map: &ClusterMap, node: u32, asked: &Notes<Asked>, answers: Answers) -> Script {
    let (asked, epoch) = (asked.clone(), map.epoch);
    let refused = Arc::new(move |ranges: &[RangeKeys], fingerprints: &[u8]| {
        let number = asked.add(Asked {
            node,
            ranges: ranges.to_vec(),
            fingerprints: fingerprints.to_vec(),
        });
        let of_each = ranges.iter().map(|range| answers(number, range));
        let refused: Result<Vec<Option<RangeRefusal>>, Status> = of_each.collect();
        refused.map(|refused| refused.into_iter().flatten().collect::<Vec<_>>())
    });
    let mut script = Script::of(map);
    let get = Arc::clone(&refused);
    script.get = Box::new(move |request| {
        let refused = get(&request.ranges, &request.fingerprints);
        let reply = refused.map(|refused| GetReply {
            header: header(epoch, NOW_MS),
            present: all(&request.ranges),
            refused,
        });
        Box::pin(async { reply })
    });
    let put = Arc::clone(&refused);
    script.put = Box::new(move |request| {
        let refused = put(&request.ranges, &request.fingerprints);
        let reply = refused.map(|refused| PutReply {
            header: header(epoch, NOW_MS),
            refused,
        });
        Box::pin(async { reply })
    });
    script.claim = Box::new(move |request| {
        let refused = refused(&request.ranges, &request.fingerprints);
        let reply = refused.map(|refused| keydb_proto::shard::ClaimReply {
            refused,
            ..all_first(&request.ranges)
        });
        Box::pin(async { reply })
    });
    script
}

fn answers() -> Answers {
    Box::new(|_, _| Ok(None))
}

/// Refuses all ranges and names this holder.
fn names(holder: (u32, u64)) -> Answers {
    Box::new(move |_, range| Ok(Some(naming(range, holder))))
}

fn naming(range: &RangeKeys, (node, generation): (u32, u64)) -> RangeRefusal {
    RangeRefusal {
        owner_node: Some(node),
        generation,
        ..refusal(range, RefusalCode::NotOwner)
    }
}

fn refusal(range: &RangeKeys, code: RefusalCode) -> RangeRefusal {
    RangeRefusal {
        range_id: range.range_id,
        code: code.into(),
        message: format!("range {} as the test wants", range.range_id),
        ..RangeRefusal::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_before_is_asked_first_and_as_long_as_it_answers() {
    let cluster = Cluster::start(answers(), names(A)).await;
    let client = cluster.client().await;
    for _ in 0..3 {
        assert_eq!(client.get(["a"]).await.unwrap(), [true]);
    }
    assert_eq!(cluster.holders(), [A, A, A]);
    assert!(client.counters().hand_overs.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_that_names_the_next_owner_is_followed_without_a_retry_and_remembered() {
    let cluster = Cluster::start(names(B), answers()).await;
    let client = cluster.client().await;
    for _ in 0..3 {
        assert_eq!(client.get(["a"]).await.unwrap(), [true]);
    }
    assert_eq!(cluster.holders(), [A, B, B, B]);
    let waits = client.counters().total();
    assert_eq!(
        (waits.switches, waits.waits, waits.held_refusals),
        (1, 1, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_that_the_map_does_not_know_of_is_followed_at_once() {
    let (listeners, mut map) = handed().await;
    for range in &mut map.ranges {
        (range.owner, range.generation, range.from) = (NodeId(A.0), A.1, None);
    }
    let cluster = Cluster::start_as(listeners, map, names(B), answers()).await;
    let client = cluster.client().await;
    assert_eq!(client.get(["a"]).await.unwrap(), [true]);
    assert_eq!(cluster.holders(), [A, B]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_map_with_the_same_entry_changes_nothing_and_one_that_says_more_does() {
    let (listeners, map) = handed().await;
    let newer = map.successor();
    let mut maps = [map.clone(), newer.clone(), newer.successor()];
    for range in &mut maps[2].ranges {
        (range.owner, range.generation, range.from) = (NodeId(A.0), B.1 + 1, None);
    }
    let epoch = Arc::new(AtomicUsize::new(0));
    let asked = Notes::new();
    let mut fakes = Vec::new();
    for ((node, listener), refuses) in (0..).zip(listeners).zip([true, false]) {
        let epochs = Arc::clone(&epoch);
        let answers: Answers = Box::new(move |_, range| {
            let is_old = epochs.load(SeqCst) < 2;
            Ok((refuses && is_old).then(|| naming(range, B)))
        });
        let mut script = script(&map, node, &asked, answers);
        let maps = maps.clone();
        let epochs = Arc::clone(&epoch);
        script.get_map = Box::new(move |_| {
            let reply = map_reply(&maps[epochs.load(SeqCst)], NOW_MS);
            Box::pin(async { Ok(reply) })
        });
        let get = script.get;
        let epochs = Arc::clone(&epoch);
        script.get = Box::new(move |request| {
            let reply = get(request);
            let header = header(1 + epochs.load(SeqCst) as u64, NOW_MS);
            Box::pin(async move { reply.await.map(|it| GetReply { header, ..it }) })
        });
        fakes.push(Fake::start(listener, script).await);
    }
    let cluster = Cluster { fakes, asked, map };
    let client = cluster.client().await;
    for index in 0..3 {
        epoch.store(index, SeqCst);
        let expected = cluster.map.epoch + index as u64;
        for _ in 0..2 {
            assert_eq!(client.get(["a"]).await.unwrap(), [true]);
            wait_until(|| client.cluster_map().epoch == expected).await;
        }
    }
    assert_eq!(cluster.holders(), [A, B, B, B, B, B, (A.0, B.1 + 1)]);
}

async fn wait_until(done: impl Fn() -> bool) {
    let until = Instant::now() + support::LONG;
    while !done() {
        assert!(Instant::now() < until, "it never came");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_that_is_given_up_leads_back() {
    let first: Answers = Box::new(|number, range| Ok((number == 0).then(|| naming(range, B))));
    let cluster = Cluster::start(first, names(A)).await;
    let client = cluster.client().await;
    for _ in 0..2 {
        client.put(["a"], hour()).await.unwrap();
    }
    assert_eq!(cluster.holders(), [A, B, A, A]);
    assert_eq!(client.counters().total().switches, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_is_held_is_asked_for_again_until_it_is_answered() {
    #[derive(Debug, Default)]
    struct Retries(AtomicUsize);
    impl Observer for Retries {
        fn retry(&self, _: ErrorKind, _: usize) {
            self.0.fetch_add(1, SeqCst);
        }
    }
    let holds: Answers =
        Box::new(|number, range| Ok((number < 6).then(|| refusal(range, RefusalCode::Held))));
    let cluster = Cluster::start(names(B), holds).await;
    let retries = Arc::new(Retries::default());
    let config = cluster.config().with_observer(retries.clone());
    let client = Client::connect(config).await.unwrap();
    let claims = client.claim_as(Operation::new(), ["a"], hour()).await;
    assert_eq!(claims.unwrap(), [First]);
    assert_eq!(cluster.holders(), [A, B, B, B, B, B, B]);
    // Nothing of it was applied before, so each is the first.
    assert!(
        cluster
            .asked
            .all()
            .iter()
            .all(|it| it.ranges[0].attempt == 0)
    );
    let counters = client.counters();
    let range = RangeId(cluster.range_of("a"));
    let waits = counters.hand_overs[&range];
    assert_eq!(waits, counters.total());
    assert_eq!(
        (waits.held_refusals, waits.switches, waits.waits),
        (5, 1, 1)
    );
    // 1, 2, 4, 8 and 16 ms, each shortened by at most half.
    assert!(waits.wait_longest >= Duration::from_millis(15), "{waits:?}");
    assert_eq!(waits.wait_longest, waits.wait_total);
    assert_eq!(retries.0.load(SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_name_each_other_are_asked_in_turns_until_the_time_is_up() {
    let cluster = Cluster::start(names(B), names(A)).await;
    let config = cluster
        .config()
        .with_call_timeout(Duration::from_millis(300));
    let client = Client::connect(config).await.unwrap();
    let error = client.get(["a"]).await.unwrap_err();
    let GetError::DeadlineExceeded {
        kind, waiting_for, ..
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!(*kind, ErrorKind::NotReady);
    let told = format!("range {} as the test wants", cluster.range_of("a"));
    assert!(waiting_for.contains("is being handed over"), "{error}");
    assert!(waiting_for.contains(&told), "{error}");
    let asked = cluster.holders();
    assert!((10..150).contains(&asked.len()), "{}", asked.len());
    assert!(asked.windows(2).any(|pair| pair == [A, B]));
    assert_eq!(client.counters().total().waits, 1);

    // A request may be on its way then.
    let error = client.put(["a"], hour()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotReady);
}

#[tokio::test(flavor = "multi_thread")]
async fn small_calls_wait_in_the_queue_of_the_node_that_is_asked() {
    #[derive(Debug)]
    struct Batches(Notes<usize>);
    impl Observer for Batches {
        fn batch(&self, _: usize, keys: usize) {
            self.0.add(keys);
        }
    }
    let probe = ClusterKeys::new().await;
    let (moved, stays) = (probe.key_of(0), probe.key_of(1));
    let of_moved: Answers =
        Box::new(|_, range| Ok((range.range_id == 0).then(|| naming(range, B))));
    let ClusterKeys { listeners, map } = probe;
    let cluster = Cluster::start_as(listeners, map, of_moved, answers()).await;
    let batches = Notes::new();
    let observer = Arc::new(Batches(batches.clone()));
    let client = Client::connect(cluster.config().with_observer(observer))
        .await
        .unwrap();
    let both = [moved, stays];
    client.claim(&both, hour()).await.unwrap();
    client.claim(&both, hour()).await.unwrap();
    // At first both are for one node, then each for its own.
    assert_eq!(batches.all(), [2, 1, 1]);
    let mut holders = cluster.holders();
    holders[2..].sort_unstable();
    assert_eq!(holders, [A, B, A, B]);
}

#[tokio::test(flavor = "multi_thread")]
async fn small_calls_do_not_queue_behind_a_range_that_is_held() {
    let probe = ClusterKeys::new().await;
    let (held, other) = (probe.key_of(0), probe.key_of(1));
    let holds: Answers =
        Box::new(|_, range| Ok((range.range_id == 0).then(|| refusal(range, RefusalCode::Held))));
    let ClusterKeys { listeners, map } = probe;
    let cluster = Cluster::start_as(listeners, map, names(B), holds).await;
    // Their batches would make room for others after half a second, or when they end.
    let config = cluster
        .config()
        .with_call_timeout(Duration::from_millis(450));
    let client = Client::connect(config).await.unwrap();
    client.get_one(&other).await.unwrap();
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let (client, held) = (client.clone(), held.clone());
        waiting.push(tokio::spawn(async move { client.get_one(held).await }));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    client.get_one(&other).await.unwrap();
    assert!(waiting.iter().all(|call| !call.is_finished()));
    for call in waiting {
        assert_eq!(call.await.unwrap().unwrap_err().kind(), ErrorKind::NotReady);
    }
}

/// A map, and keys of its ranges.
struct ClusterKeys {
    listeners: Vec<TcpListener>,
    map: ClusterMap,
}

impl ClusterKeys {
    async fn new() -> Self {
        let (listeners, map) = handed().await;
        Self { listeners, map }
    }

    fn key_of(&self, range: u32) -> String {
        let is_in = |key: &String| {
            let fingerprint = Fingerprint::of(key.as_bytes(), self.map.hash.seed).unwrap();
            self.map.ranges[self.map.range_index_of(fingerprint.top())]
                .id
                .0
                == range
        };
        keys(0..1000).into_iter().find(is_in).unwrap()
    }
}

/// The fingerprints of each range in each request.
fn groups(asked: &[Asked]) -> BTreeMap<u32, Vec<Vec<u8>>> {
    let mut groups: BTreeMap<u32, Vec<Vec<u8>>> = BTreeMap::new();
    for request in asked {
        let mut rest = &request.fingerprints[..];
        for range in &request.ranges {
            let (of_range, others) = rest.split_at(range.key_count as usize * 12);
            groups
                .entry(range.range_id)
                .or_default()
                .push(of_range.to_vec());
            rest = others;
        }
    }
    groups
}

/// 200 keys, some of them more than once.
fn repeated_keys() -> Vec<String> {
    (0..200).map(|number| format!("{}", number % 70)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_is_repeated_after_a_switch_has_the_same_keys_of_each_range_in_order() {
    // The first reply is lost; then odd ranges have moved, and are held for a while.
    let a: Answers = Box::new(|number, range| match number {
        0 => Err(Status::unavailable("connection reset")),
        _ => Ok((range.range_id % 2 == 1).then(|| naming(range, B))),
    });
    let b: Answers = Box::new(|number, range| {
        Ok(match (range.range_id % 2, number) {
            (0, _) => Some(naming(range, A)),
            (_, 0..4) => Some(refusal(range, RefusalCode::Held)),
            _ => None,
        })
    });
    let cluster = Cluster::start(a, b).await;
    let config = cluster.config().with_retry_count(Some(1));
    let config = config.with_call_timeout(Duration::from_secs(2));
    let client = Client::connect(config).await.unwrap();
    let (operation, keys) = (Operation::new(), repeated_keys());
    client.claim_as(operation, &keys, hour()).await.unwrap();
    let asked = cluster.asked.all();
    assert!(asked.len() >= 4, "{}", asked.len());
    for (range, groups) in groups(&asked) {
        assert!(groups.len() >= 2, "range {range}");
        assert!(
            groups.windows(2).all(|pair| pair[0] == pair[1]),
            "range {range}"
        );
    }
    let attempts = |asked: &[Asked]| -> Vec<u32> {
        asked
            .iter()
            .flat_map(|it| &it.ranges)
            .map(|it| it.attempt)
            .collect()
    };
    assert_eq!(attempts(&asked[..1]), [0; 8]);
    assert!(attempts(&asked[1..]).iter().all(|attempt| *attempt == 1));
    // A repeat by the caller, half of which goes elsewhere than at first.
    client
        .claim_as(operation.again(), &keys, hour())
        .await
        .unwrap();
    let again = &cluster.asked.all()[asked.len()..];
    assert_eq!(again.len(), 2);
    let first = groups(&asked);
    for (range, groups) in groups(again) {
        assert_eq!(groups, [first[&range][0].clone()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_small_claim_was_told_is_asked_of_the_node_that_its_range_moved_to() {
    let a: Answers = Box::new(|number, range| match number {
        0 => Err(Status::unavailable("connection reset")),
        _ => Ok(Some(naming(range, B))),
    });
    let cluster = Cluster::start(a, answers()).await;
    let config = cluster
        .config()
        .with_call_timeout(Duration::from_millis(300));
    let client = Client::connect(config).await.unwrap();
    let keys = &repeated_keys()[40..100];
    let error = client.claim(keys, hour()).await.unwrap_err();
    let operation = Operation::with_id(maybe_applied(&error).operation.unwrap());
    // It waits until the lost sending is valid no longer.
    let client = client.with_call_timeout(support::LONG);
    client.claim_as(operation, keys, hour()).await.unwrap();
    let asked = cluster.asked.all();
    assert_eq!(asked.last().unwrap().holder(), B);
    for (range, groups) in groups(&asked) {
        assert!(groups.len() >= 2, "range {range}");
        assert!(
            groups.windows(2).all(|pair| pair[0] == pair[1]),
            "range {range}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_owner_before_is_gone_the_next_one_is_asked() {
    let mut cluster = Cluster::start(answers(), answers()).await;
    let client = Client::connect(cluster.config().with_retry_count(Some(1)))
        .await
        .unwrap();
    cluster.fakes.remove(0);
    assert_eq!(client.get(["a"]).await.unwrap(), [true]);
    assert_eq!(cluster.holders(), [B]);
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_and_an_operators_word_reach_the_node_that_answers() {
    let probe = ClusterKeys::new().await;
    let ClusterKeys { listeners, map } = probe;
    let (asked, opened) = (Notes::new(), Notes::new());
    let mut fakes = Vec::new();
    let scripts: [Answers; 2] = [
        names(B),
        Box::new(|number, range| Ok((number < 3).then(|| refusal(range, RefusalCode::Held)))),
    ];
    for ((node, listener), answers) in (0..).zip(listeners).zip(scripts) {
        let mut script = script(&map, node, &asked, answers);
        let opened = opened.clone();
        script.open_range = Box::new(move |_| {
            opened.add(node);
            let reply = OpenRangeReply {
                keys: 5,
                ..OpenRangeReply::default()
            };
            Box::pin(async { Ok(reply) })
        });
        fakes.push(Fake::start(listener, script).await);
    }
    let cluster = Cluster { fakes, asked, map };
    let admin = AdminClient::connect(cluster.config()).await.unwrap();
    let range = admin.open_range(RangeId(3)).await.unwrap();
    assert_eq!((range.node, range.keys), (NodeId(B.0), 5));
    assert_eq!(opened.all(), [B.0]);

    let expiry = Expiry::from_unix_seconds(2_500_000_000).unwrap();
    let fingerprint = Fingerprint::of(b"key", cluster.map.hash.seed).unwrap();
    admin
        .put_entries(&[Entry::new(fingerprint, expiry)])
        .await
        .unwrap();
    assert_eq!(cluster.holders().last(), Some(&B));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_new_in_the_map_is_connected_to_before_it_is_needed() {
    let (listeners, two) = handed().await;
    let mut one = two.clone();
    one.nodes.truncate(1);
    for range in &mut one.ranges {
        (range.owner, range.generation, range.from) = (NodeId(A.0), A.1, None);
    }
    let two = two.successor();
    let asked = Arc::new(AtomicUsize::new(0));
    let mut fakes = Vec::new();
    for (node, listener) in (0..).zip(listeners) {
        let mut script = script(&one, node, &Notes::new(), answers());
        let (asked, one, two) = (Arc::clone(&asked), one.clone(), two.clone());
        script.get_map = Box::new(move |request| {
            asked.fetch_add(node as usize, SeqCst);
            let map = if request.epoch == 0 { &one } else { &two };
            let reply = map_reply(map, NOW_MS);
            Box::pin(async { Ok(reply) })
        });
        script.get = Box::new(move |request| {
            let reply = GetReply {
                header: header(2, NOW_MS),
                present: all(&request.ranges),
                refused: Vec::new(),
            };
            Box::pin(async { Ok(reply) })
        });
        fakes.push(Fake::start(listener, script).await);
    }
    let client = fakes[0].client().await;
    client.get(["a"]).await.unwrap();
    wait_until(|| asked.load(SeqCst) > 0).await;
    assert_eq!(client.cluster_map().epoch, 2);
}
