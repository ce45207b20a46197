//! Claims: who is told what, also after a reply was lost.

#![allow(clippy::unwrap_used, reason = "a test that fails here has failed")]

mod support;

use std::time::Duration;

use keydb_core::{Fingerprint, OperationId};
use keydb_node::Limits;
use keydb_proto::{error_code, shard::ErrorCode};
use support::*;

fn all(answer: char, count: usize) -> String {
    String::from(answer).repeat(count)
}

#[tokio::test]
async fn the_first_claim_of_a_key_is_first_and_others_are_duplicates() {
    let (world, map, node, mut client) = one_node().await;
    let keys = keys(&map, 0..100);
    let answers = world.claim(&mut client, &map, &keys[..60], OperationId::random(), 0);
    assert_eq!(answers.await, all('F', 60));
    let answers = world.claim(&mut client, &map, &keys, OperationId::random(), 0);
    assert_eq!(answers.await, all('D', 60) + &all('F', 40));
    node.stop().await;
}

#[tokio::test]
async fn of_equal_keys_in_one_claim_the_first_is_first() {
    let (world, map, node, mut client) = one_node().await;
    let [a, b] = [key(&map, "a"), key(&map, "b")];
    let keys = [a, b, a, a, b];
    let answers = world.claim(&mut client, &map, &keys, OperationId::random(), 0);
    assert_eq!(answers.await, "FFDDD");
    node.stop().await;
}

#[tokio::test]
async fn a_claim_does_not_extend_a_key_that_is_present() {
    let (world, map, node, mut client) = one_node().await;
    let one = keys(&map, 0..1);
    world
        .claim(&mut client, &map, &one, OperationId::random(), 0)
        .await;
    world.clock.advance(Duration::from_secs(59));
    let answer = world.claim(&mut client, &map, &one, OperationId::random(), 0);
    assert_eq!(answer.await, "D");
    world.clock.advance(Duration::from_secs(1));
    let answer = world.claim(&mut client, &map, &one, OperationId::random(), 0);
    assert_eq!(answer.await, "F");
    node.stop().await;
}

#[tokio::test]
async fn a_repeat_gets_the_same_answers_and_says_for_which_ranges() {
    let (world, map, node, mut client) = one_node().await;
    let keys = keys(&map, 0..1000);
    world
        .claim(&mut client, &map, &keys[..500], OperationId::random(), 0)
        .await;
    let operation = OperationId::random();
    let claim = world.claim_request(&map, &keys, operation, 0);
    let told = client.claim(claim.clone()).await.unwrap().into_inner();
    assert_eq!(answers(&map, &keys, &told), all('D', 500) + &all('F', 500));
    assert!(told.repeated_ranges.is_empty());

    for attempt in [1, 2, 3] {
        let mut again = claim.clone();
        for range in &mut again.ranges {
            range.attempt = attempt;
        }
        let retold = client.claim(again).await.unwrap().into_inner();
        assert_eq!(answers(&map, &keys, &retold), answers(&map, &keys, &told));
        assert_eq!(retold.repeated_ranges, (0..8).collect::<Vec<_>>());
    }
    assert_eq!(status(&mut client).await.answer_operations, 2);
    node.stop().await;
}

#[tokio::test]
async fn a_repeat_that_adds_a_range_gets_old_and_new_answers() {
    let (world, map, node, mut client) = one_node().await;
    let keys = keys(&map, 0..100);
    let (some, others): (Vec<Fingerprint>, Vec<Fingerprint>) = keys
        .iter()
        .partition(|key| map.range_index_of(key.top()) < 3);
    let operation = OperationId::random();
    world.claim(&mut client, &map, &some, operation, 0).await;
    world.claim(&mut client, &map, &others, operation, 0).await;
    let claim = world.claim_request(&map, &keys, operation, 1);
    let reply = client.claim(claim).await.unwrap().into_inner();
    assert_eq!(answers(&map, &keys, &reply), all('F', 100));
    assert_eq!(reply.repeated_ranges.len(), 8);
    node.stop().await;
}

#[tokio::test]
async fn the_same_operation_with_other_keys_finds_what_is_present_unknown() {
    let (world, map, node, mut client) = one_node().await;
    let keys = keys(&map, 0..1000);
    let operation = OperationId::random();
    world
        .claim(&mut client, &map, &keys[..500], operation, 0)
        .await;
    let answers = world.claim(&mut client, &map, &keys, operation, 1);
    assert_eq!(answers.await, all('U', 500) + &all('F', 500));
    // And these answers are the ones that count from now on.
    let answers = world.claim(&mut client, &map, &keys, operation, 1);
    assert_eq!(answers.await, all('U', 500) + &all('F', 500));
    node.stop().await;
}

