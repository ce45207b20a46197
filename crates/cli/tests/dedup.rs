//! `keydb dedup` against a cluster of this machine and against a plain set.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    cell::Cell,
    collections::HashSet,
    fs,
    io::{BufRead, BufReader, Read, Write},
    process::Stdio,
};

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use rustix::process::Signal;
use support::{
    Dev, Process, assert_code, assert_says, free_ports, keydb, node, piped, run, stderr, stdout,
    wait_for_line, with_input,
};

/// What `awk '$0=="" || !seen[$0]++'` writes, with lines over the longest key passed through.
fn reference(inputs: &[&[u8]]) -> Vec<u8> {
    let mut seen = HashSet::new();
    let mut out = Vec::new();
    for input in inputs {
        for line in input.split_inclusive(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            if line.is_empty() || line.len() > 65_536 || seen.insert(line.to_vec()) {
                out.extend_from_slice(line);
                out.push(b'\n');
            }
        }
    }
    out
}

/// Lines that repeat, some empty, some with odd bytes, some around the longest key; perhaps no line end at the end.
fn input() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        8 => (0..40_u32).prop_map(|number| format!("line {number}").into_bytes()),
        2 => Just(Vec::new()),
        2 => (0..5_u32).prop_map(|number| format!("line {number}\r").into_bytes()),
        2 => proptest::collection::vec(any::<u8>().prop_filter("a line end", |byte| *byte != b'\n'), 1..20),
        1 => (65_534..65_540_usize).prop_map(|length| vec![b'x'; length]),
        1 => (200_000..200_003_usize).prop_map(|length| vec![b'y'; length]),
    ];
    (proptest::collection::vec(line, 0..200), any::<bool>()).prop_map(|(lines, ends)| {
        let mut bytes = lines.join(&b'\n');
        if ends {
            bytes.push(b'\n');
        }
        bytes
    })
}

#[test]
fn the_output_is_that_of_awk() {
    let dev = Dev::start();
    let directory = tempfile::tempdir().unwrap();
    let mut runner = TestRunner::new(Config {
        cases: 24,
        failure_persistence: None,
        ..Config::default()
    });
    let rounds = Cell::new(0);
    runner
        .run(&(input(), input()), |(one, two)| {
            let file = directory.path().join("one");
            fs::write(&file, &one).unwrap();
            let expected = reference(&[&one, &two]);
            let embedded = with_input(
                keydb().args(["dedup", "--embedded"]).arg(&file).arg("-"),
                &two,
            );
            prop_assert_eq!(&embedded.stdout, &expected, "{}", stderr(&embedded));
            // Each round has keys of its own in the cluster: a prefix that does not change which lines are equal.
            let round = rounds.replace(rounds.get() + 1);
            let prefixed = |bytes: &[u8]| -> Vec<u8> {
                let lines = bytes
                    .split_inclusive(|byte| *byte == b'\n')
                    .flat_map(|line| {
                        let prefix = if line == b"\n" {
                            String::new()
                        } else {
                            format!("{round} ")
                        };
                        [prefix.into_bytes(), line.to_vec()].concat()
                    });
                lines.collect()
            };
            let (one, two) = (prefixed(&one), prefixed(&two));
            fs::write(&file, &one).unwrap();
            let clustered = with_input(dev.client(["dedup"]).arg(&file).arg("-"), &two);
            prop_assert_eq!(
                &clustered.stdout,
                &reference(&[&one, &two]),
                "{}",
                stderr(&clustered)
            );
            Ok(())
        })
        .unwrap();
}

fn numbers(count: u32) -> String {
    (0..count)
        .map(|number| format!("number-{number:08}\n"))
        .collect()
}

/// A file with this in it, in a directory that goes away with the test.
fn file_of(text: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lines");
    fs::write(&path, text).unwrap();
    (directory, path.to_str().unwrap().to_owned())
}

