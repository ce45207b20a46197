//! The cluster, once it has been found.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use keydb_client::{AdminClient, Client, ClientConfig, ConnectError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{info, warn};

use crate::{limits::CALLS_MAX, problem::Problem};

/// How long before the cluster is looked for again.
const CONNECT_PAUSE: Duration = Duration::from_secs(1);

/// A cluster that is looked for, and what all calls to it share.
#[derive(Debug)]
pub struct Cluster {
    config: ClientConfig,
    found: OnceLock<(Client, AdminClient)>,
    room: Arc<Semaphore>,
}

impl Cluster {
    /// One that is found by this, which [`find`](Self::find) does.
    pub fn new(config: ClientConfig) -> Self {
        Self {
            config,
            found: OnceLock::new(),
            room: Arc::new(Semaphore::new(CALLS_MAX)),
        }
    }

    /// Looks for the cluster, however long it takes to come up.
    ///
    /// # Errors
    /// When a setting is wrong, or the cluster is not what was expected.
    pub async fn find(&self) -> Result<(), ConnectError> {
        loop {
            match Client::connect(self.config.clone()).await {
                Ok(client) => {
                    let map = client.cluster_map();
                    info!(cluster = %map.cluster_id, nodes = map.nodes.len(), "found the cluster");
                    let admin = AdminClient::from(client.clone());
                    // Nobody else looks for it.
                    let _ = self.found.set((client, admin));
                    return Ok(());
                }
                Err(error @ ConnectError::Unreachable { .. }) => warn!("{error}; trying again"),
                Err(error) => return Err(error),
            }
            tokio::time::sleep(CONNECT_PAUSE).await;
        }
    }

    /// For keys.
    ///
    /// # Errors
    /// While it has not been found.
    pub fn client(&self) -> Result<&Client, Problem> {
        self.both().map(|(client, _)| client)
    }

    /// For everything else.
    ///
    /// # Errors
    /// While it has not been found.
    pub fn admin(&self) -> Result<&AdminClient, Problem> {
        self.both().map(|(_, admin)| admin)
    }

    fn both(&self) -> Result<&(Client, AdminClient), Problem> {
        self.found.get().ok_or_else(|| {
            Problem::unavailable(format!(
                "no node has answered with a cluster map yet; asked are {}",
                self.config.addresses.join(", ")
            ))
        })
    }

    /// Room for a call, which is given back when this is dropped.
    pub(crate) fn enter(&self) -> Result<OwnedSemaphorePermit, Problem> {
        Arc::clone(&self.room).try_acquire_owned().map_err(|_| {
            Problem::unavailable(format!(
                "{CALLS_MAX} calls are being worked on, which is the limit; try again later"
            ))
        })
    }

    /// Calls fail from now on.
    pub async fn close(&self) {
        if let Some((client, _)) = self.found.get() {
            client.clone().close(Duration::ZERO).await;
        }
    }
}
