//! How the client takes what nodes refuse, told by a node that follows a script.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something unexpected happens"
)]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use keydb_client::{
    Claim::{self, First},
    Client, ErrorKind, GetError, KeyOutcome, NotApplied, Operation, WriteError,
};
use keydb_proto::{
    refusal_status,
    shard::{ClaimReply, ErrorCode, GetReply, RangeKeys, RefusalCode},
};
use support::{
    fake::{Fake, NOW_MS, Notes, Script, all, all_first, header, map_reply, one_node, refuse_all},
    hour, may_be_stored, maybe_applied,
};
use tonic::Status;

async fn quick(fake: &Fake) -> Client {
    let mut config = fake.config();
    config.retry_delay = Duration::from_millis(5);
    config.retry_count = Some(3);
    Client::connect(config).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_map_is_refreshed_once_for_all_who_wait() {
    let (listener, map) = one_node(16).await;
    let newer = map.successor();
    let asked = Arc::new(AtomicUsize::new(0));
    let mut script = Script::of(&map);
    let count = Arc::clone(&asked);
    script.get_map = Box::new(move |_| {
        let reply = match count.fetch_add(1, SeqCst) {
            0 => map_reply(&map, NOW_MS),
            _ => map_reply(&newer, NOW_MS),
        };
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok(reply)
        })
    });
    script.get = Box::new(|request| {
        let stale = request.header.unwrap().epoch == 1;
        let reply = GetReply {
            header: header(2, NOW_MS),
            present: all(&request.ranges),
            refused: match stale {
                true => refuse_all(&request.ranges, RefusalCode::NotOwner),
                false => Vec::new(),
            },
        };
        Box::pin(async { Ok(reply) })
    });
    let fake = Fake::start(listener, script).await;
    let mut config = fake.config();
    // Following a map that makes progress is not one of the retries.
    config.retry_count = Some(0);
    let client = Client::connect(config).await.unwrap();
    let calls: Vec<_> = (0..50)
        .map(|call| {
            let client = client.clone();
            tokio::spawn(async move { client.get([format!("{call}"), "x".into()]).await })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), [true, true]);
    }
    assert_eq!(client.cluster_map().epoch, 2);
    assert_eq!(asked.load(SeqCst), 2, "once to connect, once for all calls");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_map_or_one_of_another_cluster_is_never_taken_over() {
    let (listener, map) = one_node(1).await;
    let (_, foreign) = one_node(1).await;
    let mut first = map.successor();
    first.epoch = 5;
    let later = [map.clone(), {
        let mut foreign = foreign.successor();
        foreign.epoch = 9;
        foreign
    }];
    let asked = Arc::new(AtomicUsize::new(0));
    let mut script = Script::of(&map);
    let count = Arc::clone(&asked);
    script.get_map = Box::new(move |_| {
        let reply = match count.fetch_add(1, SeqCst) {
            0 => map_reply(&first, NOW_MS),
            other => map_reply(&later[other % 2], NOW_MS),
        };
        Box::pin(async { Ok(reply) })
    });
    script.get = Box::new(|request| {
        let refused = refuse_all(&request.ranges, RefusalCode::NotOwner);
        let present = all(&request.ranges);
        let header = header(9, NOW_MS);
        let reply = GetReply {
            header,
            present,
            refused,
        };
        Box::pin(async { Ok(reply) })
    });
    let fake = Fake::start(listener, script).await;
    let client = quick(&fake).await;
    let error = client.get(["a"]).await.unwrap_err();
    assert!(
        matches!(error, GetError::Unavailable { attempts: 4, .. }),
        "{error}"
    );
    assert!(asked.load(SeqCst) > 3);
    assert_eq!(client.cluster_map().epoch, 5);
    assert_eq!(client.cluster_map().cluster_id, map.cluster_id);
}

