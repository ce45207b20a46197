//! Values of the settings that say where object storage is: one URL, or S3's bucket, region, endpoint and keys.

use std::fmt;

use keydb_storage::StorageUrl;

use super::parse::without_secrets;

/// A bucket, or a part of one.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    /// As it was given.
    text: String,
    /// What it means.
    pub(super) url: StorageUrl,
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Text that is shown to nobody.
#[derive(Clone)]
pub(crate) struct Secret(pub(super) String);

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(set)")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A storage's URL.
pub(crate) fn url(text: &str) -> Result<StorageUrl, String> {
    // The library's messages hold parts of the URL, so it gets none that has a password.
    if without_secrets(text) != text {
        return Err(
            "has a user or password in it; give KEYDB_STORAGE_ACCESSKEYID and KEYDB_STORAGE_ACCESSKEY instead"
                .to_owned(),
        );
    }
    text.parse()
        .map_err(|error: keydb_storage::StorageUrlError| error.to_string())
}

/// `bucket` or `bucket/prefix`.
pub(super) fn bucket(text: &str) -> Result<Bucket, String> {
    let (bucket, prefix) = text.split_once('/').unwrap_or((text, ""));
    let url = StorageUrl::s3(bucket, prefix).map_err(|error| {
        format!("{error}; give a bucket's name, such as keydb, or keydb/prefix")
    })?;
    let text = text.to_owned();
    Ok(Bucket { text, url })
}

/// Something without spaces.
pub(super) fn word(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("is empty or has spaces in it".to_owned());
    }
    Ok(text.to_owned())
}

/// Likewise.
pub(super) fn secret(text: &str) -> Result<Secret, String> {
    word(text).map(Secret)
}

/// `http://host:port` or `https://host`.
pub(super) fn endpoint(text: &str) -> Result<String, String> {
    let right = "is not an S3 endpoint; give a URL without a path, such as http://minio:9000 or https://s3.eu-central-1.amazonaws.com";
    let rest = ["http://", "https://"]
        .into_iter()
        .find_map(|scheme| text.strip_prefix(scheme));
    let host = rest.map(|rest| rest.strip_suffix('/').unwrap_or(rest));
    let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | '?' | '#' | '@');
    match host {
        Some(host) if !host.is_empty() && !host.contains(odd) => Ok(text.to_owned()),
        _ => Err(right.to_owned()),
    }
}
