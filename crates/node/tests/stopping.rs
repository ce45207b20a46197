//! How a node ends.

#![allow(clippy::unwrap_used, reason = "a test that fails here has failed")]

mod support;

use std::time::Duration;

use keydb_core::OperationId;
use keydb_node::{Limits, NodeConfig, NodeError};
use keydb_proto::{error_code, shard::ErrorCode};
use support::*;
use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_graceful_stop_answers_what_is_in_flight_and_refuses_the_rest_unapplied() {
    let (world, map, mut node, client) = one_node().await;
    let mut claims = JoinSet::new();
    for _ in 0..32 {
        let (world, map, mut client) = (world.clone(), map.clone(), client.clone());
        claims.spawn(async move {
            for number in 0_u32.. {
                let keys = keys(&map, number * 1000..(number + 1) * 1000);
                let operation = OperationId::random();
                let claim = world.claim_request(&map, &keys, operation, 0);
                match client.claim(claim).await {
                    Ok(reply) => assert_eq!(reply.into_inner().refused, []),
                    Err(status) => return status,
                }
            }
            unreachable!("the node stops before the numbers run out")
        });
    }
    eventually(async || status(&mut client.clone()).await.keys > 10_000).await;
    node.ask_to_stop();
    node.ended().await.unwrap();
    while let Some(status) = claims.join_next().await {
        let status = status.unwrap();
        // Refused by name, or the connection was closed before the request was sent.
        assert!(
            error_code(&status) == Some(ErrorCode::Stopping) || error_code(&status).is_none(),
            "{status:?}"
        );
    }
}

#[tokio::test]
async fn nothing_of_a_stopped_node_is_left_running() {
    let runtime = tokio::runtime::Handle::current().metrics();
    let before = runtime.num_alive_tasks();
    let (world, map, node, mut client) = one_node().await;
    world.get(&mut client, &map, &keys(&map, 0..10)).await;
    let address = node.address.clone();
    node.stop().await;
    drop(client);
    eventually(async || runtime.num_alive_tasks() == before).await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_connection_that_never_says_anything_does_not_hold_up_the_end() {
    let mut quick = config(0);
    quick.drain_deadline = Duration::from_millis(50);
    let (_world, _map, node, _client) = one_node_with(quick).await;
    let mut silent = TcpStream::connect(&node.address).await.unwrap();
    silent.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    let runtime = tokio::runtime::Handle::current().metrics();
    node.stop().await;
    drop(_client);
    eventually(async || runtime.num_alive_tasks() == 0).await;
}

#[tokio::test]
async fn settings_that_cannot_be_are_refused_before_anything_starts() {
    let world = World::new();
    let bad = NodeConfig {
        limits: Limits {
            requests_in_flight_max: 0,
            ..Limits::default()
        },
        ..config(0)
    };
    let error = world.start(bad, listen().await).ended().await.unwrap_err();
    assert!(matches!(error, NodeError::Setting { .. }));
    assert!(
        error
            .to_string()
            .contains("limits.requests_in_flight_max is 0")
    );
    let mut bad = config(0);
    bad.map_poll_interval = Duration::ZERO;
    let error = world.start(bad, listen().await).ended().await.unwrap_err();
    assert!(error.to_string().contains("map_poll_interval is 0"));
}