/// What a claim's requests carried: operation, attempt.
async fn attempts_after(
    refusals: impl Fn(usize, &[RangeKeys]) -> Result<Vec<keydb_proto::shard::RangeRefusal>, Status>
    + Send
    + Sync
    + 'static,
    operation: Operation,
) -> (Result<Vec<Claim>, WriteError>, Vec<u32>) {
    let (listener, map) = one_node(1).await;
    let mut script = Script::of(&map);
    let notes = Notes::new();
    let noted = notes.clone();
    script.claim = Box::new(move |request| {
        let attempt = request.ranges[0].attempt;
        assert_eq!(request.operation_id, operation.id().part(0).to_bytes()[..]);
        let reply = refusals(noted.add(attempt), &request.ranges).map(|refused| ClaimReply {
            refused,
            ..all_first(&request.ranges)
        });
        Box::pin(async { reply })
    });
    let fake = Fake::start(listener, script).await;
    let client = quick(&fake).await;
    let result = client.claim_as(operation, ["a", "b"], hour()).await;
    (result, notes.all())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_attempt_counts_sendings_that_may_have_been_applied() {
    let script = |number, ranges: &[_]| match number {
        0 => Ok(refuse_all(ranges, RefusalCode::Loading)),
        1 => Err(refusal_status(ErrorCode::Overloaded, "busy")),
        2 => Err(Status::unknown("nobody knows")),
        _ => Ok(Vec::new()),
    };
    let (claims, attempts) = attempts_after(script, Operation::new()).await;
    assert_eq!(claims.unwrap(), [First, First]);
    assert_eq!(attempts, [0, 0, 0, 1]);
    let (claims, attempts) = attempts_after(script, Operation::new().again()).await;
    assert_eq!(claims.unwrap(), [First, First]);
    assert_eq!(attempts, [1, 1, 1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_certainly_refused_is_not_applied_and_what_is_full_may_be() {
    let loading = |_, ranges: &[_]| Ok(refuse_all(ranges, RefusalCode::Loading));
    let (result, attempts) = attempts_after(loading, Operation::new()).await;
    let error = result.unwrap_err();
    let WriteError::NotApplied(NotApplied::Unavailable { attempts: told, .. }) = error else {
        panic!("{error}");
    };
    assert_eq!((told, attempts), (4, vec![0; 4]));

    let full = |_, ranges: &[_]| Ok(refuse_all(ranges, RefusalCode::Full));
    let (result, attempts) = attempts_after(full, Operation::new()).await;
    let error = result.unwrap_err();
    assert!(matches!(error, WriteError::MaybeApplied(_)), "{error}");
    assert_eq!(attempts, [0, 1, 2, 3]);

    // Once nobody knows, a later clear refusal does not make it certain.
    let mixed = |number, ranges: &[_]| match number {
        0 => Err(Status::unavailable("connection reset")),
        _ => Ok(refuse_all(ranges, RefusalCode::Loading)),
    };
    let (result, attempts) = attempts_after(mixed, Operation::new()).await;
    let error = result.unwrap_err();
    assert!(matches!(error, WriteError::MaybeApplied(_)), "{error}");
    assert_eq!(attempts, [0, 1, 1, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_repeat_no_failure_says_that_nothing_is_stored() {
    let operation = Operation::new().again();
    for code in [RefusalCode::Loading, RefusalCode::Closed] {
        let refuse = move |_, ranges: &[_]| Ok(refuse_all(ranges, code));
        let (result, _) = attempts_after(refuse, operation).await;
        may_be_stored(result, operation);
    }
    for code in [ErrorCode::DiskFull, ErrorCode::OverMemoryLimit] {
        let refuse = move |_, _: &[_]| Err(refusal_status(code, "no room"));
        let (result, _) = attempts_after(refuse, operation).await;
        may_be_stored(result, operation);
    }

    let (listener, map) = one_node(1).await;
    let fake = Fake::start(listener, Script::of(&map)).await;
    let client = fake.client().await;
    let hasty = client.with_call_timeout(Duration::ZERO);
    may_be_stored(hasty.claim_as(operation, ["a"], hour()).await, operation);
    client.clone().close(Duration::ZERO).await;
    may_be_stored(client.claim_as(operation, ["a"], hour()).await, operation);
}

/// What the node says that refused a claim for good.
fn refused(result: Result<Vec<Claim>, WriteError>) -> Arc<str> {
    match result {
        Err(WriteError::NotApplied(NotApplied::Refused { message, .. })) => message,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_breaks_a_rule_is_refused_without_a_retry() {
    let invalid = |_, _: &[_]| {
        Err(refusal_status(
            ErrorCode::InvalidRequest,
            "2 keys; the limit is 1",
        ))
    };
    let (result, attempts) = attempts_after(invalid, Operation::new()).await;
    let message = refused(result);
    assert!(message.contains("2 keys; the limit is 1"), "{message}");
    assert_eq!(attempts, [0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_range_is_refused_without_a_retry() {
    let closed = |_, ranges: &[_]| Ok(refuse_all(ranges, RefusalCode::Closed));
    let (result, attempts) = attempts_after(closed, Operation::new()).await;
    let message = refused(result);
    assert!(message.contains("as the test wants"), "{message}");
    assert_eq!(attempts, [0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_closed_range_all_others_are_answered_also_those_that_take_a_retry() {
    let (listener, map) = one_node(16).await;
    let mut script = Script::of(&map);
    let notes = Notes::new();
    let noted = notes.clone();
    script.claim = Box::new(move |request| {
        let sizes: Vec<usize> = request
            .ranges
            .iter()
            .map(|it| it.key_count as usize)
            .collect();
        let refused = match noted.add(sizes) {
            0 => {
                let mut refused = refuse_all(&request.ranges[..1], RefusalCode::Closed);
                refused.extend(refuse_all(&request.ranges[15..], RefusalCode::Loading));
                refused
            }
            _ => Vec::new(),
        };
        let reply = ClaimReply {
            refused,
            ..all_first(&request.ranges)
        };
        Box::pin(async { Ok(reply) })
    });
    let fake = Fake::start(listener, script).await;
    let client = quick(&fake).await;
    let keys: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
    let error = client.claim(&keys, hour()).await.unwrap_err();
    let maybe = maybe_applied(&error);
    assert!(maybe.cause.contains("as the test wants"), "{error}");
    assert_eq!(maybe.kind, ErrorKind::RangeClosed);
    let [first, second] = &notes.all()[..] else {
        panic!("one sending for all, one for the range that was loading");
    };
    assert_eq!(second[..], first[15..]);
    // What is refused is not stored, for certain.
    assert_eq!(
        (maybe.keys_answered, maybe.keys_uncertain),
        (1000 - first[0], 0),
        "{error}"
    );
    let not_applied = maybe
        .outcomes
        .iter()
        .filter(|it| **it == KeyOutcome::NotApplied);
    assert_eq!(not_applied.count(), first[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_repeated_when_the_sending_before_it_is_not_valid_any_more() {
    let (listener, map) = one_node(1).await;
    let mut script = Script::of(&map);
    let notes = Notes::new();
    let noted = notes.clone();
    script.claim = Box::new(move |request| {
        let not_after = request.header.unwrap().not_after_unix_ms;
        let reply = match noted.add((Instant::now(), not_after - NOW_MS)) {
            0 => Err(Status::unavailable("connection reset")),
            _ => Ok(all_first(&request.ranges)),
        };
        Box::pin(async { reply })
    });
    let fake = Fake::start(listener, script).await;
    let mut config = fake.config();
    config.retry_delay = Duration::from_millis(1);
    config.call_timeout = Duration::from_secs(6);
    let connected = Instant::now();
    let client = Client::connect(config).await.unwrap();
    assert_eq!(client.claim(["a"], hour()).await.unwrap(), [First]);
    let [(_, valid_ms), (repeated, _)] = notes.all()[..] else {
        panic!("two sendings");
    };
    // A quarter of the call's time, after what passed since the client learned the node's clock.
    assert!(valid_ms >= 1500, "{valid_ms}");
    let since_connect = repeated.duration_since(connected);
    assert!(
        since_connect >= Duration::from_millis(valid_ms),
        "{since_connect:?} < {valid_ms} ms"
    );
}

/// What a node sees of one sending of a claim.
#[derive(Clone)]
struct Seen {
    /// By the node's clock.
    at_ms: u64,
    not_after_ms: u64,
    attempt: u32,
    operation_id: bytes::Bytes,
    fingerprints: bytes::Bytes,
}

#[tokio::test(flavor = "multi_thread")]
async fn no_sending_of_a_claim_can_be_applied_after_its_repeat() {
    let (listener, map) = one_node(1).await;
    let mut script = Script::of(&map);
    let started = Instant::now();
    let clock_ms = move || NOW_MS + started.elapsed().as_millis() as u64;
    let of_cluster = map.clone();
    script.get_map = Box::new(move |_| {
        let reply = map_reply(&of_cluster, clock_ms());
        Box::pin(async { Ok(reply) })
    });
    let notes = Notes::new();
    let noted = notes.clone();
    script.claim = Box::new(move |request| {
        let seen = Seen {
            at_ms: clock_ms(),
            not_after_ms: request.header.unwrap().not_after_unix_ms,
            attempt: request.ranges[0].attempt,
            operation_id: request.operation_id,
            fingerprints: request.fingerprints,
        };
        let reply = match noted.add(seen) {
            // Both may still be on their way, as far as the client can know.
            0 => Err(Status::unavailable("connection reset")),
            1 => Err(Status::unknown("nobody knows")),
            _ => Ok(ClaimReply {
                header: header(1, clock_ms()),
                ..all_first(&request.ranges)
            }),
        };
        Box::pin(async { reply })
    });
    let fake = Fake::start(listener, script).await;
    let mut config = fake.config();
    config.retry_delay = Duration::from_millis(1);
    config.retry_count = Some(9);
    config.call_timeout = Duration::from_secs(5);
    let client = Client::connect(config).await.unwrap();
    let claims = client.claim(["b", "a", "b"], hour()).await;
    assert_eq!(claims.unwrap(), [First; 3]);
    let sendings = notes.all();
    assert_eq!(sendings.len(), 3);
    for (before, repeat) in sendings.iter().zip(&sendings[1..]) {
        // A node that remembers either of them gives the other its answers.
        assert_eq!(before.operation_id, repeat.operation_id);
        assert_eq!(before.fingerprints, repeat.fingerprints);
        assert_eq!(before.attempt + 1, repeat.attempt);
        // One that has forgotten the repeat refuses the sending before it: its time is over.
        assert!(
            before.not_after_ms <= repeat.at_ms,
            "sent again {} ms too early",
            before.not_after_ms - repeat.at_ms
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_ends_by_the_clock_of_its_node() {
    let (listener, map) = one_node(1).await;
    let mut script = Script::of(&map);
    let notes = Notes::new();
    let noted = notes.clone();
    script.get = Box::new(move |request| {
        // The clock jumps back an hour after the first request.
        noted.add(request.header.unwrap().not_after_unix_ms);
        let reply = GetReply {
            header: header(1, NOW_MS - 3_600_000),
            present: all(&request.ranges),
            refused: Vec::new(),
        };
        Box::pin(async { Ok(reply) })
    });
    let fake = Fake::start(listener, script).await;
    let client = fake.client().await;
    for _ in 0..2 {
        client.get(["a"]).await.unwrap();
    }
    let [first, second] = notes.all()[..] else {
        panic!("two requests");
    };
    // 10 s from then on, and a minute for a slow machine.
    assert!(
        (NOW_MS + 10_000..NOW_MS + 70_000).contains(&first),
        "{first}"
    );
    assert_eq!(first.abs_diff(second).div_ceil(600_000), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_thought_to_be_another_is_learned_from_the_refusal() {
    let (listener, map) = one_node(1).await;
    let mut script = Script::of(&map);
    let asked = Arc::new(AtomicUsize::new(0));
    // The clock jumps ahead by an hour after the client connected.
    let later = NOW_MS + 3_600_000;
    script.get_map = Box::new(move |_| {
        let first = asked.fetch_add(1, SeqCst) == 0;
        let reply = map_reply(&map, if first { NOW_MS } else { later });
        Box::pin(async { Ok(reply) })
    });
    script.get = Box::new(move |request| {
        let reply = match request.header.unwrap().not_after_unix_ms < later {
            true => Err(refusal_status(ErrorCode::TooLate, "not_after has passed")),
            false => Ok(GetReply {
                header: header(1, later),
                present: all(&request.ranges),
                refused: Vec::new(),
            }),
        };
        Box::pin(async { reply })
    });
    let fake = Fake::start(listener, script).await;
    let client = fake.client().await;
    assert_eq!(client.get(["a"]).await.unwrap(), [true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_keys_of_a_claim_go_to_a_node_in_one_part_only() {
    let (listener, map) = one_node(1).await;
    let mut script = Script::of(&map);
    let notes = Notes::new();
    let noted = notes.clone();
    script.claim = Box::new(move |request| {
        noted.add(request.fingerprints.len() / 12);
        let reply = ClaimReply {
            header: header(1, NOW_MS),
            first: vec![0; all(&request.ranges).len()].into(),
            unknown: all(&request.ranges),
            ..ClaimReply::default()
        };
        Box::pin(async { Ok(reply) })
    });
    let fake = Fake::start(listener, script).await;
    let mut config = fake.config();
    config.keys_per_request_max = 3;
    let client = Client::connect(config).await.unwrap();
    let keys = ["a", "b", "c", "a", "d", "d", "c", "b", "a"];
    let claims = client.claim(keys, hour()).await.unwrap();
    // A repeat of what is unknown is unknown as well.
    assert_eq!(claims, [Claim::Unknown; 9]);
    let mut sent = notes.all();
    sent.sort_unstable();
    assert_eq!(sent, [2, 3]);
}
