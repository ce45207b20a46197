//! Breadth-first search over every state, and back from the settled ones.

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
};

use xxhash_rust::xxh3::Xxh3;

use crate::model::{Config, State};

/// What was found.
#[derive(Debug)]
pub(crate) struct Explored {
    pub(crate) states: usize,
    pub(crate) transitions: usize,
    pub(crate) settled: usize,
    /// What went wrong, and how it came to that.
    pub(crate) violation: Option<String>,
    /// Whether every state was seen.
    pub(crate) is_complete: bool,
}

#[derive(Default)]
struct Digest(Xxh3);

impl Hasher for Digest {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        self.0.digest()
    }
}

fn digest(state: &State) -> u128 {
    let mut hasher = Digest::default();
    state.hash(&mut hasher);
    hasher.0.digest128()
}

/// Visits every state that can be reached, `states_max` at most, and then looks for one from which no settled state can be reached with
/// nothing more going wrong.
pub(crate) fn explore(config: &Config, states_max: usize) -> Explored {
    let first = State::first(config);
    let mut indexes = HashMap::from([(digest(&first), 0_u32)]);
    // By index: the state before, and which of its successors this one is.
    let mut origins: Vec<(u32, u16)> = vec![(0, 0)];
    let mut free: Vec<(u32, u32)> = Vec::new();
    let mut settled: Vec<u32> = Vec::new();
    let mut transitions = 0;
    let mut frontier = vec![(0_u32, first)];
    let mut is_complete = true;
    while !frontier.is_empty() {
        let mut later = Vec::new();
        for (index, state) in frontier {
            if let Some(violation) = state.violation() {
                return Explored {
                    states: origins.len(),
                    transitions,
                    settled: settled.len(),
                    violation: Some(format!("{violation}\n{}", trace(config, &origins, index))),
                    is_complete: false,
                };
            }
            if state.is_settled() {
                settled.push(index);
            }
            if origins.len() > states_max {
                is_complete = false;
                continue;
            }
            for (place, next) in state.next(config, false).into_iter().enumerate() {
                transitions += 1;
                let fresh = origins.len() as u32;
                let to = *indexes.entry(digest(&next.state)).or_insert(fresh);
                if to == fresh {
                    origins.push((index, place as u16));
                    later.push((fresh, next.state));
                }
                if next.is_free {
                    free.push((to, index));
                }
            }
        }
        frontier = later;
    }
    drop(indexes);
    let stuck = if is_complete {
        stuck(origins.len(), free, &settled)
    } else {
        None
    };
    Explored {
        states: origins.len(),
        transitions,
        settled: settled.len(),
        violation: stuck.map(|index| {
            format!(
                "nothing leads to a settled state any more\n{}",
                trace(config, &origins, index)
            )
        }),
        is_complete,
    }
}

/// The first state from which none of `settled` can be reached by the edges `free` (to, from).
fn stuck(states: usize, mut free: Vec<(u32, u32)>, settled: &[u32]) -> Option<u32> {
    free.sort_unstable();
    let mut starts = vec![0_usize; states + 1];
    for (to, _) in &free {
        starts[*to as usize + 1] += 1;
    }
    for index in 0..states {
        starts[index + 1] += starts[index];
    }
    let mut is_good = vec![false; states];
    let mut open = settled.to_vec();
    for index in settled {
        is_good[*index as usize] = true;
    }
    while let Some(index) = open.pop() {
        for (_, from) in &free[starts[index as usize]..starts[index as usize + 1]] {
            if !std::mem::replace(&mut is_good[*from as usize], true) {
                open.push(*from);
            }
        }
    }
    is_good.iter().position(|good| !good).map(|at| at as u32)
}

/// How a state came about.
fn trace(config: &Config, origins: &[(u32, u16)], index: u32) -> String {
    let mut path = Vec::new();
    let mut at = index;
    while at != 0 {
        let (before, place) = origins[at as usize];
        path.push(place);
        at = before;
    }
    let mut state = State::first(config);
    let mut lines = Vec::new();
    for place in path.into_iter().rev() {
        let next = state.next(config, true).swap_remove(place as usize);
        lines.push(format!("  {}", next.what));
        state = next.state;
    }
    lines.push(state.describe());
    lines.join("\n")
}
