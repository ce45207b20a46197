//! How settings name an object storage.

use std::{
    fmt, io,
    path::{self, Path},
    str::FromStr,
    sync::Arc,
};

use crate::{
    LocalStorage, ObjectStorage, StorageError, check_key,
    s3::{S3Options, S3Storage},
};

const FORM: &str = "s3://bucket/prefix or file:///absolute/path";

/// Which object storage: `s3://bucket/prefix`, whose prefix may be left out, or `file:///absolute/path`.
///
/// What follows `file://` is the path, character by character. Nothing is decoded: `%20` in it is those three characters, not a
/// space.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StorageUrl(Kind);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Kind {
    // Text rather than a `PathBuf`, so that every URL can be shown and read back.
    Local { dir: String },
    // The prefix has no slash at its ends.
    S3 { bucket: String, prefix: String },
}

/// Why a text is not a [`StorageUrl`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageUrlError {
    /// No text at all.
    #[error("the storage URL is empty; use {FORM}")]
    Empty,
    /// `s3://` and something that names no bucket, or a prefix that no key could begin with.
    #[error("storage URL {url:?}: {reason}; use s3://bucket or s3://bucket/prefix")]
    NotABucket {
        /// The refused text.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// `file://` and something other than an absolute path to a directory.
    #[error(
        "storage URL {url:?} does not name a directory by its absolute path; use {FORM}, with three slashes"
    )]
    NotAbsolute {
        /// The refused text.
        url: String,
    },
    /// A kind of storage that there is not.
    #[error("storage URL {url:?} is not of a known kind; use {FORM}")]
    UnknownKind {
        /// The refused text.
        url: String,
    },
    /// A name that no storage below another one can have.
    #[error("{name:?} cannot be a storage below {url}: {reason}")]
    NoChild {
        /// The storage above.
        url: String,
        /// The refused name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A directory that no URL can name.
    #[error("directory {dir:?} cannot be written as a storage URL: {reason}")]
    NoUrl {
        /// The refused directory.
        dir: String,
        /// Why.
        reason: String,
    },
}

impl StorageUrl {
    /// The local directory `dir`; a relative one counts from the working directory of now.
    ///
    /// # Errors
    /// When the path is empty, is the root directory or is not UTF-8.
    pub fn local(dir: &Path) -> Result<Self, StorageUrlError> {
        let no_url = |reason: String| StorageUrlError::NoUrl {
            dir: dir.display().to_string(),
            reason,
        };
        let absolute = path::absolute(dir).map_err(|error: io::Error| no_url(error.to_string()))?;
        let text = absolute
            .to_str()
            .ok_or_else(|| no_url("it is not UTF-8".to_owned()))?;
        Self::from_path(text).ok_or_else(|| no_url("it is the root directory".to_owned()))
    }

    /// The objects of an S3 bucket whose keys begin with `prefix` and a slash, or all, without a prefix.
    ///
    /// # Errors
    /// When the bucket's name or the prefix is not possible.
    pub fn s3(bucket: &str, prefix: &str) -> Result<Self, StorageUrlError> {
        let url = format!("s3://{bucket}/{prefix}");
        let refused = |reason: String| StorageUrlError::NotABucket {
            url: url.clone(),
            reason,
        };
        let prefix = prefix.trim_matches('/');
        let allowed =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' || c == '-';
        if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(allowed) {
            return Err(refused(format!(
                "{bucket:?} is not a bucket's name, which has 3 to 63 of a-z 0-9 . -"
            )));
        }
        if !prefix.is_empty() {
            check_key(prefix).map_err(|error| refused(error.to_string()))?;
        }
        Ok(Self(Kind::S3 {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        }))
    }

    /// The storage `name` below this one: a directory in its directory, or what follows its prefix.
    ///
    /// # Errors
    /// When `name` is not a single segment of an object's key, or there is no room for it.
    pub fn child(&self, name: &str) -> Result<Self, StorageUrlError> {
        let no_child = |reason: String| StorageUrlError::NoChild {
            url: self.to_string(),
            name: name.to_owned(),
            reason,
        };
        if name.contains('/') {
            return Err(no_child("it contains a slash".to_owned()));
        }
        check_key(name).map_err(|error| no_child(error.to_string()))?;
        match &self.0 {
            Kind::Local { dir } => Ok(Self(Kind::Local {
                dir: format!("{dir}/{name}"),
            })),
            Kind::S3 { bucket, prefix } => Self::s3(bucket, &format!("{prefix}/{name}")),
        }
    }

