//! Uploading: what the local manifest names, and then the manifest itself.

use std::{
    collections::{HashMap, HashSet},
    io::ErrorKind,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use keydb_core::{Manifest, ManifestFile, OperationId};
use keydb_storage::{Put, StorageErrorKind};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::{
    RETRY_MAX, RETRY_MIN, Shared, collect_garbage, file_path, manifest_key, object_key, reach,
};

/// An object that no manifest names yet is looked for again after this time: garbage collection may have taken it.
const DOUBT_AFTER: Duration = Duration::from_secs(600);

/// Objects that no manifest names are removed when they are this old.
pub(super) const GARBAGE_AGE: Duration = Duration::from_secs(3600);
const GARBAGE_INTERVAL: Duration = Duration::from_secs(3600);
/// Node 0 collects it.
const COLLECTOR: u32 = 0;

/// Uploads until the node closes.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut uploader = Uploader {
        shared,
        uploaded: HashMap::new(),
        published: HashSet::new(),
        published_nonce: None,
        learned: false,
        failing: false,
    };
    let mut progress = uploader.shared.progress.subscribe();
    let mut retry_after = RETRY_MIN;
    let mut next_collection = Instant::now() + GARBAGE_INTERVAL;
    loop {
        let made = progress.borrow_and_update().made;
        match uploader.upload().await {
            Ok(manifest) => {
                uploader.works(&manifest, made);
                retry_after = RETRY_MIN;
            }
            Err(reason) => {
                uploader.fails(reason);
                sleep(retry_after).await;
                retry_after = (retry_after * 2).min(RETRY_MAX);
                continue;
            }
        }
        if Instant::now() >= next_collection {
            next_collection = Instant::now() + GARBAGE_INTERVAL;
            uploader.collect().await;
        }
        // Woken by every change, also by its own; what counts is whether a round was made.
        while progress.borrow_and_update().made == made {
            if progress.changed().await.is_err() {
                return;
            }
        }
    }
}

struct Uploader {
    shared: Arc<Shared>,
    /// The files that are in object storage, and since when that is known.
    uploaded: HashMap<String, Instant>,
    /// Those that the published manifest names.
    published: HashSet<String>,
    published_nonce: Option<OperationId>,
    /// Whether it is known what was published before this start.
    learned: bool,
    failing: bool,
}

impl Uploader {
    /// Uploads what is missing, and publishes the manifest. Returns it.
    async fn upload(&mut self) -> Result<Arc<Manifest>, String> {
        self.learn().await?;
        loop {
            let manifest = Arc::clone(&self.shared.state().manifest);
            if self.published_nonce == Some(manifest.write_nonce) {
                return Ok(manifest);
            }
            if self.files(&manifest).await? && self.publish(&manifest).await? {
                self.published = manifest
                    .files
                    .iter()
                    .map(|file| file.name.clone())
                    .collect();
                self.uploaded
                    .retain(|name, _| self.published.contains(name));
                self.published_nonce = Some(manifest.write_nonce);
                return Ok(manifest);
            }
            // The local manifest has changed in the meantime, or the remote one has.
        }
    }

    /// What the remote manifest names needs no upload.
    async fn learn(&mut self) -> Result<(), String> {
        if self.learned {
            return Ok(());
        }
        let key = manifest_key(self.shared.node.config.id);
        let object = self.shared.storage.get(&key).await;
        if let Some(object) = object.map_err(|error| error.to_string())? {
            let manifest = Manifest::from_json(&object.bytes)
                .map_err(|error| format!("object {key:?}: {error}"))?;
            let names = manifest.files.iter().map(|file| file.name.clone());
            self.published = names.collect();
            self.shared
                .progress
                .send_modify(|progress| progress.uploaded_reach = reach(&manifest));
        }
        self.learned = true;
        Ok(())
    }

