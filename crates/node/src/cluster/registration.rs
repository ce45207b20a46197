//! What a node writes into the cluster map: which disk it is, and what it has lost.

use std::time::Duration;

use keydb_core::{ClusterMap, Incarnation, NodeId, UnixMillis};
use keydb_storage::{MapStore, StorageErrorKind, UpdateError};
use tokio::time::timeout;

use crate::NodeError;

/// How long a change of the map may take, the store's own retries included.
const WRITE_TIMEOUT: Duration = Duration::from_secs(45);

/// How an attempt to change the map ended.
#[derive(Debug)]
pub(super) enum Written {
    /// The map has the change.
    Done(Box<ClusterMap>),
    /// The map is not what the change was for any more; the next look at it finds out.
    Outdated,
    /// The storage did not do it, or not for certain: then the next look at the map finds it there.
    Failed(String),
}

/// A change is given up.
#[derive(Debug, thiserror::Error)]
#[error("the cluster map has changed in the meantime")]
struct Outdated;

/// Writes `disk_id` into the map as the disk of node `id`, in the place of `predecessor`, whose keys are lost then. `seen` is the map
/// that says so.
///
/// # Errors
/// When a repeat would not help.
pub(super) async fn register(
    store: &MapStore,
    seen: &ClusterMap,
    id: NodeId,
    predecessor: Option<Incarnation>,
    disk_id: Incarnation,
    now: UnixMillis,
) -> Result<Written, NodeError> {
    let change = |current: &ClusterMap| {
        let entry = current.node(id).ok_or(Outdated)?;
        if entry.disk_id == Some(disk_id) {
            return Ok(None);
        }
        let outdated = current.cluster_id != seen.cluster_id
            || current.version() < seen.version()
            || entry.disk_id != predecessor;
        if outdated {
            return Err(Outdated);
        }
        let mut next = current.successor();
        let entry = next.node_mut(id).ok_or(Outdated)?;
        entry.disk_id = Some(disk_id);
        if predecessor.is_some() {
            entry.loss_count = entry.loss_count.saturating_add(1);
            entry.last_loss_ms = Some(now);
        }
        Ok(Some(next))
    };
    match write(store, "registering", change).await {
        Err(UpdateError::Invalid(error)) => Err(NodeError::UnusableMap(error)),
        Err(UpdateError::NotWritten(error)) if error.kind() == StorageErrorKind::Refused => {
            Err(NodeError::Storage(error.to_string()))
        }
        Err(error) => Ok(Written::Failed(error.to_string())),
        Ok(written) => Ok(written),
    }
}

/// Counts a loss of node `id`, which is its `counted`th.
pub(super) async fn count_loss(
    store: &MapStore,
    id: NodeId,
    counted: u32,
    now: UnixMillis,
) -> Written {
    let change = |current: &ClusterMap| {
        let mut next = current.successor();
        let entry = next.node_mut(id).ok_or(Outdated)?;
        if entry.loss_count >= counted {
            return Ok(None);
        }
        entry.loss_count = counted;
        entry.last_loss_ms = Some(now);
        Ok(Some(next))
    };
    let written = write(store, "counting a loss", change).await;
    written.unwrap_or_else(|error| Written::Failed(error.to_string()))
}

async fn write(
    store: &MapStore,
    what: &str,
    change: impl FnMut(&ClusterMap) -> Result<Option<ClusterMap>, Outdated>,
) -> Result<Written, UpdateError<Outdated>> {
    match timeout(WRITE_TIMEOUT, store.update(change)).await {
        Ok(Ok(map)) => Ok(Written::Done(Box::new(map))),
        Ok(Err(UpdateError::Change(Outdated))) => Ok(Written::Outdated),
        Ok(Err(error)) => Err(error),
        Err(_) => Ok(Written::Failed(format!(
            "{what} in the cluster map took longer than {} s",
            WRITE_TIMEOUT.as_secs()
        ))),
    }
}
