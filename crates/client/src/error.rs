//! What can go wrong, told apart by what a caller would do about it.
//!
//! All of these are cheap to clone: one failed batch may be reported to many callers.

use std::{sync::Arc, time::Duration};

use keydb_core::{ClusterId, KeyError, MapError, OperationId};

/// Why a `get` has no answer.
///
/// ```
/// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
/// # cluster::example(async |client: keydb_client::Client| {
/// use keydb_client::GetError;
///
/// let error = client.get(["good", ""]).await.unwrap_err();
/// assert!(matches!(error, GetError::InvalidKey { index: 1, .. }));
/// # });
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum GetError {
    /// A key cannot be one; nothing was sent.
    #[error("key {index} of the call (counted from 0): {source}")]
    InvalidKey {
        /// Which key of the call, counted from 0.
        index: usize,
        /// What is wrong with it.
        source: KeyError,
    },
    /// Nodes did not answer, or could not yet, in any of the attempts. Worth trying again later.
    #[error("no answer (attempts made: {attempts}); the last error: {last_error}")]
    Unavailable {
        /// How often the keys without an answer were sent.
        attempts: u32,
        /// What the last attempt met.
        last_error: Arc<str>,
    },
    /// The call's time was up.
    #[error("the call took longer than {timeout:?}: {waiting_for}")]
    DeadlineExceeded {
        /// The call's deadline: [`ClientConfig::call_timeout`](crate::ClientConfig::call_timeout).
        timeout: Duration,
        /// What had not come by then.
        waiting_for: Arc<str>,
    },
    /// The client was closed.
    #[error("the client was closed")]
    Closed,
    /// A node refused the request for a reason that a repeat would meet again.
    #[error("refused: {message}")]
    Refused {
        /// Which node, and why.
        message: Arc<str>,
    },
}

/// Why a write did nothing: none of its keys was stored, for certain.
///
/// ```
/// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
/// # cluster::example(async |client: keydb_client::Client| {
/// use keydb_client::{NotApplied, WriteError};
///
/// let error = client.put(["good", ""], "30d".parse().unwrap()).await.unwrap_err();
/// assert!(matches!(error, WriteError::NotApplied(NotApplied::InvalidKey { index: 1, .. })));
/// assert_eq!(client.get(["good"]).await.unwrap(), [false]);
/// # });
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum NotApplied {
    /// A key cannot be one; nothing was sent.
    #[error("key {index} of the call (counted from 0): {source}")]
    InvalidKey {
        /// Which key of the call, counted from 0.
        index: usize,
        /// What is wrong with it.
        source: KeyError,
    },
    /// Nodes could not be reached or could not serve yet, in any of the attempts. Worth trying again later.
    #[error("not applied (attempts made: {attempts}); the last error: {last_error}")]
    Unavailable {
        /// How often the keys without an answer were sent.
        attempts: u32,
        /// What the last attempt met.
        last_error: Arc<str>,
    },
    /// The call's time was up before anything was sent.
    #[error("not applied: the call took longer than {timeout:?}: {waiting_for}")]
    DeadlineExceeded {
        /// The call's deadline: [`ClientConfig::call_timeout`](crate::ClientConfig::call_timeout).
        timeout: Duration,
        /// What had not come by then.
        waiting_for: Arc<str>,
    },
    /// The client was closed before anything was sent.
    #[error("not applied: the client was closed")]
    Closed,
    /// A claim that was said to be the first sending of its operation has an id that was used before, see
    /// [`Operation::first`](crate::Operation::first).
    #[error("not applied, refused: {message}")]
    OperationIdUsed {
        /// Which node, and what to do.
        message: Arc<str>,
    },
    /// A node refused the request for a reason that a repeat would meet again.
    #[error("not applied, refused: {message}")]
    Refused {
        /// Which node, and why.
        message: Arc<str>,
    },
}

impl From<NotApplied> for GetError {
    /// A get applies nothing; what stopped a write stops it as well.
    fn from(reason: NotApplied) -> Self {
        match reason {
            NotApplied::InvalidKey { index, source } => Self::InvalidKey { index, source },
            NotApplied::Unavailable {
                attempts,
                last_error,
            } => Self::Unavailable {
                attempts,
                last_error,
            },
            NotApplied::DeadlineExceeded {
                timeout,
                waiting_for,
            } => Self::DeadlineExceeded {
                timeout,
                waiting_for,
            },
            NotApplied::Closed => Self::Closed,
            NotApplied::OperationIdUsed { message } | NotApplied::Refused { message } => {
                Self::Refused { message }
            }
        }
    }
}

