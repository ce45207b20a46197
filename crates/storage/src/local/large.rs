//! Large objects, lists, and what else needs no whole object in memory.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read, Seek, SeekFrom, Write},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use keydb_core::{UnixMillis, random};
use rustix::fs::{FlockOperation, flock};
use tokio::task::spawn_blocking;
use xxhash_rust::xxh3::Xxh3;

use super::{
    LocalStorage, SYNC_BYTES,
    failure::{not_done, outcome_unknown, perhaps_done},
    object_file::{HEADER_BYTES_MAX, Header, header_of, read_header},
};
use crate::{
    LIST_PAGE_MAX, ListPage, ObjectInfo, ObjectStream, Put, StorageError, StorageErrorKind,
    Version, check_key, object::check_length,
};

const UPLOAD_PREFIX: &str = "~put-";
const CHUNK_BYTES: usize = 1 << 20;

impl LocalStorage {
    pub(super) fn put_file_blocking(&self, key: &str, file: &Path) -> Result<Put, StorageError> {
        let cannot_read = |error: io::Error| not_done("read", file, &error);
        let mut source = File::open(file).map_err(cannot_read)?;
        let size_bytes = source.metadata().map_err(cannot_read)?.len();
        let Some(mut upload) = self.begin_upload(key, size_bytes)? else {
            return Ok(Put::Conflict);
        };
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match source.read(&mut chunk).map_err(cannot_read)? {
                0 => return self.end_upload(upload),
                read => upload.write(&chunk[..read])?,
            }
        }
    }

    /// Begins an object of this size; `None` where there is one.
    pub(super) fn begin_upload(
        &self,
        key: &str,
        size_bytes: u64,
    ) -> Result<Option<Upload>, StorageError> {
        let object = self.object_path(key)?;
        self.check_dir()?;
        // Looked at once more under the lock; this spares the copy.
        if fs::exists(&object).map_err(|error| not_done("read", &object, &error))? {
            return Ok(None);
        }
        let copy = self.path_of(&format!("{UPLOAD_PREFIX}{:016x}", random::u64()));
        Upload::begin(object, copy, size_bytes).map(Some)
    }

    /// Makes what was written an object, unless there is one by now.
    pub(super) fn end_upload(&self, mut upload: Upload) -> Result<Put, StorageError> {
        upload.end()?;
        let object = &upload.object;
        let _lock = self.lock()?;
        if fs::exists(object).map_err(|error| not_done("read", object, &error))? {
            return Ok(Put::Conflict);
        }
        fs::rename(&upload.copy, object)
            .map_err(|error| perhaps_done("rename to", object, &error))?;
        upload.is_object = true;
        self.sync_dir()
            .map_err(|error| outcome_unknown("sync directory", &self.dir, &error))?;
        Ok(Put::Done(upload.version.clone()))
    }

    /// Removes copies that no writer holds any more.
    pub(super) fn remove_abandoned_uploads(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_upload = entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(UPLOAD_PREFIX.as_bytes());
            if !is_upload {
                continue;
            }
            let abandoned = File::open(&path)
                .is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok());
            if abandoned {
                let removed = fs::remove_file(&path);
                tracing::info!(path = %path.display(), ok = removed.is_ok(), "removed what a crashed writer left");
            }
        }
    }

    pub(super) fn open_range(
        &self,
        key: &str,
        range: Range<u64>,
    ) -> Result<Option<ObjectStream>, StorageError> {
        let path = self.object_path(key)?;
        let Some((mut file, header)) = self.open_object(&path)? else {
            return Ok(None);
        };
        let end = range.end.min(header.content_bytes);
        let start = range.start.min(end);
        file.seek(SeekFrom::Start(header.line_bytes as u64 + start))
            .map_err(|error| not_done("read", &path, &error))?;
        let reading = Reading {
            path,
            file,
            left: end - start,
        };
        Ok(Some(ObjectStream {
            size_bytes: header.content_bytes,
            bytes: stream::try_unfold(reading, Reading::next).boxed(),
        }))
    }

    pub(super) fn head_blocking(&self, key: &str) -> Result<Option<ObjectInfo>, StorageError> {
        let path = self.object_path(key)?;
        let Some((file, header)) = self.open_object(&path)? else {
            return Ok(None);
        };
        let modified = modified(&file).map_err(|error| not_done("read", &path, &error))?;
        Ok(Some(ObjectInfo {
            key: key.to_owned(),
            size_bytes: header.content_bytes,
            modified,
        }))
    }

    pub(super) fn list_blocking(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<ListPage, StorageError> {
        self.check_dir()?;
        let failed = |error: io::Error| not_done("read", &self.dir, &error);
        let mut keys = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some(key) = name.to_str().map(|name| name.replace('+', "/")) else {
                continue;
            };
            if check_key(&key).is_ok()
                && key.starts_with(prefix)
                && after.is_none_or(|after| key.as_str() > after)
            {
                keys.push(key);
            }
        }
        keys.sort_unstable();
        let more = keys.len() > LIST_PAGE_MAX;
        keys.truncate(LIST_PAGE_MAX);
        let mut objects = Vec::with_capacity(keys.len());
        for key in keys {
            // One that was removed in the meantime is not listed.
            objects.extend(self.head_blocking(&key)?);
        }
        Ok(ListPage { objects, more })
    }

    pub(super) fn delete_blocking(&self, key: &str) -> Result<(), StorageError> {
        let path = self.object_path(key)?;
        let _lock = self.lock()?;
        match fs::remove_file(&path) {
            Ok(()) => self
                .sync_dir()
                .map_err(|error| outcome_unknown("sync directory", &self.dir, &error)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(not_done("remove", &path, &error)),
        }
    }

    /// An object's file, and what it begins with; `None` when there is none.
    fn open_object(&self, path: &Path) -> Result<Option<(File, Header)>, StorageError> {
        let failed = |error: io::Error| not_done("read", path, &error);
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.check_dir()?;
                return Ok(None);
            }
            Err(error) => return Err(failed(error)),
        };
        let mut start = Vec::new();
        (&mut file)
            .take(HEADER_BYTES_MAX as u64)
            .read_to_end(&mut start)
            .map_err(failed)?;
        let damaged = |damage: String| {
            StorageError::refused(format!(
                "object file {} is damaged: {damage}",
                path.display()
            ))
        };
        let header = read_header(&start).map_err(damaged)?;
        let content_bytes = file
            .metadata()
            .map_err(failed)?
            .len()
            .saturating_sub(header.line_bytes as u64);
        if content_bytes != header.content_bytes {
            return Err(damaged(format!(
                "it should hold {} bytes after the header and holds {content_bytes}",
                header.content_bytes
            )));
        }
        // As for every read: what was once seen cannot be undone by a loss of power.
        self.sync_dir()
            .map_err(|error| not_done("sync directory", &self.dir, &error))?;
        Ok(Some((file, header)))
    }
}

