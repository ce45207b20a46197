//! What a measurement collects: latencies and answers, kept apart by operation.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use hdrhistogram::Histogram;
use keydb_client::Claim;

use super::{args::Kind, target::Answers};

/// Callers are spread over this many recorders, so that they rarely wait for each other.
const SHARDS: usize = 8;
/// A latency is exact to three digits.
const DIGITS: u8 = 3;

/// Of one kind of operation.
#[derive(Debug)]
pub(crate) struct Record {
    /// Nanoseconds.
    pub(crate) latencies: Histogram<u64>,
    pub(crate) counts: Counts,
}

/// Calls and keys by what came of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    pub(crate) calls: u64,
    pub(crate) failed_calls: u64,
    pub(crate) keys: u64,
    pub(crate) first: u64,
    pub(crate) duplicate: u64,
    pub(crate) unknown: u64,
    pub(crate) present: u64,
    pub(crate) absent: u64,
    /// Keys whose answer was not the one that was to be expected.
    pub(crate) unexpected: u64,
}

/// What the answer to a key ought to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// A claim of a new key, a get of an absent one.
    New,
    /// A get of a key of the preload.
    Stored,
    /// The keys began again.
    Anything,
}

impl Record {
    fn new() -> Self {
        Self {
            latencies: Histogram::new(DIGITS).expect("three digits are possible"),
            counts: Counts::default(),
        }
    }

    fn merge(&mut self, other: &Self) {
        self.latencies
            .add(&other.latencies)
            .expect("it grows as needed");
        self.counts.merge(&other.counts);
    }
}

impl Counts {
    /// Adds the answers of one call, of which `expected` says what they ought to be, one a key.
    pub(crate) fn add(&mut self, answers: &Answers, keys: usize, expected: &[Expected]) {
        self.calls += 1;
        self.keys += keys as u64;
        match answers {
            Answers::Stored => {}
            Answers::Claims(claims) => {
                for (claim, expected) in claims.iter().zip(expected) {
                    match claim {
                        Claim::First => self.first += 1,
                        Claim::Duplicate => self.duplicate += 1,
                        Claim::Unknown => self.unknown += 1,
                    }
                    self.unexpected +=
                        u64::from(*expected == Expected::New && *claim != Claim::First);
                }
            }
            Answers::Present(present) => {
                for (present, expected) in present.iter().zip(expected) {
                    if *present {
                        self.present += 1;
                    } else {
                        self.absent += 1;
                    }
                    self.unexpected += u64::from(match expected {
                        Expected::New => *present,
                        Expected::Stored => !present,
                        Expected::Anything => false,
                    });
                }
            }
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.calls += other.calls;
        self.failed_calls += other.failed_calls;
        self.keys += other.keys;
        self.first += other.first;
        self.duplicate += other.duplicate;
        self.unknown += other.unknown;
        self.present += other.present;
        self.absent += other.absent;
        self.unexpected += other.unexpected;
    }
}

/// Takes the records of all callers.
#[derive(Debug)]
pub(crate) struct Recorder {
    shards: Vec<Mutex<[Record; 3]>>,
    first_error: Mutex<Option<String>>,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        let shard = || Mutex::new([Record::new(), Record::new(), Record::new()]);
        Self {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            first_error: Mutex::default(),
        }
    }

    /// One call of caller `caller` was answered.
    pub(crate) fn answered(
        &self,
        caller: usize,
        kind: Kind,
        latency: Duration,
        answers: &Answers,
        expected: &[Expected],
    ) {
        let mut shard = self.shards[caller % SHARDS]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let record = &mut shard[kind as usize];
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        // It grows as needed; only a latency of centuries would not fit.
        let _ = record.latencies.record(nanos);
        record.counts.add(answers, expected.len(), expected);
    }

    /// One call of caller `caller` failed.
    pub(crate) fn failed(&self, caller: usize, kind: Kind, error: String) {
        let mut shard = self.shards[caller % SHARDS]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        shard[kind as usize].counts.failed_calls += 1;
        drop(shard);
        let mut first = self
            .first_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(error);
    }

    /// All that was recorded so far, of one kind.
    pub(crate) fn total(&self, kind: Kind) -> Record {
        let mut total = Record::new();
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            total.merge(&shard[kind as usize]);
        }
        total
    }

    /// The first error of any call.
    pub(crate) fn first_error(&self) -> Option<String> {
        let error = self
            .first_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        error.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_of_all_callers_are_in_the_total() {
        let recorder = Recorder::new();
        for caller in 0..20 {
            let latency = Duration::from_millis(caller as u64 + 1);
            let stored = [Expected::Anything];
            recorder.answered(caller, Kind::Put, latency, &Answers::Stored, &stored);
        }
        let total = recorder.total(Kind::Put);
        assert_eq!((total.counts.calls, total.latencies.len()), (20, 20));
        let max_ms = total.latencies.max() as f64 / 1e6;
        assert!((19.9..20.1).contains(&max_ms), "{max_ms}");
        assert_eq!(recorder.total(Kind::Get).counts, Counts::default());
    }

    #[test]
    fn an_answer_that_was_not_to_be_expected_is_counted() {
        let mut counts = Counts::default();
        let claims = Answers::Claims(vec![Claim::First, Claim::Duplicate, Claim::Duplicate]);
        let expected = [Expected::New, Expected::New, Expected::Anything];
        counts.add(&claims, 3, &expected);
        assert_eq!(
            (counts.first, counts.duplicate, counts.unexpected),
            (1, 2, 1)
        );
        let present = Answers::Present(vec![true, true, false, false]);
        let expected = [
            Expected::New,
            Expected::Stored,
            Expected::New,
            Expected::Stored,
        ];
        counts.add(&present, 4, &expected);
        assert_eq!(
            (counts.present, counts.absent, counts.unexpected),
            (2, 2, 3)
        );
        assert_eq!((counts.calls, counts.keys), (2, 7));
    }
}
