//! The life of a node, from a bound listener to the last log line.
//!
//! A node that was asked to stop refuses new requests, lets those in progress end, writes what it has to local files and, where
//! that is quick, to object storage, and closes its connections. It needs no object storage for that.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use axum::Router;
use keydb_core::{Clock, Provisioner, metrics::MetricsText};
use keydb_storage::{MapStore, MeasuredStorage, ObjectStorage};
use keydb_transport::ListenerSecurity;
use tokio::{
    net::TcpListener,
    task::{JoinError, JoinSet},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::Routes;
use tracing::{error, info, warn};

use crate::{
    NodeConfig, NodeError, cluster::membership::Membership, moving, node::Node,
    ranges::sweep::sweep, server::grpc::serve, server::http,
};

/// How long connections without requests have to close, also where the drain deadline has passed.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// How often it is looked whether the disk answers.
const HANG_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How often the room that snapshots need is looked at anew.
const RESERVE_INTERVAL: Duration = Duration::from_millis(500);

/// Where a node is reached.
#[derive(Debug)]
pub struct Listeners {
    /// The gRPC service.
    pub grpc: TcpListener,
    /// HTTP for probes and metrics, where there is any.
    pub http: Option<TcpListener>,
    /// What is served there as well.
    pub guests: Guests,
    /// What protects both.
    pub security: ListenerSecurity,
}

/// What is served on a node's listeners besides its own services. Whoever asks the node to stop sees to it before that these take no new
/// calls: they would be refused by the node itself.
#[derive(Clone, Default)]
pub struct Guests {
    /// gRPC services.
    pub grpc: Routes,
    /// Their names, for gRPC's health service: they serve when the node does.
    pub grpc_names: Vec<&'static str>,
    /// HTTP paths.
    pub http: Router,
    /// What is measured of them, which `/metrics` has as well.
    pub metrics: Option<Arc<WriteMetrics>>,
}

/// Writes series that nothing else writes.
pub type WriteMetrics = dyn Fn(&mut MetricsText) + Send + Sync;

impl fmt::Debug for Guests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guests")
            .field("grpc_names", &self.grpc_names)
            .finish_non_exhaustive()
    }
}

impl From<TcpListener> for Listeners {
    fn from(grpc: TcpListener) -> Self {
        Self {
            grpc,
            http: None,
            guests: Guests::default(),
            security: ListenerSecurity::default(),
        }
    }
}

/// Runs a node on `listeners` until `shutdown` ends or something else ends it; then refuses new requests, lets those in progress
/// end within `config.drain_deadline`, and closes the connections. All that it started has ended when it returns.
///
/// # Errors
/// What ended the node, other than `shutdown`.
pub async fn run(
    config: NodeConfig,
    listeners: impl Into<Listeners>,
    storage: Arc<dyn ObjectStorage>,
    clock: Arc<dyn Clock>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), NodeError> {
    config.check()?;
    let node = Arc::new(Node::new(config, clock));
    let storage = Arc::new(MeasuredStorage::new(
        storage,
        Arc::clone(&node.storage_calls),
    ));
    let _provisioner = Provisioner::start(&node.arena);
    let _abandoned = Abandoned(Arc::clone(&node));
    let mut running = Running::start(&node, listeners.into(), MapStore::new(storage));
    let ended = tokio::select! {
        () = shutdown => {
            info!(node = %node.config.id, "asked to stop");
            Ok(())
        }
        reason = running.failed() => match reason {
            // What it had is with others.
            NodeError::Removed { .. } => {
                info!(node = %node.config.id, "{reason}; stopping");
                Ok(())
            }
            reason => {
                error!(node = %node.config.id, "{reason}; stopping");
                Err(reason)
            }
        },
    };
    let ended = match ended {
        Err(hangs @ NodeError::DiskHangs { .. }) => Err(hangs),
        // The disk may stop to answer while the last snapshot is made.
        ended => tokio::select! {
            () = running.stop(&node) => return ended,
            hangs = disk_hangs(Arc::clone(&node)) => {
                error!(node = %node.config.id, "{hangs}; the end is cut short");
                Err(hangs)
            }
        },
    };
    // There is nothing that could be ended in order.
    if let Some(disk) = node.disk() {
        disk.leave();
    }
    ended
}

