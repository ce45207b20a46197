//! Which map the client goes by, and how it gets a newer one.
//!
//! Whoever learns that the map is out of date asks for a *round*: one background task asks nodes for a newer map, once for all
//! who are waiting. A round that starts after the request serves it. A map of a lower (lineage, epoch) or of another cluster is
//! never taken over. In between, refusals say who is asked for a range, see [`holder`](super::holder).

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use keydb_core::{ClusterId, ClusterMap, Durability, NodeId, RangeId};
use keydb_proto::shard::{GetMapReply, GetMapRequest, shard_service_client::ShardServiceClient};
use keydb_transport::{Channel, Outgoing};
use tokio::{
    join,
    sync::{Notify, watch},
    time::timeout,
};

use super::{
    holder::{Holder, Redirect},
    node::{ClockSample, Node, connection, describe},
    split::SlotTable,
};
use crate::{config::ClientConfig, error::MapRejected};

/// How long one node may take to answer with its map.
const FETCH_TIMEOUT: Duration = Duration::from_secs(1);

/// A map's `(lineage, epoch)`.
pub(crate) type MapVersion = (u64, u64);

/// One cluster map, ready for use.
#[derive(Debug)]
pub(crate) struct Routing {
    pub(crate) map: Arc<ClusterMap>,
    pub(crate) table: SlotTable,
    /// Ordered by id.
    nodes: Vec<Arc<Node>>,
    /// Who is asked for each range, in the map's order. Each is a member.
    holders: Vec<Holder>,
}

impl Routing {
    pub(crate) fn new(
        map: ClusterMap,
        before: Option<&Self>,
        requests_in_flight_max: usize,
        outgoing: &Outgoing,
        clock: ClockSample,
    ) -> Result<Self, MapRejected> {
        let mut nodes = Vec::with_capacity(map.nodes.len());
        for entry in &map.nodes {
            let known = before.and_then(|it| it.nodes.iter().find(|node| node.is(entry)));
            let node = match known {
                Some(known) => Arc::clone(known),
                None => {
                    let node = Node::new(entry, requests_in_flight_max, clock, outgoing);
                    Arc::new(node.map_err(|reason| MapRejected::Address {
                        address: entry.address.clone(),
                        reason,
                    })?)
                }
            };
            nodes.push(node);
        }
        nodes.sort_by_key(|node| node.id());
        let holders = map.ranges.iter().map(|range| {
            let stays = before.and_then(|it| {
                let index = it.map.range_index_of(range.start);
                let holder = it.holders[index];
                let stays = it.map.lineage == map.lineage
                    && holder.stays(&it.map.ranges[index], range)
                    && map.node(holder.node).is_some();
                stays.then_some(holder)
            });
            stays.unwrap_or_else(|| Holder::first(range))
        });
        let holders = holders.collect();
        Ok(Self::asking(Arc::new(map), nodes, holders))
    }

    fn asking(map: Arc<ClusterMap>, nodes: Vec<Arc<Node>>, holders: Vec<Holder>) -> Self {
        Self {
            table: SlotTable::new(&map, &holders),
            map,
            nodes,
            holders,
        }
    }

    /// Who is asked for the range that a value belongs to.
    pub(crate) fn holder_of(&self, top: u64) -> Holder {
        self.holders[self.map.range_index_of(top)]
    }

    pub(crate) fn node(&self, id: NodeId) -> &Arc<Node> {
        let index = self
            .nodes
            .binary_search_by_key(&id, |node| node.id())
            .expect("only members are asked");
        &self.nodes[index]
    }

    pub(crate) fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }
}

