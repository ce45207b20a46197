//! Uploading: what the local manifest names, and then the manifest itself.
//!
//! An upload goes by the remote manifest that is there. What that names is there as well; garbage collection leaves it alone. Other
//! files are uploaded, and the new manifest takes the place of exactly the one that was read. So whatever happened in between, be
//! it another writer or an own write that was thought to have failed, is seen, and gone by in the next attempt.
//!
//! **Another disk's manifest** is replaced only where the cluster map, read after it, says that this disk is the node's: after a
//! recovery. The disk that was given up finds the other one in the map, and leaves the manifest alone.

use std::{collections::HashMap, io::ErrorKind, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use keydb_core::{Lsn, Manifest, ManifestFile};
use keydb_storage::{MapStore, Put, StorageError, StorageErrorKind, Version};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};
use tracing::{debug, info};

use super::{
    Published, RETRY_MAX, RETRY_MIN, Reach, Shared, first_object, garbage::GARBAGE_AGE,
    local::file_path, lock, manifest_key, object_key, reach, remote_manifest,
};

/// How often in a row a manifest is written anew after somebody else's write, or after one of unknown outcome.
const ATTEMPTS_MAX: u32 = 3;

/// So many small files are uploaded at the same time: where each call takes seconds, one after the other would take too long.
const UPLOADS_AT_ONCE: usize = 4;
/// Larger ones are uploaded one by one: each may take a few buffers.
const SMALL_BYTES_MAX: u64 = 8 << 20;

/// An object that no manifest names is looked for again after this time: garbage collection may have taken it.
const DOUBT_AFTER: Duration = Duration::from_secs(600);
const _: () = assert!(DOUBT_AFTER.as_secs() < GARBAGE_AGE.as_secs() / 2);

/// Garbage collection that looked just before such an object was named has come to an end after this time.
const SETTLED_AFTER: Duration = Duration::from_secs(300);

/// Uploads until the node closes.
pub(super) async fn run(shared: Arc<Shared>, published: Published) {
    let mut progress = shared.progress.subscribe();
    let mut uploader = Uploader::new(shared, published);
    let mut retry_after = RETRY_MIN;
    loop {
        let (rounds, made) = {
            let now = progress.borrow_and_update();
            (now.rounds, now.made)
        };
        match uploader.upload().await {
            Ok(manifest) => {
                uploader.works(&manifest, made).await;
                retry_after = RETRY_MIN;
                // Its own progress wakes it as well; what counts is whether a round was made.
                if progress.wait_for(|now| now.rounds > rounds).await.is_err() {
                    return;
                }
            }
            Err(reason) => {
                uploader.fails(reason);
                // Somebody who asks for a snapshot gets to know at once whether it still fails.
                tokio::select! {
                    () = sleep(retry_after) => {}
                    _ = progress.wait_for(|now| now.made > made) => {}
                }
                retry_after = (retry_after * 2).min(RETRY_MAX);
            }
        }
    }
}

struct Uploader {
    shared: Arc<Shared>,
    maps: MapStore,
    published: Published,
    /// When the files that no remote manifest named yet were uploaded; `None`: they were found there.
    uploaded: HashMap<String, Option<Instant>>,
    /// Files that were, or may have been, named long after they were uploaded, and when.
    named_late: Vec<(ManifestFile, Instant)>,
}

/// The manifest in object storage, and what it was.
type Remote = Option<(Manifest, Version)>;

/// Keeps the files of a manifest on the disk.
struct Pinned<'a> {
    shared: &'a Shared,
    manifest: Arc<Manifest>,
}

impl<'a> Pinned<'a> {
    fn new(shared: &'a Shared) -> Self {
        let mut state = shared.state();
        let manifest = Arc::clone(&state.manifest);
        state.uploading = Some(Arc::clone(&manifest));
        Self { shared, manifest }
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        self.shared.state().uploading = None;
    }
}

