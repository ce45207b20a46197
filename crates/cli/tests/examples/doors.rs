//! The Rust client, Python over HTTP, Python over gRPC and curl put, claim and find 100,000 keys through nodes that do not own them, and
//! each is told what the others have done.

use std::{collections::HashMap, fmt::Write, process::Command, time::Duration};

use keydb_client::{Claim, Client, ClientConfig, Ttl};
use keydb_core::{Fingerprint, KEY_BYTES_MAX};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::{
    http_nodes,
    python::Python,
    support::{Dev, assert_code, assert_says, stdout, with_input},
};

const KEYS: usize = 100_000;
const NODES: usize = 3;

/// A key, and a node that does not own it.
struct Key {
    bytes: Vec<u8>,
    via: usize,
}

/// Keys of all sorts, each another one.
fn keys(rng: &mut SmallRng) -> Vec<Vec<u8>> {
    let mut keys = vec![
        vec![b'k'; KEY_BYTES_MAX],
        b" ".to_vec(),
        b"\0".to_vec(),
        b"\"\\\n\r\t".to_vec(),
        "e\u{301}".as_bytes().to_vec(),
        "\u{e9}".as_bytes().to_vec(),
        "\u{10ffff}\u{feff}".as_bytes().to_vec(),
        vec![0xff],
    ];
    for number in keys.len()..KEYS {
        // The number keeps them apart.
        let mut key = number.to_string().into_bytes();
        match number % 5 {
            0 => {}
            1 => key.extend(format!("-{:016x}", rng.random::<u64>()).bytes()),
            2 => {
                let text: String = (0..8).map(|_| rng.random::<char>()).collect();
                key.extend(text.bytes());
            }
            3 => key.resize(rng.random_range(100..600), b'.'),
            _ => key.extend((0..12).map(|_| rng.random::<u8>())),
        }
        keys.push(key);
    }
    keys
}

/// A way to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Rust,
    Http,
    Grpc,
    Curl,
}

impl Door {
    const ALL: [Self; 4] = [Self::Rust, Self::Http, Self::Grpc, Self::Curl];

    /// gRPC's strings are text, and so are the lines that curl sends here.
    fn takes(self, key: &[u8]) -> bool {
        matches!(self, Self::Rust | Self::Http) || str::from_utf8(key).is_ok()
    }

    fn taken<'a>(self, keys: &[&'a Key]) -> Vec<&'a Key> {
        let taken = keys.iter().filter(|key| self.takes(&key.bytes));
        taken.copied().collect()
    }
}

struct World {
    dev: Dev,
    http: Vec<String>,
    python: Python,
    runtime: Runtime,
    client: Client,
}

impl World {
    fn new() -> Self {
        let (dev, runtime) = (Dev::start(), Runtime::new().unwrap());
        let config = ClientConfig::new(dev.addresses.clone());
        let client = runtime.block_on(Client::connect(config)).unwrap();
        Self {
            http: http_nodes(&dev).split(',').map(str::to_owned).collect(),
            dev,
            python: Python::new(),
            runtime,
            client,
        }
    }

    fn via_another_node(&self, bytes: Vec<u8>) -> Key {
        let map = self.client.cluster_map();
        let top = Fingerprint::of(&bytes, map.hash.seed).unwrap().top();
        let owner = map.ranges[map.range_index_of(top)].owner.0 as usize;
        let via = (owner + 1 + bytes.len() % (NODES - 1)) % NODES;
        Key { bytes, via }
    }

    /// What this door says of each of these keys.
    fn ask(&self, door: Door, operation: &str, keys: &[&Key]) -> Vec<String> {
        match door {
            Door::Rust => self.ask_rust(operation, keys),
            Door::Http => self.ask_python("http", operation, &self.http, keys),
            Door::Grpc => self.ask_python("grpc", operation, &self.dev.addresses, keys),
            Door::Curl => self.ask_curl(operation, keys),
        }
    }

    fn ask_rust(&self, operation: &str, keys: &[&Key]) -> Vec<String> {
        let ttl: Ttl = "1h".parse().unwrap();
        let bytes = keys.iter().map(|key| &key.bytes);
        let answers: Vec<&str> = self.runtime.block_on(async {
            match operation {
                "get" => {
                    let present = self.client.get(bytes).await.unwrap().into_iter();
                    present
                        .map(|it| if it { "present" } else { "absent" })
                        .collect()
                }
                "put" => {
                    self.client.put(bytes, ttl).await.unwrap();
                    vec!["stored"; keys.len()]
                }
                _ => {
                    let claims = self.client.claim(bytes, ttl).await.unwrap().into_iter();
                    let text = |claim| match claim {
                        Claim::First => "first",
                        Claim::Duplicate => "duplicate",
                        Claim::Unknown => "unknown",
                    };
                    claims.map(text).collect()
                }
            }
        });
        answers.into_iter().map(str::to_owned).collect()
    }

    fn ask_python(
        &self,
        door: &str,
        operation: &str,
        nodes: &[String],
        keys: &[&Key],
    ) -> Vec<String> {
        let mut lines = String::new();
        for key in keys {
            let _ = writeln!(lines, "{} {}", key.via, base64(&key.bytes));
        }
        let mut command = self.python.command("tests/doors.py");
        command.args([door, operation, &nodes.join(",")]);
        let output = with_input(&mut command, lines.as_bytes());
        assert_code(&output, 0);
        stdout(&output).lines().map(str::to_owned).collect()
    }