/// Holds the newest map.
#[derive(Debug)]
pub(crate) struct Router {
    cluster_id: ClusterId,
    cluster_id_bytes: Bytes,
    durability: Durability,
    /// Asked when no member of the map has a newer one: the cluster may have moved away from all of them.
    addresses: Vec<String>,
    requests_in_flight_max: usize,
    outgoing: Outgoing,
    first_outgoing: Outgoing,
    current: RwLock<Arc<Routing>>,
    /// Held by whoever replaces `current`.
    replacing: Mutex<()>,
    taken_over: Notify,
    requests: Mutex<Requests>,
    wake: Notify,
    rounds_done: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Requests {
    rounds_started: u64,
    /// Asked before all others, when the next round is for what it knows.
    ask_first: Option<Arc<Node>>,
    /// The next round is needless when the map has this version by then.
    needed: MapVersion,
}

/// Newer than any map.
const ANY_NEWER: MapVersion = (u64::MAX, u64::MAX);

impl Router {
    pub(crate) fn new(routing: Routing, config: &ClientConfig) -> Self {
        Self {
            cluster_id: routing.map.cluster_id,
            cluster_id_bytes: routing.map.cluster_id.to_bytes().to_vec().into(),
            durability: routing.map.durability,
            addresses: config.addresses.clone(),
            requests_in_flight_max: config.requests_in_flight_max,
            outgoing: config.outgoing.clone(),
            first_outgoing: config.outgoing_at_first().clone(),
            current: RwLock::new(Arc::new(routing)),
            replacing: Mutex::default(),
            taken_over: Notify::new(),
            requests: Mutex::default(),
            wake: Notify::new(),
            rounds_done: watch::Sender::new(0),
        }
    }

    pub(crate) fn current(&self) -> Arc<Routing> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// As requests carry it.
    pub(crate) fn cluster_id_bytes(&self) -> Bytes {
        self.cluster_id_bytes.clone()
    }

    /// Fixed when the cluster was created.
    pub(crate) fn durability(&self) -> Durability {
        self.durability
    }

    pub(crate) fn version(&self) -> MapVersion {
        self.current().map.version()
    }

    /// Asks for a round, and for its number: `node` is known to have a map of this version.
    pub(crate) fn request_version(&self, node: &Arc<Node>, version: MapVersion) -> u64 {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.ask_first = Some(Arc::clone(node));
        requests.needed = requests.needed.max(version);
        self.wake.notify_one();
        requests.rounds_started + 1
    }

    /// Asks for a round because `node` could not be served by the map that we have: any newer one will do.
    pub(crate) fn request(&self, node: &Arc<Node>) -> u64 {
        self.request_version(node, ANY_NEWER)
    }

    /// Waits until that round is over. The caller's deadline bounds it.
    pub(crate) async fn finished(&self, round: u64) {
        // An error means that the sender is gone, and it lives as long as `self`.
        let _ = self
            .rounds_done
            .subscribe()
            .wait_for(|done| *done >= round)
            .await;
    }

    /// Has ranges asked for elsewhere from now on; which of them were not yet, and can be.
    pub(crate) fn redirect(&self, redirects: &[Redirect]) -> Vec<RangeId> {
        if redirects.is_empty() {
            return Vec::new();
        }
        let _replacing = self.replacing();
        let current = self.current();
        let mut holders = current.holders.clone();
        let mut redirected = Vec::new();
        for redirect in redirects {
            let index = current.map.range_index_of(redirect.top);
            let target = redirect.target(&current.map.ranges[index], holders[index]);
            // Another member is known when the map is that lists it.
            if let Some(target) = target
                && current.nodes.iter().any(|node| node.id() == target.node)
            {
                holders[index] = target;
                redirected.push(redirect.range);
            }
        }
        if !redirected.is_empty() {
            let (map, nodes) = (Arc::clone(&current.map), current.nodes.clone());
            self.replace(Routing::asking(map, nodes, holders));
        }
        redirected
    }

    fn replacing(&self) -> MutexGuard<'_, ()> {
        self.replacing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called with `replacing` held.
    fn replace(&self, next: Routing) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
    }

    /// The background task: serves rounds, and connects to new nodes, for ever.
    pub(crate) async fn run(&self) {
        join!(self.connect_to_new_nodes(), self.serve_rounds());
    }

    /// Asks nodes that are new in a map for theirs, so that the first call finds a connection.
    async fn connect_to_new_nodes(&self) {
        let mut known = self.current();
        loop {
            self.taken_over.notified().await;
            let current = self.current();
            let is_new = |node: &&Arc<Node>| !known.nodes.iter().any(|it| Arc::ptr_eq(it, node));
            let new = current.nodes.iter().filter(is_new);
            let asked =
                new.map(|node| self.ask(node.connection(), node.address(), Some(node), &current));
            join_all(asked).await;
            known = current;
        }
    }

