//! What an operator asks of a cluster's nodes: of all of them, or, in `scaling` and `backup`, of whichever member answers.

mod any_member;
mod backup;
mod scale_progress;
mod scaling;

use std::{
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use futures_util::future::join_all;
use keydb_core::{ClusterMap, Entry, Fingerprint, Lsn, NodeEntry, NodeId, RangeId, UnixMillis};
use keydb_proto::{
    error_code,
    shard::{
        CreateSnapshotsRequest, ErrorCode, LoadSnapshotsRequest, OpenRangeRequest, ReplyHeader,
    },
};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Request, Response, Status};

pub use self::backup::BackupProgress;
pub use self::scale_progress::{ScalePlanned, ScalePreview, ScaleProgress};
use crate::{
    call::{Kind, run_entries, run_part},
    client::Client,
    cluster::{Node, Routing, describe, is_denied},
    config::ClientConfig,
    error::{ConnectError, ErrorKind, GetError, WriteError},
    shared::{Deadline, Shared},
    status::NodeStatus,
};

/// A connection to a KeyDB cluster for those who look after it.
///
/// Every call asks all members of the cluster map at once, and answers for each of them. It retries within its deadline
/// ([`ClientConfig::call_timeout`]); a snapshot takes its time, so the deadline should be minutes rather than the default.
///
/// ```
/// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
/// # cluster::example(async |client: keydb_client::Client| {
/// # let address = client.cluster_map().nodes[0].address.clone();
/// use std::time::Duration;
/// use keydb_client::{AdminClient, ClientConfig};
///
/// let mut config = ClientConfig::new([address]);
/// config.call_timeout = Duration::from_secs(600);
/// let admin = AdminClient::connect(config).await.unwrap();
/// for (member, made) in admin.create_snapshots(false).await {
///     match made {
///         Ok(made) => println!("{}: object storage is complete to {}", member.address, made.complete_to),
///         Err(error) => println!("{}: {error}", member.address),
///     }
/// }
/// admin.close(Duration::from_secs(5)).await;
/// # });
/// ```
#[derive(Debug, Clone)]
pub struct AdminClient {
    client: Client,
    /// The member that answered last, as its index in the map: the next to be asked what any of them can do.
    answering: Arc<AtomicUsize>,
}

/// What a node has in object storage after [`AdminClient::create_snapshots`].
///
/// ```
/// use keydb_client::SnapshotsCreated;
///
/// fn line(made: &SnapshotsCreated) -> String {
///     format!("complete to {}, {} objects of {} bytes written", made.complete_to, made.objects, made.object_bytes)
/// }
/// # let _ = line;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotsCreated {
    /// What was acknowledged before this time by the node's clock is in object storage.
    pub complete_to: UnixMillis,
    /// The last write in object storage.
    pub lsn: Lsn,
    /// How many objects the call wrote.
    pub objects: u64,
    /// How many bytes they have.
    pub object_bytes: u64,
}

/// What a node has read anew with [`AdminClient::load_snapshots`].
///
/// ```
/// use keydb_client::SnapshotsLoaded;
///
/// fn line(loaded: &SnapshotsLoaded) -> String {
///     format!("{} ranges read, {} keys were missing", loaded.ranges, loaded.added_keys)
/// }
/// # let _ = line;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotsLoaded {
    /// How many hash ranges were read.
    pub ranges: u32,
    /// How many keys the node had not had.
    pub added_keys: u64,
}

/// What became of a closed hash range with [`AdminClient::open_range`].
///
/// ```
/// fn line(opened: &keydb_client::RangeOpened) -> String {
///     format!("node {} answers with {} keys, without {}", opened.node, opened.keys, opened.reason)
/// }
/// # let _ = line;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RangeOpened {
    /// The node that answers for it.
    pub node: NodeId,
    /// Why it was closed: what is lost.
    pub reason: String,
    /// How many keys are left.
    pub keys: u64,
}

