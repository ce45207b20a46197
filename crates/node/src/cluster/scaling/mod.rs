//! Scaling: changes of the cluster's membership, written into the map by whichever member is asked.
//!
//! `keydb_core`'s functions say what the next map is; here the addresses are asked who is there ([`ask`]), and the map is written by
//! compare-and-swap. Where another writer was faster, the next map is made anew of the one that is there, so a call that is repeated,
//! or made at two members at once, changes nothing twice. Nothing here moves a key: nodes do that by the map.
//!
//! The last change of an operation, when no range moves any more, is nobody's call: every member sees it due, and the first in the
//! list writes it ([`Finisher`]). The others wait longer the further down they are, so of 1,000 nodes one writes.

mod ask;

use std::{convert::Infallible, time::Duration};

use keydb_core::{
    ClusterMap, NodeEntry, NodeId, NodeState, OperationId,
    scaling::{self, PlannedMove, ScaleError, ScalePlan, finish, plan_scale},
};
use keydb_proto::{
    id_field, refusal_status,
    shard::{ErrorCode, RangeMove, ScaleMember, ScaleOperationRequest, ScaleReply, ScaleRequest},
};
use keydb_storage::{MapStore, UpdateError};
use tokio::time::Instant;
use tonic::Status;
use tracing::{info, warn};

use crate::{disk::failpoint, node::Node, requests::plan::check_cluster};

/// How much longer each member waits than the one before it with the last change of an operation.
const FINISH_PAUSE: Duration = Duration::from_secs(5);

/// Plans a change of membership, and writes it unless it is a preview.
pub(crate) async fn scale(
    node: &Node,
    store: &MapStore,
    request: &ScaleRequest,
) -> Result<ScaleReply, Status> {
    check_member(node, &request.cluster_id)?;
    let operation = operation_id(&request.operation_id)?
        .ok_or_else(|| invalid("operation_id is missing; it has 16 bytes"))?;
    let now = node.clock.now();
    let stored = stored_map(store).await.map_err(|error| failure(&error))?;
    let members = ask::members(&stored, &request.addresses, &node.config.outgoing).await?;
    if request.preview {
        let plan =
            plan_scale(&stored, &members, operation, now).map_err(|error| refusal(&error))?;
        let planned_by = plan.map.as_ref().unwrap_or(&stored);
        return Ok(ScaleReply {
            changed: plan.map.is_some(),
            operation_id: Vec::new().into(),
            epoch: stored.epoch,
            ..reply(node, planned_by, Some(&plan))
        });
    }
    let mut plan = None;
    let change = |current: &ClusterMap| {
        let made = plan_scale(current, &members, operation, now)?;
        let next = made.map.clone();
        plan = Some(made);
        Ok(next)
    };
    let map = update(node, store, ["scale.plan", "scale.planned"], change).await?;
    let runs = map.target.as_ref().map(|target| target.operation_id);
    let changed = runs == Some(operation);
    if let Some(plan) = plan.as_ref().filter(|_| changed) {
        info!(
            node = %node.config.id, %operation, epoch = map.epoch, moves = plan.moves.len(), joins = ?plan.joins, leaves = ?plan.leaves,
            "planned a scaling operation to {}", request.addresses.join(",")
        );
    }
    Ok(ScaleReply {
        changed,
        ..reply(node, &map, plan.as_ref())
    })
}

async fn stored_map(store: &MapStore) -> Result<ClusterMap, UpdateError<Infallible>> {
    store.load().await?.ok_or(UpdateError::NoMap)
}

/// Lets ranges change their owners.
pub(crate) async fn complete(
    node: &Node,
    store: &MapStore,
    request: &ScaleOperationRequest,
) -> Result<ScaleReply, Status> {
    let asked = operation_id(&request.operation_id)?;
    let hand_over = |map: &ClusterMap| scaling::hand_over(map, asked);
    let steps = ["scale.complete", "scale.completed"];
    go_on(node, store, request, "completes", steps, hand_over).await
}

