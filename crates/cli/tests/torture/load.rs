//! Load on a cluster, and what its clients were told.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use keydb_client::{Claim, Client, WriteError};
use keydb_core::random;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::time::sleep;

use crate::history::{Event, Told, violations};

const KEYS_PER_CALL: u64 = 16;
/// How far back keys are used again.
const KEYS_WINDOW: u64 = 400;

/// What happens when, and to which keys: the same for the same seed, as far as threads and the kernel let it be.
pub(crate) struct Choices(SmallRng);

impl Choices {
    /// Those of one of the parties that choose.
    pub(crate) fn of(seed: u64, party: u64) -> Self {
        Self(SmallRng::seed_from_u64(seed.wrapping_add(party)))
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0.random_range(..bound)
    }
}

pub(crate) fn seed() -> u64 {
    std::env::var("TORTURE_SEED").map_or_else(|_| random::u64(), |text| text.parse().unwrap())
}

/// What all clients were told.
#[derive(Default)]
pub(crate) struct History {
    clock: AtomicU64,
    newest_key: AtomicU64,
    events: Mutex<Vec<Event>>,
    /// See [`doubt_since`](Self::doubt_since).
    doubts: Mutex<Vec<(u64, u64)>>,
    /// The lowest keys of the calls in progress, by when they began.
    in_progress: Mutex<BTreeMap<u64, u64>>,
    /// The acknowledged keys of what was settled.
    settled: Mutex<Vec<u64>>,
    /// The calls in progress end, and no new ones begin.
    pub(crate) stop: AtomicBool,
}

impl History {
    pub(crate) fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn note(&self, keys: &[u64], began: u64, told: impl Fn(usize) -> Told) {
        let ended = self.tick();
        let mut events = self.events.lock().unwrap();
        events.extend(keys.iter().enumerate().map(|(index, key)| Event {
            key: *key,
            began,
            ended,
            told: told(index),
        }));
    }

    /// A call with some new keys, and some that others use as well: when it began, and its keys.
    fn begin(&self, choices: &mut Choices) -> (u64, Vec<u64>) {
        let mut in_progress = self.in_progress.lock().unwrap();
        let newest = self.newest_key.fetch_add(2, Ordering::SeqCst) + KEYS_WINDOW;
        let keys: BTreeSet<u64> = (0..KEYS_PER_CALL)
            .map(|_| newest - choices.below(KEYS_WINDOW))
            .collect();
        let began = self.tick();
        in_progress.extend(keys.first().map(|lowest| (began, *lowest)));
        (began, keys.into_iter().collect())
    }

    /// Checks what was told of keys that no call takes any more, and forgets all of it but which of them were acknowledged. Returns what
    /// cannot be true.
    pub(crate) fn settle(&self) -> Vec<String> {
        let below = {
            let in_progress = self.in_progress.lock().unwrap();
            let lowest = in_progress.values().min().copied();
            let newest = self.newest_key.load(Ordering::SeqCst);
            lowest.unwrap_or(newest).min(newest)
        };
        let mut events = self.events.lock().unwrap();
        let (settled, open) = events.drain(..).partition(|event| event.key < below);
        *events = open;
        drop(events);
        self.settled.lock().unwrap().extend(acknowledged(&settled));
        violations(&settled)
    }

    /// The node is dead. What it acknowledged since `safe_until` may be lost, also what a caller has yet to read of it.
    pub(crate) fn doubt_since(&self, safe_until: u64) {
        let killed = self.tick();
        self.doubts.lock().unwrap().push((safe_until, killed));
    }

    /// Everything that was noted, doubts taken into account.
    pub(crate) fn events(&self) -> Vec<Event> {
        let doubts = self.doubts.lock().unwrap();
        let mut events = self.events.lock().unwrap().clone();
        for event in &mut events {
            let in_doubt = |(safe_until, killed): &(u64, u64)| {
                event.ended >= *safe_until && event.began <= *killed
            };
            if matches!(event.told, Told::Stored | Told::First) && doubts.iter().any(in_doubt) {
                event.told = Told::MaybeApplied;
            }
        }
        events
    }
}

/// The keys that are to be there, each once.
fn acknowledged(events: &[Event]) -> BTreeSet<u64> {
    let told = events
        .iter()
        .filter(|it| matches!(it.told, Told::Stored | Told::First));
    told.map(|event| event.key).collect()
}

fn name(key: u64) -> String {
    format!("key-{key}")
}

/// Calls, one after the other, with so much time between them.
pub(crate) async fn work(
    client: Client,
    history: Arc<History>,
    mut choices: Choices,
    pause: Duration,
) {
    let ttl = "1d".parse().unwrap();
    while !history.stop.load(Ordering::SeqCst) {
        sleep(pause).await;
        let (began, keys) = history.begin(&mut choices);
        let names = keys.iter().map(|key| name(*key));
        match choices.below(4) {
            0 => {
                if let Ok(present) = client.get(names).await {
                    history.note(&keys, began, |index| {
                        if present[index] {
                            Told::Present
                        } else {
                            Told::Absent
                        }
                    });
                }
            }
            1 => {
                let told = match client.put(names, ttl).await {
                    Ok(()) => Told::Stored,
                    Err(WriteError::NotApplied(_)) => Told::NotApplied,
                    Err(_) => Told::MaybeApplied,
                };
                history.note(&keys, began, |_| told);
            }
            _ => match client.claim(names, ttl).await {
                Ok(claims) => history.note(&keys, began, |index| match claims[index] {
                    Claim::First => Told::First,
                    Claim::Duplicate => Told::Duplicate,
                    Claim::Unknown => Told::Unknown,
                }),
                Err(WriteError::NotApplied(_)) => {
                    history.note(&keys, began, |_| Told::NotApplied);
                }
                Err(_) => history.note(&keys, began, |_| Told::MaybeApplied),
            },
        }
        history.in_progress.lock().unwrap().remove(&began);
    }
}

/// Every key that was ever acknowledged is asked for once more.
pub(crate) async fn ask_for_all(client: &Client, history: &History) {
    let keys: BTreeSet<u64> = history
        .events
        .lock()
        .unwrap()
        .iter()
        .map(|event| event.key)
        .collect();
    let keys: Vec<u64> = keys.into_iter().collect();
    let began = history.tick();
    let present = client.get(keys.iter().map(|key| name(*key))).await.unwrap();
    history.note(&keys, began, |index| {
        if present[index] {
            Told::Present
        } else {
            Told::Absent
        }
    });
}

/// And the keys of what was settled, which are all to be there. Returns those that are not.
pub(crate) async fn ask_for_settled(client: &Client, history: &History) -> Vec<String> {
    let settled = std::mem::take(&mut *history.settled.lock().unwrap());
    let mut missing = Vec::new();
    for keys in settled.chunks(100_000) {
        let present = client.get(keys.iter().map(|key| name(*key))).await.unwrap();
        let absent = keys.iter().zip(present).filter(|(_, present)| !present);
        missing
            .extend(absent.map(|(key, _)| format!("(a) key {key} was acknowledged and forgotten")));
    }
    missing
}
