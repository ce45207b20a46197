//! `keydb put`, `get`, `claim` and `status` against a cluster of this machine.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read, Write},
    os::unix::ffi::OsStrExt,
    process::{ChildStdout, Stdio},
};

use rustix::process::Signal;
use support::{Dev, Process, assert_code, assert_says, piped, run, stderr, stdout, with_input};

#[test]
fn keys_as_arguments_are_answered_in_order() {
    let dev = Dev::start();
    assert_eq!(
        dev.answer(["claim", "--ttl", "10m", "alice", "bob", "alice"]),
        "first\talice\nfirst\tbob\nduplicate\talice\n"
    );
    assert_eq!(dev.answer(["put", "carol"]), "stored\tcarol\n");
    assert_eq!(
        dev.answer(["get", "carol", "alice", "dave"]),
        "present\tcarol\npresent\talice\nabsent\tdave\n"
    );
    assert_eq!(
        dev.answer(["claim", "--json", "alice", "eve"]),
        "{\"key\":\"alice\",\"answer\":\"duplicate\"}\n{\"key\":\"eve\",\"answer\":\"first\"}\n"
    );
}

#[test]
fn any_bytes_can_be_a_key_on_standard_input() {
    let dev = Dev::start();
    let claimed = with_input(&mut dev.client(["claim", "-0"]), b"a\nb\0\xff\xfe\0last");
    assert_code(&claimed, 0);
    assert_eq!(
        claimed.stdout,
        b"first\ta\nb\0first\t\xff\xfe\0first\tlast\0"
    );
    let got = with_input(&mut dev.client(["get"]), b"\xff\xfe\nlast\r\nlast");
    assert_eq!(
        got.stdout, b"present\t\xff\xfe\nabsent\tlast\r\npresent\tlast\n",
        "a carriage return belongs to the key"
    );
    let argument = dev
        .client([OsStr::new("get"), OsStr::from_bytes(b"\xff\xfe")])
        .output()
        .unwrap();
    assert_eq!(argument.stdout, b"present\t\xff\xfe\n");
    assert_code(&with_input(&mut dev.client(["put"]), b""), 0);
}

