//! What a caller may ask for at most.

use std::time::Duration;

/// Bytes in the body of a call, or in a gRPC message.
pub const BODY_BYTES_MAX: usize = 8 << 20;
/// Keys in a call.
pub const KEYS_MAX: usize = 65_536;
/// Calls at the same time; more are refused, and may be sent again.
pub const CALLS_MAX: usize = 256;
/// How long a call's body, or the next part of a streamed one, may take to arrive.
pub const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a call waits for snapshots, or for ranges that move.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3600);