#[tokio::test]
async fn a_repeat_that_nobody_remembers_finds_what_is_present_unknown() {
    let (world, map, node, mut client) = one_node().await;
    let keys = keys(&map, 0..1000);
    world
        .claim(&mut client, &map, &keys[..500], OperationId::random(), 0)
        .await;
    let answers = world.claim(&mut client, &map, &keys, OperationId::random(), 1);
    assert_eq!(answers.await, all('U', 500) + &all('F', 500));
    node.stop().await;
}

#[tokio::test]
async fn in_doubt_a_key_that_this_claim_stores_is_still_a_duplicate_the_second_time() {
    let (world, map, node, mut client) = one_node().await;
    let [old, new] = [key(&map, "old"), key(&map, "new")];
    world
        .claim(&mut client, &map, &[old], OperationId::random(), 0)
        .await;
    let keys = [new, old, new, old];
    let answers = world.claim(&mut client, &map, &keys, OperationId::random(), 1);
    assert_eq!(answers.await, "FUDU");
    node.stop().await;
}

#[tokio::test]
async fn a_repeat_after_the_recorded_expiry_claims_anew_and_doubts_what_others_have_stored() {
    let (world, map, node, mut client) = one_node().await;
    let keys = keys(&map, 0..100);
    let operation = OperationId::random();
    world.claim(&mut client, &map, &keys, operation, 0).await;
    world.clock.advance(Duration::from_secs(60));
    let other = world.claim(&mut client, &map, &keys[..40], OperationId::random(), 0);
    assert_eq!(other.await, all('F', 40));
    let answers = world.claim(&mut client, &map, &keys, operation, 1);
    assert_eq!(answers.await, all('U', 40) + &all('F', 60));
    node.stop().await;
}

#[tokio::test]
async fn answers_are_forgotten_when_they_are_too_old_or_there_is_no_room() {
    for limits in [
        Limits {
            answer_memory_age: Duration::from_secs(5),
            ..Limits::default()
        },
        Limits {
            answer_memory_bytes: 1000,
            ..Limits::default()
        },
    ] {
        let (world, map, node, mut client) = one_node_within(limits).await;
        let keys = keys(&map, 0..100);
        let operation = OperationId::random();
        world.claim(&mut client, &map, &keys, operation, 0).await;
        let answers = world.claim(&mut client, &map, &keys, operation, 1);
        assert_eq!(answers.await, all('F', 100));
        world.clock.advance(Duration::from_secs(5));
        for _ in 0..10 {
            world
                .claim(&mut client, &map, &keys, OperationId::random(), 0)
                .await;
        }
        assert!(status(&mut client).await.answer_bytes <= 16 << 20);
        let answers = world.claim(&mut client, &map, &keys, operation, 1);
        assert_eq!(answers.await, all('U', 100));
        node.stop().await;
    }
}

