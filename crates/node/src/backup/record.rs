//! How far a backup is, and the steps that make it complete.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use keydb_core::{Backup, BackupNode, BackupObject, OperationId, UnixMillis};
use keydb_storage::{
    BACKUP_KEY, BACKUP_RECORD_KEY, ObjectStorage, Put, StorageUrl, Version, object_key,
};
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use super::{obstacle::Obstacle, plan::Plan};

/// How long what was copied is not in the record yet.
const SAVE_INTERVAL: Duration = Duration::from_secs(10);

/// How often in a row somebody else may be faster.
const ATTEMPTS_MAX: u32 = 3;

/// The record of a backup, which this node has written last.
#[derive(Debug)]
pub(super) struct Record {
    to: Arc<dyn ObjectStorage>,
    url: StorageUrl,
    pub(super) backup: Backup,
    version: Version,
    saved_at: Instant,
    /// The snapshot files that are copied, by their keys.
    pub(super) copied: BTreeMap<String, BackupObject>,
}

impl Record {
    /// Begins a backup, or goes on with it where there is one of that name of the same cluster.
    pub(super) async fn begin(
        to: Arc<dyn ObjectStorage>,
        url: &StorageUrl,
        mut backup: Backup,
    ) -> Result<Self, Obstacle> {
        for _ in 0..ATTEMPTS_MAX {
            let put = match to.get(BACKUP_RECORD_KEY).await? {
                None => {
                    refuse_others(&*to, url).await?;
                    let json = backup.to_json().into();
                    to.put_if_absent(BACKUP_RECORD_KEY, json).await?
                }
                Some(object) => {
                    let found = Backup::from_json(&object.bytes).map_err(|error| {
                        Obstacle::not_possible(format!(
                            "object {BACKUP_RECORD_KEY:?} in {url}: {error}; choose another name"
                        ))
                    })?;
                    if found.cluster_id != backup.cluster_id {
                        return Err(Obstacle::invalid(format!(
                            "name: {url} has a backup of cluster {} that is not complete; choose another name",
                            found.cluster_id
                        )));
                    }
                    if found.complete {
                        return Ok(Self::new(to, url, found, object.version));
                    }
                    backup.created_ms = found.created_ms;
                    backup.objects = found.objects;
                    backup.write_nonce = OperationId::random();
                    let json = backup.to_json().into();
                    to.put_if_match(BACKUP_RECORD_KEY, json, &object.version)
                        .await?
                }
            };
            if let Put::Done(version) = put {
                return Ok(Self::new(to, url, backup, version));
            }
        }
        Err(others_are_at_it(url))
    }

    fn new(to: Arc<dyn ObjectStorage>, url: &StorageUrl, backup: Backup, version: Version) -> Self {
        let copied = backup.objects.iter();
        Self {
            copied: copied.map(|it| (it.key.clone(), it.clone())).collect(),
            to,
            url: url.clone(),
            backup,
            version,
            saved_at: Instant::now(),
        }
    }

    /// Writes down what is copied, if that was a while ago.
    pub(super) async fn save_now_and_then(&mut self) -> Result<(), Obstacle> {
        match self.saved_at.elapsed() < SAVE_INTERVAL {
            true => Ok(()),
            false => self.save().await,
        }
    }

    /// Writes down what is copied.
    ///
    /// # Errors
    /// Also when another node has gone on with the backup.
    pub(super) async fn save(&mut self) -> Result<(), Obstacle> {
        let mut backup = self.backup.clone();
        backup.objects = self.copied.values().cloned().collect();
        self.write(backup).await
    }

    /// Writes this in the place of what this node has written last.
    async fn write(&mut self, mut backup: Backup) -> Result<(), Obstacle> {
        backup.write_nonce = OperationId::random();
        let json = backup.to_json().into();
        let put = self.to.put_if_match(BACKUP_RECORD_KEY, json, &self.version);
        match put.await? {
            Put::Done(version) => self.version = version,
            Put::Conflict => return Err(others_are_at_it(&self.url)),
        }
        self.backup = backup;
        self.saved_at = Instant::now();
        Ok(())
    }