impl Uploader {
    fn new(shared: Arc<Shared>, published: Published) -> Self {
        // An earlier process may have named some late, and not have lived to look at them again.
        let named = Arc::clone(&shared.state().manifest);
        let now = Instant::now();
        Self {
            maps: MapStore::new(Arc::clone(&shared.storage)),
            shared,
            published,
            uploaded: HashMap::new(),
            named_late: named.files.iter().map(|file| (file.clone(), now)).collect(),
        }
    }

    /// Uploads what is missing, and publishes the manifest. Returns it.
    async fn upload(&mut self) -> Result<Arc<Manifest>, String> {
        let shared = Arc::clone(&self.shared);
        let pinned = Pinned::new(&shared);
        let manifest = &pinned.manifest;
        let mut obstacle = String::new();
        for _ in 0..ATTEMPTS_MAX {
            let remote = self.read_remote(manifest).await?;
            if let Some((current, _)) = &remote
                && current.write_nonce == manifest.write_nonce
            {
                return Ok(Arc::clone(manifest));
            }
            self.check_owner(remote.as_ref().map(|(current, _)| current), manifest)
                .await?;
            if remote.is_none() && self.begin(manifest).await? {
                continue;
            }
            self.files(manifest, remote.as_ref().map(|(current, _)| current))
                .await?;
            match self.publish(manifest, remote).await {
                Ok(Put::Done(_)) => {
                    self.settle(manifest);
                    return Ok(Arc::clone(manifest));
                }
                Ok(Put::Conflict) => {
                    obstacle = format!(
                        "object {:?} is written by others again and again",
                        manifest_key(manifest.node)
                    );
                }
                // Whether it was written, the next look at it tells.
                Err(error) if error.kind() == StorageErrorKind::OutcomeUnknown => {
                    obstacle = error.to_string();
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        Err(obstacle)
    }

    /// Before a node's first object there is a manifest, an empty one: so objects without a manifest show that it was removed.
    /// False where it was: then the whole manifest is to take its place.
    async fn begin(&mut self, manifest: &Manifest) -> Result<bool, String> {
        let text = |error: StorageError| error.to_string();
        if manifest.files.is_empty() {
            return Ok(false);
        }
        let object = first_object(&*self.shared.storage, manifest.node).await;
        if object.map_err(text)?.is_some() {
            return Ok(false);
        }
        let empty = Manifest::new(
            manifest.cluster_id,
            manifest.lineage,
            manifest.node,
            manifest.disk_id,
        );
        // Whoever wrote it, the next look finds it.
        self.publish(&empty, None).await.map(|_| true).map_err(text)
    }

    async fn read_remote(&self, manifest: &Manifest) -> Result<Remote, String> {
        let storage = &*self.shared.storage;
        let remote = remote_manifest(storage, manifest.cluster_id, manifest.node).await;
        let Some((current, version)) = remote.map_err(|error| error.to_string())? else {
            return Ok(None);
        };
        let root = self.shared.data_dir.root();
        if let Err(error) = self.published.check(&current, manifest.disk_id, root) {
            let reason = error.to_string();
            self.shared.node.end(error);
            return Err(reason);
        }
        self.shared
            .progress
            .send_modify(|progress| progress.uploaded_reach = reach_of(&current, manifest));
        Ok(Some((current, version)))
    }

    /// Whether what is there is this disk's to write: its cluster's storage, and `current` its own manifest or its predecessor's.
    async fn check_owner(
        &self,
        current: Option<&Manifest>,
        manifest: &Manifest,
    ) -> Result<(), String> {
        let map = self.maps.load().await.map_err(|error| error.to_string())?;
        let map = map.filter(|map| map.cluster_id == manifest.cluster_id);
        let Some(map) = map else {
            return Err(format!(
                "it does not have the map of cluster {}: it is not this cluster's storage",
                manifest.cluster_id
            ));
        };
        let Some(current) = current else {
            return Ok(());
        };
        let named = map.node(manifest.node).and_then(|node| node.disk_id);
        if current.disk_id == manifest.disk_id || named == Some(manifest.disk_id) {
            return Ok(());
        }
        let key = manifest_key(manifest.node);
        Err(format!(
            "object {key:?} was written by disk {}, and this disk, {}, is not node {} in the cluster map any more: it was replaced",
            current.disk_id, manifest.disk_id, manifest.node
        ))
    }

    /// Sees to it that every file of `manifest` that `current` does not name is there.
    async fn files(
        &mut self,
        manifest: &Manifest,
        current: Option<&Manifest>,
    ) -> Result<(), String> {
        self.look_again(manifest).await?;
        let is_named =
            |file: &ManifestFile| current.is_some_and(|it| it.file(&file.name).is_some());
        let mut missing: Vec<(ManifestFile, Doubt)> = Vec::new();
        for file in manifest.files.iter().filter(|file| !is_named(file)) {
            match self.uploaded.get(&file.name) {
                Some(since) if !is_doubtful(*since) => {}
                Some(_) => missing.push((file.clone(), Doubt::MayBeGone)),
                None => missing.push((file.clone(), Doubt::None)),
            }
        }
        let mut nowhere: Vec<String> = Vec::new();
        let (small, large): (Vec<_>, Vec<_>) = missing
            .into_iter()
            .partition(|(file, _)| file.size_bytes <= SMALL_BYTES_MAX);
        for (files, at_once) in [(small, UPLOADS_AT_ONCE), (large, 1)] {
            let shared = &self.shared;
            let mut uploads = stream::iter(files)
                .map(|(file, doubt)| ensure_uploaded(Arc::clone(shared), file, doubt))
                .buffer_unordered(at_once);
            while let Some(brought) = uploads.next().await {
                match brought? {
                    (name, RemoteCopy::Uploaded) => {
                        self.uploaded.insert(name, Some(Instant::now()));
                    }
                    (name, RemoteCopy::Found) => {
                        self.uploaded.insert(name, None);
                    }
                    (name, RemoteCopy::Missing) => nowhere.push(name),
                }
            }
        }
        // The ranges that need them are closed, and say so; the others' snapshots go on.
        let text = || {
            format!(
                "snapshot files are neither on the disk nor in object storage: {}",
                nowhere.join(", ")
            )
        };
        self.shared
            .node
            .warn_of("missing files", (!nowhere.is_empty()).then(text));
        Ok(())
    }

    /// Uploads again what was named so late that garbage collection has still removed it.
    async fn look_again(&mut self, manifest: &Manifest) -> Result<(), String> {
        self.named_late
            .retain(|(file, _)| manifest.file(&file.name).is_some());
        // The earliest first.
        while let Some((file, named)) = self.named_late.first()
            && named.elapsed() >= SETTLED_AFTER
        {
            ensure_uploaded(Arc::clone(&self.shared), file.clone(), Doubt::MayBeGone).await?;
            self.named_late.remove(0);
        }
        Ok(())
    }

    async fn publish(&mut self, manifest: &Manifest, remote: Remote) -> Result<Put, StorageError> {
        if self.published.announce(manifest.write_nonce) {
            let saved = self.save_published().await;
            saved.map_err(|error| StorageError::new(StorageErrorKind::Unavailable, error))?;
        }
        let storage = &self.shared.storage;
        let key = manifest_key(manifest.node);
        let json = Bytes::from(manifest.to_json());
        match remote {
            None => storage.put_if_absent(&key, json).await,
            Some((_, version)) => storage.put_if_match(&key, json, &version).await,
        }
    }

    /// `manifest` is published, so what it names is safe; but for what garbage collection may be removing right now.
    fn settle(&mut self, manifest: &Manifest) {
        for (name, since) in self.uploaded.drain() {
            if let Some(file) = manifest.file(&name)
                && is_doubtful(since)
            {
                self.named_late.push((file.clone(), Instant::now()));
            }
        }
    }

    /// Writes down what is published.
    async fn save_published(&self) -> Result<(), String> {
        // Not the directory itself, which must be free when this task has ended. It may be another process's then, so that nothing is
        // written after that.
        let root = self.shared.data_dir.root().to_owned();
        let published = self.published.clone();
        let ended = Arc::clone(&self.shared.saving_ended);
        let saved = spawn_blocking(move || match *lock(&ended) {
            true => Ok(()),
            false => published.save(&root),
        })
        .await;
        saved
            .map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())
    }

    async fn works(&mut self, manifest: &Manifest, made: u64) {
        self.shared.node.warn_of("upload", None);
        let reach = reach(manifest);
        self.published.confirm(manifest.write_nonce, reach);
        // What is on the disk says too much until the next time, which does no harm.
        if let Err(error) = self.save_published().await {
            debug!(%error, "what object storage has is not remembered");
        }
        self.shared.progress.send_modify(|progress| {
            progress.uploaded = made;
            progress.uploaded_reach = reach;
        });
    }

    fn fails(&self, reason: String) {
        let text = format!("object storage does not take snapshots, trying again: {reason}");
        self.shared.node.warn_of("upload", Some(text));
        self.shared.failed(reason);
    }
}

/// Whether an object that was uploaded then may have been removed.
fn is_doubtful(uploaded: Option<Instant>) -> bool {
    uploaded.is_none_or(|uploaded| uploaded.elapsed() >= DOUBT_AFTER)
}

/// How far object storage reaches with `current`, as this disk counts, whose own manifest is `own`.
fn reach_of(current: &Manifest, own: &Manifest) -> Reach {
    let lsn = if current.disk_id == own.disk_id {
        current.lsn
    } else {
        Lsn::ZERO
    };
    Reach {
        lsn,
        complete_to: current.complete_to_ms,
    }
}

/// What is to be thought of an object that should be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doubt {
    /// It was not uploaded yet, as far as is known.
    None,
    /// It was, but it may have been removed since.
    MayBeGone,
}

/// What was done to have an object there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RemoteCopy {
    /// It was uploaded.
    Uploaded,
    /// It was there, nobody knows since when.
    Found,
    /// Nothing: neither the file nor the object is there.
    Missing,
}

