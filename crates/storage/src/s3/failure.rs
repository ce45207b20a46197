//! What an error of the SDK means for the call that met it.

use aws_sdk_s3::{
    config::http::HttpResponse,
    error::{DisplayErrorContext, ProvideErrorMetadata, SdkError},
};

use crate::{StorageError, StorageErrorKind};

/// What to do about a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// There is no such object, or no such upload.
    NotFound,
    /// The condition did not hold.
    ConditionFailed,
    /// Another write was under way. Nothing was written; try again.
    Busy,
    /// The range lies behind the object's end.
    OutOfRange,
    /// A repeat would meet the same, and nothing was done.
    Permanent,
    /// Try again. Nothing was done.
    NotSent,
    /// Try again. A write may have been done, or may be done yet.
    Unclear,
}

pub(super) fn classify<E>(error: &SdkError<E, HttpResponse>) -> Failure
where
    E: ProvideErrorMetadata,
{
    match error {
        SdkError::ConstructionFailure(_) => Failure::Permanent,
        SdkError::DispatchFailure(failure) if failure.is_user() => Failure::Permanent,
        SdkError::ServiceError(service) => {
            let code = service.err().code().unwrap_or_default();
            match (service.raw().status().as_u16(), code) {
                (404, "NoSuchBucket") => Failure::Permanent,
                (404, _) => Failure::NotFound,
                (412, _) => Failure::ConditionFailed,
                (409, _) => Failure::Busy,
                (416, _) => Failure::OutOfRange,
                // The server says that it did nothing.
                (429, _) | (503, "SlowDown" | "ServiceUnavailable") => Failure::NotSent,
                (400, "RequestTimeout") => Failure::Unclear,
                (400..=499, _) => Failure::Permanent,
                _ => Failure::Unclear,
            }
        }
        _ => Failure::Unclear,
    }
}

/// The error's own words, with its causes.
pub(super) fn text<E>(error: &SdkError<E, HttpResponse>) -> String
where
    E: std::error::Error + ProvideErrorMetadata + 'static,
{
    match error {
        SdkError::ServiceError(service) => {
            let error = service.err();
            let status = service.raw().status();
            match (error.code(), error.message()) {
                (Some(code), Some(message)) => format!("{status} {code}: {message}"),
                (Some(code), None) => format!("{status} {code}"),
                _ => format!("the server answered {status}"),
            }
        }
        other => DisplayErrorContext(other).to_string(),
    }
}

/// A call that only reads has failed for good.
pub(super) fn of_read(action: &str, place: &str, failure: Failure, why: &str) -> StorageError {
    let kind = match failure {
        Failure::Permanent => StorageErrorKind::Refused,
        _ => StorageErrorKind::Unavailable,
    };
    StorageError::new(kind, format!("cannot {action} {place}: {why}"))
}

/// A call that writes has failed for good. `unclear`: an attempt may have been, or may yet be, applied.
pub(super) fn of_write(
    action: &str,
    place: &str,
    failure: Failure,
    unclear: bool,
    why: &str,
) -> StorageError {
    let kind = match failure {
        _ if unclear => StorageErrorKind::OutcomeUnknown,
        Failure::Permanent => StorageErrorKind::Refused,
        _ => StorageErrorKind::Unavailable,
    };
    StorageError::new(kind, format!("cannot {action} {place}: {why}"))
}
