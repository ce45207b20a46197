//! Calls that ask nodes about themselves, or for snapshots.

use axum::{
    Json,
    extract::{Request, State},
    http::StatusCode,
};
use keydb_client::{AdminClient, AdminError, NodeEntry, NodeId, NodeStatus, RangeState};
use keydb_core::NodeState;
use keydb_gateway::{Problem, failures, input, query::Query};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{config::SNAPSHOT_WAIT_MAX, operator::Shared};

/// What all members hold, or the one that is asked about.
pub(crate) async fn info(
    State(operator): State<Shared>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let query = Query::of(&request, &["nodeID"])?;
    let asked = match query.one("nodeID")? {
        Some(text) => Some(text.parse().map(NodeId).map_err(|_| {
            Problem::bad_field(
                "nodeID",
                format!("{text:?} is not a node's number, such as 0"),
            )
        })?),
        None => None,
    };
    let admin = operator.admin()?;
    let mut nodes = admin.node_info().await;
    let map = admin.cluster_map();
    if let Some(id) = asked {
        nodes.retain(|(member, _)| member.id == id);
        if nodes.is_empty() {
            let members: Vec<String> = map.nodes.iter().map(|it| it.id.to_string()).collect();
            return Err(Problem::new(
                StatusCode::NOT_FOUND,
                format!(
                    "nodeID: node {id} is not a member; the members are {}",
                    members.join(", ")
                ),
            ));
        }
    }
    let nodes = nodes.iter().map(|(member, status)| {
        let mut node = json!({
            "nodeID": member.id,
            "address": member.address,
            "state": state(member),
            "reachable": status.is_ok(),
        });
        match status {
            Ok(status) => add_status(&mut node, status),
            Err(error) => node["error"] = error.to_string().into(),
        }
        node
    });
    Ok(Json(json!({
        "success": true,
        "clusterID": map.cluster_id,
        "epoch": map.epoch,
        "durability": map.durability,
        "clusterSize": map.nodes.len(),
        "hashRanges": map.ranges.len(),
        "nodes": nodes.collect::<Vec<_>>(),
    })))
}

const fn state(member: &NodeEntry) -> &'static str {
    match member.state {
        NodeState::Active => "active",
        NodeState::Leaving => "leaving",
    }
}

fn add_status(node: &mut Value, status: &NodeStatus) {
    let ids = |wanted: fn(&RangeState) -> bool| -> Vec<_> {
        let ranges = status.ranges.iter().filter(|range| wanted(&range.state));
        ranges.map(|range| range.id).collect()
    };
    let disk = status.disk.as_ref();
    node["epoch"] = status.epoch.into();
    node["keys"] = status.keys.into();
    node["keyBytes"] = status.key_bytes.into();
    node["hashRanges"] = json!(ids(|_| true));
    node["loadingHashRanges"] = json!(ids(|it| matches!(it, RangeState::Loading)));
    node["closedHashRanges"] = json!(ids(|it| matches!(it, RangeState::Closed { .. })));
    node["lastSnapshotUnixMs"] = json!(disk.and_then(|disk| disk.uploaded_complete_to));
    node["warnings"] = json!(status.warnings);
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateSnapshots {
    #[serde(default)]
    full: bool,
}

/// Has every node make a snapshot; done when all have.
pub(crate) async fn create_snapshots(
    State(operator): State<Shared>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let CreateSnapshots { full } = input::body(request).await?;
    let patient = operator.client()?.with_call_timeout(SNAPSHOT_WAIT_MAX);
    let made = AdminClient::from(patient).create_snapshots(full).await;
    outcome(made, "have no new snapshot", |made| {
        json!({
            "completeToUnixMs": made.complete_to,
            "objects": made.objects,
            "objectBytes": made.object_bytes,
        })
    })
}

/// Has every node merge what object storage has of its hash ranges into them again; done when all have.
pub(crate) async fn load_snapshots(
    State(operator): State<Shared>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct LoadSnapshots {}
    let LoadSnapshots {} = input::body(request).await?;
    let patient = operator.client()?.with_call_timeout(SNAPSHOT_WAIT_MAX);
    let loaded = AdminClient::from(patient).load_snapshots().await;
    let added = loaded.iter().filter_map(|(_, loaded)| loaded.as_ref().ok());
    let added: u64 = added.map(|loaded| loaded.added_keys).sum();
    let mut answer = outcome(
        loaded,
        "have not loaded all of their snapshots",
        |loaded| json!({"hashRanges": loaded.ranges, "addedKeys": loaded.added_keys}),
    )?;
    answer["addedKeys"] = added.into();
    Ok(answer)
}

/// What all nodes have done, or what has become of those that have not.
fn outcome<T>(
    asked: Vec<(NodeEntry, Result<T, AdminError>)>,
    have_not: &str,
    done: impl Fn(&T) -> Value,
) -> Result<Json<Value>, Problem> {
    let failed = failures(&asked);
    let nodes = asked.iter().map(|(member, outcome)| {
        let mut node = match outcome {
            Ok(outcome) => done(outcome),
            Err(error) => json!({"error": error.to_string()}),
        };
        node["nodeID"] = json!(member.id);
        node
    });
    let nodes: Value = nodes.collect();
    if failed.is_empty() {
        return Ok(Json(json!({"success": true, "nodes": nodes})));
    }
    let first = asked.into_iter().find_map(|(_, outcome)| outcome.err());
    let problem = first.map_or_else(|| Problem::unavailable(""), Problem::from);
    let detail = format!(
        "{} of the nodes {have_not}: {}",
        failed.len(),
        failed.join("; ")
    );
    Err(problem.detail(detail).with("nodes", nodes))
}
