//! `keydb recover --node`: gives up a node's lost disk.

use std::{process::ExitCode, sync::Arc, time::Duration};

use keydb_core::{ClusterMap, Incarnation, Manifest, NodeEntry, NodeId, UnixMillis};
use keydb_storage::{MapStore, ObjectStorage, Put, SnapshotStore, manifest_key};
use serde_json::json;

use super::{args::RecoverArgs, probe};
use crate::{
    exit::{Code, Failure},
    output::answer,
};

/// What is known of a node whose disk is to be given up.
struct Found {
    map: ClusterMap,
    disk: Option<Incarnation>,
    /// Up to when object storage has what the node acknowledged.
    complete_to: Option<UnixMillis>,
    /// One of the node's snapshot objects, where there is no manifest that names them.
    unnamed: Option<String>,
}

pub(super) async fn run(
    node: NodeId,
    args: &RecoverArgs,
    storage: Arc<dyn ObjectStorage>,
    text: &str,
) -> Result<ExitCode, Failure> {
    let maps = MapStore::new(Arc::clone(&storage));
    let key = manifest_key(node);
    let Found {
        map,
        disk,
        complete_to,
        unnamed,
    } = look(&maps, node, &key, text).await?;
    let kept = match &unnamed {
        Some(object) => format!(
            "Object storage has snapshot objects of it, such as {object}, but not the manifest {key} that names them: it was removed. \
             A bucket with versioning still has it; put it back if you can. Without it all of the node's keys are lost."
        ),
        None => kept_text(complete_to),
    };
    let what = disk.map_or_else(
        || format!("node {node}"),
        |disk| format!("the disk {disk} of node {node}"),
    );
    if !args.accept_loss {
        return Err(Failure::usage(format!(
            "{what} would be given up, with everything that object storage does not have of it.\n{kept}\n\
             Nothing was changed. If it is lost for good: keydb recover --node {node} --accept-loss"
        )));
    }
    if unnamed.is_some() {
        let gone = disk.unwrap_or_else(Incarnation::random);
        let empty = Manifest::new(map.cluster_id, map.lineage, node, gone);
        let put = storage.put_if_absent(&key, empty.to_json().into()).await;
        let put = put.map_err(|error| {
            Failure::new(
                Code::Unreachable,
                format!("cannot write {key} in {text}: {error}"),
            )
        })?;
        if let Put::Conflict = put {
            return Err(Failure::failed(format!(
                "{key} is there again; nothing was changed"
            )));
        }
    }
    let changed = match disk {
        Some(disk) => give_up(&maps, &map, node, disk).await?,
        None => map,
    };
    let as_json = || {
        json!({
            "node": node,
            "disk_id": disk,
            "complete_to_unix_ms": complete_to,
            "complete_to": complete_to.map(|time| time.to_string()),
            "loss_count": changed.node(node).map_or(0, |entry| entry.loss_count),
            "epoch": changed.epoch,
        })
    };
    answer(args.json, as_json, || {
        format!(
            "{what} is given up.\n{kept}\n\
             Start the node with an empty data directory; it loads that from object storage.\n"
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Looks whether `node` has a disk that can be given up, and what there is without it.
async fn look(maps: &MapStore, node: NodeId, key: &str, text: &str) -> Result<Found, Failure> {
    let unreadable = |what: &str, error: &dyn std::fmt::Display| {
        Failure::new(
            Code::Unreachable,
            format!("cannot read {what} in {text}: {error}"),
        )
    };
    let map = maps
        .load()
        .await
        .map_err(|error| unreadable("the cluster map", &error))?
        .ok_or_else(|| {
            Failure::failed(format!(
                "there is no cluster in {text}: no cluster map is there"
            ))
        })?;
    let entry = map.node(node).ok_or_else(|| {
        let ids: Vec<String> = map.nodes.iter().map(|node| node.id.to_string()).collect();
        Failure::usage(format!(
            "the cluster has no node {node}; its nodes are {}",
            ids.join(", ")
        ))
    })?;
    if !map.durability.has_disk() {
        return Err(Failure::usage(
            "durability is memory: a node keeps nothing, and takes its place again by itself when it is started",
        ));
    }
    let storage = maps.storage();
    let object = storage.get(key).await;
    let object = object.map_err(|error| unreadable(key, &error))?;
    let unnamed = match object {
        Some(_) => None,
        None => SnapshotStore::new(Arc::clone(storage))
            .first_object(node)
            .await
            .map_err(|error| unreadable("the node's snapshot objects", &error))?,
    };
    let disk = entry.disk_id;
    match disk {
        Some(disk) => refuse_if_it_answers(&map, entry, disk).await?,
        None if unnamed.is_none() => {
            return Err(Failure::usage(format!(
                "node {node} has no disk that could be lost: the cluster map waits for its first start, or for the one after an earlier `keydb recover`"
            )));
        }
        None => {}
    }
    let manifest = object.map(|object| Manifest::from_json(&object.bytes));
    let manifest = manifest.transpose().map_err(|error| {
        Failure::failed(format!(
            "{key} in {text}: {error}; the node could not start from it"
        ))
    })?;
    Ok(Found {
        map,
        disk,
        complete_to: manifest.and_then(|manifest| manifest.complete_to()),
        unnamed,
    })
}

/// Up to when the node's data reach without its disk.
fn kept_text(complete_to: Option<UnixMillis>) -> String {
    match complete_to {
        Some(time) => format!(
            "Object storage has everything that it acknowledged up to {time}; what it acknowledged later is lost."
        ),
        None => "Object storage has nothing of it: all of its keys are lost.".to_owned(),
    }
}

/// A node that runs has its disk.
async fn refuse_if_it_answers(
    map: &ClusterMap,
    entry: &NodeEntry,
    disk: Incarnation,
) -> Result<(), Failure> {
    let Ok(client) = probe::connect(&entry.address).await else {
        return Ok(());
    };
    let same_cluster = client.cluster_map().cluster_id == map.cluster_id;
    let statuses = client.node_statuses().await;
    client.close(Duration::ZERO).await;
    let runs = statuses.into_iter().any(|(member, status)| {
        let answered = status.ok().filter(|status| status.node == entry.id);
        member.id == entry.id
            && answered.is_some_and(|status| status.disk.is_some_and(|found| found.disk_id == disk))
    });
    if runs && same_cluster {
        return Err(Failure::failed(format!(
            "node {} answers at {}, with the disk {disk}: nothing is lost. Stop it first if its disk is to be given up",
            entry.id, entry.address
        )));
    }
    Ok(())
}

/// Why the map was left as it is.
#[derive(Debug, thiserror::Error)]
#[error("the cluster map has changed in the meantime: the node has another disk now")]
struct Outdated;

/// Takes the disk out of the map, on condition that it is still the one that was looked at.
async fn give_up(
    maps: &MapStore,
    seen: &ClusterMap,
    node: NodeId,
    disk: Incarnation,
) -> Result<ClusterMap, Failure> {
    let now = maps.storage().now().await.map_err(|error| {
        Failure::new(
            Code::Unreachable,
            format!("the cluster map was not changed: {error}"),
        )
    })?;
    let loss_count = seen.node(node).map_or(0, |entry| entry.loss_count);
    let change = |current: &ClusterMap| {
        let mut next = current.successor();
        let entry = next.node_mut(node).ok_or(Outdated)?;
        if current.cluster_id != seen.cluster_id || entry.disk_id != Some(disk) {
            return Err(Outdated);
        }
        entry.disk_id = None;
        entry.loss_count = entry.loss_count.max(loss_count).saturating_add(1);
        entry.last_loss_ms = Some(now);
        Ok(Some(next))
    };
    maps.update(change).await.map_err(|error| {
        Failure::new(
            Code::of_update(&error),
            format!("the cluster map was not changed: {error}"),
        )
    })
}
