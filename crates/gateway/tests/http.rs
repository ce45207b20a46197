//! `/v1` over real sockets, before a cluster of real nodes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../../client/tests/support/cluster.rs"]
#[allow(dead_code, unreachable_pub, reason = "a part of it is used")]
mod cluster;
#[allow(dead_code, reason = "each test file uses a part of this")]
mod support;

use keydb_gateway::{BODY_BYTES_MAX, KEYS_MAX};
use serde_json::{Value, json};
use support::World;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_put_claimed_and_found_in_their_order() {
    let world = World::start(3).await;
    let put = world.post("/v1/put", json!({"keys": ["a", "b"], "ttl": "1h"}));
    assert_eq!(put.await.json(), json!({"stored": 2}));
    let got = world.post("/v1/get", json!({"keys": ["c", "a", "b", "a"]}));
    let present = json!({"present": [false, true, true, true]});
    assert_eq!(got.await.json(), present);
    let body = json!({"keys": ["x", "a", "x"], "ttlSeconds": 60});
    let claims = json!({"claims": ["first", "duplicate", "duplicate"]});
    assert_eq!(world.post("/v1/claim", body).await.json(), claims);

    let elsewhere = json!({"keys": ["a"], "ttl": "1h", "namespace": "orders"});
    let claims = json!({"claims": ["first"]});
    assert_eq!(world.post("/v1/claim", elsewhere).await.json(), claims);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_any_bytes_come_as_base64_and_are_the_same_keys() {
    let world = World::start(1).await;
    let body = json!({"keys": ["AP8=", "YQ=="], "encoding": "base64", "ttl": "1h"});
    let claims = json!({"claims": ["first", "first"]});
    assert_eq!(world.post("/v1/claim", body).await.json(), claims);
    let client = world.cluster.client().await;
    let keys: [&[u8]; 2] = [&[0, 255], b"a"];
    assert_eq!(client.get(keys).await.unwrap(), [true, true]);
    let wrong = json!({"keys": ["AP8"], "encoding": "base64"});
    let wrong = world.post("/v1/get", wrong).await;
    wrong.refused(400, &["AP8", "not base64"]);
    client.close(std::time::Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_under_an_idempotency_key_is_answered_the_same_again() {
    let world = World::start(2).await;
    let body = json!({"keys": ["a", "b"], "ttl": "1h"}).to_string();
    for _ in 0..3 {
        let key = [("idempotency-key", "order-17")];
        let claimed = world.send("/v1/claim", &key, body.clone()).await;
        assert_eq!(claimed.json(), json!({"claims": ["first", "first"]}));
    }
    let other = [("idempotency-key", "order-18")];
    let claimed = world.send("/v1/claim", &other, body.clone()).await;
    let claims = json!({"claims": ["duplicate", "duplicate"]});
    assert_eq!(claimed.json(), claims);
    let put = world.send("/v1/put", &other, body).await;
    put.refused(400, &["Idempotency-Key", "claims"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_that_nobody_remembers_is_unknown_and_not_a_duplicate() {
    let world = World::start(1).await;
    // What an earlier sending has stored, whose answer was lost and is forgotten.
    let client = world.cluster.client().await;
    client.put(["a"], "1h".parse().unwrap()).await.unwrap();
    client.close(std::time::Duration::ZERO).await;
    let body = json!({"keys": ["a", "b"], "ttl": "1h"}).to_string();
    let repeat = [("idempotency-key", "order-17"), ("keydb-repeat", "true")];
    let claimed = world.send("/v1/claim", &repeat, body.clone()).await;
    assert_eq!(claimed.json(), json!({"claims": ["unknown", "first"]}));
    let nameless = world.send("/v1/claim", &repeat[1..], body.clone()).await;
    nameless.refused(400, &["Keydb-Repeat", "Idempotency-Key"]);
    let wrong = [("idempotency-key", "x"), ("keydb-repeat", "yes")];
    let wrong = world.send("/v1/claim", &wrong, body).await;
    wrong.refused(400, &["yes", "true"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_another_one_in_each_namespace() {
    let world = World::start(1).await;
    let key = [("idempotency-key", "1")];
    for namespace in ["orders", "customers"] {
        let body = json!({"keys": ["a"], "ttl": "1h", "namespace": namespace});
        let name = [("idempotency-key", namespace)];
        world.send("/v1/claim", &name, body.to_string()).await;
        let claimed = world.send("/v1/claim", &key, body.to_string()).await;
        assert_eq!(claimed.json(), json!({"claims": ["duplicate"]}));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_off_is_not_applied_and_its_repeat_is_first() {
    let world = World::start(2).await;
    let keys: String = (0..5000).map(|key| format!("\"{key}\"\n")).collect();
    let cut = keys.len() - 100;
    let head = format!(
        "POST /v1/claim?ttl=1h HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\nidempotency-key: cut\r\ncontent-length: {}\r\n\r\n",
        keys.len()
    );
    let mut stream = TcpStream::connect(&world.http).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&keys.as_bytes()[..cut]).await.unwrap();
    // The first batch has been answered.
    let mut answer = [0; 1];
    stream.read_exact(&mut answer).await.unwrap();
    drop(stream);
    let headers = [
        ("content-type", "application/x-ndjson"),
        ("idempotency-key", "cut"),
    ];
    let claimed = world.send("/v1/claim?ttl=1h", &headers, keys).await;
    assert_eq!(claimed.lines(), vec![json!({"claim": "first"}); 5000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_are_answered_while_more_may_come() {
    let world = World::start(1).await;
    let mut stream = TcpStream::connect(&world.http).await.unwrap();
    let head = "POST /v1/get HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\ncontent-length: 100\r\n\r\n\"a\"\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains("{\"present\":false}") {
        assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0);
    }
    // And it is told when the server stops.
    world.gateway.drain(std::time::Duration::from_secs(5)).await;
    while !String::from_utf8_lossy(&answer).contains("stopping") {
        assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0);
    }
    let refused = world.post("/v1/get", json!({"keys": ["a"]})).await;
    refused.refused(503, &["stopping"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_described_by_openapi() {
    let world = World::start(1).await;
    let document = world.fetch("/openapi.json").await.json();
    assert_eq!(document["openapi"], "3.1.0");
    let paths: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
    assert_eq!(paths, ["/v1/claim", "/v1/get", "/v1/put"]);
    let call = &document["components"]["schemas"]["KeysCall"];
    assert_eq!(call["properties"]["keys"]["maxItems"], KEYS_MAX);
    assert_eq!(call["additionalProperties"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_by_name_and_nothing_is_applied() {
    let world = World::start(1).await;
    let a = || json!(["a"]);
    let wrong: [(&str, Value, &[&str]); 12] = [
        ("put", json!({"keys": a()}), &["ttl", "missing"]),
        ("put", json!({"keys": a(), "ttl": "0s"}), &["ttl", "TTL 0"]),
        (
            "put",
            json!({"keys": a(), "ttl": 5}),
            &["ttl", "ttlSeconds"],
        ),
        (
            "claim",
            json!({"keys": [], "ttl": "1h"}),
            &["keys", "at least one"],
        ),
        ("claim", json!({"keys": ["a", ""], "ttl": "1h"}), &["empty"]),
        (
            "claim",
            json!({"keys": ["a", 7], "ttl": "1h"}),
            &["keys[1]", "string"],
        ),
        (
            "get",
            json!({"keys": a(), "ttl": "1h"}),
            &["ttl", "leave it out"],
        ),
        (
            "get",
            json!({"keys": a(), "ttlSeconds": 1}),
            &["ttlSeconds"],
        ),
        ("get", json!({"keys": a(), "namespace": ""}), &["namespace"]),
        (
            "get",
            json!({"keys": a(), "encoding": "hex"}),
            &["encoding", "hex", "base64"],
        ),
        ("get", json!({"key": "a"}), &["key", "keys"]),
        ("get", json!(["a"]), &["JSON object"]),
    ];
    for (verb, body, words) in wrong {
        let refused = world.post(&format!("/v1/{verb}"), body).await;
        refused.refused(400, words);
    }
    let kind = [("content-type", "text/csv")];
    let refused = world.send("/v1/get", &kind, "a".to_owned()).await;
    refused.refused(415, &["text/csv", "application/json"]);
    let both = world
        .post("/v1/get?namespace=a", json!({"keys": ["a"]}))
        .await;
    both.refused(400, &["query", "x-ndjson"]);
    let form = [
        ("content-type", "application/x-www-form-urlencoded"),
        ("origin", "https://example.com"),
    ];
    let refused = world.send("/v1/get", &form, "{}".to_owned()).await;
    refused.refused(415, &["application/json"]);
    let keys: Vec<String> = (0..=KEYS_MAX).map(|key| key.to_string()).collect();
    let refused = world.post("/v1/get", json!({"keys": keys})).await;
    refused.refused(413, &["65537", "65536"]);
    let huge = json!({"keys": ["a".repeat(BODY_BYTES_MAX)]});
    world.post("/v1/get", huge).await.refused(413, &["8388608"]);
    let got = world.post("/v1/get", json!({"keys": ["a"]})).await;
    assert_eq!(got.json(), json!({"present": [false]}));
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_are_answered_line_by_line_however_many() {
    let world = World::start(3).await;
    let keys: String = (0..10_000).map(|key| format!("\"key {key}\"\n")).collect();
    let claimed = world.post_lines("/v1/claim?ttl=1h", &keys).await;
    assert_eq!(claimed.kind, "application/x-ndjson");
    let first = vec![json!({"claim": "first"}); 10_000];
    assert_eq!(claimed.lines(), first);
    // The last line may have no end.
    let got = world
        .post_lines("/v1/get", "\"key 9999\"\n\"key 10000\"")
        .await;
    let present = [json!({"present": true}), json!({"present": false})];
    assert_eq!(got.lines(), present);
    let put = world
        .post_lines("/v1/put?ttlSeconds=60&encoding=base64", "\"AP8=\"\n")
        .await;
    assert_eq!(put.lines(), [json!({"stored": true})]);
    assert!(world.post_lines("/v1/get", "").await.lines().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_under_an_idempotency_key_are_answered_the_same_again() {
    let world = World::start(2).await;
    let keys: String = (0..9000).map(|key| format!("\"{key}\"\n")).collect();
    let headers = [
        ("content-type", "application/x-ndjson"),
        ("idempotency-key", "file 1"),
    ];
    for _ in 0..2 {
        let claimed = world.send("/v1/claim?ttl=1h", &headers, keys.clone()).await;
        assert_eq!(claimed.lines(), vec![json!({"claim": "first"}); 9000]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_no_key_ends_the_answer_and_is_named() {
    let world = World::start(1).await;
    for (line, words) in [
        ("b", "not a key as a JSON string"),
        ("{\"key\":\"b\"}", "not a key as a JSON string"),
        ("\"\"", "empty"),
    ] {
        let lines = format!("\"a\"\n{line}\n\"c\"\n");
        let answer = world.post_lines("/v1/put?ttl=1h", &lines).await;
        let answer = answer.lines();
        // Nothing of its batch is applied.
        assert_eq!(answer.len(), 1, "{answer:?}");
        let detail = answer[0]["error"]["detail"].as_str().unwrap();
        assert!(
            detail.contains("line 2") && detail.contains(words),
            "{detail}"
        );
    }
    let got = world.post("/v1/get", json!({"keys": ["a", "c"]})).await;
    assert_eq!(got.json(), json!({"present": [false, false]}));
    let refused = world.post_lines("/v1/put?tll=1h", "\"a\"\n").await;
    refused.refused(400, &["tll", "ttlSeconds"]);
    let refused = world.post_lines("/v1/put?ttl=1h&ttl=2h", "\"a\"\n").await;
    refused.refused(400, &["ttl", "twice"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_cluster_calls_are_refused_until_it_is_found() {
    let world = World::not_found(1).await;
    let call = async || world.post("/v1/get", json!({"keys": ["a"]})).await;
    call().await.refused(503, &["cluster map"]);
    world.gateway.find().await.unwrap();
    assert_eq!(call().await.json(), json!({"present": [false]}));
    world.gateway.close().await;
    call().await.refused(503, &["closed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_and_answers_are_counted_by_door_and_outcome_and_keys_by_where_they_go() {
    let world = World::start(2).await;
    let keys: Vec<String> = (0..10).map(|key| format!("key-{key}")).collect();
    let claim = json!({"keys": keys, "ttl": "1h"});
    for _ in 0..2 {
        assert_eq!(world.post("/v1/claim", claim.clone()).await.status, 200);
    }
    world
        .post("/v1/claim", json!({"keys": []}))
        .await
        .refused(400, &["keys"]);
    let get = json!({"keys": ["key-1", "other"]});
    assert_eq!(world.post("/v1/get", get).await.status, 200);
    let lines = world.post_lines("/v1/put?ttl=1h", "\"a\"\n\"b\"\n").await;
    assert_eq!(lines.lines().len(), 2);
    world
        .post_lines("/v1/get?ttl=1h", "\"a\"\n")
        .await
        .refused(400, &["ttl"]);
    let mut grpc = world.grpc().await;
    let request = keydb_proto::text::GetRequest {
        keys: vec!["a".to_owned()],
        ..Default::default()
    };
    grpc.get(request).await.unwrap();
    grpc.get(keydb_proto::text::GetRequest::default())
        .await
        .unwrap_err();

    let mut text = keydb_core::metrics::MetricsText::default();
    world.gateway.write_metrics(&mut text);
    let text = text.into_text();
    let not_zero: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("_total") && !line.starts_with('#') && !line.ends_with(" 0"))
        .collect();
    assert_eq!(
        not_zero,
        [
            "keydb_text_calls_total{protocol=\"grpc\",operation=\"get\",outcome=\"ok\"} 1",
            "keydb_text_calls_total{protocol=\"grpc\",operation=\"get\",outcome=\"client_error\"} 1",
            "keydb_text_calls_total{protocol=\"http\",operation=\"get\",outcome=\"ok\"} 1",
            "keydb_text_calls_total{protocol=\"http\",operation=\"claim\",outcome=\"ok\"} 2",
            "keydb_text_calls_total{protocol=\"http\",operation=\"claim\",outcome=\"client_error\"} 1",
            "keydb_text_calls_total{protocol=\"ndjson\",operation=\"get\",outcome=\"client_error\"} 1",
            "keydb_text_calls_total{protocol=\"ndjson\",operation=\"put\",outcome=\"ok\"} 1",
            "keydb_text_answers_total{operation=\"get\",answer=\"present\"} 2",
            "keydb_text_answers_total{operation=\"get\",answer=\"absent\"} 1",
            "keydb_text_answers_total{operation=\"put\",answer=\"stored\"} 2",
            "keydb_text_answers_total{operation=\"claim\",answer=\"first\"} 10",
            "keydb_text_answers_total{operation=\"claim\",answer=\"duplicate\"} 10",
            "keydb_forwarded_keys_total{to=\"other\"} 25",
        ]
    );
    let count = "keydb_text_call_duration_seconds_count{protocol=\"http\",operation=\"claim\"} 3\n";
    assert!(text.contains(count), "{text}");
}
