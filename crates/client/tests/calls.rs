//! What calls answer, through three real nodes.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something unexpected happens"
)]

mod support;

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use keydb_client::{
    Claim::{self, Duplicate, First, Unknown},
    Client, ClientConfig, ConnectError, GetError, KEY_BYTES_MAX, NotApplied, Operation, WriteError,
};
use support::{cluster::Cluster, hour, keys};

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_in_the_order_of_the_keys() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let even: Vec<String> = (0..5000).step_by(2).map(|n| format!("key-{n}")).collect();
    client.put(&even, hour()).await.unwrap();
    let present = client.get(keys(0..5000)).await.unwrap();
    assert!((0..5000).all(|number| present[number] == number.is_multiple_of(2)));
    let claims = client.claim(keys(0..5000), hour()).await.unwrap();
    let expected = [Duplicate, First].into_iter().cycle().take(5000);
    assert!(claims.into_iter().eq(expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_equal_keys_in_one_claim_the_first_is_first() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let claims = client.claim(["a", "b", "a", "a", "c", "b"], hour()).await;
    assert_eq!(
        claims.unwrap(),
        [First, First, Duplicate, Duplicate, First, Duplicate]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_equal_keys_in_different_parts_of_a_claim_the_first_is_first() {
    let cluster = Cluster::start(3).await;
    let mut config = cluster.config();
    config.keys_per_request_max = 10;
    let client = Client::connect(config).await.unwrap();
    client.claim(["key-3"], hour()).await.unwrap();
    for round in 0..20 {
        // Key i at many places, all over the parts.
        let batch: Vec<String> = (0..500)
            .map(|at| format!("{round}/key-{}", at * 7 % 90))
            .collect();
        let claims = client.claim(&batch, hour()).await.unwrap();
        let mut seen = HashSet::new();
        for (key, claim) in batch.iter().zip(claims) {
            let expected = if seen.insert(key) { First } else { Duplicate };
            assert_eq!(claim, expected, "{key}");
        }
    }
    // A part of nothing but repeats, and a first that was there before.
    let batch: Vec<&str> = ["key-3"; 30].into();
    assert_eq!(client.claim(batch, hour()).await.unwrap(), [Duplicate; 30]);
    assert_eq!(client.get(["x"; 25]).await.unwrap(), [false; 25]);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_many_tasks_claim_at_once_are_first_exactly_once() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let tasks: Vec<_> = (0..16)
        .map(|task| {
            let client = client.clone();
            tokio::spawn(async move {
                let mut firsts = Vec::new();
                for batch in 0..20 {
                    let batch = (batch + task) % 20;
                    let batch = keys(batch * 200..(batch + 1) * 200);
                    let claims = client.claim(&batch, hour()).await.unwrap();
                    let first = |(key, claim)| (claim == First).then_some(key);
                    firsts.extend(batch.into_iter().zip(claims).filter_map(first));
                }
                firsts
            })
        })
        .collect();
    let mut firsts: HashMap<String, u32> = HashMap::new();
    for task in tasks {
        for key in task.await.unwrap() {
            *firsts.entry(key).or_default() += 1;
        }
    }
    assert_eq!(firsts.len(), 4000);
    assert!(firsts.values().all(|count| *count == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_operation_gets_the_same_answers() {
    let cluster = Cluster::start(3).await;
    let mut config = cluster.config();
    config.keys_per_request_max = 64;
    let client = Client::connect(config).await.unwrap();
    client.put(keys(0..50), hour()).await.unwrap();
    let batch: Vec<String> = keys(0..200).into_iter().chain(keys(100..300)).collect();
    let operation = Operation::new();
    let claims = client.claim_as(operation, &batch, hour()).await.unwrap();
    assert_eq!(claims.iter().filter(|claim| **claim == First).count(), 250);
    let again = client.claim_as(operation.again(), &batch, hour()).await;
    assert_eq!(again.unwrap(), claims);
    let other = client.claim(&batch, hour()).await.unwrap();
    assert!(other.iter().all(|claim| *claim == Duplicate));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_repeated_with_other_keys_says_unknown_of_what_is_present() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let operation = Operation::new();
    client
        .claim_as(operation, keys(0..100), hour())
        .await
        .unwrap();
    client.put(keys(100..200), hour()).await.unwrap();
    let claims = client
        .claim_as(operation.again(), keys(100..300), hour())
        .await
        .unwrap();
    assert!(claims[..100].iter().all(|claim| *claim == Unknown));
    assert!(claims[100..].iter().all(|claim| *claim == First));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_that_nobody_remembers_says_unknown_of_what_is_present() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    client.put(["there"], hour()).await.unwrap();
    let claims = client
        .claim_as(Operation::new().again(), ["there", "not there"], hour())
        .await
        .unwrap();
    assert_eq!(claims, [Unknown, First]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_key_is_named_and_nothing_is_sent() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let long = vec![b'x'; KEY_BYTES_MAX + 1];
    let error = client.get([&b"a"[..], &long]).await.unwrap_err();
    assert!(matches!(error, GetError::InvalidKey { index: 1, .. }));
    assert!(error.to_string().contains("65537 bytes"), "{error}");
    for error in [
        client.put(["a", "b", ""], hour()).await.unwrap_err(),
        client.claim(["a", "b", ""], hour()).await.unwrap_err(),
    ] {
        let WriteError::NotApplied(NotApplied::InvalidKey { index, .. }) = error else {
            panic!("{error}");
        };
        assert_eq!(index, 2);
    }
    let single = client.claim_one("", hour()).await.unwrap_err();
    assert!(matches!(
        single,
        WriteError::NotApplied(NotApplied::InvalidKey { .. })
    ));
    assert_eq!(client.get(["a", "b"]).await.unwrap(), [false, false]);
    assert_eq!(client.get([&long[1..]]).await.unwrap(), [false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_keys_have_no_answers() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let none: [&str; 0] = [];
    assert!(client.get(none).await.unwrap().is_empty());
    client.put(none, hour()).await.unwrap();
    assert!(client.claim(none, hour()).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_over_borrowed_and_mapped_keys_can_be_spawned() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let claims: Vec<Claim> = tokio::spawn(async move {
        let events = [("a", 1), ("b", 2)];
        let keys = events.iter().map(|(name, _)| name.as_bytes());
        client.claim(keys, hour()).await.unwrap()
    })
    .await
    .unwrap();
    assert_eq!(claims, [First, First]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_member_tells_its_status() {
    let mut cluster = Cluster::start(3).await;
    let mut config = cluster.config();
    config.call_timeout = Duration::from_secs(5);
    let client = Client::connect(config).await.unwrap();
    client.put(keys(0..1000), hour()).await.unwrap();
    let statuses = client.node_statuses().await;
    let statuses: Vec<_> = statuses
        .iter()
        .map(|(_, status)| status.as_ref().unwrap())
        .collect();
    assert_eq!(statuses.iter().map(|status| status.keys).sum::<u64>(), 1000);
    assert_eq!(
        statuses
            .iter()
            .map(|status| status.ranges.len())
            .sum::<usize>(),
        128
    );
    cluster.stop(1).await;
    let statuses = client.node_statuses().await;
    let answered: Vec<bool> = statuses.iter().map(|(_, status)| status.is_ok()).collect();
    assert_eq!(answered, [true, false, true]);
    assert_eq!(statuses[1].0.address, cluster.sockets[1].to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_that_answers_is_enough_to_connect() {
    let cluster = Cluster::start(3).await;
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = free.local_addr().unwrap().to_string();
    drop(free);
    let addresses = [dead, cluster.sockets[2].to_string()];
    let client = Client::connect(ClientConfig::new(addresses)).await.unwrap();
    assert_eq!(client.cluster_map().nodes.len(), 3);
    client.put(keys(0..100), hour()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_cannot_be_are_refused_by_name() {
    let cluster = Cluster::start(1).await;
    let refused = async |change: fn(&mut ClientConfig)| {
        let mut config = cluster.config();
        change(&mut config);
        Client::connect(config).await.unwrap_err().to_string()
    };
    let text = refused(|config| config.addresses.clear()).await;
    assert!(text.contains("no addresses"), "{text}");
    for address in ["localhost", ":5", "localhost:0", "localhost:99999", "a b:1"] {
        let text = Client::connect(ClientConfig::new([address])).await;
        let text = text.unwrap_err().to_string();
        assert!(
            text.contains(&format!("{address:?} is not host:port")),
            "{text}"
        );
    }
    let text = refused(|config| config.total_hash_ranges = Some(64)).await;
    assert!(text.contains("64") && text.contains("128"), "{text}");
    let text = refused(|config| config.keys_per_request_max = 0).await;
    assert!(text.contains("keys_per_request_max is 0"), "{text}");
    let text = refused(|config| config.requests_in_flight_max = 0).await;
    assert!(text.contains("requests_in_flight_max is 0"), "{text}");
    let text = refused(|config| config.call_timeout = Duration::ZERO).await;
    assert!(text.contains("call_timeout is 0"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_node_connecting_ends_with_what_each_address_said() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = free.local_addr().unwrap().to_string();
    drop(free);
    let mut config = ClientConfig::new([dead.clone()]);
    config.call_timeout = Duration::from_millis(300);
    let error = Client::connect(config).await.unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }));
    assert!(error.to_string().contains(&dead), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
}
