//! What is told of changes of a cluster's membership.

use std::time::Duration;

use keydb_core::{ClusterMap, NodeId, OperationId, Phase, UnixMillis, scaling::PlannedMove};

/// A change of membership, as it was planned.
///
/// ```
/// fn line(planned: &keydb_client::ScalePlanned) -> String {
///     format!("{} ranges move; {} nodes join, {} leave", planned.moves.len(), planned.joins.len(), planned.leaves.len())
/// }
/// # let _ = line;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ScalePlanned {
    /// The operation that does it; `None` where there is nothing to do, and in a preview.
    pub operation: Option<OperationId>,
    /// Whether this call began it (or would have). Otherwise it ran already, or there is nothing to do.
    pub changed: bool,
    /// The ranges that are still to move.
    pub moves: Vec<PlannedMove>,
    /// The nodes that become members, with their addresses.
    pub joins: Vec<(NodeId, String)>,
    /// The members that leave, with their addresses.
    pub leaves: Vec<(NodeId, String)>,
}

/// What a change of membership would move.
///
/// ```
/// fn line(preview: &keydb_client::ScalePreview) -> String {
///     format!("{} keys in {} ranges, about {:?}", preview.keys, preview.planned.moves.len(), preview.expected)
/// }
/// # let _ = line;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ScalePreview {
    /// The plan.
    pub planned: ScalePlanned,
    /// How many keys the ranges have that would move, of those whose owners answered.
    pub keys: u64,
    /// What these take on their way, about.
    pub bytes: u64,
    /// How long it would take, by the usual speed of moves; load on the nodes makes it longer.
    pub expected: Duration,
    /// Owners that did not answer: of their ranges the keys are not counted.
    pub silent: Vec<NodeId>,
}

/// How far a scaling operation is, by the cluster map.
///
/// ```
/// fn line(progress: &keydb_client::ScaleProgress) -> String {
///     format!("{} of {} ranges have moved", progress.moved(), progress.moves)
/// }
/// # let _ = line;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ScaleProgress {
    /// Which operation.
    pub operation: OperationId,
    /// The members' addresses when it is done.
    pub addresses: Vec<String>,
    /// Whether ranges are only copied, or change their owners as well.
    pub phase: Phase,
    /// When it was planned, by the clock of the node that did.
    pub started: UnixMillis,
    /// How many ranges it moves altogether.
    pub moves: usize,
    /// How many of them have not changed their owners yet.
    pub waiting: usize,
    /// How many have, and the owner before still answers.
    pub handing_over: usize,
    /// What [the nodes](crate::AdminClient::waits_for) say, where they were asked: when no range has moved for some seconds.
    pub waits_for: Vec<String>,
}

impl ScaleProgress {
    /// How far the operation is that runs by this map, if one does.
    pub fn of(map: &ClusterMap) -> Option<Self> {
        let target = map.target.as_ref()?;
        let ranges = map.ranges.iter();
        let waiting = ranges.clone().filter(|it| it.successor.is_some()).count();
        let handing_over = ranges.filter(|it| it.from.is_some()).count();
        let planned = target.moves.map_or(0, |moves| moves as usize);
        Some(Self {
            operation: target.operation_id,
            addresses: target.addresses.clone(),
            phase: target.phase,
            started: target.started_ms,
            moves: planned.max(waiting + handing_over),
            waiting,
            handing_over,
            waits_for: Vec::new(),
        })
    }

    /// How many ranges have changed hands.
    pub const fn moved(&self) -> usize {
        self.moves.saturating_sub(self.waiting + self.handing_over)
    }
}
