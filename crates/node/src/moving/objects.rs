//! A range's keys out of another node's snapshots in object storage.

use std::time::Instant;

use keydb_core::{Event, InsertError, NodeId, Origin, SnapshotKind};
use keydb_storage::{ManifestReadError, SnapshotReadError, SnapshotStore};

use super::budget::Budget;
use crate::{node::Node, ranges::owned::OwnedRange};

/// Why a range's keys are not all there.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error("the manifest of node {0} does not have it")]
    NotThere(NodeId),
    #[error(transparent)]
    Manifest(#[from] ManifestReadError),
    #[error("{0}: {1}")]
    File(String, SnapshotReadError),
}

/// Merges into `range` what the manifest of `owner` names of it, every file checked.
///
/// # Errors
/// When something of it is missing, damaged or another file, or there is no room for all of it. Part of it may be merged then.
pub(super) async fn load(
    node: &Node,
    store: &SnapshotStore,
    owner: NodeId,
    range: &OwnedRange,
    budget: &Budget,
) -> Result<(), LoadError> {
    let membership_state = node.membership.state();
    let map = membership_state.map().ok_or(LoadError::NotThere(owner))?;
    let found = store.manifest(map.cluster_id, owner).await?;
    let (manifest, _) = found.ok_or(LoadError::NotThere(owner))?;
    let entry = manifest
        .range(range.id)
        .filter(|entry| entry.bounds() == Some(range.bounds))
        .ok_or(LoadError::NotThere(owner))?;
    let origin = Origin::from(map);
    let (base, deltas) = manifest.parts(entry);
    for file in base.into_iter().chain(deltas) {
        let mut is_wanted = false;
        let each = |event: Event<'_>| {
            match event {
                Event::Section(section) => {
                    is_wanted = section.range == range.id;
                    if is_wanted && section.bounds != range.bounds {
                        let reason = "its section has other bounds".to_owned();
                        return Err(SnapshotReadError::Damaged(reason));
                    }
                }
                Event::Entries(entries) if is_wanted => {
                    let merged = range.write().merge(entries, node.clock.times());
                    merged.map_err(|error: InsertError| {
                        SnapshotReadError::Damaged(error.to_string())
                    })?;
                }
                Event::Entries(_) | Event::Header(_) | Event::End(_) => {}
            }
            Ok(())
        };
        let begun = Instant::now();
        let read = match file.kind {
            SnapshotKind::Full => store
                .read(owner, file, origin, each)
                .await
                .map(|_| file.size_bytes),
            SnapshotKind::Delta => match store.footer(owner, file, origin).await {
                Ok(footer) => {
                    let bytes = footer
                        .section(range.id)
                        .map_or(0, |section| section.bytes.end - section.bytes.start);
                    let read = store.read_section(owner, &file.name, &footer, range.id, each);
                    read.await.map(|_| bytes)
                }
                Err(error) => Err(error),
            },
        };
        let bytes = read.map_err(|error| LoadError::File(file.name.clone(), error))?;
        // Most of the time goes by waiting for object storage.
        budget.spend(begun.elapsed() / 4, bytes).await;
    }
    Ok(())
}
