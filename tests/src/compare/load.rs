//! What one store is put through, and what is measured on the way.

use std::{io, sync::Arc, time::Instant};

use crate::keys::{Keys, mix};

/// Keys at which the resident memory is read.
pub(crate) const MEMORY_POINTS: [usize; 4] = [2_000_000, 5_000_000, 10_000_000, 20_000_000];

/// One-key claims are made from so many tasks.
pub(crate) const TASKS: usize = 512;

/// Keys used by one run: the last memory point is reached by claims, then as many one-key claims follow.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    /// Keys claimed in bulk.
    pub(crate) bulk: usize,
    /// Of those, the ones before the clock starts.
    pub(crate) resident: usize,
    /// Lookups: half of them of present keys.
    pub(crate) gets: usize,
    /// Keys claimed one by one afterwards.
    pub(crate) single: usize,
}

impl Plan {
    pub(crate) fn of(scale: usize) -> Self {
        Self {
            bulk: 20_000_000 / scale,
            resident: 10_000_000 / scale,
            gets: 10_000_000 / scale,
            single: 2_000_000 / scale,
        }
    }

    /// The keys that are stored, in order.
    pub(crate) fn stored(self) -> Keys {
        Keys::of(self.bulk + self.single, |at| at)
    }

    /// The keys that are looked up: in turn one of those claimed in bulk, at random, and one that is never stored.
    pub(crate) fn looked_up(self) -> Keys {
        let absent = (self.bulk + self.single) as u64;
        Keys::of(self.gets, |at| match at % 2 {
            0 => mix(at) % self.bulk as u64,
            _ => absent + at,
        })
    }
}

/// A store under test. Every method checks the answers and fails when one is wrong.
pub(crate) trait Store {
    /// Claims keys nobody claimed before; all must be firsts.
    fn claim_new(&mut self, keys: &Arc<Keys>, range: std::ops::Range<usize>) -> io::Result<()>;
    /// Claims keys that are all there; all must be duplicates.
    fn claim_again(&mut self, keys: &Arc<Keys>, range: std::ops::Range<usize>) -> io::Result<()>;
    /// Looks keys up; every other one, from the first on, must be present, the others absent.
    fn get(&mut self, keys: &Arc<Keys>) -> io::Result<()>;
    /// Claims new keys one by one from [`TASKS`] tasks.
    fn claim_single(&mut self, keys: &Arc<Keys>, range: std::ops::Range<usize>) -> io::Result<()>;
    /// Resident bytes of the server.
    fn resident_bytes(&self) -> io::Result<u64>;
}

/// What one run measured. Rates are keys a second.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) claims: f64,
    pub(crate) gets: f64,
    pub(crate) single_claims: f64,
    /// Resident bytes a key at each memory point, the whole process.
    pub(crate) bytes: Vec<f64>,
}

pub(crate) fn run(
    store: &mut impl Store,
    keys: &Arc<Keys>,
    looked_up: &Arc<Keys>,
    plan: Plan,
) -> io::Result<Figures> {
    let scale = MEMORY_POINTS[MEMORY_POINTS.len() - 1] / plan.bulk;
    let mut figures = Figures::default();
    let mut stored = 0;
    let mut claiming = 0.0;
    for point in MEMORY_POINTS.map(|point| point / scale) {
        let begin = Instant::now();
        store.claim_new(keys, stored..point)?;
        if stored >= plan.resident {
            claiming += begin.elapsed().as_secs_f64();
        }
        stored = point;
        figures
            .bytes
            .push(store.resident_bytes()? as f64 / stored as f64);
    }
    figures.claims = (plan.bulk - plan.resident) as f64 / claiming;
    store.claim_again(keys, 0..plan.bulk.min(200_000))?;

    let begin = Instant::now();
    store.get(looked_up)?;
    figures.gets = plan.gets as f64 / begin.elapsed().as_secs_f64();

    let begin = Instant::now();
    store.claim_single(keys, plan.bulk..plan.bulk + plan.single)?;
    figures.single_claims = plan.single as f64 / begin.elapsed().as_secs_f64();
    store.claim_again(keys, plan.bulk..plan.bulk + plan.single.min(200_000))?;
    Ok(figures)
}

/// Fails with what was expected and what came.
pub(crate) fn check(what: &str, expected: usize, got: usize) -> io::Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "wrong answers: {what}: expected {expected}, got {got}"
    )))
}
