//! What an answer of the server, or the lack of one, means for the operation that met it.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};
use hyper_util::client::legacy;

use crate::{StorageError, StorageErrorKind};

/// What to do about a [`Failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// Try again.
    Retry,
    /// The condition of a write or read does not hold (412).
    ConditionFailed,
    /// Another write to the object is under way (409). Nothing was written; try again.
    Busy,
    /// There is no such object, or no such upload: the store's own word for that.
    NotFound,
    /// Something is not there (404), and the answer does not say what: one without a body, as to a `HEAD`.
    UnexplainedNotFound,
    /// The object still has the version that is known already (304).
    NotModified,
    /// The range lies behind the object's end (416).
    OutOfRange,
    /// Trying again will not help.
    Refused,
}

/// Why an attempt failed.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) kind: FailureKind,
    /// Whether a write may all the same have been applied, or may yet be.
    pub(super) in_doubt: bool,
    pub(super) reason: String,
}

impl Failure {
    fn new(kind: FailureKind, in_doubt: bool, reason: String) -> Self {
        Self {
            kind,
            in_doubt,
            reason,
        }
    }

    /// No answer within the time for an attempt.
    pub(super) fn timeout(limit: std::time::Duration) -> Self {
        let reason = format!("no answer within {} ms", limit.as_millis());
        Self::new(FailureKind::Retry, true, reason)
    }

    /// An answer that looks like success and lacks what it must have.
    pub(super) fn incomplete(what: &str) -> Self {
        let reason = format!("the server's answer has no {what}");
        Self::new(FailureKind::Retry, true, reason)
    }

    /// A file on this side was not read, for a reason that may pass.
    pub(super) fn unread(reason: String) -> Self {
        Self::new(FailureKind::Retry, false, reason)
    }

    /// A download ended early once too often.
    pub(super) fn broke_off(reason: String) -> Self {
        Self::new(FailureKind::Retry, false, reason)
    }

    /// An object is not the one any more whose download had begun.
    pub(super) fn replaced() -> Self {
        let reason = "it was replaced or removed while it was read".to_owned();
        Self::new(FailureKind::ConditionFailed, false, reason)
    }

    /// Something that is wrong on this side; trying again will not help.
    pub(super) fn refused(reason: String) -> Self {
        Self::new(FailureKind::Refused, false, reason)
    }

    /// Whether another attempt may go better.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self.kind, FailureKind::Retry | FailureKind::Busy)
    }

    /// The error of a call that changes nothing, or changed nothing for certain. `what` names what could not be done.
    pub(super) fn not_applied(&self, what: &str) -> StorageError {
        let kind = match self.kind {
            FailureKind::Retry
            | FailureKind::Busy
            | FailureKind::ConditionFailed
            | FailureKind::NotModified
            | FailureKind::NotFound
            | FailureKind::UnexplainedNotFound => StorageErrorKind::Unavailable,
            FailureKind::OutOfRange | FailureKind::Refused => StorageErrorKind::Refused,
        };
        StorageError::new(kind, format!("cannot {what}: {}", self.reason))
    }

    /// The error of a write.
    pub(super) fn of_write(&self, what: &str) -> StorageError {
        if self.in_doubt {
            StorageError::new(
                StorageErrorKind::OutcomeUnknown,
                format!(
                    "it is not known whether this was done: {what}: {}",
                    self.reason
                ),
            )
        } else {
            self.not_applied(what)
        }
    }
}

