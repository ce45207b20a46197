//! Every call of the operator over real sockets, before a cluster of real nodes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../../client/tests/support/cluster.rs"]
#[allow(dead_code, unreachable_pub, reason = "a part of it is used")]
mod cluster;
mod support;

use hyper::{Method, StatusCode};
use keydb_core::Phase;
use keydb_operator::{BODY_BYTES_MAX, KEYS_MAX};
use serde_json::json;
use support::{World, spare};

const BAD: u16 = 400;

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_put_claimed_and_found() {
    let world = World::start(2).await;
    let body = json!({"keys": ["a", "b,c"], "ttl": "1h"});
    let put = world.post("/put", body).await;
    assert_eq!(put.ok(), &json!({"success": true}));
    let got = world.get("/get?keys=a,b%2Cc,d&keys=a").await;
    assert_eq!(got.ok()["exists"], json!([true, true, false, true]));
    let body = json!({"keys": ["a", "x", "x"], "ttlSeconds": 60});
    let claimed = world.post("/claim", body).await;
    let claims = json!(["duplicate", "first", "duplicate"]);
    assert_eq!(claimed.ok()["claims"], claims);

    let elsewhere = json!({"keys": ["a"], "ttl": "1h", "namespace": "orders"});
    let claimed = world.post("/claim", elsewhere).await;
    assert_eq!(claimed.ok()["claims"], json!(["first"]));
    let got = world.get("/get?keys=a&keys=x&namespace=orders").await;
    assert_eq!(got.ok()["exists"], json!([true, false]));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_under_an_idempotency_key_is_answered_the_same_again() {
    let world = World::start(2).await;
    let body = json!({"keys": ["a", "b", "c"], "ttl": "1h"});
    let put = world.post("/put", json!({"keys": ["b"], "ttl": "1h"}));
    put.await.ok();
    for _ in 0..3 {
        let claimed = world.claim_as("order-17", &body).await;
        let claims = json!(["first", "duplicate", "first"]);
        assert_eq!(claimed.ok()["claims"], claims);
    }
    let other = world.claim_as("order-18", &body).await;
    let claims = json!(["duplicate", "duplicate", "duplicate"]);
    assert_eq!(other.ok()["claims"], claims);
    let empty = world.claim_as("", &body).await;
    empty.refused(BAD, &["Idempotency-Key"]);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_call_gets_wrong_is_named() {
    let world = World::start(1).await;
    let own = world.addresses();
    let keys = json!(["a"]);
    for (path, body, words) in [
        ("/put", json!({"keys": keys}), vec!["ttl: is missing"]),
        (
            "/put",
            json!({"keys": keys, "ttl": "30"}),
            vec!["ttl", "\"30\"", "30d"],
        ),
        (
            "/put",
            json!({"keys": keys, "ttl": 30}),
            vec!["ttl", "30", "ttlSeconds"],
        ),
        (
            "/put",
            json!({"keys": keys, "ttlSeconds": 0}),
            vec!["ttlSeconds", "0", "1s"],
        ),
        (
            "/put",
            json!({"keys": keys, "ttlSeconds": -1}),
            vec!["ttlSeconds", "-1"],
        ),
        (
            "/put",
            json!({"keys": keys, "ttl": "1h", "ttlSeconds": 1}),
            vec!["both"],
        ),
        (
            "/put",
            json!({"keys": [], "ttl": "1h"}),
            vec!["keys", "at least one"],
        ),
        (
            "/put",
            json!({"keys": ["a", ""], "ttl": "1h"}),
            vec!["key 1", "empty"],
        ),
        (
            "/put",
            json!({"keys": ["a", 5], "ttl": "1h"}),
            vec!["keys[1]", "5", "string"],
        ),
        (
            "/put",
            json!({"key": keys, "ttl": "1h"}),
            vec!["unknown field `key`", "`keys`"],
        ),
        (
            "/put",
            json!({"keys": keys, "ttl": "1h", "namespace": ""}),
            vec!["namespace"],
        ),
        ("/put", keys.clone(), vec!["not a JSON object"]),
        (
            "/claim",
            json!({"keys": keys, "ttl": "51y"}),
            vec!["ttl", "50 years"],
        ),
        (
            "/createSnapshots",
            json!({"full": "yes"}),
            vec!["full", "yes", "boolean"],
        ),
        (
            "/scale",
            json!({}),
            vec!["addresses: is missing", "host:port"],
        ),
        ("/scale", json!({"addresses": []}), vec!["empty"]),
        (
            "/scale",
            json!({"addresses": "a:1"}),
            vec!["addresses", "sequence"],
        ),
        (
            "/scale",
            json!({"addresses": ["nobody"]}),
            vec!["nobody", "host:port"],
        ),
        (
            "/scale",
            json!({"addresses": [own[0], own[0]]}),
            vec![&own[0], "twice"],
        ),
        (
            "/autoScale",
            json!({"oldNodesAddresses": own}),
            vec!["oldNodesAddresses", "both"],
        ),
        (
            "/autoScale",
            json!({"addresses": own, "wait": "no"}),
            vec!["wait", "boolean"],
        ),
        (
            "/scaleComplete",
            json!({"operationID": "17"}),
            vec!["operationID", "32"],
        ),
        (
            "/abort",
            json!({"operation": 1}),
            vec!["`operation`", "`operationID`"],
        ),
        (
            "/hashRangeMovements",
            json!({}),
            vec!["addresses: is missing"],
        ),
    ] {
        world.post(path, body).await.refused(BAD, &words);
    }
    for (path, words) in [
        ("/get", vec!["keys", "at least one"]),
        ("/get?keys=", vec!["key 0", "empty"]),
        ("/get?key=a", vec!["key", "no such parameter", "keys"]),
        (
            "/get?keys=a&namespace=x&namespace=y",
            vec!["namespace", "twice"],
        ),
        ("/info?nodeID=x", vec!["nodeID", "\"x\""]),
        ("/hashRangeMovements", vec!["addresses: is missing"]),
    ] {
        world.get(path).await.refused(BAD, &words);
    }
    for (body, words) in [
        ("{\"keys\": [\"a\"", vec!["not JSON", "line 1"]),
        ("{} {}", vec!["not JSON"]),
    ] {
        let refused = world.send(Method::POST, "/put", body).await;
        refused.refused(BAD, &words);
    }
    let keys = vec!["a"; KEYS_MAX + 1];
    let many = world.post("/put", json!({"keys": keys, "ttl": "1h"}));
    many.await.refused(413, &["keys", &KEYS_MAX.to_string()]);
    let large = " ".repeat(BODY_BYTES_MAX + 1);
    let large = world.send(Method::POST, "/put", &large).await;
    large.refused(413, &[&BODY_BYTES_MAX.to_string()]);
    let nobody = world.get("/info?nodeID=7").await;
    nobody.refused(404, &["node 7", "0"]);
    let nowhere = world.get("/nowhere").await;
    nowhere.refused(404, &["/nowhere", "/autoScale"]);
    let wrong = world.get("/scale").await;
    wrong.refused(405, &["/scale", "GET"]);
    assert_eq!(wrong.headers["allow"], "POST");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_say_what_they_hold_and_a_cluster_in_memory_has_no_snapshots() {
    let mut world = World::start(2).await;
    let body = json!({"keys": ["a", "b", "c"], "ttl": "1h"});
    world.post("/put", body).await.ok();
    let info = world.get("/info").await;
    let nodes = info.ok()["nodes"].as_array().unwrap();
    let keys = nodes.iter().map(|node| node["keys"].as_u64().unwrap());
    assert_eq!((nodes.len(), keys.sum::<u64>()), (2, 3));
    assert_eq!(info.ok()["hashRanges"], 128);
    let one = world.get("/info?nodeID=1").await;
    assert_eq!(one.ok()["nodes"].as_array().unwrap().len(), 1);
    let node = &one.ok()["nodes"][0];
    assert_eq!(
        (&node["nodeID"], &node["reachable"]),
        (&json!(1), &json!(true))
    );
    assert_eq!(node["hashRanges"].as_array().unwrap().len(), 64);

    let refused = world.post("/createSnapshots", json!({"full": true}));
    refused.await.refused(409, &["node 0", "node 1", "memory"]);
    let refused = world.post("/loadSnapshots", json!({}));
    refused.await.refused(409, &["node 0", "node 1", "memory"]);
    world.cluster.stop(1).await;
    let one = world.get("/info?nodeID=1").await;
    assert_eq!(one.ok()["nodes"][0]["reachable"], false);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_scaled_up_to_the_plan_and_aborted() {
    let world = World::start(1).await;
    let spare = spare(&world, 1).await;
    let own = world.addresses();
    let both = [own[0].clone(), spare.address.clone()];
    let keys: Vec<String> = (0..100).map(|key| key.to_string()).collect();
    let put = world.post("/put", json!({"keys": keys, "ttl": "1h"}));
    put.await.ok();
    assert_eq!(world.get("/lastOperation").await.ok()["running"], false);

    let before = world.map().await;
    let path = format!("/hashRangeMovements?addresses={}", both.join(","));
    let preview = world.get(&path).await;
    let posted = world.post("/hashRangeMovements", json!({"addresses": both}));
    assert_eq!(preview.ok(), posted.await.ok());
    let preview = preview.ok();
    assert_eq!(
        (&preview["hashRanges"], &preview["changed"]),
        (&json!(64), &json!(true))
    );
    assert_eq!(preview["movements"].as_array().unwrap().len(), 64);
    let moved = preview["keys"].as_u64().unwrap();
    assert!(
        (20..80).contains(&moved) && preview["bytes"] == moved * 16,
        "{preview}"
    );
    assert!(preview["expectedSeconds"].as_f64().unwrap() > 0.0);
    assert_eq!(world.map().await, before, "a preview changes nothing");

    // The spare copies nothing.
    let plan = json!({"addresses": both, "wait": false});
    let scaled = world.post("/scale", plan).await;
    assert_eq!(scaled.status, StatusCode::ACCEPTED);
    let joins = json!([{"nodeID": 1, "address": spare.address}]);
    assert_eq!(scaled.body["joins"], joins);
    let id = scaled.body["operationID"].as_str().unwrap().to_owned();
    let map = world.map().await;
    let successors = map.ranges.iter().filter(|it| it.successor.is_some());
    assert_eq!(successors.count(), 64);
    assert_eq!(map.target.unwrap().operation_id.to_string(), id);

    let last = world.get("/lastOperation").await;
    let operation = &last.ok()["operation"];
    assert_eq!(
        (&operation["operationID"], &operation["phase"]),
        (&json!(id), &json!("copy"))
    );
    let ranges = json!({"total": 64, "moved": 0, "handingOver": 0, "waiting": 64});
    assert_eq!(operation["hashRanges"], ranges);
    let waits_for = operation["waitsFor"][0].as_str().unwrap();
    assert!(waits_for.starts_with("node 1 "), "{waits_for}");
    let again = world
        .post("/scale", json!({"addresses": both, "wait": false}))
        .await;
    assert_eq!(
        (again.status, &again.body["changed"]),
        (StatusCode::ACCEPTED, &json!(false))
    );
    assert_eq!(again.headers["location"], "/lastOperation");
    let other = world.post("/scale", json!({"addresses": own})).await;
    other.refused(409, &[&id, "abort"]);

    let unknown = json!({"operationID": "00000000000000000000000000000007"});
    for path in ["/scaleComplete", "/abort"] {
        world.post(path, unknown.clone()).await.refused(409, &[&id]);
    }
    let completed = world.post("/scaleComplete", json!({"wait": false})).await;
    assert_eq!(
        (completed.status, &completed.body["operationID"]),
        (StatusCode::ACCEPTED, &json!(id))
    );
    let phase = world.map().await.target.unwrap().phase;
    assert_eq!(phase, Phase::HandOver);

    let aborted = world.post("/abort", json!({"operationID": id})).await;
    assert_eq!(aborted.ok(), &json!({"success": true, "aborted": true}));
    let aborted = world.send(Method::POST, "/abort", "").await;
    assert_eq!(aborted.ok(), &json!({"success": true, "aborted": false}));
    let map = world.map().await;
    assert_eq!((map.target, map.nodes.len()), (None, 1));
    let nothing = world.post("/scaleComplete", json!({})).await;
    nothing.refused(409, &["no scaling operation"]);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scaling_in_one_call_checks_the_old_nodes_and_has_nothing_to_do_for_the_same_list() {
    let world = World::start(1).await;
    let spare = spare(&world, 1).await;
    let own = world.addresses();
    let both = [own[0].clone(), spare.address.clone()];
    let done = world.post("/autoScale", json!({"addresses": own})).await;
    assert_eq!(
        (&done.ok()["changed"], &done.ok()["operationID"]),
        (&json!(false), &json!(null))
    );
    let wrong = json!({"oldNodesAddresses": ["keydb-9:50051"], "newNodesAddresses": both});
    let refused = world.post("/autoScale", wrong).await;
    refused.refused(409, &["oldNodesAddresses", &own[0], "keydb-9:50051"]);
    assert!(world.map().await.target.is_none());

    let body = json!({"oldNodesAddresses": own, "newNodesAddresses": both, "wait": false});
    for changed in [true, false] {
        let begun = world.post("/autoScale", body.clone()).await;
        assert_eq!(
            (begun.status, &begun.body["changed"]),
            (StatusCode::ACCEPTED, &json!(changed))
        );
        assert_eq!(begun.headers["location"], "/lastOperation");
    }
    let target = world.map().await.target.unwrap();
    assert_eq!((target.phase, target.moves), (Phase::HandOver, Some(64)));
    world.post("/abort", json!({})).await.ok();
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_without_a_cluster_lives_is_not_ready_and_says_whom_it_asked() {
    let world = World::without_cluster().await;
    world.get("/live").await.text("live\n");
    for path in ["/ready", "/get?keys=a", "/lastOperation"] {
        world.get(path).await.refused(503, &["127.0.0.1:1"]);
    }
    let metrics = world.get("/metrics").await;
    assert!(
        metrics.text.contains("keydb_operator_ready 0"),
        "{}",
        metrics.text
    );
    world.stop().await;

    let world = World::start(1).await;
    world.get("/ready").await.text("ready\n");
    let metrics = world.get("/metrics").await;
    for line in [
        "keydb_operator_ready 1",
        "keydb_operator_map_epoch ",
        "keydb_operator_requests_total{path=\"/ready\",status=\"200\"}",
    ] {
        assert!(metrics.text.contains(line), "{line}: {}", metrics.text);
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_what_is_not_kept_is_refused() {
    let world = World::start(2).await;
    let dir = std::env::temp_dir();
    let to = format!("file://{}", dir.display());
    for (body, status, words) in [
        (json!({}), BAD, vec!["to: is missing", "s3://"]),
        (json!({"to": 5}), BAD, vec!["to", "5"]),
        (json!({"to": to, "name": ""}), BAD, vec!["name: is empty"]),
        (
            json!({"to": to, "nam": "x"}),
            BAD,
            vec!["unknown field `nam`"],
        ),
        (
            json!({"to": "nowhere"}),
            BAD,
            vec!["to: ", "\"nowhere\"", "s3://"],
        ),
        (json!({"to": to, "name": "a/b"}), BAD, vec!["name: ", "a/b"]),
        (json!({"to": to}), 409, vec!["durability is memory"]),
    ] {
        world.post("/backup", body).await.refused(status, &words);
    }
    world
        .send(Method::GET, "/backup", "")
        .await
        .refused(405, &["/backup"]);
    world.stop().await;
}
