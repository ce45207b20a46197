//! `keydb snapshot verify`: reads everything that object storage has.

use std::{collections::BTreeSet, process::ExitCode};

use keydb_core::{ClusterMap, Manifest, ManifestFile, NodeId, Origin};
use keydb_storage::{SnapshotReadError, manifest_key, object_key};
use serde_json::{Value, json};

use super::{
    args::VerifyArgs,
    store::{Store, complete_to_text},
};
use crate::{
    connect,
    exit::{Code, Failure},
    output::{answer, bytes_text, say, thousands},
};

/// What was found of one node.
#[derive(Debug)]
struct Found {
    node: NodeId,
    /// `None`: there is none that can be used.
    manifest: Option<Manifest>,
    objects: usize,
    entries: u64,
    bytes: u64,
    /// Keys of objects, and what is wrong with them.
    problems: Vec<(String, String)>,
}

pub(super) fn run(args: &VerifyArgs) -> Result<ExitCode, Failure> {
    let store = Store::open(&connect::settings()?)?;
    let only = args.node.map(NodeId);
    let found = connect::runtime()?.block_on(verify(&store, only))?;
    let whole = found.iter().all(|node| node.problems.is_empty());
    answer(
        args.json,
        || json!({"whole": whole, "nodes": found.iter().map(as_json).collect::<Vec<_>>()}),
        || found.iter().map(as_text).collect(),
    )?;
    if !whole {
        say("keydb: object storage is not whole; docs/operations.md says what to do");
    }
    Ok(Code::Failed.unless(whole))
}

async fn verify(store: &Store, only: Option<NodeId>) -> Result<Vec<Found>, Failure> {
    let map = store.map().await?;
    if let Some(node) = only
        && map.node(node).is_none()
    {
        return Err(Failure::usage(format!("the cluster has no node {node}")));
    }
    // A node that has left may still have a manifest that others' ranges were made from; all that are there count.
    let mut nodes: BTreeSet<NodeId> = map.nodes.iter().map(|node| node.id).collect();
    let manifests = store.snapshots.manifests().await;
    for (_, manifest) in manifests.map_err(|error| store.failure(&error))? {
        nodes.extend(manifest.ok().map(|manifest| manifest.node));
    }
    let mut found = Vec::new();
    for node in nodes {
        if only.is_none_or(|only| only == node) {
            found.push(verify_node(store, &map, node).await?);
        }
    }
    Ok(found)
}

async fn verify_node(store: &Store, map: &ClusterMap, node: NodeId) -> Result<Found, Failure> {
    let key = manifest_key(node);
    let mut found = Found {
        node,
        manifest: None,
        objects: 0,
        entries: 0,
        bytes: 0,
        problems: Vec::new(),
    };
    let mut manifest = match own_manifest(store, map, node).await {
        Ok(manifest) => manifest,
        Err(SnapshotReadError::Storage(error)) => return Err(store.failure(&error)),
        Err(error) => {
            found.problems.push((key, error.to_string()));
            return Ok(found);
        }
    };
    let mut files: Vec<ManifestFile> = manifest.files.clone();
    let mut read_again = true;
    while let Some(file) = files.pop() {
        let object = object_key(node, &file.name);
        let origin = Origin::from(map);
        let read = store.snapshots.read(node, &file, origin, |_| Ok(()));
        match read.await {
            Ok(_) => {
                found.objects += 1;
                found.entries += file.entries;
                found.bytes += file.size_bytes;
            }
            Err(SnapshotReadError::Storage(error)) => return Err(store.failure(&error)),
            // The node may have replaced it in the meantime: then its newer manifest counts.
            Err(SnapshotReadError::Missing) if read_again => {
                read_again = false;
                let newer = match own_manifest(store, map, node).await {
                    Ok(newer) => newer,
                    Err(SnapshotReadError::Storage(error)) => return Err(store.failure(&error)),
                    Err(error) => {
                        found
                            .problems
                            .push((object, SnapshotReadError::Missing.to_string()));
                        found.problems.push((key, error.to_string()));
                        return Ok(found);
                    }
                };
                let known: BTreeSet<String> = manifest
                    .files
                    .iter()
                    .map(|file| file.name.clone())
                    .collect();
                files.retain(|file| newer.file(&file.name).is_some());
                let new = newer
                    .files
                    .iter()
                    .filter(|file| !known.contains(&file.name));
                files.extend(new.cloned());
                if newer.file(&file.name).is_some() {
                    files.push(file);
                }
                manifest = newer;
            }
            Err(error) => found.problems.push((object, error.to_string())),
        }
    }
    found.manifest = Some(manifest);
    Ok(found)
}

async fn own_manifest(
    store: &Store,
    map: &ClusterMap,
    node: NodeId,
) -> Result<Manifest, SnapshotReadError> {
    let found = store.snapshots.manifest(map.cluster_id, node).await?;
    found
        .map(|(manifest, _)| manifest)
        .ok_or(SnapshotReadError::Missing)
}

fn as_text(found: &Found) -> String {
    let mut text = match &found.manifest {
        Some(manifest) => format!(
            "node {}  {} objects, {} entries, {}: {}, complete to {}\n",
            found.node,
            found.objects,
            thousands(found.entries),
            bytes_text(found.bytes),
            if found.problems.is_empty() {
                "whole"
            } else {
                "NOT WHOLE"
            },
            complete_to_text(manifest)
        ),
        None => format!("node {}  NOTHING that can be used\n", found.node),
    };
    for (key, problem) in &found.problems {
        text.push_str(&format!("  {key}: {problem}\n"));
    }
    text
}

fn as_json(found: &Found) -> Value {
    let problems = found.problems.iter();
    json!({
        "node": found.node,
        "complete_to_unix_ms": found.manifest.as_ref().and_then(Manifest::complete_to),
        "objects": found.objects,
        "entries": found.entries,
        "bytes": found.bytes,
        "problems": problems
            .map(|(key, problem)| json!({"object": key, "problem": problem}))
            .collect::<Vec<_>>(),
    })
}