    /// Whether both are the same storage, or one lies within the other. Of directories by their names: see
    /// [`resolved`](Self::resolved).
    pub fn overlaps(&self, other: &Self) -> bool {
        let within = |inner: &str, outer: &str| {
            let rest = inner.strip_prefix(outer);
            rest.is_some_and(|rest| rest.is_empty() || outer.is_empty() || rest.starts_with('/'))
        };
        let (a, b) = match (&self.0, &other.0) {
            (Kind::Local { dir: a }, Kind::Local { dir: b }) => (a, b),
            (
                Kind::S3 { bucket, prefix: a },
                Kind::S3 {
                    bucket: other_bucket,
                    prefix: b,
                },
            ) if bucket == other_bucket => (a, b),
            _ => return false,
        };
        within(a, b) || within(b, a)
    }

    /// The same directory by its own name, without links and `..`, where it exists.
    pub fn resolved(&self) -> Self {
        let dir = self.local_dir().map(std::fs::canonicalize);
        let text = dir.and_then(|dir| dir.ok()?.into_os_string().into_string().ok());
        text.and_then(|text| Self::from_path(&text))
            .unwrap_or_else(|| self.clone())
    }

    /// The directory, where it is one.
    pub fn local_dir(&self) -> Option<&Path> {
        match &self.0 {
            Kind::Local { dir } => Some(Path::new(dir)),
            Kind::S3 { .. } => None,
        }
    }

    /// Whether this is S3, for which [`S3Options`] count.
    pub const fn is_s3(&self) -> bool {
        matches!(self.0, Kind::S3 { .. })
    }

    /// Opens the storage. Whether it is there shows only when it is used.
    ///
    /// # Errors
    /// As [`LocalStorage::open`]; of a bucket, when the options make no sense.
    pub fn open(&self, s3: &S3Options) -> Result<Arc<dyn ObjectStorage>, StorageError> {
        Ok(match &self.0 {
            Kind::Local { dir } => Arc::new(LocalStorage::open(Path::new(dir))?),
            Kind::S3 { bucket, prefix } => Arc::new(S3Storage::open(bucket, prefix, s3)?),
        })
    }

    /// Opens the storage for whoever creates a cluster in it: a directory is made when it is not there, a bucket is not.
    ///
    /// # Errors
    /// As [`LocalStorage::create`]; of a bucket, when the options make no sense.
    pub fn create(&self, s3: &S3Options) -> Result<Arc<dyn ObjectStorage>, StorageError> {
        match &self.0 {
            Kind::Local { dir } => Ok(Arc::new(LocalStorage::create(Path::new(dir))?)),
            Kind::S3 { .. } => self.open(s3),
        }
    }

    fn from_path(path: &str) -> Option<Self> {
        let dir = path.trim_end_matches('/');
        // Storage in the root directory is never meant; it is what is left of `file:///$UNSET`.
        (dir.starts_with('/')).then(|| {
            Self(Kind::Local {
                dir: dir.to_owned(),
            })
        })
    }
}

impl FromStr for StorageUrl {
    type Err = StorageUrlError;

    fn from_str(text: &str) -> Result<Self, StorageUrlError> {
        let url = text.to_owned();
        if text.is_empty() {
            return Err(StorageUrlError::Empty);
        }
        if let Some(rest) = text.strip_prefix("s3:") {
            let rest = rest.strip_prefix("//").unwrap_or_default();
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            return Self::s3(bucket, prefix).map_err(|error| match error {
                StorageUrlError::NotABucket { reason, .. } => {
                    StorageUrlError::NotABucket { url, reason }
                }
                other => other,
            });
        }
        match text.strip_prefix("file:") {
            Some(rest) => rest
                .strip_prefix("//")
                .and_then(Self::from_path)
                .ok_or(StorageUrlError::NotAbsolute { url }),
            None => Err(StorageUrlError::UnknownKind { url }),
        }
    }
}

