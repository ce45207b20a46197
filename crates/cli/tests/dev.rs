//! `keydb dev` and `keydb bench`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::io::Read;

use rustix::process::Signal;
use support::{Dev, assert_code, assert_says, run, stderr, stdout, wait_for_line};

#[test]
fn dev_prints_what_to_try_and_stops_cleanly_on_a_signal() {
    for signal in [Signal::INT, Signal::TERM] {
        let mut dev = Dev::with_args(&["--nodes", "2"]);
        assert_eq!(dev.addresses.len(), 2);
        assert!(
            dev.greeting.contains("durability memory"),
            "{}",
            dev.greeting
        );
        // The printed commands work as they are.
        let printed = dev
            .greeting
            .lines()
            .find(|line| line.contains(" claim"))
            .unwrap();
        let args: Vec<&str> = printed.split_whitespace().skip(1).collect();
        let output = run(args);
        assert_code(&output, 0);
        assert_eq!(
            stdout(&output),
            "first\talice\nfirst\tbob\nduplicate\talice\n"
        );
        dev.process.signal(signal);
        assert!(dev.process.child.wait().unwrap().success());
        let mut said = String::new();
        let stderr = dev.process.child.stderr.as_mut().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        assert!(said.ends_with("stopped\n"), "{said}");
    }
}

#[test]
fn two_dev_clusters_take_different_ports() {
    let (one, two) = (Dev::start(), Dev::start());
    assert!(
        one.addresses
            .iter()
            .all(|address| !two.addresses.contains(address))
    );
    one.answer(["put", "key"]);
    assert_eq!(two.answer(["get", "key"]), "absent\tkey\n");
}

#[test]
fn a_dev_cluster_with_a_directory_keeps_its_keys_across_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().join("keys");
    let args = ["--nodes", "2", "--dir", dir.to_str().unwrap()];
    let dev = Dev::with_args(&args);
    assert!(
        dev.greeting.contains("durability journal"),
        "{}",
        dev.greeting
    );
    assert_eq!(dev.answer(["claim", "a", "b"]), "first\ta\nfirst\tb\n");
    // One directory, one cluster.
    let second = run(["dev", "--dir", dir.to_str().unwrap()]);
    assert_says(&second, 1, &["another `keydb dev` runs"]);
    // Killed, and at other ports from then on.
    drop(dev);
    let _taken = Dev::with_args(&["--nodes", "2"]);
    let dev = Dev::with_args(&args);
    assert_eq!(dev.answer(["claim", "a", "c"]), "duplicate\ta\nfirst\tc\n");
    drop(dev);
    let other_count = run(["dev", "--nodes", "3", "--dir", dir.to_str().unwrap()]);
    assert_says(&other_count, 2, &["start it with --nodes 2"]);
}

#[test]
fn a_dev_cluster_goes_on_when_a_node_has_left_it() {
    let mut dev = Dev::with_args(&["--nodes", "2"]);
    dev.answer(["put", "key"]);
    let to = dev.addresses[0].clone();
    dev.answer(["scale", "--to", &to, "--yes"]);
    wait_for_line(&mut dev.process, "node 1 has left the cluster");
    assert_eq!(dev.answer(["get", "key"]), "present\tkey\n");
}

#[test]
fn bench_counts_every_answer() {
    let dev = Dev::start();
    let json = |args: &[&str]| -> serde_json::Value {
        serde_json::from_str(&dev.answer(["bench", "--json", "--yes"].iter().chain(args))).unwrap()
    };
    let claims = json(&["--operations", "20000", "--batch", "300", "--keys", "15000"]);
    assert_eq!(claims["total"]["keys"], 20_000);
    assert_eq!(claims["total"]["first"], 15_000);
    assert_eq!(claims["total"]["duplicate"], 5_000);
    assert_eq!(claims["total"]["unexpected"], 0);
    assert!(
        claims["operations"][0]["latency_ns"]["p50"]
            .as_u64()
            .unwrap()
            > 0
    );

    let gets = json(&[
        "--preload",
        "1000",
        "--mix",
        "get=1",
        "--hit-share",
        "0.5",
        "--operations",
        "5000",
    ]);
    assert_eq!(gets["total"]["unexpected"], 0);
    let (present, absent) = (&gets["total"]["present"], &gets["total"]["absent"]);
    assert_eq!(present.as_u64().unwrap() + absent.as_u64().unwrap(), 5_000);
    assert!(
        (2_000..3_000).contains(&present.as_u64().unwrap()),
        "{present}"
    );

    let single = json(&[
        "--batch",
        "1",
        "--concurrency",
        "64",
        "--operations",
        "3000",
        "--mix",
        "claim=1,put=1",
    ]);
    assert_eq!(single["total"]["keys"], 3_000);
    assert_eq!(single["operations"].as_array().unwrap().len(), 2);

    let rate = json(&["--rate", "20000", "--operations", "4000", "--batch", "100"]);
    assert_eq!(rate["corrected_for_coordinated_omission"], true);
    assert_eq!(rate["total"]["first"], 4_000);
    assert_eq!(rate["missed_calls"], 0);
}

#[test]
fn bench_stores_nothing_beside_other_keys_unless_told_to() {
    let dev = Dev::start();
    dev.answer(["put", "somebodys"]);
    let refused = dev
        .client(["bench", "--operations", "1000"])
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert_code(&refused, 2);
    let said = stderr(&refused);
    assert!(
        said.contains("has 1 keys") && said.contains("--yes"),
        "{said}"
    );
    let keys = || {
        let status: serde_json::Value =
            serde_json::from_str(&dev.answer(["status", "--json"])).unwrap();
        status["keys"].as_u64().unwrap()
    };
    assert_eq!(keys(), 1);
    // What stores nothing needs no consent.
    dev.answer(["bench", "--operations", "1000", "--mix", "get=1"]);
    dev.answer(["bench", "--operations", "1000", "--yes"]);
    assert_eq!(keys(), 1001);
}

#[test]
fn bench_measures_a_key_set_without_a_cluster() {
    let output = run([
        "bench",
        "--embedded",
        "--operations",
        "50000",
        "--preload",
        "1000",
        "--mix",
        "claim=1,get=1",
    ]);
    assert_code(&output, 0);
    assert!(stdout(&output).contains("KEYS/S"), "{}", stdout(&output));
    assert_code(&run(["bench", "--embedded", "--concurrency", "2"]), 2);
    assert_code(
        &run([
            "bench",
            "--embedded",
            "--hit-share",
            "0.5",
            "--mix",
            "get=1",
        ]),
        2,
    );
}

#[test]
fn help_has_examples_and_exit_codes_and_there_are_completions() {
    assert!(stdout(&run(["--help"])).contains("Exit codes:"));
    for command in [
        "init",
        "node",
        "dev",
        "put",
        "get",
        "claim",
        "dedup",
        "status",
        "snapshot",
        "import",
        "journal",
        "recover",
        "bench",
        "completions",
    ] {
        let help = stdout(&run([command, "--help"]));
        assert!(help.contains("Examples:"), "{command}: {help}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let output = run(["completions", shell]);
        assert_code(&output, 0);
        assert!(stdout(&output).contains("dedup"));
    }
}
