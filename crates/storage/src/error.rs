//! What can go wrong with an operation on object storage.

/// What a caller should do about a [`StorageError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageErrorKind {
    /// Nothing was read, nothing was written. Trying again may help.
    Unavailable,
    /// A write may or may not have been applied, or may yet be. Read again to find out.
    OutcomeUnknown,
    /// Nothing was read, nothing was written, and trying again will not help: an invalid key, no permission, a damaged object.
    Refused,
}

/// An operation on object storage failed. The text names the object or file and the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StorageError {
    kind: StorageErrorKind,
    message: String,
}

impl StorageError {
    /// An error of this kind; `message` names the object or file and the reason.
    pub fn new(kind: StorageErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// What a caller should do about it.
    pub const fn kind(&self) -> StorageErrorKind {
        self.kind
    }

    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self::new(StorageErrorKind::Refused, message)
    }
}
