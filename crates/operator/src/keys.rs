//! Calls for keys.

use axum::{
    Json,
    extract::{Request, State},
    http::HeaderMap,
};
use keydb_client::{Claim, Client, ErrorKind, Namespace, Operation, OperationId};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    input::{self, Query, TtlText},
    operator::{Operator, Shared},
    problem::Problem,
};

/// Under which a claim can be sent again (<https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/>).
const IDEMPOTENCY_KEY: &str = "idempotency-key";
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Write {
    #[serde(default)]
    keys: Vec<String>,
    ttl: Option<TtlText>,
    ttl_seconds: Option<u64>,
    namespace: Option<String>,
}

fn in_namespace(operator: &Operator, namespace: Option<Namespace>) -> Result<Client, Problem> {
    let client = operator.client()?;
    Ok(namespace.map_or_else(|| client.clone(), |it| client.in_namespace(&it)))
}

pub(crate) async fn get(
    State(operator): State<Shared>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let query = Query::of(&request, &["keys", "namespace"])?;
    let keys = query.list("keys");
    input::check_keys(keys.len())?;
    let namespace = input::namespace(query.one("namespace")?)?;
    let exists = in_namespace(&operator, namespace)?.get(keys).await?;
    Ok(Json(json!({"success": true, "exists": exists})))
}

pub(crate) async fn put(
    State(operator): State<Shared>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let write: Write = input::body(request).await?;
    input::check_keys(write.keys.len())?;
    let ttl = input::ttl(write.ttl, write.ttl_seconds)?;
    let namespace = input::namespace(write.namespace)?;
    in_namespace(&operator, namespace)?
        .put(write.keys, ttl)
        .await?;
    Ok(Json(json!({"success": true})))
}

/// Under an idempotency key, a claim that nodes remember is answered as it was before.
pub(crate) async fn claim(
    State(operator): State<Shared>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let operation = idempotency_key(request.headers())?;
    let write: Write = input::body(request).await?;
    input::check_keys(write.keys.len())?;
    let ttl = input::ttl(write.ttl, write.ttl_seconds)?;
    let client = in_namespace(&operator, input::namespace(write.namespace)?)?;
    let keys = &write.keys;
    let claims = match operation {
        None => client.claim(keys, ttl).await,
        // Whether it was sent before only the nodes know.
        Some(id) => match client.claim_as(Operation::first(id), keys, ttl).await {
            Err(error) if error.kind() == ErrorKind::OperationIdUsed => {
                client.claim_as(Operation::with_id(id), keys, ttl).await
            }
            claims => claims,
        },
    };
    let claims: Vec<&str> = claims?
        .into_iter()
        .map(|claim| match claim {
            Claim::First => "first",
            Claim::Duplicate => "duplicate",
            Claim::Unknown => "unknown",
        })
        .collect();
    Ok(Json(json!({"success": true, "claims": claims})))
}

/// An id as it is, any other text as the name of one.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<OperationId>, Problem> {
    let wrong = || {
        Problem::bad_field(
            "Idempotency-Key",
            format!("give it once, with 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters"),
        )
    };
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let text = value
        .to_str()
        .map_err(|_| wrong())?
        .trim()
        .trim_matches('"');
    if values.next().is_some() || text.is_empty() || text.len() > IDEMPOTENCY_KEY_BYTES_MAX {
        return Err(wrong());
    }
    let id = text.parse();
    Ok(Some(id.unwrap_or_else(|_| OperationId::from_name(text))))
}
