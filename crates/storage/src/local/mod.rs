//! Objects as files of one directory, shared by the processes of one machine.
//!
//! **Files.** An object is one file, named as its key with `+` for `/`. Names that start with `~` are no objects, as neither
//! character can be in a key: `~lock`, `~clock` and temporary files. `object_file` says what is in an object's file.
//!
//! **Writing.** A writer takes the lock, checks the condition, writes a temporary file, syncs it, renames it over the object's
//! file, syncs the directory. So an object's file is at each moment a whole one, either the old or the new; a crash leaves at
//! worst a temporary file, which nobody reads and the next process that opens the storage removes.
//!
//! **Large files** are copied under a name of their own (`~put-…`) and without the lock, which is taken only to check the condition
//! and to rename. Their writer holds a `flock` on the copy; the next process that opens the storage removes copies that nobody holds.
//!
//! **The lock** is an exclusive `flock` on `~lock`. It belongs to the open file description, and each operation opens its own,
//! so it excludes other processes, other `LocalStorage`s and other tasks in the same way; the kernel drops it when a process
//! dies. `~lock` is made by `create` only and never removed: when it is missing, the directory is not the one that was opened
//! (removed, or its file system no longer mounted), and nothing in it may be taken as absent.
//!
//! **Reading** takes no lock, so a stopped writer cannot hold up readers. A reader may see a renamed file before its writer has
//! synced the directory; it syncs the directory itself before it tells anyone, so what was once read cannot be undone by a loss
//! of power.
//!
//! **Time** is the modification time that the file system gives to `~clock` when it is touched.

