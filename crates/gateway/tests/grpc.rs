//! `keydb.NodeService` over real sockets, before a cluster of real nodes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../../client/tests/support/cluster.rs"]
#[allow(dead_code, unreachable_pub, reason = "a part of it is used")]
mod cluster;
#[allow(dead_code, reason = "each test file uses a part of this")]
mod support;

use std::time::Duration;

use keydb_client::Claim;
use keydb_proto::text::{
    ClaimAnswer, ClaimRequest, GetNodeInfoRequest, GetRequest, PutRequest, ScaleCompleteRequest,
    ScaleRequest,
};
use support::World;
use tonic::Code;

fn names(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn any_key_is_taken_and_the_members_are_named() {
    let world = World::start(3).await;
    let mut grpc = world.grpc().await;
    let put = PutRequest {
        keys: names(&["a", "b"]),
        ttl_seconds: 60,
        namespace: String::new(),
    };
    let put = grpc.put(put).await.unwrap().into_inner();
    assert!(put.success);
    let members: Vec<String> = world
        .cluster
        .sockets
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!((put.cluster_size, &put.nodes_addresses), (3, &members));
    let get = GetRequest {
        keys: names(&["c", "a", "b"]),
        namespace: String::new(),
    };
    let got = grpc.get(get).await.unwrap().into_inner();
    assert_eq!(got.exists, [false, true, true]);
    assert_eq!(got.nodes_addresses, members);
    assert_eq!(got.error_code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_of_a_name_is_answered_the_same_again() {
    let world = World::start(2).await;
    let mut grpc = world.grpc().await;
    let mut claim = async |operation: &str, namespace: &str| {
        let request = ClaimRequest {
            keys: names(&["a", "b", "a"]),
            ttl_seconds: 60,
            operation: operation.to_owned(),
            is_repeat: false,
            namespace: namespace.to_owned(),
        };
        let reply = grpc.claim(request).await.unwrap().into_inner();
        reply.answers().collect::<Vec<_>>()
    };
    use ClaimAnswer::{Duplicate, First};
    assert_eq!(claim("one", "").await, [First, First, Duplicate]);
    assert_eq!(claim("one", "").await, [First, First, Duplicate]);
    assert_eq!(claim("two", "").await, [Duplicate; 3]);
    assert_eq!(claim("", "").await, [Duplicate; 3]);
    assert_eq!(claim("", "orders").await, [First, First, Duplicate]);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_agree_with_the_routing_client_for_100_000_keys() {
    let world = World::start(3).await;
    let mut grpc = world.grpc().await;
    let client = world.cluster.client().await;
    let keys: Vec<String> = (0..100_000_u64)
        .map(|key| format!("{:016x}", key.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
        .collect();
    let (ours, theirs) = keys.split_at(50_000);
    let ttl = "1h".parse().unwrap();
    assert!(
        client
            .claim(ours, ttl)
            .await
            .unwrap()
            .iter()
            .all(|it| *it == Claim::First)
    );
    for part in theirs.chunks(1000) {
        let request = PutRequest {
            keys: part.to_vec(),
            ttl_seconds: 3600,
            namespace: String::new(),
        };
        grpc.put(request).await.unwrap();
    }
    assert_eq!(client.get(&keys).await.unwrap(), vec![true; keys.len()]);
    let present = vec![true; 1000];
    for part in keys.chunks(1000) {
        let request = GetRequest {
            keys: part.to_vec(),
            namespace: String::new(),
        };
        assert_eq!(
            grpc.get(request).await.unwrap().into_inner().exists,
            present
        );
    }
    client.close(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_by_name_and_nothing_is_applied() {
    let world = World::start(1).await;
    let mut grpc = world.grpc().await;
    for (keys, ttl_seconds, words) in [
        (vec!["a"], 0, "ttl_seconds: 0"),
        (vec!["a"], -5, "ttl_seconds: -5"),
        (vec!["a"], i64::MAX, "ttl_seconds: 9223372036854775807"),
        (vec![], 60, "keys: there are none"),
        (vec!["a", ""], 60, "empty"),
        (vec!["a"; 65_537], 60, "65537"),
    ] {
        let request = PutRequest {
            keys: names(&keys),
            ttl_seconds,
            namespace: String::new(),
        };
        let refused = grpc.put(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        assert!(refused.message().contains(words), "{refused:?}");
    }
    let request = ClaimRequest {
        keys: names(&["a"]),
        ttl_seconds: 60,
        operation: "x".repeat(256),
        is_repeat: false,
        namespace: String::new(),
    };
    let refused = grpc.claim(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("operation"), "{refused:?}");
    let get = GetRequest {
        keys: names(&["a"]),
        namespace: String::new(),
    };
    assert_eq!(grpc.get(get).await.unwrap().into_inner().exists, [false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_tell_what_they_hold_and_others_are_not_found() {
    let world = World::start(2).await;
    let mut grpc = world.grpc().await;
    let mut info = async |node_id| grpc.get_node_info(GetNodeInfoRequest { node_id }).await;
    // A node that has just been started does not have its ranges yet.
    for attempt in 1.. {
        let mut ranges = 0;
        for node in 0..2 {
            let reply = info(node).await.unwrap().into_inner();
            assert_eq!((reply.node_id, reply.cluster_size), (node, 2));
            ranges += reply.hash_ranges.len();
        }
        if ranges == 128 {
            break;
        }
        assert!(attempt < 500, "{ranges} ranges");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let unknown = info(7).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert!(unknown.message().contains("node 7"), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn scaling_that_every_node_is_told_of_happens_once() {
    let world = World::start(3).await;
    let mut grpc = world.grpc().await;
    let all: Vec<String> = world
        .cluster
        .sockets
        .iter()
        .map(ToString::to_string)
        .collect();
    let request = || ScaleRequest {
        nodes_addresses: all[..2].to_vec(),
    };
    for _ in 0..3 {
        let scaled = grpc.scale(request()).await.unwrap().into_inner();
        assert!(scaled.success, "{scaled:?}");
        assert_eq!(scaled.new_cluster_size, 2);
    }
    for _ in 0..3 {
        let done = grpc.scale_complete(ScaleCompleteRequest {}).await.unwrap();
        assert!(done.into_inner().success);
    }
    let map = world.cluster.map_store().load().await.unwrap().unwrap();
    assert_eq!(map.nodes.len(), 2);
    let nonsense = ScaleRequest {
        nodes_addresses: names(&["127.0.0.1:1"]),
    };
    let refused = grpc.scale(nonsense).await.unwrap().into_inner();
    assert!(
        !refused.success && refused.error_message.contains("127.0.0.1:1"),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_cluster_calls_are_unavailable() {
    let world = World::not_found(1).await;
    let get = GetRequest {
        keys: names(&["a"]),
        namespace: String::new(),
    };
    let refused = world.grpc().await.get(get).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("cluster map"), "{refused:?}");
}
