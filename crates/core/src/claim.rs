//! The answer to a claim.

/// What a claim says of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Claim {
    /// The key was absent and is now stored: the caller is its first.
    First,
    /// Somebody was told `First` for this key within its TTL.
    Duplicate,
    /// The key is present, but whether through this very operation or another one is not known any more.
    Unknown,
}