/// Why a node did not do what an operator asked of it.
///
/// ```
/// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
/// # cluster::example(async |client: keydb_client::Client| {
/// # let address = client.cluster_map().nodes[0].address.clone();
/// use keydb_client::{AdminClient, AdminError, ClientConfig};
///
/// // A cluster that keeps nothing has no snapshots.
/// let admin = AdminClient::connect(ClientConfig::new([address])).await.unwrap();
/// let (_, made) = admin.create_snapshots(false).await.remove(0);
/// assert!(matches!(made, Err(AdminError::Refused { .. })));
/// # });
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// The node cannot do it, and says what stands in the way.
    #[error("{message}")]
    Refused {
        /// Which node, and why.
        message: Arc<str>,
    },
    /// What was asked for cannot be: an address where nobody answers, say. Nothing was changed; ask for something else.
    #[error("{message}")]
    Invalid {
        /// What is wrong, and what would be right.
        message: Arc<str>,
    },
    /// The cluster's state does not allow it as it is now: another scaling operation runs, or none. Nothing was changed.
    #[error("{message}")]
    Conflict {
        /// What stands in the way, and what to do about it.
        message: Arc<str>,
    },
    /// The node did not answer in time, in any of the attempts. What was asked may have been done.
    #[error("no answer (attempts made: {attempts}): {last_error}")]
    Unavailable {
        /// How often it was asked.
        attempts: u32,
        /// What the last attempt met.
        last_error: Arc<str>,
    },
    /// The client was closed.
    #[error("the client was closed")]
    Closed,
}

impl From<Client> for AdminClient {
    /// The same connection, for those who look after the cluster.
    fn from(client: Client) -> Self {
        Self {
            client,
            answering: Arc::default(),
        }
    }
}

impl AdminClient {
    /// Asks the configured addresses for the cluster map and returns a client that goes by it.
    ///
    /// # Errors
    /// As [`Client::connect`].
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// # let address = client.cluster_map().nodes[0].address.clone();
    /// use keydb_client::{AdminClient, ClientConfig};
    ///
    /// let admin = AdminClient::connect(ClientConfig::new([address])).await.unwrap();
    /// println!("{} nodes", admin.cluster_map().nodes.len());
    /// # });
    /// ```
    pub async fn connect(config: ClientConfig) -> Result<Self, ConnectError> {
        Client::connect(config).await.map(Self::from)
    }

    /// The cluster map that the client goes by: the newest that it has heard of.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// # let address = client.cluster_map().nodes[0].address.clone();
    /// # let admin = keydb_client::AdminClient::connect(keydb_client::ClientConfig::new([address])).await.unwrap();
    /// assert_eq!(admin.cluster_map().ranges.len(), 128);
    /// # });
    /// ```
    pub fn cluster_map(&self) -> Arc<ClusterMap> {
        self.client.cluster_map()
    }

    /// What each member of the cluster says of itself, in the order of the map. All are asked at once, each one time.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// # let address = client.cluster_map().nodes[0].address.clone();
    /// # let admin = keydb_client::AdminClient::connect(keydb_client::ClientConfig::new([address])).await.unwrap();
    /// let (member, info) = admin.node_info().await.remove(0);
    /// println!("{}: {} keys", member.address, info.unwrap().keys);
    /// # });
    /// ```
    pub async fn node_info(&self) -> Vec<(NodeEntry, Result<NodeStatus, GetError>)> {
        self.client.node_statuses().await
    }

    /// Has every node make a snapshot and upload it. A node answers when object storage has everything that was acknowledged
    /// before the call; with `full`, as full snapshots of all its hash ranges rather than what has changed.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// # let address = client.cluster_map().nodes[0].address.clone();
    /// # let admin = keydb_client::AdminClient::connect(keydb_client::ClientConfig::new([address])).await.unwrap();
    /// for (member, made) in admin.create_snapshots(true).await {
    ///     if let Err(error) = made {
    ///         println!("node {} has no new snapshot: {error}", member.id);
    ///     }
    /// }
    /// # });
    /// ```
    pub async fn create_snapshots(
        &self,
        full: bool,
    ) -> Vec<(NodeEntry, Result<SnapshotsCreated, AdminError>)> {
        let shared = self.client.shared();
        let routing = shared.router.current();
        let deadline = self.client.deadline();
        let asked = routing.map.nodes.iter().map(async |entry| {
            let made = create_on(shared, &routing, entry, full, deadline);
            let made = shared.unless_closed(made).await;
            (entry.clone(), made.unwrap_or(Err(AdminError::Closed)))
        });
        join_all(asked).await
    }

    /// Has every node merge what object storage has of its hash ranges into them again: what the snapshots have and the node had
    /// lost comes back. A node without fault adds nothing. It takes as much of a node as moving ranges may.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// # let address = client.cluster_map().nodes[0].address.clone();
    /// # let admin = keydb_client::AdminClient::connect(keydb_client::ClientConfig::new([address])).await.unwrap();
    /// for (member, loaded) in admin.load_snapshots().await {
    ///     match loaded {
    ///         Ok(loaded) => println!("node {} had not {} keys", member.id, loaded.added_keys),
    ///         Err(error) => println!("node {}: {error}", member.id),
    ///     }
    /// }
    /// # });
    /// ```
    pub async fn load_snapshots(&self) -> Vec<(NodeEntry, Result<SnapshotsLoaded, AdminError>)> {
        let shared = self.client.shared();
        let routing = shared.router.current();
        let deadline = self.client.deadline();
        let asked = routing.map.nodes.iter().map(async |entry| {
            let loaded = load_on(shared, &routing, entry, deadline);
            let loaded = shared.unless_closed(loaded).await;
            (entry.clone(), loaded.unwrap_or(Err(AdminError::Closed)))
        });
        join_all(asked).await
    }

