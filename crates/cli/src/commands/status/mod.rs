//! `keydb status`: what a cluster is and holds.

mod watch;

use std::{collections::BTreeMap, fmt::Write, process::ExitCode, sync::Arc, time::Duration};

use clap::Args;
use keydb_client::{
    ClientConfig, DiskStatus, GetError, NodeStatus, RangeState, RangeStatus, ScaleProgress,
};
use keydb_core::{ClusterMap, Durability, NodeEntry, NodeState, RangeId, UnixMillis};
use serde_json::{Value, json};

use super::{durability_meaning, scale::operations};
use crate::{
    args::ConnectArgs,
    connect,
    exit::{Code, Failure},
    output::{Align, answer, bytes_text, table, thousands, time_text},
    settings,
};

const EXAMPLES: &str = "\
Exits with 3 when a node did not answer.

Examples:
  keydb status
  keydb status --json | jq .keys
  keydb status --watch                       every 2 s, with how many keys a second were asked for
  keydb status --watch=10s --json >> status.jsonl";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct StatusArgs {
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Show it again and again, until Ctrl-C; as JSON, an object a line
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "2s", value_parser = every)]
    pub(crate) watch: Option<Duration>,
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

pub(crate) fn run(args: &StatusArgs) -> Result<ExitCode, Failure> {
    let config = connect::config(&args.connect)?;
    if let Some(every) = args.watch {
        connect::runtime()?.block_on(watch::run(config, every, args.json))?;
        return Ok(ExitCode::SUCCESS);
    }
    let (map, nodes) = connect::runtime()?.block_on(ask(config))?;
    answer(
        args.json,
        || as_json(&map, &nodes),
        || as_text(&map, &nodes, ""),
    )?;
    let all_answered = nodes.iter().all(|(_, status)| status.is_ok());
    Ok(Code::Unreachable.unless(all_answered))
}

/// How often it is shown.
fn every(text: &str) -> Result<Duration, String> {
    let every = settings::duration(text)?;
    match every < Duration::from_millis(100) {
        true => Err("give 100ms or more".to_owned()),
        false => Ok(every),
    }
}

/// The newest map that any node goes by, and what its members say.
async fn ask(mut config: ClientConfig) -> Result<(Arc<ClusterMap>, Answers), Failure> {
    loop {
        let client = connect::connect(config.clone()).await?;
        let nodes = client.node_statuses().await;
        let map = client.cluster_map();
        client.close(Duration::ZERO).await;
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

/// For people; `rates` is a line, or nothing.
fn as_text(map: &ClusterMap, nodes: &Nodes, rates: &str) -> String {
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
    if let Some(progress) = ScaleProgress::of(map) {
        let (to, line) = (progress.addresses.join(", "), operations::line(&progress));
        let _ = writeln!(text, "scaling     to {to}: {line}");
    }
    let _ = writeln!(
        text,
        "keys        {}, {} of memory{}\n{rates}",
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
        let mut lines = Vec::new();
        match status {
            Ok(status) => lines = node_lines(status),
            Err(error) => lines.push(format!("did not answer: {error}")),
        }
        lines.extend(loss_text(node, map.durability));
        for line in lines {
            let _ = writeln!(text, "node {} {line}", node.id);
        }
    }
    text
}

/// How many ranges a message names at most.
const RANGES_NAMED_MAX: usize = 8;

/// What is to be said of a node besides its row.
fn node_lines(status: &NodeStatus) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(disk) = &status.disk {
        lines.push(disk_text(disk, status.time));
    }
    let ranges = status.ranges.iter();
    let loading = ranges.filter(|range| matches!(range.state, RangeState::Loading));
    let loading: Vec<RangeId> = loading.map(|range| range.id).collect();
    if !loading.is_empty() {
        lines.push(format!(
            "is loading {} of {} hash ranges: {}",
            loading.len(),
            status.ranges.len(),
            some_of(&loading)
        ));
    }
    // Of many ranges the reason is usually the same.
    let mut closed: BTreeMap<&str, Vec<RangeId>> = BTreeMap::new();
    for range in &status.ranges {
        if let RangeState::Closed { reason } = &range.state {
            closed.entry(reason).or_default().push(range.id);
        }
    }
    for (reason, ranges) in closed {
        lines.push(format!(
            "does not answer for {} of {} hash ranges ({}): {reason}",
            ranges.len(),
            status.ranges.len(),
            some_of(&ranges)
        ));
    }
    if status.memory_limit_bytes > 0 {
        lines.push(format!(
            "uses {} of its memory limit of {}",
            bytes_text(status.key_bytes),
            bytes_text(status.memory_limit_bytes)
        ));
    }
    if status.shed_keys > 0 {
        lines.push(format!(
            "has forgotten {} keys before their time, because of its memory limit",
            thousands(status.shed_keys)
        ));
    }
    lines.extend(
        status
            .warnings
            .iter()
            .map(|warning| format!("warns: {warning}")),
    );
    lines
}

fn some_of(ranges: &[RangeId]) -> String {
    let named: Vec<String> = ranges
        .iter()
        .take(RANGES_NAMED_MAX)
        .map(RangeId::to_string)
        .collect();
    let more = if ranges.len() > named.len() {
        ", …"
    } else {
        ""
    };
    format!("{}{more}", named.join(", "))
}

fn disk_text(disk: &DiskStatus, now: UnixMillis) -> String {
    let ago = |time: Option<UnixMillis>, what: &str| match time {
        Some(time) => format!("{what} complete to {} ago", age_text(now, time)),
        None => format!("nothing in {what} yet"),
    };
    format!(
        "{}, {}; journal {}, snapshots {}{}",
        ago(disk.uploaded_complete_to, "object storage"),
        ago(disk.local_complete_to, "local snapshots"),
        bytes_text(disk.journal_bytes),
        bytes_text(disk.snapshot_bytes),
        if disk.full {
            format!(
                "; THE DISK IS FULL, so writes are refused until {} are free",
                bytes_text(disk.room_wanted_bytes)
            )
        } else {
            String::new()
        }
    )
}

/// How long ago `time` was, in the largest unit that leaves at least 1.
fn age_text(now: UnixMillis, time: UnixMillis) -> String {
    let seconds = now.0.saturating_sub(time.0) / 1000;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// What a node's restarts have cost.
fn loss_text(node: &NodeEntry, durability: Durability) -> Option<String> {
    let times = match node.loss_count {
        0 => return None,
        1 => "once".to_owned(),
        count => format!("{count} times"),
    };
    let last = node
        .last_loss_ms
        .map_or_else(String::new, |at| format!(", last at {}", time_text(at.0)));
    let what = match durability {
        Durability::Memory => "lost its keys",
        _ => "was given up, with what it had acknowledged and no snapshot had,",
    };
    Some(format!("{what} {times}{last}"))
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
            Ok(status) => add_status(&mut value, status),
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
        "operation": ScaleProgress::of(map).as_ref().map(operations::as_json),
        "nodes": nodes.iter().map(node_json).collect::<Vec<_>>(),
    })
}