    /// Uploads the files that are not there; false when one is not needed any more.
    async fn files(&mut self, manifest: &Manifest) -> Result<bool, String> {
        for file in &manifest.files {
            if self.published.contains(&file.name) {
                continue;
            }
            let known = self.uploaded.get(&file.name);
            let there = match known {
                Some(since) if since.elapsed() < DOUBT_AFTER => true,
                Some(_) => self.is_there(file).await?,
                None => false,
            };
            if !there && !self.file(file).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn is_there(&self, file: &ManifestFile) -> Result<bool, String> {
        let key = object_key(self.shared.node.config.id, &file.name);
        let info = self.shared.storage.head(&key).await;
        let info = info.map_err(|error| error.to_string())?;
        Ok(info.is_some_and(|info| info.size_bytes == file.size_bytes))
    }

    /// Uploads one file; false when it is not here any more.
    async fn file(&mut self, file: &ManifestFile) -> Result<bool, String> {
        let key = object_key(self.shared.node.config.id, &file.name);
        let path = file_path(&self.shared.data_dir, &file.name);
        match tokio::fs::metadata(&path).await {
            Ok(_) => {}
            // It was replaced, or it lies in object storage only, where an earlier disk of this node put it.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let there = self.is_there(file).await?;
                if there {
                    self.uploaded.insert(file.name.clone(), Instant::now());
                }
                return Ok(there);
            }
            Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
        }
        let put = self.shared.storage.put_file(&key, &path).await;
        let written = match put {
            Ok(Put::Done(_)) => true,
            // The name is this file's alone, so an earlier attempt has got through.
            Ok(Put::Conflict) if self.is_there(file).await? => false,
            Ok(Put::Conflict) => {
                return Err(format!(
                    "object {key:?} exists with another size than that of the file"
                ));
            }
            Err(_) if !path.exists() => return Ok(false),
            Err(error) => return Err(error.to_string()),
        };
        self.uploaded.insert(file.name.clone(), Instant::now());
        if written {
            let size_bytes = file.size_bytes;
            self.shared.progress.send_modify(|progress| {
                progress.objects += 1;
                progress.object_bytes += size_bytes;
            });
        }
        Ok(true)
    }

    /// Makes `manifest` the remote one; false when it has to be tried anew.
    async fn publish(&self, manifest: &Manifest) -> Result<bool, String> {
        let storage = &self.shared.storage;
        let key = manifest_key(manifest.node);
        let text = |error: keydb_storage::StorageError| error.to_string();
        let json = Bytes::from(manifest.to_json());
        let put = match storage.get(&key).await.map_err(text)? {
            None => storage.put_if_absent(&key, json).await,
            Some(object) => {
                let current = Manifest::from_json(&object.bytes)
                    .map_err(|error| format!("object {key:?}: {error}"))?;
                if current.cluster_id != manifest.cluster_id {
                    return Err(format!(
                        "object {key:?} belongs to cluster {}",
                        current.cluster_id
                    ));
                }
                if current.write_nonce == manifest.write_nonce {
                    return Ok(true);
                }
                if current.disk_id == manifest.disk_id && current.lsn > manifest.lsn {
                    return Err(format!(
                        "object {key:?} reaches LSN {}, and this disk's own files only {}: another process writes it",
                        current.lsn, manifest.lsn
                    ));
                }
                storage.put_if_match(&key, json, &object.version).await
            }
        };
        match put {
            Ok(Put::Done(_)) => Ok(true),
            Ok(Put::Conflict) => Ok(false),
            // Whether it was written, the next look at it tells.
            Err(error) if error.kind() == StorageErrorKind::OutcomeUnknown => Ok(false),
            Err(error) => Err(text(error)),
        }
    }

    fn works(&mut self, manifest: &Manifest, made: u64) {
        if std::mem::replace(&mut self.failing, false) {
            info!(node = %manifest.node, "object storage takes snapshots again");
            self.shared.node.warn_of("upload", None);
        }
        let reach = reach(manifest);
        self.shared.progress.send_modify(|progress| {
            progress.uploaded = made;
            progress.uploaded_reach = reach;
        });
    }

    fn fails(&mut self, reason: String) {
        self.failing = true;
        self.shared.node.warn_of(
            "upload",
            Some(format!(
                "object storage does not take snapshots, trying again: {reason}"
            )),
        );
        self.shared.failed(reason);
    }

    async fn collect(&self) {
        if self.shared.node.config.id.0 != COLLECTOR {
            return;
        }
        let collected = timeout(
            GARBAGE_INTERVAL,
            collect_garbage(&*self.shared.storage, GARBAGE_AGE, false),
        );
        match collected.await {
            Ok(Ok(collected)) => info!(
                objects = collected.removed.len(),
                bytes = collected.removed_bytes,
                "removed objects that no manifest names"
            ),
            Ok(Err(error)) => warn!("objects that no manifest names are not removed: {error}"),
            Err(_) => warn!("removing objects that no manifest names took too long"),
        }
    }
}
