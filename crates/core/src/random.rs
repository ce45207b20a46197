//! The one place where randomness enters: identities that must differ between clusters, processes and operations.

/// 16 bytes from the operating system's random source.
///
/// # Panics
/// When the operating system has no random source: nothing here can be unique without one.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the place that others are told to use"
)]
pub fn bytes() -> [u8; 16] {
    let mut out = [0; 16];
    getrandom::fill(&mut out).expect("the operating system has a random source");
    out
}

/// 64 random bits.
pub fn u64() -> u64 {
    u128::from_ne_bytes(bytes()) as u64
}
