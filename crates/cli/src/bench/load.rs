//! Callers that put load on a target.
//!
//! Each call has a number. At a fixed rate call `n` is due `n × batch / rate` seconds after the start, whichever caller makes it
//! and whenever that one is free; its latency counts from then.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use super::{
    args::{Kind, Plan},
    keys::{self, ABSENT, KEY_BYTES, Key, mixed},
    record::{Expected, Recorder},
    target::Target,
};

/// Keys in a call of the preload.
const PRELOAD_BATCH: usize = 4096;
/// Calls of the preload at the same time.
const PRELOAD_CONCURRENCY: u64 = 8;

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
        }
    }

    /// Stores the keys 0 to `preload`.
    pub(crate) async fn preload(self: &Arc<Self>) -> Result<(), String> {
        let total = self.plan.preload;
        let next = Arc::new(AtomicU64::new(0));
        let mut tasks: JoinSet<Result<(), String>> = JoinSet::new();
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
            result.map_err(|error| error.to_string())??;
        }
        self.keys_answered.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// Runs all callers until the plan is fulfilled; returns how long it took.
    pub(crate) async fn run(self: &Arc<Self>) -> Result<Duration, String> {
        let started = Instant::now();
        let mut callers = JoinSet::new();
        for caller in 0..self.plan.concurrency {
            let load = Arc::clone(self);
            callers.spawn(async move { load.call_until_done(caller, started).await });
        }
        while let Some(result) = callers.join_next().await {
            result.map_err(|error| format!("a caller failed: {error}"))?;
        }
        Ok(started.elapsed())
    }

    async fn call_until_done(&self, caller: usize, started: Instant) {
        let plan = &self.plan;
        let mut random = mixed(plan.seed ^ mixed(caller as u64));
        let mut batch = vec![[0; KEY_BYTES]; plan.batch];
        let mut expected = vec![Expected::Anything; plan.batch];
        loop {
            let call = self.next_call.fetch_add(1, Ordering::Relaxed);
            let Some((count, due)) = self.call(call, started) else {
                return;
            };
            // When it is due counts, not when this caller came to it.
            let begin = match due {
                Some(due) => {
                    tokio::time::sleep_until(due.into()).await;
                    due
                }
                None => Instant::now(),
            };
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
                Err(error) => self.recorder.failed(caller, kind, error),
            }
        }
    }

    /// How many keys call number `call` has, and when it is due; `None` when there is none.
    fn call(&self, call: u64, started: Instant) -> Option<(usize, Option<Instant>)> {
        let plan = &self.plan;
        let before = call.saturating_mul(plan.batch as u64);
        let left = plan
            .operations
            .map_or(u64::MAX, |total| total.saturating_sub(before));
        let count = left.min(plan.batch as u64) as usize;
        let due = plan
            .rate
            .map(|rate| started + Duration::from_secs_f64(before as f64 / rate as f64));
        let at = due.unwrap_or_else(Instant::now);
        let over = plan
            .duration
            .is_some_and(|duration| at - started >= duration);
        (count > 0 && !over).then_some((count, due))
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
