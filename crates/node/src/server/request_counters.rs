//! How many requests there were, and what became of them.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use keydb_core::metrics::{Durations, Histogram};
use keydb_proto::{
    error_code,
    shard::{ClaimReply, ErrorCode, GetReply, PutReply, RangeKeys, RangeRefusal, RefusalCode},
};
use tonic::Status;

/// What a request asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Get,
    Put,
    Claim,
}

impl Operation {
    pub(crate) const ALL: [Self; 3] = [Self::Get, Self::Put, Self::Claim];

    /// As metrics name it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Claim => "claim",
        }
    }
}

/// Why whole requests are refused: every code of the wire, and what has none.
const ERROR_CODES: [(ErrorCode, &str); 12] = [
    (ErrorCode::InvalidRequest, "invalid_request"),
    (ErrorCode::WrongCluster, "wrong_cluster"),
    (ErrorCode::WrongNode, "wrong_node"),
    (ErrorCode::NoMap, "no_map"),
    (ErrorCode::Overloaded, "overloaded"),
    (ErrorCode::Stopping, "stopping"),
    (ErrorCode::TooLate, "too_late"),
    (ErrorCode::OverMemoryLimit, "over_memory_limit"),
    (ErrorCode::DiskFull, "disk_full"),
    (ErrorCode::OperationIdUsed, "operation_id_used"),
    (ErrorCode::NotPossible, "not_possible"),
    (ErrorCode::Unspecified, "other"),
];

/// Why ranges of a request are refused.
const RANGE_CODES: [(RefusalCode, &str); 6] = [
    (RefusalCode::NotOwner, "not_owner"),
    (RefusalCode::Loading, "loading"),
    (RefusalCode::Full, "full"),
    (RefusalCode::Closed, "closed"),
    (RefusalCode::Held, "held"),
    (RefusalCode::Unspecified, "other"),
];

/// What keys are answered.
const ANSWERS: [(Operation, &str); 6] = [
    (Operation::Get, "present"),
    (Operation::Get, "absent"),
    (Operation::Put, "stored"),
    (Operation::Claim, "first"),
    (Operation::Claim, "duplicate"),
    (Operation::Claim, "unknown"),
];

/// Counts since the node's start.
#[derive(Debug, Default)]
pub(crate) struct RequestCounters {
    /// By [`Operation`].
    requests: [AtomicU64; Operation::ALL.len()],
    keys: [AtomicU64; Operation::ALL.len()],
    durations: [Histogram; Operation::ALL.len()],
    /// By place in [`ANSWERS`].
    answers: [AtomicU64; ANSWERS.len()],
    /// By place in [`ERROR_CODES`].
    refused: [AtomicU64; ERROR_CODES.len()],
    /// By place in [`RANGE_CODES`].
    refused_ranges: [AtomicU64; RANGE_CODES.len()],
}

/// The reply to a request for keys.
pub(crate) trait KeysReply {
    /// What was asked for.
    const OPERATION: Operation;

    /// The ranges that were not answered for.
    fn refused(&self) -> &[RangeRefusal];

    /// How often each of the operation's [`ANSWERS`] was given, in their order, of so many keys that were answered.
    fn answers(&self, answered: u64) -> impl IntoIterator<Item = u64>;
}

impl KeysReply for GetReply {
    const OPERATION: Operation = Operation::Get;

    fn refused(&self) -> &[RangeRefusal] {
        &self.refused
    }

    fn answers(&self, answered: u64) -> impl IntoIterator<Item = u64> {
        let present = ones(&self.present);
        [present, answered.saturating_sub(present)]
    }
}

impl KeysReply for PutReply {
    const OPERATION: Operation = Operation::Put;

    fn refused(&self) -> &[RangeRefusal] {
        &self.refused
    }

    fn answers(&self, answered: u64) -> impl IntoIterator<Item = u64> {
        [answered]
    }
}

impl KeysReply for ClaimReply {
    const OPERATION: Operation = Operation::Claim;

    fn refused(&self) -> &[RangeRefusal] {
        &self.refused
    }

    fn answers(&self, answered: u64) -> impl IntoIterator<Item = u64> {
        let (first, unknown) = (ones(&self.first), ones(&self.unknown));
        [first, answered.saturating_sub(first + unknown), unknown]
    }
}

/// How many bits of a bitmap are 1.
fn ones(bitmap: &[u8]) -> u64 {
    let (words, rest) = bitmap.as_chunks();
    let of_words = words
        .iter()
        .map(|word| u64::from_le_bytes(*word).count_ones());
    let of_rest = rest.iter().map(|byte| byte.count_ones());
    of_words.chain(of_rest).map(u64::from).sum()
}

impl RequestCounters {
    /// Counts a request for so many keys, in these ranges, that has come to its end after `took`.
    pub(crate) fn count<R: KeysReply>(
        &self,
        ranges: &[RangeKeys],
        keys: usize,
        took: Duration,
        reply: &Result<R, Status>,
    ) {
        let operation = R::OPERATION as usize;
        let keys = keys as u64;
        self.requests[operation].fetch_add(1, Relaxed);
        self.keys[operation].fetch_add(keys, Relaxed);
        self.durations[operation].record(took);
        match reply {
            Ok(reply) => {
                let mut answered = keys;
                for refusal in reply.refused() {
                    add(&self.refused_ranges, &RANGE_CODES, refusal.code());
                    let of_range = ranges.iter().filter(|it| it.range_id == refusal.range_id);
                    let unanswered = of_range.map(|it| u64::from(it.key_count)).sum();
                    answered = answered.saturating_sub(unanswered);
                }
                let places = ANSWERS.iter().zip(&self.answers);
                let places = places.filter(|((of, _), _)| *of == R::OPERATION);
                for ((_, count), given) in places.zip(reply.answers(answered)) {
                    count.fetch_add(given, Relaxed);
                }
            }
            Err(status) => {
                let code = error_code(status).unwrap_or(ErrorCode::Unspecified);
                add(&self.refused, &ERROR_CODES, code);
            }
        }
    }

