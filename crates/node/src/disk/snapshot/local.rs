//! The data directory's part of snapshots: the files, the manifest that names them, and the mark of a clean stop.

use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use keydb_core::{Lsn, Manifest};
use keydb_storage::SNAPSHOT_EXTENSION;
use tracing::info;

use crate::{
    DataDirError,
    disk::data_dir::{self, DataDir},
    disk::failpoint,
};

/// The local manifest's name in the data directory.
const MANIFEST: &str = "manifest.json";
/// The folder of the snapshot files there.
const FILES: &str = "snapshots";
/// The file that says that the node stopped cleanly.
const CLEAN: &str = "clean";

/// The local manifest, if there is one, after everything that it does not name is removed.
pub(crate) fn open(data_dir: &DataDir) -> Result<Option<Manifest>, DataDirError> {
    let manifest = local_manifest(data_dir)?;
    if let Some(manifest) = &manifest {
        remove_unnamed_files(data_dir, manifest);
    }
    Ok(manifest)
}

/// The local manifest, if there is one.
pub(crate) fn local_manifest(data_dir: &DataDir) -> Result<Option<Manifest>, DataDirError> {
    let path = manifest_path(data_dir);
    let damaged = |reason: String| DataDirError::Damaged {
        path: path.clone(),
        reason,
    };
    if let Some(json) = data_dir::read(&path)? {
        let manifest = Manifest::from_json(&json);
        return manifest
            .map(Some)
            .map_err(|error| damaged(error.to_string()));
    }
    // A manifest is there before the first file is.
    if files(data_dir).any(|path| {
        path.extension()
            .is_some_and(|text| text == SNAPSHOT_EXTENSION)
    }) {
        return Err(damaged(format!(
            "it is missing, though there are files in {FILES}/ beside it"
        )));
    }
    Ok(None)
}

/// Where there is no journal, what came behind the manifest's LSN is lost, though full files may have been begun behind it. New
/// records get LSNs that none of the files covers, or they would be taken for what a base has.
pub(crate) fn skip_lost(manifest: &mut Manifest) {
    let own = manifest.files.iter();
    let own = own.filter(|file| file.disk_id == manifest.disk_id);
    let last = own.map(|file| file.lsn_to).max();
    manifest.lsn = manifest.lsn.max(last.unwrap_or(Lsn::ZERO));
}

/// Makes `manifest` the local one. The files that it names must be there for good before.
pub(crate) fn save(data_dir: &DataDir, manifest: &Manifest) -> Result<(), DataDirError> {
    data_dir::replace(&manifest_path(data_dir), &manifest.to_json())
}

/// Files that have got their names have them for good.
pub(super) fn sync_files(data_dir: &DataDir) -> Result<(), DataDirError> {
    let dir = data_dir.root().join(FILES);
    fs::create_dir_all(&dir).map_err(|error| DataDirError::io("create", &dir, error))?;
    data_dir::sync_dir(&dir)
}

/// Removes the file of this name; harmless when it is not there.
pub(super) fn remove_file(data_dir: &DataDir, name: &str) -> Result<(), DataDirError> {
    let path = file_path(data_dir, name);
    let removed = failpoint::hit("snapshot.remove", &path).and_then(|()| fs::remove_file(&path));
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(DataDirError::io("remove", &path, error))
        }
        _ => Ok(()),
    }
}

/// Where the local manifest is.
pub(crate) fn manifest_path(data_dir: &DataDir) -> PathBuf {
    data_dir.root().join(MANIFEST)
}

/// Where a snapshot file is, or is to be.
pub(crate) fn file_path(data_dir: &DataDir, name: &str) -> PathBuf {
    data_dir.root().join(FILES).join(name)
}

/// The node stops cleanly: the files have everything up to `lsn`.
pub(super) fn set_clean_flag(data_dir: &DataDir, lsn: Lsn) -> Result<(), DataDirError> {
    data_dir::replace(&data_dir.root().join(CLEAN), format!("{lsn}\n").as_bytes())
}

/// Whether the node stopped cleanly the last time. It is not known of this time from here on.
pub(crate) fn take_clean_flag(data_dir: &DataDir) -> Result<bool, DataDirError> {
    let path = data_dir.root().join(CLEAN);
    match fs::remove_file(&path) {
        Ok(()) => {
            data_dir::sync_dir(data_dir.root())?;
            Ok(true)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(DataDirError::io("remove", &path, error)),
    }
}

fn files(data_dir: &DataDir) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(data_dir.root().join(FILES));
    let entries = entries.into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}

fn remove_unnamed_files(data_dir: &DataDir, manifest: &Manifest) {
    let named: BTreeSet<&str> = manifest.files.iter().map(|file| &*file.name).collect();
    let is_named = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| named.contains(name))
    };
    for path in files(data_dir).filter(|path| !is_named(path)) {
        // Should it stay, it costs space and nothing else.
        let removed = fs::remove_file(&path);
        info!(path = %path.display(), ok = removed.is_ok(), "removed a file that no manifest names");
    }
}
