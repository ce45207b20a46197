//! What must hold of a request before any of it is applied.

use keydb_core::{
    ClusterId, FINGERPRINT_BYTES, HashRange, NodeId, OperationId, PackedFingerprints, RangeId, Ttl,
    UnixMillis, moving::Standing,
};
use keydb_proto::{
    id_field, refusal_status,
    shard::{ErrorCode, RangeKeys, RangeRefusal, RefusalCode, RequestHeader},
};
use tonic::Status;

use crate::ranges::owned::{OwnedRange, OwnedRanges, Readiness};

/// A request's keys, by range, checked.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// The ranges that are answered for.
    pub(crate) groups: Vec<Group>,
    /// The ranges that are not.
    pub(crate) refused: Vec<RangeRefusal>,
    /// All fingerprints, those of refused ranges included.
    pub(crate) fingerprints: PackedFingerprints<'a>,
}

/// The keys of one range that this node owns. There is at least one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group {
    /// The range's index in the table.
    pub(crate) range: usize,
    /// The first key's index in the request.
    pub(crate) start: usize,
    /// The index behind the last key.
    pub(crate) end: usize,
    /// How many earlier sendings may have been applied.
    pub(crate) attempt: u32,
    /// The generation that the request names.
    pub(crate) generation: u64,
}

impl Group {
    /// The keys from the one at `start` in the request on.
    pub(crate) const fn rest_from(self, start: usize) -> Self {
        Self { start, ..self }
    }
}

fn invalid(message: String) -> Status {
    refusal_status(ErrorCode::InvalidRequest, message)
}

/// The header of a request, which must be there.
pub(crate) fn header(header: Option<&RequestHeader>) -> Result<&RequestHeader, Status> {
    header.ok_or_else(|| invalid("the request has no header".to_owned()))
}

/// Checks that the request is for this cluster.
pub(crate) fn check_cluster(expected: ClusterId, cluster_id: &[u8]) -> Result<(), Status> {
    let found = id_field("cluster_id", cluster_id).map_err(|error| invalid(error.to_string()))?;
    let found = ClusterId::from_bytes(found);
    if found != expected {
        return Err(refusal_status(
            ErrorCode::WrongCluster,
            format!(
                "the request is for cluster {found}, but this node belongs to cluster {expected}"
            ),
        ));
    }
    Ok(())
}

/// Checks that the request is for this node, and that it is not too late for it.
pub(crate) fn check_target_and_time(
    node: NodeId,
    now: UnixMillis,
    header: &RequestHeader,
) -> Result<(), Status> {
    if header.target_node != node.0 {
        return Err(refusal_status(
            ErrorCode::WrongNode,
            format!(
                "the request is for node {}, but this is node {node}",
                header.target_node
            ),
        ));
    }
    match header.not_after_unix_ms {
        0 => Err(invalid(
            "not_after_unix_ms is 0; every request must have an end".to_owned(),
        )),
        not_after if now.0 > not_after => Err(refusal_status(
            ErrorCode::TooLate,
            format!(
                "not_after_unix_ms {not_after} has passed: the node's clock shows {}; nothing was applied",
                now.0
            ),
        )),
        _ => Ok(()),
    }
}

/// The TTL of a put or claim.
pub(crate) fn ttl(ttl_seconds: u32) -> Result<Ttl, Status> {
    Ttl::from_seconds(ttl_seconds.into()).map_err(|error| invalid(format!("ttl_seconds: {error}")))
}

/// The operation id of a claim.
pub(crate) fn operation_id(bytes: &[u8]) -> Result<OperationId, Status> {
    id_field("operation_id", bytes)
        .map(OperationId::from_bytes)
        .map_err(|error| invalid(error.to_string()))
}

/// Checks that no range appears twice.
pub(crate) fn check_ranges_once(ranges: &[RangeKeys]) -> Result<(), Status> {
    // Clients send them in order.
    if ranges.is_sorted_by(|before, after| before.range_id < after.range_id) {
        return Ok(());
    }
    let mut ids: Vec<u32> = ranges.iter().map(|range| range.range_id).collect();
    ids.sort_unstable();
    match ids.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(invalid(format!(
            "range {} appears more than once; a claim names a range at most once",
            pair[0]
        ))),
        None => Ok(()),
    }
}

