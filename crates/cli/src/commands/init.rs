//! `keydb init`: creates the cluster that the settings describe.

use std::{fmt::Write, process::ExitCode};

use clap::Args;
use keydb_core::{ClusterMap, NewCluster};
use keydb_storage::{Init, InitError, MapStore};
use serde_json::json;

use super::durability_meaning;
use crate::{
    connect,
    exit::Failure,
    output::{answer, say},
    settings::{self, Settings},
};

const EXAMPLES: &str = "\
Examples:
  KEYDB_NODE_ADDRESSES=keydb-0:50051,keydb-1:50051,keydb-2:50051 KEYDB_STORAGE_URL=file:///srv/keydb keydb init

  KEYDB_DURABILITY=memory KEYDB_NODE_ADDRESSES=localhost:50051 keydb init

Settings: KEYDB_NODE_ADDRESSES (a node's place in the list is its id), KEYDB_TOTAL_HASH_RANGES (128), KEYDB_STORAGE_URL
(./keydb-storage; or KEYDB_STORAGE_BUCKET and so on, see `keydb node --help`), KEYDB_DURABILITY, which stays as it is for good:
  journal   (default) nothing that was acknowledged is ever lost
  snapshot  a crash loses at most what came since the last snapshot
  memory    nothing is kept; a node that stops forgets its keys";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct InitArgs {
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &InitArgs) -> Result<ExitCode, Failure> {
    let settings = settings::load()?;
    settings.required_addresses()?;
    connect::announce(&settings);
    let runtime = connect::runtime()?;
    let made = runtime.block_on(create(&settings))?;
    let (map, created) = match &made {
        Init::Created(map) => (map, true),
        Init::Existing(map) => (map, false),
    };
    for difference in settings.differences(map) {
        say(&format!("warning: {difference}"));
    }
    let storage = settings.storage_text();
    let as_json = || {
        json!({
            "created": created,
            "cluster_id": map.cluster_id,
            "storage": storage,
            "durability": map.durability,
            "durability_meaning": durability_meaning(map.durability),
            "ranges": map.ranges.len(),
            "nodes": map.nodes.iter().map(|node| json!({
                "id": node.id,
                "address": node.address,
                "ranges": ranges_of(map, node.id),
            })).collect::<Vec<_>>(),
        })
    };
    answer(args.json, as_json, || describe(map, created, &storage))?;
    Ok(ExitCode::SUCCESS)
}

/// Creates the cluster in its storage, unless it exists.
pub(super) async fn create(settings: &Settings) -> Result<Init, Failure> {
    let new = NewCluster {
        addresses: settings.required_addresses()?.to_vec(),
        range_count: settings.total_hash_ranges.value,
        durability: settings.durability.value,
    };
    let storage = settings.create_storage()?;
    MapStore::new(storage).init(&new).await.map_err(|error| {
        let message = format!(
            "cannot create the cluster in {}: {error}",
            settings.storage_text()
        );
        match error {
            InitError::Invalid(_) => Failure::usage(message),
            _ => Failure::failed(message),
        }
    })
}

fn describe(map: &ClusterMap, created: bool, storage: &str) -> String {
    let id = map.cluster_id;
    let mut text = if created {
        format!("created cluster {id} in {storage}\n")
    } else {
        format!("cluster {id} exists already in {storage}; nothing was changed\n")
    };
    for node in &map.nodes {
        let ranges = ranges_of(map, node.id);
        let _ = writeln!(
            text,
            "  node {}  {}  {ranges} hash ranges",
            node.id, node.address
        );
    }
    let _ = writeln!(
        text,
        "durability {}: {}",
        map.durability,
        durability_meaning(map.durability)
    );
    text
}

fn ranges_of(map: &ClusterMap, node: keydb_core::NodeId) -> usize {
    map.ranges
        .iter()
        .filter(|range| range.owner == node)
        .count()
}