#[test]
fn two_dedups_of_one_stream_share_its_lines() {
    let dev = Dev::start();
    let lines = numbers(150_000);
    let (_directory, file) = &file_of(&lines);
    let start = || {
        let mut command = dev.client(["dedup"]);
        command
            .arg(file)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let both = [start(), start()].map(|mut child| {
        let mut out = child.stdout.take().unwrap();
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            out.read_to_string(&mut text).unwrap();
            text
        });
        (child, reading)
    });
    let mut all: Vec<String> = Vec::new();
    for (mut child, reading) in both {
        all.extend(reading.join().unwrap().lines().map(str::to_owned));
        assert!(child.wait().unwrap().success());
    }
    all.sort_unstable();
    assert!(
        all.iter().map(String::as_str).eq(lines.lines()),
        "{} lines",
        all.len()
    );
}

#[test]
fn lines_come_out_before_the_input_ends() {
    let dev = Dev::start();
    let mut child = piped(&mut dev.client(["dedup"]));
    let mut stdin = child.stdin.take().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    for (line, expected) in [("a\n", "a\n"), ("a\nb\n", "b\n"), ("\n", "\n")] {
        stdin.write_all(line.as_bytes()).unwrap();
        let mut read = String::new();
        out.read_line(&mut read).unwrap();
        assert_eq!(read, expected);
    }
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(
        stderr(&output).contains("4 lines: 2 first, 1 duplicate, 0 unknown, 1 without key"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_signal_ends_the_input_and_what_was_read_is_written() {
    let dev = Dev::start();
    let mut process = Process::start(
        dev.client(["dedup"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    );
    // Kept open, so that only the signal ends the input.
    let mut stdin = process.child.stdin.take().unwrap();
    stdin.write_all(b"a\nb\n").unwrap();
    let mut out = process.child.stdout.take().unwrap();
    out.read_exact(&mut [0; 4]).unwrap();
    process.signal(Signal::TERM);
    assert_eq!(process.child.wait().unwrap().code(), Some(130));
    let mut said = String::new();
    let stderr = process.child.stderr.as_mut().unwrap();
    stderr.read_to_string(&mut said).unwrap();
    assert!(
        said.contains("2 lines: 2 first") && said.contains("stopped by SIGTERM"),
        "{said}"
    );
}

#[test]
fn keys_can_be_fields_or_json_values() {
    let csv = with_input(
        keydb().args([
            "dedup",
            "--embedded",
            "--json",
            "--field",
            "2",
            "--delimiter",
            ",",
        ]),
        b"1,a\n2,b,x\n3,a\n4\n5,,\n6,b\n",
    );
    assert_eq!(stdout(&csv), "1,a\n2,b,x\n4\n5,,\n");
    let summary: serde_json::Value = serde_json::from_slice(&csv.stderr).unwrap();
    assert_eq!(
        (
            &summary["lines"],
            &summary["duplicates"],
            &summary["without_key"]
        ),
        (&6.into(), &2.into(), &2.into())
    );
    let json = with_input(
        keydb().args(["dedup", "--embedded", "--json-pointer", "/e/id"]),
        b"{\"e\":{\"id\":\"a\"}}\n{\"e\":{\"id\":7}}\n{\"e\":{\"id\":\"\\u0061\"},\"x\":1}\nnot json\n{\"e\":{}}\n{\"e\":{\"id\":7}}\nnot json\n",
    );
    assert_eq!(
        stdout(&json),
        "{\"e\":{\"id\":\"a\"}}\n{\"e\":{\"id\":7}}\nnot json\n{\"e\":{}}\nnot json\n"
    );
    // A long line has its key near the front, and is more than one read long.
    let long = format!("{{\"id\":1,\"x\":\"{}\"}}\n", "x".repeat(1 << 20));
    let twice = with_input(
        keydb().args(["dedup", "--embedded", "--json-pointer", "/id"]),
        long.repeat(2).as_bytes(),
    );
    assert_eq!(stdout(&twice), long);
}

#[test]
fn jobs_in_namespaces_of_their_own_do_not_take_each_others_keys_and_a_header_always_passes() {
    let dev = Dev::start();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let monday = file("orders-mon.csv", "id,sum\n17,3\n18,4\n");
    let tuesday = file("orders-tue.csv", "id,sum\n18,4\n19,5\n");
    let customers = file("customers.csv", "id,name\n17,Ada\n20,Bob\n");
    let dedup = |namespace: &str, files: &[&str]| {
        let args = ["dedup", "--header", "--field", "1", "--delimiter", ","];
        dev.answer(
            args.into_iter()
                .chain(["--namespace", namespace])
                .chain(files.iter().copied()),
        )
    };
    assert_eq!(dedup("orders", &[&monday]), "id,sum\n17,3\n18,4\n");
    assert_eq!(
        dedup("customers", &[&customers]),
        "id,name\n17,Ada\n20,Bob\n"
    );
    assert_eq!(dedup("orders", &[&tuesday]), "id,sum\n19,5\n");
    // Of files with the same header it comes once, another one is kept.
    assert_eq!(
        dedup("all", &[&monday, &tuesday, &customers]),
        "id,sum\n17,3\n18,4\n19,5\nid,name\n20,Bob\n"
    );

    // The setting, and the flag that outranks it.
    let get = |namespace: &str, args: &[&str]| {
        let mut command = dev.client(["get", "17"]);
        command.args(args).env("KEYDB_NAMESPACE", namespace);
        stdout(&command.output().unwrap())
    };
    assert_eq!(get("orders", &[]), "present\t17\n");
    assert_eq!(get("other", &[]), "absent\t17\n");
    assert_eq!(get("other", &["--namespace", "customers"]), "present\t17\n");
    assert_eq!(dev.answer(["get", "17"]), "absent\t17\n");
    let long = "x".repeat(256);
    for (value, words) in [("", "has 0 bytes"), (&*long, "has 256 bytes")] {
        let refused = dev
            .client(["get", "17", "--namespace", value])
            .output()
            .unwrap();
        assert_says(&refused, 2, &[words]);
        let mut command = dev.client(["get", "17"]);
        let refused = command.env("KEYDB_NAMESPACE", value).output().unwrap();
        assert_says(&refused, 2, &["KEYDB_NAMESPACE", words]);
    }
}

#[test]
fn bench_stores_its_keys_in_a_namespace_of_its_own() {
    let dev = Dev::start();
    let bench = |args: &[&str]| {
        let all = [
            "bench",
            "--yes",
            "--seed",
            "5",
            "--operations",
            "100",
            "--json",
        ];
        let out = dev.answer(all.iter().chain(args));
        let report: serde_json::Value = serde_json::from_str(&out).unwrap();
        report["total"]["first"].as_u64().unwrap()
    };
    assert_eq!(bench(&[]), 100);
    assert_eq!(bench(&["--namespace", "mine"]), 100);
    assert_eq!(bench(&["--namespace", "keydb-bench"]), 0);
}

#[test]
fn duplicates_can_be_kept() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("duplicates");
    let output = with_input(
        keydb()
            .args(["dedup", "--embedded", "--duplicates"])
            .arg(&file),
        b"a\nb\na\n\na\nc",
    );
    assert_code(&output, 0);
    assert_eq!(stdout(&output), "a\nb\n\nc\n");
    assert_eq!(fs::read(&file).unwrap(), b"a\na\n");
}

#[test]
fn an_id_that_was_used_is_refused_unless_it_is_said_to_be_a_repeat() {
    let dev = Dev::start();
    let dedup = |args: &[&str], input: &str| {
        let all = ["dedup", "--run", "d"].iter().chain(args);
        let mut command = dev.client(all);
        with_input(&mut command, input.as_bytes())
    };
    assert_eq!(stdout(&dedup(&[], "rr1\nrr2\n")), "rr1\nrr2\n");
    // What is another input's is a duplicate, as under any other ID.
    assert_eq!(stdout(&dedup(&[], "rr2\nrr3\n")), "rr3\n");
    let refused = dedup(&[], "rr1\nrr2\n");
    assert_eq!(stdout(&refused), "");
    let words = ["\"d\" was used before", "--again --run d", "another ID"];
    assert_says(&refused, 1, &words);
    assert_eq!(stdout(&dedup(&["--again"], "rr1\nrr2\n")), "rr1\nrr2\n");
}

#[test]
fn a_run_without_an_id_that_fails_names_the_command_that_goes_on_and_loses_nothing() {
    let dev = Dev::start();
    let lines = numbers(200_000);
    let (_directory, path) = &file_of(&lines);
    let said = break_off(&dev, &["dedup", path]);
    let command = command_to_go_on(&said);
    assert!(command.contains("--run "), "{command}");
    let args = args_of(command);
    let again = dev.client(&args).output().unwrap();
    assert_code(&again, 0);
    assert!(stdout(&again) == lines, "{}", stderr(&again));
}

#[test]
fn lines_of_a_pipe_come_out_though_their_batch_is_not_full() {
    let dev = Dev::start();
    let mut child = dev
        .client(["dedup", "--run", "tail"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    for line in ["one\n", "two\n"] {
        input.write_all(line.as_bytes()).unwrap();
        let mut written = String::new();
        output.read_line(&mut written).unwrap();
        assert_eq!(written, line);
    }
    drop(input);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_key_that_is_looked_for_in_the_wrong_place_is_no_success() {
    let input = b"{\"id\":1}\n{\"id\":2}\n";
    let dedup = |args: &[&str]| with_input(keydb().args(["dedup", "--embedded"]).args(args), input);
    let wrong = dedup(&["--json-pointer", "/key"]);
    assert_says(&wrong, 1, &["none of the 2 lines has a key"]);
    assert_eq!(wrong.stdout, input);
    let strict = dedup(&["--json-pointer", "/key", "--strict"]);
    assert_says(&strict, 1, &["line 1 has no key"]);
    assert_eq!(stdout(&strict), "");
    assert_code(&dedup(&["--json-pointer", "/id", "--strict"]), 0);
    let mixed = with_input(
        keydb().args(["dedup", "--embedded", "--json-pointer", "/id", "--strict"]),
        b"{\"id\":1}\n{}\n",
    );
    assert_says(&mixed, 1, &["line 2 has no key"]);
}

/// How often the dedup of the next test is killed; 100 in a long run.
fn kills() -> u32 {
    std::env::var("DEDUP_KILLS").map_or(12, |text| text.parse().unwrap())
}

#[test]
fn a_dedup_that_is_killed_at_any_time_and_continued_loses_no_line() {
    let dev = Dev::start();
    let lines = numbers(150_000);
    let (_directory, path) = &file_of(&lines.repeat(2));
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    for round in 0..kills() {
        let namespace = format!("round-{round}");
        let dedup = |again: &[&str]| {
            let args = ["dedup", "--json", "--run", "r", "--namespace", &namespace];
            let mut command = dev.client(args.iter().chain(again).chain(&[path.as_str()]));
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        };
        let mut child = dedup(&[]);
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let wait = std::time::Duration::from_micros((random >> 32) % 150_000);
        let mut out = child.stdout.take().unwrap();
        let reading = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            out.read_to_end(&mut bytes).unwrap();
            bytes
        });
        std::thread::sleep(wait);
        child.kill().unwrap();
        child.wait().unwrap();
        let before = reading.join().unwrap();
        assert!(
            lines.as_bytes().starts_with(&before),
            "killed after {wait:?}"
        );
        let again = dedup(&["--again"]).wait_with_output().unwrap();
        assert_code(&again, 0);
        let summary: serde_json::Value = serde_json::from_slice(&again.stderr).unwrap();
        // What was killed before it was told is first again; what is unknown is written as well, and nothing else twice.
        let written = stdout(&again);
        let mut seen = HashSet::new();
        let twice = written.lines().filter(|line| !seen.insert(*line)).count() as u64;
        assert_eq!(seen.len(), 150_000, "killed after {wait:?}");
        assert!(
            twice <= summary["unknown"].as_u64().unwrap(),
            "killed after {wait:?}: {twice} twice, {summary}"
        );
    }
}

/// The command that a run which broke off says to go on with.
fn command_to_go_on(said: &str) -> &str {
    let line = said.lines().find(|line| line.contains("--again=")).unwrap();
    line.rsplit_once(": ").unwrap().1
}

/// What follows the program in a command, and the settings before it.
fn args_of(command: &str) -> Vec<&str> {
    let words = command.split_whitespace();
    words
        .skip_while(|word| word.starts_with("KEYDB_"))
        .skip(1)
        .collect()
}

/// Runs `keydb dedup` and closes its output after the first few bytes; returns what it said.
fn break_off(dev: &Dev, args: &[&str]) -> String {
    let mut child = dev
        .client(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 100]).unwrap();
    drop(out);
    let output = child.wait_with_output().unwrap();
    assert_code(&output, 1);
    stderr(&output)
}

#[test]
fn a_run_whose_pipe_was_closed_can_be_repeated_from_the_start() {
    let dev = Dev::start();
    // Every line twice: once near its first and once far from it.
    let lines = numbers(200_000);
    let (_directory, path) = &file_of(&lines.repeat(2));
    let said = break_off(&dev, &["dedup", "--run", "import-7", "--", path]);
    assert!(said.contains("closed the pipe"), "{said}");
    // The command that it names breaks off as well, and names another.
    let command = command_to_go_on(&said);
    let args = args_of(command);
    let said = break_off(&dev, &args);
    let command = command_to_go_on(&said);
    assert_eq!(command.matches("--again").count(), 1, "{command}");
    // That does it: what had been claimed is written again, and nothing twice.
    let args = args_of(command);
    let again = dev.client(&args).output().unwrap();
    assert_code(&again, 0);
    assert!(stdout(&again) == lines, "{}", stderr(&again));
    // Said once more, lines that it takes for new ones are not; as a repeat of all of them it gives the same answers again.
    assert_code(&dev.client(&args).output().unwrap(), 1);
    let all = ["dedup", "--run", "import-7", "--again", "--", path];
    let again = dev.client(all).output().unwrap();
    assert!(stdout(&again) == lines, "{}", stderr(&again));
    // Without it, everything has been seen.
    let other = dev.client(["dedup", path]).output().unwrap();
    assert_eq!(stdout(&other), "");
}

#[test]
fn a_bare_again_loses_nothing() {
    let dev = Dev::start();
    let lines = numbers(200_000);
    let (_directory, path) = &file_of(&lines);
    break_off(&dev, &["dedup", "--run", "import-8", path]);
    let again = dev
        .client(["dedup", "--again", "--run", "import-8", path])
        .output()
        .unwrap();
    assert_code(&again, 0);
    assert!(stdout(&again) == lines, "{}", stderr(&again));
}

#[test]
fn another_input_under_the_same_run_is_unknown_and_so_written() {
    let dev = Dev::start();
    let run = |input: &str, again: &[&str]| {
        let mut command = dev.client(["dedup", "--run", "r"]);
        with_input(command.args(again), input.as_bytes())
    };
    let (all, half) = (numbers(4000), numbers(2000));
    let (first, other) = (&all[..3 * all.len() / 4], &all[half.len()..]);
    assert_eq!(stdout(&run(first, &[])), first);
    let output = run(other, &["--again"]);
    assert!(stdout(&output) == other, "{}", stderr(&output));
    let said = stderr(&output);
    assert!(
        said.contains(" 0 duplicate") && !said.contains(" 0 unknown"),
        "{said}"
    );
}

#[test]
fn unreadable_input_is_named_before_anything_is_claimed() {
    let dev = Dev::start();
    let directory = tempfile::tempdir().unwrap();
    let good = directory.path().join("good");
    fs::write(&good, "a\n").unwrap();
    let output = dev
        .client(["dedup"])
        .arg(&good)
        .arg("/no/such/file")
        .output()
        .unwrap();
    assert_says(&output, 1, &["/no/such/file", "No such file"]);
    assert_eq!(stdout(&output), "");
    let output = dev
        .client(["dedup"])
        .arg(directory.path())
        .output()
        .unwrap();
    assert_says(&output, 1, &["directory"]);
    assert_eq!(dev.answer(["get", "a"]), "absent\ta\n");
    // Writing to what is read would never end, or begin by emptying it.
    let output = run([
        "dedup",
        "--embedded",
        "--duplicates",
        good.to_str().unwrap(),
        good.to_str().unwrap(),
    ]);
    assert_code(&output, 2);
    let both = fs::OpenOptions::new().append(true).open(&good).unwrap();
    let output = keydb()
        .args(["dedup", "--embedded"])
        .arg(&good)
        .stdout(both)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_code(&output, 2);
    assert_eq!(fs::read(&good).unwrap(), b"a\n");
}

#[test]
fn a_full_output_disk_is_said_and_is_no_success() {
    // A device that is always full, where there is one.
    let Ok(full) = fs::OpenOptions::new().write(true).open("/dev/full") else {
        return;
    };
    let dev = Dev::start();
    let mut command = dev.client(["dedup", "--run", "full"]);
    let output = with_input_to(&mut command, b"a\n", full.into());
    assert_says(&output, 1, &["No space left", "dedup --again=1 --run full"]);
    let output = with_input(
        keydb().args(["dedup", "--embedded", "--duplicates", "/dev/full"]),
        b"a\na\n",
    );
    assert_says(&output, 1, &["/dev/full"]);
}

fn with_input_to(
    command: &mut std::process::Command,
    input: &[u8],
    out: Stdio,
) -> std::process::Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(out)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_cluster_that_does_not_answer_is_said_with_how_to_go_on() {
    let dev = Dev::start();
    let mut child = piped(&mut dev.client(["dedup", "--run", "dead", "--timeout", "500ms"]));
    let mut stdin = child.stdin.take().unwrap();
    // A named run claims full batches; this is the first.
    let lines = numbers(32_768);
    stdin.write_all(lines.as_bytes()).unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut written = vec![0; lines.len()];
    out.read_exact(&mut written).unwrap();
    assert!(written == lines.as_bytes());
    dev.process.freeze();
    stdin.write_all(b"later\n").unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(matches!(output.status.code(), Some(3 | 4)), "{output:?}");
    let said = stderr(&output);
    assert!(
        said.contains("the same input") && said.contains("--again=32769 --run dead"),
        "{said}"
    );
    assert!(said.contains("32,768 lines"), "{said}");

    let [port] = free_ports(1)[..] else {
        unreachable!()
    };
    let address = format!("127.0.0.1:{port}");
    let output = run(["dedup", "--addresses", &address, "--timeout", "300ms"]);
    assert_code(&output, 3);
}

#[test]
fn what_no_node_remembers_any_more_is_unknown_and_so_written() {
    let directory = tempfile::tempdir().unwrap();
    let port = free_ports(1)[0].to_string();
    let address = format!("127.0.0.1:{port}");
    let mut node = node(
        directory.path(),
        &[
            ("KEYDB_NODE_ID", "0"),
            ("KEYDB_NODE_ADDRESSES", &address),
            ("KEYDB_PORT", &port),
            ("KEYDB_INIT", "true"),
            ("KEYDB_ANSWER_MEMORY_BYTES", "0"),
        ],
    );
    wait_for_line(&mut node, "serving");
    let run = |again: &[&str]| {
        let mut command = keydb();
        command.args(["dedup", "--addresses", &address, "--run", "r"]);
        with_input(command.args(again), b"a\nb\n")
    };
    assert_eq!(stdout(&run(&[])), "a\nb\n");
    let again = run(&["--again"]);
    assert_eq!(stdout(&again), "a\nb\n");
    assert!(
        stderr(&again).contains("0 first, 0 duplicate, 2 unknown"),
        "{}",
        stderr(&again)
    );
    // Only batch 1 was sent before, so nothing is known to be a repeat here.
    assert_eq!(stdout(&run(&["--again=0"])), "");
}

#[test]
fn a_repeat_finds_the_same_batches_however_the_input_comes() {
    let dev = Dev::start();
    let lines = numbers(80_000);
    let run = |piece_bytes: usize, again: &[&str]| {
        let mut command = dev.client(["dedup", "--run", "pieces"]);
        let mut child = piped(command.args(again));
        let mut stdin = child.stdin.take().unwrap();
        let input = lines.clone();
        let feeding = std::thread::spawn(move || {
            for piece in input.as_bytes().chunks(piece_bytes) {
                stdin.write_all(piece).unwrap();
            }
        });
        let output = child.wait_with_output().unwrap();
        feeding.join().unwrap();
        output
    };
    assert!(stdout(&run(333, &[])) == lines);
    let again = run(1 << 20, &["--again"]);
    assert!(stdout(&again) == lines);
    assert!(
        stderr(&again).contains("80,000 first, 0 duplicate, 0 unknown"),
        "{}",
        stderr(&again)
    );
}

fn dedup_csv(args: &[&str], input: &[u8]) -> std::process::Output {
    let mut command = keydb();
    command.args(["dedup", "--embedded", "--csv"]).args(args);
    with_input(&mut command, input)
}

#[test]
fn csv_records_are_told_apart_by_their_quotes_and_keyed_by_a_named_column() {
    let orders = "\u{feff}order,note,customer\r\n\
                  1,plain,c1\r\n\
                  2,\"two\nlines, and a comma\",c2\r\n\
                  \r\n\
                  \"1\",\"quoted this time\",c3\r\n\
                  3,\"says \"\"hi\"\"\",c1\r\n\
                  ,no number,c9\r\n\
                  \"2\",x,c4";
    let done = dedup_csv(&["--column", "order"], orders.as_bytes());
    assert_code(&done, 0);
    let expected = "\u{feff}order,note,customer\r\n\
                    1,plain,c1\r\n\
                    2,\"two\nlines, and a comma\",c2\r\n\
                    \r\n\
                    3,\"says \"\"hi\"\"\",c1\r\n\
                    ,no number,c9\r\n";
    assert_eq!(stdout(&done), expected);
    // The last column, before a carriage return and without one.
    let done = dedup_csv(&["--column", "customer"], orders.as_bytes());
    assert!(!stdout(&done).contains("says"), "{}", stdout(&done));
    assert!(stdout(&done).ends_with("\"2\",x,c4\n"), "{}", stdout(&done));
    // By number, with another delimiter; the header is a record like any other then.
    let done = dedup_csv(
        &["--field", "2", "--delimiter", ";"],
        b"a;\"k;1\"\nb;\"k;1\"\nc;k\n",
    );
    assert_eq!(stdout(&done), "a;\"k;1\"\nc;k\n");
}

#[test]
fn what_is_wrong_with_a_csv_file_or_its_column_is_said_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("orders.csv");
    fs::write(&file, "order,customer\n1,c1\n").unwrap();
    let mut command = keydb();
    command.args(["dedup", "--embedded", "--csv", "--column", "id"]);
    let refused = command.arg(&file).output().unwrap();
    let words = ["orders.csv", "no column \"id\"", "order, customer"];
    assert_says(&refused, 1, &words);
    for (args, words) in [
        (&[][..], "--column NAME or --field N"),
        (&["--column", "a", "--field", "1"], "--field"),
    ] {
        let refused = dedup_csv(args, b"");
        assert_says(&refused, 2, &[words]);
    }
    // A quote that is never closed takes in the rest, which nobody can tell a key of.
    let done = dedup_csv(&["--column", "a"], b"a,b\n1,x\n1,\"y\n2,z\n");
    assert_code(&done, 0);
    assert_eq!(stdout(&done), "a,b\n1,x\n1,\"y\n2,z\n");
}

#[test]
fn of_csv_records_with_any_content_the_first_with_each_key_is_written() {
    let text = proptest::string::string_regex("[a-c\",;\r\n é]{0,6}").unwrap();
    let record = (
        0..12_u32,
        text,
        prop_oneof![9 => Just(0_usize), 1 => 90_000..300_000_usize],
    );
    let mut runner = TestRunner::new(Config {
        cases: 40,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&proptest::collection::vec(record, 0..60), |records| {
            let (mut input, mut expected) = (b"n,key,long\n".to_vec(), b"n,key,long\n".to_vec());
            let mut seen = HashSet::new();
            for (number, text, long) in records {
                let key = format!("{}{text}", number % 4);
                let quoted = key.replace('"', "\"\"");
                let line = format!("{number},\"{quoted}\",{}\n", "x".repeat(long));
                input.extend_from_slice(line.as_bytes());
                if seen.insert(key) {
                    expected.extend_from_slice(line.as_bytes());
                }
            }
            let done = dedup_csv(&["--column", "key"], &input);
            prop_assert!(done.stdout == expected, "{}", stderr(&done));
            Ok(())
        })
        .unwrap();
}
