//! What a node does with requests for keys, good and bad.

#![allow(clippy::unwrap_used, reason = "a test that fails here has failed")]

mod support;

use std::time::Duration;

use keydb_core::{Fingerprint, OperationId};
use keydb_node::Limits;
use keydb_proto::shard::{
    ErrorCode, GetMapRequest, GetReply, GetRequest, NodeStatusRequest, RefusalCode,
};
use support::*;
use tonic::{Response, Status};

#[tokio::test]
async fn a_key_is_there_once_it_was_put_until_its_ttl_is_over() {
    let (world, map, node, mut client) = one_node().await;
    let all = keys(&map, 0..100);
    assert_eq!(world.get(&mut client, &map, &all).await, [false; 100]);

    let put = world.put_request(&map, &all[..50], 10);
    let reply = client.put(put).await.unwrap().into_inner();
    assert_eq!(reply.refused, []);
    let expected: Vec<bool> = (0..100).map(|number| number < 50).collect();
    assert_eq!(world.get(&mut client, &map, &all).await, expected);

    world.clock.advance(Duration::from_millis(9_999));
    assert_eq!(world.get(&mut client, &map, &all).await, expected);
    world.clock.advance(Duration::from_millis(1));
    assert_eq!(world.get(&mut client, &map, &all).await, [false; 100]);
    node.stop().await;
}

#[tokio::test]
async fn a_put_never_shortens_a_life() {
    let (world, map, node, mut client) = one_node().await;
    let one = keys(&map, 0..1);
    client.put(world.put_request(&map, &one, 60)).await.unwrap();
    client.put(world.put_request(&map, &one, 1)).await.unwrap();
    world.clock.advance(Duration::from_secs(59));
    assert_eq!(world.get(&mut client, &map, &one).await, [true]);
    node.stop().await;
}

#[tokio::test]
async fn replies_carry_the_nodes_name_map_and_time() {
    let (world, map, node, mut client) = one_node().await;
    let reply = client.get(world.get_request(&map, &[])).await.unwrap();
    let header = reply.into_inner().header.unwrap();
    assert_eq!(header.node_id, 0);
    assert_eq!(
        header.incarnation,
        map.nodes[0].disk_id.unwrap().to_bytes().to_vec()
    );
    assert_eq!((header.lineage, header.epoch), map.version());
    assert_eq!(header.node_time_unix_ms, START.0);
    node.stop().await;
}

#[tokio::test]
async fn the_status_tells_what_the_node_holds() {
    let (world, map, node, mut client) = one_node().await;
    let all = keys(&map, 0..1000);
    let operation = OperationId::random();
    world.claim(&mut client, &map, &all, operation, 0).await;
    let status = status(&mut client).await;
    assert_eq!(status.cluster_id, map.cluster_id.to_bytes().to_vec());
    assert_eq!(status.durability, "memory");
    assert_eq!(status.started_unix_ms, START.0);
    assert_eq!(status.keys, 1000);
    assert!(status.key_bytes >= 16_000);
    assert!(cfg!(not(target_os = "linux")) || status.process_bytes > status.key_bytes);
    assert_eq!(status.answer_operations, 1);
    assert!(status.answer_bytes > 0);
    assert_eq!(status.requests_in_flight, 0);
    assert_eq!(status.ranges.len(), 8);
    assert_eq!(
        status.ranges.iter().map(|range| range.keys).sum::<u64>(),
        1000
    );
    assert!(status.ranges.iter().all(|range| range.generation == 1));
    node.stop().await;
}

#[tokio::test]
async fn the_map_is_given_to_those_who_have_an_older_one() {
    let (_world, map, node, mut client) = one_node().await;
    let mut ask = async |lineage, epoch| {
        let request = GetMapRequest {
            cluster_id: map.cluster_id.to_bytes().to_vec().into(),
            lineage,
            epoch,
        };
        client.get_map(request).await.unwrap().into_inner().map_json
    };
    assert_eq!(ask(0, 0).await, map.to_json());
    assert_eq!(ask(map.lineage, map.epoch - 1).await, map.to_json());
    assert!(ask(map.lineage, map.epoch).await.is_empty());
    node.stop().await;
}

