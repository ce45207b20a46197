//! Backups: copies of what object storage has of the cluster, each in a storage of its own, in the same layout.
//!
//! **Where.** Below the URL that the caller gives, under the backup's name (`place`). This node opens it as it does its own storage.
//!
//! **What.** The cluster map, each member's manifest, and the snapshot files that the manifests name (`plan`). So a copy of a backup is
//! the storage of a cluster whose disks were all lost. Files are copied first (`copy`), within the budget of moves, and every byte is
//! checked on its way. One that garbage collection has taken meanwhile means that its manifest was replaced, so the manifests are read
//! again. No scaling operation may run; and where the map is another one when all files are there, all manifests are read again, so no
//! range is missed.
//!
//! **The record** (`record`) says how far a backup is. It is changed by compare-and-swap, and whoever goes on with a backup writes it
//! first, so a node that worked on it before, and perhaps still does, ends at its next write. When all files are there, the versions of
//! the manifests and of the map at the destination are noted, the record is written, these are replaced by their versions, and the
//! record is written as complete. So a complete record is right, however many nodes have worked on the backup, and nothing is changed
//! after it. The last step is `backup.json`, made once from the complete record.
//!
//! **Who.** The node that is asked works, whether the caller waits or not, on one backup at a time. A call for the same one waits for it,
//! too. When the node ends, the next call has another one go on: what the record lists is not copied again, and what was copied since it
//! was written is read there.

mod copy;
mod obstacle;
mod place;
mod plan;
mod record;
mod work;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use keydb_core::{Backup, OperationId};
use keydb_proto::shard::{BackupReply, BackupRequest};
use keydb_storage::{MapStore, SnapshotStore, StorageUrl};
use tokio::{sync::watch, time::timeout};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;
use tracing::{info, warn};

use self::{obstacle::Obstacle, place::Place, work::Work};
use crate::{
    cluster::scaling::{check_member, operation_id},
    lock::lock,
    node::Node,
};

/// A call is answered after this time, however far the backup is.
const ANSWER_AFTER: Duration = Duration::from_secs(2);

/// The backup that a node works on, or has worked on last.
#[derive(Debug, Default)]
pub(crate) struct Backups(Mutex<Option<Job>>);

#[derive(Debug)]
struct Job {
    url: StorageUrl,
    /// Of the last caller.
    operation: OperationId,
    progress: watch::Receiver<Progress>,
    task: AbortOnDropHandle<()>,
}

/// How far a backup is.
#[derive(Debug, Clone, Default)]
struct Progress {
    objects: u64,
    objects_done: u64,
    bytes: u64,
    bytes_done: u64,
    ended: Option<Result<Made, Obstacle>>,
}

/// A complete backup.
#[derive(Debug, Clone)]
struct Made {
    backup: Arc<Backup>,
    /// It was complete before there was anything to do.
    existed: bool,
}

/// Works on a backup, or says whether that can be.
pub(crate) async fn backup(
    node: &Arc<Node>,
    maps: &MapStore,
    request: &BackupRequest,
    patience: Option<Duration>,
) -> Result<BackupReply, Status> {
    check_member(node, &request.cluster_id)?;
    let membership_state = node.membership.state();
    let map = membership_state.map();
    let cluster = map
        .ok_or_else(|| node.not_serving(&membership_state))?
        .cluster_id;
    let place = Place::of(node, request).await?;
    let source = SnapshotStore::new(Arc::clone(maps.storage()));
    let progress = if request.check {
        plan::check(&plan::stored_map(&source, cluster).await?.0)?;
        let made = place.existing().await?.map(|backup| Made {
            backup: Arc::new(backup),
            existed: true,
        });
        Progress {
            ended: made.map(Ok),
            ..Progress::default()
        }
    } else {
        let operation = operation_id(&request.operation_id)?
            .ok_or_else(|| Obstacle::invalid("operation_id is missing; it has 16 bytes"))?;
        let work = Work::new(node, source, cluster, &place, operation);
        let mut progress = node.backups.join(node, &place.url, operation, work)?;
        let wait = patience.map_or(ANSWER_AFTER, |it| (it / 2).min(ANSWER_AFTER));
        let ended = progress.wait_for(|now| now.ended.is_some());
        let broke_off = matches!(timeout(wait, ended).await, Ok(Err(_)));
        if broke_off {
            let what = format!("the work on backup {} was broken off", place.url);
            return Err(Obstacle::unavailable(what).into());
        }
        progress.borrow().clone()
    };
    reply(node, &place.url, progress).map_err(Status::from)
}

