//! The result of a measurement, as text and as JSON.

use std::{fmt::Write, time::Duration};

use hdrhistogram::Histogram;
use keydb_client::ClientCounters;
use serde_json::{Value, json};

use super::{
    args::{Kind, Plan},
    load::Ran,
    record::{Counts, Record, Recorder},
};
use crate::output::{Align, table, thousands};

/// What was measured.
#[derive(Debug)]
pub(crate) struct Report {
    operations: Vec<(Kind, Record)>,
    elapsed: Duration,
    missed_calls: u64,
    waits: ClientCounters,
    first_error: Option<String>,
}

impl Report {
    /// Collects what `recorder` has.
    pub(crate) fn new(recorder: &Recorder, ran: Ran, waits: ClientCounters) -> Self {
        let all = Kind::ALL
            .into_iter()
            .map(|kind| (kind, recorder.total(kind)));
        Self {
            operations: all
                .filter(|(_, record)| record.counts.calls + record.counts.failed_calls > 0)
                .collect(),
            elapsed: ran.elapsed,
            missed_calls: ran.missed_calls,
            waits,
            first_error: recorder.first_error(),
        }
    }

    /// The counts of all operations together.
    pub(crate) fn counts(&self) -> Counts {
        let mut total = Counts::default();
        for (_, record) in &self.operations {
            total.merge(&record.counts);
        }
        total
    }

    /// The first error of any call.
    pub(crate) fn first_error(&self) -> Option<&str> {
        self.first_error.as_deref()
    }

    fn per_second(&self, count: u64) -> u64 {
        (count as f64 / self.elapsed.as_secs_f64().max(1e-9)) as u64
    }

    pub(crate) fn text(&self, plan: &Plan) -> String {
        let header = [
            ("OPERATION", Align::Left),
            ("KEYS/S", Align::Right),
            ("CALLS/S", Align::Right),
            ("P50", Align::Right),
            ("P99", Align::Right),
            ("P99.9", Align::Right),
            ("MAX", Align::Right),
            ("ANSWERS", Align::Left),
        ];
        let rows: Vec<Vec<String>> = self
            .operations
            .iter()
            .map(|(kind, Record { latencies, counts })| {
                vec![
                    kind.name().to_owned(),
                    thousands(self.per_second(counts.keys)),
                    thousands(self.per_second(counts.calls)),
                    latency_text(latencies.value_at_quantile(0.5)),
                    latency_text(latencies.value_at_quantile(0.99)),
                    latency_text(latencies.value_at_quantile(0.999)),
                    latency_text(latencies.max()),
                    answers_text(*kind, counts),
                ]
            })
            .collect();
        let counts = self.counts();
        let mut text = table(&header, &rows);
        let _ = writeln!(
            text,
            "\n{} keys in {:.1} s; {} a call, {} calls at the same time, {}; seed {}",
            thousands(counts.keys),
            self.elapsed.as_secs_f64(),
            plan.batch,
            plan.concurrency,
            match plan.rate {
                None => "as fast as it goes".to_owned(),
                Some(rate) => format!(
                    "{} keys/s at fixed times (latencies count from when a call was due)",
                    thousands(rate)
                ),
            },
            plan.seed
        );
        if self.missed_calls > 0 {
            let _ = writeln!(
                text,
                "{} calls were due and never made: this is more than the target takes, and the latencies are too kind",
                thousands(self.missed_calls)
            );
        }
        let waits = self.waits.total();
        if !self.waits.hand_overs.is_empty() {
            let _ = writeln!(
                text,
                "hash ranges moved: {} switched to another node, {} refusals while they were handed over; {} requests waited for that, {:.1} ms at most, {:.1} ms altogether",
                thousands(waits.switches),
                thousands(waits.held_refusals),
                thousands(waits.waits),
                millis(waits.wait_longest),
                millis(waits.wait_total)
            );
            let longest = self.longest_waits();
            let share = |share: f64| millis(longest[((longest.len() - 1) as f64 * share) as usize]);
            let _ = writeln!(
                text,
                "the longest wait for each of {} ranges: {:.1} ms for half of them, {:.1} ms for nine in ten, {:.1} ms for all",
                longest.len(),
                share(0.5),
                share(0.9),
                share(1.0)
            );
        }
        if counts.unexpected > 0 {
            let _ = writeln!(
                text,
                "{} keys were answered otherwise than expected (a seed used before, a node that lost its keys, or a lost reply)",
                thousands(counts.unexpected)
            );
        }
        text
    }

