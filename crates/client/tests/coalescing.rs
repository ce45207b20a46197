//! Single-key calls of many tasks, which travel together.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something unexpected happens"
)]

mod support;

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::FutureExt;
use keydb_client::{
    CallKind,
    Claim::{self, Duplicate, First, Unknown},
    Client, ErrorKind, NotApplied, Observer, Ttl, WriteError,
};
use keydb_proto::shard::ClaimReply;
use support::{
    LONG,
    cluster::Cluster,
    fake::{Fake, NOW_MS, Notes, Script, header, one_node},
    hour,
};
use tokio::{
    runtime::{self, Runtime},
    sync::Semaphore,
    task::JoinHandle,
    time::timeout,
};

#[tokio::test(flavor = "multi_thread")]
async fn of_many_tasks_that_claim_equal_keys_exactly_one_is_first() {
    let cluster = Cluster::start(3).await;
    for coalescing in [true, false] {
        let mut config = cluster.config();
        if !coalescing {
            config.coalescing = None;
        }
        let client = Client::connect(config).await.unwrap();
        let tasks: Vec<_> = (0..64)
            .map(|task| {
                let client = client.clone();
                tokio::spawn(async move {
                    let mut firsts = Vec::new();
                    for number in 0..100 {
                        let key = format!("{coalescing}/{}", (number + task) % 100);
                        let claim = client.claim_one(&key, hour()).await.unwrap();
                        note_first(&mut firsts, key, claim);
                    }
                    firsts
                })
            })
            .collect();
        assert_eq!(firsts_of(tasks).await.len(), 100);
    }
}

/// Notes a key that was claimed as the first.
fn note_first(firsts: &mut Vec<String>, key: String, claim: Claim) {
    match claim {
        First => firsts.push(key),
        Duplicate => {}
        Unknown => panic!("{key}: nothing went wrong here"),
    }
}

/// The keys that these tasks were first with, sorted. No two were with the same.
async fn firsts_of(tasks: Vec<JoinHandle<Vec<String>>>) -> Vec<String> {
    let mut firsts = Vec::new();
    for task in tasks {
        firsts.extend(task.await.unwrap());
    }
    let told = firsts.len();
    firsts.sort();
    firsts.dedup();
    assert_eq!(told, firsts.len());
    firsts
}