fn reply(node: &Node, url: &StorageUrl, progress: Progress) -> Result<BackupReply, Obstacle> {
    let made = progress.ended.transpose().map_err(Obstacle::into_final)?;
    let mut reply = BackupReply {
        header: Some(node.reply_header(node.membership.state().map())),
        url: url.to_string(),
        objects: progress.objects,
        objects_done: progress.objects_done,
        object_bytes: progress.bytes,
        object_bytes_done: progress.bytes_done,
        ..BackupReply::default()
    };
    if let Some(Made { backup, existed }) = made {
        let nodes = backup.nodes.iter();
        reply.complete = true;
        reply.existed = existed;
        reply.operation_id = backup.operation_id.to_bytes().to_vec().into();
        reply.created_unix_ms = backup.created_ms.0;
        reply.complete_to_unix_ms = backup.complete_to().0;
        reply.entries = nodes.clone().map(|node| node.entries).sum();
        reply.objects = nodes.clone().map(|node| node.files).sum();
        reply.object_bytes = nodes.map(|node| node.size_bytes).sum();
        reply.objects_done = reply.objects;
        reply.object_bytes_done = reply.object_bytes;
    }
    Ok(reply)
}

impl Backups {
    /// Waits for the work on this backup with those who do already; begins it where nobody does.
    fn join(
        &self,
        node: &Arc<Node>,
        url: &StorageUrl,
        operation: OperationId,
        work: Work,
    ) -> Result<watch::Receiver<Progress>, Obstacle> {
        let mut slot = lock(&self.0);
        if let Some(job) = slot.as_mut() {
            let is_over = job.task.is_finished() || job.progress.borrow().ended.is_some();
            if job.url == *url && !is_over {
                job.operation = operation;
                return Ok(job.progress.clone());
            }
            let ended = job.progress.borrow().ended.clone();
            let is_superseded = matches!(ended, Some(Err(obstacle)) if obstacle.is_superseded());
            // It has ended since its caller asked last.
            if job.url == *url && job.operation == operation && !is_superseded {
                let progress = job.progress.clone();
                *slot = None;
                return Ok(progress);
            }
            if !is_over {
                let Progress {
                    objects,
                    objects_done,
                    ..
                } = *job.progress.borrow();
                return Err(Obstacle::busy(format!(
                    "node {} works on backup {}, {objects_done} of {objects} objects are copied; it makes one at a time: try again when that is done",
                    node.config.id, job.url
                )));
            }
        }
        let (sender, progress) = watch::channel(Progress::default());
        let (id, name) = (node.config.id, url.to_string());
        let task = tokio::spawn(async move {
            info!(node = %id, "begins with backup {name}, or goes on with it");
            let ended = work.run(&sender).await;
            match &ended {
                Ok(made) => info!(
                    node = %id, existed = made.existed, complete_to = %made.backup.complete_to(),
                    "backup {name} is complete"
                ),
                Err(obstacle) => warn!(node = %id, "backup {name} is not complete: {obstacle}"),
            }
            sender.send_modify(|progress| progress.ended = Some(ended));
        });
        *slot = Some(Job {
            url: url.clone(),
            operation,
            progress: progress.clone(),
            task: AbortOnDropHandle::new(task),
        });
        Ok(progress)
    }

    /// Breaks the work off, and waits until it has ended.
    pub(crate) async fn stop(&self) {
        let job = lock(&self.0).take();
        if let Some(job) = job {
            job.task.abort();
            let _ = job.task.await;
        }
    }

    /// Breaks the work off.
    pub(crate) fn abort(&self) {
        drop(lock(&self.0).take());
    }
}