    pub(crate) fn json(&self, plan: &Plan) -> Value {
        let counts = self.counts();
        let operations = self.operations.iter().map(|(kind, record)| {
            let mut value = self.counts_json(&record.counts);
            value["operation"] = json!(kind);
            value["latency_ns"] = latency_json(&record.latencies);
            value
        });
        let mut report = json!({
            "seconds": self.elapsed.as_secs_f64(),
            "batch": plan.batch,
            "concurrency": plan.concurrency,
            "preload": plan.preload,
            "rate": plan.rate,
            "corrected_for_coordinated_omission": plan.rate.is_some(),
            "missed_calls": self.missed_calls,
            "seed": plan.seed,
            "total": self.counts_json(&counts),
            "operations": operations.collect::<Vec<_>>(),
            "first_error": self.first_error,
        });
        let waits = self.waits.total();
        if !self.waits.hand_overs.is_empty() {
            let longest = self.longest_waits().into_iter().map(millis);
            report["hand_overs"] = json!({
                "held_refusals": waits.held_refusals,
                "switches": waits.switches,
                "waits": waits.waits,
                "wait_total_ms": millis(waits.wait_total),
                "wait_longest_ms": millis(waits.wait_longest),
                "wait_longest_ms_by_range": longest.collect::<Vec<_>>(),
            });
        }
        report
    }

    /// Of each range that was handed over, ascending.
    fn longest_waits(&self) -> Vec<Duration> {
        let waits = self.waits.hand_overs.values();
        let mut longest: Vec<Duration> = waits.map(|waits| waits.wait_longest).collect();
        longest.sort_unstable();
        longest
    }

    fn counts_json(&self, counts: &Counts) -> Value {
        json!({
            "keys": counts.keys,
            "keys_per_second": self.per_second(counts.keys),
            "calls": counts.calls,
            "calls_per_second": self.per_second(counts.calls),
            "failed_calls": counts.failed_calls,
            "first": counts.first,
            "duplicate": counts.duplicate,
            "unknown": counts.unknown,
            "present": counts.present,
            "absent": counts.absent,
            "unexpected": counts.unexpected,
        })
    }
}

fn answers_text(kind: Kind, counts: &Counts) -> String {
    let mut parts = match kind {
        Kind::Claim => vec![
            (counts.first, "first"),
            (counts.duplicate, "duplicate"),
            (counts.unknown, "unknown"),
        ],
        Kind::Get => vec![(counts.present, "present"), (counts.absent, "absent")],
        Kind::Put => vec![(counts.keys, "stored")],
    };
    parts.retain(|(count, name)| *count > 0 || *name == "first");
    let mut texts: Vec<String> = parts
        .into_iter()
        .map(|(count, name)| format!("{} {name}", thousands(count)))
        .collect();
    if counts.failed_calls > 0 {
        texts.push(format!("{} calls failed", thousands(counts.failed_calls)));
    }
    texts.join(", ")
}

fn latency_json(latencies: &Histogram<u64>) -> Value {
    json!({
        "p50": latencies.value_at_quantile(0.5),
        "p99": latencies.value_at_quantile(0.99),
        "p99_9": latencies.value_at_quantile(0.999),
        "max": latencies.max(),
        "mean": latencies.mean(),
    })
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn latency_text(nanos: u64) -> String {
    let micros = nanos as f64 / 1000.0;
    match micros {
        micros if micros >= 1e6 => format!("{:.2} s", micros / 1e6),
        micros if micros >= 1e3 => format!("{:.2} ms", micros / 1e3),
        micros => format!("{micros:.1} µs"),
    }
}
