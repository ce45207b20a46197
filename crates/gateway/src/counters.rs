//! What is counted of calls for keys as text.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use axum::http::StatusCode;
use keydb_client::{Claim, ErrorKind, NodeId, Observer};
use keydb_core::metrics::{Histogram, MetricsText, registry};

use crate::problem::Problem;

/// What a call is to do with its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    Put,
    Claim,
}

impl Verb {
    /// What a call over HTTP is called in traces.
    pub(crate) const fn http_name(self) -> &'static str {
        match self {
            Self::Get => "POST /v1/get",
            Self::Put => "POST /v1/put",
            Self::Claim => "POST /v1/claim",
        }
    }

    /// The same over gRPC.
    pub(crate) const fn grpc_name(self) -> &'static str {
        match self {
            Self::Get => "keydb.NodeService/Get",
            Self::Put => "keydb.NodeService/Put",
            Self::Claim => "keydb.NodeService/Claim",
        }
    }
}

const VERBS: [&str; 3] = ["get", "put", "claim"];

/// How a call came.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Protocol {
    Grpc,
    Http,
    Ndjson,
}

const PROTOCOLS: [&str; 3] = ["grpc", "http", "ndjson"];

/// How a call ended, by whose doing it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ok,
    ClientError,
    ServerError,
}

const OUTCOMES: [&str; 3] = ["ok", "client_error", "server_error"];

/// What keys are answered, by whose call.
const ANSWERS: [(Verb, &str); 6] = [
    (Verb::Get, "present"),
    (Verb::Get, "absent"),
    (Verb::Put, "stored"),
    (Verb::Claim, "first"),
    (Verb::Claim, "duplicate"),
    (Verb::Claim, "unknown"),
];

/// Counts since the process started.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// By [`Protocol`], [`Verb`] and [`Outcome`].
    calls: [[[AtomicU64; OUTCOMES.len()]; VERBS.len()]; PROTOCOLS.len()],
    durations: [[Histogram; VERBS.len()]; PROTOCOLS.len()],
    /// By place in [`ANSWERS`].
    answers: [AtomicU64; ANSWERS.len()],
    /// The node that it is at.
    own: Option<NodeId>,
    /// Keys that were sent to that node, and to others.
    to_self: AtomicU64,
    to_other: AtomicU64,
    retried: AtomicU64,
}

impl Counters {
    /// Of a gateway at this node.
    pub(crate) fn at(own: NodeId) -> Self {
        Self {
            own: Some(own),
            ..Self::default()
        }
    }

    /// These keys were found present, or absent.
    pub(crate) fn got(&self, present: &[bool]) {
        let found = present.iter().filter(|it| **it).count();
        self.answered([found, present.len() - found, 0, 0, 0, 0]);
    }

    pub(crate) fn stored(&self, keys: usize) {
        self.answered([0, 0, keys, 0, 0, 0]);
    }

    pub(crate) fn claimed(&self, claims: &[Claim]) {
        let of = |answer| claims.iter().filter(|it| **it == answer).count();
        let (first, unknown) = (of(Claim::First), of(Claim::Unknown));
        self.answered([0, 0, 0, first, claims.len() - first - unknown, unknown]);
    }

    fn answered(&self, keys: [usize; ANSWERS.len()]) {
        for (count, keys) in self.answers.iter().zip(keys) {
            if keys > 0 {
                count.fetch_add(keys as u64, Relaxed);
            }
        }
    }

    /// Writes them.
    pub(crate) fn write(&self, text: &mut MetricsText) {
        let mut samples = text.begin(&registry::TEXT_CALLS);
        for (protocol, of_protocol) in PROTOCOLS.iter().zip(&self.calls) {
            for (verb, of_verb) in VERBS.iter().zip(of_protocol) {
                for (outcome, count) in OUTCOMES.iter().zip(of_verb) {
                    samples.add(&[protocol, verb, outcome], count.load(Relaxed));
                }
            }
        }
        let mut samples = text.begin(&registry::TEXT_CALL_DURATION_SECONDS);
        for (protocol, of_protocol) in PROTOCOLS.iter().zip(&self.durations) {
            for (verb, durations) in VERBS.iter().zip(of_protocol) {
                samples.add_durations(&[protocol, verb], &durations.read());
            }
        }
        let mut samples = text.begin(&registry::TEXT_ANSWERS);
        for ((verb, answer), count) in ANSWERS.iter().zip(&self.answers) {
            samples.add(&[&VERBS[*verb as usize], answer], count.load(Relaxed));
        }
        let mut samples = text.begin(&registry::FORWARDED_KEYS);
        if self.own.is_some() {
            samples.add(&[&"self"], self.to_self.load(Relaxed));
        }
        samples.add(&[&"other"], self.to_other.load(Relaxed));
        let retried = self.retried.load(Relaxed);
        text.value(&registry::FORWARD_RETRIED_KEYS, retried);
    }
}

impl Observer for Counters {
    fn retry(&self, _: ErrorKind, keys: usize) {
        self.retried.fetch_add(keys as u64, Relaxed);
    }

    fn request(&self, node: NodeId, keys: usize) {
        let count = match self.own == Some(node) {
            true => &self.to_self,
            false => &self.to_other,
        };
        count.fetch_add(keys as u64, Relaxed);
    }
}

/// A call from its beginning to its end.
#[derive(Debug)]
pub(crate) struct Call {
    counters: Arc<Counters>,
    protocol: Protocol,
    verb: Verb,
    since: Instant,
    outcome: Outcome,
}

impl Call {
    pub(crate) fn begin(counters: &Arc<Counters>, protocol: Protocol, verb: Verb) -> Self {
        Self {
            counters: Arc::clone(counters),
            protocol,
            verb,
            since: Instant::now(),
            // A call whose caller is gone does not end in any other way than being dropped.
            outcome: Outcome::ClientError,
        }
    }

    /// The call has ended with this.
    pub(crate) fn end<T>(mut self, result: Result<T, Problem>) -> Result<T, Problem> {
        self.outcome = match &result {
            Ok(_) => Outcome::Ok,
            Err(problem) => outcome_of(problem.status()),
        };
        result
    }

    /// The call has ended like this.
    pub(crate) fn end_as(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

fn outcome_of(status: StatusCode) -> Outcome {
    match status.is_server_error() {
        true => Outcome::ServerError,
        false => Outcome::ClientError,
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let (protocol, verb) = (self.protocol as usize, self.verb as usize);
        let of_call = &self.counters.calls[protocol][verb];
        of_call[self.outcome as usize].fetch_add(1, Relaxed);
        self.counters.durations[protocol][verb].record(self.since.elapsed());
    }
}