    /// Gives up what is missing of a closed hash range: its owner answers for it from then on with what is left, and counts a loss in
    /// the cluster map. Keys that are lost may be told `First` once more. Ask once: a range that was given up before is no error.
    ///
    /// # Errors
    /// See [`AdminError`]; a range that is not closed is refused.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// # let address = client.cluster_map().nodes[0].address.clone();
    /// # let admin = keydb_client::AdminClient::connect(keydb_client::ClientConfig::new([address])).await.unwrap();
    /// use keydb_client::{AdminError, RangeId};
    ///
    /// let refused = admin.open_range(RangeId(7)).await.unwrap_err();
    /// assert!(matches!(refused, AdminError::Refused { .. }));
    /// # });
    /// ```
    pub async fn open_range(&self, range: RangeId) -> Result<RangeOpened, AdminError> {
        let shared = self.client.shared();
        let routing = shared.router.current();
        let entry = routing.map.ranges.iter().find(|it| it.id == range);
        let Some(start) = entry.map(|entry| entry.start) else {
            return Err(AdminError::Refused {
                message: format!("the cluster has no hash range {range}").into(),
            });
        };
        let deadline = self.client.deadline();
        // Whoever answers for the range, or would if it were open, is found out by asking for a key. While nobody does, a node that
        // opened it could give up what another has.
        let key = [Fingerprint::from_parts(start, 0)];
        let finding = Deadline::new(Instant::now(), deadline.timeout.min(FIND_TIMEOUT));
        let found = run_part::<bool>(shared, Kind::Get, &key, &[], finding).await;
        if let Err(failure) = found
            && failure.reason.kind() == ErrorKind::NotReady
        {
            let message = GetError::from(failure.reason).to_string().into();
            return Err(AdminError::Refused { message });
        }
        let routing = shared.router.current();
        let node = routing.node(routing.holder_of(start).node);
        let request = OpenRangeRequest {
            cluster_id: shared.router.cluster_id_bytes(),
            range_id: range.0,
        };
        let mut connection = node.connection();
        let asked = connection.open_range(timed(request, deadline));
        let reply = shared.unless_closed(reply_of(node, asked, deadline, 1));
        let reply = reply.await.unwrap_or(Err(AdminError::Closed))?;
        Ok(RangeOpened {
            node: node.id(),
            reason: reply.reason,
            keys: reply.keys,
        })
    }

    /// Puts keys by their fingerprints, each until its own expiry; a key that lives longer already is left as it is. This is for
    /// entries that come from a cluster with the same hash seed, such as `keydb snapshot export` writes. Sorted ones are faster.
    ///
    /// # Errors
    /// See [`WriteError`]. Making the same call again is always safe.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// # let address = client.cluster_map().nodes[0].address.clone();
    /// # let admin = keydb_client::AdminClient::connect(keydb_client::ClientConfig::new([address])).await.unwrap();
    /// use keydb_core::{Entry, Expiry, Fingerprint};
    ///
    /// let seed = admin.cluster_map().hash.seed;
    /// let expiry = Expiry::from_unix_seconds(2_500_000_000).unwrap();
    /// let entry = Entry::new(Fingerprint::of(b"key", seed).unwrap(), expiry);
    /// admin.put_entries(&[entry]).await.unwrap();
    /// assert!(client.get_one("key").await.unwrap());
    /// # });
    /// ```
    pub async fn put_entries(&self, entries: &[Entry]) -> Result<(), WriteError> {
        let shared = self.client.shared();
        Ok(run_entries(shared, entries, self.client.deadline()).await?)
    }

    /// Stops the client, as [`Client::close`] does.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// # let address = client.cluster_map().nodes[0].address.clone();
    /// # let admin = keydb_client::AdminClient::connect(keydb_client::ClientConfig::new([address])).await.unwrap();
    /// admin.close(std::time::Duration::from_secs(5)).await;
    /// # });
    /// ```
    pub async fn close(self, limit: Duration) {
        self.client.close(limit).await;
    }
}

