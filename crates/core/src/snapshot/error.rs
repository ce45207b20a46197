//! Why a snapshot file cannot be used.

/// Why a snapshot file cannot be used. Nothing of it may then be taken for complete.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Its bytes are not those that were written, or contradict each other.
    #[error("the snapshot file is damaged at byte {offset}: {what}")]
    Damaged {
        /// Where the damaged part begins.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// It ends too soon.
    #[error("the snapshot file ends early, after {bytes} bytes")]
    Truncated {
        /// How many bytes there are.
        bytes: u64,
    },
    /// Written by a build that is newer in a way that matters.
    #[error("the snapshot file needs {what}, which this build does not have; upgrade it")]
    Unsupported {
        /// The unknown format, feature or codec.
        what: String,
    },
}
