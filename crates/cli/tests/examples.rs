//! The programs of `examples/`, run as their users would; and clients in several languages, which all must be told the same.
//!
//! They need Python 3 with gRPC, `python3 -m pip install grpcio grpcio-tools`, and curl.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "examples/consumers.rs"]
mod consumers;
#[path = "examples/doors.rs"]
mod doors;
#[path = "examples/python.rs"]
mod python;
mod support;

use std::{path::Path, process::Command, thread};

use python::Python;
use support::{Dev, assert_code, stdout, with_input};

/// The example in Rust, which cargo builds with the tests.
fn event_stream() -> Command {
    let programs = Path::new(env!("CARGO_BIN_EXE_keydb")).parent().unwrap();
    let program = programs.join("examples/event-stream");
    assert!(
        program.exists(),
        "{} is not there; `cargo build -p keydb-cli --examples` builds it",
        program.display()
    );
    Command::new(program)
}

/// Where the nodes answer HTTP, with commas between.
fn http_nodes(dev: &Dev) -> String {
    let urls = dev
        .greeting
        .lines()
        .filter(|line| line.trim_start().starts_with("node "));
    let urls = urls.map(|line| line.split_once("http://").unwrap().1.to_owned());
    urls.collect::<Vec<_>>().join(",")
}

#[test]
fn each_event_comes_out_of_exactly_one_of_the_programs_in_three_languages() {
    const EVENTS: usize = 4000;
    let (dev, python) = (Dev::start(), Python::new());
    let ids = || (0..EVENTS).map(|event| format!("event-{}", event % 3000));
    let lines: String = ids().map(|id| id + "\n").collect();
    let events: String = ids().map(|id| format!("{{\"id\":\"{id}\"}}\n")).collect();

    let mut rust = event_stream();
    rust.args([&dev.addresses.join(","), "events"]);
    let mut http = python.command("examples/dedup_http.py");
    http.args(["--nodes", &http_nodes(&dev), "--namespace", "events"]);
    let mut grpc = python.command("examples/dedup_grpc.py");
    grpc.args(["--nodes", &dev.addresses.join(","), "--namespace", "events"]);
    let running =
        [(rust, events), (http, lines.clone()), (grpc, lines)].map(|(mut program, input)| {
            thread::spawn(move || with_input(&mut program, input.as_bytes()))
        });

    let mut passed = Vec::new();
    for output in running.map(|program| program.join().unwrap()) {
        assert_code(&output, 0);
        let out = stdout(&output);
        let ids = out.lines().map(|line| line.trim_matches(['{', '}']));
        passed.extend(ids.map(|id| {
            id.trim_start_matches("\"id\":")
                .trim_matches('"')
                .to_owned()
        }));
    }
    passed.sort_unstable();
    let mut expected: Vec<_> = ids().collect();
    expected.sort_unstable();
    expected.dedup();
    assert!(passed == expected, "{} events came out", passed.len());
}

#[test]
fn what_has_no_key_passes_each_of_the_programs() {
    let (dev, python) = (Dev::start(), Python::new());
    let mut http = python.command("examples/dedup_http.py");
    http.args(["--nodes", &http_nodes(&dev), "--namespace", "http"]);
    let mut grpc = python.command("examples/dedup_grpc.py");
    grpc.args(["--nodes", &dev.addresses[0], "--namespace", "grpc"]);
    for program in [&mut http, &mut grpc] {
        let output = with_input(program, b"\na\n\na\nb\n");
        assert_code(&output, 0);
        assert_eq!(stdout(&output), "\na\n\nb\n");
    }
    let mut rust = event_stream();
    rust.args([&dev.addresses[0], "rust"]);
    let input = "{\"id\":\"a\"}\nno json\n{\"id\":\"\"}\n{\"id\":\"a\"}\nno json\n";
    let output = with_input(&mut rust, input.as_bytes());
    assert_code(&output, 0);
    let expected = "{\"id\":\"a\"}\nno json\n{\"id\":\"\"}\nno json\n";
    assert_eq!(stdout(&output), expected);
}
