//! What an error of the file system means for the operation that met it.

use std::{
    io::{self, ErrorKind},
    path::Path,
};

use crate::{StorageError, StorageErrorKind};

/// The kind of an error before which nothing was written.
fn not_done_kind(error: &io::Error) -> StorageErrorKind {
    match error.kind() {
        ErrorKind::PermissionDenied
        | ErrorKind::ReadOnlyFilesystem
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::AlreadyExists
        | ErrorKind::InvalidFilename
        | ErrorKind::InvalidInput => StorageErrorKind::Refused,
        _ => StorageErrorKind::Unavailable,
    }
}

pub(super) fn not_done(action: &str, path: &Path, error: &io::Error) -> StorageError {
    StorageError::new(
        not_done_kind(error),
        format!("cannot {action} {}: {error}", path.display()),
    )
}

/// An error of a rename. Where the system says that it did not begin, nothing was written; otherwise nobody knows.
pub(super) fn perhaps_done(action: &str, path: &Path, error: &io::Error) -> StorageError {
    match (not_done_kind(error), error.kind()) {
        (StorageErrorKind::Refused, _) | (_, ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            not_done(action, path, error)
        }
        _ => outcome_unknown(action, path, error),
    }
}

pub(super) fn outcome_unknown(action: &str, path: &Path, error: &io::Error) -> StorageError {
    StorageError::new(
        StorageErrorKind::OutcomeUnknown,
        format!(
            "cannot {action} {}: {error}; the write may or may not last",
            path.display()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_error_becomes_the_kind_that_says_what_to_do() {
        use rustix::io::Errno;

        let path = Path::new("/somewhere");
        let io_error = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        for (errno, before, rename) in [
            (
                Errno::ACCESS,
                StorageErrorKind::Refused,
                StorageErrorKind::Refused,
            ),
            (
                Errno::PERM,
                StorageErrorKind::Refused,
                StorageErrorKind::Refused,
            ),
            (
                Errno::ROFS,
                StorageErrorKind::Refused,
                StorageErrorKind::Refused,
            ),
            (
                Errno::NOSPC,
                StorageErrorKind::Unavailable,
                StorageErrorKind::Unavailable,
            ),
            (
                Errno::DQUOT,
                StorageErrorKind::Unavailable,
                StorageErrorKind::Unavailable,
            ),
            (
                Errno::IO,
                StorageErrorKind::Unavailable,
                StorageErrorKind::OutcomeUnknown,
            ),
            (
                Errno::STALE,
                StorageErrorKind::Unavailable,
                StorageErrorKind::OutcomeUnknown,
            ),
        ] {
            let error = io_error(errno);
            assert_eq!(not_done("write", path, &error).kind(), before, "{error}");
            assert_eq!(
                perhaps_done("rename to", path, &error).kind(),
                rename,
                "{error}"
            );
            assert!(
                not_done("write", path, &error)
                    .to_string()
                    .contains("/somewhere")
            );
        }
    }
}
