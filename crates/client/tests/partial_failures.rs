//! Calls whose keys belong to several nodes, of which one fails.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something unexpected happens"
)]

mod support;

use std::{sync::Arc, time::Duration};

use futures_util::future::{BoxFuture, join_all};
use keydb_client::{
    Claim::{self, First},
    Client, ClientConfig, ErrorKind, GetError, KeyOutcome, NotApplied, Operation, WriteError,
};
use keydb_core::{ClusterMap, Durability, Fingerprint, NewCluster};
use keydb_proto::{
    refusal_status,
    shard::{ClaimReply, ClaimRequest, ErrorCode},
};
use support::{
    LONG,
    cluster::Cluster,
    fake::{Fake, Notes, Script, all_first},
    hour, maybe_applied,
};
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tonic::Status;

fn keys(prefix: &str) -> Vec<String> {
    (0..32).map(|number| format!("{prefix}{number}")).collect()
}

/// Single-key calls come together in batches with keys of all nodes.
fn gathering(mut config: ClientConfig) -> ClientConfig {
    config.retry_delay = Duration::from_millis(5);
    config.retry_count = Some(3);
    config.coalescing.as_mut().unwrap().wait_max = Duration::from_millis(100);
    config
}

/// Three nodes, the second of which is not there, and a client that never talked to it.
async fn with_a_dead_node() -> (Cluster, Client) {
    let mut cluster = Cluster::start(3).await;
    let config = ClientConfig::new([cluster.sockets[0].to_string()]);
    let client = Client::connect(gathering(config)).await.unwrap();
    cluster.stop(1).await;
    (cluster, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn single_claims_are_answered_by_the_nodes_that_live_and_the_others_can_be_made_again() {
    let (mut cluster, client) = with_a_dead_node().await;
    let keys = keys("claim-");
    let claims = join_all(keys.iter().map(|key| client.claim_one(key, hour()))).await;
    let mut failed = Vec::new();
    for (key, claim) in keys.iter().zip(claims) {
        match claim {
            Ok(claim) => assert_eq!(claim, First, "{key}"),
            Err(WriteError::NotApplied(NotApplied::Unavailable { .. })) => failed.push(key),
            Err(error) => panic!("{key}: {error}"),
        }
    }
    assert!((1..keys.len()).contains(&failed.len()), "{}", failed.len());
    cluster.restart(1).await;
    for key in failed {
        assert_eq!(client.claim_one(key, hour()).await.unwrap(), First, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn single_puts_and_gets_are_answered_by_the_nodes_that_live() {
    let (_cluster, client) = with_a_dead_node().await;
    let keys = keys("put-");
    let puts = join_all(keys.iter().map(|key| client.put_one(key, hour()))).await;
    let gets = join_all(keys.iter().map(|key| client.get_one(key))).await;
    let mut answered = 0;
    for (put, get) in puts.into_iter().zip(gets) {
        match (put, get) {
            (Ok(()), Ok(true)) => answered += 1,
            (
                Err(WriteError::NotApplied(NotApplied::Unavailable { .. })),
                Err(GetError::Unavailable { .. }),
            ) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!((1..keys.len()).contains(&answered), "{answered}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_of_many_keys_that_one_node_failed_is_repeated_under_its_operation() {
    let (mut cluster, client) = with_a_dead_node().await;
    let keys = keys("bulk-");
    let error = client.claim(&keys, hour()).await.unwrap_err();
    let maybe = maybe_applied(&error);
    assert_eq!(maybe.keys, keys.len());
    assert!((1..keys.len()).contains(&maybe.keys_answered), "{error}");
    cluster.restart(1).await;
    let operation = Operation::with_id(maybe.operation.unwrap());
    let claims = client.claim_as(operation, &keys, hour()).await.unwrap();
    assert!(claims.iter().all(|claim| *claim == First), "{claims:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_fails_does_not_take_the_others_answers_away() {
    let (_cluster, client) = with_a_dead_node().await;
    for coalescing in [true, false] {
        let client = match coalescing {
            true => client.clone(),
            // A deadline of its own keeps a call from travelling with others.
            false => client.with_call_timeout(LONG),
        };
        let keys = keys(&format!("{coalescing}-"));
        let error = client.claim(&keys, hour()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable);
        let maybe = maybe_applied(&error);
        let claimed: Vec<bool> = maybe
            .outcomes
            .iter()
            .map(|outcome| match outcome {
                KeyOutcome::Claimed(First) => true,
                KeyOutcome::NotApplied => false,
                other => panic!("{other:?}"),
            })
            .collect();
        let count = claimed.iter().filter(|it| **it).count();
        assert_eq!((maybe.keys, maybe.keys_answered), (keys.len(), count));
        assert!((1..keys.len()).contains(&count));

        let error = client.get(&keys).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable);
        let GetError::Partial(partial) = &error else {
            panic!("{error}");
        };
        let known: Vec<bool> = partial.answers.iter().map(Option::is_some).collect();
        assert_eq!(known, claimed);
        assert!(partial.answers.iter().flatten().all(|present| *present));
        assert!(
            error
                .to_string()
                .starts_with(&format!("of 32 keys, {} have no answer", 32 - count)),
            "{error}"
        );

        let error = client.put(&keys, hour()).await.unwrap_err();
        let maybe = maybe_applied(&error);
        let stored = maybe.outcomes.iter().map(|it| *it == KeyOutcome::Stored);
        assert_eq!(stored.collect::<Vec<_>>(), claimed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_call_of_several_parts_each_key_has_its_outcome() {
    let mut cluster = Cluster::start(3).await;
    let config = ClientConfig::new([cluster.sockets[0].to_string()]);
    let config = gathering(config).with_keys_per_request_max(10);
    let client = Client::connect(config.with_requests_in_flight_max(1))
        .await
        .unwrap();
    cluster.stop(1).await;
    let mut keys = keys("part-");
    // In another part than the first time.
    keys[31] = keys[0].clone();
    let error = client
        .with_call_timeout(LONG)
        .claim(&keys, hour())
        .await
        .unwrap_err();
    let maybe = maybe_applied(&error);
    // The first part failed, so the others were not sent.
    assert!(maybe.outcomes[..10].contains(&KeyOutcome::Claimed(First)));
    assert_eq!(maybe.outcomes[10..], [KeyOutcome::NotApplied; 22]);
}

type Answer = BoxFuture<'static, Result<ClaimReply, Status>>;

/// Nodes that answer claims as told, and the map of their cluster.
async fn nodes<const N: usize>(
    claims: [Box<dyn Fn(ClaimRequest) -> Answer + Send + Sync>; N],
) -> ([Fake; N], ClusterMap) {
    let mut listeners = Vec::new();
    for _ in 0..N {
        listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let address = |listener: &TcpListener| listener.local_addr().unwrap().to_string();
    let map = ClusterMap::create(&NewCluster {
        addresses: listeners.iter().map(address).collect(),
        range_count: 16,
        durability: Durability::Memory,
    })
    .unwrap();
    let mut nodes = Vec::new();
    for (listener, claim) in listeners.into_iter().zip(claims) {
        let mut script = Script::of(&map);
        script.claim = claim;
        nodes.push(Fake::start(listener, script).await);
    }
    (nodes.try_into().ok().unwrap(), map)
}

/// Which node owns a key.
fn owner(map: &ClusterMap, key: &str) -> usize {
    let fingerprint = Fingerprint::of(key.as_bytes(), map.hash.seed).unwrap();
    map.ranges[map.range_index_of(fingerprint.top())].owner.0 as usize
}

/// A claim of each key, started; and which of two nodes owns it.
fn claim_each(
    client: &Client,
    map: &ClusterMap,
    keys: Vec<String>,
) -> [Vec<JoinHandle<Result<Claim, WriteError>>>; 2] {
    let mut by_node = [Vec::new(), Vec::new()];
    for key in keys {
        let owner = owner(map, &key);
        let client = client.clone();
        let claim = tokio::spawn(async move { client.claim_one(key, hour()).await });
        by_node[owner].push(claim);
    }
    assert!(by_node.iter().all(|claims| claims.len() > 1));
    by_node
}

async fn end(claim: JoinHandle<Result<Claim, WriteError>>) -> Result<Claim, WriteError> {
    timeout(LONG, claim).await.expect("a call ends").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_one_node_reach_their_callers_while_another_is_silent() {
    let sent = Notes::new();
    let noted = sent.clone();
    let (nodes, map) = nodes([
        Box::new(|request| Box::pin(async move { Ok(all_first(&request.ranges)) })),
        Box::new(move |_| {
            noted.add(());
            Box::pin(std::future::pending())
        }),
    ])
    .await;
    let mut config = gathering(nodes[0].config());
    config.call_timeout = Duration::from_secs(3600);
    let client = Client::connect(config).await.unwrap();
    let [answered, silent] = claim_each(&client, &map, keys("silent-"));
    for claim in answered {
        assert_eq!(end(claim).await.unwrap(), First);
    }
    // A batch whose keys all went to the first node may have gone before.
    while sent.all().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    client.close(Duration::ZERO).await;
    let mut maybe_applied = 0;
    for claim in silent {
        match end(claim).await.unwrap_err() {
            WriteError::MaybeApplied(maybe) => {
                assert_eq!((maybe.keys, maybe.keys_answered), (1, 0));
                assert!(maybe.operation.is_some());
                maybe_applied += 1;
            }
            error => panic!("{error}"),
        }
    }
    assert!(maybe_applied > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_do_not_queue_behind_batches_that_a_silent_node_has() {
    let (nodes, map) = nodes([
        Box::new(|request| Box::pin(async move { Ok(all_first(&request.ranges)) })),
        Box::new(move |_| Box::pin(std::future::pending())),
    ])
    .await;
    let mut config = gathering(nodes[0].config());
    config.call_timeout = Duration::from_secs(3600);
    config.coalescing.as_mut().unwrap().keys_max = 1;
    let client = Client::connect(config).await.unwrap();
    let [_, _silent] = claim_each(&client, &map, keys("before-"));
    let [answered, _silent] = claim_each(&client, &map, keys("behind-"));
    for claim in answered {
        assert_eq!(end(claim).await.unwrap(), First);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_for_other_nodes_go_on_however_many_wait_for_a_silent_one() {
    let first = || -> Box<dyn Fn(ClaimRequest) -> Answer + Send + Sync> {
        Box::new(|request| Box::pin(async move { Ok(all_first(&request.ranges)) }))
    };
    let silent = Box::new(|_| -> Answer { Box::pin(std::future::pending()) });
    let (nodes, map) = nodes([first(), first(), silent]).await;
    let mut config = nodes[0].config();
    config.call_timeout = Duration::from_secs(3600);
    let client = Client::connect(config).await.unwrap();
    let mut of_node = [const { Vec::new() }; 3];
    for key in (0..).map(|number| format!("{number}")) {
        let owned = &mut of_node[owner(&map, &key)];
        owned.push(key);
        if of_node.iter().all(|keys| keys.len() >= 400) {
            break;
        }
    }
    let [here, there, nowhere] = of_node;
    let mut waiting = JoinSet::new();
    // More rounds than any number of batches that may be on their way.
    for round in (0..400).step_by(2) {
        let call = |keys: Vec<&String>| {
            let keys: Vec<String> = keys.into_iter().cloned().collect();
            let client = client.clone();
            async move { client.claim(keys, hour()).await }
        };
        waiting.spawn(call(vec![&nowhere[round]]));
        waiting.spawn(call(vec![&nowhere[round + 1], &here[round]]));
        let others = async {
            tokio::join!(
                call(vec![&here[round + 1]]),
                call(vec![&here[round], &there[round]])
            )
        };
        let (one, two) = timeout(LONG, others)
            .await
            .unwrap_or_else(|_| panic!("in round {round}, other nodes' calls wait as well"));
        assert_eq!(one.unwrap(), [First]);
        assert_eq!(two.unwrap(), [First; 2]);
    }
    assert!(waiting.try_join_next().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_refuses_for_good_takes_no_answers_of_another_away() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let refused = || refusal_status(ErrorCode::OverMemoryLimit, "the node is full");
    let (nodes, map) = nodes([
        Box::new(move |request| {
            let opened = Arc::clone(&opened);
            Box::pin(async move {
                let _open = opened.acquire().await.unwrap();
                Ok(all_first(&request.ranges))
            })
        }),
        Box::new(move |_| Box::pin(async move { Err(refused()) })),
    ])
    .await;
    let client = Client::connect(gathering(nodes[0].config())).await.unwrap();
    let [slow, refused] = claim_each(&client, &map, keys("refused-"));
    for claim in refused {
        let error = end(claim).await.unwrap_err();
        let WriteError::NotApplied(NotApplied::Refused { message, .. }) = &error else {
            panic!("{error}");
        };
        assert!(message.contains("the node is full"), "{error}");
    }
    gate.add_permits(1);
    for claim in slow {
        assert_eq!(end(claim).await.unwrap(), First);
    }
}
