//! `/v1` over HTTP.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{CONTENT_TYPE, ORIGIN},
    },
    response::{IntoResponse, Response},
    routing::post,
};
use keydb_proto::trace;
use serde::Serialize;
use tracing::Instrument;
use utoipa::{OpenApi, ToSchema};

use crate::{
    Cluster,
    counters::{Call, Protocol, Verb},
    input,
    keys::{self, ClaimAnswer, GetCall, KeysCall, Name},
    lines,
    problem::{Body, Problem, Refused},
};

/// The calls for keys, for those who count calls by their paths.
pub const PATHS: [&str; 3] = ["/v1/get", "/v1/put", "/v1/claim"];

type Shared = State<Arc<Cluster>>;

/// Serves `/v1` for a cluster.
pub fn router<S: Clone + Send + Sync + 'static>(cluster: &Arc<Cluster>) -> Router<S> {
    Router::new()
        .route("/v1/get", post(get))
        .route("/v1/put", post(put))
        .route("/v1/claim", post(claim))
        .route("/openapi.json", axum::routing::get(document))
        .with_state(Arc::clone(cluster))
}

/// Which of the keys exist now.
#[utoipa::path(
    post, path = "/v1/get", tag = "keys", request_body = GetCall,
    responses(
        (status = 200, description = "An answer a key, in order", body = Present),
        (status = "4XX", response = Refused),
        (status = "5XX", response = Refused),
    ),
)]
async fn get(State(cluster): Shared, request: Request) -> Result<Response, Problem> {
    serve(cluster, Verb::Get, request).await
}

/// Stores keys: they exist until at least now and their TTL.
#[utoipa::path(
    post, path = "/v1/put", tag = "keys", request_body = KeysCall,
    responses(
        (status = 200, description = "All are stored", body = Stored),
        (status = "4XX", response = Refused),
        (status = "5XX", response = Refused),
    ),
)]
async fn put(State(cluster): Shared, request: Request) -> Result<Response, Problem> {
    serve(cluster, Verb::Put, request).await
}

/// Atomically stores the keys that are absent, and says which those were.
#[utoipa::path(
    post, path = "/v1/claim", tag = "keys", request_body = KeysCall,
    params(
        (
            "Idempotency-Key" = Option<String>, Header,
            description = "The claim's name: sent again under it, it is answered as before, for as long as nodes remember",
        ),
        (
            "Keydb-Repeat" = Option<bool>, Header,
            description = "true: it may have been sent before under this name; what nodes do not remember any more is unknown, not duplicate",
        ),
    ),
    responses(
        (status = 200, description = "An answer a key, in order", body = Claims),
        (status = "4XX", response = Refused),
        (status = "5XX", response = Refused),
    ),
)]
async fn claim(State(cluster): Shared, request: Request) -> Result<Response, Problem> {
    serve(cluster, Verb::Claim, request).await
}

#[derive(Serialize, ToSchema)]
struct Present {
    present: Vec<bool>,
}

#[derive(Serialize, ToSchema)]
struct Stored {
    /// How many keys.
    stored: usize,
}

#[derive(Serialize, ToSchema)]
struct Claims {
    claims: Vec<ClaimAnswer>,
}

/// `/v1` as OpenAPI has it.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "KeyDB",
        description = "Has this key been seen in the last N days? Keys a line, of the type application/x-ndjson, are taken as well: docs/http-and-grpc.md.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    paths(get, put, claim),
    components(responses(Refused), schemas(Body<'static>))
)]
struct Document;

async fn document() -> Response {
    let json = [(CONTENT_TYPE, "application/json")];
    // Of types that are known as this is compiled.
    (json, Document::openapi().to_json().unwrap_or_default()).into_response()
}

async fn serve(cluster: Arc<Cluster>, verb: Verb, request: Request) -> Result<Response, Problem> {
    let headers = request.headers();
    let span = trace::server(verb.http_name(), |name| headers.get(name)?.to_str().ok());
    let work = async {
        let headers = request.headers();
        let is_lines = is_lines(headers);
        let protocol = match is_lines {
            Ok(true) => Protocol::Ndjson,
            _ => Protocol::Http,
        };
        let call = Call::begin(cluster.counters(), protocol, verb);
        match name_of(verb, headers).and_then(|name| Ok((name, is_lines?))) {
            Ok((name, true)) => lines::serve(cluster, verb, name, request, call),
            Ok((name, false)) => call.end(answer(&cluster, verb, name, request).await),
            Err(problem) => call.end(Err(problem)),
        }
    };
    let result = work.instrument(span.clone()).await;
    if result.is_err() {
        trace::failed(&span);
    }
    result
}

/// The name of a claim; nothing else has one.
fn name_of(verb: Verb, headers: &HeaderMap) -> Result<Option<Name>, Problem> {
    let name = keys::name_of(headers)?;
    match verb {
        Verb::Get | Verb::Put if name.is_some() => Err(Problem::bad_field(
            "Idempotency-Key",
            "is for claims; everything else can be repeated without it",
        )),
        _ => Ok(name),
    }
}

/// Answers a call whose body is one document.
async fn answer(
    cluster: &Cluster,
    verb: Verb,
    name: Option<Name>,
    request: Request,
) -> Result<Response, Problem> {
    if request.uri().query().is_some_and(|query| !query.is_empty()) {
        return Err(Problem::bad(
            "the query: of a JSON body everything stands in that; a query goes with application/x-ndjson",
        ));
    }
    let reads = cluster.read()?;
    let call: KeysCall = input::body(request).await?;
    drop(reads);
    let _entered = cluster.enter()?;
    let namespace = call.namespace();
    Ok(match verb {
        Verb::Get => {
            let read = call.read(cluster)?;
            let present = read.client.get(&read.keys).await?;
            Json(Present { present }).into_response()
        }
        Verb::Put => {
            let write = call.write(cluster)?;
            write.client.put(&write.keys, write.ttl).await?;
            let stored = write.keys.len();
            Json(Stored { stored }).into_response()
        }
        Verb::Claim => {
            let named = name.map(|name| name.named(&namespace, None));
            let claims = keys::claim(&call.write(cluster)?, named).await?;
            let claims = claims.into_iter().map(ClaimAnswer::from).collect();
            Json(Claims { claims }).into_response()
        }
    })
}

/// Whether a body is a line a key, rather than one document. As `curl -d` says nothing of JSON, a form's type is taken for it.
fn is_lines(headers: &HeaderMap) -> Result<bool, Problem> {
    let form = HeaderValue::from_static("application/x-www-form-urlencoded");
    let kind = headers.get(CONTENT_TYPE).unwrap_or(&form);
    let text = kind.to_str().unwrap_or_default().to_ascii_lowercase();
    match text.split(';').next().unwrap_or_default().trim() {
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Ok(true),
        "application/json" => Ok(false),
        // A page of somebody else's may send a form, without being asked for more.
        "application/x-www-form-urlencoded" if !headers.contains_key(ORIGIN) => Ok(false),
        _ => Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!(
                "Content-Type: {text:?} is not taken; send application/json, or application/x-ndjson with a key a line"
            ),
        )),
    }
}