impl<E> From<SdkError<E, HttpResponse>> for Failure
where
    E: Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    fn from(error: SdkError<E, HttpResponse>) -> Self {
        match &error {
            SdkError::ConstructionFailure(_) => Self::refused(text_of(&error)),
            SdkError::DispatchFailure(failure) => {
                let sent = !was_not_sent(&error);
                if failure.is_user() || lacks_credentials(&error) {
                    return Self::new(FailureKind::Refused, sent, text_of(&error));
                }
                Self::new(FailureKind::Retry, sent, text_of(&error))
            }
            SdkError::ServiceError(service) => {
                let response = service.raw();
                let code = service.err().code().unwrap_or_default();
                let status = response.status().as_u16();
                let (kind, in_doubt) = meaning(status, code);
                let message = service.err().message().unwrap_or_default();
                Self::new(
                    kind,
                    in_doubt,
                    describe(status, code, message, region_of(response)),
                )
            }
            // An answer that cannot be understood: an error page of something in between, a body that broke off.
            _ => {
                let status = error
                    .raw_response()
                    .map(|response| response.status().as_u16());
                let (kind, in_doubt) = match status {
                    Some(status @ (304 | 400..)) => meaning(status, ""),
                    _ => (FailureKind::Retry, true),
                };
                Self::new(kind, in_doubt, text_of(&error))
            }
        }
    }
}

/// What an HTTP status and S3's code for the error mean, and whether a write may have been applied.
fn meaning(status: u16, code: &str) -> (FailureKind, bool) {
    match (status, code) {
        (304, _) => (FailureKind::NotModified, false),
        // The body did not arrive as it was sent; the server did not take it.
        (400, "RequestTimeout" | "IncompleteBody" | "BadDigest" | "XAmzContentSHA256Mismatch") => {
            (FailureKind::Retry, false)
        }
        (404, "NoSuchBucket") => (FailureKind::Refused, false),
        (404, "NoSuchKey" | "NoSuchUpload") => (FailureKind::NotFound, false),
        (404, "NotFound") => (FailureKind::UnexplainedNotFound, true),
        // Of something between here and the store, or cut short.
        (404, _) => (FailureKind::Retry, true),
        (409, _) => (FailureKind::Busy, false),
        (412, _) => (FailureKind::ConditionFailed, false),
        (416, _) => (FailureKind::OutOfRange, false),
        // Too much at once: the server says so before it begins.
        (429, _) | (503, "SlowDown") => (FailureKind::Retry, false),
        (408, _) => (FailureKind::Retry, true),
        (501, _) => (FailureKind::Refused, false),
        // No room: the server says so before it writes.
        (507, _) => (FailureKind::Retry, false),
        // Amazon says of 500 that it may come after a success, and a 502 or 504 of something in between surely may.
        (500.., _) => (FailureKind::Retry, true),
        _ => (FailureKind::Refused, false),
    }
}

fn describe(status: u16, code: &str, message: &str, region: Option<&str>) -> String {
    let mut text = match (code, message) {
        ("", "") => format!("HTTP status {status}"),
        ("", _) => format!("{message} (HTTP status {status})"),
        (_, "") => format!("{code} (HTTP status {status})"),
        _ => format!("{code}: {message} (HTTP status {status})"),
    };
    if let (301 | 307 | 400, Some(region)) = (status, region) {
        text += &format!("; the bucket is in region {region:?}");
    }
    text
}

fn region_of(response: &HttpResponse) -> Option<&str> {
    response.headers().get("x-amz-bucket-region")
}

/// Whether the request cannot have reached the server: there was no connection, or nothing to sign it with.
fn was_not_sent(error: &(dyn Error + 'static)) -> bool {
    sources(error).any(|source| {
        let connect = source.downcast_ref::<legacy::Error>();
        connect.is_some_and(legacy::Error::is_connect) || source.is::<CredentialsError>()
    })
}

fn lacks_credentials(error: &(dyn Error + 'static)) -> bool {
    sources(error).any(|source| {
        matches!(
            source.downcast_ref(),
            Some(
                CredentialsError::CredentialsNotLoaded(_)
                    | CredentialsError::InvalidConfiguration(_)
            )
        )
    })
}

fn sources<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

fn text_of(error: &(dyn Error + 'static)) -> String {
    // The chain without the debug form that the SDK appends, which shows whole requests.
    let mut parts: Vec<String> = Vec::new();
    for source in sources(error) {
        let part = source.to_string();
        if parts.last() != Some(&part) {
            parts.push(part);
        }
    }
    parts.join(": ")
}
