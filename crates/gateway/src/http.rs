//! `/v1` over HTTP.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};

use crate::{
    Cluster, input,
    keys::{self, KeysCall},
    lines,
    problem::Problem,
};

/// What there is, for those who count calls by their paths.
pub const PATHS: [&str; 3] = ["/v1/get", "/v1/put", "/v1/claim"];

type Shared = State<Arc<Cluster>>;

/// Serves `/v1` for a cluster.
pub fn router<S: Clone + Send + Sync + 'static>(cluster: &Arc<Cluster>) -> Router<S> {
    Router::new()
        .route("/v1/get", post(get))
        .route("/v1/put", post(put))
        .route("/v1/claim", post(claim))
        .with_state(Arc::clone(cluster))
}

/// What a call is to do with its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    Put,
    Claim,
}

async fn get(State(cluster): Shared, request: Request) -> Result<Response, Problem> {
    serve(cluster, Verb::Get, request).await
}

async fn put(State(cluster): Shared, request: Request) -> Result<Response, Problem> {
    serve(cluster, Verb::Put, request).await
}

async fn claim(State(cluster): Shared, request: Request) -> Result<Response, Problem> {
    serve(cluster, Verb::Claim, request).await
}

async fn serve(cluster: Arc<Cluster>, verb: Verb, request: Request) -> Result<Response, Problem> {
    let entered = cluster.enter()?;
    let operation = keys::idempotency_key(request.headers())?;
    if operation.is_some() && verb != Verb::Claim {
        return Err(Problem::bad_field(
            "Idempotency-Key",
            "is for claims; everything else can be repeated without it",
        ));
    }
    if is_lines(request.headers())? {
        return lines::serve(&cluster, verb, operation, entered, request);
    }
    let call: KeysCall = input::body(request).await?;
    let answer: Value = match verb {
        Verb::Get => {
            let read = call.read(&cluster)?;
            json!({"present": read.client.get(&read.keys).await?})
        }
        Verb::Put => {
            let write = call.write(&cluster)?;
            write.client.put(&write.keys, write.ttl).await?;
            json!({"stored": write.keys.len()})
        }
        Verb::Claim => {
            let claims = keys::claim(&call.write(&cluster)?, operation).await?;
            let claims = claims.into_iter().map(keys::name_of);
            json!({"claims": claims.collect::<Vec<_>>()})
        }
    };
    Ok(Json(answer).into_response())
}

/// Whether a body is a line a key, rather than one document. As `curl -d` says nothing of JSON, a form's type is taken for it.
fn is_lines(headers: &HeaderMap) -> Result<bool, Problem> {
    let Some(kind) = headers.get(CONTENT_TYPE) else {
        return Ok(false);
    };
    let text = kind.to_str().unwrap_or_default();
    match text.split(';').next().unwrap_or_default().trim() {
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Ok(true),
        "application/json" | "application/x-www-form-urlencoded" => Ok(false),
        _ => Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!(
                "Content-Type: {text:?} is not taken; send application/json, or application/x-ndjson with a key a line"
            ),
        )),
    }
}
