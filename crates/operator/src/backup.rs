//! Backups. A node makes them; all that is known of one is where it is made.

use std::time::Duration;

use axum::{
    Json,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use keydb_gateway::{Problem, input};
use serde::Deserialize;
use serde_json::json;

use crate::{config::BACKUP_WAIT_MAX, operator::Shared};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Backup {
    to: Option<String>,
    name: Option<String>,
    wait: Option<bool>,
}

/// Done when the backup is complete; the same call again waits for one that is not.
pub(crate) async fn create(
    State(operator): State<Shared>,
    request: Request,
) -> Result<Response, Problem> {
    let Backup { to, name, wait } = input::body(request).await?;
    let to = to.ok_or_else(|| {
        Problem::bad_field(
            "to",
            "is missing; give the URL below which the backup is to be, such as \"s3://bucket/prefix\"",
        )
    })?;
    if name.as_deref() == Some("") {
        let detail =
            "is empty; give one such as \"2026-11-27\", or leave it out for the time as the name";
        return Err(Problem::bad_field("name", detail));
    }
    let limit = match wait {
        Some(false) => Duration::ZERO,
        _ => BACKUP_WAIT_MAX,
    };
    let admin = operator.admin()?;
    let backup = admin.backup(&to, name.as_deref(), limit, |_| {}).await?;
    let status = match backup.completed {
        Some(_) => StatusCode::OK,
        None => StatusCode::ACCEPTED,
    };
    let body = json!({
        "success": true,
        "name": backup.name,
        "url": backup.url,
        "complete": backup.completed.is_some(),
        "completedUnixMs": backup.completed,
        "completeToUnixMs": backup.complete_to,
        "entries": backup.entries,
        "objects": backup.objects,
        "objectsDone": backup.objects_done,
        "objectBytes": backup.bytes,
        "objectBytesDone": backup.bytes_done,
    });
    Ok((status, Json(body)).into_response())
}