fn add_status(value: &mut Value, status: &NodeStatus) {
    value["incarnation"] = json!(status.incarnation);
    value["epoch"] = json!(status.epoch);
    value["started_unix_ms"] = json!(status.started);
    value["keys"] = json!(status.keys);
    value["key_bytes"] = json!(status.key_bytes);
    value["process_bytes"] = json!(status.process_bytes);
    value["answer_bytes"] = json!(status.answer_bytes);
    value["answer_operations"] = json!(status.answer_operations);
    value["requests_in_flight"] = json!(status.requests_in_flight);
    for (operation, counts) in [
        ("gets", status.gets),
        ("puts", status.puts),
        ("claims", status.claims),
    ] {
        value[operation] = json!({"requests": counts.requests, "keys": counts.keys});
    }
    value["ranges"] = status.ranges.iter().map(range_json).collect();
    value["memory_limit_bytes"] = json!(status.memory_limit_bytes);
    value["shed_keys"] = json!(status.shed_keys);
    value["warnings"] = json!(status.warnings);
    let disk = status.disk.as_ref();
    value["disk"] = disk.map_or(Value::Null, |disk| disk_json(disk, status.time));
}

fn range_json(range: &RangeStatus) -> Value {
    let mut value = json!({
        "id": range.id,
        "generation": range.generation,
        "keys": range.keys,
        "state": match range.state {
            RangeState::Ready => "ready",
            RangeState::Loading => "loading",
            RangeState::Closed { .. } => "closed",
            RangeState::Arriving => "arriving",
            RangeState::Secured => "secured",
            RangeState::HandedOver => "handed_over",
            _ => "unknown",
        },
    });
    if let RangeState::Closed { reason } = &range.state {
        value["reason"] = json!(reason);
    }
    value
}

fn disk_json(disk: &DiskStatus, now: UnixMillis) -> Value {
    let uploaded = disk.uploaded_complete_to;
    json!({
        "disk_id": disk.disk_id,
        "lsn": disk.lsn,
        "synced_lsn": disk.synced_lsn,
        "local_lsn": disk.local_lsn,
        "uploaded_lsn": disk.uploaded_lsn,
        "local_complete_to_unix_ms": disk.local_complete_to,
        "uploaded_complete_to_unix_ms": uploaded,
        "uploaded_age_ms": uploaded.map(|time| now.0.saturating_sub(time.0)),
        "journal_bytes": disk.journal_bytes,
        "snapshot_bytes": disk.snapshot_bytes,
        "full": disk.full,
        "room_wanted_bytes": disk.room_wanted_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_in_a_unit_that_fits() {
        let age = |seconds: u64| {
            age_text(
                UnixMillis(200_000_000 * 1000 + seconds * 1000 + 999),
                UnixMillis(200_000_000 * 1000),
            )
        };
        assert_eq!(age(14), "14 s");
        assert_eq!(age(300), "5 min");
        assert_eq!(age(7200), "2 h");
        assert_eq!(age(200_000), "2 days");
        // Clocks may differ a little.
        assert_eq!(age_text(UnixMillis(5), UnixMillis(9000)), "0 s");
    }

    #[test]
    fn of_many_ranges_some_are_named() {
        let ranges = |count: u32| (0..count).map(RangeId).collect::<Vec<_>>();
        assert_eq!(some_of(&ranges(2)), "0, 1");
        assert_eq!(some_of(&ranges(20)), "0, 1, 2, 3, 4, 5, 6, 7, …");
    }
}