#[tokio::test]
async fn expired_keys_are_reclaimed_an_hour_later() {
    let (world, map, node, mut client) = one_node().await;
    let all = keys(&map, 0..1000);
    client.put(world.put_request(&map, &all, 10)).await.unwrap();
    world.clock.advance(Duration::from_secs(3610));
    eventually(async || status(&mut client.clone()).await.keys == 0).await;
    node.stop().await;
}

/// Sends a get that was changed by `edit` and checks how it is refused, and that the node still serves.
async fn refused_get(edit: impl FnOnce(&mut GetRequest), code: ErrorCode, words: &[&str]) {
    let (world, map, node, mut client) = one_node().await;
    let mut request = world.get_request(&map, &keys(&map, 0..100));
    edit(&mut request);
    assert_refused(client.get(request).await, code, words);
    world.get(&mut client, &map, &keys(&map, 0..100)).await;
    node.stop().await;
}

#[tokio::test]
async fn a_request_without_a_header_is_refused() {
    refused_get(
        |request| request.header = None,
        ErrorCode::InvalidRequest,
        &["no header"],
    )
    .await;
}

#[tokio::test]
async fn a_request_for_another_cluster_is_refused_with_both_names() {
    refused_get(
        |request| request.header.as_mut().unwrap().cluster_id = vec![0xab; 16].into(),
        ErrorCode::WrongCluster,
        &["cluster abababababababababababababababab", "belongs to"],
    )
    .await;
    refused_get(
        |request| request.header.as_mut().unwrap().cluster_id = vec![1; 3].into(),
        ErrorCode::InvalidRequest,
        &["cluster_id has 3 bytes", "16"],
    )
    .await;
}

#[tokio::test]
async fn another_clusters_questions_about_map_and_status_are_refused() {
    let (_world, _map, node, mut client) = one_node().await;
    let cluster_id: bytes::Bytes = vec![0xab; 16].into();
    let get_map = GetMapRequest {
        cluster_id: cluster_id.clone(),
        ..GetMapRequest::default()
    };
    assert_refused(
        client.get_map(get_map).await,
        ErrorCode::WrongCluster,
        &["abab"],
    );
    assert_refused(
        client.node_status(NodeStatusRequest { cluster_id }).await,
        ErrorCode::WrongCluster,
        &["abab"],
    );
    node.stop().await;
}

#[tokio::test]
async fn a_request_for_another_node_is_refused() {
    refused_get(
        |request| request.header.as_mut().unwrap().target_node = 7,
        ErrorCode::WrongNode,
        &["for node 7", "this is node 0"],
    )
    .await;
}

#[tokio::test]
async fn a_request_without_an_end_or_past_it_is_refused() {
    refused_get(
        |request| request.header.as_mut().unwrap().not_after_unix_ms = 0,
        ErrorCode::InvalidRequest,
        &["not_after_unix_ms is 0"],
    )
    .await;
    refused_get(
        |request| request.header.as_mut().unwrap().not_after_unix_ms = START.0 - 1,
        ErrorCode::TooLate,
        &[
            "not_after_unix_ms 1699999999999",
            "1700000000000",
            "nothing was applied",
        ],
    )
    .await;
}

#[tokio::test]
async fn fingerprints_that_are_not_whole_are_refused() {
    refused_get(
        |request| request.fingerprints.truncate(1199),
        ErrorCode::InvalidRequest,
        &["fingerprints", "1199 bytes", "multiple of 12"],
    )
    .await;
}

#[tokio::test]
async fn key_counts_that_do_not_add_up_are_refused() {
    refused_get(
        |request| request.fingerprints.truncate(1188),
        ErrorCode::InvalidRequest,
        &["key_count add up to 100", "99 fingerprints"],
    )
    .await;
    refused_get(
        |request| {
            for range in &mut request.ranges {
                range.key_count = u32::MAX;
            }
        },
        ErrorCode::InvalidRequest,
        &["34359738360", "100 fingerprints"],
    )
    .await;
    refused_get(
        |request| {
            let moved = request.ranges[2].key_count;
            request.ranges[2].key_count = 0;
            request.ranges[1].key_count += moved;
        },
        ErrorCode::InvalidRequest,
        &["range 1"],
    )
    .await;
}

