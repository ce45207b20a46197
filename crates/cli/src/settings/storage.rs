//! Where object storage is: one URL, or S3's bucket, region, endpoint and keys as variables of their own.

use std::{path::Path, sync::Arc};

use keydb_storage::{ObjectStorage, S3Options, StorageError, StorageUrl};

use super::{Check, Raw, Setting, names, parse};

const URL: &str = "KEYDB_STORAGE_URL";
const BUCKET: &str = "KEYDB_STORAGE_BUCKET";
const REGION: &str = "KEYDB_STORAGE_REGION";
const ENDPOINT: &str = "KEYDB_STORAGE_ENDPOINT";
const ACCESS_KEY_ID: &str = "KEYDB_STORAGE_ACCESSKEYID";
const ACCESS_KEY: &str = "KEYDB_STORAGE_ACCESSKEY";

/// Where the cluster map and the snapshots lie unless a setting says otherwise: in the working directory.
const DIR_DEFAULT: &str = "keydb-storage";

/// Whether a variable's value is shown to nobody. A mistyped name may well be followed by the secret.
pub(super) fn is_secret(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    let sounds_so = ["SECRET", "PASSWORD", "TOKEN"]
        .iter()
        .any(|word| upper.contains(word));
    sounds_so || names::nearest(name) == Some(ACCESS_KEY)
}

/// Which object storage, and how it is reached.
#[derive(Debug, Clone)]
pub(crate) struct StorageSettings {
    pub(super) url: Setting<StorageUrl>,
    pub(super) bucket: Option<String>,
    pub(super) s3: S3Options,
}

impl StorageSettings {
    /// Reads the settings; `directory` is where the default begins. `None`: something is wrong, and `check` knows what.
    pub(super) fn read(check: &mut Check, raw: &Raw, directory: &Path) -> Option<Self> {
        let problems_before = check.0.len();
        let url = check.given(URL, &raw.storage_url, storage_url);
        let bucket = check.given(BUCKET, &raw.storage_bucket, |text| {
            let (bucket, prefix) = text.split_once('/').unwrap_or((text, ""));
            StorageUrl::s3(bucket, prefix)
                .map(|url| (text.to_owned(), url))
                .map_err(|error| {
                    format!("{error}; give a bucket's name, such as keydb, or keydb/prefix")
                })
        });
        let region = check.given(REGION, &raw.storage_region, word);
        let endpoint = check.given(ENDPOINT, &raw.storage_endpoint, endpoint);
        let access_key_id = check.given(ACCESS_KEY_ID, &raw.storage_accesskeyid, word);
        let access_key = check.given(ACCESS_KEY, &raw.storage_accesskey, word);

        if let (Some(url), Some((_, of_bucket))) = (&url, &bucket)
            && url != of_bucket
        {
            check.0.push(format!(
                "{BUCKET} means {of_bucket}, but {URL} is {}; give one of them",
                shown(url)
            ));
        }
        let is_s3 = bucket.is_some() || url.as_ref().is_some_and(StorageUrl::is_s3);
        let nothing_is_said = raw.storage_url.is_none() && raw.storage_bucket.is_none();
        for (name, value) in [
            (REGION, &raw.storage_region),
            (ENDPOINT, &raw.storage_endpoint),
            (ACCESS_KEY_ID, &raw.storage_accesskeyid),
            (ACCESS_KEY, &raw.storage_accesskey),
        ] {
            if value.is_none() || is_s3 {
                continue;
            }
            match &url {
                Some(url) => check.0.push(format!(
                    "{name} is for S3, but {URL} is {}; leave one of them out",
                    shown(url)
                )),
                None if nothing_is_said => check.0.push(format!(
                    "{name} is for S3, but no bucket is set; give {BUCKET}, or {URL}=s3://bucket/prefix"
                )),
                // What is wrong with the URL or the bucket was said.
                None => {}
            }
        }
        match (&raw.storage_accesskeyid, &raw.storage_accesskey) {
            (Some(_), None) => check.0.push(half_a_key(ACCESS_KEY_ID, ACCESS_KEY)),
            (None, Some(_)) => check.0.push(half_a_key(ACCESS_KEY, ACCESS_KEY_ID)),
            _ => {}
        }
        let (bucket, of_bucket) = bucket.unzip();
        let url = match url.or(of_bucket) {
            Some(value) => Setting {
                value,
                given: raw.storage_url.is_some(),
            },
            None => match StorageUrl::local(&directory.join(DIR_DEFAULT)) {
                Ok(value) => Setting {
                    value,
                    given: false,
                },
                Err(error) => {
                    check.0.push(format!(
                        "{URL} is not set, and its default cannot be used: {error}"
                    ));
                    return None;
                }
            },
        };
        (check.0.len() == problems_before).then_some(Self {
            url,
            bucket,
            s3: S3Options {
                endpoint,
                region,
                access_key: access_key_id.zip(access_key),
            },
        })
    }

    /// Whether a setting said which storage.
    pub(crate) fn is_given(&self) -> bool {
        self.url.given || self.bucket.is_some()
    }

    /// Opens the storage.
    pub(super) fn open(&self) -> Result<Arc<dyn ObjectStorage>, StorageError> {
        self.url.value.open(&self.s3)
    }

    /// Opens the storage for whoever creates a cluster in it.
    pub(super) fn create(&self) -> Result<Arc<dyn ObjectStorage>, StorageError> {
        self.url.value.create(&self.s3)
    }

    /// The storage, as it can be shown.
    pub(super) fn text(&self) -> String {
        shown(&self.url.value)
    }
}

fn half_a_key(given: &str, missing: &str) -> String {
    format!(
        "{given} is set, but {missing} is not; give both, or neither to use the credentials of the environment"
    )
}

fn storage_url(text: &str) -> Result<StorageUrl, String> {
    // The library's messages hold parts of the URL, so it gets none that has a password.
    if parse::without_secrets(text) != text {
        return Err(format!(
            "has a user or password in it; give {ACCESS_KEY_ID} and {ACCESS_KEY} instead"
        ));
    }
    text.parse()
        .map_err(|error: keydb_storage::StorageUrlError| error.to_string())
}

fn shown(url: &StorageUrl) -> String {
    parse::without_secrets(&url.to_string())
}

/// Something without spaces.
fn word(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("is empty or has spaces in it".to_owned());
    }
    Ok(text.to_owned())
}

/// `http://host:port` or `https://host`.
fn endpoint(text: &str) -> Result<String, String> {
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
