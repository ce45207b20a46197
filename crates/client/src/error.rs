//! What can go wrong, told apart by what a caller would do about it.
//!
//! All of these are cheap to clone: one failed batch may be reported to many callers.

use std::{sync::Arc, time::Duration};

use keydb_core::{Claim, ClusterId, KeyError, MapError, OperationId};

/// What went wrong, as far as a caller would act on it. Each error of a call has one.
///
/// ```
/// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
/// # cluster::example(async |client: keydb_client::Client| {
/// use keydb_client::ErrorKind;
///
/// let error = client.put([""], "30d".parse().unwrap()).await.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidKey);
/// # });
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A key cannot be one.
    InvalidKey,
    /// A node breaks off, does not answer, or cannot be connected to.
    Unreachable,
    /// A node is not ready: it waits for the cluster map, loads its keys, or follows a change of the map.
    NotReady,
    /// A node has too much to do, or the client has: more calls wait than may.
    Overloaded,
    /// A node is on its way down.
    ShuttingDown,
    /// A node's disk is full, so that it takes no new keys.
    DiskFull,
    /// A node's memory limit is reached, so that it takes no new keys.
    MemoryLimit,
    /// A hash range's key set takes no more of such keys.
    RangeFull,
    /// A node cannot prove that it has all keys of a hash range, which somebody has to see to.
    RangeClosed,
    /// An address leads to another cluster than the one that the client was connected to.
    WrongCluster,
    /// An operation id was used before, see [`Operation::first`](crate::Operation::first).
    OperationIdUsed,
    /// A node does not take the client's token, or that allows less.
    Denied,
    /// A node takes the request for wrong: it and this client do not agree on something.
    InvalidRequest,
    /// The call's time was up, and no node had refused anything.
    Deadline,
    /// The client was closed, or the runtime has stopped that it was connected in.
    Closed,
}

/// What became of one key of a write that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyOutcome {
    /// It was claimed, and this is the answer.
    Claimed(Claim),
    /// It was put.
    Stored,
    /// Nothing was done for it, for certain.
    NotApplied,
    /// Nobody knows.
    MaybeApplied,
}

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
        /// What the last error is about.
        kind: ErrorKind,
        /// How often the keys without an answer were sent.
        attempts: u32,
        /// What the last attempt met.
        last_error: Arc<str>,
    },
    /// The call's time was up.
    #[error("the call took longer than {timeout:?}: {waiting_for}")]
    DeadlineExceeded {
        /// What the last error was about; [`Deadline`](ErrorKind::Deadline) where there was none.
        kind: ErrorKind,
        /// The call's deadline: [`ClientConfig::call_timeout`](crate::ClientConfig::call_timeout).
        timeout: Duration,
        /// What had not come by then.
        waiting_for: Arc<str>,
    },
    /// The client was closed.
    #[error("the client was closed")]
    Closed,
    /// Some keys have answers.
    #[error(transparent)]
    Partial(#[from] PartialGet),
    /// A node refused the request for a reason that a repeat would meet again.
    #[error("refused: {message}")]
    Refused {
        /// What it is about.
        kind: ErrorKind,
        /// Which node, and why.
        message: Arc<str>,
    },
}

/// Why a write did nothing: none of its keys was stored, for certain. The repeat of a claim never fails like this, unless a key of
/// it cannot be one.
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
        /// What the last error is about.
        kind: ErrorKind,
        /// How often the keys without an answer were sent.
        attempts: u32,
        /// What the last attempt met.
        last_error: Arc<str>,
    },
    /// The call's time was up before anything was sent.
    #[error("not applied: the call took longer than {timeout:?}: {waiting_for}")]
    DeadlineExceeded {
        /// What the last error was about; [`Deadline`](ErrorKind::Deadline) where there was none.
        kind: ErrorKind,
        /// The call's deadline: [`ClientConfig::call_timeout`](crate::ClientConfig::call_timeout).
        timeout: Duration,
        /// What had not come by then.
        waiting_for: Arc<str>,
    },
    /// The client was closed before anything was sent.
    #[error("not applied: the client was closed")]
    Closed,
    /// A node refused the request for a reason that a repeat would meet again.
    #[error("not applied, refused: {message}")]
    Refused {
        /// What it is about.
        kind: ErrorKind,
        /// Which node, and why.
        message: Arc<str>,
    },
}