    /// All files that `plan` names are copied: makes its manifests and its map the backup's, and the record complete.
    pub(super) async fn complete(&mut self, plan: &Plan, now: UnixMillis) -> Result<(), Obstacle> {
        for _ in 0..ATTEMPTS_MAX {
            let mut replaced = Vec::new();
            for (key, bytes) in &plan.documents {
                let there = self.to.get(key).await?;
                let is_same = there.as_ref().is_some_and(|object| object.bytes == bytes);
                replaced.push((is_same, there.map(|object| object.version)));
            }
            // From here on whoever has gone on with the backup meanwhile makes one of the writes below fail.
            self.save().await?;
            if self.put_documents(plan, &replaced).await? {
                return self.write(self.of_all(plan, now)).await;
            }
        }
        Err(others_are_at_it(&self.url))
    }

    /// Writes the manifests and the map in the place of what was there. False where something else is there by now.
    async fn put_documents(
        &self,
        plan: &Plan,
        replaced: &[(bool, Option<Version>)],
    ) -> Result<bool, Obstacle> {
        for ((key, bytes), (is_same, version)) in plan.documents.iter().zip(replaced) {
            let put = match version {
                _ if *is_same => continue,
                None => self.to.put_if_absent(key, bytes.clone()),
                Some(version) => self.to.put_if_match(key, bytes.clone(), version),
            };
            if put.await? == Put::Conflict {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What the backup is, now that it has everything.
    fn of_all(&self, plan: &Plan, now: UnixMillis) -> Backup {
        let files = plan.manifests.iter().flat_map(|manifest| {
            let files = manifest.files.iter();
            files.map(|file| object_key(manifest.node, &file.name))
        });
        let files = files.filter_map(|key| self.copied.get(&key).cloned());
        let documents = plan.documents.iter().map(|(key, bytes)| BackupObject {
            key: key.clone(),
            size_bytes: bytes.len() as u64,
            xxh3: xxh3_64(bytes),
        });
        let mut backup = self.backup.clone();
        backup.objects = files.chain(documents).collect();
        backup.objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        backup.nodes = plan.manifests.iter().map(BackupNode::of).collect();
        (backup.lineage, backup.epoch) = plan.map.version();
        backup.created_ms = now;
        backup.complete = true;
        backup
    }

    /// Says to everybody that the backup is complete. Anybody may, any number of times: the record does not change any more.
    pub(super) async fn publish(self) -> Result<Backup, Obstacle> {
        let json = self.backup.to_json().into();
        // A conflict: somebody has said so.
        let _: Put = self.to.put_if_absent(BACKUP_KEY, json).await?;
        Ok(self.backup)
    }
}

/// A backup begins where there is nothing: what is there may be somebody's.
async fn refuse_others(to: &dyn ObjectStorage, url: &StorageUrl) -> Result<(), Obstacle> {
    let page = to.list("", None).await?;
    match page.objects.first() {
        // A concurrent call's.
        None => Ok(()),
        Some(object) if object.key == BACKUP_RECORD_KEY => Ok(()),
        Some(object) => Err(Obstacle::invalid(format!(
            "name: {url} is no backup, and is not empty: it has object {:?}; choose another name",
            object.key
        ))),
    }
}

fn others_are_at_it(url: &StorageUrl) -> Obstacle {
    Obstacle::busy(format!(
        "another call goes on with backup {url}; the same call again waits for it"
    ))
}

#[cfg(test)]
mod tests {
    use keydb_core::{ClusterMap, Durability, Incarnation, Manifest, ManualClock, NewCluster};
    use keydb_storage::{MAP_KEY, MemoryStorage, manifest_key};

    use super::*;

    struct World {
        to: Arc<dyn ObjectStorage>,
        map: ClusterMap,
    }

    impl World {
        fn new() -> Self {
            let map = ClusterMap::create(&NewCluster {
                addresses: vec!["a:1".to_owned()],
                range_count: 4,
                durability: Durability::Journal,
            });
            let clock = Arc::new(ManualClock::new(UnixMillis(1)));
            Self {
                to: Arc::new(MemoryStorage::new(clock)),
                map: map.unwrap(),
            }
        }

        async fn begin(&self) -> Record {
            let url = "s3://bucket/monday".parse().unwrap();
            let operation = OperationId::random();
            let backup = Backup::new("monday", operation, &self.map, UnixMillis(1));
            let begun = Record::begin(Arc::clone(&self.to), &url, backup).await;
            begun.unwrap()
        }

        /// What is there at some time: each time another manifest.
        fn plan(&self) -> Plan {
            let (id, disk_id) = (self.map.nodes[0].id, Incarnation::random());
            let manifest = Manifest::new(self.map.cluster_id, 1, id, disk_id);
            Plan {
                documents: vec![
                    (manifest_key(id), manifest.to_json().into()),
                    (MAP_KEY.to_owned(), self.map.to_json().into()),
                ],
                manifests: vec![manifest],
                map: self.map.clone(),
            }
        }

        /// Checks that the manifest that is there is the one that the backup lists.
        async fn check(&self, backup: &Backup) {
            let listed = |key: &str| backup.objects.iter().find(|it| it.key == key);
            for key in [manifest_key(self.map.nodes[0].id), MAP_KEY.to_owned()] {
                let there = self.to.get(&key).await.unwrap().unwrap();
                assert_eq!(listed(&key).unwrap().xxh3, xxh3_64(&there.bytes));
            }
        }
    }

    const NOW: UnixMillis = UnixMillis(2);

    #[tokio::test]
    async fn who_goes_on_with_a_backup_makes_the_earlier_ones_writes_fail() {
        let world = World::new();
        let mut first = world.begin().await;
        first.save().await.unwrap();
        let mut second = world.begin().await;
        for failed in [first.save().await, first.complete(&world.plan(), NOW).await] {
            let text = failed.unwrap_err().to_string();
            assert!(text.contains("another call goes on"), "{text}");
        }
        second.complete(&world.plan(), NOW).await.unwrap();
        let backup = second.publish().await.unwrap();
        world.check(&backup).await;
    }

    #[tokio::test]
    async fn a_manifest_that_an_earlier_one_writes_late_is_replaced_and_never_comes_back() {
        let world = World::new();
        let (old, mut first) = (world.plan(), world.begin().await);
        // It stands still just before it writes its manifest.
        first.save().await.unwrap();
        let nothing = [(false, None), (false, None)];
        let mut second = world.begin().await;
        // It goes on while the second one works: that finds its manifest, and replaces it.
        assert!(first.put_documents(&old, &nothing).await.unwrap());
        second.complete(&world.plan(), NOW).await.unwrap();
        // And after that, it writes nothing.
        assert!(!first.put_documents(&old, &nothing).await.unwrap());
        assert!(first.write(first.of_all(&old, NOW)).await.is_err());
        let backup = second.publish().await.unwrap();
        world.check(&backup).await;
    }

    #[tokio::test]
    async fn a_complete_backup_is_published_by_whoever_comes_next_and_does_not_change() {
        let world = World::new();
        let mut first = world.begin().await;
        first.complete(&world.plan(), NOW).await.unwrap();
        // It was killed here.
        let json = first.backup.to_json();
        drop(first);
        let next = world.begin().await;
        assert!(next.backup.complete);
        next.publish().await.unwrap();
        world.begin().await.publish().await.unwrap();
        let published = world.to.get(BACKUP_KEY).await.unwrap().unwrap();
        assert_eq!(published.bytes, json);
        world.check(&Backup::from_json(&json).unwrap()).await;
    }
}
