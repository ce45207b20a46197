//! Changes of a cluster's membership: any member that answers writes them into the cluster map, and by the map everybody knows how
//! far they are. Each verb can be repeated, and nothing is done twice.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use keydb_core::{NodeId, OperationId, RangeId, scaling::PlannedMove};
use keydb_proto::shard::{
    GetMapRequest, RangeMove, ScaleMember, ScaleOperationRequest, ScaleReply, ScaleRequest,
};
use tokio::time::{Instant, sleep};

use super::{
    AdminClient, AdminError,
    scale_progress::{ScalePlanned, ScalePreview, ScaleProgress},
    timed,
};
use crate::{RangeState, cluster::Node};

/// How often it is looked how far an operation is.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// While no range moves, the nodes are asked why so often.
const ASK_INTERVAL: Duration = Duration::from_secs(3);
/// How long is waited for what a node says of its ranges.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// What a key takes on its way to another node, at most: a fingerprint and an expiry.
const KEY_BYTES: u64 = 16;
/// What a node moves in a second unless it is told otherwise.
const MOVE_BYTES_A_SECOND: u64 = 32 << 20;
/// What planning, the last records and handing over take together.
const MOVE_OVERHEAD: Duration = Duration::from_secs(2);

impl AdminClient {
    /// Plans the way to a cluster of exactly the nodes at `addresses`, and has the nodes copy the ranges that are to move. No range
    /// changes its owner before [`scale_complete`](Self::scale_complete). New nodes must run, and wait to become members.
    ///
    /// # Errors
    /// See [`AdminError`]; after [`Unavailable`](AdminError::Unavailable) the plan may have been made, and asking again is safe.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// # let address = client.cluster_map().nodes[0].address.clone();
    /// # let admin = keydb_client::AdminClient::from(client);
    /// // With the members that there are, nothing is to be done.
    /// let planned = admin.scale(&[address]).await.unwrap();
    /// assert!(!planned.changed && planned.operation.is_none());
    /// # });
    /// ```
    pub async fn scale(&self, addresses: &[String]) -> Result<ScalePlanned, AdminError> {
        self.plan(addresses, false).await
    }

    /// What [`scale`](Self::scale) would move, without a change.
    ///
    /// # Errors
    /// See [`AdminError`].
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// # let address = client.cluster_map().nodes[0].address.clone();
    /// # let admin = keydb_client::AdminClient::from(client);
    /// use keydb_client::AdminError;
    ///
    /// assert_eq!(admin.preview(&[address.clone()]).await.unwrap().keys, 0);
    /// let error = admin.preview(&[address.clone(), address]).await.unwrap_err();
    /// assert!(matches!(error, AdminError::Invalid { .. }), "{error}");
    /// # });
    /// ```
    pub async fn preview(&self, addresses: &[String]) -> Result<ScalePreview, AdminError> {
        let planned = self.plan(addresses, true).await?;
        let mut keys_of: HashMap<(NodeId, RangeId), u64> = HashMap::new();
        let mut silent = BTreeSet::new();
        for (member, status) in self.node_info().await {
            match status {
                Ok(status) => keys_of.extend(
                    status
                        .ranges
                        .iter()
                        .map(|range| ((member.id, range.id), range.keys)),
                ),
                Err(_) => drop(silent.insert(member.id)),
            }
        }
        silent.retain(|node| planned.moves.iter().any(|it| it.from == *node));
        let (mut keys, mut by_node) = (0, HashMap::<NodeId, u64>::new());
        for PlannedMove { range, from, to } in &planned.moves {
            let of_range = keys_of.get(&(*from, *range)).copied().unwrap_or(0);
            keys += of_range;
            for node in [from, to] {
                *by_node.entry(*node).or_default() += of_range * KEY_BYTES;
            }
        }
        // Nodes move at the same time, each at its own speed.
        let busiest = by_node.into_values().max();
        Ok(ScalePreview {
            planned,
            keys,
            bytes: keys * KEY_BYTES,
            expected: busiest.map_or(Duration::ZERO, |bytes| {
                MOVE_OVERHEAD + Duration::from_millis(bytes * 1000 / MOVE_BYTES_A_SECOND)
            }),
            silent: silent.into_iter().collect(),
        })
    }

