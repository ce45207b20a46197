//! An operator's settings, and its limits.

use std::time::Duration;

use axum::Router;
use keydb_client::ClientConfig;

/// Calls at the same time.
pub const REQUESTS_MAX: usize = 256;
/// How long a call waits for the end of a scaling operation, which goes on after that.
pub const SCALE_WAIT_MAX: Duration = Duration::from_secs(3600);
/// How long a call waits for a backup, which goes on after that.
pub const BACKUP_WAIT_MAX: Duration = Duration::from_secs(3600);
/// How long a call waits for snapshots.
pub const SNAPSHOT_WAIT_MAX: Duration = Duration::from_secs(3600);

/// What an operator goes by.
#[derive(Debug, Clone)]
pub struct OperatorConfig {
    /// How the cluster is found, and how long its nodes have to answer.
    pub client: ClientConfig,
    /// Paths that are served as well.
    pub guests: Router,
}

impl OperatorConfig {
    /// The defaults, for a cluster that any of these addresses belong to.
    pub fn new(addresses: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            client: ClientConfig::new(addresses),
            guests: Router::new(),
        }
    }
}
