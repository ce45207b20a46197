//! The work on one backup, from wherever it stands to its end.

use std::{collections::HashMap, sync::Arc};

use futures_util::{StreamExt, stream};
use keydb_core::{Backup, BackupObject, ClusterId, OperationId, Origin};
use keydb_storage::{MANIFESTS, SNAPSHOTS, SnapshotStore, object_key};
use tokio::sync::watch;

use super::{
    Made, Progress,
    copy::{Copier, NotCopied},
    obstacle::Obstacle,
    place::Place,
    plan::{Plan, stored_map},
    record::Record,
};
use crate::{background, node::Node};

/// So many files are copied at the same time, each with some buffers of 8 MiB.
const COPIES_AT_ONCE: usize = 4;

/// So many times the manifests are read again because files have gone, or the map has changed, while others were copied.
const PLANS_MAX: u32 = 16;

/// What is to be done.
#[derive(Debug)]
pub(super) struct Work {
    node: Arc<Node>,
    source: SnapshotStore,
    cluster: ClusterId,
    place: Place,
    operation: OperationId,
}

impl Work {
    pub(super) fn new(
        node: &Arc<Node>,
        source: SnapshotStore,
        cluster: ClusterId,
        place: &Place,
        operation: OperationId,
    ) -> Self {
        Self {
            node: Arc::clone(node),
            source,
            cluster,
            place: place.clone(),
            operation,
        }
    }

    /// Does what is left of it.
    pub(super) async fn run(&self, progress: &watch::Sender<Progress>) -> Result<Made, Obstacle> {
        if let Some(backup) = self.place.existing().await? {
            return Ok(Made {
                backup: Arc::new(backup),
                existed: true,
            });
        }
        let map = Plan::read(&self.source, self.cluster).await?.map;
        let to = self.place.create().await?;
        let now = self.node.clock.now();
        let backup = Backup::new(&self.place.name, self.operation, &map, now);
        let mut record = Record::begin(Arc::clone(&to), &self.place.url, backup).await?;
        let to = SnapshotStore::new(to);
        if !record.backup.complete {
            // Whoever worked on it before cannot have anything newer than what is read now.
            let plan = Plan::read(&self.source, self.cluster).await?;
            let filled = self.fill(&mut record, &to, plan, progress).await;
            if filled.is_err() {
                // So much less is to be read again. It may be another's by now.
                let _ = record.save().await;
            }
            filled?;
        }
        remove_others(&to, &record.backup).await?;
        Ok(Made {
            backup: Arc::new(record.publish().await?),
            existed: false,
        })
    }

    /// Copies what is missing until everything is there that belongs together.
    async fn fill(
        &self,
        record: &mut Record,
        to: &SnapshotStore,
        mut plan: Plan,
        progress: &watch::Sender<Progress>,
    ) -> Result<(), Obstacle> {
        let mut last_gone = None;
        for _ in 0..PLANS_MAX {
            let gone = self.copy(record, to, &plan, progress).await?;
            if let Some(key) = gone.as_ref().filter(|key| last_gone.as_ref() == Some(*key)) {
                return Err(Obstacle::not_possible(format!(
                    "object {key:?} is missing in the cluster's storage, and a manifest names it; its node uploads it again within the hour, if it has it: keydb snapshot verify shows what is missing"
                )));
            }
            let stored = stored_map(&self.source, self.cluster).await?.0.version();
            if gone.is_none() && stored == plan.map.version() {
                return record.complete(&plan, self.node.clock.now()).await;
            }
            last_gone = gone;
            plan = Plan::read(&self.source, self.cluster).await?;
        }
        Err(Obstacle::not_possible(format!(
            "the cluster map or the snapshots have changed {PLANS_MAX} times while they were copied; try again when the cluster is calmer"
        )))
    }

    /// Copies the files of `plan` that are missing. Returns the key of one that has gone.
    async fn copy(
        &self,
        record: &mut Record,
        to: &SnapshotStore,
        plan: &Plan,
        progress: &watch::Sender<Progress>,
    ) -> Result<Option<String>, Obstacle> {
        let copier = Copier {
            node: Arc::clone(&self.node),
            from: self.source.clone(),
            to: to.clone(),
            origin: Origin::from(&plan.map),
        };
        let mut copies = Vec::new();
        let mut now = Progress::default();
        for manifest in &plan.manifests {
            let there = to.objects(manifest.node).await?.into_iter();
            let there: HashMap<String, u64> = there.map(|it| (it.key, it.size_bytes)).collect();
            for file in &manifest.files {
                let key = object_key(manifest.node, &file.name);
                let (size, known) = (there.get(&key).copied(), record.copied.get(&key));
                let is_there = size == Some(file.size_bytes)
                    && known.is_some_and(|known| known.size_bytes == file.size_bytes);
                now.objects += 1;
                now.bytes += file.size_bytes;
                if is_there {
                    now.objects_done += 1;
                    now.bytes_done += file.size_bytes;
                } else {
                    record.copied.remove(&key);
                    let copy = copier.clone().copy(manifest.node, file.clone(), size);
                    copies.push(in_the_background(copy));
                }
            }
        }
        progress.send_replace(now);
        let mut copies = stream::iter(copies).buffer_unordered(COPIES_AT_ONCE);
        let mut gone = None;
        while let Some(copied) = copies.next().await {
            match copied {
                Ok(object) => {
                    progress.send_modify(|now| {
                        now.objects_done += 1;
                        now.bytes_done += object.size_bytes;
                    });
                    record.copied.insert(object.key.clone(), object);
                    record.save_now_and_then().await?;
                }
                // The first of several, whatever their order.
                Err(NotCopied::Gone(key)) => {
                    gone = Some(gone.map_or_else(|| key.clone(), |it: String| it.min(key.clone())));
                }
                Err(NotCopied::Obstacle(obstacle)) => return Err(obstacle),
            }
        }
        Ok(gone)
    }
}

/// Decoding and checking are work, which requests must not wait for.
async fn in_the_background(
    copy: impl Future<Output = Result<BackupObject, NotCopied>> + Send + 'static,
) -> Result<BackupObject, NotCopied> {
    match background::run_future("keydb-backup", |_| copy).await {
        Ok(Some(copied)) => copied,
        Ok(None) => Err(Obstacle::unavailable("a copy was broken off").into()),
        Err(error) => {
            let what = format!("there is no thread for a copy: {error}");
            Err(Obstacle::unavailable(what).into())
        }
    }
}

/// Removes what was copied by a plan that was replaced since, also of nodes that have left. The record names what is needed, for good.
async fn remove_others(to: &SnapshotStore, backup: &Backup) -> Result<(), Obstacle> {
    let needed = |key: &str| {
        let found = backup.objects.binary_search_by(|it| (*it.key).cmp(key));
        found.is_ok()
    };
    for prefix in [SNAPSHOTS, MANIFESTS] {
        let there = to.list(prefix).await?;
        for object in there.iter().filter(|it| !needed(&it.key)) {
            to.storage().delete(&object.key).await?;
        }
    }
    Ok(())
}
