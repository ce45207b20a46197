//! Why a call is refused: as problem details (<https://www.rfc-editor.org/rfc/rfc9457>), or as a gRPC status.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use keydb_client::{AdminError, ErrorKind, GetError, NodeEntry, OperationId, WriteError};
use serde::Serialize;
use serde_json::{Map, Value};
use tonic::{Code, Status};
use utoipa::{ToResponse, ToSchema};

/// Why a call was not done, or perhaps not.
#[derive(Debug, Clone)]
pub struct Problem {
    status: StatusCode,
    detail: String,
    /// What programs may act on.
    members: Map<String, Value>,
}

/// How soon it is worth asking again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

impl Problem {
    /// With this status and these words for a person.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status,
            detail: detail.into(),
            members: Map::new(),
        }
    }

    /// What was asked for cannot be.
    pub fn bad(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// The same, of one field.
    pub fn bad_field(field: &str, detail: impl std::fmt::Display) -> Self {
        Self::bad(format!("{field}: {detail}")).with("field", field.into())
    }

    /// It may be asked again later.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    }

    /// In other words.
    #[must_use]
    pub fn detail(mut self, detail: String) -> Self {
        self.detail = detail;
        self
    }

    /// With something that programs may act on.
    #[must_use]
    pub fn with(mut self, member: &str, value: Value) -> Self {
        self.members.insert(member.to_owned(), value);
        self
    }

    /// Something of it may have been applied, or by an earlier sending under the same name.
    #[must_use]
    pub(crate) fn maybe_applied(mut self, operation: Option<OperationId>) -> Self {
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            // What is repeated without a thought would be a duplicate of itself.
            self.status = StatusCode::GATEWAY_TIMEOUT;
        }
        let problem = self.with("applied", "unknown".into());
        match operation {
            Some(id) => problem.with("idempotencyKey", id.to_string().into()),
            None => problem,
        }
    }

    pub(crate) const fn status(&self) -> StatusCode {
        self.status
    }

    /// The words for a person.
    pub(crate) fn words(&self) -> &str {
        &self.detail
    }

    /// As JSON.
    pub(crate) fn body(&self) -> Body<'_> {
        Body {
            kind: "about:blank",
            title: self.status.canonical_reason().unwrap_or_default(),
            status: self.status.as_u16(),
            detail: &self.detail,
            success: false,
            members: &self.members,
        }
    }
}

/// Why a call is refused.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct Body<'a> {
    #[serde(rename = "type")]
    #[schema(rename = "type")]
    kind: &'a str,
    title: &'a str,
    status: u16,
    /// For a person: what is wrong, and what would be right.
    detail: &'a str,
    success: bool,
    /// `field`, `applied`, `idempotencyKey`: what programs may act on.
    #[serde(flatten)]
    #[schema(value_type = std::collections::HashMap<String, Value>, additional_properties)]
    members: &'a Map<String, Value>,
}

/// For the description of calls.
#[derive(ToResponse)]
#[response(
    description = "Refused, as RFC 9457 has it",
    content_type = "application/problem+json"
)]
pub(crate) struct Refused(#[allow(dead_code, reason = "it is described only")] Body<'static>);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let kind = HeaderValue::from_static("application/problem+json");
        let headers = [(header::CONTENT_TYPE, kind)];
        let body = serde_json::to_string(&self.body()).unwrap_or_default();
        let mut response = (self.status, headers, body).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        response
    }
}

/// What programs may act on goes into the trailers: `applied` as `keydb-applied`.
impl From<Problem> for Status {
    fn from(problem: Problem) -> Self {
        let code = match problem.status {
            StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => Code::InvalidArgument,
            StatusCode::NOT_FOUND => Code::NotFound,
            StatusCode::CONFLICT => Code::FailedPrecondition,
            StatusCode::INSUFFICIENT_STORAGE => Code::ResourceExhausted,
            StatusCode::BAD_GATEWAY => Code::Internal,
            StatusCode::GATEWAY_TIMEOUT => Code::DeadlineExceeded,
            _ => Code::Unavailable,
        };
        let mut status = Self::new(code, problem.detail);
        let trailers = [
            ("applied", "keydb-applied"),
            ("idempotencyKey", "keydb-operation"),
        ];
        for (member, trailer) in trailers {
            let value = problem.members.get(member).and_then(Value::as_str);
            if let Some(value) = value.and_then(|text| text.parse().ok()) {
                status.metadata_mut().insert(trailer, value);
            }
        }
        status
    }
}

/// Of a call for keys that failed with this.
fn of_kind(kind: ErrorKind, detail: String) -> Problem {
    let status = match kind {
        ErrorKind::InvalidKey => StatusCode::BAD_REQUEST,
        ErrorKind::OperationIdUsed => StatusCode::CONFLICT,
        ErrorKind::WrongCluster | ErrorKind::InvalidRequest | ErrorKind::Denied => {
            StatusCode::BAD_GATEWAY
        }
        ErrorKind::DiskFull | ErrorKind::MemoryLimit | ErrorKind::RangeFull => {
            StatusCode::INSUFFICIENT_STORAGE
        }
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    Problem::new(status, detail)
}

impl From<GetError> for Problem {
    fn from(error: GetError) -> Self {
        of_kind(error.kind(), error.to_string())
    }
}

impl From<WriteError> for Problem {
    fn from(error: WriteError) -> Self {
        let problem = of_kind(error.kind(), error.to_string());
        match error {
            WriteError::NotApplied(_) => problem.with("applied", "no".into()),
            WriteError::MaybeApplied(what) => problem.maybe_applied(what.operation),
        }
    }
}

impl From<AdminError> for Problem {
    fn from(error: AdminError) -> Self {
        let status = match error {
            AdminError::Invalid { .. } => StatusCode::BAD_REQUEST,
            AdminError::Conflict { .. } | AdminError::Refused { .. } => StatusCode::CONFLICT,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

/// What has failed of what nodes were asked for, in words.
pub fn failures<T>(asked: &[(NodeEntry, Result<T, AdminError>)]) -> Vec<String> {
    let failed = asked.iter().filter_map(|(member, outcome)| {
        let error = outcome.as_ref().err()?;
        Some(format!("node {}: {error}", member.id))
    });
    failed.collect()
}
