//! `keydb init` and `keydb node` with settings from the environment.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::fs;

use rustix::process::Signal;
use support::{assert_code, assert_says, free_ports, keydb, node, stderr, stdout, wait_for_line};

/// The settings of a Go KeyDB user, for node 0 of three.
const GO_SETTINGS: [(&str, &str); 5] = [
    ("KEYDB_NODE_ID", "0"),
    ("KEYDB_CLUSTER_SIZE", "3"),
    (
        "KEYDB_NODE_ADDRESSES",
        r#"["localhost:50051","localhost:50052","localhost:50053"]"#,
    ),
    ("KEYDB_PORT", "50051"),
    ("KEYDB_TOTAL_HASH_RANGES", "128"),
];

#[test]
fn the_settings_of_a_go_keydb_user_pass_the_check_verbatim() {
    let output = keydb()
        .args(["node", "--check"])
        .envs(GO_SETTINGS)
        .output()
        .unwrap();
    assert_code(&output, 0);
    let text = stdout(&output);
    for expected in [
        "localhost:50051,localhost:50052,localhost:50053",
        "KEYDB_TOTAL_HASH_RANGES",
        "file:///",
        "keydb-data",
        "1m",
        "journal",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    assert_eq!(stderr(&output), "");
}

#[test]
fn three_nodes_with_the_settings_of_a_go_keydb_user_are_a_cluster() {
    let directory = tempfile::tempdir().unwrap();
    let ports = free_ports(3);
    let addresses = format!(
        r#"["localhost:{}","localhost:{}","localhost:{}"]"#,
        ports[0], ports[1], ports[2]
    );
    let settings = |id: usize| {
        let mut settings = GO_SETTINGS.map(|(name, value)| (name, value.to_owned()));
        settings[0].1 = id.to_string();
        settings[2].1.clone_from(&addresses);
        settings[3].1 = ports[id].to_string();
        settings
    };
    let init = || {
        keydb()
            .arg("init")
            .current_dir(directory.path())
            .envs(settings(0))
            .env("KEYDB_DURABILITY", "memory")
            .output()
            .unwrap()
    };
    let created = init();
    assert_code(&created, 0);
    assert!(
        stdout(&created).starts_with("created cluster "),
        "{}",
        stdout(&created)
    );
    assert!(stdout(&created).contains("durability memory: nothing is kept"));
    let again = init();
    assert_code(&again, 0);
    assert!(
        stdout(&again).contains("exists already"),
        "{}",
        stdout(&again)
    );

    let mut nodes: Vec<_> = (0..3)
        .map(|id| {
            let settings = settings(id);
            node(
                directory.path(),
                &settings
                    .each_ref()
                    .map(|(name, value)| (*name, value.as_str())),
            )
        })
        .collect();
    for node in &mut nodes {
        wait_for_line(node, "serving");
    }
    let claim = keydb()
        .args(["claim", "a", "b", "a"])
        .envs(settings(1))
        .output()
        .unwrap();
    assert_code(&claim, 0);
    assert_eq!(stdout(&claim), "first\ta\nfirst\tb\nduplicate\ta\n");

    // One node stops: status says which, and its exit code that something is wrong.
    nodes[2].signal(Signal::TERM);
    assert!(nodes[2].child.wait().unwrap().success());
    let status = keydb()
        .args(["status", "--timeout", "1s"])
        .envs(settings(1))
        .output()
        .unwrap();
    assert_code(&status, 3);
    let text = stdout(&status);
    assert!(
        text.contains("unreachable") && text.contains("node 2 did not answer"),
        "{text}"
    );
    // It comes back, empty: a stated loss.
    let settings_2 = settings(2);
    nodes[2] = node(
        directory.path(),
        &settings_2
            .each_ref()
            .map(|(name, value)| (*name, value.as_str())),
    );
    wait_for_line(&mut nodes[2], "serving");
    let status = keydb().arg("status").envs(settings(2)).output().unwrap();
    assert_code(&status, 0);
    assert!(
        stdout(&status).contains("node 2 lost its keys once, last at 20"),
        "{}",
        stdout(&status)
    );
}

#[test]
fn what_differs_from_the_map_is_warned_about_and_the_map_wins() {
    let directory = tempfile::tempdir().unwrap();
    let init = |addresses: &str, ranges: &str| {
        keydb()
            .arg("init")
            .current_dir(directory.path())
            .env("KEYDB_NODE_ADDRESSES", addresses)
            .env("KEYDB_TOTAL_HASH_RANGES", ranges)
            .output()
            .unwrap()
    };
    let port = free_ports(1)[0];
    assert_code(&init(&format!("127.0.0.1:{port}"), "16"), 0);
    let again = init("127.0.0.1:1,127.0.0.1:2", "32");
    assert_code(&again, 0);
    let warned = stderr(&again);
    assert!(
        warned.contains("KEYDB_NODE_ADDRESSES is 127.0.0.1:1,127.0.0.1:2")
            && warned.contains("KEYDB_TOTAL_HASH_RANGES is 32"),
        "{warned}"
    );
    assert!(stdout(&again).contains(&port.to_string()));
    let port_text = port.to_string();
    let mut node = node(
        directory.path(),
        &[
            ("KEYDB_NODE_ID", "keydb-0"),
            ("KEYDB_PORT", &port_text),
            ("KEYDB_TOTAL_HASH_RANGES", "32"),
        ],
    );
    let line = wait_for_line(&mut node, "the map wins");
    assert!(
        line.contains("KEYDB_TOTAL_HASH_RANGES is 32, but the cluster map has 16"),
        "{line}"
    );
}

#[test]
fn wrong_settings_end_with_code_two_before_anything_is_done() {
    let directory = tempfile::tempdir().unwrap();
    for (name, value, right) in [
        ("KEYDB_PORT", "99999", "1 to 65535"),
        (
            "KEYDB_PORT",
            "tcp://10.0.0.1:50051",
            "enableServiceLinks: false",
        ),
        ("KEYDB_STORAGE_URL", "s3://", "s3://bucket/prefix"),
        ("KEYDB_STORAGE_ENDPOINT", "minio:9000", "http://minio:9000"),
        ("KEYDB_DURABILITY", "disk", "journal, snapshot and memory"),
        ("KEYDB_DATA_DIR", "/", "/var/lib/keydb"),
        ("KEYDB_SNAPSHOT_INTERVAL", "10ms", "1s to 24h"),
        ("KEYDB_MEMORY_LIMIT", "8GB", "8GiB"),
        ("KEYDB_HTTP_PORT", "99999", "off switches HTTP off"),
        (
            "KEYDB_NODE_ADDRESES",
            "a:1",
            "did you mean KEYDB_NODE_ADDRESSES?",
        ),
        ("KEYDB_ZONE", "a", "no setting of this name"),
        ("KEYDB_NODE_ID", "one", "keydb-0"),
    ] {
        for command in [&["node"][..], &["node", "--check"], &["init"]] {
            let output = keydb()
                .args(command)
                .current_dir(directory.path())
                .env("KEYDB_NODE_ID", "0")
                .env("KEYDB_NODE_ADDRESSES", "127.0.0.1:50051")
                .env(name, value)
                .output()
                .unwrap();
            assert_code(&output, 2);
            let error = stderr(&output);
            assert!(
                error.contains(&format!("{name}={value}: ")) && error.contains(right),
                "{error}"
            );
        }
    }
    assert_code(&keydb().args(["node", "--check"]).output().unwrap(), 2);
    assert_code(&keydb().arg("init").output().unwrap(), 2);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_secret_in_a_setting_is_not_shown() {
    let output = keydb()
        .args(["node", "--check"])
        .env("KEYDB_NODE_ID", "0")
        .env("KEYDB_STORAGE_URL", "s3://key:secret@bucket")
        .output()
        .unwrap();
    assert_code(&output, 2);
    assert!(!stderr(&output).contains("secret"), "{}", stderr(&output));
    let shown = keydb()
        .args(["node", "--check"])
        .env("KEYDB_NODE_ID", "0")
        .env("KEYDB_STORAGE_BUCKET", "keydb")
        .env("KEYDB_STORAGE_ACCESSKEYID", "someone")
        .env("KEYDB_STORAGE_ACCESSKEY", "secret")
        .output()
        .unwrap();
    assert_code(&shown, 0);
    let text = stdout(&shown);
    assert!(text.contains("someone") && text.contains("(set)"), "{text}");
    assert!(!text.contains("secret"), "{text}");
}

#[test]
fn a_node_without_a_map_and_one_that_it_does_not_list_wait_and_say_so() {
    let directory = tempfile::tempdir().unwrap();
    let ports = free_ports(2);
    let (own, spare) = (ports[0].to_string(), ports[1].to_string());
    let mut waiting = node(
        directory.path(),
        &[("KEYDB_NODE_ID", "0"), ("KEYDB_PORT", &own)],
    );
    wait_for_line(&mut waiting, "keydb init");
    let init = keydb()
        .arg("init")
        .current_dir(directory.path())
        .env("KEYDB_NODE_ADDRESSES", format!("127.0.0.1:{own}"))
        .output()
        .unwrap();
    assert_code(&init, 0);
    wait_for_line(&mut waiting, "serving");
    let mut spare = node(
        directory.path(),
        &[("KEYDB_NODE_ID", "7"), ("KEYDB_PORT", &spare)],
    );
    let line = wait_for_line(&mut spare, "waiting");
    assert!(line.contains('7'), "{line}");
    assert!(spare.child.try_wait().unwrap().is_none(), "it waits");
    spare.signal(Signal::INT);
    assert!(spare.child.wait().unwrap().success());
}

#[test]
fn node_zero_creates_the_cluster_when_told_to_and_a_second_node_zero_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let ports = free_ports(2);
    let address = format!("127.0.0.1:{}", ports[0]);
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    let mut first = node(
        directory.path(),
        &[
            ("KEYDB_NODE_ID", "0"),
            ("KEYDB_INIT", "true"),
            ("KEYDB_NODE_ADDRESSES", &address),
            ("KEYDB_PORT", &ports[0]),
        ],
    );
    wait_for_line(&mut first, "serving");
    let another = |port: &str| {
        keydb()
            .arg("node")
            .current_dir(directory.path())
            .env("KEYDB_NODE_ID", "0")
            .env("KEYDB_DATA_DIR", "other-data")
            .env("KEYDB_HTTP_PORT", "off")
            .env("KEYDB_PORT", port)
            .output()
            .unwrap()
    };
    let words = ["node 0", "already running", &address];
    assert_says(&another(&ports[1]), 1, &words);
    let taken = another(&ports[0]);
    assert_says(&taken, 1, &[&format!("cannot listen on port {}", ports[0])]);
}
