//! Calls that have snapshots made.

use std::{sync::Arc, time::Duration};

use keydb_core::RangeId;
use keydb_proto::{
    refusal_status,
    shard::{
        CreateSnapshotsReply, CreateSnapshotsRequest, ErrorCode, LoadSnapshotsReply,
        LoadSnapshotsRequest, OpenRangeReply, OpenRangeRequest,
    },
};
use tokio::time::Instant;
use tonic::Status;

use crate::{
    disk::Disk,
    disk::snapshot::Snapshotter,
    moving::objects::{self, LoadError},
    node::Node,
    requests,
    server::status::check_cluster,
};

/// How long a snapshot that was asked for is waited for where the caller says nothing else.
pub(crate) const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(3600);

/// The answer needs a part of a caller's patience to get there, up to this.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(1);

/// When to answer a caller that has this patience.
fn answer_by(patience: Option<Duration>) -> Instant {
    let patience = patience.map_or(SNAPSHOT_TIMEOUT, |it| it.min(SNAPSHOT_TIMEOUT));
    Instant::now() + patience - ANSWER_TIME_MAX.min(patience / 4)
}

fn not_possible(why: &str) -> Status {
    refusal_status(ErrorCode::NotPossible, why)
}

/// What makes snapshots of the node's ranges.
fn snapshotter(node: &Node) -> Result<Arc<Snapshotter>, Status> {
    let snapshots = node.disk().and_then(Disk::snapshots);
    snapshots.ok_or_else(|| not_possible("the node is still loading its keys; try again"))
}

/// Answers for a closed range with what is left of it, and waits until local files say so.
pub(crate) async fn open_range(
    node: &Node,
    request: &OpenRangeRequest,
    patience: Option<Duration>,
) -> Result<OpenRangeReply, Status> {
    let deadline = answer_by(patience);
    let membership_state = node.membership.state();
    check_cluster(&membership_state, &request.cluster_id)?;
    let table = membership_state
        .table()
        .ok_or_else(|| node.not_serving(&membership_state))?;
    let id = RangeId(request.range_id);
    let index = table.find(id, 0).ok_or_else(|| {
        not_possible(&format!(
            "node {} does not own hash range {id}",
            node.config.id
        ))
    })?;
    let range = &table.ranges()[index];
    if range.readiness().is_none() {
        return Err(not_possible(&format!(
            "hash range {id} is still loading what is left of it; try again when it is closed"
        )));
    }
    let snapshots = snapshotter(node)?;
    if range.is_ready() && !range.is_given_up() {
        return Err(not_possible(&format!(
            "hash range {id} is not closed: nothing of it is missing"
        )));
    }
    // Before anybody is answered without the lost keys.
    let opened = range.give_up();
    let reason = opened.unwrap_or("it was given up before").to_owned();
    if opened.is_some() {
        let text = format!("hash range {id} was opened without what is missing of it: {reason}");
        node.warnings.set("loss", Some(text));
        node.count_loss();
    }
    snapshots.request_local(deadline).await.map_err(|reason| {
        not_possible(&format!(
            "hash range {id} is open, but no snapshot says so yet, and a node that is restarted before that closes it again: {reason}"
        ))
    })?;
    Ok(OpenRangeReply {
        header: Some(node.reply_header(membership_state.map())),
        reason,
        keys: range.read().len() as u64,
    })
}

/// Makes a snapshot, and waits until object storage has it; as long as the caller does at most.
pub(crate) async fn create_snapshots(
    node: &Node,
    request: &CreateSnapshotsRequest,
    patience: Option<Duration>,
) -> Result<CreateSnapshotsReply, Status> {
    let deadline = answer_by(patience);
    let membership_state = node.membership.state();
    check_cluster(&membership_state, &request.cluster_id)?;
    let map = membership_state
        .table()
        .map(|table| &table.current_map.map)
        .ok_or_else(|| node.not_serving(&membership_state))?;
    if !map.durability.has_disk() {
        return Err(not_possible(
            "durability is memory: there is nothing to make snapshots of",
        ));
    }
    let made = snapshotter(node)?
        .request(request.full, deadline)
        .await
        .map_err(|reason| not_possible(&format!("no snapshot is in object storage: {reason}")))?;
    Ok(CreateSnapshotsReply {
        header: Some(node.reply_header(membership_state.map())),
        complete_to_unix_ms: made.reach.complete_to.0,
        lsn: made.reach.lsn.0,
        objects: made.objects,
        object_bytes: made.object_bytes,
    })
}

/// Merges what object storage has of the ranges that the node answers for into them again.
pub(crate) async fn load_snapshots(
    node: &Arc<Node>,
    request: &LoadSnapshotsRequest,
    patience: Option<Duration>,
) -> Result<LoadSnapshotsReply, Status> {
    let deadline = answer_by(patience);
    let membership_state = node.membership.state();
    check_cluster(&membership_state, &request.cluster_id)?;
    let table = membership_state
        .table()
        .ok_or_else(|| node.not_serving(&membership_state))?;
    if !table.current_map.map.durability.has_disk() {
        return Err(not_possible(
            "durability is memory: there are no snapshots to be loaded",
        ));
    }
    let snapshots = snapshotter(node)?;
    let store = snapshots.store().clone();
    let (mut ranges, mut added_keys) = (0, 0);
    let answered = table.ranges().iter();
    for range in answered.filter(|it| it.is_ready() && it.is_answered_for()) {
        let (id, me) = (range.id, node.config.id);
        // What is added is in no record, so a copy that is under way would not have it.
        if moves(node, id) {
            return Err(not_possible(&format!(
                "hash range {id} is to move to another node; load the snapshots when it has, or after an abort"
            )));
        }
        if requests::is_over_memory_limit(node) {
            return Err(not_possible(
                "the node's memory limit is reached, so nothing can be added",
            ));
        }
        match objects::load(Arc::clone(node), store.clone(), me, Arc::clone(range)).await {
            Ok(added) => {
                ranges += 1;
                added_keys += added;
            }
            // Nothing was uploaded of it yet.
            Err(LoadError::NotThere(_)) => {}
            Err(error) => {
                return Err(not_possible(&format!(
                    "hash range {id}: {error}; {ranges} ranges were read before it, which had not had {added_keys} of the keys"
                )));
            }
        }
        if moves(node, id) {
            return Err(not_possible(&format!(
                "hash range {id} has begun to move to another node, which may not have what was added; load the snapshots again when it has"
            )));
        }
    }
    if added_keys > 0 {
        // A full file that was made meanwhile may have been made without them.
        let made = snapshots.request(true, deadline).await;
        made.map_err(|reason| {
            not_possible(&format!(
                "{added_keys} keys were added, but no snapshot has them yet, and a restart may forget them: {reason}"
            ))
        })?;
    }
    Ok(LoadSnapshotsReply {
        header: Some(node.reply_header(membership_state.map())),
        ranges,
        added_keys,
    })
}

/// Whether a range is on its way to another node, or was taken over and is not settled.
fn moves(node: &Node, id: RangeId) -> bool {
    let membership_state = node.membership.state();
    let entry = membership_state.current_map().and_then(|current_map| {
        let index = current_map.index_of(id)?;
        current_map.map.ranges.get(index)
    });
    entry.is_none_or(|range| range.successor.is_some() || range.from.is_some())
}
