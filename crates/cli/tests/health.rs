//! `keydb health` beside real nodes and operators, and beside others.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    io::{Read, Write},
    net::TcpListener,
    process::{Output, Stdio},
    thread,
};

use support::{Process, assert_code, assert_says, free_ports, keydb, node, stdout, wait_for_line};

/// What it says with these settings.
fn health(args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = keydb();
    command.arg("health").args(args).envs(env.iter().copied());
    command.stdin(Stdio::null()).output().unwrap()
}

#[test]
fn a_node_that_waits_for_its_cluster_is_live_and_neither_started_nor_ready_until_there_is_one() {
    let directory = tempfile::tempdir().unwrap();
    let ports = free_ports(2);
    let [port, http_port] = [ports[0].to_string(), ports[1].to_string()];
    let address = format!("localhost:{port}");
    let env = [
        ("KEYDB_NODE_ID", "keydb-0"),
        ("KEYDB_PORT", &*port),
        ("KEYDB_HTTP_PORT", &*http_port),
        ("KEYDB_NODE_ADDRESSES", &*address),
        ("KEYDB_DURABILITY", "memory"),
    ];
    let nobody = health(&[], &env);
    assert_says(&nobody, 3, &[&*http_port, "/ready gives no answer"]);

    // The directory has to be there before a cluster is in it.
    let mut waiting = node(directory.path(), &env);
    wait_for_line(&mut waiting, "listening");
    let live = health(&["--live"], &env);
    assert_code(&live, 0);
    assert_eq!(stdout(&live), "live\n");
    let startup = health(&["--startup"], &env);
    assert_says(&startup, 1, &["/startup answers 503: not started: "]);
    assert_says(&health(&[], &env), 1, &["/ready answers 503: not ready: "]);

    let init = keydb()
        .arg("init")
        .current_dir(directory.path())
        .envs(env)
        .output()
        .unwrap();
    assert_code(&init, 0);
    wait_for_line(&mut waiting, "serving");
    assert_code(&health(&["--startup"], &env), 0);
    let ready = health(&[], &env);
    assert_code(&ready, 0);
    assert_eq!(stdout(&ready), "ready\n");
    // Without the settings, and of a node elsewhere.
    let url = format!("http://localhost:{http_port}");
    assert_code(&health(&["--url", &url], &[]), 0);
    let url = format!("http://localhost:{http_port}/nowhere");
    assert_says(&health(&["--url", &url], &[]), 1, &["answers 404"]);
}

#[test]
fn an_operator_is_asked_at_its_own_port() {
    let ports = free_ports(2);
    let operator_port = ports[0].to_string();
    let nobody = format!("127.0.0.1:{}", ports[1]);
    let env = [
        ("KEYDB_OPERATOR_PORT", &*operator_port),
        ("KEYDB_NODE_ADDRESSES", &*nobody),
    ];
    let mut operator = Process::start(
        keydb()
            .arg("operator")
            .envs(env)
            .stdin(Stdio::null())
            .stderr(Stdio::piped()),
    );
    wait_for_line(&mut operator, "the operator listens");
    assert_code(&health(&["--operator", "--live"], &env), 0);
    let unready = health(&["--operator"], &env);
    assert_says(
        &unready,
        1,
        &["answers 503", "no node has answered", &nobody],
    );
}

#[test]
fn what_cannot_be_asked_is_wrong_usage() {
    let off = health(&[], &[("KEYDB_HTTP_PORT", "off")]);
    assert_says(&off, 2, &["KEYDB_HTTP_PORT is off"]);
    let mistyped = health(&[], &[("KEYDB_HTTP_PROT", "50080")]);
    assert_says(&mistyped, 2, &["did you mean KEYDB_HTTP_PORT?"]);
    let mistyped = health(&["--operator"], &[("KEYDB_OPERATOR_PORT", "http")]);
    assert_says(&mistyped, 2, &["KEYDB_OPERATOR_PORT=http"]);
    assert_code(&health(&["--operator", "--startup"], &[]), 2);
    assert_code(&health(&["--url", "ftp://localhost:1/ready"], &[]), 2);
}

/// A server that takes one connection, reads the request and then does as it is told.
fn server(
    answer: impl FnOnce(&mut std::net::TcpStream) + Send + 'static,
) -> (String, thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/ready", listener.local_addr().unwrap());
    let serving = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
            request.push(byte[0]);
        }
        answer(&mut stream);
        String::from_utf8(request).unwrap()
    });
    (url, serving)
}

#[test]
fn an_answer_that_does_not_end_in_time_is_none() {
    // Each byte comes before a limit on single reads would be over; all of them come after one on the whole.
    let (url, serving) = server(|stream| {
        for _ in 0..150 {
            if stream.write_all(b"H").is_err() {
                break;
            }
            thread::sleep(std::time::Duration::from_millis(20));
        }
    });
    let slow = health(&["--url", &url, "--timeout", "300ms"], &[]);
    assert_says(&slow, 3, &["gives no answer: timed out"]);
    let request = serving.join().unwrap();
    assert!(request.starts_with("GET /ready HTTP/1.0\r\n"), "{request}");
}

#[test]
fn what_is_no_http_is_no_answer() {
    let (url, serving) = server(|stream| stream.write_all(b"SSH-2.0-x\r\n").unwrap());
    assert_says(&health(&["--url", &url], &[]), 3, &["is not HTTP"]);
    serving.join().unwrap();
}