impl NotApplied {
    /// What went wrong.
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidKey { .. } => ErrorKind::InvalidKey,
            Self::Closed => ErrorKind::Closed,
            Self::Unavailable { kind, .. }
            | Self::DeadlineExceeded { kind, .. }
            | Self::Refused { kind, .. } => *kind,
        }
    }
}

impl GetError {
    /// What went wrong.
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidKey { .. } => ErrorKind::InvalidKey,
            Self::Closed => ErrorKind::Closed,
            Self::Partial(partial) => partial.kind,
            Self::Unavailable { kind, .. }
            | Self::DeadlineExceeded { kind, .. }
            | Self::Refused { kind, .. } => *kind,
        }
    }
}

impl WriteError {
    /// What went wrong.
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::NotApplied(reason) => reason.kind(),
            Self::MaybeApplied(what) => what.kind,
        }
    }
}

impl From<NotApplied> for GetError {
    /// A get applies nothing; what stopped a write stops it as well.
    fn from(reason: NotApplied) -> Self {
        match reason {
            NotApplied::InvalidKey { index, source } => Self::InvalidKey { index, source },
            NotApplied::Unavailable {
                kind,
                attempts,
                last_error,
            } => Self::Unavailable {
                kind,
                attempts,
                last_error,
            },
            NotApplied::DeadlineExceeded {
                kind,
                timeout,
                waiting_for,
            } => Self::DeadlineExceeded {
                kind,
                timeout,
                waiting_for,
            },
            NotApplied::Closed => Self::Closed,
            NotApplied::Refused { kind, message } => Self::Refused { kind, message },
        }
    }
}

/// A `get` that has answers for some of its keys.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "of {} keys, {} have no answer; {cause}",
    .answers.len(),
    .answers.iter().filter(|answer| answer.is_none()).count()
)]
#[non_exhaustive]
pub struct PartialGet {
    /// Whether each key exists, in the order of the keys; `None` where that is not known.
    pub answers: Arc<[Option<bool>]>,
    /// What the others failed for.
    pub kind: ErrorKind,
    /// What that was.
    pub cause: Arc<str>,
}

/// A write that did not come to its end: some or all of its keys may have been stored.
///
/// A `put` can simply be made again. A `claim` should be made again as the same operation, marked as a repeat: then keys that
/// this call was the first to store are `First` again, for as long as the nodes remember it. Should the repeat fail as well, that
/// operation is still the one to repeat: a new one could be told `Duplicate` for a key that nobody was told `First` for.
///
/// ```
/// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
/// # cluster::example(async |client: keydb_client::Client| {
/// use keydb_client::{Claim, Operation, WriteError};
///
/// async fn claim_patiently(client: &keydb_client::Client, keys: &[&str]) -> Result<Vec<Claim>, WriteError> {
///     let ttl = "30d".parse().expect("a TTL");
///     let operation = Operation::new();
///     let mut claims = client.claim_as(operation, keys, ttl).await;
///     for _ in 0..3 {
///         if !matches!(claims, Err(WriteError::MaybeApplied(_))) {
///             break;
///         }
///         claims = client.claim_as(operation.again(), keys, ttl).await;
///     }
///     claims
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
    /// What became of each key, in the order of the keys.
    pub outcomes: Arc<[KeyOutcome]>,
    /// Of a claim, the operation to repeat: `claim_as(Operation::with_id(id), …)` with the same keys. Where the claim had travelled
    /// with others, only the client that made it knows its answers under that id; elsewhere keys that are present are `Unknown`.
    pub operation: Option<OperationId>,
    /// What ended the call.
    pub kind: ErrorKind,
    /// That in words.
    pub cause: Arc<str>,
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
    /// A node does not take the client's token, or misses one.
    #[error("{address} does not let this client in: {reason}")]
    Denied {
        /// The node.
        address: String,
        /// What it says.
        reason: String,
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
