//! One node as the client sees it: its connection, how far its clock is from ours, and which life of it we talk to.

use std::{
    error::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use keydb_core::{Durability, Incarnation, NodeEntry, NodeId, UnixMillis};
use keydb_proto::shard::{
    ReplyHeader, admin_service_client::AdminServiceClient, shard_service_client::ShardServiceClient,
};
use keydb_transport::{Channel, Outgoing, with_sources};
use tokio::{sync::Semaphore, time::Instant};
use tonic::{Code, ConnectError, Status};

/// A connection that does not come about in this time is given up: nothing has been sent.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A peer that does not answer a ping within this time is taken for gone, so that a retry gets a connection of its own.
const PING_INTERVAL: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(3);
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// The largest reply is the map of a cluster with the most hash ranges.
const REPLY_BYTES_MAX: usize = 64 << 20;

/// A lazy connection to `host:port`.
///
/// # Errors
/// What is wrong with the address.
pub(crate) fn connection(
    address: &str,
    outgoing: &Outgoing,
) -> Result<ShardServiceClient<Channel>, String> {
    Ok(speaking_of_keys(channel(address, outgoing)?))
}

fn speaking_of_keys(channel: Channel) -> ShardServiceClient<Channel> {
    ShardServiceClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX)
}

fn channel(address: &str, outgoing: &Outgoing) -> Result<Channel, String> {
    let port = address
        .rsplit_once(':')
        .map(|(host, port)| (host, port.parse::<u16>()));
    if !matches!(port, Some((host, Ok(port))) if !host.is_empty() && port != 0) {
        return Err("the port, 1 to 65535, or the host is missing".to_owned());
    }
    let endpoint = outgoing
        .endpoint(address)
        .map_err(|error| with_sources(&error))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    Ok(outgoing.connect_lazy(&endpoint))
}

/// What a node's clock showed, and when we learned it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClockSample {
    time: UnixMillis,
    learned: Instant,
}

impl ClockSample {
    pub(crate) fn of(header: &ReplyHeader) -> Self {
        Self {
            time: UnixMillis(header.node_time_unix_ms),
            learned: Instant::now(),
        }
    }

    /// What the clock shows at `moment`. The reply's way makes this a little early, never late.
    pub(crate) fn at(self, moment: Instant) -> UnixMillis {
        self.time
            .plus(moment.saturating_duration_since(self.learned))
    }
}

/// A member of the cluster.
#[derive(Debug)]
pub(crate) struct Node {
    id: NodeId,
    address: String,
    channel: Channel,
    /// A permit for each request that may be on its way.
    pub(crate) in_flight: Arc<Semaphore>,
    seen: Mutex<Seen>,
}

/// What the node's replies told last.
#[derive(Debug)]
struct Seen {
    incarnation: Option<Incarnation>,
    clock: ClockSample,
}

impl Node {
    /// A member of which nothing has been heard yet; until then `clock` stands for its own.
    pub(crate) fn new(
        entry: &NodeEntry,
        requests_in_flight_max: usize,
        clock: ClockSample,
        outgoing: &Outgoing,
    ) -> Result<Self, String> {
        Ok(Self {
            id: entry.id,
            address: entry.address.clone(),
            channel: channel(&entry.address, outgoing)?,
            in_flight: Arc::new(Semaphore::new(requests_in_flight_max)),
            seen: Mutex::new(Seen {
                incarnation: None,
                clock,
            }),
        })
    }

    pub(crate) fn id(&self) -> NodeId {
        self.id
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// A handle for one call.
    pub(crate) fn connection(&self) -> ShardServiceClient<Channel> {
        speaking_of_keys(self.channel.clone())
    }

    /// The same for one that changes the cluster map.
    pub(crate) fn admin_connection(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone()).max_decoding_message_size(REPLY_BYTES_MAX)
    }

    /// Whether this is still how the member is reached.
    pub(crate) fn is(&self, entry: &NodeEntry) -> bool {
        self.id == entry.id && self.address == entry.address
    }

    /// The node's clock, as far as it is known.
    pub(crate) fn clock(&self) -> ClockSample {
        self.seen().clock
    }

    /// Takes in what a reply tells of its node.
    pub(crate) fn heard(&self, header: &ReplyHeader, durability: Durability) {
        let incarnation = header.incarnation[..]
            .try_into()
            .map(Incarnation::from_bytes)
            .ok();
        let before = {
            let mut seen = self.seen();
            seen.clock = ClockSample::of(header);
            let before = seen.incarnation;
            seen.incarnation = incarnation.or(before);
            before
        };
        if let (Some(before), Some(now)) = (before, incarnation)
            && before != now
        {
            let (node, address) = (self.id.0, &self.address);
            let id = self.id;
            match durability {
                Durability::Journal => {
                    tracing::info!(node, address, %before, %now, "node {id} was restarted");
                }
                Durability::Snapshot => tracing::warn!(
                    node, address, %before, %now,
                    "node {id} was restarted; unless it was stopped cleanly, the keys that it had acknowledged since its last snapshot are lost",
                ),
                _ => tracing::warn!(
                    node, address, %before, %now,
                    "node {id} was restarted; with durability {durability} the keys that it had acknowledged are lost",
                ),
            }
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // What is behind the lock is replaced whole, so a panic elsewhere leaves it usable.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Display for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node {} ({})", self.id, self.address)
    }
}

/// Whether the request of this error never left, because there was no connection.
pub(crate) fn was_never_sent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// Whether a node says that this client may not: it has done nothing.
pub(crate) fn is_denied(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unauthenticated | Code::PermissionDenied
    )
}

/// A status as a person reads it.
pub(crate) fn describe(status: &Status) -> String {
    match status.source() {
        Some(source) => with_sources(source),
        None => status.message().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::mpsc};

    use keydb_core::{ClusterMap, NewCluster};

    use super::*;

    fn header(incarnation: u8, time_ms: u64) -> ReplyHeader {
        ReplyHeader {
            incarnation: vec![incarnation; 16].into(),
            node_time_unix_ms: time_ms,
            ..ReplyHeader::default()
        }
    }

    #[derive(Clone)]
    struct Log(mpsc::Sender<String>);

    impl io::Write for Log {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let text = String::from_utf8_lossy(line).into_owned();
            self.0.send(text).map_err(io::Error::other)?;
            Ok(line.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_restart_is_logged_once_with_what_it_means() {
        let map = ClusterMap::create(&NewCluster {
            addresses: vec!["somewhere:50051".to_owned()],
            range_count: 1,
            durability: Durability::Memory,
        })
        .unwrap();
        let node = Node::new(
            &map.nodes[0],
            1,
            ClockSample::of(&header(0, 5)),
            &Outgoing::plain(),
        )
        .unwrap();
        let (log, lines) = mpsc::channel();
        let log = Log(log);
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || log.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            for incarnation in [1, 1, 2, 2, 2] {
                node.heard(&header(incarnation, 1000), Durability::Memory);
            }
        });
        let lines: Vec<String> = lines.try_iter().collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("node 0 was restarted; with durability memory"));
        let later = Instant::now() + Duration::from_secs(100);
        assert!(node.clock().at(later) >= UnixMillis(101_000));
    }
}
