//! What a client has counted.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use keydb_core::RangeId;

/// What a client has counted since it was connected.
///
/// ```
/// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
/// # cluster::example(async |client: keydb_client::Client| {
/// for (range, waits) in client.counters().hand_overs {
///     println!("range {range}: {} waits, the longest {} ms", waits.waits, waits.wait_longest.as_millis());
/// }
/// # });
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ClientCounters {
    /// Of each hash range that was handed over from one node to another while calls had keys of it.
    pub hand_overs: BTreeMap<RangeId, HandOverWaits>,
}

/// How calls have waited for hash ranges that moved: from a node's refusal to the answer, or the call's end.
///
/// ```
/// fn line(waits: &keydb_client::HandOverWaits) -> String {
///     let mean = waits.wait_total.checked_div(waits.waits as u32).unwrap_or_default();
///     format!("{} waits of {mean:?}, the longest {:?}", waits.waits, waits.wait_longest)
/// }
/// # let _ = line;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct HandOverWaits {
    /// How often a node said that the range is being handed over to it.
    pub held_refusals: u64,
    /// How often a refusal had the client ask another node from then on.
    pub switches: u64,
    /// How many requests waited for an answer because of either.
    pub waits: u64,
    /// How long they waited altogether.
    pub wait_total: Duration,
    /// How long one of them waited at most.
    pub wait_longest: Duration,
}

impl ClientCounters {
    /// All ranges together.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// assert_eq!(client.counters().total().held_refusals, 0);
    /// # });
    /// ```
    pub fn total(&self) -> HandOverWaits {
        let mut total = HandOverWaits::default();
        for waits in self.hand_overs.values() {
            total.held_refusals += waits.held_refusals;
            total.switches += waits.switches;
            total.waits += waits.waits;
            total.wait_total += waits.wait_total;
            total.wait_longest = total.wait_longest.max(waits.wait_longest);
        }
        total
    }
}

/// Counts as things happen; none of them does in the steady state.
#[derive(Debug, Default)]
pub(crate) struct Counters(Mutex<ClientCounters>);

impl Counters {
    pub(crate) fn held(&self, range: RangeId) {
        self.of(range, |waits| waits.held_refusals += 1);
    }

    pub(crate) fn switched(&self, range: RangeId) {
        self.of(range, |waits| waits.switches += 1);
    }

    pub(crate) fn waited(&self, range: RangeId, time: Duration) {
        self.of(range, |waits| {
            waits.waits += 1;
            waits.wait_total += time;
            waits.wait_longest = waits.wait_longest.max(time);
        });
    }

    pub(crate) fn read(&self) -> ClientCounters {
        self.lock().clone()
    }

    fn of(&self, range: RangeId, count: impl FnOnce(&mut HandOverWaits)) {
        count(self.lock().hand_overs.entry(range).or_default());
    }

    fn lock(&self) -> MutexGuard<'_, ClientCounters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
