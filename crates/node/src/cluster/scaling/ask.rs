//! Who is at the addresses that a cluster is to be scaled to.

use std::{fmt::Display, time::Duration};

use futures_util::future::join_all;
use keydb_core::{ClusterId, ClusterMap, NodeId, scaling::Member};
use keydb_proto::{
    refusal_status,
    shard::{
        ErrorCode, NodeStatusReply, NodeStatusRequest, shard_service_client::ShardServiceClient,
    },
};
use keydb_transport::Outgoing;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Status;

/// How long all of them have to answer, connecting included.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// How long before a node is asked again that has just been started, and has no map yet.
const ASK_PAUSE: Duration = Duration::from_millis(50);

/// How long a node that has just left has to end and to be started again.
const RESTART_TIMEOUT: Duration = Duration::from_secs(6);

/// More members than this are a typing error.
pub(super) const MEMBERS_MAX: usize = 4096;

/// The members that a cluster with this map would have at `addresses`. One that is a member already and does not answer is taken
/// from the map: so a cluster can be scaled while a node is down.
///
/// # Errors
/// A refusal that names every address that cannot be, and why.
pub(super) async fn members(
    map: &ClusterMap,
    addresses: &[String],
    outgoing: &Outgoing,
) -> Result<Vec<Member>, Status> {
    if addresses.len() > MEMBERS_MAX {
        let message = format!(
            "{} addresses are more than a cluster may have nodes, which is {MEMBERS_MAX}",
            addresses.len()
        );
        return Err(refusal_status(ErrorCode::InvalidRequest, message));
    }
    let deadline = Instant::now() + ASK_TIMEOUT;
    let asked = addresses
        .iter()
        .map(|address| who_is_at(address, outgoing, deadline));
    let mut problems = Vec::new();
    let mut members: Vec<Member> = Vec::new();
    for (address, answer) in addresses.iter().zip(join_all(asked).await) {
        let known = map.nodes.iter().find(|node| node.address == *address);
        let id = match (answer, known) {
            (Ok(there), _) if there.cluster != map.cluster_id => {
                problems.push(format!(
                    "{address} is node {} of another cluster, {}",
                    there.id, there.cluster
                ));
                continue;
            }
            (Ok(there), _) => there.id,
            (Err(_), Some(known)) => known.id,
            (Err(problem), None) => {
                problems.push(problem);
                continue;
            }
        };
        let zone = map.node(id).map_or("", |entry| &entry.zone).to_owned();
        members.push(Member {
            id,
            address: address.clone(),
            zone,
        });
    }
    if problems.is_empty() {
        Ok(members)
    } else {
        Err(refusal_status(
            ErrorCode::InvalidRequest,
            problems.join("; "),
        ))
    }
}

/// Who answers at an address.
struct There {
    id: NodeId,
    cluster: ClusterId,
    has_left: bool,
}

/// Asks until there is an answer, or says what is wrong with the address. A node that has just left the cluster is about to be started
/// again, or nobody will be there.
async fn who_is_at(address: &str, outgoing: &Outgoing, deadline: Instant) -> Result<There, String> {
    let first = ask(address, outgoing, deadline).await;
    if !matches!(&first, Ok(there) if there.has_left) {
        return first;
    }
    let restarted_by = Instant::now() + RESTART_TIMEOUT;
    loop {
        sleep(ASK_PAUSE).await;
        match ask(address, outgoing, restarted_by).await {
            Ok(there) if !there.has_left => return Ok(there),
            _ if Instant::now() < restarted_by => {}
            _ => {
                return Err(format!(
                    "the node at {address} has just left the cluster, and was not started again within {RESTART_TIMEOUT:?}"
                ));
            }
        }
    }
}

async fn ask(address: &str, outgoing: &Outgoing, deadline: Instant) -> Result<There, String> {
    let nobody = |why: &dyn Display| format!("no node answers at {address}: {why}");
    let is_host_and_port = address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|it| it > 0));
    let endpoint = outgoing.endpoint(address);
    let Some(endpoint) = endpoint.ok().filter(|_| is_host_and_port) else {
        return Err(format!("{address:?} is not host:port"));
    };
    let asked = async {
        let channel = outgoing.connect(&endpoint).await;
        let channel = channel.map_err(|error| nobody(&innermost(&error)))?;
        let mut client = ShardServiceClient::new(channel);
        loop {
            let reply = client.node_status(NodeStatusRequest::default()).await;
            let reply = reply.map_err(|status| nobody(&status.message()))?;
            if let Some(there) = There::of(reply.get_ref()) {
                return Ok(there);
            }
            if deadline.saturating_duration_since(Instant::now()) <= 2 * ASK_PAUSE {
                return Err(format!(
                    "the node at {address} has no cluster map: it looks for it in another object storage, or cannot reach it"
                ));
            }
            sleep(ASK_PAUSE).await;
        }
    };
    let late = |_| Err(nobody(&format!("no answer within {ASK_TIMEOUT:?}")));
    timeout_at(deadline, asked).await.unwrap_or_else(late)
}

/// What the system said.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

impl There {
    /// Of a node that knows which cluster it belongs to.
    fn of(reply: &NodeStatusReply) -> Option<Self> {
        Some(Self {
            id: NodeId(reply.header.as_ref()?.node_id),
            cluster: ClusterId::from_bytes((*reply.cluster_id).try_into().ok()?),
            has_left: reply.has_left,
        })
    }
}