#[tokio::test]
async fn a_range_without_keys_is_refused() {
    refused_get(
        |request| {
            let mut none = request.ranges[7];
            none.key_count = 0;
            request.ranges.push(none);
        },
        ErrorCode::InvalidRequest,
        &["range 7", "key_count 0", "at least 1"],
    )
    .await;
}

#[tokio::test]
async fn a_fingerprint_outside_its_range_is_refused_with_its_place_and_bounds() {
    refused_get(
        |request| {
            let mut bytes = request.fingerprints.to_vec();
            let last = bytes.len() - 12;
            bytes[last..].fill(0x11);
            request.fingerprints = bytes.into();
        },
        ErrorCode::InvalidRequest,
        &[
            "111111111111111111111111",
            "index 99",
            "range 7",
            "e000000000000000",
            "ffffffffffffffff",
        ],
    )
    .await;
}

#[tokio::test]
async fn more_keys_than_the_limit_are_refused_with_the_limit() {
    let limits = Limits {
        request_keys_max: 99,
        ..Limits::default()
    };
    let (world, map, node, mut client) = one_node_within(limits).await;
    let all = keys(&map, 0..100);
    assert_refused(
        client.put(world.put_request(&map, &all, 60)).await,
        ErrorCode::InvalidRequest,
        &["100 keys", "request_keys_max is 99"],
    );
    assert_eq!(status(&mut client).await.keys, 0);
    assert_eq!(world.get(&mut client, &map, &all[1..]).await, [false; 99]);
    node.stop().await;
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_with_the_limit() {
    let limits = Limits {
        message_bytes_max: 10_000,
        ..Limits::default()
    };
    let (world, map, node, mut client) = one_node_within(limits).await;
    for count in [1000, 100_000] {
        let request = world.put_request(&map, &keys(&map, 0..count), 60);
        assert_refused(
            client.put(request).await,
            ErrorCode::InvalidRequest,
            &["message_bytes_max", "10000 bytes", "nothing was applied"],
        );
    }
    assert_eq!(status(&mut client).await.keys, 0);
    node.stop().await;
}

#[tokio::test]
async fn a_ttl_of_nothing_or_too_much_is_refused() {
    let (world, map, node, mut client) = one_node().await;
    let all = keys(&map, 0..10);
    for (ttl, words) in [
        (0, "TTL 0"),
        (1_576_800_001, "1576800001 s is too long"),
        (u32::MAX, "18250d"),
    ] {
        assert_refused(
            client.put(world.put_request(&map, &all, ttl)).await,
            ErrorCode::InvalidRequest,
            &["ttl_seconds", words],
        );
        let mut claim = world.claim_request(&map, &all, OperationId::random(), 0);
        claim.ttl_seconds = ttl;
        assert_refused(
            client.claim(claim).await,
            ErrorCode::InvalidRequest,
            &["ttl_seconds", words],
        );
    }
    assert_eq!(status(&mut client).await.keys, 0);
    let longest = world.put_request(&map, &all, 1_576_800_000);
    client.put(longest).await.unwrap();
    node.stop().await;
}

#[tokio::test]
async fn a_refused_request_applies_nothing_of_its_good_ranges() {
    let (world, map, node, mut client) = one_node().await;
    let all = keys(&map, 0..100);
    let mut put = world.put_request(&map, &all, 60);
    let mut bytes = put.fingerprints.to_vec();
    let last = bytes.len() - 12;
    bytes[last..].fill(0);
    put.fingerprints = bytes.into();
    assert_refused(
        client.put(put).await,
        ErrorCode::InvalidRequest,
        &["range 7"],
    );
    assert_eq!(world.get(&mut client, &map, &all).await, [false; 100]);
    node.stop().await;
}

#[tokio::test]
async fn ranges_of_others_are_refused_by_name_and_the_rest_is_answered() {
    let (world, map, node, mut client) =
        one_node_beside(&["elsewhere.example:50051"], config(0)).await;
    let all = keys(&map, 0..200);
    let owner_of = |key: &Fingerprint| map.ranges[map.range_index_of(key.top())].owner.0;
    let put = world.put_request(&map, &all, 60);
    let refused = client.put(put).await.unwrap().into_inner().refused;
    assert_eq!(refused.len(), 4);
    for refusal in &refused {
        assert_eq!(refusal.code(), RefusalCode::NotOwner);
        assert_eq!(refusal.owner_node, Some(1));
        assert_eq!(refusal.owner_address, "elsewhere.example:50051");
        assert_eq!(refusal.generation, 1);
        assert!(refusal.message.contains("elsewhere.example:50051"));
    }

    let get = world.get_request(&map, &all);
    let reply = client.get(get).await.unwrap().into_inner();
    assert_eq!(reply.refused.len(), 4);
    let order = group(&map, &all, 0).order;
    for (bit, index) in order.into_iter().enumerate() {
        let present = reply.present[bit / 8] >> (bit % 8) & 1 == 1;
        assert_eq!(present, owner_of(&all[index]) == 0);
    }
    node.stop().await;
}

#[tokio::test]
async fn a_range_under_another_generation_or_of_no_map_is_refused() {
    let (world, map, node, mut client) = one_node().await;
    let mut request = world.get_request(&map, &keys(&map, 0..100));
    request.ranges[3].generation = 9;
    request.ranges[4].range_id = 99;
    let refused = client.get(request).await.unwrap().into_inner().refused;
    assert_eq!(refused.len(), 2);
    assert_eq!(refused[0].range_id, 3);
    assert_eq!((refused[0].owner_node, refused[0].generation), (Some(0), 1));
    assert!(refused[0].message.contains("the request has generation 9"));
    assert_eq!((refused[1].range_id, refused[1].owner_node), (99, None));
    assert!(refused[1].message.contains("no range 99"));
    node.stop().await;
}

#[tokio::test]
async fn a_range_that_cannot_take_the_keys_says_so_and_the_others_are_answered() {
    let (world, map, node, mut client) = one_node().await;
    // No hash would ever bring about so many keys with the same top 64 bits.
    let close = (0..60_000).map(|low| Fingerprint::from_parts(5, low));
    let all: Vec<_> = close.chain(keys(&map, 0..100)).collect();
    let operation = OperationId::random();
    let claim = world.claim_request(&map, &all, operation, 0);
    let reply = client.claim(claim.clone()).await.unwrap().into_inner();
    assert_eq!(reply.refused.len(), 1);
    assert_eq!(reply.refused[0].code(), RefusalCode::Full);
    assert_eq!(reply.refused[0].range_id, 0);
    assert!(reply.refused[0].message.contains("part of which"));
    let firsts = answers(&map, &all, &reply);
    assert!(!firsts[..60_000].contains('F'));
    let in_range_0 = |key: &&Fingerprint| map.range_index_of(key.top()) == 0;
    let others = 100 - all[60_000..].iter().filter(in_range_0).count();
    assert_eq!(firsts.matches('F').count(), others);

    // What was stored in part is in doubt, however the request is repeated.
    let one = [Fingerprint::from_parts(5, 0)];
    for attempt in [1, 2] {
        let answer = world.claim(&mut client, &map, &one, operation, attempt);
        assert_eq!(answer.await, "U");
    }
    node.stop().await;
}

#[tokio::test]
async fn requests_over_the_limit_in_flight_are_refused_and_the_rest_answered() {
    let limits = Limits {
        requests_in_flight_max: 1,
        ..Limits::default()
    };
    let (world, map, node, client) = one_node_within(limits).await;
    let all = keys(&map, 0..60_000);
    let put = world.put_request(&map, &all, 60);
    // Large enough to make room for others on the way, so that they meet.
    let requests = (0..32).map(|_| {
        let (mut client, put) = (client.clone(), put.clone());
        tokio::spawn(async move { client.put(put).await })
    });
    let mut refused = 0;
    for request in requests.collect::<Vec<_>>() {
        match request.await.unwrap() {
            Ok(reply) => assert_eq!(reply.into_inner().refused, []),
            Err(status) => {
                refused += 1;
                let refusal: Result<Response<GetReply>, Status> = Err(status);
                assert_refused(
                    refusal,
                    ErrorCode::Overloaded,
                    &["requests_in_flight_max is 1", "nothing was applied"],
                );
            }
        }
    }
    assert!((1..32).contains(&refused), "{refused}");
    node.stop().await;
}
