//! The cluster, once it has been found.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use keydb_client::{AdminClient, Client, ClientConfig, ConnectError, NodeId};
use keydb_core::metrics::MetricsText;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    counters::Counters,
    limits::{ADMIN_CALLS_MAX, CALLS_MAX, READS_MAX, STREAMS_MAX},
    problem::Problem,
};

/// How long before the cluster is looked for again.
const CONNECT_PAUSE: Duration = Duration::from_secs(1);

/// A cluster that is looked for, and what all calls to it share.
#[derive(Debug)]
pub struct Cluster {
    config: ClientConfig,
    found: OnceLock<(Client, AdminClient)>,
    calls: Room,
    reads: Room,
    streams: Room,
    admin_calls: Room,
    counters: Arc<Counters>,
    /// No new calls are taken.
    stopping: CancellationToken,
}

/// Room for so many of a kind.
#[derive(Debug)]
struct Room {
    what: &'static str,
    max: usize,
    left: Arc<Semaphore>,
}

impl Room {
    fn new(what: &'static str, max: usize) -> Self {
        let left = Arc::new(Semaphore::new(max));
        Self { what, max, left }
    }

    fn enter(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let Self { what, max, left } = self;
        Arc::clone(left).try_acquire_owned().map_err(|_| {
            Problem::unavailable(format!("{max} {what}, which is the limit; try again later"))
        })
    }
}

impl Cluster {
    /// One that is found by this, which [`find`](Self::find) does.
    pub fn new(config: ClientConfig) -> Self {
        Self::with(config, Counters::default())
    }

    /// The same, for node `id`, which serves it.
    pub fn at_node(config: ClientConfig, id: NodeId) -> Self {
        Self::with(config, Counters::at(id))
    }

    fn with(config: ClientConfig, counters: Counters) -> Self {
        let counters = Arc::new(counters);
        Self {
            config: config.with_observer(Arc::<Counters>::clone(&counters)),
            counters,
            found: OnceLock::new(),
            calls: Room::new("calls are being worked on", CALLS_MAX),
            reads: Room::new("calls are still being sent", READS_MAX),
            streams: Room::new("calls are being answered line by line", STREAMS_MAX),
            admin_calls: Room::new(
                "calls for snapshots, scaling or status are being worked on",
                ADMIN_CALLS_MAX,
            ),
            stopping: CancellationToken::new(),
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
                // Tokens may be replaced on both sides, one after the other.
                Err(error @ (ConnectError::Unreachable { .. } | ConnectError::Denied { .. })) => {
                    warn!("{error}; trying again")
                }
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

    /// What is counted of calls for keys.
    pub(crate) const fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Writes what is measured of calls for keys as text.
    pub fn write_metrics(&self, text: &mut MetricsText) {
        self.counters.write(text);
    }

    fn both(&self) -> Result<&(Client, AdminClient), Problem> {
        self.found.get().ok_or_else(|| {
            Problem::unavailable(format!(
                "no node has answered with a cluster map yet; asked are {}",
                self.config.addresses.join(", ")
            ))
        })
    }

    /// Room to work on a call, until what is returned is dropped.
    pub(crate) fn enter(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.check_not_stopping()?;
        self.calls.enter()
    }

    /// The same for the next part of a call that has begun, which waits for it.
    pub(crate) async fn enter_again(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.check_not_stopping()?;
        let permit = Arc::clone(&self.calls.left).acquire_owned().await;
        permit.map_err(|_| stopping())
    }

    /// Room to take in a call's body.
    pub(crate) fn read(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.check_not_stopping()?;
        self.reads.enter()
    }

    /// Room for a call that is answered line by line.
    pub(crate) fn stream(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.check_not_stopping()?;
        self.streams.enter()
    }

    /// Room for a call for anything else than keys.
    pub(crate) fn enter_admin(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.check_not_stopping()?;
        self.admin_calls.enter()
    }

    fn check_not_stopping(&self) -> Result<(), Problem> {
        match self.stopping.is_cancelled() {
            true => Err(stopping()),
            false => Ok(()),
        }
    }

    /// When no new calls are taken any more; what is said of them.
    pub(crate) async fn stopped(&self) -> Problem {
        self.stopping.cancelled().await;
        stopping()
    }

    /// Takes no new calls, and waits for the end of those for keys that are being worked on, for so long at most. What they ask for has
    /// to be there still.
    pub async fn drain(&self, limit: Duration) {
        self.stopping.cancel();
        let all = self.calls.left.acquire_many(CALLS_MAX as u32);
        if timeout(limit, all).await.is_err() {
            warn!("calls for keys as text have not ended within {limit:?}");
        }
    }

    /// Calls fail from now on.
    pub async fn close(&self) {
        if let Some((client, _)) = self.found.get() {
            client.clone().close(Duration::ZERO).await;
        }
    }
}

fn stopping() -> Problem {
    Problem::unavailable("the server is stopping; ask another one, or try again later")
}
