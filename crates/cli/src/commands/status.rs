//! `keydb status`: what a cluster is and holds.

use std::{fmt::Write, process::ExitCode, sync::Arc};

use keydb_client::{ClientConfig, GetError, NodeStatus};
use keydb_core::{ClusterMap, NodeEntry, NodeState};
use serde_json::{Value, json};

use super::durability_meaning;
use crate::{
    args::StatusArgs,
    connect,
    exit::{Code, Failure},
    output::{Align, Stdout, bytes_text, table, thousands, time_text},
};

pub(crate) fn run(args: &StatusArgs) -> Result<ExitCode, Failure> {
    let config = connect::config(&args.connect)?;
    let (map, nodes) = connect::runtime()?.block_on(ask(config))?;
    let mut out = Stdout::open()?;
    if args.json {
        out.json(&as_json(&map, &nodes))?;
    } else {
        out.write(as_text(&map, &nodes).as_bytes())?;
    }
    if nodes.iter().any(|(_, status)| status.is_err()) {
        Ok(ExitCode::from(Code::Unreachable as u8))
    } else {
        Ok(ExitCode::SUCCESS)
    }
}

/// The newest map that any node goes by, and what its members say.
async fn ask(mut config: ClientConfig) -> Result<(Arc<ClusterMap>, Answers), Failure> {
    loop {
        let client = connect::connect(config.clone()).await?;
        let nodes = client.node_statuses().await;
        let map = client.cluster_map();
        client.close().await;
        // Right after a change a node may not have met the new map yet: then another one is asked for it.
        let newer = nodes
            .iter()
            .filter_map(|(node, status)| Some((status.as_ref().ok()?, node)))
            .find(|(status, _)| (status.lineage, status.epoch) > map.version());
        match newer {
            Some((_, node)) if config.addresses != [node.address.as_str()] => {
                config.addresses = vec![node.address.clone()];
            }
            _ => return Ok((map, nodes)),
        }
    }
}

type Answers = Vec<(NodeEntry, Result<NodeStatus, GetError>)>;
type Nodes = [(NodeEntry, Result<NodeStatus, GetError>)];

/// Of the nodes that answered.
fn total(nodes: &Nodes, of: impl Fn(&NodeStatus) -> u64) -> u64 {
    let answers = nodes.iter().filter_map(|(_, status)| status.as_ref().ok());
    answers.map(of).sum()
}

fn owned_ranges(map: &ClusterMap, node: &NodeEntry) -> usize {
    let owned = map.ranges.iter().filter(|range| range.owner == node.id);
    owned.count()
}

const fn state_text(state: NodeState) -> &'static str {
    match state {
        NodeState::Active => "active",
        NodeState::Leaving => "leaving",
    }
}

fn as_text(map: &ClusterMap, nodes: &Nodes) -> String {
    let silent = nodes.iter().filter(|(_, status)| status.is_err()).count();
    let mut text = String::new();
    let _ = writeln!(text, "cluster     {}", map.cluster_id);
    let _ = writeln!(text, "epoch       {} (lineage {})", map.epoch, map.lineage);
    let _ = writeln!(
        text,
        "durability  {}: {}",
        map.durability,
        durability_meaning(map.durability)
    );
    let _ = writeln!(text, "ranges      {}", map.ranges.len());
    let _ = writeln!(
        text,
        "keys        {}, {} of memory{}\n",
        thousands(total(nodes, |status| status.keys)),
        bytes_text(total(nodes, |status| status.key_bytes)),
        match silent {
            0 => String::new(),
            1 => ", without the node that did not answer".to_owned(),
            several => format!(", without the {several} nodes that did not answer"),
        }
    );
    let header = [
        ("NODE", Align::Right),
        ("ADDRESS", Align::Left),
        ("STATE", Align::Left),
        ("RANGES", Align::Right),
        ("KEYS", Align::Right),
        ("KEY MEMORY", Align::Right),
        ("PROCESS", Align::Right),
        ("EPOCH", Align::Right),
        ("STARTED", Align::Left),
        ("INCARNATION", Align::Left),
    ];
    let rows: Vec<Vec<String>> = nodes
        .iter()
        .map(|(node, status)| {
            let answered = |of: &dyn Fn(&NodeStatus) -> String| {
                status.as_ref().map_or_else(|_| "-".to_owned(), of)
            };
            vec![
                node.id.to_string(),
                node.address.clone(),
                if status.is_ok() {
                    state_text(node.state).to_owned()
                } else {
                    "unreachable".to_owned()
                },
                owned_ranges(map, node).to_string(),
                answered(&|status| thousands(status.keys)),
                answered(&|status| bytes_text(status.key_bytes)),
                answered(&|status| match status.process_bytes {
                    0 => "-".to_owned(),
                    bytes => bytes_text(bytes),
                }),
                answered(&|status| status.epoch.to_string()),
                answered(&|status| time_text(status.started.0)),
                answered(&|status| status.incarnation.to_string()),
            ]
        })
        .collect();
    text.push_str(&table(&header, &rows));
    for (node, status) in nodes {
        if let Err(error) = status {
            let _ = writeln!(text, "node {} did not answer: {error}", node.id);
        }
        if let Some(loss) = loss_text(node) {
            let _ = writeln!(text, "node {} {loss}", node.id);
        }
    }
    text
}

/// What a node's restarts have cost.
fn loss_text(node: &NodeEntry) -> Option<String> {
    let times = match node.loss_count {
        0 => return None,
        1 => "once".to_owned(),
        count => format!("{count} times"),
    };
    let last = node
        .last_loss_ms
        .map_or_else(String::new, |at| format!(", last at {}", time_text(at.0)));
    Some(format!("lost its keys {times}{last}"))
}

fn as_json(map: &ClusterMap, nodes: &Nodes) -> Value {
    let node_json = |(node, status): &(NodeEntry, Result<NodeStatus, GetError>)| {
        let mut value = json!({
            "id": node.id,
            "address": node.address,
            "state": state_text(node.state),
            "reachable": status.is_ok(),
            "owned_ranges": owned_ranges(map, node),
            "loss_count": node.loss_count,
            "last_loss_unix_ms": node.last_loss_ms,
        });
        match status {
            Ok(status) => {
                value["incarnation"] = json!(status.incarnation);
                value["epoch"] = json!(status.epoch);
                value["started_unix_ms"] = json!(status.started);
                value["keys"] = json!(status.keys);
                value["key_bytes"] = json!(status.key_bytes);
                value["process_bytes"] = json!(status.process_bytes);
                value["answer_bytes"] = json!(status.answer_bytes);
                value["answer_operations"] = json!(status.answer_operations);
                value["requests_in_flight"] = json!(status.requests_in_flight);
                value["ranges"] = status
                    .ranges
                    .iter()
                    .map(|range| {
                        json!({"id": range.id, "generation": range.generation, "keys": range.keys})
                    })
                    .collect();
            }
            Err(error) => value["error"] = json!(error.to_string()),
        }
        value
    };
    json!({
        "cluster_id": map.cluster_id,
        "lineage": map.lineage,
        "epoch": map.epoch,
        "durability": map.durability,
        "durability_meaning": durability_meaning(map.durability),
        "ranges": map.ranges.len(),
        "keys": total(nodes, |status| status.keys),
        "key_bytes": total(nodes, |status| status.key_bytes),
        "nodes": nodes.iter().map(node_json).collect::<Vec<_>>(),
    })
}
