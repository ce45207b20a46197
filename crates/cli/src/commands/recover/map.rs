//! `keydb recover --map`: puts the cluster map back that object storage has lost.

use std::{path::Path, process::ExitCode, sync::Arc, time::Duration};

use futures_util::future::join_all;
use keydb_core::ClusterMap;
use keydb_node::saved_map;
use keydb_storage::{MapStore, ObjectStorage};
use serde_json::json;

use super::{args::RecoverArgs, probe};
use crate::{
    exit::{Code, Failure},
    output::{answer, say},
    settings::Settings,
};

/// A map that somebody has kept, and who.
struct Found {
    map: ClusterMap,
    source: String,
}

pub(super) async fn run(
    args: &RecoverArgs,
    settings: &Settings,
    storage: Arc<dyn ObjectStorage>,
    text: &str,
) -> Result<ExitCode, Failure> {
    let mut found = Vec::new();
    for dir in &args.data_dirs {
        found.push(read(dir)?.ok_or_else(|| {
            Failure::usage(format!(
                "--data-dir {}: there is no map.json; a node that was a member of the cluster has one in its data directory",
                dir.display()
            ))
        })?);
    }
    found.extend(read(&settings.data_dir.value)?);
    let addresses = settings.node_addresses.value.as_deref().unwrap_or_default();
    found.extend(ask(addresses).await);
    let newest = newest(found)?;
    let restored = MapStore::new(storage)
        .restore(&newest.map)
        .await
        .map_err(|error| {
            Failure::new(
                Code::of_update(&error),
                format!("the map was not put into {text}: {error}"),
            )
        })?;
    let there = &restored.map;
    let (lineage, epoch) = there.version();
    let as_json = || {
        json!({
            "restored": restored.written,
            "source": newest.source,
            "cluster_id": there.cluster_id,
            "lineage": lineage,
            "epoch": epoch,
        })
    };
    let as_text = || {
        let map = format!(
            "the map of cluster {} (lineage {lineage}, epoch {epoch})",
            there.cluster_id
        );
        match restored.written {
            true => format!("{map}, as {} has it, is back in {text}\n", newest.source),
            false => format!("{text} has {map}, and nobody has a newer one; nothing was changed\n"),
        }
    };
    answer(args.json, as_json, as_text)?;
    Ok(ExitCode::SUCCESS)
}

/// The map that the node of this data directory kept.
fn read(dir: &Path) -> Result<Option<Found>, Failure> {
    let map = saved_map(dir).map_err(|error| Failure::failed(error.to_string()))?;
    Ok(map.map(|map| Found {
        map,
        source: dir.join("map.json").display().to_string(),
    }))
}

/// The maps that running nodes go by.
async fn ask(addresses: &[String]) -> Vec<Found> {
    let answers = addresses
        .iter()
        .map(async |address| match probe::connect(address).await {
            Ok(client) => {
                let map = ClusterMap::clone(&client.cluster_map());
                client.close(Duration::ZERO).await;
                let source = format!("the node at {address}");
                Some(Found { map, source })
            }
            Err(error) => {
                say(&format!("warning: {address} was not asked: {error}"));
                None
            }
        });
    join_all(answers).await.into_iter().flatten().collect()
}

/// The newest of one cluster's maps.
fn newest(found: Vec<Found>) -> Result<Found, Failure> {
    let first = found
        .first()
        .map(|found| (found.map.cluster_id, found.source.clone()));
    if let Some((cluster, source)) = first
        && let Some(other) = found.iter().find(|it| it.map.cluster_id != cluster)
    {
        return Err(Failure::usage(format!(
            "{source} has the map of cluster {cluster}, and {} that of cluster {}: name the directories and nodes of one cluster only",
            other.source, other.map.cluster_id
        )));
    }
    found
        .into_iter()
        .max_by_key(|found| found.map.version())
        .ok_or_else(|| {
            Failure::usage(
                "nobody has a cluster map: name running nodes with KEYDB_NODE_ADDRESSES, or nodes' data directories with --data-dir",
            )
        })
}