mod failure;
mod large;
mod object_file;

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    ops::Range,
    path::{self, Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use keydb_core::{UnixMillis, random};
use rustix::fs::{FlockOperation, Timespec, Timestamps, UTIME_NOW, flock, futimens};

use self::{
    failure::{not_done, outcome_unknown, perhaps_done},
    object_file::HEADER_BYTES_MAX,
};
use crate::{
    ListPage, OBJECT_BYTES_MAX, Object, ObjectInfo, ObjectStorage, ObjectStream, Put, StorageError,
    StorageErrorKind, Version, check_key,
};

const LOCK_NAME: &str = "~lock";
const CLOCK_NAME: &str = "~clock";
const TEMPORARY_PREFIX: &str = "~tmp-";

/// After so many bytes a file in the making is synced: whoever else syncs on the same disk, a node its journal, never waits for much
/// of it.
const SYNC_BYTES: usize = 256 << 10;

/// How long a writer waits for the others. A write takes milliseconds, so whoever holds the lock that long is stuck.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(10);
const LOCK_POLL_MIN: Duration = Duration::from_micros(100);
const LOCK_POLL_MAX: Duration = Duration::from_millis(5);

/// Object storage in a local directory. Any number of processes of one machine may use the directory at once.
#[derive(Debug, Clone)]
pub struct LocalStorage {
    dir: Arc<Path>,
    lock_wait_max: Duration,
}

/// Under which condition an object is written.
enum Condition {
    Absent,
    Match(Version),
}

impl LocalStorage {
    /// Opens the storage in `dir`; makes the directory a storage when it is none yet, or not there.
    ///
    /// # Errors
    /// When the directory cannot be created or written.
    pub fn create(dir: &Path) -> Result<Self, StorageError> {
        let storage = Self::at(dir)?;
        let dir = &storage.dir;
        create_dir_durably(dir)
            .map_err(|error| not_done("create storage directory", dir, &error))?;
        let lock_path = storage.path_of(LOCK_NAME);
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(&lock_path)
            .map_err(|error| not_done("create", &lock_path, &error))?;
        storage.clean_up();
        Ok(storage)
    }

    /// Opens the storage in `dir`, which may come to be there later: until then every call says that it is not. Nothing is written
    /// but what calls write.
    ///
    /// # Errors
    /// When there is no working directory that a relative path could start from.
    pub fn open(dir: &Path) -> Result<Self, StorageError> {
        let storage = Self::at(dir)?;
        storage.clean_up();
        Ok(storage)
    }

    fn at(dir: &Path) -> Result<Self, StorageError> {
        let dir = path::absolute(dir).map_err(|error| not_done("use directory", dir, &error))?;
        Ok(Self {
            dir: dir.into(),
            lock_wait_max: LOCK_WAIT_MAX,
        })
    }

    /// Removes what writers that crashed have left, where that is possible.
    fn clean_up(&self) {
        let lock = OpenOptions::new()
            .append(true)
            .open(self.path_of(LOCK_NAME));
        let Ok(lock) = lock else {
            return;
        };
        // Temporary files exist under the lock only. Whoever gets it finds those of crashed writers; if somebody is writing
        // just now, a later start will clean up.
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            self.remove_temporary_files();
        }
        self.remove_abandoned_uploads();
    }

    fn path_of(&self, file_name: &str) -> PathBuf {
        self.dir.join(file_name)
    }

    fn object_path(&self, key: &str) -> Result<PathBuf, StorageError> {
        check_key(key)?;
        Ok(self.path_of(&key.replace('/', "+")))
    }

    fn remove_temporary_files(&self) {
        let names = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        for entry in names {
            if entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(TEMPORARY_PREFIX.as_bytes())
            {
                // A file that stays costs space and nothing else.
                let removed = fs::remove_file(entry.path());
                tracing::info!(path = %entry.path().display(), ok = removed.is_ok(), "removed what a crashed writer left");
            }
        }
    }

    /// Fails when the directory is not the one that was opened: what is not in it says nothing about the storage.
    fn check_dir(&self) -> Result<(), StorageError> {
        let path = self.path_of(LOCK_NAME);
        match fs::exists(&path) {
            Ok(true) => Ok(()),
            Ok(false) => Err(StorageError::new(
                StorageErrorKind::Unavailable,
                format!(
                    "storage directory {} has no file {LOCK_NAME}: it was removed, is not mounted, or was never made (`keydb init` makes it)",
                    self.dir.display()
                ),
            )),
            Err(error) => Err(not_done("read", &path, &error)),
        }
    }

    /// Takes the lock; it is held until the file is dropped.
    fn lock(&self) -> Result<File, StorageError> {
        self.check_dir()?;
        let path = self.path_of(LOCK_NAME);
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(|error| not_done("open", &path, &error))?;
        let started = Instant::now();
        let mut poll = LOCK_POLL_MIN;
        // Polling, because a blocking flock cannot be given up.
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK) if started.elapsed() < self.lock_wait_max => {
                    thread::sleep(poll);
                    poll = (poll * 2).min(LOCK_POLL_MAX);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(StorageError::new(
                        StorageErrorKind::Unavailable,
                        format!(
                            "{} was locked by other writers for more than {} ms",
                            path.display(),
                            self.lock_wait_max.as_millis()
                        ),
                    ));
                }
                Err(error) => {
                    return Err(not_done("lock", &path, &error.into()));
                }
            }
        }
    }

    fn get_blocking(&self, key: &str) -> Result<Option<Object>, StorageError> {
        let object = self.read(&self.object_path(key)?)?;
        if object.is_some() {
            self.sync_dir()
                .map_err(|error| not_done("sync directory", &self.dir, &error))?;
        }
        Ok(object)
    }

    fn read(&self, path: &Path) -> Result<Option<Object>, StorageError> {
        let cannot_read = |error: io::Error| not_done("read", path, &error);
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.check_dir()?;
                return Ok(None);
            }
            Err(error) => return Err(cannot_read(error)),
        };
        let mut content = Vec::new();
        (&mut file)
            .take(OBJECT_BYTES_MAX + HEADER_BYTES_MAX as u64)
            .read_to_end(&mut content)
            .map_err(cannot_read)?;
        object_file::decode(Bytes::from(content))
            .map(Some)
            .map_err(|damage| {
                StorageError::refused(format!(
                    "object file {} is damaged: {damage}",
                    path.display()
                ))
            })
    }

    fn put_blocking(
        &self,
        key: &str,
        bytes: &[u8],
        condition: &Condition,
    ) -> Result<Put, StorageError> {
        let path = self.object_path(key)?;
        let _lock = self.lock()?;
        let holds = match condition {
            Condition::Absent => {
                !fs::exists(&path).map_err(|error| not_done("read", &path, &error))?
            }
            Condition::Match(version) => self
                .read(&path)?
                .is_some_and(|current| current.version == *version),
        };
        if !holds {
            return Ok(Put::Conflict);
        }
        let version = Version::random();
        let temporary = self.path_of(&format!("{TEMPORARY_PREFIX}{:016x}", random::u64()));
        let renamed = write_synced(&temporary, &object_file::header(&version, bytes), bytes)
            .map_err(|error| not_done("write", &temporary, &error))
            .and_then(|()| {
                fs::rename(&temporary, &path)
                    .map_err(|error| perhaps_done("rename to", &path, &error))
            });
        if let Err(error) = renamed {
            // Should it stay, it costs space and nothing else.
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        self.sync_dir().map_err(|error| {
            // The new file is visible, and whether it survives a loss of power is anyone's guess.
            outcome_unknown("sync directory", &self.dir, &error)
        })?;
        Ok(Put::Done(version))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn now_blocking(&self) -> Result<UnixMillis, StorageError> {
        self.check_dir()?;
        let path = self.path_of(CLOCK_NAME);
        let touch = || {
            let file = OpenOptions::new().append(true).create(true).open(&path)?;
            let now = Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_NOW,
            };
            // Both times, because the file's owner alone may set just one.
            let times = Timestamps {
                last_access: now,
                last_modification: now,
            };
            futimens(&file, &times)?;
            file.metadata()?.modified()
        };
        let time = touch().map_err(|error| not_done("touch", &path, &error))?;
        let since_epoch = time.duration_since(std::time::UNIX_EPOCH).map_err(|_| {
            StorageError::refused(format!("the time of {} lies before 1970", path.display()))
        })?;
        Ok(UnixMillis::default().plus(since_epoch))
    }

    /// Runs file work where it may block. `lost` says what it means when it did not come to its end.
    async fn run<T: Send + 'static>(
        &self,
        lost: StorageErrorKind,
        work: impl FnOnce(&Self) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let storage = self.clone();
        tokio::task::spawn_blocking(move || work(&storage))
            .await
            .unwrap_or_else(|error| {
                Err(StorageError::new(
                    lost,
                    format!("work on {} did not end: {error}", self.dir.display()),
                ))
            })
    }

    async fn put(
        &self,
        key: &str,
        bytes: Bytes,
        condition: Condition,
    ) -> Result<Put, StorageError> {
        let key = key.to_owned();
        self.run(StorageErrorKind::OutcomeUnknown, move |storage| {
            storage.put_blocking(&key, &bytes, &condition)
        })
        .await
    }
}

