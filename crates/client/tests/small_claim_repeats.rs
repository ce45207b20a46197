//! How claims that travelled with others are repeated, told by a node that follows a script.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something unexpected happens"
)]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use keydb_client::{Claim::First, Client, ErrorKind, KeyOutcome, Operation};
use keydb_core::Fingerprint;
use keydb_proto::{
    refusal_status,
    shard::{ClaimReply, ErrorCode, RangeKeys, RefusalCode},
};
use support::{
    fake::{Fake, NOW_MS, Notes, Script, all, all_first, header, map_reply, one_node, refuse_all},
    hour, may_be_stored, maybe_applied,
};
use tonic::Status;

#[tokio::test(flavor = "multi_thread")]
async fn of_a_repeat_of_a_claim_that_travelled_with_others_no_failure_says_that_nothing_is_stored()
{
    let (listener, map) = one_node(1).await;
    let mut script = Script::of(&map);
    let asked = AtomicUsize::new(0);
    script.claim = Box::new(move |request| {
        let reply = match asked.fetch_add(1, SeqCst) {
            0 => Err(Status::unknown("nobody knows")),
            _ if request.only_remembered => Ok(nothing_remembered(&request.ranges)),
            _ => Err(refusal_status(ErrorCode::OverMemoryLimit, "no room")),
        };
        Box::pin(async { reply })
    });
    let fake = Fake::start(listener, script).await;
    let mut config = fake.config();
    config.retry_count = Some(0);
    let client = Client::connect(config).await.unwrap();
    let error = client.claim_one("a", hour()).await.unwrap_err();
    let repeat = Operation::with_id(maybe_applied(&error).operation.unwrap());
    may_be_stored(client.claim_as(repeat, ["a"], hour()).await, repeat);
}

fn nothing_remembered(ranges: &[RangeKeys]) -> ClaimReply {
    ClaimReply {
        header: header(1, NOW_MS),
        first: vec![0; all(ranges).len()].into(),
        unknown: all(ranges),
        ..ClaimReply::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_range_that_is_not_recalled_a_repeated_small_claim_gets_its_other_answers() {
    not_recalled(RefusalCode::Closed, ErrorKind::RangeClosed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_small_claim_goes_on_while_a_range_of_it_is_not_recalled() {
    not_recalled(RefusalCode::Loading, ErrorKind::NotReady).await;
}

/// Repeats a small claim while a node refuses to say what it remembers of one range, has forgotten another, and knows the others.
async fn not_recalled(code: RefusalCode, kind: ErrorKind) {
    let (listener, map) = one_node(16).await;
    let range_of = |key: &String| {
        let fingerprint = Fingerprint::of(key.as_bytes(), map.hash.seed).unwrap();
        map.ranges[map.range_index_of(fingerprint.top())].id.0
    };
    let keys: Vec<String> = (0..60).map(|number| number.to_string()).collect();
    let refused = range_of(&keys[0]);
    let forgotten = keys.iter().map(range_of).find(|range| *range != refused);
    let forgotten = forgotten.expect("these keys are in several ranges");
    let mut script = Script::of(&map);
    let claims = Notes::new();
    let noted: Notes<Vec<u32>> = claims.clone();
    let repeats = Arc::new(AtomicBool::new(false));
    let repeating = Arc::clone(&repeats);
    script.claim = Box::new(move |request| {
        let ranges = request.ranges;
        let reply = if request.only_remembered {
            let mut unknown = vec![0_u8; all(&ranges).len()];
            let mut at = 0;
            for range in &ranges {
                for _ in 0..range.key_count {
                    if range.range_id == forgotten {
                        unknown[at / 8] |= 1 << (at % 8);
                    }
                    at += 1;
                }
            }
            let refusals: Vec<_> = ranges
                .iter()
                .filter(|range| range.range_id == refused)
                .copied()
                .collect();
            let first = all_first(&ranges);
            Ok(ClaimReply {
                first: first
                    .first
                    .iter()
                    .zip(&unknown)
                    .map(|(first, unknown)| first & !unknown)
                    .collect(),
                unknown: unknown.into(),
                refused: refuse_all(&refusals, code),
                ..first
            })
        } else if repeating.load(SeqCst) {
            noted.add(ranges.iter().map(|range| range.range_id).collect());
            Ok(all_first(&ranges))
        } else {
            Err(Status::unknown("nobody knows"))
        };
        Box::pin(async { reply })
    });
    let fake = Fake::start(listener, script).await;
    let config = fake.config().with_call_timeout(Duration::from_secs(2));
    let client = Client::connect(config).await.unwrap();
    let error = client.claim(&keys, hour()).await.unwrap_err();
    let operation = maybe_applied(&error).operation.unwrap();
    let repeat = Operation::with_id(operation);
    repeats.store(true, SeqCst);
    let error = client.claim_as(repeat, &keys, hour()).await.unwrap_err();
    let maybe = maybe_applied(&error);
    for (key, outcome) in keys.iter().zip(maybe.outcomes.iter()) {
        let expected = match range_of(key) == refused {
            true => KeyOutcome::MaybeApplied,
            false => KeyOutcome::Claimed(First),
        };
        assert_eq!(*outcome, expected, "{key}");
    }
    assert_eq!(maybe.operation, Some(operation));
    assert_eq!(maybe.kind, kind);
    // Nothing but what was forgotten is claimed again.
    assert_eq!(claims.all(), [[forgotten]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_sending_of_a_batch_can_be_applied_after_the_repeat_of_one_of_its_claims() {
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
        let reply = match noted.add((clock_ms(), request.header.unwrap().not_after_unix_ms)) {
            // It may still be on its way, as far as the client can know.
            0 => Err(Status::unavailable("connection reset")),
            _ => Ok(ClaimReply {
                header: header(1, clock_ms()),
                ..all_first(&request.ranges)
            }),
        };
        Box::pin(async { reply })
    });
    let fake = Fake::start(listener, script).await;
    let mut config = fake.config();
    config.retry_count = Some(0);
    let client = Client::connect(config).await.unwrap();
    let error = client.claim_one("a", hour()).await.unwrap_err();
    let repeat = Operation::with_id(maybe_applied(&error).operation.unwrap());
    // One that has no time to wait for that asks nothing.
    let hasty = client.with_call_timeout(Duration::from_millis(20));
    may_be_stored(hasty.claim_as(repeat, ["a"], hour()).await, repeat);
    let claims = client.claim_as(repeat, ["a"], hour()).await;
    assert_eq!(claims.unwrap(), [First]);
    let [(_, not_after_ms), (repeated_ms, _)] = notes.all()[..] else {
        panic!("one sending, one repeat");
    };
    assert!(
        not_after_ms <= repeated_ms,
        "repeated {} ms too early",
        not_after_ms - repeated_ms
    );
}
