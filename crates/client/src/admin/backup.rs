//! Backups: snapshots first, and then any member copies what object storage has. Calls follow each other until all is copied.

use std::{sync::Arc, time::Duration};

use keydb_core::{OperationId, UnixMillis};
use keydb_proto::shard::{BackupReply, BackupRequest};
use tokio::time::Instant;

use super::{AdminClient, AdminError, timed};
use crate::cluster::Node;

/// How long snapshots may take that a backup begins with.
const SNAPSHOTS_TIMEOUT: Duration = Duration::from_secs(3600);

/// How far a backup is.
///
/// ```
/// fn line(progress: &keydb_client::BackupProgress) -> String {
///     format!("{}: {} of {} bytes", progress.url, progress.bytes_done, progress.bytes)
/// }
/// # let _ = line;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupProgress {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub url: String,
    /// When it was completed; `None` while it is not complete.
    pub completed: Option<UnixMillis>,
    /// Of a complete one: what was acknowledged before this time is in it.
    pub complete_to: Option<UnixMillis>,
    /// Of a complete one: how many entries its files have. A key that is in several of them counts as often.
    pub entries: Option<u64>,
    /// How many snapshot files it is to have; more may come to it while the cluster goes on.
    pub objects: u64,
    /// How many of them are copied.
    pub objects_done: u64,
    /// How many bytes they have.
    pub bytes: u64,
    /// How many of these are copied.
    pub bytes_done: u64,
}

impl AdminClient {
    /// Makes a backup of the cluster below the URL `to`: `s3://bucket/prefix`, which the nodes reach as they do their own storage, or
    /// `file:///directory`, which they all see. It has everything that was acknowledged before the call that began it. Without a
    /// `name` its name is the time, in UTC. `seen` is told how far it is, every few seconds.
    ///
    /// After `limit` the backup may not be [complete](BackupProgress::completed) yet; a node goes on with it. The same call with the same
    /// name waits for it again, or has another node go on with it where that one has ended. What is copied is not copied again.
    ///
    /// # Errors
    /// See [`AdminError`]: [`Conflict`](AdminError::Conflict) when there is a complete backup of that name, or ranges are moving;
    /// [`Invalid`](AdminError::Invalid) when it cannot be there. Before these nothing was written.
    ///
    /// ```
    /// # mod cluster { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cluster.rs")); }
    /// # cluster::example(async |client: keydb_client::Client| {
    /// # let admin = keydb_client::AdminClient::from(client);
    /// use keydb_client::AdminError;
    ///
    /// let limit = std::time::Duration::from_secs(3600);
    /// let made = admin.backup("s3://backups/keydb", Some("monday"), limit, |_| {}).await;
    /// // This cluster keeps nothing.
    /// assert!(matches!(made, Err(AdminError::Refused { .. })), "{made:?}");
    /// # });
    /// ```
    pub async fn backup(
        &self,
        to: &str,
        name: Option<&str>,
        limit: Duration,
        mut seen: impl FnMut(&BackupProgress),
    ) -> Result<BackupProgress, AdminError> {
        let end = Instant::now() + limit;
        let mut request = BackupRequest {
            cluster_id: self.client.shared().router.cluster_id_bytes(),
            operation_id: OperationId::random().to_bytes().to_vec().into(),
            to: to.to_owned(),
            name: name.unwrap_or_default().to_owned(),
            check: true,
        };
        let checked = self.ask_for_backup(&request).await?;
        if checked.complete {
            return Err(exists(&request.name, &checked));
        }
        let complete_to = self.snapshots_for_backup().await?;
        request.check = false;
        if name.is_none() {
            request.name = name_of(complete_to);
        }
        let mut has_seen_work = false;
        loop {
            let reply = self.ask_for_backup(&request).await?;
            let is_own = has_seen_work || reply.operation_id == request.operation_id;
            if reply.existed && !is_own {
                return Err(exists(&request.name, &reply));
            }
            has_seen_work = true;
            let progress = progress(&request.name, reply);
            seen(&progress);
            if progress.completed.is_some() || Instant::now() >= end {
                return Ok(progress);
            }
        }
    }

    async fn ask_for_backup(&self, request: &BackupRequest) -> Result<BackupReply, AdminError> {
        let ask = |node: Arc<Node>, deadline| {
            let request = timed(request.clone(), deadline);
            async move { node.admin_connection().backup(request).await }
        };
        self.ask_member(ask).await
    }

    /// Has every node make a snapshot; up to when the one has everything that has made the last.
    async fn snapshots_for_backup(&self) -> Result<UnixMillis, AdminError> {
        let patient = Self::from(self.client.with_call_timeout(SNAPSHOTS_TIMEOUT));
        let mut last = UnixMillis(0);
        for (_, made) in patient.create_snapshots(false).await {
            last = last.max(made?.complete_to);
        }
        Ok(last)
    }
}

/// The time in UTC as a name, such as `2026-11-21T07-14-37.250Z`.
fn name_of(time: UnixMillis) -> String {
    time.to_string().replace(':', "-")
}

fn exists(name: &str, reply: &BackupReply) -> AdminError {
    AdminError::Conflict {
        message: format!(
            "backup {name:?} is there already, at {}: it was completed at {}; give another name",
            reply.url,
            UnixMillis(reply.created_unix_ms)
        )
        .into(),
    }
}

fn progress(name: &str, reply: BackupReply) -> BackupProgress {
    let of_complete = |number: u64| reply.complete.then_some(number);
    BackupProgress {
        name: name.to_owned(),
        completed: of_complete(reply.created_unix_ms).map(UnixMillis),
        complete_to: of_complete(reply.complete_to_unix_ms).map(UnixMillis),
        entries: of_complete(reply.entries),
        objects: reply.objects,
        objects_done: reply.objects_done,
        bytes: reply.object_bytes,
        bytes_done: reply.object_bytes_done,
        url: reply.url,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_a_time_sorts_as_the_time_does() {
        let name = name_of(UnixMillis(1_700_000_000_250));
        assert_eq!(name, "2023-11-14T22-13-20.250Z");
        assert!(name < name_of(UnixMillis(1_700_000_001_000)));
    }
}