#[async_trait]
impl ObjectStorage for LocalStorage {
    async fn get(&self, key: &str) -> Result<Option<Object>, StorageError> {
        let key = key.to_owned();
        self.run(StorageErrorKind::Unavailable, move |storage| {
            storage.get_blocking(&key)
        })
        .await
    }

    async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<Put, StorageError> {
        self.put(key, bytes, Condition::Absent).await
    }

    async fn put_if_match(
        &self,
        key: &str,
        bytes: Bytes,
        version: &Version,
    ) -> Result<Put, StorageError> {
        self.put(key, bytes, Condition::Match(version.clone()))
            .await
    }

    async fn put_file(&self, key: &str, file: &Path) -> Result<Put, StorageError> {
        let (key, file) = (key.to_owned(), file.to_owned());
        self.run(StorageErrorKind::OutcomeUnknown, move |storage| {
            storage.put_file_blocking(&key, &file)
        })
        .await
    }

    async fn put_stream(&self, key: &str, mut stream: ObjectStream) -> Result<Put, StorageError> {
        let (key, size_bytes) = (key.to_owned(), stream.size_bytes);
        let begin = move |storage: &Self| storage.begin_upload(&key, size_bytes);
        let begun = self.run(StorageErrorKind::Unavailable, begin).await?;
        let Some(mut upload) = begun else {
            return Ok(Put::Conflict);
        };
        while let Some(chunk) = stream.bytes.next().await {
            let chunk = chunk?;
            let write = move |_: &Self| upload.write(&chunk).map(|()| upload);
            upload = self.run(StorageErrorKind::Unavailable, write).await?;
        }
        let end = move |storage: &Self| storage.end_upload(upload);
        self.run(StorageErrorKind::OutcomeUnknown, end).await
    }

    async fn get_range(
        &self,
        key: &str,
        range: Range<u64>,
    ) -> Result<Option<ObjectStream>, StorageError> {
        let key = key.to_owned();
        self.run(StorageErrorKind::Unavailable, move |storage| {
            storage.open_range(&key, range)
        })
        .await
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StorageError> {
        let key = key.to_owned();
        self.run(StorageErrorKind::Unavailable, move |storage| {
            storage.head_blocking(&key)
        })
        .await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<ListPage, StorageError> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        self.run(StorageErrorKind::Unavailable, move |storage| {
            storage.list_blocking(&prefix, after.as_deref())
        })
        .await
    }

    async fn delete(&self, key: &str) -> Result<(), StorageError> {
        let key = key.to_owned();
        self.run(StorageErrorKind::OutcomeUnknown, move |storage| {
            storage.delete_blocking(&key)
        })
        .await
    }

    async fn now(&self) -> Result<UnixMillis, StorageError> {
        self.run(StorageErrorKind::Unavailable, Self::now_blocking)
            .await
    }
}

/// Creates a directory and those above it; each new one is there also after a loss of power.
fn create_dir_durably(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().unwrap_or(dir);
    if parent != dir {
        create_dir_durably(parent)?;
    }
    match DirBuilder::new().create(dir) {
        // Another process was faster, or there is a file of that name, which the next operation will tell.
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => File::open(parent)?.sync_all(),
    }
}

fn write_synced(path: &Path, header: &str, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(header.as_bytes())?;
    for (index, piece) in bytes.chunks(SYNC_BYTES).enumerate() {
        if index > 0 {
            file.sync_data()?;
        }
        file.write_all(piece)?;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests;
