//! Reading what a call says: nothing is guessed, and what cannot be is refused by its name.

use axum::{body::to_bytes, extract::Request, http::StatusCode};
use keydb_client::{Namespace, Ttl};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::time::timeout;

use crate::{
    limits::{BODY_BYTES_MAX, KEYS_MAX, READ_TIMEOUT},
    problem::Problem,
};

/// The JSON of a call's body; nothing is as good as `{}`.
///
/// # Errors
/// What is wrong with it, by the field's name.
pub async fn body<T: DeserializeOwned>(request: Request) -> Result<T, Problem> {
    let read = to_bytes(request.into_body(), BODY_BYTES_MAX);
    let bytes = match timeout(READ_TIMEOUT, read).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => {
            let mut source: Option<&dyn std::error::Error> = Some(&error);
            while let Some(error) = source {
                if error.to_string().contains("length limit exceeded") {
                    return Err(Problem::new(
                        StatusCode::PAYLOAD_TOO_LARGE,
                        format!(
                            "the body is larger than {BODY_BYTES_MAX} bytes; send fewer keys in a call"
                        ),
                    ));
                }
                source = error.source();
            }
            return Err(Problem::bad(format!("the body cannot be read: {error}")));
        }
        Err(_) => {
            return Err(Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                format!("the body has not arrived within {READ_TIMEOUT:?}"),
            ));
        }
    };
    let json = if bytes.is_empty() { &b"{}"[..] } else { &bytes };
    // A list would be read as the fields' values in their order.
    if json.trim_ascii_start().first() != Some(&b'{') {
        return Err(Problem::bad(
            "the body is not a JSON object: give one in {}",
        ));
    }
    let mut reader = serde_json::Deserializer::from_slice(json);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let field = error.path().to_string();
        let error = error.into_inner();
        match field.as_str() {
            _ if !error.is_data() => Problem::bad(format!("the body is not JSON: {error}")),
            "." => Problem::bad(format!("the body is not as it should be: {error}")),
            _ => Problem::bad_field(&field, error),
        }
    })?;
    reader
        .end()
        .map_err(|error| Problem::bad(format!("the body is not JSON: {error}")))?;
    Ok(value)
}

/// How long keys are to live.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum TtlText {
    /// `30d`.
    Text(String),
    /// Anything else, which is told what would be right.
    Other(serde_json::Value),
}

/// The TTL of a call, said in one of two ways.
///
/// # Errors
/// What is wrong with it, by the field's name.
pub fn ttl(text: Option<TtlText>, seconds: Option<u64>) -> Result<Ttl, Problem> {
    match (text, seconds) {
        (Some(TtlText::Text(text)), None) => text
            .parse()
            .map_err(|error| Problem::bad_field("ttl", error)),
        (Some(TtlText::Other(value)), None) => Err(Problem::bad_field(
            "ttl",
            format!("{value} is not text such as \"30d\"; seconds go into ttlSeconds"),
        )),
        (None, Some(seconds)) => Ttl::new(std::time::Duration::from_secs(seconds))
            .map_err(|error| Problem::bad_field("ttlSeconds", error)),
        (Some(_), Some(_)) => Err(Problem::bad(
            "ttl and ttlSeconds are both given; give one of them",
        )),
        (None, None) => Err(Problem::bad_field(
            "ttl",
            "is missing; give how long the keys live, such as \"ttl\": \"30d\" or \"ttlSeconds\": 3600",
        )),
    }
}

/// Refuses a call without keys, or with too many.
///
/// # Errors
/// What is wrong with it, by the field's name.
pub fn check_keys(count: usize) -> Result<(), Problem> {
    match count {
        0 => Err(Problem::bad_field(
            "keys",
            "there are none; give at least one",
        )),
        1..=KEYS_MAX => Ok(()),
        _ => Err(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("keys: {count} are more than a call may have, which is {KEYS_MAX}"),
        )
        .with("field", "keys".into())),
    }
}

/// The key space that a call names.
///
/// # Errors
/// What is wrong with it, by the field's name.
pub fn namespace(name: Option<String>) -> Result<Option<Namespace>, Problem> {
    name.map(|name| Namespace::new(&name))
        .transpose()
        .map_err(|error| Problem::bad_field("namespace", error))
}
