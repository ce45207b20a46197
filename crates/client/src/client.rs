//! The public surface: what a program calls.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use keydb_core::{Claim, ClusterMap, Fingerprint, HashSeed, Namespace, NodeEntry, Ttl};
use keydb_proto::shard::NodeStatusRequest;
use tokio::{
    runtime::Handle,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    call::{Failure, Kind, run},
    cluster::{Router, Routing, connect, describe},
    coalesce::{Answers, Coalesced, Coalescer, run_together},
    config::{CALL_TIMEOUT_MAX, ClientConfig},
    counters::{ClientCounters, Counters},
    error::{ConnectError, ErrorKind, GetError, NotApplied, WriteError},
    observer::CallKind,
    operation::Operation,
    shared::{Deadline, Shared},
    status::NodeStatus,
};

/// A connection to a KeyDB cluster.
///
/// It hashes keys, sends each to the node that owns its hash range, and puts the answers back into the order of the keys. Clones
/// are cheap and share everything; one client serves any number of tasks. Nodes are connected to when they are first needed, those
/// that join the cluster later as soon as its map says so, and each again after a break.
///
/// **Batches** may have any number of keys, repeats included. A key is 1 to 65,536 bytes, any bytes.
///
/// **Cancellation:** a call's future can be dropped at any time, and nothing is leaked. Requests that had been sent by then may
/// still be applied: of a dropped `claim`, each key may be stored or not, and nobody was told `First` for it. To be able to ask
/// again, hold the [`Operation`] and use [`claim_as`](Self::claim_as).
///
/// ```
/// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
/// # cluster::example(async |client: keydb_client::Client| {
/// use keydb_client::Claim;
///
/// let month = "30d".parse().unwrap();
/// let claims = client.claim(["order-1", "order-2", "order-1"], month).await.unwrap();
/// assert_eq!(claims, [Claim::First, Claim::First, Claim::Duplicate]);
/// assert_eq!(client.get(["order-1", "order-3"]).await.unwrap(), [true, false]);
/// # });
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    owner: Arc<Owner>,
    /// What keys are hashed with: the cluster's seed in this client's namespace.
    seed: HashSeed,
    /// How long a call may take; `None`: as configured.
    timeout: Option<Duration>,
}

/// What all clones own together: the end of the last one stops the background tasks.
#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
    coalescer: Arc<Coalescer>,
    /// Cancelled when no more calls are taken.
    closing: CancellationToken,
    /// The calls that are under way.
    calls: TaskTracker,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.closed.cancel();
    }
}

impl Client {
    /// Asks the configured addresses for the cluster map and returns a client that goes by it. Connections and background tasks
    /// live in the runtime that this is called in; other runtimes may use the client for as long as that one runs.
    ///
    /// # Errors
    /// When a setting cannot be, when no address answers with a map within [`ClientConfig::call_timeout`], or when the cluster is
    /// not what was expected. See [`ConnectError`].
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// # let address = client.cluster_map().nodes[0].address.clone();
    /// use keydb_client::{Client, ClientConfig};
    ///
    /// let client = Client::connect(ClientConfig::new([address])).await.unwrap();
    /// # drop(client);
    /// # });
    /// ```
    pub async fn connect(config: ClientConfig) -> Result<Self, ConnectError> {
        let routing = connect(&config).await?;
        let seed = routing.map.hash.seed.in_namespace(&config.namespace);
        let shared = Arc::new(Shared {
            router: Router::new(routing, &config),
            config,
            counters: Counters::default(),
            closed: CancellationToken::new(),
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
        });
        let background = Arc::clone(&shared);
        shared.tasks.spawn(async move {
            background.unless_closed(background.router.run()).await;
        });
        Ok(Self {
            owner: Arc::new(Owner {
                coalescer: Arc::new(Coalescer::new(Arc::clone(&shared))),
                shared,
                closing: CancellationToken::new(),
                calls: TaskTracker::new(),
            }),
            seed,
            timeout: None,
        })
    }

    /// This client for the keys of `namespace` instead of its own: the same connections, and everything else that clones share.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// use keydb_client::Namespace;
    ///
    /// let orders = client.in_namespace(&Namespace::new("orders").unwrap());
    /// orders.put(["17"], "1h".parse().unwrap()).await.unwrap();
    /// assert_eq!(orders.get(["17"]).await.unwrap(), [true]);
    /// assert_eq!(client.get(["17"]).await.unwrap(), [false]);
    /// # });
    /// ```
    #[must_use]
    pub fn in_namespace(&self, namespace: &Namespace) -> Self {
        let cluster = self.shared().router.current().map.hash.seed;
        Self {
            seed: cluster.in_namespace(namespace),
            ..self.clone()
        }
    }

