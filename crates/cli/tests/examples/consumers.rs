//! `examples/consumer.py` is killed again and again, and loses no message.

use std::{
    collections::HashMap,
    fs,
    ops::Range,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    http_nodes,
    python::Python,
    support::{Dev, Process},
};

struct World {
    dev: Dev,
    python: Python,
    directory: TempDir,
}

impl World {
    fn new() -> Self {
        Self {
            dev: Dev::start(),
            python: Python::new(),
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, consumer: usize, file: &str) -> PathBuf {
        self.directory.path().join(format!("{consumer}-{file}"))
    }

    /// Writes the log that this consumer reads.
    fn log(&self, consumer: usize, messages: impl Iterator<Item = usize>) {
        let lines: String = messages
            .map(|it| format!("{{\"id\":\"m-{it}\"}}\n"))
            .collect();
        fs::write(self.path(consumer, "log"), lines).unwrap();
    }

    /// A consumer that ends with its log. Each message takes it 2 ms; its leases last for `lease_s`.
    fn start(&self, consumer: usize, lease_s: u32) -> Process {
        let mut command: Command = self.python.command("examples/consumer.py");
        command.args(["--nodes", &http_nodes(&self.dev), "--until-end"]);
        command.args(["--work-ms", "2", "--lease", &lease_s.to_string()]);
        for (option, file) in [
            ("--log", "log"),
            ("--position", "position"),
            ("--output", "out"),
        ] {
            command.arg(option).arg(self.path(consumer, file));
        }
        Process::start(command.stdin(Stdio::null()))
    }

    /// The messages that this consumer has handled, as often as it has.
    fn handled(&self, consumer: usize) -> Vec<String> {
        let out = fs::read_to_string(self.path(consumer, "out")).unwrap_or_default();
        // A line that is still being written is looked at next time.
        let messages = out
            .lines()
            .map_while(|line| serde_json::from_str(line).ok());
        let ids = messages.map(|message: Value| message["id"].as_str().unwrap().to_owned());
        ids.collect()
    }

    /// Waits until this consumer has handled `more` messages more, or has ended. Says whether it runs.
    fn works(&self, consumer: usize, process: &mut Process, more: usize) -> bool {
        let before = self.handled(consumer).len();
        while process.child.try_wait().unwrap().is_none() {
            if self.handled(consumer).len() >= before + more {
                return true;
            }
            thread::sleep(Duration::from_millis(2));
        }
        false
    }

    /// Runs a consumer to the end of its log, and kills it up to `kills` times in the middle of its work. Returns how often.
    fn run_killed(&self, consumer: usize, kills: usize) -> usize {
        for kill in 0..kills {
            let mut process = self.start(consumer, 30);
            // At another step of its work each time.
            if !self.works(consumer, &mut process, 15 + 7 * kill) {
                assert!(process.child.wait().unwrap().success());
                return kill;
            }
            thread::sleep(Duration::from_micros(700 * kill as u64));
            process.child.kill().unwrap();
            process.child.wait().unwrap();
        }
        let mut last = self.start(consumer, 30);
        assert!(last.child.wait().unwrap().success());
        kills
    }

    /// Asserts that each of these messages was handled, and returns how many times too often.
    fn repeats(&self, consumers: Range<usize>, messages: usize) -> usize {
        let mut times: HashMap<String, usize> = HashMap::new();
        for id in consumers.flat_map(|consumer| self.handled(consumer)) {
            *times.entry(id).or_default() += 1;
        }
        let lost = (0..messages).filter(|it| !times.contains_key(&format!("m-{it}")));
        assert_eq!(lost.collect::<Vec<_>>(), [0; 0]);
        times.values().map(|times| times - 1).sum()
    }
}

#[test]
fn consumers_that_are_killed_lose_no_message_and_a_kill_repeats_one_at_most() {
    let world = World::new();
    // Some messages are in both logs, for both consumers at a time, and some are in one of them twice.
    world.log(0, (0..600).chain(0..100));
    world.log(1, (0..300).rev().chain(600..1000));
    let kills: usize = thread::scope(|scope| {
        let running = [0, 1].map(|consumer| {
            let world = &world;
            scope.spawn(move || world.run_killed(consumer, 8))
        });
        running.map(|it| it.join().unwrap()).iter().sum()
    });
    assert!(kills >= 8, "{kills}");
    let repeats = world.repeats(0..2, 1000);
    assert!(repeats <= kills, "{repeats} repeats in {kills} kills");
}

#[test]
fn consumers_of_the_same_messages_handle_each_once() {
    let world = World::new();
    world.log(0, 0..300);
    world.log(1, (0..300).chain(0..300));
    for mut consumer in [world.start(0, 30), world.start(1, 30)] {
        assert!(consumer.child.wait().unwrap().success());
    }
    assert_eq!(world.repeats(0..2, 300), 0);
}

#[test]
fn what_a_consumer_had_leased_that_never_comes_back_is_handled_by_another() {
    let world = World::new();
    world.log(0, 0..300);
    world.log(1, 0..300);
    let mut lost = world.start(0, 3);
    assert!(world.works(0, &mut lost, 30));
    drop(lost);
    let mut other = world.start(1, 3);
    assert!(other.child.wait().unwrap().success());
    assert!(world.repeats(0..2, 300) <= 1);
}