/// Asks one node until it answers, the retries are used up or the time is.
async fn ask_patiently<T, F>(
    shared: &Shared,
    node: &Node,
    deadline: Deadline,
    mut ask: impl FnMut() -> F,
) -> Result<T, AdminError>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let config = &shared.config;
    let retry_count = config.retry_count.unwrap_or(RETRIES_DEFAULT);
    let mut retry = 0;
    loop {
        match reply_of(node, ask(), deadline, retry + 1).await {
            Err(AdminError::Unavailable { .. })
                if retry < retry_count && Instant::now() < deadline.at => {}
            replied => return replied,
        }
        // Where the time is up, the next attempt says so.
        let pause = sleep(config.pause_before(retry));
        let _ = timeout_at(deadline.at, pause).await;
        retry += 1;
    }
}

async fn create_on(
    shared: &Shared,
    routing: &Routing,
    entry: &NodeEntry,
    full: bool,
    deadline: Deadline,
) -> Result<SnapshotsCreated, AdminError> {
    let node = routing.node(entry.id);
    let cluster_id = shared.router.cluster_id_bytes();
    let request = CreateSnapshotsRequest { cluster_id, full };
    let reply = ask_patiently(shared, node, deadline, || {
        let (mut connection, request) = (node.connection(), timed(request.clone(), deadline));
        async move { connection.create_snapshots(request).await }
    });
    let reply = reply.await?;
    heard(node, reply.header.as_ref(), routing)?;
    Ok(SnapshotsCreated {
        complete_to: UnixMillis(reply.complete_to_unix_ms),
        lsn: Lsn(reply.lsn),
        objects: reply.objects,
        object_bytes: reply.object_bytes,
    })
}

async fn load_on(
    shared: &Shared,
    routing: &Routing,
    entry: &NodeEntry,
    deadline: Deadline,
) -> Result<SnapshotsLoaded, AdminError> {
    let node = routing.node(entry.id);
    let cluster_id = shared.router.cluster_id_bytes();
    let request = LoadSnapshotsRequest { cluster_id };
    let reply = ask_patiently(shared, node, deadline, || {
        let (mut connection, request) = (node.connection(), timed(request.clone(), deadline));
        async move { connection.load_snapshots(request).await }
    });
    let reply = reply.await?;
    heard(node, reply.header.as_ref(), routing)?;
    Ok(SnapshotsLoaded {
        ranges: reply.ranges,
        added_keys: reply.added_keys,
    })
}

/// A node that knows how long it is waited for says in time how far it got.
fn timed<T>(request: T, deadline: Deadline) -> Request<T> {
    let mut timed = Request::new(request);
    timed.set_timeout(deadline.at.saturating_duration_since(Instant::now()));
    timed
}

/// What a node replies that is `asked` so many times by now.
async fn reply_of<T>(
    node: &Node,
    asked: impl Future<Output = Result<Response<T>, Status>>,
    deadline: Deadline,
    attempts: u32,
) -> Result<T, AdminError> {
    let last_error = match timeout_at(deadline.at, asked).await {
        Ok(Ok(reply)) => return Ok(reply.into_inner()),
        Ok(Err(status)) => {
            let message: Arc<str> = format!("{node}: {}", describe(&status)).into();
            match error_code(&status) {
                // A node's word about the request and the cluster, rather than about itself.
                Some(ErrorCode::Conflict) => {
                    let message = status.message().into();
                    return Err(AdminError::Conflict { message });
                }
                Some(ErrorCode::InvalidRequest) => {
                    let message = status.message().into();
                    return Err(AdminError::Invalid { message });
                }
                _ if is_refusal(&status) => return Err(AdminError::Refused { message }),
                _ => message,
            }
        }
        Err(_) => format!("{node} took longer than {:?}", deadline.timeout).into(),
    };
    Err(AdminError::Unavailable {
        attempts,
        last_error,
    })
}

/// How long it may take to find out which node answers for a range that is handed over.
const FIND_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a call is repeated where the settings do not say.
const RETRIES_DEFAULT: u32 = 3;

/// Whether the node would say the same again.
fn is_refusal(status: &Status) -> bool {
    match error_code(status) {
        Some(code) => !matches!(
            code,
            ErrorCode::NoMap
                | ErrorCode::Overloaded
                | ErrorCode::Stopping
                | ErrorCode::StorageUnavailable
        ),
        // A node that does not know the call.
        None => status.code() == Code::Unimplemented || is_denied(status),
    }
}

fn heard(node: &Node, header: Option<&ReplyHeader>, routing: &Routing) -> Result<(), AdminError> {
    let header = header.ok_or_else(|| AdminError::Refused {
        message: format!("{node} gave a reply that cannot be read: it has no header").into(),
    })?;
    node.heard(header, routing.map.durability);
    Ok(())
}
