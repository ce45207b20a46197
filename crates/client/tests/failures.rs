//! What callers see when nodes and networks fail.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something unexpected happens"
)]

mod support;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use keydb_client::{
    Claim::{Duplicate, First, Unknown},
    Client, ClientConfig, ErrorKind, GetError, KeyOutcome, NotApplied, Observer, Operation,
    WriteError,
};
use support::{
    LONG,
    cluster::Cluster,
    hour, keys, maybe_applied,
    proxy::{Mode, Proxy},
};
use tokio::{net::TcpListener, time::timeout};

/// One node that is reached through a proxy.
async fn behind_proxy() -> (Cluster, Proxy) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap()).await;
    let cluster = Cluster::start_as(vec![listener], vec![proxy.address.clone()]).await;
    (cluster, proxy)
}

fn through(proxy: &Proxy) -> ClientConfig {
    let mut config = ClientConfig::new([proxy.address.clone()]);
    config.retry_delay = Duration::from_millis(10);
    config
}

/// Waits until the client has the newest map, so that no reply but those of the test's own calls can get lost.
async fn settled(client: &Client, cluster: &Cluster) {
    let stored = cluster.map_store().load().await.unwrap().unwrap();
    while client.cluster_map().epoch < stored.epoch {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_does_not_turn_a_first_into_a_duplicate() {
    let (cluster, proxy) = behind_proxy().await;
    let client = Client::connect(through(&proxy)).await.unwrap();
    client.put(keys(0..100), hour()).await.unwrap();
    settled(&client, &cluster).await;
    proxy.set(Mode::LoseNextReply);
    let claims = client.claim(keys(0..1000), hour()).await.unwrap();
    assert_eq!(proxy.lost(), 1);
    assert_eq!(claims[..100], [Duplicate; 100]);
    assert!(claims[100..].iter().all(|claim| *claim == First));

    proxy.set(Mode::LoseNextReply);
    let single = client.claim_one("single", hour()).await.unwrap();
    assert_eq!((proxy.lost(), single), (2, First));
    proxy.set(Mode::LoseNextReply);
    let present = client.get(["single", "none"]).await.unwrap();
    assert_eq!((proxy.lost(), present), (3, vec![true, false]));
    let claims = client.claim(keys(0..1000), hour()).await.unwrap();
    assert!(claims.iter().all(|claim| *claim == Duplicate));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_replies_all_get_lost_may_be_applied_and_can_be_repeated() {
    let (cluster, proxy) = behind_proxy().await;
    let mut config = through(&proxy);
    config.retry_count = Some(1);
    let client = Client::connect(config).await.unwrap();
    client.get(["warm"]).await.unwrap();
    settled(&client, &cluster).await;
    proxy.set(Mode::LoseReplies);
    let error = client.claim(keys(0..100), hour()).await.unwrap_err();
    let maybe = maybe_applied(&error);
    assert_eq!((maybe.keys, maybe.keys_answered), (100, 0));
    proxy.set(Mode::Pass);
    let operation = Operation::with_id(maybe.operation.unwrap());
    let claims = client.claim_as(operation, keys(0..100), hour()).await;
    assert_eq!(claims.unwrap(), [First; 100]);

    proxy.set(Mode::LoseReplies);
    let error = client.put(keys(0..100), hour()).await.unwrap_err();
    let maybe = maybe_applied(&error);
    assert_eq!(maybe.operation, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_be_reached_has_applied_nothing() {
    let mut cluster = Cluster::start(1).await;
    let mut config = cluster.config();
    config.retry_delay = Duration::from_millis(10);
    config.retry_count = Some(3);
    // Not connected to the node yet: on a connection that breaks, nobody could know.
    let client = Client::connect(config).await.unwrap();
    cluster.stop(0).await;
    let error = client.claim(keys(0..10), hour()).await.unwrap_err();
    let WriteError::NotApplied(NotApplied::Unavailable {
        attempts,
        last_error,
        ..
    }) = &error
    else {
        panic!("{error}");
    };
    assert_eq!(*attempts, 4);
    assert!(last_error.contains("node 0"), "{error}");
    let error = client.get(["a"]).await.unwrap_err();
    assert!(matches!(error, GetError::Unavailable { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_wait_for_a_node_that_comes_back_within_their_time() {
    let mut cluster = Cluster::start(1).await;
    let client = Client::connect(cluster.config()).await.unwrap();
    cluster.stop(0).await;
    let calls = tokio::spawn(async move {
        let claims = client.claim(keys(0..10), hour()).await;
        let single = client.claim_one("single", hour()).await;
        let present = client.get(["key-0"]).await;
        client.put(["put"], hour()).await.unwrap();
        (claims, single, present)
    });
    // Longer than a few retries take.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!calls.is_finished());
    cluster.restart(0).await;
    let (claims, single, present) = calls.await.unwrap();
    assert_eq!(claims.unwrap(), [First; 10]);
    assert_eq!(single.unwrap(), First);
    assert_eq!(present.unwrap(), [true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_one_node_of_three_is_gone_a_write_to_all_may_be_applied_in_part() {
    let mut cluster = Cluster::start(3).await;
    let mut config = cluster.config();
    config.retry_delay = Duration::from_millis(10);
    config.retry_count = Some(3);
    let client = Client::connect(config).await.unwrap();
    cluster.stop(1).await;
    let error = client.put(keys(0..300), hour()).await.unwrap_err();
    let maybe = maybe_applied(&error);
    assert!(
        maybe.keys_answered > 100 && maybe.keys_answered < 300,
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_go_on_when_a_stopped_node_is_back_on_its_port() {
    let mut cluster = Cluster::start(3).await;
    let mut config = cluster.config();
    config.retry_count = Some(20);
    let client = Client::connect(config).await.unwrap();
    let load: Vec<_> = (0..8)
        .map(|task| {
            let client = client.clone();
            tokio::spawn(async move {
                for batch in 0..100 {
                    let start = (task * 100 + batch) * 100;
                    let claims = timeout(LONG, client.claim(keys(start..start + 100), hour()))
                        .await
                        .expect("a call ends within its deadline")
                        .expect("the node came back in time");
                    // The node forgot its keys, so nothing here can have been there.
                    assert!(claims.iter().all(|claim| *claim != Duplicate));
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    cluster.stop(1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    cluster.restart(1).await;
    for task in load {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_to_a_hanging_node_end_by_their_deadline() {
    let (_cluster, proxy) = behind_proxy().await;
    let mut config = through(&proxy);
    config.call_timeout = Duration::from_millis(300);
    let client = Client::connect(config).await.unwrap();
    client.get(["warm"]).await.unwrap();
    proxy.set(Mode::Hang);
    let error = timeout(LONG, client.get(["a"])).await.unwrap().unwrap_err();
    assert!(
        matches!(error, GetError::DeadlineExceeded { .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("no answer from node 0"),
        "{error}"
    );
    let error = timeout(LONG, client.claim(["a"], hour()))
        .await
        .unwrap()
        .unwrap_err();
    assert!(matches!(error, WriteError::MaybeApplied(_)), "{error}");
    let error = timeout(LONG, client.claim_one("a", hour()))
        .await
        .unwrap()
        .unwrap_err();
    let maybe = maybe_applied(&error);
    assert!(maybe.operation.is_some());
    assert_eq!(*maybe.outcomes, [KeyOutcome::MaybeApplied]);
    assert_eq!(maybe.kind, ErrorKind::Deadline);
}

#[tokio::test(flavor = "multi_thread")]
async fn small_claims_that_travelled_together_are_repeated_each_by_itself() {
    let (cluster, proxy) = behind_proxy().await;
    let mut config = through(&proxy);
    config.retry_count = Some(0);
    config.coalescing.as_mut().unwrap().wait_max = Duration::from_millis(50);
    let client = Client::connect(config).await.unwrap();
    client.put(["there"], hour()).await.unwrap();
    settled(&client, &cluster).await;
    proxy.set(Mode::LoseReplies);
    let calls = (0..20).map(|call| {
        let client = client.clone();
        let mut keys = keys(call * 3..call * 3 + 3);
        keys.push("there".to_owned());
        tokio::spawn(async move { (client.claim(&keys, hour()).await, keys) })
    });
    let calls: Vec<_> = calls.collect();
    let mut failed = Vec::new();
    for call in calls {
        let (claims, keys) = call.await.unwrap();
        match claims {
            Err(WriteError::MaybeApplied(maybe)) => failed.push((maybe.operation.unwrap(), keys)),
            other => panic!("{other:?}"),
        }
    }
    let error = client.claim_one("one", hour()).await.unwrap_err();
    let one = maybe_applied(&error);
    proxy.set(Mode::Pass);
    // In any order, and as often as one likes.
    for _ in 0..2 {
        for (operation, keys) in failed.iter().rev() {
            let again = Operation::with_id(*operation);
            let claims = client.claim_as(again, keys, hour()).await.unwrap();
            assert_eq!(claims, [First, First, First, Duplicate]);
        }
    }
    let again = Operation::with_id(one.operation.unwrap());
    let claims = client.claim_as(again, ["one"], hour()).await.unwrap();
    assert_eq!(claims, [First]);

    // Another client knows nothing of the batch, and must not call a key a duplicate that nobody was told to be first with.
    let elsewhere = cluster.client().await;
    let again = Operation::with_id(failed[0].0);
    let claims = elsewhere.claim_as(again, &failed[0].1, hour()).await;
    assert_eq!(claims.unwrap(), [Unknown; 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_claim_that_never_arrived_is_first_when_it_is_repeated() {
    let (mut cluster, proxy) = behind_proxy().await;
    let mut config = through(&proxy);
    config.retry_count = Some(0);
    let client = Client::connect(config).await.unwrap();
    client.put(["there"], hour()).await.unwrap();
    settled(&client, &cluster).await;
    proxy.set(Mode::LoseReplies);
    let error = client.claim(["a", "there"], hour()).await.unwrap_err();
    let maybe = maybe_applied(&error);
    // The node forgets it, and all keys: without durability nothing is known of them.
    cluster.stop(0).await;
    cluster.restart(0).await;
    proxy.set(Mode::Pass);
    let patient = cluster.client().await;
    patient.put(["there"], hour()).await.unwrap();
    let again = Operation::with_id(maybe.operation.unwrap());
    let claims = client.claim_as(again, ["a", "there"], hour()).await;
    assert_eq!(claims.unwrap(), [First, Unknown]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_equal_keys_in_claims_that_travelled_together_only_the_first_caller_is_told_first() {
    let (cluster, proxy) = behind_proxy().await;
    let mut config = through(&proxy);
    // Until the node has registered itself, who tries only once is refused.
    let patient = Client::connect(config.clone()).await.unwrap();
    patient.get(["warm"]).await.unwrap();
    config.retry_count = Some(0);
    let observer = Arc::new(Batches::default());
    let client = Client::connect(config.with_observer(observer.clone()))
        .await
        .unwrap();
    let mut attempt = 0;
    let (a, b, c, operations) = loop {
        attempt += 1;
        assert!(attempt < 100, "they never travel together");
        let [a, b, c] = ["a", "b", "c"].map(|key| format!("{key}{attempt}"));
        proxy.set(Mode::Pass);
        client.with_call_timeout(LONG).get(["warm"]).await.unwrap();
        settled(&client, &cluster).await;
        proxy.set(Mode::LoseReplies);
        observer.0.lock().unwrap().clear();
        let calls = tokio::join!(
            client.claim([&a, &b], hour()),
            client.claim([&b, &c], hour())
        );
        let operations = [calls.0, calls.1].map(|call| match call {
            Err(WriteError::MaybeApplied(maybe)) => Operation::with_id(maybe.operation.unwrap()),
            other => panic!("the reply was lost: {other:?}"),
        });
        if observer.0.lock().unwrap()[..] == [(2, 4)] {
            break (a, b, c, operations);
        }
    };
    proxy.set(Mode::Pass);
    // Whether the other caller will ever repeat its claim, and hear that it is first with "b", nobody knows.
    let claims = client.claim_as(operations[1], [&b, &c], hour()).await;
    assert_eq!(claims.unwrap(), [Unknown, First]);
    let claims = client.claim_as(operations[0], [&a, &b], hour()).await;
    assert_eq!(claims.unwrap(), [First, First]);
}

/// How many calls and keys each batch had.
#[derive(Debug, Default)]
struct Batches(Mutex<Vec<(usize, usize)>>);

impl Observer for Batches {
    fn batch(&self, calls: usize, keys: usize) {
        self.0.lock().unwrap().push((calls, keys));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_outlives_a_connection_that_died_without_a_word() {
    let (_cluster, proxy) = behind_proxy().await;
    let client = Client::connect(through(&proxy)).await.unwrap();
    client.get(["warm"]).await.unwrap();
    proxy.set(Mode::Hang);
    let call = {
        let client = client.clone();
        tokio::spawn(async move { client.claim(["a"], hour()).await })
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    // This connection stays dead; only a new one gets through.
    proxy.set(Mode::Pass);
    assert_eq!(call.await.unwrap().unwrap(), [First]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_waits_for_room_at_a_node_has_not_been_sent() {
    let (_cluster, proxy) = behind_proxy().await;
    let mut config = through(&proxy);
    config.requests_in_flight_max = 1;
    let client = Client::connect(config).await.unwrap();
    client.get(["warm"]).await.unwrap();
    proxy.set(Mode::Hang);
    let [first, second] = [client.clone(), client.clone()];
    let first = tokio::spawn(async move { first.put(["a"], hour()).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let second = tokio::spawn(async move { second.put(["b"], hour()).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    client.close(Duration::ZERO).await;
    let error = first.await.unwrap().unwrap_err();
    assert!(matches!(error, WriteError::MaybeApplied(_)), "{error}");
    let error = second.await.unwrap().unwrap_err();
    assert!(
        matches!(error, WriteError::NotApplied(NotApplied::Closed)),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_ends_calls_in_progress_and_later_ones() {
    let (_cluster, proxy) = behind_proxy().await;
    let client = Client::connect(through(&proxy)).await.unwrap();
    client.get(["warm"]).await.unwrap();
    proxy.set(Mode::Hang);
    let calls = [client.clone(), client.clone(), client.clone()];
    let [get, claim, single] = calls;
    let get = tokio::spawn(async move { get.get(["a"]).await });
    let claim = tokio::spawn(async move { claim.claim(["a"], hour()).await });
    let single = tokio::spawn(async move { single.get_one("a").await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let other = client.clone();
    timeout(LONG, client.close(Duration::ZERO)).await.unwrap();
    assert!(matches!(get.await.unwrap(), Err(GetError::Closed)));
    let error = claim.await.unwrap().unwrap_err();
    assert!(matches!(error, WriteError::MaybeApplied(_)), "{error}");
    assert!(matches!(single.await.unwrap(), Err(GetError::Closed)));

    assert!(matches!(other.get(["a"]).await, Err(GetError::Closed)));
    assert!(matches!(other.get_one("a").await, Err(GetError::Closed)));
    for error in [
        other.put(["a"], hour()).await.unwrap_err(),
        other.put_one("a", hour()).await.unwrap_err(),
        other.claim(["a"], hour()).await.unwrap_err(),
    ] {
        assert!(
            matches!(error, WriteError::NotApplied(NotApplied::Closed)),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_task_outlives_its_client_or_a_dropped_call() {
    // The node and the proxy have a runtime of their own, so that every task here is the client's.
    let (up, cluster_up) = tokio::sync::oneshot::channel();
    let (down, cluster_down) = tokio::sync::oneshot::channel::<()>();
    let servers = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let (_cluster, proxy) = behind_proxy().await;
            up.send(proxy).ok().unwrap();
            let _ = cluster_down.await;
        });
    });
    let proxy = cluster_up.await.unwrap();
    let metrics = tokio::runtime::Handle::current().metrics();
    let before = metrics.num_alive_tasks();
    for close in [true, false] {
        let mut config = through(&proxy);
        config.keys_per_request_max = 50;
        let client = Client::connect(config).await.unwrap();
        client.put(keys(0..1000), hour()).await.unwrap();
        client.claim_one("a", hour()).await.unwrap();
        proxy.set(Mode::Hang);
        // Dropped in the middle: of many parts, and of a coalesced batch.
        let wait = Duration::from_millis(50);
        assert!(
            timeout(wait, client.claim(keys(0..1000), hour()))
                .await
                .is_err()
        );
        assert!(timeout(wait, client.claim_one("b", hour())).await.is_err());
        proxy.set(Mode::Pass);
        match close {
            true => client.close(Duration::ZERO).await,
            false => drop(client),
        }
    }
    // A dropped connection's task needs a moment to notice.
    let settled = async {
        while metrics.num_alive_tasks() > before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let settled = timeout(LONG, settled).await;
    assert!(settled.is_ok(), "{} > {before}", metrics.num_alive_tasks());
    down.send(()).unwrap();
    servers.join().unwrap();
}
