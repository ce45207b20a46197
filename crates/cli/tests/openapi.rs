//! What `/openapi.json` says of `/v1`, and what is answered, as schemathesis sees it: calls that fit the description and calls that do not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::process::Command;

use support::Dev;

/// Calls an operation; more of them in the long form (`SCHEMATHESIS_EXAMPLES`).
const EXAMPLES: &str = "30";

#[test]
fn calls_of_all_kinds_are_answered_as_the_description_says_and_none_with_a_server_error() {
    let dev = Dev::start();
    let base = dev
        .greeting
        .split_whitespace()
        .find_map(|word| {
            let at = word.find("http://127.0.0.1:")?;
            let end = word[at + 7..]
                .find('/')
                .map_or(word.len(), |it| at + 7 + it);
            Some(word[at..end].to_owned())
        })
        .unwrap();
    let examples = std::env::var("SCHEMATHESIS_EXAMPLES");
    let examples = examples.as_deref().unwrap_or(EXAMPLES);
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new("schemathesis")
        .args(["run", &format!("{base}/openapi.json"), "--url", &base])
        .args(["--max-examples", examples, "--seed", "1"])
        .args(["--no-color", "--workers", "1"])
        // What fits the description may still be refused: ttl and ttlSeconds, either and not both.
        .args(["--exclude-checks", "positive_data_acceptance"])
        .current_dir(directory.path())
        .output();
    let output = output.unwrap_or_else(|error| {
        panic!("schemathesis is needed: python3 -m pip install schemathesis ({error})")
    });
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // It has called all three.
    assert!(
        said.contains("3 selected / 3 total") || said.contains("3/3"),
        "{said}"
    );
}
