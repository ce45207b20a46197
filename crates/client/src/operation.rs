//! The identity of a claim.

use keydb_core::OperationId;

/// A claim's identity, held by the caller, so that a claim whose outcome it does not know can be repeated.
///
/// Nodes remember the answers of recent operations, bounded in number and age. A repeat with the same id and the same keys in
/// the same order gets the same answers: what was `First` is `First` again. Where nobody remembers it any more, and for keys
/// that the first call did not have, each key that is present is `Unknown`, never `Duplicate`.
///
/// A repeat that fails says of its keys that they may be stored, never that they are not: what an earlier sending did, it cannot
/// know. It is repeated under the same id.
///
/// The repeat must come from a client with the same [`keys_per_request_max`](crate::ClientConfig::keys_per_request_max): each
/// part of a call has an id derived from the operation's and the part's number.
///
/// ```
/// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
/// # cluster::example(async |client: keydb_client::Client| {
/// use keydb_client::{Claim, Operation};
///
/// let ttl = "30d".parse().unwrap();
/// let operation = Operation::new();
/// assert_eq!(client.claim_as(operation, ["a"], ttl).await.unwrap(), [Claim::First]);
/// // The program was interrupted here, and starts again with the id that it had noted down.
/// let repeat = Operation::with_id(operation.id());
/// assert_eq!(client.claim_as(repeat, ["a"], ttl).await.unwrap(), [Claim::First]);
/// assert_eq!(client.claim(["a"], ttl).await.unwrap(), [Claim::Duplicate]);
/// # });
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    id: OperationId,
    repeat: bool,
}

impl Operation {
    /// A new operation with a random id.
    ///
    /// ```
    /// use keydb_client::Operation;
    ///
    /// assert_ne!(Operation::new().id(), Operation::new().id());
    /// ```
    #[expect(
        clippy::new_without_default,
        reason = "a default that differs each time would surprise"
    )]
    pub fn new() -> Self {
        Self::first(OperationId::random())
    }

    /// The first sending of an operation with an id that the caller keeps. A node that remembers the id refuses it.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// use keydb_client::{Operation, OperationId};
    ///
    /// let (id, ttl) = (OperationId::from_name("import-7"), "30d".parse().unwrap());
    /// client.claim_as(Operation::first(id), ["a"], ttl).await.unwrap();
    /// assert!(client.claim_as(Operation::first(id), ["a"], ttl).await.is_err());
    /// # });
    /// ```
    pub const fn first(id: OperationId) -> Self {
        Self { id, repeat: false }
    }

    /// The operation with an id that the caller keeps, as a repeat: whoever forgets whether it was sent before is told `Unknown` for
    /// keys that are present, never a wrong `Duplicate`. See [`first`](Self::first) for its first sending.
    ///
    /// ```
    /// use keydb_client::{Operation, OperationId};
    ///
    /// let operation = Operation::with_id(OperationId::from_name("import-7").part(42));
    /// # let _ = operation;
    /// ```
    pub const fn with_id(id: OperationId) -> Self {
        Self { id, repeat: true }
    }

    /// The same operation, marked as the repeat of a call that may have been applied.
    ///
    /// ```
    /// use keydb_client::Operation;
    ///
    /// let operation = Operation::new();
    /// assert_eq!(operation.again().id(), operation.id());
    /// ```
    #[must_use]
    pub const fn again(self) -> Self {
        Self {
            repeat: true,
            ..self
        }
    }

    /// The operation's id.
    ///
    /// ```
    /// use keydb_client::{Operation, OperationId};
    ///
    /// let id = OperationId::random();
    /// assert_eq!(Operation::with_id(id).id(), id);
    /// ```
    pub const fn id(self) -> OperationId {
        self.id
    }

    /// How many earlier sendings may have been applied, as far as the caller says.
    pub(crate) const fn attempts_before(self) -> u32 {
        self.repeat as u32
    }
}
