//! What a caller may ask for at most.

use std::time::Duration;

/// Bytes in the body of a call, or in a gRPC message.
pub const BODY_BYTES_MAX: usize = 8 << 20;
/// Keys in a call.
pub const KEYS_MAX: usize = 65_536;
/// Calls at the same time; more are refused, and may be sent again.
pub const CALLS_MAX: usize = 256;
/// The same of calls whose bodies arrive, and of those that are answered line by line: who is slow holds up nobody else.
pub const READS_MAX: usize = 256;
/// Streams at the same time.
pub const STREAMS_MAX: usize = 256;
/// The same of calls for anything else than keys, which may take long.
pub const ADMIN_CALLS_MAX: usize = 16;
/// How long a call's body, or the next part of a streamed one, may take to arrive.
pub const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the caller may take to read the next part of an answer.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a gRPC call for keys may take from its first byte on.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a call waits for snapshots, or for ranges that move.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3600);