    async fn serve_rounds(&self) {
        loop {
            self.wake.notified().await;
            let (round, ask_first, needed) = {
                let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
                requests.rounds_started += 1;
                (
                    requests.rounds_started,
                    requests.ask_first.take(),
                    std::mem::take(&mut requests.needed),
                )
            };
            if self.version() < needed {
                self.look_for_newer(ask_first.filter(|_| needed < ANY_NEWER))
                    .await;
            }
            self.rounds_done.send_replace(round);
        }
    }

    async fn look_for_newer(&self, ask_first: Option<Arc<Node>>) {
        let known = self.current();
        if let Some(node) = ask_first
            && self
                .ask(node.connection(), node.address(), Some(&node), &known)
                .await
        {
            return;
        }
        let members = known
            .nodes()
            .iter()
            .map(|node| (node.connection(), node.address(), Some(node)));
        let others = self
            .addresses
            .iter()
            .filter(|address| known.nodes().iter().all(|node| node.address() != *address))
            .filter_map(|address| {
                Some((
                    connection(address, &self.first_outgoing).ok()?,
                    address.as_str(),
                    None,
                ))
            });
        let mut asked: FuturesUnordered<_> = members
            .chain(others)
            .map(|(connection, address, node)| self.ask(connection, address, node, &known))
            .collect();
        while let Some(newer) = asked.next().await {
            if newer {
                return;
            }
        }
    }

    /// Asks one node for a map newer than `known`; whether it had one that was taken over.
    async fn ask(
        &self,
        mut connection: ShardServiceClient<Channel>,
        address: &str,
        node: Option<&Arc<Node>>,
        known: &Routing,
    ) -> bool {
        let request = GetMapRequest {
            cluster_id: self.cluster_id_bytes(),
            lineage: known.map.lineage,
            epoch: known.map.epoch,
        };
        let reply = match timeout(FETCH_TIMEOUT, connection.get_map(request)).await {
            Ok(Ok(reply)) => reply.into_inner(),
            Ok(Err(status)) => {
                tracing::debug!(address, error = describe(&status), "no map from this node");
                return false;
            }
            Err(_) => {
                tracing::debug!(address, "no map from this node within {FETCH_TIMEOUT:?}");
                return false;
            }
        };
        if let (Some(node), Some(header)) = (node, &reply.header) {
            node.heard(header, self.durability);
        }
        match self.take_over(&reply) {
            Ok(newer) => newer,
            Err(error) => {
                tracing::warn!(address, %error, "the cluster map of this node is not taken over");
                false
            }
        }
    }

    /// Takes the reply's map over if it is newer.
    fn take_over(&self, reply: &GetMapReply) -> Result<bool, MapRejected> {
        let Some((map, clock)) = read_map(reply)? else {
            return Ok(false);
        };
        if map.cluster_id != self.cluster_id {
            return Err(MapRejected::OtherCluster {
                ours: self.cluster_id,
                theirs: map.cluster_id,
            });
        }
        let _replacing = self.replacing();
        let before = self.current();
        if map.version() <= before.map.version() {
            return Ok(false);
        }
        let max = self.requests_in_flight_max;
        let next = Routing::new(map, Some(&before), max, &self.outgoing, clock)?;
        tracing::debug!(
            lineage = next.map.lineage,
            epoch = next.map.epoch,
            "going by a newer cluster map"
        );
        self.replace(next);
        self.taken_over.notify_one();
        Ok(true)
    }
}

/// The map in a reply, if it has one, and what the node's clock showed.
pub(crate) fn read_map(
    reply: &GetMapReply,
) -> Result<Option<(ClusterMap, ClockSample)>, MapRejected> {
    let Some(header) = reply.header.as_ref().filter(|_| !reply.map_json.is_empty()) else {
        return Ok(None);
    };
    let clock = ClockSample::of(header);
    Ok(Some((ClusterMap::from_json(&reply.map_json)?, clock)))
}