impl fmt::Display for StorageUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Local { dir } => write!(f, "file://{dir}"),
            Kind::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Kind::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        text.parse::<StorageUrl>().unwrap_err().to_string()
    }

    #[test]
    fn a_file_url_reads_back_from_its_text() {
        for text in [
            "file:///var/lib/keydb",
            "file:///a",
            "file:///with space/and%20percent/?#",
        ] {
            let url: StorageUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), text);
            assert_eq!(StorageUrl::local(Path::new(&text[7..])), Ok(url));
        }
    }

    #[test]
    fn an_s3_url_reads_back_from_its_text() {
        for text in ["s3://bucket", "s3://my.bucket-1/a", "s3://bucket/a/b_c"] {
            let url: StorageUrl = text.parse().unwrap();
            assert!(url.is_s3());
            assert_eq!(url.to_string(), text);
        }
        let url: StorageUrl = "s3://bucket/a/".parse().unwrap();
        assert_eq!(url, StorageUrl::s3("bucket", "a").unwrap());
        assert_eq!(
            "s3://bucket/".parse::<StorageUrl>(),
            "s3://bucket".parse::<StorageUrl>()
        );
    }

    #[test]
    fn a_slash_at_the_end_makes_no_difference() {
        assert_eq!(
            "file:///a/".parse::<StorageUrl>(),
            "file:///a".parse::<StorageUrl>()
        );
    }

    #[test]
    fn a_storage_below_another_one_overlaps_with_it_and_with_nothing_beside_it() {
        let url = |text: &str| text.parse::<StorageUrl>().unwrap();
        for (above, child) in [
            ("s3://bucket", "s3://bucket/a"),
            ("s3://bucket/x/y", "s3://bucket/x/y/a"),
            ("file:///x", "file:///x/a"),
        ] {
            let made = url(above).child("a").unwrap();
            assert_eq!(made, url(child));
            assert!(made.overlaps(&url(above)) && url(above).overlaps(&made));
            assert!(made.overlaps(&made));
            assert!(!made.overlaps(&url(above).child("ab").unwrap()));
        }
        assert!(!url("s3://bucket/a").overlaps(&url("s3://other/a")));
        assert!(!url("s3://bucket/a").overlaps(&url("file:///a")));
        for name in ["", "..", "a/b", "a b", "~lock"] {
            let refusal = url("file:///x").child(name).unwrap_err().to_string();
            assert!(
                refusal.contains(&format!("{name:?} cannot be")),
                "{refusal}"
            );
        }
    }

    #[test]
    fn a_directory_is_resolved_to_its_own_name() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap().join("real");
        std::fs::create_dir(&real).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let url = |path: &Path| StorageUrl::local(path).unwrap();
        assert_eq!(url(&link).resolved(), url(&real));
        let nowhere = url(Path::new("/nowhere/at/all"));
        assert_eq!(nowhere.resolved(), nowhere);
    }

    #[test]
    fn a_relative_directory_counts_from_the_working_directory() {
        let here = std::env::current_dir().unwrap();
        let url = StorageUrl::local(Path::new("some-dir")).unwrap();
        assert_eq!(
            url.to_string(),
            format!("file://{}/some-dir", here.display())
        );
    }

    #[test]
    fn a_percent_sign_is_itself() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}/a%20b", dir.path().display());
        let url: StorageUrl = url.parse().unwrap();
        url.create(&S3Options::default()).unwrap();
        assert!(dir.path().join("a%20b").is_dir());
    }

    #[tokio::test]
    async fn only_who_creates_a_cluster_makes_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("storage");
        let url: StorageUrl = format!("file://{}", path.display()).parse().unwrap();
        let options = S3Options::default();
        let reader = url.open(&options).unwrap();
        assert!(!path.exists());
        // An empty directory may be a mount point that nothing is mounted at.
        std::fs::create_dir(&path).unwrap();
        for opened in [reader.clone(), url.open(&options).unwrap()] {
            let errors = [
                opened.get("key").await.map(|_| ()).unwrap_err(),
                opened
                    .put_if_absent("key", "value".into())
                    .await
                    .map(|_| ())
                    .unwrap_err(),
            ];
            for error in errors {
                assert!(error.to_string().contains("was never made"), "{error}");
            }
        }
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
        url.create(&options).unwrap();
        assert!(reader.get("key").await.unwrap().is_none());
    }

    #[test]
    fn what_is_no_storage_is_refused_with_the_right_form() {
        for text in [
            "s3:",
            "s3://",
            "s3:///prefix",
            "s3://B_cket/x",
            "s3://ab",
            "s3://bucket/a//b",
        ] {
            let refusal = refusal(text);
            assert!(refusal.contains(text), "{refusal}");
            assert!(
                refusal.contains("use s3://bucket or s3://bucket/prefix"),
                "{refusal}"
            );
        }
        for text in [
            "file://relative",
            "file://host/path",
            "file:/path",
            "file:",
            "file:///",
            "file:////",
        ] {
            let refusal = refusal(text);
            assert!(
                refusal.contains(text) && refusal.contains(FORM),
                "{refusal}"
            );
            assert!(refusal.contains("absolute"), "{refusal}");
        }
        for text in ["/var/lib/keydb", "http://x", "FILE:///a", " file:///a"] {
            let refusal = refusal(text);
            assert!(
                refusal.contains(text) && refusal.contains(FORM),
                "{refusal}"
            );
        }
        assert_eq!(refusal(""), format!("the storage URL is empty; use {FORM}"));
        assert!(StorageUrl::local(Path::new("")).is_err());
        assert!(StorageUrl::local(Path::new("/")).is_err());
    }
}