    /// This client with another deadline for each call than [`ClientConfig::call_timeout`], a day at most: the same connections, and
    /// everything else that clones share. Its calls do not travel with others, whose deadline is another.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// let hasty = client.with_call_timeout(std::time::Duration::from_millis(500));
    /// assert_eq!(hasty.get(["a"]).await.unwrap(), [false]);
    /// # });
    /// ```
    #[must_use]
    pub fn with_call_timeout(&self, timeout: Duration) -> Self {
        Self {
            timeout: Some(timeout.min(CALL_TIMEOUT_MAX)),
            ..self.clone()
        }
    }

    /// Whether each key exists now, in the order of the keys. Calls of few keys travel together with those of other tasks, see
    /// [`Coalescing`](crate::Coalescing).
    ///
    /// # Errors
    /// See [`GetError`]; where some keys have answers, [`GetError::Partial`] has them.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// client.put(["a"], "1h".parse().unwrap()).await.unwrap();
    /// assert_eq!(client.get(["a", "b"]).await.unwrap(), [true, false]);
    /// # });
    /// ```
    pub async fn get<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<bool>, GetError> {
        let keys = self.fingerprints(keys)?;
        Ok(self.ask(CallKind::Get, None, keys).await?.into_vec())
    }

    /// Makes the keys exist until at least now + `ttl`. A key that lives longer already is left as it is. Calls of few keys travel
    /// together with those of other tasks that have the same `ttl`, see [`Coalescing`](crate::Coalescing).
    ///
    /// # Errors
    /// See [`WriteError`]. Making the same call again is always safe.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// client.put(["a", "b"], "30d".parse().unwrap()).await.unwrap();
    /// # });
    /// ```
    pub async fn put<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
        ttl: Ttl,
    ) -> Result<(), WriteError> {
        let keys = self.fingerprints(keys)?;
        let _: Answers<()> = self.ask(CallKind::Put, Some(ttl), keys).await?;
        Ok(())
    }

    /// Atomically stores the keys that are absent, and says which those were, in the order of the keys. Of equal keys in one call
    /// the first is the one that can be `First`. A key that is present keeps its time to live.
    ///
    /// Calls of few keys travel together with those of other tasks that have the same `ttl`, see
    /// [`Coalescing`](crate::Coalescing), under an operation of the library's own. Should the call that would have been told
    /// `First` be dropped meanwhile, others for the same key that travelled with it are told `Unknown`; they hear their answer when
    /// that call has heard its own, or a second later.
    ///
    /// # Errors
    /// See [`WriteError`]. A call that may have been applied can be repeated with the operation that the error names.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// use keydb_client::Claim;
    ///
    /// let claims = client.claim(["a", "b", "a"], "30d".parse().unwrap()).await.unwrap();
    /// assert_eq!(claims, [Claim::First, Claim::First, Claim::Duplicate]);
    /// # });
    /// ```
    pub async fn claim<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
        ttl: Ttl,
    ) -> Result<Vec<Claim>, WriteError> {
        let keys = self.fingerprints(keys)?;
        let claims = self.ask(CallKind::Claim, Some(ttl), keys).await?;
        Ok(claims.into_vec())
    }

    /// [`claim`](Self::claim) under an identity that the caller holds, so that it can be repeated: see [`Operation`].
    ///
    /// # Errors
    /// See [`WriteError`]. Of a repeat, keys without an answer are [`MaybeApplied`](WriteError::MaybeApplied) whatever this call met:
    /// the earlier one may have stored them. It can be repeated once more, as often as one likes.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// use keydb_client::{Claim, Operation};
    ///
    /// let (operation, ttl) = (Operation::new(), "30d".parse().unwrap());
    /// let claims = client.claim_as(operation, ["a"], ttl).await.unwrap();
    /// assert_eq!(client.claim_as(operation.again(), ["a"], ttl).await.unwrap(), claims);
    /// # });
    /// ```
    pub async fn claim_as<K: AsRef<[u8]>>(
        &self,
        operation: Operation,
        keys: impl IntoIterator<Item = K>,
        ttl: Ttl,
    ) -> Result<Vec<Claim>, WriteError> {
        let keys = self.fingerprints(keys)?;
        let (id, attempts_before) = (operation.id(), operation.attempts_before());
        let claims = self.call(CallKind::Claim, keys.len(), async {
            let (shared, deadline) = (self.shared(), self.deadline());
            if attempts_before > 0 {
                let repeatable = &self.owner.coalescer.repeatable;
                if let Some(told) = repeatable.repeat(shared, id, &keys, deadline).await {
                    return told;
                }
            }
            let kind = Kind::Claim {
                ttl,
                id,
                attempts_before,
            };
            run(shared, kind, keys, deadline).await
        });
        let claims = claims.await.map_err(|failure| match attempts_before {
            0 => failure,
            _ => failure.of_repeated_claim(id),
        });
        Ok(claims?)
    }

    /// [`get`](Self::get) of a single key.
    ///
    /// # Errors
    /// See [`GetError`].
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// assert!(!client.get_one("a").await.unwrap());
    /// # });
    /// ```
    pub async fn get_one(&self, key: impl AsRef<[u8]>) -> Result<bool, GetError> {
        let key = self.fingerprint(key.as_ref())?;
        Ok(self.ask(CallKind::Get, None, [key]).await?.first())
    }

    /// [`put`](Self::put) of a single key.
    ///
    /// # Errors
    /// See [`WriteError`].
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// client.put_one("a", "1h".parse().unwrap()).await.unwrap();
    /// assert!(client.get_one("a").await.unwrap());
    /// # });
    /// ```
    pub async fn put_one(&self, key: impl AsRef<[u8]>, ttl: Ttl) -> Result<(), WriteError> {
        let key = self.fingerprint(key.as_ref())?;
        let _: Answers<()> = self.ask(CallKind::Put, Some(ttl), [key]).await?;
        Ok(())
    }

    /// [`claim`](Self::claim) of a single key.
    ///
    /// # Errors
    /// See [`WriteError`]. A call that may have been applied can be repeated with the operation that the error names.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// use keydb_client::Claim;
    ///
    /// let ttl = "30d".parse().unwrap();
    /// assert_eq!(client.claim_one("a", ttl).await.unwrap(), Claim::First);
    /// assert_eq!(client.claim_one("a", ttl).await.unwrap(), Claim::Duplicate);
    /// # });
    /// ```
    pub async fn claim_one(&self, key: impl AsRef<[u8]>, ttl: Ttl) -> Result<Claim, WriteError> {
        let key = self.fingerprint(key.as_ref())?;
        let claims = self.ask(CallKind::Claim, Some(ttl), [key]).await?;
        Ok(claims.first())
    }

    /// The cluster map that the client goes by: the newest that it has heard of.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// let map = client.cluster_map();
    /// println!("{} nodes, {} hash ranges, epoch {}", map.nodes.len(), map.ranges.len(), map.epoch);
    /// # });
    /// ```
    pub fn cluster_map(&self) -> Arc<ClusterMap> {
        Arc::clone(&self.shared().router.current().map)
    }

    /// How calls of this client and its clones have waited for hash ranges that moved.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// client.put_one("a", "1h".parse().unwrap()).await.unwrap();
    /// let waits = client.counters().total();
    /// println!("{} waits for hand-overs, the longest {:?}", waits.waits, waits.wait_longest);
    /// # assert_eq!(waits, keydb_client::HandOverWaits::default());
    /// # });
    /// ```
    pub fn counters(&self) -> ClientCounters {
        self.shared().counters.read()
    }

    /// What each member of the cluster says of itself, in the order of the map. All are asked at once, each one time.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// for (member, status) in client.node_statuses().await {
    ///     match status {
    ///         Ok(status) => println!("{}: {} keys", member.address, status.keys),
    ///         Err(error) => println!("{}: {error}", member.address),
    ///     }
    /// }
    /// # });
    /// ```
    pub async fn node_statuses(&self) -> Vec<(NodeEntry, Result<NodeStatus, GetError>)> {
        let shared = self.shared();
        let routing = shared.router.current();
        let deadline = self.deadline();
        let asked = routing.map.nodes.iter().map(async |entry| {
            let status = self.node_status(&routing, entry, deadline);
            let status = shared.unless_closed(status).await;
            (entry.clone(), status.unwrap_or(Err(GetError::Closed)))
        });
        join_all(asked).await
    }

    async fn node_status(
        &self,
        routing: &Routing,
        entry: &NodeEntry,
        deadline: Deadline,
    ) -> Result<NodeStatus, GetError> {
        let node = routing.node(entry.id);
        let request = NodeStatusRequest {
            cluster_id: self.shared().router.cluster_id_bytes(),
        };
        match timeout_at(deadline.at, node.connection().node_status(request)).await {
            Ok(Ok(reply)) => {
                let reply = reply.into_inner();
                if let Some(header) = &reply.header {
                    node.heard(header, routing.map.durability);
                }
                NodeStatus::from_reply(reply).map_err(|error| GetError::Refused {
                    kind: ErrorKind::InvalidRequest,
                    message: format!("{node} has no status to show: {error}").into(),
                })
            }
            Ok(Err(status)) => Err(GetError::Unavailable {
                kind: ErrorKind::Unreachable,
                attempts: 1,
                last_error: format!("{node}: {}", describe(&status)).into(),
            }),
            Err(_) => Err(GetError::DeadlineExceeded {
                kind: ErrorKind::Deadline,
                timeout: deadline.timeout,
                waiting_for: format!("no answer from {node}").into(),
            }),
        }
    }

    /// Stops the client: no more calls are taken, those under way on any clone have `limit` to end, and what is left then ends with
    /// an error that says so. Background tasks are ended and waited for.
    ///
    /// Dropping the last clone stops the background tasks as well, without waiting for them.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// use keydb_client::GetError;
    ///
    /// let clone = client.clone();
    /// client.close(std::time::Duration::from_secs(5)).await;
    /// assert!(matches!(clone.get(["a"]).await, Err(GetError::Closed)));
    /// # });
    /// ```
    pub async fn close(self, limit: Duration) {
        self.owner.closing.cancel();
        self.owner.calls.close();
        // Those that are left are told so.
        let _ = timeout(limit, self.owner.calls.wait()).await;
        let shared = self.shared();
        shared.closed.cancel();
        shared.tasks.close();
        shared.tasks.wait().await;
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.owner.shared
    }

    /// When a call that begins now ends.
    pub(crate) fn deadline(&self) -> Deadline {
        let timeout = self.timeout.unwrap_or(self.shared().config.call_timeout);
        Deadline::new(Instant::now(), timeout)
    }

    /// A call from its begin to its end.
    async fn call<T, A: Copy>(
        &self,
        kind: CallKind,
        keys: usize,
        work: impl Future<Output = Result<T, Failure<A>>>,
    ) -> Result<T, Failure<A>> {
        let _under_way = self.owner.calls.token();
        if self.owner.closing.is_cancelled() {
            return Err(Failure::not_applied(NotApplied::Closed, keys));
        }
        let shared = self.shared();
        if shared.config.observer.is_none() {
            return work.await;
        }
        let since = Instant::now();
        let result = work.await;
        let failed = result.as_ref().err().map(|failure| failure.reason.kind());
        shared.observe(|it| it.call(kind, keys, since.elapsed(), failed));
        result
    }

    /// A call that travels with others if it has few keys, and by itself otherwise.
    async fn ask<A: Coalesced>(
        &self,
        kind: CallKind,
        ttl: Option<Ttl>,
        keys: impl AsRef<[Fingerprint]> + Into<Vec<Fingerprint>>,
    ) -> Result<Answers<A>, Failure<A>> {
        let count = keys.as_ref().len();
        self.call(kind, count, async {
            // Others have another deadline than one of the call's own.
            if self.timeout.is_none()
                && let Some(told) = run_together(&self.owner.coalescer, ttl, keys.as_ref()).await
            {
                return told;
            }
            let answers = run(self.shared(), A::kind(ttl), keys.into(), self.deadline()).await;
            answers.map(Answers::Many)
        })
        .await
    }

    /// Hashes all keys, or refuses the first that cannot be one, before anything is sent.
    fn fingerprints<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<Fingerprint>, NotApplied> {
        let seed = self.seed;
        let keys = keys.into_iter();
        let mut out = Vec::with_capacity(keys.size_hint().0);
        for (index, key) in keys.enumerate() {
            match Fingerprint::of(key.as_ref(), seed) {
                Ok(fingerprint) => out.push(fingerprint),
                Err(source) => return Err(NotApplied::InvalidKey { index, source }),
            }
        }
        Ok(out)
    }

    fn fingerprint(&self, key: &[u8]) -> Result<Fingerprint, NotApplied> {
        Fingerprint::of(key, self.seed)
            .map_err(|source| NotApplied::InvalidKey { index: 0, source })
    }
}
