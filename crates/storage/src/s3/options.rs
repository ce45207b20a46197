//! How to reach an S3-compatible server.

use std::fmt::{self, Debug};

use crate::StorageError;

/// The region when none is given. Servers other than Amazon's mostly do not care.
pub(super) const REGION_DEFAULT: &str = "us-east-1";

/// How to reach an S3-compatible server, and as whom.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct S3Options {
    /// The server, as `http://host:port` or `https://host`; Amazon's own when there is none. With an endpoint, buckets are
    /// addressed in the path (`http://host:port/bucket/key`), which every server understands.
    pub endpoint: Option<String>,
    /// The region; `us-east-1` when there is none.
    pub region: Option<String>,
    /// Id and secret of an access key. Without one, credentials come from where Amazon's tools find them: environment, shared
    /// files, web identity, container or machine role. The secret is shown nowhere.
    pub access_key: Option<(String, String)>,
}

impl Debug for S3Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Options")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("access_key_id", &self.access_key.as_ref().map(|(id, _)| id))
            .finish_non_exhaustive()
    }
}

impl S3Options {
    /// The endpoint without a slash at its end, when there is one.
    pub(super) fn checked_endpoint(&self) -> Result<Option<&str>, StorageError> {
        let Some(endpoint) = &self.endpoint else {
            return Ok(None);
        };
        let endpoint = endpoint.trim_end_matches('/');
        let host = endpoint
            .strip_prefix("http://")
            .or_else(|| endpoint.strip_prefix("https://"));
        // Something before an @ would be a password, and would end up in messages.
        match host {
            Some(host) if !host.is_empty() && !host.contains(['/', '@', '?', '#', ' ']) => {
                Ok(Some(endpoint))
            }
            _ => Err(StorageError::refused(format!(
                "S3 endpoint {:?} is not of the form http://host:port or https://host",
                without_user(endpoint)
            ))),
        }
    }
}

/// The endpoint without what may be a name and a password in it.
fn without_user(endpoint: &str) -> String {
    match (endpoint.find("//"), endpoint.rfind('@')) {
        (Some(start), Some(end)) if start < end => {
            format!("{}…{}", &endpoint[..start + 2], &endpoint[end..])
        }
        _ => endpoint.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StorageErrorKind;

    #[test]
    fn the_secret_is_not_shown() {
        let options = S3Options {
            access_key: Some(("an-id".to_owned(), "a-secret".to_owned())),
            ..S3Options::default()
        };
        let shown = format!("{options:?}");
        assert!(
            shown.contains("an-id") && !shown.contains("a-secret"),
            "{shown}"
        );
    }

    #[test]
    fn an_endpoint_is_a_scheme_and_a_host() {
        let checked = |endpoint: &str| {
            let options = S3Options {
                endpoint: Some(endpoint.to_owned()),
                ..S3Options::default()
            };
            options
                .checked_endpoint()
                .map(|endpoint| endpoint.unwrap().to_owned())
        };
        for good in [
            "http://localhost:9000",
            "https://s3.example.org",
            "http://[::1]:9000",
        ] {
            assert_eq!(checked(good), Ok(good.to_owned()));
        }
        assert_eq!(checked("http://host/"), Ok("http://host".to_owned()));
        for bad in [
            "localhost:9000",
            "http://",
            "ftp://host",
            "http://host/path",
            "",
        ] {
            let error = checked(bad).unwrap_err();
            assert_eq!(error.kind(), StorageErrorKind::Refused);
            assert!(error.to_string().contains("http://host:port"), "{error}");
        }
        let error = checked("http://name:password@host").unwrap_err();
        assert!(!error.to_string().contains("password"), "{error}");
    }
}
