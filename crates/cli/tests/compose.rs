//! docker-compose.yml, run as plain processes with a real MinIO, by the commands that its own header gives.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "compose/file.rs"]
mod file;
mod support;
#[path = "compose/world.rs"]
mod world;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use file::File;
use serde_json::Value;
use support::{assert_code, stdout};
use world::World;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The program of a MinIO; `None`, said loudly, where there is none to test with.
fn minio() -> Option<PathBuf> {
    if std::env::var_os("TEST_S3_ENDPOINT").is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "TEST_S3_ENDPOINT is not set; continuous integration tests with a real S3 server: scripts/minio with cargo test"
        );
        eprintln!(
            "SKIPPED: there is no MinIO to test with. To run this test: scripts/minio with cargo test"
        );
        return None;
    }
    let mut install = Command::new(repository().join("scripts/minio"));
    let output = install.arg("install").output().unwrap();
    assert_code(&output, 0);
    Some(PathBuf::from(stdout(&output).trim()))
}

/// Does what a line of a shell asks of compose, or of the operator, whose answer is returned.
fn line(world: &mut World, line: &str) -> Option<Value> {
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let texts: Vec<&str> = words.iter().map(String::as_str).collect();
    match texts.as_slice() {
        ["docker", "compose", "up", ..] => world.up(&[]),
        ["docker", "compose", "--profile", profile, "up", ..] => world.up(&[profile]),
        ["docker", "compose", "exec", service, ..] => {
            let output = world.exec(service, &words[4..]);
            assert_code(&output, 0);
        }
        ["docker", "compose", .., "down", "-v"] => {
            for (name, status) in world.down() {
                let is_ours = name.starts_with("keydb-") || name == "operator";
                assert!(
                    status.success() || !is_ours,
                    "{name}: {status}\n{}",
                    world.log(&name)
                );
            }
        }
        ["curl", ..] => return Some(curl(world, line)),
        _ => panic!("the header says {line:?}, and nobody knows how to do that here"),
    }
    None
}

fn curl(world: &World, line: &str) -> Value {
    let line = world
        .outside(line)
        .replacen("curl", "curl --silent --show-error", 1);
    let output = Command::new("sh").args(["-c", &line]).output().unwrap();
    assert_code(&output, 0);
    let answer: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{line}: {error}: {output:?}"));
    assert_eq!(answer["success"], true, "{line}: {answer}");
    answer
}

#[test]
fn what_the_header_says_works_from_the_first_start_through_scaling_up_and_down_to_the_end() {
    let Some(minio) = minio() else { return };
    let file = File::read(&repository().join("docker-compose.yml"));
    let mut world = World::new(file, minio);
    let header = world.header();
    let commands: Vec<&String> = header
        .iter()
        .filter(|line| line.starts_with("docker ") || line.starts_with("curl "))
        .collect();
    let [up, claim, status, scale_up, four, three, down] = commands.as_slice() else {
        panic!("the header has other commands than this test knows: {commands:?}");
    };

    assert!(line(&mut world, up).is_none());
    let started = |world: &World, name: &str| world.started.iter().position(|it| it == name);
    for (first, then) in [
        ("bucket", "minio"),
        ("minio", "init"),
        ("init", "keydb-0"),
        ("keydb-2", "operator"),
        ("operator", "prometheus"),
        ("prometheus", "grafana"),
    ] {
        assert!(started(&world, first).unwrap() < started(&world, then).unwrap());
    }
    assert_eq!(started(&world, "keydb-3"), None);
    let answer = line(&mut world, claim).unwrap();
    assert_eq!(
        answer["claims"],
        serde_json::json!(["first", "first", "duplicate"])
    );
    line(&mut world, status);
    let keys: Vec<String> = (0..500).map(|key| format!("key-{key}")).collect();
    let put = serde_json::json!({"keys": keys, "ttl": "1h"});
    curl(&world, &format!("curl localhost:8080/put -d '{put}'"));
    let is_all_there = |world: &World| {
        let get = format!("curl 'localhost:8080/get?keys={}'", keys.join(","));
        let exists = curl(world, &get)["exists"].clone();
        assert_eq!(exists, serde_json::json!(vec![true; 500]));
    };
    is_all_there(&world);

    line(&mut world, scale_up);
    let ready = |world: &World| {
        let ready = ["keydb", "health"].map(str::to_owned);
        world.exec("keydb-3", &ready).status.code()
    };
    assert_eq!(ready(&world), Some(1), "it is no member yet");
    line(&mut world, four);
    assert_eq!(ready(&world), Some(0));
    is_all_there(&world);

    line(&mut world, three);
    let left = world.wait_ended("keydb-3").unwrap();
    assert!(left.success(), "{left}\n{}", world.log("keydb-3"));
    is_all_there(&world);
    for name in ["keydb-0", "keydb-1", "keydb-2", "operator", "minio"] {
        assert_code(&world.health(name).unwrap(), 0);
    }
    line(&mut world, down);
}
