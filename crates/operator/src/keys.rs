//! Calls for keys by the Go scaler's names; `/v1` is the gateway's.

use axum::{
    Json,
    extract::{Request, State},
};
use keydb_gateway::{
    Problem, input,
    keys::{self, ClaimAnswer, KeysCall},
    query::Query,
};
use serde_json::{Value, json};

use crate::operator::Shared;

pub(crate) async fn get(
    State(operator): State<Shared>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let query = Query::of(&request, &["keys", "namespace"])?;
    let keys = query.list("keys");
    input::check_keys(keys.len())?;
    let namespace = input::namespace(query.one("namespace")?)?;
    let exists = keys::in_namespace(&operator.cluster, namespace)?
        .get(keys)
        .await?;
    Ok(Json(json!({"success": true, "exists": exists})))
}

pub(crate) async fn put(
    State(operator): State<Shared>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let call: KeysCall = input::body(request).await?;
    let write = call.write(&operator.cluster)?;
    write.client.put(&write.keys, write.ttl).await?;
    Ok(Json(json!({"success": true})))
}

/// Under an idempotency key, a claim that nodes remember is answered as it was before.
pub(crate) async fn claim(
    State(operator): State<Shared>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let name = keys::name_of(request.headers())?;
    let call: KeysCall = input::body(request).await?;
    let named = name.map(|name| name.named(&call.namespace(), None));
    let claims = keys::claim(&call.write(&operator.cluster)?, named).await?;
    let claims: Vec<ClaimAnswer> = claims.into_iter().map(ClaimAnswer::from).collect();
    Ok(Json(json!({"success": true, "claims": claims})))
}
