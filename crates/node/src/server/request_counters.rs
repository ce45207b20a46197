//! How many requests there were, and what became of them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use keydb_proto::{
    error_code,
    shard::{ErrorCode, RangeRefusal, RefusalCode},
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

/// Counts since the node's start.
#[derive(Debug, Default)]
pub(crate) struct RequestCounters {
    /// By [`Operation`].
    requests: [AtomicU64; Operation::ALL.len()],
    keys: [AtomicU64; Operation::ALL.len()],
    /// By place in [`ERROR_CODES`].
    refused: [AtomicU64; ERROR_CODES.len()],
    /// By place in [`RANGE_CODES`].
    refused_ranges: [AtomicU64; RANGE_CODES.len()],
}

impl RequestCounters {
    /// Counts a request for keys that has come to its end.
    pub(crate) fn count<R>(
        &self,
        operation: Operation,
        keys: usize,
        reply: &Result<R, Status>,
        refused: impl FnOnce(&R) -> &[RangeRefusal],
    ) {
        self.requests[operation as usize].fetch_add(1, Relaxed);
        self.keys[operation as usize].fetch_add(keys as u64, Relaxed);
        match reply {
            Ok(reply) => {
                for refusal in refused(reply) {
                    add(&self.refused_ranges, &RANGE_CODES, refusal.code());
                }
            }
            Err(status) => {
                let code = error_code(status).unwrap_or(ErrorCode::Unspecified);
                add(&self.refused, &ERROR_CODES, code);
            }
        }
    }

    /// Requests and keys of each operation.
    pub(crate) fn operations(&self) -> impl Iterator<Item = (Operation, u64, u64)> {
        Operation::ALL.into_iter().map(|operation| {
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
        let refusal = |code: RefusalCode| RangeRefusal {
            code: code.into(),
            ..RangeRefusal::default()
        };
        let reply = Ok(vec![
            refusal(RefusalCode::Loading),
            refusal(RefusalCode::Loading),
        ]);
        request_counters.count(Operation::Get, 7, &reply, |ranges| ranges);
        let refused: Result<Vec<RangeRefusal>, Status> =
            Err(refusal_status(ErrorCode::DiskFull, "no room"));
        request_counters.count(Operation::Claim, 3, &refused, |ranges| ranges);
        let lost: Result<Vec<RangeRefusal>, Status> = Err(Status::internal("a bug"));
        request_counters.count(Operation::Claim, 2, &lost, |ranges| ranges);

        let operations: Vec<_> = request_counters.operations().collect();
        assert_eq!(
            operations,
            [
                (Operation::Get, 1, 7),
                (Operation::Put, 0, 0),
                (Operation::Claim, 2, 5)
            ]
        );
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