/// Gives up what has not changed its owner.
pub(crate) async fn abort(
    node: &Node,
    store: &MapStore,
    request: &ScaleOperationRequest,
) -> Result<ScaleReply, Status> {
    let asked = operation_id(&request.operation_id)?;
    let steps = ["scale.abort", "scale.aborted"];
    go_on(node, store, request, "aborts", steps, |map| {
        let under_way = map.target.as_ref().map(|target| target.operation_id);
        match (asked, under_way) {
            (Some(asked), Some(under_way)) if asked != under_way => {
                Err(ScaleError::OtherOperation { asked, under_way })
            }
            _ => Ok(scaling::abort(map)),
        }
    })
    .await
}

async fn go_on(
    node: &Node,
    store: &MapStore,
    request: &ScaleOperationRequest,
    verb: &str,
    steps: [&'static str; 2],
    mut next: impl FnMut(&ClusterMap) -> Result<Option<ClusterMap>, ScaleError>,
) -> Result<ScaleReply, Status> {
    check_member(node, &request.cluster_id)?;
    let mut changed = false;
    let mut operation = None;
    let change = |map: &ClusterMap| {
        let next = next(map)?;
        changed = next.is_some();
        operation = map.target.as_ref().map(|target| target.operation_id);
        Ok(next)
    };
    let map = update(node, store, steps, change).await?;
    if let Some(operation) = operation.filter(|_| changed) {
        info!(node = %node.config.id, %operation, epoch = map.epoch, "somebody {verb} a scaling operation");
    }
    Ok(ScaleReply {
        changed,
        ..reply(node, &map, None)
    })
}

/// Changes the map, and has this node go by the change at once. The steps are before and after.
async fn update(
    node: &Node,
    store: &MapStore,
    [before, after]: [&'static str; 2],
    change: impl FnMut(&ClusterMap) -> Result<Option<ClusterMap>, ScaleError>,
) -> Result<ClusterMap, Status> {
    failpoint::step(before, &node.config.data_dir);
    let map = store.update(change).await.map_err(|error| match error {
        UpdateError::Change(error) => refusal(&error),
        error => failure(&error),
    })?;
    failpoint::step(after, &node.config.data_dir);
    node.hear_of_version(map.version());
    Ok(map)
}

/// Only a member of the cluster changes its map: it is sure which one that is.
pub(crate) fn check_member(node: &Node, cluster_id: &[u8]) -> Result<(), Status> {
    let membership_state = node.membership.state();
    let table = membership_state
        .table()
        .ok_or_else(|| node.not_serving(&membership_state))?;
    check_cluster(table.current_map.map.cluster_id, cluster_id)
}

pub(crate) fn operation_id(field: &[u8]) -> Result<Option<OperationId>, Status> {
    if field.is_empty() {
        return Ok(None);
    }
    let id = id_field("operation_id", field).map_err(|error| invalid(error.to_string()))?;
    Ok(Some(OperationId::from_bytes(id)))
}

fn invalid(message: impl Into<String>) -> Status {
    refusal_status(ErrorCode::InvalidRequest, message)
}

/// What cannot be, or not now.
fn refusal(error: &ScaleError) -> Status {
    let code = match error {
        ScaleError::UnderWay { .. }
        | ScaleError::NotUnderWay
        | ScaleError::OtherOperation { .. } => ErrorCode::Conflict,
        _ => ErrorCode::InvalidRequest,
    };
    refusal_status(code, error.to_string())
}

/// Why the map was not changed, or perhaps was: then there is no code.
fn failure<E: std::fmt::Display>(error: &UpdateError<E>) -> Status {
    match error {
        UpdateError::OutcomeUnknown(_) => Status::unknown(error.to_string()),
        UpdateError::Invalid(_) | UpdateError::NotNewer { .. } | UpdateError::NoMap => {
            refusal_status(ErrorCode::NotPossible, error.to_string())
        }
        _ => refusal_status(ErrorCode::StorageUnavailable, error.to_string()),
    }
}

/// What is to be done by `map`.
fn reply(node: &Node, map: &ClusterMap, plan: Option<&ScalePlan>) -> ScaleReply {
    let member = |id: &NodeId| ScaleMember {
        node_id: id.0,
        address: map
            .node(*id)
            .map_or_else(String::new, |entry| entry.address.clone()),
    };
    let moves = plan.iter().flat_map(|plan| &plan.moves);
    let target = map.target.as_ref();
    ScaleReply {
        header: Some(node.reply_header(node.membership.state().map())),
        lineage: map.lineage,
        epoch: map.epoch,
        operation_id: target
            .map(|target| target.operation_id.to_bytes().to_vec())
            .unwrap_or_default()
            .into(),
        changed: false,
        moves: moves
            .map(|PlannedMove { range, from, to }| RangeMove {
                range_id: range.0,
                from_node: from.0,
                to_node: to.0,
            })
            .collect(),
        joins: plan
            .iter()
            .flat_map(|plan| &plan.joins)
            .map(member)
            .collect(),
        leaves: plan
            .iter()
            .flat_map(|plan| &plan.leaves)
            .map(member)
            .collect(),
    }
}

/// Writes the last change of an operation, when it is due.
#[derive(Debug, Default)]
pub(crate) struct Finisher {
    /// When this node tries, once it has seen that the change is due.
    tries_at: Option<Instant>,
}

impl Finisher {
    /// Looks at the map in force, if it is the one of this version, which is stored.
    pub(crate) async fn look(&mut self, node: &Node, store: &MapStore, stored: (u64, u64)) {
        let membership_state = node.membership.state();
        let map = membership_state.table().map(|table| &table.current_map.map);
        // Without either there is nothing to finish, as nearly always.
        let may_be_due = |map: &&ClusterMap| {
            let leaving = |node: &NodeEntry| node.state == NodeState::Leaving;
            map.version() == stored && (map.target.is_some() || map.nodes.iter().any(leaving))
        };
        let Some(map) = map.filter(may_be_due).filter(|map| finish(map).is_some()) else {
            self.tries_at = None;
            return;
        };
        let pause = FINISH_PAUSE.saturating_mul(place(map, node.config.id));
        let tries_at = *self.tries_at.get_or_insert_with(|| Instant::now() + pause);
        if Instant::now() < tries_at {
            return;
        }
        self.tries_at = None;
        let id = node.config.id;
        failpoint::step("scale.end", &node.config.data_dir);
        match store.update(|map| Ok::<_, Infallible>(finish(map))).await {
            Ok(map) => {
                failpoint::step("scale.ended", &node.config.data_dir);
                info!(node = %id, epoch = map.epoch, "wrote the end of a scaling operation, or its next round");
                node.hear_of_version(map.version());
            }
            Err(error) => {
                warn!(node = %id, "the end of a scaling operation is not written: {error}")
            }
        }
    }
}

/// How many members come before this one: those that stay first, by their ids.
fn place(map: &ClusterMap, own: NodeId) -> u32 {
    let key = |entry: &NodeEntry| (entry.state == NodeState::Leaving, entry.id);
    let own = map.node(own).map(key);
    let before = map.nodes.iter().filter(|entry| Some(key(entry)) < own);
    u32::try_from(before.count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use keydb_core::{Durability, NewCluster};

    use super::*;

    #[test]
    fn members_come_by_their_ids_and_those_that_leave_after_all_others() {
        let mut map = ClusterMap::create(&NewCluster {
            addresses: ["a:1", "b:1", "c:1"].map(str::to_owned).to_vec(),
            range_count: 4,
            durability: Durability::Memory,
        })
        .unwrap();
        map.nodes[0].state = NodeState::Leaving;
        let places = [0, 1, 2].map(|id| place(&map, NodeId(id)));
        assert_eq!(places, [2, 0, 1]);
    }
}
