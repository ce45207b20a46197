//! `keydb snapshot create`: every node, now.

use std::{collections::HashMap, fmt::Write, process::ExitCode, time::Duration};

use keydb_client::{AdminClient, AdminError, NodeEntry, RangeState, SnapshotsCreated};
use keydb_core::{NodeId, RangeId};
use serde_json::{Value, json};

use super::args::CreateArgs;
use crate::{
    connect,
    exit::{Code, Failure},
    output::{answer, bytes_text},
};

type Made = Vec<(NodeEntry, Result<Created, AdminError>)>;

struct Created {
    snapshots: SnapshotsCreated,
    /// Ranges of the node that are closed: no snapshot has more of them than before.
    closed: Vec<RangeId>,
}

pub(super) fn run(args: &CreateArgs) -> Result<ExitCode, Failure> {
    let config = connect::config(&args.connect)?;
    let made = connect::runtime()?.block_on(async {
        let client = connect::connect(config).await?;
        let admin = AdminClient::from(client);
        let made = admin.create_snapshots(args.full).await;
        let mut closed = closed_ranges(&admin).await;
        admin.close(Duration::ZERO).await;
        let with_closed = |(node, made): (NodeEntry, Result<SnapshotsCreated, AdminError>)| {
            let closed = closed.remove(&node.id).unwrap_or_default();
            let created = made.map(|snapshots| Created { snapshots, closed });
            (node, created)
        };
        Ok::<Made, Failure>(made.into_iter().map(with_closed).collect())
    })?;
    let as_json = || json!({"nodes": made.iter().map(node_json).collect::<Vec<_>>()});
    answer(args.json, as_json, || as_text(&made))?;
    let all_made = made.iter().all(|(_, made)| made.is_ok());
    Ok(Code::Unreachable.unless(all_made))
}

async fn closed_ranges(admin: &AdminClient) -> HashMap<NodeId, Vec<RangeId>> {
    let infos = admin.node_info().await.into_iter();
    infos
        .filter_map(|(node, info)| {
            let ranges = info.ok()?.ranges.into_iter();
            let closed = ranges.filter(|range| matches!(range.state, RangeState::Closed { .. }));
            Some((node.id, closed.map(|range| range.id).collect()))
        })
        .collect()
}

fn as_text(made: &Made) -> String {
    let mut text = String::new();
    for (node, made) in made {
        let _ = match made {
            Ok(Created { snapshots, closed }) => writeln!(
                text,
                "node {}  object storage is complete to {}  ({} objects, {} written){}",
                node.id,
                snapshots.complete_to,
                snapshots.objects,
                bytes_text(snapshots.object_bytes),
                closed_text(closed)
            ),
            Err(error) => writeln!(text, "node {}  no snapshot: {error}", node.id),
        };
    }
    text
}

fn closed_text(closed: &[RangeId]) -> String {
    if closed.is_empty() {
        return String::new();
    }
    let ids: Vec<String> = closed.iter().map(RangeId::to_string).collect();
    format!(
        ", but of hash ranges that are closed: {}; `keydb status` says why",
        ids.join(", ")
    )
}

fn node_json((node, made): &(NodeEntry, Result<Created, AdminError>)) -> Value {
    match made {
        Ok(Created { snapshots, closed }) => json!({
            "node": node.id,
            "complete_to_unix_ms": snapshots.complete_to,
            "complete_to": snapshots.complete_to.to_string(),
            "lsn": snapshots.lsn,
            "objects": snapshots.objects,
            "object_bytes": snapshots.object_bytes,
            "closed_ranges": closed,
        }),
        Err(error) => json!({"node": node.id, "error": error.to_string()}),
    }
}