/// Sees to it that the object of `file` is there. The file's name comes with the answer.
async fn ensure_uploaded(
    shared: Arc<Shared>,
    file: ManifestFile,
    doubt: Doubt,
) -> Result<(String, RemoteCopy), String> {
    let key = object_key(shared.node.config.id, &file.name);
    if doubt == Doubt::MayBeGone && is_there(&shared, &key, &file).await? {
        return Ok((file.name, RemoteCopy::Found));
    }
    let path = file_path(&shared.data_dir, &file.name);
    match tokio::fs::metadata(&path).await {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let is_there = is_there(&shared, &key, &file).await?;
            let brought = if is_there {
                RemoteCopy::Found
            } else {
                RemoteCopy::Missing
            };
            return Ok((file.name, brought));
        }
        Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
    }
    match shared.storage.put_file(&key, &path).await {
        Ok(Put::Done(_)) => {
            info!(key, bytes = file.size_bytes, "uploaded a snapshot file");
            shared.progress.send_modify(|progress| {
                progress.objects += 1;
                progress.object_bytes += file.size_bytes;
            });
            Ok((file.name, RemoteCopy::Uploaded))
        }
        // The name is this file's alone, so an earlier attempt has got through; when, nobody knows.
        Ok(Put::Conflict) if is_there(&shared, &key, &file).await? => {
            Ok((file.name, RemoteCopy::Found))
        }
        Ok(Put::Conflict) => Err(format!(
            "object {key:?} exists with another size than the file's, {} bytes",
            file.size_bytes
        )),
        Err(error) => Err(error.to_string()),
    }
}

async fn is_there(shared: &Shared, key: &str, file: &ManifestFile) -> Result<bool, String> {
    let info = shared.storage.head(key).await;
    let info = info.map_err(|error| error.to_string())?;
    Ok(info.is_some_and(|info| info.size_bytes == file.size_bytes))
}