    /// Keys by what they were answered.
    pub(crate) fn answers(&self) -> impl Iterator<Item = (Operation, &'static str, u64)> {
        let counted = ANSWERS.iter().zip(&self.answers);
        counted.map(|((operation, answer), count)| (*operation, *answer, count.load(Relaxed)))
    }

    /// How long requests of each operation took.
    pub(crate) fn durations(&self) -> impl Iterator<Item = (Operation, Durations)> {
        let durations = Operation::ALL.into_iter().zip(&self.durations);
        durations.map(|(operation, durations)| (operation, durations.read()))
    }

    /// Requests and keys of each operation.
    pub(crate) fn operations(&self) -> [(Operation, u64, u64); Operation::ALL.len()] {
        Operation::ALL.map(|operation| {
            let of = |counts: &[AtomicU64]| counts[operation as usize].load(Relaxed);
            (operation, of(&self.requests), of(&self.keys))
        })
    }

    /// Refused requests by reason.
    pub(crate) fn refused(&self) -> impl Iterator<Item = (&'static str, u64)> {
        named(&self.refused, &ERROR_CODES)
    }

    /// Refused ranges of answered requests by reason.
    pub(crate) fn refused_ranges(&self) -> impl Iterator<Item = (&'static str, u64)> {
        named(&self.refused_ranges, &RANGE_CODES)
    }
}

/// Counts `code`; the last place is for codes that there is no other for.
fn add<C: PartialEq>(counts: &[AtomicU64], codes: &[(C, &str)], code: C) {
    let place = codes.iter().position(|(known, _)| *known == code);
    counts[place.unwrap_or(codes.len() - 1)].fetch_add(1, Relaxed);
}

fn named<C>(
    counts: &[AtomicU64],
    codes: &'static [(C, &'static str)],
) -> impl Iterator<Item = (&'static str, u64)> {
    let names = codes.iter().map(|(_, name)| *name);
    names.zip(counts.iter().map(|count| count.load(Relaxed)))
}

#[cfg(test)]
mod tests {
    use keydb_proto::refusal_status;

    use super::*;

    #[test]
    fn requests_keys_and_refusals_are_counted_by_what_they_are() {
        let request_counters = RequestCounters::default();
        let refusal = |code: RefusalCode, range_id| RangeRefusal {
            code: code.into(),
            range_id,
            ..RangeRefusal::default()
        };
        let range = |range_id, key_count| RangeKeys {
            range_id,
            key_count,
            ..RangeKeys::default()
        };
        let took = Duration::from_millis(1);
        // Of 7 keys, 3 and 1 are in ranges that are refused, and 2 are there.
        let reply = Ok(GetReply {
            present: vec![0b11].into(),
            refused: vec![
                refusal(RefusalCode::Loading, 1),
                refusal(RefusalCode::Loading, 3),
            ],
            ..GetReply::default()
        });
        let ranges = [range(1, 3), range(2, 3), range(3, 1)];
        request_counters.count(&ranges, 7, took, &reply);
        let refused: Result<ClaimReply, Status> =
            Err(refusal_status(ErrorCode::DiskFull, "no room"));
        request_counters.count(&[], 3, took, &refused);
        let lost: Result<ClaimReply, Status> = Err(Status::internal("a bug"));
        request_counters.count(&[], 2, took, &lost);
        let claimed = Ok(ClaimReply {
            first: [0xff; 9].to_vec().into(),
            unknown: vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 1].into(),
            ..ClaimReply::default()
        });
        request_counters.count(&[range(2, 75)], 75, took, &claimed);
        request_counters.count(&[range(2, 4)], 4, took, &Ok(PutReply::default()));

        assert_eq!(
            request_counters.operations(),
            [
                (Operation::Get, 1, 7),
                (Operation::Put, 1, 4),
                (Operation::Claim, 3, 80)
            ]
        );
        let answers: Vec<_> = request_counters
            .answers()
            .map(|(_, answer, count)| (answer, count))
            .collect();
        assert_eq!(
            answers,
            [
                ("present", 2),
                ("absent", 1),
                ("stored", 4),
                ("first", 72),
                ("duplicate", 2),
                ("unknown", 1)
            ]
        );
        let counts = request_counters
            .durations()
            .map(|(_, durations)| durations.counts[3]);
        assert_eq!(counts.collect::<Vec<_>>(), [1, 1, 3]);
        let counted = |counts: Vec<(&'static str, u64)>| {
            let mut counts = counts;
            counts.retain(|(_, count)| *count > 0);
            counts
        };
        assert_eq!(
            counted(request_counters.refused().collect()),
            [("disk_full", 1), ("other", 1)]
        );
        assert_eq!(
            counted(request_counters.refused_ranges().collect()),
            [("loading", 2)]
        );
    }
}