    /// Each node gets its keys as one request, a key a line.
    fn ask_curl(&self, operation: &str, keys: &[&Key]) -> Vec<String> {
        let mut answers = vec![String::new(); keys.len()];
        for (via, node) in self.http.iter().enumerate() {
            let mine: Vec<usize> = (0..keys.len()).filter(|it| keys[*it].via == via).collect();
            let mut lines = String::new();
            for index in &mine {
                let text = str::from_utf8(&keys[*index].bytes).unwrap();
                let _ = writeln!(lines, "{}", json!(text));
            }
            let ttl = if operation == "get" { "" } else { "?ttl=1h" };
            let mut command = Command::new("curl");
            command.args([
                "--silent",
                "--show-error",
                "--fail-with-body",
                "-T",
                "-",
                "-X",
                "POST",
            ]);
            command.args(["-H", "Content-Type: application/x-ndjson"]);
            command.arg(format!("http://{node}/v1/{operation}{ttl}"));
            let output = with_input(&mut command, lines.as_bytes());
            assert_code(&output, 0);
            let told: Vec<Value> = stdout(&output)
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect();
            assert_eq!(told.len(), mine.len());
            for (index, told) in mine.into_iter().zip(told) {
                answers[index] = match (&told["present"], &told["claim"]) {
                    (Value::Bool(true), _) => "present".to_owned(),
                    (Value::Bool(false), _) => "absent".to_owned(),
                    (_, Value::String(claim)) => claim.clone(),
                    _ => {
                        assert_eq!(told["stored"], true, "{told}");
                        "stored".to_owned()
                    }
                };
            }
        }
        answers
    }

    /// Asserts that this door says `expected` of all these keys.
    #[track_caller]
    fn expect(&self, door: Door, operation: &str, keys: &[&Key], expected: &str) {
        let answers = self.ask(door, operation, keys);
        assert_eq!(answers.len(), keys.len(), "{door:?}, {operation}");
        let mut counts: HashMap<String, usize> = HashMap::new();
        for answer in answers {
            *counts.entry(answer).or_default() += 1;
        }
        let all = HashMap::from([(expected.to_owned(), keys.len())]);
        assert_eq!(counts, all, "{door:?}, {operation}");
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, at| {
            bits << 8 | usize::from(*chunk.get(at).unwrap_or(&0))
        });
        for at in 0..4 {
            let digit = DIGITS[bits >> (18 - 6 * at) & 63];
            text.push(if at <= chunk.len() {
                char::from(digit)
            } else {
                '='
            });
        }
    }
    text
}

#[test]
fn clients_in_three_languages_agree_about_100_000_keys_through_nodes_that_do_not_own_them() {
    let world = World::new();
    let seed = rand::random();
    println!("seed {seed}");
    let keys = keys(&mut SmallRng::seed_from_u64(seed));
    let keys: Vec<Key> = keys
        .into_iter()
        .map(|key| world.via_another_node(key))
        .collect();
    // A third each is claimed, put, and left out. Each door does its part of it.
    let part = |number: usize| number / 7 % 3;
    let of_part = |wanted| -> Vec<&Key> {
        let all = keys.iter().enumerate();
        let mine = all.filter(|(number, _)| part(*number) == wanted);
        mine.map(|(_, key)| key).collect()
    };
    let (claimed, put) = (of_part(0), of_part(1));
    for (operation, keys, answer) in [("claim", &claimed, "first"), ("put", &put, "stored")] {
        let mut left = keys.clone();
        for (number, door) in Door::ALL.into_iter().enumerate().rev() {
            // The first door does what no other one has done.
            let mut share = 0..;
            let (mine, others) = left.into_iter().partition::<Vec<_>, _>(|key| {
                door.takes(&key.bytes)
                    && share
                        .next()
                        .is_some_and(|it: usize| it.is_multiple_of(number + 1))
            });
            world.expect(door, operation, &mine, answer);
            left = others;
        }
        assert_eq!(left.len(), 0);
    }
    let stored: Vec<&Key> = claimed.into_iter().chain(put).collect();
    for door in Door::ALL {
        world.expect(door, "claim", &door.taken(&stored), "duplicate");
        // Each answer belongs to its key.
        let all = keys.iter().enumerate();
        let taken = all.filter(|(_, key)| door.takes(&key.bytes));
        let (numbers, taken): (Vec<usize>, Vec<&Key>) = taken.unzip();
        let answers = world.ask(door, "get", &taken);
        let expected = numbers.into_iter().map(|number| match part(number) {
            2 => "absent",
            _ => "present",
        });
        assert_eq!(answers.len(), taken.len());
        let wrong = answers
            .iter()
            .zip(expected)
            .filter(|(told, right)| told != right);
        assert_eq!(wrong.count(), 0, "{door:?}");
    }
    world
        .runtime
        .block_on(world.client.clone().close(Duration::ZERO));
}

#[test]
fn no_client_stores_an_empty_key_or_one_that_is_too_long_nor_any_key_beside_it() {
    let world = World::new();
    let too_long = vec![b'k'; KEY_BYTES_MAX + 1];
    for wrong in [&[] as &[u8], &too_long] {
        let lines = format!("0 {}\n0 {}\n", base64(b"beside"), base64(wrong));
        for (door, node, refusal) in [
            ("http", &world.http[0], "400"),
            ("grpc", &world.dev.addresses[0], "INVALID_ARGUMENT"),
        ] {
            let mut command = world.python.command("tests/doors.py");
            let output = with_input(command.args([door, "claim", node]), lines.as_bytes());
            assert_says(&output, 1, &[refusal]);
        }
    }
    let beside = world.via_another_node(b"beside".to_vec());
    world.expect(Door::Rust, "get", &[&beside], "absent");
}