/// A part of an object's file that is being read.
struct Reading {
    path: PathBuf,
    file: File,
    left: u64,
}

impl Reading {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, StorageError> {
        if self.left == 0 {
            return Ok(None);
        }
        let work = spawn_blocking(move || {
            let size = self.left.min(CHUNK_BYTES as u64) as usize;
            let mut chunk = vec![0; size];
            self.file
                .read_exact(&mut chunk)
                .map_err(|error| not_done("read", &self.path, &error))?;
            self.left -= size as u64;
            Ok(Some((Bytes::from(chunk), self)))
        });
        work.await.unwrap_or_else(|error| {
            Err(StorageError::new(
                StorageErrorKind::Unavailable,
                format!("reading did not end: {error}"),
            ))
        })
    }
}

/// An object's file that is being written, under a name of its own; removed when it is dropped before it is an object.
pub(super) struct Upload {
    object: PathBuf,
    copy: PathBuf,
    /// Whoever holds the copy holds its lock.
    file: File,
    version: Version,
    size_bytes: u64,
    written_bytes: u64,
    checksum: Box<Xxh3>,
    is_object: bool,
}

impl Upload {
    fn begin(object: PathBuf, copy: PathBuf, size_bytes: u64) -> Result<Self, StorageError> {
        let cannot_write = |error: io::Error| not_done("write", &copy, &error);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&copy)
            .map_err(cannot_write)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| cannot_write(error.into()))?;
        let version = Version::random();
        // As long as the one that takes its place when the checksum is known.
        file.write_all(header_of(&version, size_bytes, 0).as_bytes())
            .map_err(cannot_write)?;
        Ok(Self {
            object,
            copy,
            file,
            version,
            size_bytes,
            written_bytes: 0,
            checksum: Box::default(),
            is_object: false,
        })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        self.checksum.update(bytes);
        let mut pieces = bytes.chunks(SYNC_BYTES);
        let written = pieces.try_for_each(|piece| {
            self.file.write_all(piece)?;
            let before = self.written_bytes;
            self.written_bytes += piece.len() as u64;
            let sync_bytes = SYNC_BYTES as u64;
            match before / sync_bytes == self.written_bytes / sync_bytes {
                true => Ok(()),
                false => self.file.sync_data(),
            }
        });
        written.map_err(|error| not_done("write", &self.copy, &error))
    }

    fn end(&mut self) -> Result<(), StorageError> {
        check_length(self.size_bytes, self.written_bytes)?;
        let header = header_of(&self.version, self.size_bytes, self.checksum.digest());
        let written = self.file.write_all_at(header.as_bytes(), 0);
        let synced = written.and_then(|()| self.file.sync_all());
        synced.map_err(|error| not_done("write", &self.copy, &error))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.is_object {
            // Should it stay, it costs space until the next start.
            let _ = fs::remove_file(&self.copy);
        }
    }
}

fn modified(file: &File) -> io::Result<UnixMillis> {
    let time = file.metadata()?.modified()?;
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(UnixMillis::default().plus(since_epoch))
}
