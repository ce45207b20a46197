//! A node's settings, as plain data.

use std::{path::PathBuf, time::Duration};

use keydb_core::NodeId;
use keydb_storage::{S3Options, StorageUrl};
use keydb_transport::Outgoing;

use crate::NodeError;

/// What a node is told at its start. Everything else it learns from the cluster map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Which member of the cluster this node is.
    pub id: NodeId,
    /// How long between two looks at the cluster map in object storage. More than 0.
    pub map_poll_interval: Duration,
    /// How long requests in progress have to end when the node stops; what remains is then cut off.
    pub drain_deadline: Duration,
    /// How long a write or sync of the journal may take before the process ends: whether a disk that does not answer has what was
    /// written to it, only the next start can tell. It is warned of, and the node not ready, after a sixth of that.
    pub disk_hang_limit: Duration,
    /// Where the node keeps its journal and snapshots. In `memory` mode there is nothing to keep, and it is not touched.
    pub data_dir: PathBuf,
    /// How long between two snapshots. More than 0.
    pub snapshot_interval: Duration,
    /// What one node takes at most.
    pub limits: Limits,
    /// What moving hash ranges may take of this node, and copying backups.
    pub moves: MoveBudget,
    /// What object storage is called, where it has a name: no backup may lie in it.
    pub storage_url: Option<StorageUrl>,
    /// How S3 is reached, where a backup goes there.
    pub s3: S3Options,
    /// How other nodes are reached.
    pub outgoing: Outgoing,
}

/// What moving hash ranges may take of a node, so that requests hardly notice it: whichever is used up first. What is committed while
/// a range moves goes to its next owner at once, and does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MoveBudget {
    /// Of one core, in hundredths. At least 1; 200 are two cores.
    pub cpu_percent: u32,
    /// Bytes of keys a second. At least 1.
    pub bytes_per_second: u64,
}

/// What happens to new keys when the key sets have taken all the memory that they may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MemoryPolicy {
    /// They are refused. Keys that are there are still answered for, and nothing is lost.
    #[default]
    Refuse,
    /// The keys that would expire soonest are forgotten before their time, a few per cent at once. Each is a loss: it may be told
    /// `First` once more.
    ShedSoonest,
}

/// What one node takes at most. Going over a limit is an error that names it, with nothing applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Keys in one request. At least 1.
    pub request_keys_max: usize,
    /// Bytes in one request message. At least 1.
    pub message_bytes_max: usize,
    /// Requests for keys that are being worked on at the same time. At least 1.
    pub requests_in_flight_max: usize,
    /// Bytes that the memory of recent claims' answers takes; the oldest are forgotten first. 0: nothing is remembered. Calls of 1,000
    /// keys take about 1.3 bytes a key.
    pub answer_memory_bytes: usize,
    /// How long the answers to a claim are remembered.
    pub answer_memory_age: Duration,
    /// Bytes that the key sets take before new keys are refused; 0: no limit. What is in work then may go over it a little.
    pub memory_bytes: usize,
    /// What happens at that limit.
    pub memory_policy: MemoryPolicy,
}

impl NodeConfig {
    /// The defaults, for the node `id`.
    pub fn new(id: NodeId) -> Self {
        Self {
            id,
            map_poll_interval: Duration::from_secs(1),
            drain_deadline: Duration::from_secs(10),
            disk_hang_limit: Duration::from_secs(60),
            data_dir: PathBuf::from("keydb-data"),
            snapshot_interval: Duration::from_secs(60),
            limits: Limits::default(),
            moves: MoveBudget::default(),
            storage_url: None,
            s3: S3Options::default(),
            outgoing: Outgoing::plain(),
        }
    }

    pub(crate) fn check(&self) -> Result<(), NodeError> {
        let limits = &self.limits;
        let zero = [
            ("map_poll_interval", self.map_poll_interval.is_zero()),
            ("snapshot_interval", self.snapshot_interval.is_zero()),
            ("disk_hang_limit", self.disk_hang_limit.is_zero()),
            ("limits.request_keys_max", limits.request_keys_max == 0),
            ("limits.message_bytes_max", limits.message_bytes_max == 0),
            (
                "limits.requests_in_flight_max",
                limits.requests_in_flight_max == 0,
            ),
            ("moves.cpu_percent", self.moves.cpu_percent == 0),
            ("moves.bytes_per_second", self.moves.bytes_per_second == 0),
        ];
        match zero.iter().find(|(_, is_zero)| *is_zero) {
            Some((setting, _)) => Err(NodeError::Setting { setting }),
            None => Ok(()),
        }
    }
}

impl Default for MoveBudget {
    fn default() -> Self {
        Self {
            cpu_percent: 25,
            bytes_per_second: 32 << 20,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_keys_max: 65_536,
            message_bytes_max: 4 << 20,
            requests_in_flight_max: 1024,
            answer_memory_bytes: 64 << 20,
            answer_memory_age: Duration::from_secs(300),
            memory_bytes: 0,
            memory_policy: MemoryPolicy::Refuse,
        }
    }
}
