//! Conversions between wire fields and core types.

use bytes::Bytes;
use prost::Message;
use tonic::{Code, Status};

use crate::shard::{ErrorCode, ErrorDetail};

/// A field that does not have the shape that the contract gives it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} has {length} bytes; it must have 16")]
pub struct FieldError {
    /// The field's name.
    pub field: &'static str,
    /// How many bytes it has.
    pub length: usize,
}

/// The 16 bytes of an id field.
///
/// # Errors
/// When the field has another length.
pub fn id_field(field: &'static str, bytes: &[u8]) -> Result<[u8; 16], FieldError> {
    bytes.try_into().map_err(|_| FieldError {
        field,
        length: bytes.len(),
    })
}

/// The status with which a node refuses a whole request: `code` in its details tells that nothing was applied.
pub fn refusal_status(code: ErrorCode, message: impl Into<String>) -> Status {
    let grpc_code = match code {
        ErrorCode::InvalidRequest => Code::InvalidArgument,
        ErrorCode::WrongCluster | ErrorCode::WrongNode | ErrorCode::NotPossible => {
            Code::FailedPrecondition
        }
        ErrorCode::OperationIdUsed => Code::AlreadyExists,
        ErrorCode::Conflict => Code::Aborted,
        ErrorCode::NoMap | ErrorCode::Stopping | ErrorCode::StorageUnavailable => Code::Unavailable,
        ErrorCode::Overloaded | ErrorCode::OverMemoryLimit | ErrorCode::DiskFull => {
            Code::ResourceExhausted
        }
        ErrorCode::TooLate => Code::DeadlineExceeded,
        ErrorCode::Unspecified => Code::Unknown,
    };
    let detail = ErrorDetail { code: code.into() }.encode_to_vec();
    Status::with_details(grpc_code, message, Bytes::from(detail))
}

/// The code with which a node refused a whole request; `None` for a status that the transport made, after which nobody knows
/// whether the request was applied.
pub fn error_code(status: &Status) -> Option<ErrorCode> {
    let detail = ErrorDetail::decode(status.details()).ok()?;
    ErrorCode::try_from(detail.code)
        .ok()
        .filter(|code| *code != ErrorCode::Unspecified)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_carries_its_code_and_a_transport_error_has_none() {
        let status = refusal_status(ErrorCode::TooLate, "late");
        assert_eq!(error_code(&status), Some(ErrorCode::TooLate));
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert_eq!(error_code(&Status::unavailable("connection reset")), None);
    }

    #[test]
    fn an_id_of_another_length_is_named() {
        assert_eq!(
            id_field("operation_id", &[0; 3]),
            Err(FieldError {
                field: "operation_id",
                length: 3
            })
        );
        assert_eq!(id_field("operation_id", &[7; 16]), Ok([7; 16]));
    }
}