/// A write that did not come to its end: some or all of its keys may have been stored.
///
/// A `put` can simply be made again. A `claim` should be made again as the same operation, marked as a repeat: then keys that
/// this call was the first to store are `First` again, for as long as the nodes remember it.
///
/// ```
/// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
/// # cluster::example(async |client: keydb_client::Client| {
/// use keydb_client::{Claim, Operation, WriteError};
///
/// async fn claim_patiently(client: &keydb_client::Client, keys: &[&str]) -> Result<Vec<Claim>, WriteError> {
///     let ttl = "30d".parse().expect("a TTL");
///     let operation = Operation::new();
///     match client.claim_as(operation, keys, ttl).await {
///         Err(WriteError::MaybeApplied(_)) => client.claim_as(operation.again(), keys, ttl).await,
///         other => other,
///     }
/// }
/// assert_eq!(claim_patiently(&client, &["a"]).await.unwrap(), [Claim::First]);
/// # });
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "may have been applied in part: of {keys} keys, {keys_answered} are stored or were there, {keys_uncertain} may be, and {} are not; {cause}{}",
    .keys - .keys_answered - .keys_uncertain,
    .operation.map_or_else(String::new, |id| format!("; repeat the claim as operation {id}"))
)]
#[non_exhaustive]
pub struct MaybeApplied {
    /// How many keys the call had.
    pub keys: usize,
    /// How many of them nodes have answered for.
    pub keys_answered: usize,
    /// Of how many others nobody knows. Those that are neither were not applied.
    pub keys_uncertain: usize,
    /// Of a claim, the operation to repeat with [`Operation::with_id`](crate::Operation::with_id). `None` for a put, and for a coalesced claim, whose operation belonged to many callers.
    pub operation: Option<OperationId>,
    /// What ended the call.
    pub cause: Arc<str>,
    /// Whether that was an id that had been used before, though this was said to be the first sending.
    pub operation_id_used: bool,
}

/// Why a `put` or `claim` failed, and whether it may have done something.
///
/// ```
/// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
/// # cluster::example(async |client: keydb_client::Client| {
/// use keydb_client::WriteError;
///
/// match client.put(["a"], "30d".parse().unwrap()).await {
///     Ok(()) => {}
///     Err(WriteError::NotApplied(reason)) => println!("nothing is stored: {reason}"),
///     Err(WriteError::MaybeApplied(what)) => println!("may be stored, put it again: {what}"),
/// }
/// # });
/// ```
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    /// None of the keys was stored, for certain.
    #[error(transparent)]
    NotApplied(#[from] NotApplied),
    /// Some or all of the keys may have been stored.
    #[error(transparent)]
    MaybeApplied(#[from] MaybeApplied),
}

/// Why there is no client.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use keydb_client::{Client, ClientConfig, ConnectError};
///
/// let error = Client::connect(ClientConfig::new(["no port here"])).await.unwrap_err();
/// assert!(matches!(error, ConnectError::InvalidAddress { .. }));
/// # });
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// [`ClientConfig::addresses`](crate::ClientConfig::addresses) is empty.
    #[error("no addresses: at least one node's host:port is needed")]
    NoAddresses,
    /// An address is not `host:port`.
    #[error("address {address:?} is not host:port: {reason}")]
    InvalidAddress {
        /// The refused address.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A setting has a value that cannot be.
    #[error("{setting} is {value}; {rule}")]
    InvalidSetting {
        /// The field of [`ClientConfig`](crate::ClientConfig).
        setting: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        rule: &'static str,
    },
    /// None of the addresses answered with a cluster map in time.
    #[error("no node answered with a cluster map within {timeout:?}: {errors}")]
    Unreachable {
        /// How long was tried: [`ClientConfig::call_timeout`](crate::ClientConfig::call_timeout).
        timeout: Duration,
        /// The last error of each address.
        errors: String,
    },
    /// The cluster has another number of hash ranges than configured.
    #[error(
        "total_hash_ranges is {configured}, but the cluster's map has {in_map}; correct the setting or leave it out"
    )]
    HashRanges {
        /// [`ClientConfig::total_hash_ranges`](crate::ClientConfig::total_hash_ranges).
        configured: u32,
        /// What the map has.
        in_map: usize,
    },
    /// The cluster map cannot be used by this build.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// Why a newer map was not taken over.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum MapRejected {
    #[error("the node belongs to cluster {theirs}, this client to {ours}")]
    OtherCluster { ours: ClusterId, theirs: ClusterId },
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("the map has the address {address:?}, which is not host:port: {reason}")]
    Address { address: String, reason: String },
}