/// What runs while a node lives. Dropping it ends all of it, only less gracefully.
struct Running {
    server: JoinSet<Result<(), tonic::transport::Error>>,
    membership: JoinSet<NodeError>,
    sweeper: JoinSet<()>,
    http: JoinSet<()>,
    /// Answer probes no more.
    stop_http: CancellationToken,
    /// Accept no more connections, and close each when its last request has ended.
    stop: CancellationToken,
    /// Close all connections now: when this is dropped.
    cut: Option<DropGuard>,
}

impl Running {
    fn start(node: &Arc<Node>, listeners: Listeners, store: MapStore) -> Self {
        match listeners.grpc.local_addr() {
            Ok(address) => info!(
                node = %node.config.id, incarnation = %node.incarnation, %address, "listening"
            ),
            Err(error) => warn!(node = %node.config.id, %error, "listening"),
        }
        let stop = CancellationToken::new();
        let cut = CancellationToken::new();
        let mut server = JoinSet::new();
        server.spawn(serve(
            Arc::clone(node),
            store.clone(),
            (listeners.grpc, listeners.security.clone()),
            (listeners.guests.grpc, listeners.guests.grpc_names),
            stop.clone(),
            cut.clone(),
        ));
        let mut http = JoinSet::new();
        let stop_http = CancellationToken::new();
        if let Some(listener) = listeners.http {
            let node = Arc::clone(node);
            let status = move || crate::server::status::snapshot(&node);
            let guests = http::Guests {
                router: listeners.guests.http,
                metrics: listeners.guests.metrics,
            };
            let listener = (listener, listeners.security);
            http.spawn(http::serve(listener, status, guests, stop_http.clone()));
        }
        let mut membership = JoinSet::new();
        membership.spawn(moving::run(Arc::clone(node), store.clone()));
        membership.spawn(Membership::new(Arc::clone(node), store).follow());
        membership.spawn(journal_failed(Arc::clone(node)));
        membership.spawn(disk_hangs(Arc::clone(node)));
        membership.spawn(reserve_room(Arc::clone(node)));
        let ending = Arc::clone(node);
        membership.spawn(async move { ending.ending.asked().await });
        let mut sweeper = JoinSet::new();
        sweeper.spawn(sweep(Arc::clone(node)));
        Self {
            server,
            membership,
            sweeper,
            http,
            stop_http,
            stop,
            cut: Some(cut.drop_guard()),
        }
    }

    /// Waits for what ends the node. None of the tasks ends by itself otherwise.
    async fn failed(&mut self) -> NodeError {
        let ended_early = || "it ended before it was told to".to_owned();
        tokio::select! {
            Some(ended) = self.membership.join_next() => match ended {
                Ok(reason) => reason,
                Err(error) => failed("membership", &error),
            },
            Some(ended) = self.server.join_next() => match ended {
                Ok(Ok(())) => NodeError::Task { task: "server", reason: ended_early() },
                Ok(Err(error)) => NodeError::Server(error),
                Err(error) => failed("server", &error),
            },
            Some(ended) = self.sweeper.join_next() => match ended {
                Ok(()) => NodeError::Task { task: "sweeper", reason: ended_early() },
                Err(error) => failed("sweeper", &error),
            },
            Some(ended) = self.http.join_next() => match ended {
                Ok(()) => NodeError::Task { task: "http", reason: ended_early() },
                Err(error) => failed("http", &error),
            },
            else => NodeError::Task { task: "server", reason: ended_early() },
        }
    }

