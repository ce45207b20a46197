//! `keydb snapshot list`: what object storage has, and up to when.

use std::{fmt::Write, process::ExitCode};

use keydb_core::{ClusterMap, Manifest, SnapshotKind};
use keydb_storage::SnapshotReadError;
use serde_json::{Value, json};

use super::{
    args::ListArgs,
    store::{Store, complete_to_text},
};
use crate::{
    connect,
    exit::{Code, Failure},
    output::{Align, answer, bytes_text, table, thousands},
};

type Manifests = Vec<(String, Result<Manifest, SnapshotReadError>)>;

pub(super) fn run(args: &ListArgs) -> Result<ExitCode, Failure> {
    let store = Store::open(&connect::settings()?)?;
    let (map, manifests) = connect::runtime()?.block_on(async {
        let manifests = store.snapshots.manifests().await;
        let manifests = manifests.map_err(|error| store.failure(&error))?;
        Ok::<_, Failure>((store.map().await?, manifests))
    })?;
    answer(
        args.json,
        || as_json(&map, &manifests, &store.text),
        || as_text(&map, &manifests, &store.text),
    )?;
    let all_read = manifests.iter().all(|(_, manifest)| manifest.is_ok());
    Ok(Code::Failed.unless(all_read))
}

fn count(manifest: &Manifest, kind: SnapshotKind) -> usize {
    let files = manifest.files.iter();
    files.filter(|file| file.kind == kind).count()
}

fn as_text(map: &ClusterMap, manifests: &Manifests, storage: &str) -> String {
    let mut text = format!("cluster {} in {storage}\n\n", map.cluster_id);
    let header = [
        ("NODE", Align::Right),
        ("COMPLETE TO", Align::Left),
        ("LSN", Align::Right),
        ("FULL", Align::Right),
        ("DELTAS", Align::Right),
        ("ENTRIES", Align::Right),
        ("SIZE", Align::Right),
        ("DISK", Align::Left),
    ];
    let good = manifests
        .iter()
        .filter_map(|(_, manifest)| manifest.as_ref().ok());
    let rows: Vec<Vec<String>> = good
        .map(|manifest| {
            vec![
                manifest.node.to_string(),
                complete_to_text(manifest),
                manifest.lsn.to_string(),
                count(manifest, SnapshotKind::Full).to_string(),
                count(manifest, SnapshotKind::Delta).to_string(),
                thousands(manifest.files.iter().map(|file| file.entries).sum()),
                bytes_text(manifest.files.iter().map(|file| file.size_bytes).sum()),
                manifest.disk_id.to_string(),
            ]
        })
        .collect();
    if rows.is_empty() {
        text.push_str("no snapshots\n");
    } else {
        text.push_str(&table(&header, &rows));
    }
    for (key, manifest) in manifests {
        if let Err(error) = manifest {
            let _ = writeln!(text, "{key}: {error}");
        }
    }
    text
}

fn as_json(map: &ClusterMap, manifests: &Manifests, storage: &str) -> Value {
    let nodes = manifests.iter().map(|(key, manifest)| match manifest {
        Ok(manifest) => json!({
            "manifest": key,
            "node": manifest.node,
            "disk_id": manifest.disk_id,
            "complete_to_unix_ms": manifest.complete_to(),
            "complete_to": manifest.complete_to().map(|time| time.to_string()),
            "lsn": manifest.lsn,
            "ranges": manifest.ranges.len(),
            "files": manifest.files,
        }),
        Err(error) => json!({"manifest": key, "error": error.to_string()}),
    });
    json!({
        "cluster_id": map.cluster_id,
        "storage": storage,
        "nodes": nodes.collect::<Vec<_>>(),
    })
}