#[tokio::test(flavor = "multi_thread")]
async fn each_caller_gets_the_answer_to_its_own_key() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    // More TTLs than have queues.
    let puts: Vec<_> = (0..1000)
        .map(|number| {
            let client = client.clone();
            let ttl = Ttl::from_seconds(1000 + number % 100).unwrap();
            tokio::spawn(async move { client.put_one(format!("{number}"), ttl).await })
        })
        .collect();
    for put in puts {
        put.await.unwrap().unwrap();
    }
    let gets: Vec<_> = (0..2000)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move { client.get_one(format!("{number}")).await })
        })
        .collect();
    for (number, get) in gets.into_iter().enumerate() {
        assert_eq!(get.await.unwrap().unwrap(), number < 1000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_tasks_with_small_batches_of_equal_keys_exactly_one_is_first_with_each() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let tasks: Vec<_> = (0..64_u32)
        .map(|task| {
            let client = client.clone();
            tokio::spawn(async move {
                let mut firsts = Vec::new();
                for call in 0..50 {
                    // Equal keys within a call as well, and never in the same order.
                    let keys: Vec<String> = (0..10)
                        .map(|at| format!("{}", (call * 7 + at * (task % 5 + 1) + task) % 400))
                        .collect();
                    let claims = client.claim(&keys, hour()).await.unwrap();
                    for (key, claim) in keys.into_iter().zip(claims) {
                        note_first(&mut firsts, key, claim);
                    }
                }
                firsts
            })
        })
        .collect();
    let firsts = firsts_of(tasks).await;
    for key in 0..400 {
        let key = key.to_string();
        let present = client.get([&key]).await.unwrap()[0];
        assert_eq!(present, firsts.binary_search(&key).is_ok(), "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn small_calls_travel_together_and_large_ones_or_those_with_a_deadline_of_their_own_do_not() {
    let (fake, gate, sizes) = gated().await;
    gate.add_permits(100);
    let observer = Arc::new(Observed::default());
    let mut config = fake.config().with_observer(observer.clone());
    config.coalescing.as_mut().unwrap().call_keys_max = 3;
    let client = Client::connect(config).await.unwrap();
    let call = async |client: &Client, keys: &[&str]| {
        let answers = client.claim(keys, hour()).await.unwrap();
        assert_eq!(answers, vec![First; keys.len()]);
    };
    call(&client, &["1", "2", "3"]).await;
    assert_eq!(observer.batches.lock().unwrap()[..], [(1, 3)]);
    call(&client, &["1", "2", "3", "4"]).await;
    call(&client.with_call_timeout(LONG), &["1"]).await;
    assert_eq!(observer.batches.lock().unwrap().len(), 1);
    assert_eq!(sizes.all(), [3, 4, 1]);
    client.get(["", "a"]).await.unwrap_err();
    let calls = observer.calls.lock().unwrap().clone();
    assert_eq!(
        calls,
        [3, 4, 1].map(|keys| (CallKind::Claim, keys, None)),
        "what is refused before it begins is no call"
    );
    let clone = client.clone();
    client.close(Duration::ZERO).await;
    assert_eq!(
        clone.get_one("a").await.unwrap_err().kind(),
        ErrorKind::Closed
    );
}

#[derive(Debug, Default)]
struct Observed {
    calls: Mutex<Vec<(CallKind, usize, Option<ErrorKind>)>>,
    batches: Mutex<Vec<(usize, usize)>>,
}

impl Observer for Observed {
    fn call(&self, kind: CallKind, keys: usize, _: Duration, failed: Option<ErrorKind>) {
        self.calls.lock().unwrap().push((kind, keys, failed));
    }

    fn batch(&self, calls: usize, keys: usize) {
        self.batches.lock().unwrap().push((calls, keys));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_lets_calls_that_are_under_way_end_and_takes_no_new_ones() {
    let (fake, gate, sizes) = gated().await;
    let client = fake.client().await;
    let under_way = claim(&client, "a").await;
    assert_eq!(sent(&sizes, 1).await, [1]);
    let closing = {
        let client = client.clone();
        tokio::spawn(async move { client.close(LONG).await })
    };
    tokio::time::sleep(Duration::from_millis(20)).await;
    let refused = client.claim_one("b", hour()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Closed);
    gate.add_permits(1);
    assert_eq!(under_way.await.unwrap(), First);
    closing.await.unwrap();
    assert_eq!(sizes.all(), [1]);
}

/// A node whose claims wait until the test lets them go, and how many keys each had. Every key is first once.
async fn gated() -> (Fake, Arc<Semaphore>, Notes<usize>) {
    let (listener, map) = one_node(1).await;
    let gate = Arc::new(Semaphore::new(0));
    let sizes = Notes::new();
    let mut script = Script::of(&map);
    let (opened, noted) = (Arc::clone(&gate), sizes.clone());
    script.claim = Box::new(move |request| {
        noted.add(request.fingerprints.len() / 12);
        let opened = Arc::clone(&opened);
        Box::pin(async move {
            opened.acquire().await.unwrap().forget();
            let (keys, _) = request.fingerprints.as_chunks::<12>();
            let mut first = vec![0; keys.len().div_ceil(8)];
            for (at, key) in keys.iter().enumerate() {
                if !keys[..at].contains(key) {
                    first[at / 8] |= 1 << (at % 8);
                }
            }
            Ok(ClaimReply {
                header: header(1, NOW_MS),
                first: first.into(),
                ..ClaimReply::default()
            })
        })
    });
    (Fake::start(listener, script).await, gate, sizes)
}

/// Starts a claim and waits until it is in its queue.
async fn claim(client: &Client, key: &'static str) -> JoinHandle<Claim> {
    let client = client.clone();
    let claim = tokio::spawn(async move { client.claim_one(key, hour()).await.unwrap() });
    tokio::time::sleep(Duration::from_millis(20)).await;
    claim
}

async fn sent(sizes: &Notes<usize>, batches: usize) -> Vec<usize> {
    while sizes.all().len() < batches {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    sizes.all()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_has_gone_away_leaves_unknown_to_equal_keys_behind_it() {
    let (fake, gate, sizes) = gated().await;
    let client = gathering(&fake).await;
    let alone = claim(&client, "alone").await;
    // These gather while the first batch is on its way.
    let gone = claim(&client, "same").await;
    let second = claim(&client, "same").await;
    let third = claim(&client, "same").await;
    let heard = claim(&client, "heard").await;
    let heard_again = claim(&client, "heard").await;
    let gone_before = claim(&client, "never sent").await;
    gone_before.abort();
    assert!(gone_before.await.unwrap_err().is_cancelled());
    gate.add_permits(1);
    assert_eq!(alone.await.unwrap(), First);
    // Sent, and only then the caller of its first key goes away.
    assert_eq!(sent(&sizes, 2).await, [1, 5]);
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    gate.add_permits(1);
    assert_eq!(second.await.unwrap(), Unknown);
    assert_eq!(third.await.unwrap(), Unknown);
    assert_eq!(heard.await.unwrap(), First);
    assert_eq!(heard_again.await.unwrap(), Duplicate);
}

/// A batch with an equal key twice has been answered. The first of its calls has not been looked after since it was sent.
async fn same_key_twice(
    client: &Client,
    gate: &Semaphore,
) -> (
    Pin<Box<impl Future<Output = Result<Claim, WriteError>>>>,
    JoinHandle<Claim>,
) {
    let alone = claim(client, "alone").await;
    // These gather while the first batch is on its way.
    let other_client = client.clone();
    let mut first = Box::pin(async move { other_client.claim_one("same", hour()).await });
    assert!((&mut first).now_or_never().is_none());
    let second = claim(client, "same").await;
    let behind = claim(client, "behind").await;
    gate.add_permits(2);
    assert_eq!(alone.await.unwrap(), First);
    assert_eq!(behind.await.unwrap(), First);
    (first, second)
}

async fn gathering(fake: &Fake) -> Client {
    let mut config = fake.config();
    config.coalescing.as_mut().unwrap().wait_max = Duration::from_secs(5);
    Client::connect(config).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_that_was_delivered_but_never_read_leaves_unknown_to_equal_keys() {
    let (fake, gate, _) = gated().await;
    let client = gathering(&fake).await;
    let (first, second) = same_key_twice(&client, &gate).await;
    drop(first);
    assert_eq!(second.await.unwrap(), Unknown);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_keys_are_duplicates_once_the_first_has_been_read() {
    let (fake, gate, _) = gated().await;
    let client = gathering(&fake).await;
    let (first, second) = same_key_twice(&client, &gate).await;
    assert_eq!(first.await.unwrap(), First);
    assert_eq!(second.await.unwrap(), Duplicate);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_keys_do_not_wait_long_for_a_first_that_nobody_reads() {
    let (fake, gate, _) = gated().await;
    let client = gathering(&fake).await;
    let (first, second) = same_key_twice(&client, &gate).await;
    assert_eq!(timeout(LONG, second).await.unwrap().unwrap(), Unknown);
    assert_eq!(first.await.unwrap(), First);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_goes_when_it_is_full_or_its_first_key_has_waited_long_enough() {
    let (fake, gate, sizes) = gated().await;
    let mut config = fake.config();
    let coalescing = config.coalescing.as_mut().unwrap();
    coalescing.wait_max = Duration::from_secs(3600);
    coalescing.keys_max = 3;
    let client = Client::connect(config).await.unwrap();
    let mut claims = Vec::new();
    for key in ["1", "2", "3", "4", "5", "6"] {
        claims.push(claim(&client, key).await);
    }
    // The first at once, three as a full batch, two that wait for the ones before.
    assert_eq!(sent(&sizes, 2).await, [1, 3]);
    gate.add_permits(3);
    for claim in claims {
        assert_eq!(claim.await.unwrap(), First);
    }
    assert_eq!(sizes.all(), [1, 3, 2]);

    let (fake, gate, sizes) = gated().await;
    let client = fake.client().await;
    let claims = [claim(&client, "1").await, claim(&client, "2").await];
    assert_eq!(sent(&sizes, 2).await, [1, 1]);
    gate.add_permits(2);
    for claim in claims {
        assert_eq!(claim.await.unwrap(), First);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_on_their_way_are_bounded_and_the_rest_gathers() {
    let (fake, gate, sizes) = gated().await;
    let mut config = fake.config();
    config.coalescing.as_mut().unwrap().keys_max = 1;
    let client = Client::connect(config).await.unwrap();
    let claims = ["1", "2", "3", "4", "5", "6"].map(|key| {
        let client = client.clone();
        tokio::spawn(async move { client.claim_one(key, hour()).await.unwrap() })
    });
    sent(&sizes, 4).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(sizes.all(), [1; 4]);
    gate.add_permits(6);
    for claim in claims {
        assert_eq!(claim.await.unwrap(), First);
    }
    assert_eq!(sizes.all(), [1; 6]);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_sent_although_the_runtime_of_the_first_caller_has_stopped() {
    let (fake, gate, sizes) = gated().await;
    let mut config = fake.config();
    config.coalescing.as_mut().unwrap().wait_max = Duration::from_secs(5);
    let client = Client::connect(config).await.unwrap();
    let elsewhere = Runtime::new().unwrap();
    let gone = {
        let client = client.clone();
        elsewhere.spawn(async move { client.claim_one("gone", hour()).await })
    };
    assert_eq!(sent(&sizes, 1).await, [1]);
    let stays = claim(&client, "stays").await;
    elsewhere.shutdown_background();
    assert!(gone.await.unwrap_err().is_cancelled());
    gate.add_permits(2);
    assert_eq!(timeout(LONG, stays).await.unwrap().unwrap(), First);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_clients_runtime_has_stopped_every_caller_hears_whether_its_key_was_sent() {
    let (fake, _gate, sizes) = gated().await;
    let mut config = fake.config();
    config.coalescing.as_mut().unwrap().wait_max = Duration::from_secs(3600);
    let elsewhere = Runtime::new().unwrap();
    let client = elsewhere.spawn(Client::connect(config));
    let client = client.await.unwrap().unwrap();
    let call = |key: &'static str| {
        let client = client.clone();
        tokio::spawn(async move {
            let claim = timeout(LONG, client.claim_one(key, hour())).await;
            claim.expect("a call ends").unwrap_err()
        })
    };
    let in_flight = call("in flight");
    assert_eq!(sent(&sizes, 1).await, [1]);
    let queued = call("queued");
    tokio::time::sleep(Duration::from_millis(20)).await;
    elsewhere.shutdown_background();
    let error = in_flight.await.unwrap();
    assert!(matches!(error, WriteError::MaybeApplied(_)), "{error}");
    for not_sent in [queued, call("later")] {
        let error = not_sent.await.unwrap();
        let WriteError::NotApplied(NotApplied::Unavailable { last_error, .. }) = &error else {
            panic!("{error}");
        };
        assert!(last_error.contains("runtime"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_does_not_wait_for_ever_for_a_runtime_that_does_not_run() {
    let (fake, _gate, _) = gated().await;
    let mut config = fake.config();
    config.call_timeout = Duration::from_secs(1);
    let stuck = tokio::task::spawn_blocking(|| {
        let mut runtime = runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        let client = runtime.block_on(Client::connect(config)).unwrap();
        (runtime, client)
    });
    let (runtime, client) = stuck.await.unwrap();
    let error = timeout(LONG, client.claim_one("a", hour())).await.unwrap();
    let error = error.unwrap_err();
    assert!(matches!(error, WriteError::MaybeApplied(_)), "{error}");
    runtime.shutdown_background();
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_tells_queued_callers_that_nothing_was_sent_and_sent_ones_that_it_may_be() {
    let (fake, _gate, sizes) = gated().await;
    let mut config = fake.config();
    config.coalescing.as_mut().unwrap().wait_max = Duration::from_secs(3600);
    let client = Client::connect(config).await.unwrap();
    let call = |key: &'static str| {
        let client = client.clone();
        tokio::spawn(async move { client.claim_one(key, hour()).await.unwrap_err() })
    };
    let in_flight = call("in flight");
    assert_eq!(sent(&sizes, 1).await, [1]);
    let queued = call("queued");
    tokio::time::sleep(Duration::from_millis(20)).await;
    client.clone().close(Duration::ZERO).await;
    let error = in_flight.await.unwrap();
    assert!(matches!(error, WriteError::MaybeApplied(_)), "{error}");
    let error = queued.await.unwrap();
    assert!(
        matches!(error, WriteError::NotApplied(NotApplied::Closed)),
        "{error}"
    );
}