    async fn stop(mut self, node: &Node) {
        let id = node.config.id;
        let deadline = Instant::now() + node.config.drain_deadline;
        node.in_flight.stop();
        info!(node = %id, in_flight = node.in_flight.count(), "requests for keys are refused from now on");
        self.membership.shutdown().await;
        // Their successors would keep them open.
        node.moves.sessions.abort();
        self.sweeper.shutdown().await;
        match timeout_at(deadline, node.in_flight.drained()).await {
            Ok(()) => info!(node = %id, "no request is in flight any more"),
            Err(_) => {
                warn!(
                    node = %id,
                    in_flight = node.in_flight.count(),
                    "the drain deadline of {} ms has passed; requests still in flight are cut off",
                    node.config.drain_deadline.as_millis()
                );
                // Before the last snapshot, which is to have everything that was acknowledged.
                self.cut = None;
                let cut_off = timeout(CLOSE_TIMEOUT, node.in_flight.drained());
                if cut_off.await.is_err() {
                    error!(node = %id, "requests do not end");
                }
            }
        }
        if let Some(disk) = node.disk() {
            disk.close(id, deadline).await;
        }
        self.stop.cancel();
        let close_by = deadline.max(Instant::now() + CLOSE_TIMEOUT);
        if timeout_at(close_by, self.server.join_next()).await.is_err() {
            warn!(node = %id, "connections are still open; cutting them off");
            self.cut = None;
            if timeout(CLOSE_TIMEOUT, self.server.join_next())
                .await
                .is_err()
            {
                error!(node = %id, "connections do not end; leaving them");
            }
        }
        // Joins what is left of the server, if anything.
        self.server.shutdown().await;
        // Another node goes on with it.
        node.backups.stop().await;
        self.stop_http.cancel();
        // It bounds its own end.
        while self.http.join_next().await.is_some() {}
        info!(node = %id, "stopped");
    }
}

/// Ends the disk's threads, in whichever way the node ends.
struct Abandoned(Arc<Node>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        self.0.moves.sessions.abort();
        self.0.backups.abort();
        if let Some(disk) = self.0.disk() {
            disk.abandon();
        }
    }
}

/// Waits until the node's journal fails: from then on nothing may be acknowledged.
async fn journal_failed(node: Arc<Node>) -> NodeError {
    NodeError::Journal(node.open_disk().await.journal.failed().await)
}

/// Sees to it that the journal leaves room to snapshots.
async fn reserve_room(node: Arc<Node>) -> NodeError {
    let disk = node.open_disk().await;
    loop {
        disk.reserve_room();
        tokio::time::sleep(RESERVE_INTERVAL).await;
    }
}

/// Watches whether the disk answers, until it has not for too long.
async fn disk_hangs(node: Arc<Node>) -> NodeError {
    let limit = node.config.disk_hang_limit;
    let interval = (limit / 12).min(HANG_LOOK_INTERVAL);
    let disk = node.open_disk().await;
    let mut work = [None; 2];
    // By looks: a process that was paused does not take the pause for the disk's.
    let mut waited = [Duration::ZERO; 2];
    loop {
        tokio::time::sleep(interval).await;
        let now = disk.busy_since();
        for ((waited, now), before) in waited.iter_mut().zip(now).zip(work) {
            *waited = match now.is_some() && now == before {
                true => *waited + interval,
                false => Duration::ZERO,
            };
        }
        work = now;
        let elapsed = waited[0].max(waited[1]);
        if elapsed >= limit {
            return NodeError::DiskHangs {
                path: node.config.data_dir.clone(),
                elapsed,
            };
        }
        let hangs = elapsed >= limit / 6;
        node.set_disk_hangs(hangs);
        let text = || {
            format!(
                "the disk of {} does not answer a write or sync; after {} s the process ends",
                node.config.data_dir.display(),
                limit.as_secs()
            )
        };
        node.warnings.set("disk", hangs.then(text));
    }
}

fn failed(task: &'static str, error: &JoinError) -> NodeError {
    NodeError::Task {
        task,
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests;
