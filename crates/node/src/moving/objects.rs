//! A range's keys out of another node's snapshots in object storage.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use keydb_core::{Event, InsertError, NodeId, Origin, SnapshotKind};
use keydb_storage::{ManifestReadError, SnapshotReadError, SnapshotStore};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{background, node::Node, ranges::owned::OwnedRange};

/// So many keys are merged under one lock.
pub(super) const MERGE_ENTRIES: usize = 1024;
/// Object storage that sends nothing of use for so long is given up.
const STILL_MAX: Duration = Duration::from_secs(60);

/// Why a range's keys are not all there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("the manifest of node {0} does not have it")]
    NotThere(NodeId),
    #[error(transparent)]
    Manifest(#[from] ManifestReadError),
    #[error("{0}: {1}")]
    File(String, SnapshotReadError),
    #[error("there is no thread for it: {0}")]
    NoThread(#[from] io::Error),
    #[error("nothing has come for {} s", STILL_MAX.as_secs())]
    StandsStill,
    #[error("it was broken off")]
    BrokenOff,
}

/// Merges into `range` what the manifest of `owner` names of it, every file checked, within the budget of moves. Returns how many keys
/// it had not before.
///
/// # Errors
/// When something of it is missing, damaged or another file, or there is no room for all of it. Part of it may be merged then.
pub(crate) async fn load(
    node: Arc<Node>,
    store: SnapshotStore,
    owner: NodeId,
    range: Arc<OwnedRange>,
) -> Result<u64, LoadError> {
    // Decoding and merging are work, which requests must not wait for.
    let loading = background::run_future("keydb-pull", move |is_over| async move {
        let progress = AtomicU64::new(0);
        tokio::select! {
            biased;
            loaded = merge(&node, &store, owner, &range, &is_over, &progress) => loaded,
            () = stands_still(&progress) => Err(LoadError::StandsStill),
        }
    });
    loading.await?.unwrap_or(Err(LoadError::BrokenOff))
}

/// To be called on a thread of its own, which it holds up to stay within the budget.
async fn merge(
    node: &Node,
    store: &SnapshotStore,
    owner: NodeId,
    range: &OwnedRange,
    is_over: &CancellationToken,
    progress: &AtomicU64,
) -> Result<u64, LoadError> {
    let membership_state = node.membership.state();
    let map = membership_state.map().ok_or(LoadError::NotThere(owner))?;
    let found = store.manifest(map.cluster_id, owner).await?;
    let (manifest, _) = found.ok_or(LoadError::NotThere(owner))?;
    let entry = manifest
        .range(range.id)
        .filter(|entry| entry.bounds() == Some(range.bounds))
        .ok_or(LoadError::NotThere(owner))?;
    let origin = Origin::from(map);
    let mut budget = node.moves.budget.on_this_thread();
    let mut added = 0;
    let (base, deltas) = manifest.parts(entry);
    for file in base.into_iter().chain(deltas) {
        let entry_bytes = file.size_bytes.div_ceil(file.entries.max(1));
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
                Event::Entries(entries) => {
                    if is_wanted {
                        // Requests may work on the same range.
                        for entries in entries.chunks(MERGE_ENTRIES) {
                            let mut keys = range.write();
                            let before = keys.len();
                            let merged = keys.merge(entries, node.clock.times());
                            added += keys.len().saturating_sub(before) as u64;
                            drop(keys);
                            merged.map_err(|error: InsertError| {
                                SnapshotReadError::Damaged(error.to_string())
                            })?;
                            budget.spend(entry_bytes * entries.len() as u64);
                        }
                    }
                    progress.fetch_add(1, Ordering::Relaxed);
                    budget.spend(0);
                    if is_over.is_cancelled() {
                        let reason = "reading it was broken off".to_owned();
                        return Err(SnapshotReadError::Damaged(reason));
                    }
                }
                Event::Header(_) | Event::End(_) => {}
            }
            Ok(())
        };
        let read = match file.kind {
            SnapshotKind::Full => store.read(owner, file, origin, each).await.map(drop),
            SnapshotKind::Delta => match store.footer(owner, file, origin).await {
                Ok(footer) => {
                    let read = store.read_section(owner, &file.name, &footer, range.id, each);
                    read.await.map(drop)
                }
                Err(error) => Err(error),
            },
        };
        read.map_err(|error| LoadError::File(file.name.clone(), error))?;
    }
    Ok(added)
}

/// Ends when `progress` has not changed for long.
async fn stands_still(progress: &AtomicU64) {
    loop {
        let before = progress.load(Ordering::Relaxed);
        sleep(STILL_MAX).await;
        if progress.load(Ordering::Relaxed) == before {
            return;
        }
    }
}
