//! One batch that the reader fills and the taker takes.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{AGE_MAX, Batch, Fill, InputError, Limits, SILENCE, batch::Record};

/// The place where reader and taker meet.
#[derive(Debug)]
pub(crate) struct Exchange {
    limits: Limits,
    state: Mutex<State>,
    /// Something was added, or the input ended.
    added: Condvar,
    /// The batch was taken, or nobody will.
    taken: Condvar,
}

#[derive(Debug, Default)]
struct State {
    batch: Batch,
    /// The batch has reached a limit.
    full: bool,
    /// The input may fall silent before its end.
    can_wait: bool,
    /// When the batch's first and last records were added.
    added_at: Option<(Instant, Instant)>,
    /// The input has ended, well or not.
    end: Option<Result<(), InputError>>,
    /// Nobody takes batches any more.
    abandoned: bool,
}

/// Nobody takes batches any more.
#[derive(Debug)]
pub(crate) struct Abandoned;

impl Exchange {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: Mutex::default(),
            added: Condvar::new(),
            taken: Condvar::new(),
        }
    }

    /// Adds records whose bytes lie one after the other in `bytes`, and whose decoded keys in `decoded`; waits whenever the
    /// batch is full.
    pub(crate) fn add(
        &self,
        mut records: &[Record],
        mut bytes: &[u8],
        mut decoded: &[u8],
    ) -> Result<(), Abandoned> {
        let mut state = self.lock();
        while !records.is_empty() {
            while state.full && !state.abandoned && state.end.is_none() {
                state = self
                    .taken
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            if state.abandoned || state.end.is_some() {
                return Err(Abandoned);
            }
            let fit = self.fitting(&state.batch, records);
            let (now, later) = records.split_at(fit.records);
            let (now_bytes, later_bytes) = bytes.split_at(fit.bytes);
            let (now_decoded, later_decoded) = decoded.split_at(fit.decoded);
            state.batch.extend(now, now_bytes, now_decoded);
            state.full = fit.fills;
            if state.can_wait {
                let now = Instant::now();
                let (first, _) = state.added_at.unwrap_or((now, now));
                state.added_at = Some((first, now));
            }
            (records, bytes, decoded) = (later, later_bytes, later_decoded);
            self.added.notify_one();
        }
        Ok(())
    }

    /// Another input begins, which may fall silent before its end, or not.
    pub(crate) fn input_begins(&self, can_wait: bool) {
        self.lock().can_wait = can_wait;
    }

    /// The input has ended, well or not; what comes after the first end is not added.
    pub(crate) fn end(&self, end: Result<(), InputError>) {
        self.lock().end.get_or_insert(end);
        self.added.notify_one();
        self.taken.notify_one();
    }

    /// Waits until there is a batch to hand out; `None` at the end.
    pub(crate) fn take(&self, mut spare: Batch, fill: Fill) -> Result<Option<Batch>, InputError> {
        spare.clear();
        let mut state = self.lock();
        loop {
            let failed = matches!(state.end, Some(Err(_)));
            let there = match fill {
                Fill::WhatIsThere => !state.batch.is_empty(),
                Fill::Exact | Fill::FullOrSilent => {
                    state.full || (state.end.is_some() && !failed && !state.batch.is_empty())
                }
            };
            let due = match (fill, state.added_at) {
                (Fill::FullOrSilent, Some((first, last))) if !failed => {
                    Some((last + SILENCE).min(first + AGE_MAX))
                }
                _ => None,
            };
            let remaining = due.map(|due| due.saturating_duration_since(Instant::now()));
            let there = there || remaining.is_some_and(|remaining| remaining.is_zero());
            if there {
                std::mem::swap(&mut state.batch, &mut spare);
                (state.full, state.added_at) = (false, None);
                self.taken.notify_one();
                return Ok(Some(spare));
            }
            if let Some(end) = state.end.take() {
                state.end = Some(Ok(()));
                return end.map(|()| None);
            }
            state = match remaining {
                Some(remaining) => {
                    let waited = self.added.wait_timeout(state, remaining);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self
                    .added
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Nobody will take a batch any more.
    pub(crate) fn abandon(&self) {
        self.lock().abandoned = true;
        self.taken.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many of `records` go into `batch`: all, or those up to the one that fills it.
    fn fitting(&self, batch: &Batch, records: &[Record]) -> Fit {
        let mut fit = Fit::default();
        for record in records {
            fit.records += 1;
            fit.bytes += record.len as usize;
            fit.decoded += record.decoded_len();
            if batch.len() + fit.records >= self.limits.records
                || batch.bytes().len() + fit.bytes >= self.limits.bytes
            {
                fit.fills = true;
                break;
            }
        }
        fit
    }
}

#[derive(Debug, Default)]
struct Fit {
    records: usize,
    bytes: usize,
    decoded: usize,
    fills: bool,
}
