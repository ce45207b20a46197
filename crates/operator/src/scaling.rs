//! Calls that change the cluster's membership. All that is known of an operation is in the cluster map.

use std::collections::BTreeSet;

use axum::{
    Json,
    extract::{Request, State},
    http::{StatusCode, header::LOCATION},
    response::{IntoResponse, Response},
};
use keydb_client::{
    AdminClient, AdminError, NodeId, OperationId, Phase, ScalePlanned, ScaleProgress,
};
use keydb_gateway::{
    Problem, input,
    query::{self, Query},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{config::SCALE_WAIT_MAX, operator::Shared};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Scale {
    addresses: Option<Vec<String>>,
    /// As the Go scaler takes them, instead of the addresses.
    #[serde(alias = "old_nodes_addresses")]
    old_nodes_addresses: Option<Vec<String>>,
    #[serde(alias = "new_nodes_addresses")]
    new_nodes_addresses: Option<Vec<String>>,
    wait: Option<bool>,
}

impl Scale {
    /// The members when all is done. Where it is said who they were before, that has to be so.
    async fn addresses(self, admin: &AdminClient) -> Result<Vec<String>, Problem> {
        match (
            self.addresses,
            self.old_nodes_addresses,
            self.new_nodes_addresses,
        ) {
            (Some(addresses), None, None) => Ok(addresses),
            (None, Some(old), Some(new)) => {
                check_old(admin, &old, &new).await?;
                Ok(new)
            }
            (None, None, None) => Err(missing_addresses()),
            _ => Err(Problem::bad_field(
                "addresses",
                "give either addresses, or both oldNodesAddresses and newNodesAddresses",
            )),
        }
    }
}

fn missing_addresses() -> Problem {
    Problem::bad_field(
        "addresses",
        "is missing; give host:port of every node that the cluster is to have, such as [\"keydb-0:50051\",\"keydb-1:50051\"]",
    )
}

async fn check_old(admin: &AdminClient, old: &[String], new: &[String]) -> Result<(), Problem> {
    let set = |list: &[String]| -> BTreeSet<String> { list.iter().cloned().collect() };
    let running = admin.operation().await?;
    let map = admin.cluster_map();
    let present: Vec<String> = map.nodes.iter().map(|node| node.address.clone()).collect();
    let on_its_way = running.is_some_and(|running| set(&running.addresses) == set(new));
    // The repeat of a call that was cut off.
    if on_its_way || [old, new].map(set).contains(&set(&present)) {
        return Ok(());
    }
    let detail = format!(
        "oldNodesAddresses: the members are {}, not {}; give those, or only addresses",
        present.join(","),
        old.join(",")
    );
    Err(Problem::new(StatusCode::CONFLICT, detail).with("field", "oldNodesAddresses".into()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct OfOperation {
    #[serde(rename = "operationID")]
    operation_id: Option<OperationId>,
    wait: Option<bool>,
}

/// Done when the nodes that hash ranges move to have all of them, also on their disks and in object storage.
pub(crate) async fn scale(
    State(operator): State<Shared>,
    request: Request,
) -> Result<Response, Problem> {
    let scale: Scale = input::body(request).await?;
    let admin = operator.admin()?;
    let wait = scale.wait.unwrap_or(true);
    let planned = admin.scale(&scale.addresses(admin).await?).await?;
    let under_way = match planned.operation {
        None => false,
        Some(_) if !wait => true,
        Some(id) => match admin.wait_secured(id, SCALE_WAIT_MAX).await {
            Ok(()) => false,
            Err(AdminError::Unavailable { .. }) => true,
            Err(error) => return Err(error.into()),
        },
    };
    Ok(answer(under_way, plan_json(&planned)))
}

/// Done when all ranges have moved and the nodes that leave are no members any more.
pub(crate) async fn complete(
    State(operator): State<Shared>,
    request: Request,
) -> Result<Response, Problem> {
    let asked: OfOperation = input::body(request).await?;
    let admin = operator.admin()?;
    let id = admin.scale_complete(asked.operation_id).await?;
    let under_way = !asked.wait.unwrap_or(true) || goes_on(admin, id).await?;
    let body = json!({"success": true, "operationID": id});
    Ok(answer(under_way, body))
}

/// Both, one after the other.
pub(crate) async fn auto_scale(
    State(operator): State<Shared>,
    request: Request,
) -> Result<Response, Problem> {
    let scale: Scale = input::body(request).await?;
    let admin = operator.admin()?;
    let wait = scale.wait.unwrap_or(true);
    let addresses = scale.addresses(admin).await?;
    let planned = admin.scale(&addresses).await?;
    let Some(operation) = planned.operation else {
        return Ok(answer(false, plan_json(&planned)));
    };
    admin.scale_complete(Some(operation)).await?;
    let under_way = !wait || goes_on(admin, operation).await?;
    if !under_way {
        admin.check_members(operation, &addresses)?;
    }
    Ok(answer(under_way, plan_json(&planned)))
}

/// Gives up what has not moved. Owners never stop answering for that.
pub(crate) async fn abort(
    State(operator): State<Shared>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Abort {
        #[serde(rename = "operationID")]
        operation_id: Option<OperationId>,
    }
    let asked: Abort = input::body(request).await?;
    let aborted = operator.admin()?.abort(asked.operation_id).await?;
    Ok(Json(json!({"success": true, "aborted": aborted})))
}

/// What a change of membership would move.
pub(crate) async fn movements(
    State(operator): State<Shared>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Movements {
        addresses: Option<Vec<String>>,
    }
    let asked: Movements = input::body(request).await?;
    let addresses = asked.addresses.ok_or_else(missing_addresses)?;
    preview(operator.admin()?, &addresses).await
}

/// The same of `?addresses=a,b`.
pub(crate) async fn movements_of_query(
    State(operator): State<Shared>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let list = Query::of(&request, &["addresses"])?.list("addresses");
    let addresses = list.into_iter().map(|it| query::text("addresses", it));
    let addresses = addresses.collect::<Result<Vec<_>, _>>()?;
    if addresses.is_empty() {
        return Err(missing_addresses());
    }
    preview(operator.admin()?, &addresses).await
}

async fn preview(admin: &AdminClient, addresses: &[String]) -> Result<Json<Value>, Problem> {
    let preview = admin.preview(addresses).await?;
    let moves = preview.planned.moves.iter();
    let moves = moves.map(|it| json!({"hashRange": it.range, "from": it.from, "to": it.to}));
    let mut body = plan_json(&preview.planned);
    body["movements"] = moves.collect();
    body["keys"] = preview.keys.into();
    body["bytes"] = preview.bytes.into();
    body["expectedSeconds"] = preview.expected.as_secs_f64().into();
    body["silentNodes"] = json!(preview.silent);
    Ok(Json(body))
}

/// How far the operation is that runs.
pub(crate) async fn last_operation(State(operator): State<Shared>) -> Result<Json<Value>, Problem> {
    let admin = operator.admin()?;
    let mut progress = admin.operation().await?;
    if let Some(progress) = &mut progress {
        progress.waits_for = admin.waits_for().await;
    }
    Ok(Json(json!({
        "success": true,
        "running": progress.is_some(),
        "operation": progress.as_ref().map(progress_json),
    })))
}

fn progress_json(progress: &ScaleProgress) -> Value {
    json!({
        "operationID": progress.operation,
        "addresses": progress.addresses,
        "phase": match progress.phase {
            Phase::Copy => "copy",
            Phase::HandOver => "handOver",
        },
        "startedUnixMs": progress.started,
        "hashRanges": {
            "total": progress.moves,
            "moved": progress.moved(),
            "handingOver": progress.handing_over,
            "waiting": progress.waiting,
        },
        "waitsFor": progress.waits_for,
    })
}

fn plan_json(planned: &ScalePlanned) -> Value {
    let members = |members: &[(NodeId, String)]| -> Value {
        let members = members.iter();
        members
            .map(|(id, address)| json!({"nodeID": id, "address": address}))
            .collect()
    };
    json!({
        "success": true,
        "operationID": planned.operation,
        "changed": planned.changed,
        "hashRanges": planned.moves.len(),
        "joins": members(&planned.joins),
        "leaves": members(&planned.leaves),
    })
}

/// Waits for the end of an operation, for as long as a call may; whether it goes on.
async fn goes_on(admin: &AdminClient, id: OperationId) -> Result<bool, Problem> {
    match admin.wait(id, SCALE_WAIT_MAX, |_| {}).await {
        Ok(()) => Ok(false),
        Err(error) => match admin.operation().await? {
            Some(progress) if progress.operation == id => Ok(true),
            _ => Err(error.into()),
        },
    }
}

/// The answer of a call that is done, or whose work goes on: then where to look.
fn answer(goes_on: bool, body: Value) -> Response {
    if goes_on {
        let headers = [(LOCATION, "/lastOperation")];
        return (StatusCode::ACCEPTED, headers, Json(body)).into_response();
    }
    Json(body).into_response()
}
