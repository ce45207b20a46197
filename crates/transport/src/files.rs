//! Values that files hold, read again when these change.

use std::{
    fmt,
    fs::{self, File},
    io::Read,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::runtime::Handle;

/// How often files are looked at, while somebody asks for what they hold.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How much later than that a look may be.
const STALE: Duration = Duration::from_secs(1);
/// A file of certificates or tokens is never larger.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A file that cannot be used, and why. What the file holds is not part of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it, or with how it fits the others.
    pub problem: String,
}

impl FileError {
    pub(crate) fn new(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            problem: problem.into(),
        }
    }
}

/// A file as it was read.
pub(crate) struct Content {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Vec<u8>,
}

type Make<T> = dyn Fn(&[Content]) -> Result<T, FileError> + Send + Sync;

/// What `make` makes of the content of files.
pub(crate) struct Watched<T> {
    paths: Vec<PathBuf>,
    make: Box<Make<T>>,
    value: ArcSwap<T>,
    started: Instant,
    /// When to look next, in milliseconds since `started`; never while somebody looks.
    next_look: AtomicU64,
    seen: Mutex<Seen>,
}

const NEVER: u64 = u64::MAX;

struct Seen {
    /// What the files held when they were last looked at.
    bytes: Vec<Vec<u8>>,
    problem: Option<FileError>,
}

impl<T: Send + Sync + 'static> Watched<T> {
    pub(crate) fn read(
        paths: Vec<PathBuf>,
        make: impl Fn(&[Content]) -> Result<T, FileError> + Send + Sync + 'static,
    ) -> Result<Arc<Self>, FileError> {
        let contents = read(&paths)?;
        let value = make(&contents)?;
        Ok(Arc::new(Self {
            paths,
            make: Box::new(make),
            value: ArcSwap::from_pointee(value),
            started: Instant::now(),
            next_look: AtomicU64::new(LOOK_INTERVAL.as_millis() as u64),
            seen: Mutex::new(Seen {
                bytes: contents.into_iter().map(|content| content.bytes).collect(),
                problem: None,
            }),
        }))
    }

    /// What the files held about a second ago: they are looked at in the background while somebody asks, and before the answer where
    /// nobody has for a while.
    pub(crate) fn get(self: &Arc<Self>) -> Arc<T> {
        let now = self.started.elapsed().as_millis() as u64;
        let next = self.next_look.load(Relaxed);
        if now >= next
            && self
                .next_look
                .compare_exchange(next, NEVER, Relaxed, Relaxed)
                .is_ok()
        {
            let looks = Arc::clone(self);
            let look = move || {
                looks.look();
                let now = looks.started.elapsed().as_millis() as u64;
                let then = now + LOOK_INTERVAL.as_millis() as u64;
                looks.next_look.store(then, Relaxed);
            };
            match Handle::try_current() {
                // A file system that hangs holds up nobody but this.
                Ok(runtime) if now < next + STALE.as_millis() as u64 => {
                    drop(runtime.spawn_blocking(look));
                }
                // After a quiet time the first one must not go by what was long ago.
                _ => look(),
            }
        }
        self.value.load_full()
    }

    /// Reads the files, and takes over what they hold if that is new and can be used.
    pub(crate) fn look(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let made = match read(&self.paths) {
            Ok(contents) if contents.iter().map(|it| &it.bytes).eq(&seen.bytes) => {
                seen.problem = None;
                return;
            }
            Ok(contents) => {
                let made = (self.make)(&contents);
                if made.is_ok() {
                    seen.bytes = contents.into_iter().map(|content| content.bytes).collect();
                }
                made
            }
            Err(error) => Err(error),
        };
        match made {
            Ok(value) => {
                self.value.store(Arc::new(value));
                seen.problem = None;
                tracing::info!(files = ?self.paths, "files have changed and were read again");
            }
            Err(error) if seen.problem.as_ref() == Some(&error) => {}
            Err(error) => {
                tracing::warn!(
                    "what was read before stays in force, since a file cannot be used: {error}"
                );
                seen.problem = Some(error);
            }
        }
    }
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What they hold may be secret.
        f.debug_tuple("Watched").field(&self.paths).finish()
    }
}

/// Reads files, none of which is large or anything else than a file.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Vec<Content>, FileError> {
    let content = |path: &PathBuf| {
        let problem = |error: std::io::Error| FileError::new(path, error.to_string());
        // Reading something else, such as a pipe, might never end.
        if !fs::metadata(path).map_err(problem)?.is_file() {
            return Err(FileError::new(path, "it is not a file"));
        }
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(problem)?;
        file.take(FILE_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(problem)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            let message = format!("it has more than {FILE_BYTES_MAX} bytes");
            return Err(FileError::new(path, message));
        }
        let path = path.clone();
        Ok(Content { path, bytes })
    };
    paths.iter().map(content).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_cannot_be_used_leaves_what_was_read_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("number");
        let number = |contents: &[Content]| {
            let text = String::from_utf8_lossy(&contents[0].bytes);
            let number = text.trim().parse::<u32>();
            number.map_err(|error| FileError::new(&contents[0].path, error.to_string()))
        };
        let missing = Watched::read(vec![path.clone()], number).unwrap_err();
        assert_eq!(missing.path, path);
        fs::write(&path, "1").unwrap();
        let watched = Watched::read(vec![path.clone()], number).unwrap();
        assert_eq!(*watched.get(), 1);
        for (text, value) in [("2", 2), ("two", 2), ("3", 3)] {
            fs::write(&path, text).unwrap();
            watched.look();
            assert_eq!(*watched.get(), value, "{text}");
        }
        fs::remove_file(&path).unwrap();
        watched.look();
        assert_eq!(*watched.get(), 3);
    }
}