    /// Lets the ranges of the operation that runs change their owners; which operation that is. With `operation`, only that one. It
    /// ends by itself: see [`wait`](Self::wait).
    ///
    /// # Errors
    /// See [`AdminError`]; [`Conflict`](AdminError::Conflict) when none runs, or another one.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// # let admin = keydb_client::AdminClient::from(client);
    /// use keydb_client::AdminError;
    ///
    /// let error = admin.scale_complete(None).await.unwrap_err();
    /// assert!(matches!(error, AdminError::Conflict { .. }), "{error}");
    /// # });
    /// ```
    pub async fn scale_complete(
        &self,
        operation: Option<OperationId>,
    ) -> Result<OperationId, AdminError> {
        let request = self.operation_request(operation);
        let complete = |node: Arc<Node>, deadline| {
            let request = timed(request.clone(), deadline);
            async move { node.admin_connection().scale_complete(request).await }
        };
        let reply = self.ask_any(complete).await?;
        operation_of(&reply).ok_or_else(|| AdminError::Conflict {
            message: "the scaling operation has just ended".into(),
        })
    }

    /// Gives up what has not changed its owner yet, of the operation that runs, or only of `operation`; whether there was one. Owners
    /// never stop answering for that. To go back where ranges have moved, scale to the nodes that there were before.
    ///
    /// # Errors
    /// See [`AdminError`]; [`Conflict`](AdminError::Conflict) when another one runs.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// # let admin = keydb_client::AdminClient::from(client);
    /// assert!(!admin.abort(None).await.unwrap());
    /// # });
    /// ```
    pub async fn abort(&self, operation: Option<OperationId>) -> Result<bool, AdminError> {
        let request = self.operation_request(operation);
        let abort = |node: Arc<Node>, deadline| {
            let request = timed(request.clone(), deadline);
            async move { node.admin_connection().abort_scale(request).await }
        };
        Ok(self.ask_any(abort).await?.changed)
    }

    /// How far the operation is that runs, if one does.
    ///
    /// # Errors
    /// When no member answers.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// # let admin = keydb_client::AdminClient::from(client);
    /// assert!(admin.operation().await.unwrap().is_none());
    /// # });
    /// ```
    pub async fn operation(&self) -> Result<Option<ScaleProgress>, AdminError> {
        let router = &self.client.shared().router;
        let (lineage, epoch) = router.version();
        let request = GetMapRequest {
            cluster_id: router.cluster_id_bytes(),
            lineage,
            epoch,
        };
        let known = |node: Arc<Node>, deadline| {
            let request = timed(request.clone(), deadline);
            async move { node.connection().get_map(request).await }
        };
        let header = self.ask_member(known).await?.header.unwrap_or_default();
        self.follow((header.lineage, header.epoch)).await;
        Ok(ScaleProgress::of(&self.cluster_map()))
    }

    /// Waits until `operation` has ended, at most for `limit`; `seen` is told how far it is, several times a second. It does not end
    /// before [`scale_complete`](Self::scale_complete).
    ///
    /// # Errors
    /// [`Unavailable`](AdminError::Unavailable) when it has not ended by then, or no member answers.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// # let admin = keydb_client::AdminClient::from(client);
    /// use std::time::Duration;
    /// use keydb_client::OperationId;
    ///
    /// // One that does not run is over.
    /// admin.wait(OperationId::random(), Duration::from_secs(60), |_| {}).await.unwrap();
    /// # });
    /// ```
    pub async fn wait(
        &self,
        operation: OperationId,
        limit: Duration,
        mut seen: impl FnMut(&ScaleProgress),
    ) -> Result<(), AdminError> {
        let left = |progress: ScaleProgress| {
            seen(&progress);
            let (moved, moves) = (progress.moved(), progress.moves);
            let mut what = format!(
                "scaling operation {operation} has not ended within {limit:?}, and goes on: {moved} of {moves} hash ranges have moved"
            );
            for waits_for in &progress.waits_for {
                what.push_str("; ");
                what.push_str(waits_for);
            }
            Some(what)
        };
        self.watch(operation, limit, false, left).await
    }