#[tokio::test]
async fn an_operation_id_of_another_length_or_a_range_twice_is_refused() {
    let (world, map, node, mut client) = one_node().await;
    let keys = keys(&map, 0..100);
    let good = world.claim_request(&map, &keys, OperationId::random(), 0);

    let mut claim = good.clone();
    claim.operation_id = vec![1; 15].into();
    assert_refused(
        client.claim(claim).await,
        ErrorCode::InvalidRequest,
        &["operation_id has 15 bytes", "16"],
    );

    let mut claim = good.clone();
    claim.ranges[0].key_count -= 1;
    let mut again = claim.ranges[0];
    again.key_count = 1;
    claim.ranges.insert(1, again);
    assert_refused(
        client.claim(claim).await,
        ErrorCode::InvalidRequest,
        &["range 0", "more than once"],
    );
    assert_eq!(status(&mut client).await.keys, 0);

    // In another order they are welcome.
    let mut claim = good;
    claim.ranges.reverse();
    let chunks = claim
        .ranges
        .iter()
        .rev()
        .map(|range| range.key_count as usize * 12);
    let mut rest = &claim.fingerprints[..];
    let mut parts: Vec<&[u8]> = Vec::new();
    for length in chunks {
        let (part, behind) = rest.split_at(length);
        parts.push(part);
        rest = behind;
    }
    parts.reverse();
    claim.fingerprints = parts.concat().into();
    let reply = client.claim(claim).await.unwrap().into_inner();
    assert_eq!(
        reply
            .first
            .iter()
            .map(|byte| byte.count_ones())
            .sum::<u32>(),
        100
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_sixteen_who_claim_the_same_keys_at_once_exactly_one_is_first_for_each() {
    let (world, map, node, client) = one_node().await;
    let keys = keys(&map, 0..20_000);
    let claims = (0..16).map(|number: usize| {
        let (world, map, mut client) = (world.clone(), map.clone(), client.clone());
        // Everyone in another order.
        let mut keys = keys.clone();
        keys.rotate_left(number * 1234);
        tokio::spawn(async move {
            let mut firsts = Vec::new();
            for part in keys.chunks(1000) {
                let operation = OperationId::random();
                let answers = world.claim(&mut client, &map, part, operation, 0).await;
                assert!(!answers.contains('U'));
                let told = part.iter().zip(answers.chars());
                firsts.extend(
                    told.filter(|(_, answer)| *answer == 'F')
                        .map(|(key, _)| *key),
                );
            }
            firsts
        })
    });
    let mut firsts = Vec::new();
    for claim in claims.collect::<Vec<_>>() {
        firsts.extend(claim.await.unwrap());
    }
    firsts.sort_unstable();
    let mut expected = keys;
    expected.sort_unstable();
    assert_eq!(firsts, expected);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_repeats_of_one_operation_all_get_the_same_answers() {
    let (world, map, node, client) = one_node().await;
    // Large enough to make room for others on the way, so that they meet.
    let keys = keys(&map, 0..60_000);
    world
        .claim(
            &mut client.clone(),
            &map,
            &keys[..10_000],
            OperationId::random(),
            0,
        )
        .await;
    let operation = OperationId::random();
    let claims = (1..9).map(|attempt| {
        let (world, map, keys, mut client) =
            (world.clone(), map.clone(), keys.clone(), client.clone());
        tokio::spawn(async move {
            world
                .claim(&mut client, &map, &keys, operation, attempt)
                .await
        })
    });
    let mut told = Vec::new();
    for claim in claims.collect::<Vec<_>>() {
        told.push(claim.await.unwrap());
    }
    assert!(told.iter().all(|answers| answers == &told[0]));
    // Each says that it may be a repeat, so what was there is unknown to all of them.
    assert_eq!(told[0].matches('F').count(), 50_000);
    assert_eq!(told[0].matches('U').count(), 10_000);
    assert_eq!(status(&mut client.clone()).await.keys, 60_000);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_claim_whose_caller_goes_away_is_remembered_as_far_as_it_got() {
    let (world, map, node, client) = one_node().await;
    let keys = keys(&map, 0..60_000);
    for wait_us in [0, 500, 1000, 2000, 4000, 8000] {
        let operation = OperationId::random();
        let mut gone = client.clone();
        let claim = world.claim_request(&map, &keys, operation, 0);
        let sent = tokio::spawn(async move { gone.claim(claim).await });
        tokio::time::sleep(Duration::from_micros(wait_us)).await;
        sent.abort();
        let answers = world
            .claim(&mut client.clone(), &map, &keys, operation, 1)
            .await;
        // Each key is this operation's, or in doubt; none is told to be somebody else's, for there is nobody else.
        assert!(!answers.contains('D'), "after {wait_us} us");
        world.clock.advance(Duration::from_secs(61));
    }
    node.stop().await;
}

#[tokio::test]
async fn a_first_sending_under_an_id_that_was_used_is_refused_as_a_whole() {
    let (world, map, _node, mut client) = one_node().await;
    let operation = OperationId::from_name("used");
    let keys = keys(&map, 0..400);
    let answers = world.claim(&mut client, &map, &keys[..200], operation, 0);
    assert_eq!(answers.await, all('F', 200));
    for again in [&keys[..200], &keys[100..]] {
        let request = world.claim_request(&map, again, operation, 0);
        let refused = client.claim(request).await.unwrap_err();
        assert_eq!(error_code(&refused), Some(ErrorCode::OperationIdUsed));
        assert!(refused.message().contains("was used before"), "{refused}");
    }
    let present = world.get(&mut client, &map, &keys).await;
    assert_eq!(present.iter().filter(|is_there| **is_there).count(), 200);
    let answers = world.claim(&mut client, &map, &keys[..200], operation, 1);
    assert_eq!(answers.await, all('F', 200));
}
