//! Uploading: what the local manifest names, and then the manifest itself.
//!
//! An upload goes by the remote manifest that is there. What that names is there as well; garbage collection leaves it alone. Other
//! files are uploaded, and the new manifest takes the place of exactly the one that was read. So whatever happened in between, be
//! it another writer or an own write that was thought to have failed, is seen, and gone by in the next attempt.
//!
//! **What was uploaded may be gone again:** an object that no manifest names for long is garbage to others, and people remove the wrong
//! things. What was uploaded a while ago is looked for again just before the manifest names it, everything that a manifest names soon
//! after an object was named so late, and once an hour. What is missing is uploaded again from the disk.
//!
//! **Another disk's manifest** is replaced only where the cluster map, read after it, says that this disk is the node's: after a
//! recovery. The disk that was given up finds the other one in the map, and leaves the manifest alone.

use std::{
    collections::{HashMap, HashSet},
    io::ErrorKind,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream};
use keydb_core::{Lsn, Manifest, ManifestFile};
use keydb_storage::{MapStore, Put, StorageErrorKind, Version, manifest_key, object_key};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep, timeout_at},
};
use tracing::{debug, info, warn};

use super::{
    error::UploadError,
    garbage::GARBAGE_AGE,
    local::file_path,
    published::Published,
    shared::{RETRY_MAX, RETRY_MIN, Reach, Shared},
};
use crate::lock::lock;

/// How often in a row a manifest is written anew after somebody else's write, or after one of unknown outcome.
const ATTEMPTS_MAX: u32 = 3;

/// So many small files are uploaded at the same time: where each call takes seconds, one after the other would take too long.
const UPLOADS_AT_ONCE: usize = 4;
/// Larger ones are uploaded one by one: each may take a few buffers.
const SMALL_BYTES_MAX: u64 = 8 << 20;

/// An object that no manifest names is looked for again after this time: garbage collection may have taken it.
const DOUBT_AFTER: Duration = Duration::from_secs(600);
const _: () = assert!(DOUBT_AFTER.as_secs() < GARBAGE_AGE.as_secs() / 2);

/// How often the files of a manifest are looked at before it is published.
const LOOKS_MAX: u32 = 2;

/// What was looked for so lately is there.
const SEEN_LATELY: Duration = Duration::from_secs(30);

/// Garbage collection that looked just before such an object was named has come to an end after this time.
const SETTLED_AFTER: Duration = Duration::from_secs(300);

/// How often it is looked whether an upload is in the way on a full disk.
const FULL_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How often it is looked whether everything that was published is still there.
const CHECK_INTERVAL: Duration = Duration::from_secs(3600);

