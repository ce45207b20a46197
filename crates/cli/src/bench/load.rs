//! Callers that put load on a target.
//!
//! Each call has a number. At a fixed rate call `n` is due `n × batch / rate` seconds after the start, whichever caller makes it
//! and whenever that one is free; its latency counts from then. A thread of its own says when calls are due: the timers of the
//! async runtime are only exact to a millisecond.

use std::{
    fmt::Display,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    args::{Kind, Plan},
    keys::{self, ABSENT, KEY_BYTES, Key, mixed},
    record::{Expected, Recorder},
    target::{CallError, Target},
};
use crate::exit::Failure;

/// Keys in a call of the preload.
const PRELOAD_BATCH: usize = 4096;
/// Calls of the preload at the same time.
const PRELOAD_CONCURRENCY: u64 = 8;

/// How long after the end of a measurement at a fixed rate calls that are late may still be made.
const GRACE: Duration = Duration::from_secs(1);

/// What all callers share.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) plan: Plan,
    pub(crate) target: Target,
    pub(crate) recorder: Recorder,
    /// How many keys were answered, for the live line.
    pub(crate) keys_answered: AtomicU64,
    /// The next call's number.
    next_call: AtomicU64,
    /// The next new key's number, the preload's included.
    next_key: AtomicU64,
    /// At a fixed rate: the calls that are due and not yet made. Closed when no more are to be made.
    due: Semaphore,
}

/// How a measurement went.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ran {
    /// How long it took.
    pub(crate) elapsed: Duration,
    /// At a fixed rate: calls that were due and never made, because every caller was waiting for an answer.
    pub(crate) missed_calls: u64,
}

impl Load {
    pub(crate) fn new(plan: Plan, target: Target) -> Self {
        Self {
            next_key: AtomicU64::new(plan.preload),
            plan,
            target,
            recorder: Recorder::new(),
            keys_answered: AtomicU64::new(0),
            next_call: AtomicU64::new(0),
            due: Semaphore::new(0),
        }
    }

