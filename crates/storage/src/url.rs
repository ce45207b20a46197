//! How settings name an object storage.

use std::{
    fmt, io,
    path::{self, Path},
    str::FromStr,
    sync::Arc,
};

use crate::{LocalStorage, ObjectStorage, StorageError};

const FORM: &str = "file:///absolute/path";

/// Which object storage: `file:///absolute/path`.
///
/// What follows `file://` is the path, character by character. Nothing is decoded: `%20` in it is those three characters, not a
/// space.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StorageUrl {
    // Text rather than a `PathBuf`, so that every URL can be shown and read back.
    dir: String,
}

/// Why a text is not a [`StorageUrl`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageUrlError {
    /// No text at all.
    #[error("the storage URL is empty; use {FORM}")]
    Empty,
    /// S3, which this build does not have.
    #[error("storage URL {url:?}: this build has no S3 yet; use file:///path")]
    NoS3 {
        /// The refused text.
        url: String,
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

    /// Opens the storage; creates the directory when it is not there.
    ///
    /// # Errors
    /// As [`LocalStorage::open`].
    pub fn open(&self) -> Result<Arc<dyn ObjectStorage>, StorageError> {
        Ok(Arc::new(LocalStorage::open(Path::new(&self.dir))?))
    }

    fn from_path(path: &str) -> Option<Self> {
        let dir = path.trim_end_matches('/');
        // Storage in the root directory is never meant; it is what is left of `file:///$UNSET`.
        (dir.starts_with('/')).then(|| Self {
            dir: dir.to_owned(),
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
        if text.starts_with("s3:") {
            return Err(StorageUrlError::NoS3 { url });
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
        write!(f, "file://{}", self.dir)
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
    fn a_slash_at_the_end_makes_no_difference() {
        assert_eq!(
            "file:///a/".parse::<StorageUrl>(),
            "file:///a".parse::<StorageUrl>()
        );
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
        url.parse::<StorageUrl>().unwrap().open().unwrap();
        assert!(dir.path().join("a%20b").is_dir());
    }

    #[test]
    fn what_is_no_storage_is_refused_with_the_right_form() {
        assert_eq!(
            refusal("s3://bucket/prefix"),
            "storage URL \"s3://bucket/prefix\": this build has no S3 yet; use file:///path"
        );
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
