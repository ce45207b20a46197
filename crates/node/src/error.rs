//! What ends a node.

use keydb_core::{ClusterId, Incarnation, MapError, NodeId};

/// Why a node ended without being asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// A setting cannot be what it is.
    #[error("{setting} is 0; it must be more than 0")]
    Setting {
        /// The setting's name.
        setting: &'static str,
    },
    /// Another process runs under this node's id: stop that one first, or give this one another id.
    #[error(
        "node {node} of cluster {cluster} is already running at {address} (incarnation {incarnation}); stop it first, or start this one under another id"
    )]
    AlreadyRunning {
        /// The id that both have.
        node: NodeId,
        /// The cluster that both belong to.
        cluster: ClusterId,
        /// Where the other one answered.
        address: String,
        /// Which life of the node the other one is.
        incarnation: Incarnation,
    },
    /// Another process has registered under this node's id while this one ran. This one must not answer any more.
    #[error(
        "node {node} of cluster {cluster} was replaced by another process: the cluster map (epoch {epoch}) has {} under this id",
        in_the_map(*by)
    )]
    Replaced {
        /// The id that both have.
        node: NodeId,
        /// The cluster that both belong to.
        cluster: ClusterId,
        /// Which life of the node the other one is, if it has registered yet.
        by: Option<Incarnation>,
        /// The epoch of the map that says so.
        epoch: u64,
    },
    /// The cluster map does not list this node any more. Started again, it waits to be listed.
    #[error(
        "node {node} is not a member of cluster {cluster} any more (cluster map epoch {epoch})"
    )]
    Removed {
        /// This node.
        node: NodeId,
        /// The cluster that it was a member of.
        cluster: ClusterId,
        /// The epoch of the map that says so.
        epoch: u64,
    },
    /// The storage holds another cluster's map than before: the settings point to the wrong place, or somebody replaced it.
    #[error(
        "the storage holds the map of cluster {found}, but this node belongs to cluster {expected}"
    )]
    OtherCluster {
        /// The cluster that this node belongs to.
        expected: ClusterId,
        /// The cluster whose map the storage holds.
        found: ClusterId,
    },
    /// The cluster map that the node would start with cannot be used.
    #[error("the cluster map cannot be used: {0}")]
    UnusableMap(#[source] MapError),
    /// The object storage refuses access; a repeat would not help.
    #[error("the cluster map cannot be read or written: {0}")]
    Storage(String),
    /// The gRPC server failed.
    #[error("the server failed: {0}")]
    Server(#[source] tonic::transport::Error),
    /// A part of the node panicked: a defect.
    #[error("the node's {task} failed: {reason}")]
    Task {
        /// Which part.
        task: &'static str,
        /// What it said.
        reason: String,
    },
}

fn in_the_map(by: Option<Incarnation>) -> String {
    by.map_or_else(
        || "no process registered".to_owned(),
        |by| format!("incarnation {by}"),
    )
}
