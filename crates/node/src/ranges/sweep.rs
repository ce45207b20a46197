//! Gives back the memory of expired keys, in the background and a little at a time.

use std::{sync::Arc, time::Duration};

use keydb_core::{Sweep, Times};

use crate::{
    node::Node,
    ranges::owned::{OwnedRange, OwnedRanges},
};

/// A pass over all keys starts this long after the one before by the node's clock.
const PASS_INTERVAL_MS: u64 = 60_000;

/// How often it is looked whether a pass is due.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// During a pass, [`STEPS_AT_ONCE`] steps of some ten microseconds are taken this often: a few per cent of one core at most, and
/// hundreds of millions of keys within a minute.
const STEPS_INTERVAL: Duration = Duration::from_millis(10);
const STEPS_AT_ONCE: usize = 8;

/// Sweeps the node's ranges over and over.
pub(crate) async fn sweep(node: Arc<Node>) {
    let mut last_pass = node.clock.now();
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let now = node.clock.now();
        node.answers.forget_old(now);
        if now.0 < last_pass.0.saturating_add(PASS_INTERVAL_MS) {
            continue;
        }
        last_pass = now;
        // A wrong clock must not cost keys.
        if node.clock.is_trusted() {
            pass(&node).await;
        }
    }
}

/// Reclaims what may be by `times`, all at once, but for the turns of others in between, until `enough` says so. Returns how many
/// keys that were.
pub(crate) async fn reclaim(table: &OwnedRanges, times: Times, enough: impl Fn() -> bool) -> usize {
    let mut reclaimed = 0;
    for range in table.ranges() {
        let mut next = Some(Sweep::default());
        while let Some(from) = next {
            {
                let mut keys = range.write();
                let before = keys.len();
                next = keys.sweep(from, times);
                reclaimed += before - keys.len();
            }
            if enough() {
                return reclaimed;
            }
            tokio::task::yield_now().await;
        }
    }
    reclaimed
}

async fn pass(node: &Node) {
    let membership_state = node.membership.state();
    let mut pace = Pace::default();
    for range in membership_state
        .table()
        .map_or(&[][..], |table| table.ranges())
    {
        sweep_range(node, range, &mut pace).await;
    }
}

async fn sweep_range(node: &Node, range: &OwnedRange, pace: &mut Pace) {
    let mut next = Some(Sweep::default());
    while let Some(from) = next {
        pace.step().await;
        // Each step takes the lock for itself, so that requests get in between.
        next = range.write().sweep(from, node.clock.times());
    }
}

#[derive(Default)]
struct Pace {
    steps: usize,
}

impl Pace {
    async fn step(&mut self) {
        self.steps += 1;
        if self.steps > STEPS_AT_ONCE {
            self.steps = 1;
            tokio::time::sleep(STEPS_INTERVAL).await;
        }
    }
}
