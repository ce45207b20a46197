//! KeyDB's routing client: has this key been seen in the last N days?
//!
//! KeyDB is a *key-existence store*: keys with a time to live, no values. A [`Client`] hashes keys, sends each to the node that
//! owns its hash range, and returns the answers in the order of the keys.
//!
//! | call | meaning | per key |
//! | --- | --- | --- |
//! | [`get`](Client::get) | does it exist now? | `bool` |
//! | [`put`](Client::put) | exists until at least now + TTL | |
//! | [`claim`](Client::claim) | atomically: insert if absent | [`Claim`] |
//!
//! ```
//! # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
//! # cluster::example(async |client: keydb_client::Client| {
//! # let address = client.cluster_map().nodes[0].address.clone();
//! use keydb_client::{Claim, Client, ClientConfig};
//!
//! let client = Client::connect(ClientConfig::new([address])).await.unwrap();
//! let month = "30d".parse().unwrap();
//! for event in ["signup-17", "signup-18", "signup-17"] {
//!     match client.claim_one(event, month).await.unwrap() {
//!         Claim::First => println!("{event}: handle it"),
//!         Claim::Duplicate => println!("{event}: seen before"),
//!         Claim::Unknown => println!("{event}: seen, but perhaps only by this very call"),
//!     }
//! }
//! client.close(std::time::Duration::from_secs(5)).await;
//! # });
//! ```
//!
//! # Errors and retries
//! A call retries by itself within its deadline ([`ClientConfig::call_timeout`]), follows the cluster map when ranges move, and
//! goes on when a node is back. When a write fails all the same, its error says whether nothing was applied for certain
//! ([`WriteError::NotApplied`]) or something may have been ([`WriteError::MaybeApplied`]), with what became of each key: one node
//! that fails does not take the others' answers away. A claim of the second kind can be repeated as the same [`Operation`]: a lost
//! reply does not turn a `First` into a `Duplicate`. What a program would act on is an [`ErrorKind`].
//!
//! # Looking after a cluster
//! [`AdminClient`] has every node make a snapshot, makes backups, asks what the nodes hold, and scales the cluster.
//!
//! # Exactly-once work
//! `claim(keys, 5 min)`, do the work, `put(keys, 30 days)`: a worker that dies in between loses its claim after five minutes.

mod admin;
mod call;
mod client;
mod cluster;
mod coalesce;
mod config;
mod counters;
mod error;
mod observer;
mod operation;
mod shared;
mod status;

pub use admin::{
    AdminClient, AdminError, BackupProgress, RangeOpened, ScalePlanned, ScalePreview,
    ScaleProgress, SnapshotsCreated, SnapshotsLoaded,
};
pub use client::Client;
pub use config::{ClientConfig, Coalescing};
pub use counters::{ClientCounters, HandOverWaits};
pub use error::{
    ConnectError, ErrorKind, GetError, KeyOutcome, MaybeApplied, NotApplied, PartialGet, WriteError,
};
pub use keydb_core::scaling::PlannedMove;
pub use keydb_core::{
    Claim, ClusterMap, Durability, IdError, Incarnation, KEY_BYTES_MAX, KeyError, Lsn, MapError,
    NAMESPACE_BYTES_MAX, Namespace, NamespaceError, NodeEntry, NodeId, OperationId, Phase,
    RangeEntry, RangeId, Ttl, TtlError, UnixMillis,
};
/// The target of the spans that the client makes, one of level `debug` for each request to a node: what a filter of a program's own
/// traces has to let through.
pub use keydb_proto::trace::TARGET as TRACE_TARGET;
pub use keydb_transport::{ClientTls, FileError, Outgoing, OwnCertificate};
pub use observer::{CallKind, Observer};
pub use operation::Operation;
pub use status::{DiskStatus, NodeStatus, OperationCounts, RangeState, RangeStatus};

/// What the README shows.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

/// What the user's guide shows.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/rust-client.md")]
struct Guide;