    /// Waits until every hash range that `operation` is to move is at its next owner: all of it, also on its disk and in object storage.
    /// [`scale_complete`](Self::scale_complete) then takes moments. Done as well when the operation does not run any more.
    ///
    /// # Errors
    /// [`Unavailable`](AdminError::Unavailable) when they are not by then; it names the nodes that are waited for.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// # let admin = keydb_client::AdminClient::from(client);
    /// use std::time::Duration;
    /// use keydb_client::OperationId;
    ///
    /// // One that does not run has nothing to copy.
    /// admin.wait_secured(OperationId::random(), Duration::from_secs(60)).await.unwrap();
    /// # });
    /// ```
    pub async fn wait_secured(
        &self,
        operation: OperationId,
        limit: Duration,
    ) -> Result<(), AdminError> {
        let left = |progress: ScaleProgress| {
            (!progress.waits_for.is_empty()).then(|| {
                format!(
                    "scaling operation {operation} has not copied everything within {limit:?}, and goes on: {}",
                    progress.waits_for.join(", ")
                )
            })
        };
        self.watch(operation, limit, true, left).await
    }

    /// Looks how far `operation` is until it does not run any more, or `left` says that nothing is left to be waited for; otherwise that
    /// says what the failure is when the time is up. With `secured` it waits for what is not secured; without, the nodes are asked now and
    /// then why no range has moved.
    async fn watch(
        &self,
        operation: OperationId,
        limit: Duration,
        secured: bool,
        mut left: impl FnMut(ScaleProgress) -> Option<String>,
    ) -> Result<(), AdminError> {
        let end = Instant::now() + limit;
        let mut looks = 0;
        let (mut moved, mut since, mut waits_for) = (0, Instant::now(), Vec::new());
        loop {
            looks += 1;
            let failure = match self.operation().await {
                Ok(Some(mut progress)) if progress.operation == operation => {
                    if secured {
                        waits_for = self.unsecured().await;
                    } else if progress.moved() != moved {
                        (moved, since, waits_for) = (progress.moved(), Instant::now(), Vec::new());
                    } else if since.elapsed() >= ASK_INTERVAL {
                        (since, waits_for) = (Instant::now(), self.waits_for().await);
                    }
                    progress.waits_for.clone_from(&waits_for);
                    let Some(what) = left(progress) else {
                        return Ok(());
                    };
                    AdminError::Unavailable {
                        attempts: looks,
                        last_error: what.into(),
                    }
                }
                Ok(_) => return Ok(()),
                Err(error @ AdminError::Unavailable { .. }) => error,
                Err(error) => return Err(error),
            };
            if Instant::now() + LOOK_INTERVAL > end {
                return Err(failure);
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Which nodes have not yet the hash ranges that they are to have, by the newest map that is known, in words for a person.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// # let admin = keydb_client::AdminClient::from(client);
    /// assert!(admin.waits_for().await.is_empty());
    /// # });
    /// ```
    pub async fn waits_for(&self) -> Vec<String> {
        let mut taken_over: BTreeMap<(NodeId, NodeId), usize> = BTreeMap::new();
        for range in &self.cluster_map().ranges {
            if let Some(from) = &range.from {
                *taken_over.entry((range.owner, from.node)).or_default() += 1;
            }
        }
        let taken_over = taken_over.into_iter();
        let mut waits_for: Vec<String> = taken_over
            .map(|((to, from), count)| {
                format!("node {to} is taking over {count} hash ranges from node {from}")
            })
            .collect();
        waits_for.extend(self.unsecured().await);
        waits_for
    }

    /// The next owners that have not everything yet, and what of them is waited for.
    async fn unsecured(&self) -> Vec<String> {
        let map = self.cluster_map();
        let mut waiting: BTreeMap<NodeId, BTreeMap<RangeId, u64>> = BTreeMap::new();
        let mut owners = BTreeSet::new();
        for range in map.ranges.iter().filter(|range| range.from.is_none()) {
            if let Some(successor) = range.successor {
                let ranges = waiting.entry(successor).or_default();
                ranges.insert(range.id, range.generation + 1);
                owners.insert(range.owner);
            }
        }
        if waiting.is_empty() {
            return Vec::new();
        }
        let hurried = Self::from(self.client.with_call_timeout(ASK_TIMEOUT));
        let mut said = hurried.node_info().await;
        let mut unsecured = Vec::new();
        for (id, ranges) in waiting {
            let at = said.iter().position(|(node, _)| node.id == id);
            match at.map(|at| said.swap_remove(at).1) {
                Some(Ok(status)) => {
                    let secured = status.ranges.iter();
                    let secured = secured.filter(|it| it.state == RangeState::Secured);
                    // Not what was copied for an earlier attempt.
                    let secured = secured.filter(|it| ranges.get(&it.id) == Some(&it.generation));
                    let left = ranges.len() - secured.count();
                    if left > 0 {
                        unsecured.push(format!("node {id} lacks {left} hash ranges"));
                    }
                }
                Some(Err(error)) => unsecured.push(format!("node {id} does not say: {error}")),
                None => unsecured.push(format!("node {id} was not asked yet")),
            }
        }
        if !unsecured.is_empty() {
            for (node, said) in &said {
                if let Err(error) = said
                    && owners.contains(&node.id)
                {
                    unsecured.push(format!("node {}, an owner, does not say: {error}", node.id));
                }
            }
        }
        unsecured
    }

    /// [`scale`](Self::scale), [`scale_complete`](Self::scale_complete) and [`wait`](Self::wait), one after the other.
    ///
    /// # Errors
    /// As theirs; [`Conflict`](AdminError::Conflict) also when somebody aborted it.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// # let address = client.cluster_map().nodes[0].address.clone();
    /// # let admin = keydb_client::AdminClient::from(client);
    /// let limit = std::time::Duration::from_secs(600);
    /// let show = |progress: &keydb_client::ScaleProgress| println!("{} ranges have moved", progress.moved());
    /// admin.auto_scale(&[address], limit, show).await.unwrap();
    /// # });
    /// ```
    pub async fn auto_scale(
        &self,
        addresses: &[String],
        limit: Duration,
        seen: impl FnMut(&ScaleProgress),
    ) -> Result<ScalePlanned, AdminError> {
        let planned = self.scale(addresses).await?;
        let Some(operation) = planned.operation else {
            return Ok(planned);
        };
        self.scale_complete(Some(operation)).await?;
        self.wait(operation, limit, seen).await?;
        self.check_members(operation, addresses)?;
        Ok(planned)
    }

    /// Whether `operation`, which has ended, came to its end: whether the members are those at `addresses`.
    ///
    /// # Errors
    /// [`Conflict`](AdminError::Conflict) when they are not.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// # let address = client.cluster_map().nodes[0].address.clone();
    /// # let admin = keydb_client::AdminClient::from(client);
    /// use keydb_client::OperationId;
    ///
    /// let operation = OperationId::random();
    /// assert!(admin.check_members(operation, &[address]).is_ok());
    /// assert!(admin.check_members(operation, &["keydb-7:50051".to_owned()]).is_err());
    /// # });
    /// ```
    pub fn check_members(
        &self,
        operation: OperationId,
        addresses: &[String],
    ) -> Result<(), AdminError> {
        let map = self.cluster_map();
        let members: BTreeSet<&str> = map.nodes.iter().map(|node| &*node.address).collect();
        if members == addresses.iter().map(|it| &**it).collect() {
            return Ok(());
        }
        Err(AdminError::Conflict {
            message: format!(
                "scaling operation {operation} has ended before its time: somebody aborted it, or has begun another one since"
            )
            .into(),
        })
    }

    async fn plan(&self, addresses: &[String], preview: bool) -> Result<ScalePlanned, AdminError> {
        let request = ScaleRequest {
            cluster_id: self.client.shared().router.cluster_id_bytes(),
            operation_id: OperationId::random().to_bytes().to_vec().into(),
            addresses: addresses.to_vec(),
            preview,
        };
        let scale = |node: Arc<Node>, deadline| {
            let request = timed(request.clone(), deadline);
            async move { node.admin_connection().scale(request).await }
        };
        let reply = self.ask_any(scale).await?;
        let members = |members: Vec<ScaleMember>| {
            let members = members.into_iter();
            members.map(|it| (NodeId(it.node_id), it.address)).collect()
        };
        let planned = |it: &RangeMove| PlannedMove {
            range: RangeId(it.range_id),
            from: NodeId(it.from_node),
            to: NodeId(it.to_node),
        };
        Ok(ScalePlanned {
            operation: operation_of(&reply),
            changed: reply.changed,
            moves: reply.moves.iter().map(planned).collect(),
            joins: members(reply.joins),
            leaves: members(reply.leaves),
        })
    }

    fn operation_request(&self, operation: Option<OperationId>) -> ScaleOperationRequest {
        let id = operation.map(|id| id.to_bytes().to_vec());
        ScaleOperationRequest {
            cluster_id: self.client.shared().router.cluster_id_bytes(),
            operation_id: id.unwrap_or_default().into(),
        }
    }
}

fn operation_of(reply: &ScaleReply) -> Option<OperationId> {
    let id = <[u8; 16]>::try_from(&*reply.operation_id).ok()?;
    Some(OperationId::from_bytes(id))
}
