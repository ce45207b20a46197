//! What stands in the way of a backup.

use keydb_proto::{refusal_status, shard::ErrorCode};
use keydb_storage::{StorageError, StorageErrorKind};
use tonic::Status;

/// Why a backup is not made, or not further. What was copied stays.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(super) struct Obstacle {
    code: ErrorCode,
    message: String,
}

impl Obstacle {
    fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { code, message }
    }

    /// Something else has to be asked for.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRequest, message)
    }

    /// Somebody else is at it, or something that ends.
    pub(super) fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Conflict, message)
    }

    /// There is something wrong that a person has to see to.
    pub(super) fn not_possible(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::NotPossible, message)
    }

    /// This node cannot do it now; another one may.
    pub(super) fn busy(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Overloaded, message)
    }

    /// What has ended the work on a backup is said to whoever waits, and no other node is to begin again with the same: what only a
    /// person can mend would go round, and what passes is over at the next call.
    pub(super) fn into_final(self) -> Self {
        match self.code {
            ErrorCode::Overloaded | ErrorCode::InvalidRequest => self,
            _ => Self::conflict(self.message),
        }
    }

    /// Another node goes on with the work.
    pub(super) fn is_superseded(&self) -> bool {
        self.code == ErrorCode::Overloaded
    }

    /// A storage fails; another node may reach it, or this one later.
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::StorageUnavailable, message)
    }
}

impl From<StorageError> for Obstacle {
    fn from(error: StorageError) -> Self {
        match error.kind() {
            StorageErrorKind::Refused => Self::not_possible(error.to_string()),
            _ => Self::unavailable(error.to_string()),
        }
    }
}

impl From<Obstacle> for Status {
    fn from(obstacle: Obstacle) -> Self {
        refusal_status(obstacle.code, obstacle.message)
    }
}
