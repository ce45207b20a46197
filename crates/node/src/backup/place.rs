//! Where a backup is to be.

use std::sync::Arc;

use keydb_core::{Backup, NodeId};
use keydb_proto::shard::BackupRequest;
use keydb_storage::{BACKUP_KEY, ObjectStorage, S3Options, StorageErrorKind, StorageUrl};
use tokio::task::spawn_blocking;

use super::obstacle::Obstacle;
use crate::node::Node;

/// What stands for a name that is not chosen yet.
const UNNAMED: &str = "unnamed";

/// A storage that is a backup, or may become one. It need not exist.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) url: StorageUrl,
    pub(super) name: String,
    s3: S3Options,
}

impl Place {
    /// What a caller asks for, if that can be.
    pub(super) async fn of(node: &Node, request: &BackupRequest) -> Result<Self, Obstacle> {
        let to: StorageUrl = request
            .to
            .parse()
            .map_err(|error| Obstacle::invalid(format!("to: {error}")))?;
        let name = match &*request.name {
            "" if request.check => UNNAMED,
            name => name,
        };
        let name = name.to_owned();
        let (id, own) = (node.config.id, node.config.storage_url.clone());
        let s3 = node.config.s3.clone();
        // Directories are looked at.
        let found = spawn_blocking(move || {
            let url = find(id, &to, &name, own.as_ref())?;
            Ok(Self { url, name, s3 })
        });
        found.await.unwrap_or_else(|error| {
            let what = format!("to: looking at {} did not end: {error}", request.to);
            Err(Obstacle::unavailable(what))
        })
    }

    /// Opens it for whoever writes a backup: where it is a directory, that is made.
    pub(super) async fn create(&self) -> Result<Arc<dyn ObjectStorage>, Obstacle> {
        let this = self.clone();
        let created = spawn_blocking(move || this.url.create(&this.s3));
        let created = created
            .await
            .map_err(|error| Obstacle::unavailable(format!("opening {}: {error}", self.url)))?;
        Ok(created?)
    }

    /// The complete backup that is there.
    pub(super) async fn existing(&self) -> Result<Option<Backup>, Obstacle> {
        // It is not opened for nothing, which would look for what dead writers have left there.
        if let Some(dir) = self.url.local_dir()
            && !dir.join(BACKUP_KEY).exists()
        {
            return Ok(None);
        }
        let this = self.clone();
        let opened = spawn_blocking(move || this.url.open(&this.s3));
        let storage = opened
            .await
            .map_err(|error| Obstacle::unavailable(format!("opening {}: {error}", self.url)))?
            .map_err(|error| Obstacle::invalid(format!("to: {error}")))?;
        self.complete_in(&*storage).await
    }

    async fn complete_in(&self, storage: &dyn ObjectStorage) -> Result<Option<Backup>, Obstacle> {
        let object = storage.get(BACKUP_KEY).await;
        let object = object.map_err(|error| match error.kind() {
            // No such bucket, or no permission.
            StorageErrorKind::Refused => Obstacle::invalid(format!("to: {error}")),
            _ => error.into(),
        })?;
        let backup = object.map(|object| Backup::from_json(&object.bytes));
        backup.transpose().map_err(|error| {
            Obstacle::not_possible(format!(
                "object {BACKUP_KEY:?} in {}: {error}; choose another name",
                self.url
            ))
        })
    }
}

fn find(
    node: NodeId,
    to: &StorageUrl,
    name: &str,
    own: Option<&StorageUrl>,
) -> Result<StorageUrl, Obstacle> {
    if let Some(dir) = to.local_dir()
        && !dir.is_dir()
    {
        return Err(Obstacle::invalid(format!(
            "to: node {node} has no directory {}: make it, or mount it, where every node sees it",
            dir.display()
        )));
    }
    let url = to.resolved().child(name);
    let url = url.map_err(|error| {
        Obstacle::invalid(format!("name: {error}; give one such as 2026-11-27"))
    })?;
    let url = url.resolved();
    match own.map(StorageUrl::resolved) {
        Some(own) if own.overlaps(&url) => Err(Obstacle::invalid(format!(
            "to: backup {url} and the cluster's own storage {own} would lie in each other; give another bucket, directory or prefix"
        ))),
        _ => Ok(url),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(to: &str, name: &str, own: &str) -> String {
        let (to, own) = (to.parse().unwrap(), own.parse().unwrap());
        find(NodeId(3), &to, name, Some(&own))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_backup_lies_beside_the_clusters_own_storage() {
        let own = "s3://bucket/keydb".parse().unwrap();
        let find = |to: &str, name: &str| find(NodeId(0), &to.parse().unwrap(), name, Some(&own));
        assert!(find("s3://bucket", "monday").is_ok());
        assert!(find("s3://bucket/keydb-backups", "monday").is_ok());
        assert!(find("s3://other/keydb", "monday").is_ok());
        for (to, name) in [
            ("s3://bucket/keydb", "monday"),
            ("s3://bucket/keydb/a/b", "monday"),
            ("s3://bucket", "keydb"),
        ] {
            let refusal = refusal(to, name, "s3://bucket/keydb");
            assert!(refusal.contains("the cluster's own storage s3://bucket/keydb"));
        }
        assert!(refusal("s3://bucket/x", "monday", "s3://bucket").contains("in each other"));
    }

    #[test]
    fn directories_are_told_apart_by_where_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let (own, link) = (dir.path().join("own"), dir.path().join("link"));
        std::fs::create_dir(&own).unwrap();
        std::os::unix::fs::symlink(&own, &link).unwrap();
        let url = |path: &std::path::Path| format!("file://{}", path.display());
        let detour = url(&dir.path().join("link/../own"));
        for to in [url(&own), url(&link), detour] {
            assert!(refusal(&to, "monday", &url(&own)).contains("in each other"));
        }
        // A link with the backup's name.
        assert!(refusal(&url(dir.path()), "link", &url(&own)).contains("in each other"));
        let missing = url(&dir.path().join("missing"));
        let refused = refusal(&missing, "monday", &url(&own));
        assert!(refused.contains("node 3 has no directory"), "{refused}");
    }

    #[test]
    fn a_name_is_one_segment_of_a_key() {
        for name in ["", "a/b", "..", "a b", "Montag+"] {
            let refused = refusal("s3://bucket/x", name, "s3://bucket/y");
            assert!(refused.starts_with("name: "), "{refused}");
        }
    }
}
