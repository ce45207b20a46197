//! JSON whose last member is the checksum of all bytes before it, as manifests and backups have it.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use xxhash_rust::xxh3::xxh3_64;

/// How pretty-printed JSON ends, and how this does instead.
const JSON_END: &str = "\n}";
const CHECKSUM_START: &str = ",\n  \"checksum\": \"";
const CHECKSUM_END: &str = "\"\n}";
const SUM_DIGITS: usize = 16;

/// Why there is nothing to be read.
#[derive(Debug)]
pub(crate) enum JsonError {
    Malformed(String),
    Unsupported(String),
    Damaged(&'static str),
}

/// `value`, an object with at least one member, and the checksum.
pub(crate) fn write(value: &impl Serialize) -> Vec<u8> {
    let mut json =
        serde_json::to_vec_pretty(value).expect("it has only string keys, so it always serialises");
    json.truncate(json.len() - JSON_END.len());
    let sum = xxh3_64(&json);
    json.extend_from_slice(format!("{CHECKSUM_START}{sum:016x}{CHECKSUM_END}").as_bytes());
    json
}

/// Reads what [`write`] wrote, if it has this format and needs no feature. `unknown` are its fields that are not declared.
pub(crate) fn read<T: DeserializeOwned>(
    json: &[u8],
    format: u32,
    unknown: impl FnOnce(&mut T) -> &mut Map<String, Value>,
) -> Result<T, JsonError> {
    #[derive(serde::Deserialize)]
    struct Head {
        format: u32,
        #[serde(default)]
        required_features: Vec<String>,
    }
    let malformed = |error: serde_json::Error| JsonError::Malformed(error.to_string());
    let head: Head = serde_json::from_slice(json).map_err(malformed)?;
    if head.format != format {
        return Err(JsonError::Unsupported(format!("format {}", head.format)));
    }
    if let Some(feature) = head.required_features.first() {
        return Err(JsonError::Unsupported(format!("feature {feature:?}")));
    }
    check_sum(json).map_err(JsonError::Damaged)?;
    let mut value: T = serde_json::from_slice(json).map_err(malformed)?;
    unknown(&mut value).remove("checksum");
    Ok(value)
}

/// Checks that the bytes are as they were written.
fn check_sum(json: &[u8]) -> Result<(), &'static str> {
    let tail_bytes = CHECKSUM_START.len() + SUM_DIGITS + CHECKSUM_END.len();
    let at = json.len().checked_sub(tail_bytes);
    let (content, tail) = json.split_at(at.ok_or("it is too short")?);
    let expected = format!("{CHECKSUM_START}{:016x}{CHECKSUM_END}", xxh3_64(content));
    if tail == expected.as_bytes() {
        Ok(())
    } else {
        Err("its checksum does not match, or it does not end in one")
    }
}