/// Uploads until the node closes.
pub(super) async fn run(shared: Arc<Shared>, published: Published) {
    let mut progress = shared.progress.subscribe();
    let mut uploader = Uploader::new(Arc::clone(&shared), published);
    let mut retry_after = RETRY_MIN;
    loop {
        let (due, made) = {
            let now = progress.borrow_and_update();
            (now.uploads_due, now.made)
        };
        let uploaded = tokio::select! {
            uploaded = uploader.upload() => uploaded,
            () = takes_needed_room(&shared) => Err(UploadError::NeededRoom),
        };
        match uploaded {
            Ok(manifest) => {
                uploader.works(&manifest, made).await;
                retry_after = RETRY_MIN;
                // Its own progress wakes it as well; what counts is whether there is something to upload.
                let next = progress.wait_for(|now| now.uploads_due > due);
                if let Ok(Err(_)) = timeout_at(uploader.check_at, next).await {
                    return;
                }
            }
            Err(error) => {
                uploader.fails(&error);
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

/// Waits until the disk is full and has files only because they are being uploaded. An upload that hangs must not keep them.
async fn takes_needed_room(shared: &Shared) {
    loop {
        sleep(FULL_LOOK_INTERVAL).await;
        let is_superseded = || {
            let state = shared.state();
            let is_needed = |file: &ManifestFile| state.manifest.file(&file.name).is_some();
            let uploading = state.uploading.as_ref();
            uploading.is_some_and(|it| !it.files.iter().all(is_needed))
        };
        if shared.journal.is_full().is_some() && is_superseded() {
            return;
        }
    }
}

struct Uploader {
    shared: Arc<Shared>,
    maps: MapStore,
    published: Published,
    /// What was uploaded, or found, and is not published yet.
    uploaded: HashMap<String, Uploaded>,
    /// When everything that is published is looked for next.
    check_at: Instant,
}

/// An object that no manifest names yet.
#[derive(Debug, Clone, Copy)]
struct Uploaded {
    /// `None`: it was found there, nobody knows since when.
    since: Option<Instant>,
    /// When it was there for certain.
    seen: Instant,
}

impl Uploaded {
    /// Whether garbage collection may take it.
    fn is_doubtful(self) -> bool {
        self.since
            .is_none_or(|since| since.elapsed() >= DOUBT_AFTER)
    }

    fn is_to_be_looked_for(self) -> bool {
        self.is_doubtful() && self.seen.elapsed() >= SEEN_LATELY
    }
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
        Self {
            maps: MapStore::new(Arc::clone(shared.store.storage())),
            shared,
            published,
            uploaded: HashMap::new(),
            // An earlier process may have named some late, and not have lived to look at them again.
            check_at: Instant::now() + SETTLED_AFTER,
        }
    }

    /// Uploads what is missing, and publishes the manifest. Returns it.
    async fn upload(&mut self) -> Result<Arc<Manifest>, UploadError> {
        let shared = Arc::clone(&self.shared);
        let pinned = Pinned::new(&shared);
        let manifest = &pinned.manifest;
        let key = manifest_key(manifest.node);
        let mut obstacle = UploadError::Contended { key };
        for _ in 0..ATTEMPTS_MAX {
            let remote = self.read_remote(manifest).await?;
            let current = remote.as_ref().map(|(current, _)| current);
            let is_published = current.is_some_and(|it| it.write_nonce == manifest.write_nonce);
            let is_check_due = self.check_at <= Instant::now();
            if is_published && !is_check_due {
                return Ok(Arc::clone(manifest));
            }
            self.check_owner(current, manifest).await?;
            if remote.is_none() && self.begin(manifest).await? {
                continue;
            }
            let mut there = named_by(current);
            // What was found to be nowhere is looked for until no manifest names it any more.
            for name in &shared.state().nowhere {
                there.remove(name);
            }
            if is_check_due {
                self.retain_found(&mut there, manifest).await?;
            }
            self.files(manifest, &there).await?;
            if is_check_due {
                self.check_at = Instant::now() + CHECK_INTERVAL;
            }
            if is_published {
                self.uploaded.clear();
                return Ok(Arc::clone(manifest));
            }
            match self.publish(manifest, remote).await {
                Ok(Put::Done(_)) => {
                    self.settle();
                    return Ok(Arc::clone(manifest));
                }
                Ok(Put::Conflict) => {}
                // Whether it was written, the next look at it tells.
                Err(UploadError::Storage(error))
                    if error.kind() == StorageErrorKind::OutcomeUnknown =>
                {
                    obstacle = error.into();
                }
                Err(error) => return Err(error),
            }
        }
        Err(obstacle)
    }

    /// Before a node's first object there is a manifest, an empty one: so objects without a manifest show that it was removed.
    /// False where it was: then the whole manifest is to take its place.
    async fn begin(&mut self, manifest: &Manifest) -> Result<bool, UploadError> {
        if manifest.files.is_empty() {
            return Ok(false);
        }
        let object = self.shared.store.first_object(manifest.node).await?;
        if object.is_some() {
            return Ok(false);
        }
        let empty = Manifest::new(
            manifest.cluster_id,
            manifest.lineage,
            manifest.node,
            manifest.disk_id,
        );
        // Whoever wrote it, the next look finds it.
        self.publish(&empty, None).await.map(|_| true)
    }

    async fn read_remote(&self, manifest: &Manifest) -> Result<Remote, UploadError> {
        let store = &self.shared.store;
        let remote = store.manifest(manifest.cluster_id, manifest.node).await?;
        let Some((current, version)) = remote else {
            return Ok(None);
        };
        let root = self.shared.data_dir.root();
        if let Err(error) = self.published.check(&current, manifest.disk_id, root) {
            let reason = error.to_string();
            self.shared.node.ending.end(error);
            return Err(UploadError::RolledBack(reason));
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
    ) -> Result<(), UploadError> {
        let map = self.maps.load().await?;
        let map = map.filter(|map| map.cluster_id == manifest.cluster_id);
        let Some(map) = map else {
            return Err(UploadError::OtherCluster(manifest.cluster_id));
        };
        let Some(current) = current else {
            return Ok(());
        };
        let named = map.node(manifest.node).and_then(|node| node.disk_id);
        if current.disk_id == manifest.disk_id || named == Some(manifest.disk_id) {
            return Ok(());
        }
        Err(UploadError::Replaced {
            key: manifest_key(manifest.node),
            by: current.disk_id,
            disk_id: manifest.disk_id,
            node: manifest.node,
        })
    }

    /// Leaves out of `there` the files of `manifest` whose objects object storage does not have any more.
    async fn retain_found(
        &self,
        there: &mut HashSet<String>,
        manifest: &Manifest,
    ) -> Result<(), UploadError> {
        let listed = self.shared.store.objects(manifest.node).await?;
        let listed: HashMap<String, u64> = listed
            .into_iter()
            .map(|object| (object.key, object.size_bytes))
            .collect();
        let mut gone = Vec::new();
        for file in &manifest.files {
            let size = listed.get(&object_key(manifest.node, &file.name));
            if size != Some(&file.size_bytes) && there.remove(&file.name) {
                gone.push(&*file.name);
            }
        }
        if !gone.is_empty() {
            warn!(node = %manifest.node, files = gone.join(", "), "objects that the manifest names are gone from object storage, or have another size; they are uploaded again");
        }
        Ok(())
    }

    /// Sees to it that the objects of all files of `manifest` but those that are `there` are in object storage.
    async fn files(
        &mut self,
        manifest: &Manifest,
        there: &HashSet<String>,
    ) -> Result<(), UploadError> {
        let mut nowhere: HashSet<String> = HashSet::new();
        // Once more: the upload of the others may have taken so long that the first ones are in doubt by now. Where to look for them
        // takes as long again, it would never end; what was named in doubt is looked for later as well.
        for _ in 0..LOOKS_MAX {
            let missing: Vec<ManifestFile> = manifest
                .files
                .iter()
                .filter(|file| !there.contains(&file.name) && !nowhere.contains(&file.name))
                .filter(|file| {
                    let uploaded = self.uploaded.get(&file.name);
                    uploaded.is_none_or(|it| it.is_to_be_looked_for())
                })
                .cloned()
                .collect();
            if missing.is_empty() {
                break;
            }
            self.ensure_all_uploaded(missing, &mut nowhere).await?;
        }
        // Ranges that have all of their keys get new files. Those that need these are closed, and say so; the others' snapshots go on.
        let text = || {
            let mut names: Vec<&str> = nowhere.iter().map(|name| &**name).collect();
            names.sort_unstable();
            format!(
                "snapshot files are neither on the disk nor in object storage: {}",
                names.join(", ")
            )
        };
        let warnings = &self.shared.node.warnings;
        warnings.set("missing files", (!nowhere.is_empty()).then(text));
        self.shared.state().nowhere = nowhere;
        Ok(())
    }

    /// Uploads the files that are not in object storage. The names of those that are not on the disk either go to `nowhere`.
    async fn ensure_all_uploaded(
        &mut self,
        files: Vec<ManifestFile>,
        nowhere: &mut HashSet<String>,
    ) -> Result<(), UploadError> {
        let (small, large): (Vec<_>, Vec<_>) = files
            .into_iter()
            .partition(|file| file.size_bytes <= SMALL_BYTES_MAX);
        for (files, at_once) in [(small, UPLOADS_AT_ONCE), (large, 1)] {
            let (shared, uploaded) = (&self.shared, &self.uploaded);
            let uploads: Vec<_> = files
                .into_iter()
                .map(|file| {
                    let was_there = uploaded.contains_key(&file.name);
                    ensure_uploaded(Arc::clone(shared), file, was_there)
                })
                .collect();
            let mut uploads = stream::iter(uploads).buffer_unordered(at_once);
            while let Some(ensured) = uploads.next().await {
                let (name, copy) = ensured?;
                let seen = Instant::now();
                let since = match copy {
                    RemoteCopy::Uploaded => Some(seen),
                    RemoteCopy::Found => self.uploaded.get(&name).and_then(|it| it.since),
                    RemoteCopy::Missing => {
                        nowhere.insert(name);
                        continue;
                    }
                };
                self.uploaded.insert(name, Uploaded { since, seen });
            }
        }
        Ok(())
    }

    async fn publish(&mut self, manifest: &Manifest, remote: Remote) -> Result<Put, UploadError> {
        // What is not on the disk is not known to a later process, whatever this one knows.
        if let Some(announcing) = self.published.announcing(manifest.write_nonce) {
            self.save(announcing.clone()).await?;
            self.published = announcing;
        }
        let replaced = remote.map(|(_, version)| version);
        let put = self.shared.store.put_manifest(manifest, replaced.as_ref());
        Ok(put.await?)
    }

    /// What was uploaded is published, so it is safe; but for what garbage collection may be removing right now.
    fn settle(&mut self) {
        if self.uploaded.drain().any(|(_, it)| it.is_doubtful()) {
            self.check_at = self.check_at.min(Instant::now() + SETTLED_AFTER);
        }
    }

    /// Writes down what is published.
    async fn save(&self, published: Published) -> Result<(), UploadError> {
        // Not the directory itself, which must be free when this task has ended. It may be another process's then, so that nothing is
        // written after that.
        let root = self.shared.data_dir.root().to_owned();
        let ended = Arc::clone(&self.shared.saving_ended);
        let saved = spawn_blocking(move || match *lock(&ended) {
            true => Ok(()),
            false => published.save(&root),
        });
        Ok(saved.await??)
    }

    async fn works(&mut self, manifest: &Arc<Manifest>, made: u64) {
        self.shared.node.warnings.set("upload", None);
        let reach = Reach::from(&**manifest);
        self.published.confirm(manifest.write_nonce, reach);
        // What is on the disk says too much until the next time, which does no harm.
        if let Err(error) = self.save(self.published.clone()).await {
            debug!(%error, "what object storage has is not remembered");
        }
        self.shared.state().uploaded = Some(Arc::clone(manifest));
        self.shared.progress.send_modify(|progress| {
            progress.uploaded = made;
            progress.uploaded_reach = reach;
        });
    }

    fn fails(&self, error: &UploadError) {
        let text = format!("object storage does not take snapshots, trying again: {error}");
        self.shared.node.warnings.set("upload", Some(text));
        self.shared
            .failed(|progress| &mut progress.uploads_failed, error.to_string());
    }
}

/// The names of the files of `current`.
fn named_by(current: Option<&Manifest>) -> HashSet<String> {
    let files = current.into_iter().flat_map(|current| &current.files);
    files.map(|file| file.name.clone()).collect()
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

/// Sees to it that the object of `file`, which may be there if it `was_there` before, is there. The file's name comes with the answer.
async fn ensure_uploaded(
    shared: Arc<Shared>,
    file: ManifestFile,
    was_there: bool,
) -> Result<(String, RemoteCopy), UploadError> {
    let (store, node) = (&shared.store, shared.node.id);
    if was_there && store.has(node, &file).await? {
        return Ok((file.name, RemoteCopy::Found));
    }
    let path = file_path(&shared.data_dir, &file.name);
    match tokio::fs::metadata(&path).await {
        Ok(found) if found.len() == file.size_bytes => {}
        Ok(found) => {
            return Err(UploadError::OtherSize {
                path,
                found: found.len(),
                expected: file.size_bytes,
            });
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let copy = match store.has(node, &file).await? {
                true => RemoteCopy::Found,
                false => RemoteCopy::Missing,
            };
            return Ok((file.name, copy));
        }
        Err(error) => return Err(UploadError::Io { path, error }),
    }
    let key = object_key(node, &file.name);
    let mut done = store.put_file(node, &file.name, &path).await?;
    if done == Put::Conflict {
        // The name is this file's alone, so an earlier attempt has got through; when, nobody knows.
        if store.has(node, &file).await? {
            return Ok((file.name, RemoteCopy::Found));
        }
        warn!(
            key,
            bytes = file.size_bytes,
            "replacing an object that has another size than its file"
        );
        store.storage().delete(&key).await?;
        done = store.put_file(node, &file.name, &path).await?;
    }
    if done == Put::Conflict {
        return Err(UploadError::Occupied {
            key,
            size_bytes: file.size_bytes,
        });
    }
    info!(key, bytes = file.size_bytes, "uploaded a snapshot file");
    shared.progress.send_modify(|progress| {
        progress.objects += 1;
        progress.object_bytes += file.size_bytes;
    });
    Ok((file.name, RemoteCopy::Uploaded))
}