#[test]
fn an_answer_comes_before_the_input_ends() {
    let dev = Dev::start();
    let mut child = dev
        .client(["claim"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, mut out) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    for expected in ["first\tone\n", "duplicate\tone\n"] {
        stdin.write_all(b"one\n").unwrap();
        let mut answer = vec![0; expected.len()];
        out.read_exact(&mut answer).unwrap();
        assert_eq!(answer, expected.as_bytes());
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn many_keys_are_all_answered() {
    let dev = Dev::start();
    let input: String = (0..50_000)
        .map(|number| format!("key-{}\n", number % 30_000))
        .collect();
    let output = with_input(&mut dev.client(["claim"]), input.as_bytes());
    assert_code(&output, 0);
    let answers = stdout(&output);
    assert!(
        answers
            .lines()
            .map(|line| line.split_once('\t').unwrap().1)
            .eq(input.lines())
    );
    assert!(
        answers
            .lines()
            .take(30_000)
            .all(|line| line.starts_with("first\t"))
    );
    assert!(
        answers
            .lines()
            .skip(30_000)
            .all(|line| line.starts_with("duplicate\t"))
    );
}

#[test]
fn an_empty_or_overlong_key_is_refused_and_nothing_is_done() {
    let dev = Dev::start();
    let output = with_input(&mut dev.client(["put"]), b"good\n\nother\n");
    assert_code(&output, 1);
    assert!(stderr(&output).contains("line 2: the key is empty; a key has 1 to 65536 bytes"));
    let long = "x".repeat(65_537);
    let output = with_input(&mut dev.client(["put"]), format!("{long}\n").as_bytes());
    assert_code(&output, 1);
    assert!(
        stderr(&output).contains("line 1: the key has 65537 bytes; a key has 1 to 65536 bytes")
    );
    let output = with_input(&mut dev.client(["put"]), "x".repeat(3 << 20).as_bytes());
    assert_says(&output, 1, &["line 1: the key has more than 1048576 bytes"]);
    let output = dev.client(["put", "good", ""]).output().unwrap();
    assert_says(&output, 1, &["key 2: the key is empty"]);
    assert_eq!(dev.answer(["get", "good"]), "absent\tgood\n");
}

#[test]
fn a_wrong_ttl_is_refused_by_name_and_limit() {
    for ttl in ["0s", "-1s", "1.5s", "60y"] {
        let output = run(["put", "--ttl", ttl, "key"]);
        assert_code(&output, 2);
        let error = stderr(&output);
        assert!(
            error.contains("--ttl") && error.contains(ttl) && error.contains("50 years"),
            "{error}"
        );
    }
}

#[test]
fn without_a_cluster_the_exit_code_says_so() {
    let [port] = support::free_ports(1)[..] else {
        unreachable!()
    };
    let address = format!("127.0.0.1:{port}");
    let output = run(["get", "--addresses", &address, "--timeout", "300ms", "key"]);
    assert_says(&output, 3, &[&address]);
    for wrong in ["nowhere", "127.0.0.1:99999", ""] {
        assert_code(&run(["get", "--addresses", wrong, "key"]), 2);
    }
}

#[test]
fn a_closed_pipe_is_said_and_is_no_success() {
    let dev = Dev::start();
    let mut child = piped(&mut dev.client(["put"]));
    drop(child.stdout.take());
    child.stdin.take().unwrap().write_all(b"key\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_says(&output, 1, &["closed the pipe"]);
}

#[test]
fn status_shows_nodes_keys_and_durability() {
    let dev = Dev::start();
    dev.answer(["put", "a", "b", "c"]);
    let text = dev.answer(["status"]);
    assert!(
        text.contains("durability  memory: nothing is kept"),
        "{text}"
    );
    for address in &dev.addresses {
        assert!(text.contains(address), "{text}");
    }
    let json: serde_json::Value = serde_json::from_str(&dev.answer(["status", "--json"])).unwrap();
    assert_eq!(json["keys"], 3);
    assert_eq!(json["ranges"], 128);
    let nodes = json["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 3);
    assert!(
        nodes
            .iter()
            .all(|node| node["reachable"] == true && node["loss_count"] == 0)
    );
}

/// What is waited for is in one of so many lines.
const LINES_MAX: usize = 200;

/// The status again and again; its lines.
fn watched(dev: &Dev, args: &[&str]) -> (Process, BufReader<ChildStdout>) {
    let mut watch = dev.client(["status", "--watch=100ms"]);
    watch.args(args).stdout(Stdio::piped());
    let mut process = Process::start(&mut watch);
    let lines = BufReader::new(process.child.stdout.take().unwrap());
    (process, lines)
}

#[test]
fn a_watched_status_has_rates_and_ends_well_with_ctrl_c_and_without_a_reader() {
    let dev = Dev::start();
    let (mut process, lines) = watched(&dev, &[]);
    let mut lines = lines.lines().map(Result::unwrap).take(LINES_MAX);
    lines
        .find(|line| line.starts_with("rates       gets "))
        .unwrap();
    lines.find(|line| line.starts_with("cluster     ")).unwrap();
    process.signal(Signal::INT);
    assert_eq!(process.child.wait().unwrap().code(), Some(0));

    let (mut process, lines) = watched(&dev, &["--json"]);
    let mut lines = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(&line.unwrap()).unwrap());
    assert!(lines.next().unwrap()["keys_per_second"].is_null());
    dev.answer(["claim", "a", "b"]);
    let claims = |status: &serde_json::Value| status["keys_per_second"]["claim"].as_f64();
    lines
        .by_ref()
        .take(LINES_MAX)
        .find(|status| claims(status).is_some_and(|it| it > 0.0))
        .unwrap();
    drop(lines);
    assert_eq!(process.child.wait().unwrap().code(), Some(0));

    // Where nobody answers from the beginning, there is nothing to watch.
    let wrong = [
        "status",
        "--watch",
        "--addresses",
        "127.0.0.1:1",
        "--timeout",
        "1s",
    ];
    assert_code(&dev.client(wrong).output().unwrap(), 3);
}
