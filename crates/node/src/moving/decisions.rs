//! What this node has decided about ranges, in a small file beside its saved map.

use std::{collections::BTreeMap, path::Path};

use keydb_core::{ClusterMap, NodeId, RangeId, moving::Decisions};
use serde::{Deserialize, Serialize};

use crate::{DataDirError, disk::data_dir};

/// The file, in the data directory.
const DECISIONS: &str = "decisions.json";

/// Of one range.
#[derive(Debug, Serialize, Deserialize)]
struct Decided {
    range: RangeId,
    #[serde(flatten)]
    decisions: Decisions,
}

/// What was decided, range by range.
pub(super) type AllDecisions = BTreeMap<RangeId, Decisions>;

/// What the node with this data directory has decided.
///
/// # Errors
/// When the file is there and cannot be read: without it nobody knows for which ranges the node may answer.
pub(super) fn read(root: &Path) -> Result<AllDecisions, DataDirError> {
    let decided: Option<Vec<Decided>> = data_dir::read_json(&root.join(DECISIONS))?;
    let decided = decided.into_iter().flatten();
    Ok(decided.map(|it| (it.range, it.decisions)).collect())
}

/// Writes them down: they are synced when this returns.
pub(super) fn write(root: &Path, decisions: &AllDecisions) -> Result<(), DataDirError> {
    let decided: Vec<Decided> = decisions
        .iter()
        .map(|(range, decisions)| Decided {
            range: *range,
            decisions: *decisions,
        })
        .collect();
    data_dir::replace_json(&root.join(DECISIONS), &decided)
}

/// Before node `id` takes the place of another disk in `map`: what that had decided about ranges that are being handed over is not known.
pub(crate) fn mark_lost(root: &Path, map: &ClusterMap, id: NodeId) -> Result<(), DataDirError> {
    let mut decisions = read(root)?;
    for range in &map.ranges {
        let is_handed = |from: &keydb_core::HandedFrom| from.node == id || range.owner == id;
        if range.from.as_ref().is_some_and(is_handed) {
            decisions.entry(range.id).or_default().lost = Some((map.lineage, range.generation));
        }
    }
    write(root, &decisions)
}
