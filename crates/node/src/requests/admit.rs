//! What must hold when a request comes in, and the time that it goes by.

use std::sync::Arc;

use keydb_core::{Expiry, Times, Ttl, UnixMillis};
use keydb_proto::{
    refusal_status,
    shard::{ErrorCode, RangeKeys, RequestHeader},
};
use tonic::Status;

use crate::{
    cluster::membership_state::MembershipState,
    node::Node,
    ranges::owned::OwnedRanges,
    requests::plan::{self, Plan},
};

/// What must hold for every request for keys: it is for this cluster and this node, and in time. Returns how the node stands, and
/// the time that the request goes by.
pub(super) fn admit(
    node: &Node,
    header: Option<&RequestHeader>,
) -> Result<(Arc<MembershipState>, UnixMillis), Status> {
    let known = plan::header(header)?;
    let membership_state = node.membership.state();
    if let Some(map) = membership_state.map() {
        plan::check_cluster(map.cluster_id, &known.cluster_id)?;
        node.hear_of_map(map, (known.lineage, known.epoch));
    }
    Ok((membership_state, still_in_time(node, header)?))
}

/// What a request that writes must be also when it has waited for room: whoever sends it again later relies on it. Returns the time.
pub(super) fn still_in_time(
    node: &Node,
    header: Option<&RequestHeader>,
) -> Result<UnixMillis, Status> {
    let header = plan::header(header)?;
    let now = node.clock.now();
    plan::check_target_and_time(node.config.id, now, header)?;
    Ok(now)
}

pub(super) fn table<'a>(
    node: &Node,
    membership_state: &'a MembershipState,
) -> Result<&'a OwnedRanges, Status> {
    membership_state
        .table()
        .ok_or_else(|| node.not_serving(membership_state))
}

pub(super) fn plan<'a>(
    node: &Node,
    table: &OwnedRanges,
    ranges: &[RangeKeys],
    fingerprints: &'a [u8],
) -> Result<Plan<'a>, Status> {
    let keys_max = node.config.limits.request_keys_max;
    Plan::new(table, ranges, fingerprints, keys_max)
}

/// The time that a step goes by. It is taken after what was waited for, and anew after each turn of others: a key must not be stored
/// with an expiry that is over, nor one that is over be found present.
#[derive(Debug)]
pub(super) struct Moment {
    pub(super) now: UnixMillis,
    pub(super) times: Times,
    /// When the keys that the step stores expire.
    pub(super) expiry: Expiry,
}

impl Moment {
    /// # Errors
    /// When keys cannot live as long as from `now` on for `ttl`.
    pub(super) fn new(node: &Node, now: UnixMillis, ttl: Ttl) -> Result<Self, Status> {
        let expiry = Expiry::after(now, ttl)
            .map_err(|error| refusal_status(ErrorCode::InvalidRequest, error.to_string()))?;
        Ok(Self::until(node, now, expiry))
    }

    /// Of keys that expire then, however long that is from `now` on.
    pub(super) fn until(node: &Node, now: UnixMillis, expiry: Expiry) -> Self {
        Self {
            now,
            times: node.clock.times_at(now),
            expiry,
        }
    }

    /// Goes by the time now, for keys that live for `ttl`, or until the same time as before.
    pub(super) fn renew(&mut self, node: &Node, ttl: Option<Ttl>) {
        let now = node.clock.now();
        self.now = now;
        self.times = node.clock.times_at(now);
        // Part of the request is applied, so this is no time to refuse it. It can only fail near the year 2106.
        let expiry = ttl.and_then(|ttl| Expiry::after(now, ttl).ok());
        self.expiry = expiry.unwrap_or(self.expiry);
    }
}