    /// Stores the keys 0 to `preload`.
    pub(crate) async fn preload(self: &Arc<Self>) -> Result<(), Failure> {
        let failed = |error: &dyn Display| Failure::failed(format!("the preload failed: {error}"));
        let total = self.plan.preload;
        let next = Arc::new(AtomicU64::new(0));
        let mut tasks: JoinSet<Result<(), CallError>> = JoinSet::new();
        for _ in 0..PRELOAD_CONCURRENCY {
            let (load, next) = (Arc::clone(self), Arc::clone(&next));
            tasks.spawn(async move {
                let mut batch = vec![[0; KEY_BYTES]; PRELOAD_BATCH];
                loop {
                    let start = next.fetch_add(PRELOAD_BATCH as u64, Ordering::Relaxed);
                    if start >= total {
                        return Ok(());
                    }
                    let count = (total - start).min(PRELOAD_BATCH as u64) as usize;
                    for (key, number) in batch[..count].iter_mut().zip(start..) {
                        keys::write(load.plan.seed, number, key);
                    }
                    load.target.call(Kind::Put, &batch[..count]).await?;
                    load.keys_answered
                        .fetch_add(count as u64, Ordering::Relaxed);
                }
            });
        }
        while let Some(result) = tasks.join_next().await {
            let stored = result.map_err(|error| failed(&error))?;
            stored.map_err(|error| failed(&error))?;
        }
        self.keys_answered.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// Runs all callers until the plan is fulfilled.
    pub(crate) async fn run(self: &Arc<Self>) -> Result<Ran, Failure> {
        let started = Instant::now();
        let pacer = match self.plan.rate {
            None => None,
            Some(rate) => {
                let load = Arc::clone(self);
                let pacer = thread::Builder::new().name("pacer".to_owned());
                let spawned = pacer.spawn(move || load.pace(rate, started));
                Some(spawned.map_err(Failure::no_thread)?)
            }
        };
        let mut callers = JoinSet::new();
        for caller in 0..self.plan.concurrency {
            let load = Arc::clone(self);
            callers.spawn(async move { load.call_until_done(caller, started).await });
        }
        while let Some(result) = callers.join_next().await {
            result.map_err(|error| Failure::failed(format!("a caller failed: {error}")))?;
        }
        let elapsed = started.elapsed();
        let missed_calls = match pacer.map(thread::JoinHandle::join) {
            None => 0,
            Some(announced) => announced
                .map_err(|_| Failure::failed("the thread that paces calls failed"))?
                .saturating_sub(self.next_call.load(Ordering::Relaxed)),
        };
        Ok(Ran {
            elapsed,
            missed_calls,
        })
    }

    /// Announces each call when it is due; returns how many those were.
    fn pace(&self, rate: u64, started: Instant) -> u64 {
        let mut announced: u64 = 0;
        while self.keys_of(announced) > 0 {
            let due = self.due_after(announced, rate);
            if self.plan.duration.is_some_and(|duration| due >= duration) {
                break;
            }
            thread::sleep(due.saturating_sub(started.elapsed()));
            self.due.add_permits(1);
            announced += 1;
        }
        let end = self.due_after(announced, rate) + GRACE;
        while self.next_call.load(Ordering::Relaxed) < announced && started.elapsed() < end {
            thread::sleep(Duration::from_millis(1));
        }
        self.due.close();
        announced
    }

    async fn call_until_done(&self, caller: usize, started: Instant) {
        let plan = &self.plan;
        let mut random = mixed(plan.seed ^ mixed(caller as u64));
        let mut batch = vec![[0; KEY_BYTES]; plan.batch];
        let mut expected = vec![Expected::Anything; plan.batch];
        while let Some((count, begin)) = self.next_call(started).await {
            random = mixed(random);
            let kind = plan.mix.choose(random);
            let (batch, expected) = (&mut batch[..count], &mut expected[..count]);
            self.fill(kind, &mut random, batch, expected);
            match self.target.call(kind, batch).await {
                Ok(answers) => {
                    let latency = begin.elapsed();
                    self.keys_answered
                        .fetch_add(count as u64, Ordering::Relaxed);
                    self.recorder
                        .answered(caller, kind, latency, &answers, expected);
                }
                Err(error) => self.recorder.failed(caller, kind, error.to_string()),
            }
        }
    }

    /// Waits for the next call: how many keys it has, and from when its latency counts. `None` when there is none.
    async fn next_call(&self, started: Instant) -> Option<(usize, Instant)> {
        let begin = match self.plan.rate {
            Some(rate) => {
                self.due.acquire().await.ok()?.forget();
                let call = self.next_call.fetch_add(1, Ordering::Relaxed);
                // When it was due counts, not when this caller came to it.
                return Some((self.keys_of(call), started + self.due_after(call, rate)));
            }
            None => Instant::now(),
        };
        let is_over = |duration| begin - started >= duration;
        if self.plan.duration.is_some_and(is_over) {
            return None;
        }
        let count = self.keys_of(self.next_call.fetch_add(1, Ordering::Relaxed));
        (count > 0).then_some((count, begin))
    }

    /// How many keys call number `call` has; 0 when there is none.
    fn keys_of(&self, call: u64) -> usize {
        let batch = self.plan.batch as u64;
        let left = match self.plan.operations {
            None => u64::MAX,
            Some(total) => total.saturating_sub(call.saturating_mul(batch)),
        };
        left.min(batch) as usize
    }

    /// When call number `call` is due after the start, at a rate in keys a second.
    fn due_after(&self, call: u64, rate: u64) -> Duration {
        Duration::from_secs_f64(call as f64 * self.plan.batch as f64 / rate as f64)
    }

    fn fill(&self, kind: Kind, random: &mut u64, batch: &mut [Key], expected: &mut [Expected]) {
        let plan = &self.plan;
        if kind == Kind::Get {
            let hits_below = (plan.hit_share * u64::MAX as f64) as u64;
            for (key, expected) in batch.iter_mut().zip(expected) {
                *random = mixed(*random);
                let is_hit = plan.preload > 0 && *random <= hits_below && plan.hit_share > 0.0;
                let which = mixed(*random);
                let number = if is_hit {
                    *expected = Expected::Stored;
                    which % plan.preload
                } else {
                    *expected = Expected::New;
                    which | ABSENT
                };
                keys::write(plan.seed, number, key);
            }
            return;
        }
        let first = self
            .next_key
            .fetch_add(batch.len() as u64, Ordering::Relaxed);
        for ((key, expected), number) in batch.iter_mut().zip(expected).zip(first..) {
            let since_preload = number - plan.preload;
            let (number, is_new) = match plan.distinct_keys {
                Some(distinct) if since_preload >= distinct => {
                    (plan.preload + since_preload % distinct, false)
                }
                _ => (number, true),
            };
            // After a failed call nobody knows what its keys are; the next round of keys meets them again.
            *expected = if is_new {
                Expected::New
            } else {
                Expected::Anything
            };
            keys::write(plan.seed, number, key);
        }
    }
}
