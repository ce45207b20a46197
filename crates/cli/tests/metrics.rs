//! What nodes and operators measure is right by Prometheus' own checker, and what dashboard and alerts ask for is there.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    collections::BTreeSet,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use keydb_core::metrics::{Series, Source, registry::all};
use serde_json::Value;
use support::{Dev, assert_code, http};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy");
const ALERTS: &str = "helm/keydb/files/alerts.yaml";
const DASHBOARD: &str = "grafana/dashboards/keydb.json";
const ALERT_TESTS: &str = "prometheus/alerts.test.yaml";

/// Prometheus' checker, with this on its standard input.
#[track_caller]
fn promtool(args: &[&str], input: &str) -> Output {
    let program = std::env::var_os("TEST_PROMTOOL").map_or("promtool".into(), PathBuf::from);
    let started = Command::new(&program)
        .args(args)
        .current_dir(DEPLOY)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = started.unwrap_or_else(|error| {
        panic!(
            "cannot start {}: {error}. To run this test: TEST_PROMTOOL=$(scripts/promtool install) cargo test",
            program.display()
        )
    });
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

fn read(file: &str) -> String {
    std::fs::read_to_string(Path::new(DEPLOY).join(file)).unwrap()
}

/// What is measured of a process.
fn scrape(address: &str) -> String {
    let (status, text) = http(address, "GET", "/metrics", "");
    assert_eq!(status, 200, "{text}");
    text
}

/// The series of a text, by their types.
fn names(text: &str) -> BTreeSet<&str> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.map(|line| line.split(' ').next().unwrap()).collect()
}

fn of(sources: &[Source]) -> BTreeSet<&'static str> {
    let series = all().filter(|series| sources.contains(&series.source));
    series.map(|series| series.name).collect()
}

#[test]
fn nodes_and_operators_measure_all_that_is_described_as_prometheus_wants_it() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let dev = Dev::with_args(&["--nodes", "2", "--dir", keys.to_str().unwrap()]);
    dev.answer(["claim", "a", "b"]);
    let node = scrape(&dev.http[0]);
    let operator = scrape(&dev.operator);
    assert_eq!(
        names(&node),
        of(&[Source::Node, Source::NodeDisk, Source::Both])
    );
    assert_eq!(names(&operator), of(&[Source::Operator, Source::Both]));
    for text in [&node, &operator] {
        let checked = promtool(&["check", "metrics"], text);
        assert_code(&checked, 0);
        // What it says of names and help, it says with code 3; anything else is unexpected as well.
        assert_eq!(String::from_utf8_lossy(&checked.stderr), "", "{text}");
    }
    let value = |text: &str, sample: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(sample));
        let value = line.unwrap_or_else(|| panic!("{sample} in\n{text}"));
        value.trim().parse::<f64>().unwrap()
    };
    let both = [&node, &scrape(&dev.http[1])];
    let sum = |sample: &str| both.map(|text| value(text, sample)).iter().sum::<f64>();
    assert_eq!(
        sum("keydb_answers_total{operation=\"claim\",answer=\"first\"}"),
        2.0
    );
    assert!(sum("keydb_journal_sync_duration_seconds_count") >= 1.0);
    assert!(sum("keydb_storage_calls_total{call=\"get\",outcome=\"ok\"}") >= 2.0);
    assert_eq!(sum("keydb_hash_range_keys{state=\"ready\"}"), 2.0);
}

#[test]
fn alerts_fire_when_they_should() {
    assert_code(&promtool(&["check", "rules", ALERTS], ""), 0);
    assert_code(&promtool(&["test", "rules", ALERT_TESTS], ""), 0);
    // Each of them is tested.
    let (alerts, tests) = (read(ALERTS), read(ALERT_TESTS));
    let named = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    for alert in named {
        assert!(tests.contains(&format!("alertname: {alert}\n")), "{alert}");
    }
}

/// The expressions of the dashboard and of the alerts.
fn expressions() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let alerts: Value = serde_yaml_ng::from_str(&read(ALERTS)).unwrap();
    let mut found = Vec::new();
    for document in [dashboard, alerts] {
        let before = found.len();
        collect(&document, &mut found);
        assert!(found.len() > before);
    }
    found
}

/// Every `expr` in a document.
fn collect(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if name == "expr" => found.push(text.clone()),
                    value => collect(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
        _ => {}
    }
}

/// The words of an expression.
fn words(expression: &str) -> impl Iterator<Item = &str> {
    expression
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
}

#[test]
fn every_series_and_label_that_dashboard_and_alerts_use_is_there() {
    let described =
        |sample: &str| all().find(|it| it.sample_names().iter().any(|name| name == sample));
    for expression in expressions() {
        let used: Vec<&Series> = words(&expression)
            .filter(|word| word.starts_with("keydb_"))
            .map(|name| described(name).unwrap_or_else(|| panic!("{name} in {expression}")))
            .collect();
        // Prometheus adds these two.
        let mut labels = vec!["instance", "job"];
        for series in &used {
            labels.extend(series.labels.iter().map(|label| label.name));
            if *series.sample_names() != [series.name] {
                labels.push("le");
            }
        }
        let grouped = expression
            .split("by (")
            .skip(1)
            .map(|it| it.split(')').next().unwrap());
        for label in grouped.flat_map(words) {
            assert!(labels.contains(&label), "{label} in {expression}");
        }
        let selected = expression
            .split('{')
            .skip(1)
            .map(|it| it.split('}').next().unwrap());
        for matcher in selected.flat_map(|it| it.split(',')) {
            let label = words(matcher).next().unwrap();
            assert!(labels.contains(&label), "{label} in {expression}");
        }
    }
}