impl<'a> Plan<'a> {
    /// Checks a request's keys against the limits and the ranges that the node owns. An error means that the whole request is
    /// refused; a range that is not owned is refused by itself.
    pub(crate) fn new(
        table: &OwnedRanges,
        ranges: &[RangeKeys],
        fingerprints: &'a [u8],
        request_keys_max: usize,
    ) -> Result<Self, Status> {
        let packed = PackedFingerprints::new(fingerprints).map_err(|error| {
            invalid(format!(
                "fingerprints: {error} (one fingerprint is {FINGERPRINT_BYTES} bytes)"
            ))
        })?;
        if packed.len() > request_keys_max {
            return Err(invalid(format!(
                "the request has {} keys, and request_keys_max is {request_keys_max}",
                packed.len()
            )));
        }
        let declared: u64 = ranges.iter().map(|range| u64::from(range.key_count)).sum();
        if declared != packed.len() as u64 {
            return Err(invalid(format!(
                "the ranges' key_count add up to {declared}, but there are {} fingerprints",
                packed.len()
            )));
        }
        let mut plan = Self {
            groups: Vec::with_capacity(ranges.len().min(table.ranges().len())),
            refused: Vec::new(),
            fingerprints: packed,
        };
        let mut start = 0;
        let mut guess = 0;
        for keys in ranges {
            let id = RangeId(keys.range_id);
            if keys.key_count == 0 {
                return Err(invalid(format!(
                    "range {id} has key_count 0; it must be at least 1"
                )));
            }
            let end = start + keys.key_count as usize;
            match table.find(id, guess) {
                Some(index) if table.ranges()[index].is_open(keys.generation) => {
                    let range = &table.ranges()[index];
                    check_bounds(id, range.bounds, packed.slice(start, end), start)?;
                    if range.is_ready() {
                        plan.groups.push(Group {
                            range: index,
                            start,
                            end,
                            attempt: keys.attempt,
                            generation: keys.generation,
                        });
                    } else {
                        plan.refused.push(not_ready(range));
                    }
                    guess = index + 1;
                }
                _ => plan.refused.push(not_owner(table, id, keys.generation)),
            }
            start = end;
        }
        Ok(plan)
    }

    /// The keys of a group.
    #[inline]
    pub(crate) fn keys(&self, group: Group) -> PackedFingerprints<'a> {
        self.fingerprints.slice(group.start, group.end)
    }
}

fn check_bounds(
    id: RangeId,
    bounds: HashRange,
    keys: PackedFingerprints<'_>,
    start: usize,
) -> Result<(), Status> {
    // All keys without a branch first: this is done for every key of every request.
    let span = bounds.last() - bounds.start();
    let all_inside = keys.iter().fold(true, |inside, key| {
        inside & (key.top().wrapping_sub(bounds.start()) <= span)
    });
    if all_inside {
        return Ok(());
    }
    match keys.iter().position(|key| !bounds.contains(key.top())) {
        Some(index) => Err(invalid(format!(
            "fingerprint {:?} at index {} lies outside range {id}, whose top 64 bits are {:016x} to {:016x}",
            keys.get(index),
            start + index,
            bounds.start(),
            bounds.last()
        ))),
        None => Ok(()),
    }
}

fn not_ready(range: &OwnedRange) -> RangeRefusal {
    let id = range.id;
    let (code, message) = match range.readiness() {
        Some(Readiness::Closed(reason)) => (
            RefusalCode::Closed,
            format!("range {id} is closed, for its keys may not be complete: {reason}"),
        ),
        _ => (
            RefusalCode::Loading,
            format!("range {id} is still being loaded; try again"),
        ),
    };
    RangeRefusal {
        range_id: id.0,
        code: code.into(),
        owner_node: None,
        owner_address: String::new(),
        generation: range.generation,
        message,
    }
}

/// Why a range is not answered for under the generation that a request names.
pub(super) fn not_owner(table: &OwnedRanges, id: RangeId, generation: u64) -> RangeRefusal {
    let current_map = &table.current_map;
    let epoch = current_map.map.epoch;
    let mut refusal = RangeRefusal {
        range_id: id.0,
        code: RefusalCode::NotOwner.into(),
        owner_node: None,
        owner_address: String::new(),
        generation: 0,
        message: format!("there is no range {id} (cluster map epoch {epoch})"),
    };
    let Some((range, _)) = current_map.owner_of(id) else {
        return refusal;
    };
    let (owner, under) = match table.standing(id) {
        Some(Standing::Holds(under)) => {
            refusal.code = RefusalCode::Held.into();
            refusal.generation = under;
            refusal.message = format!(
                "range {id} is being handed over to this node under generation {under}; try again"
            );
            return refusal;
        }
        Some(Standing::Refers { node, generation }) => (node, generation),
        Some(Standing::Answers(under)) => (table.node, under),
        None => (range.owner, range.generation),
    };
    let address = current_map.map.node(owner).map_or("", |node| &node.address);
    refusal.owner_node = Some(owner.0);
    refusal.owner_address = address.to_owned();
    refusal.generation = under;
    refusal.message = format!(
        "range {id} belongs to node {owner} at {address} under generation {under} (cluster map epoch {epoch}); the request has generation {generation}"
    );
    refusal
}
