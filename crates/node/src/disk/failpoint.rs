//! Fail points: where tests make file work go wrong, or stop a node between two steps.
//!
//! Each write, sync, rename and removal of a file that must survive asks [`hit`] first. In a normal build that is nothing. In
//! tests, and with the feature `failpoints`, a point that was armed for the file's directory fails with an error of choice, or
//! ends the process there, as a crash would. The environment variable `FAILPOINTS` arms points of a whole process:
//! `point=abort@3,other=enospc` aborts at the third hit of the one, and lets every hit of the other find the disk full. The name `*`
//! means every point. `stop` stops the process once, as SIGSTOP does, so that a test can have something fail at that very step.

use std::{io, path::Path};

/// Fails where `point` was armed for the directory that `path` lies in.
#[cfg(not(any(test, feature = "failpoints")))]
#[inline]
#[expect(clippy::unnecessary_wraps, reason = "with the feature it does fail")]
pub(crate) fn hit(_point: &'static str, _path: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(any(test, feature = "failpoints"))]
pub(crate) use armed::hit;
#[cfg(test)]
pub(crate) use armed::{Action, arm, count};

/// A step of a protocol between nodes has been reached by the node whose data directory is `path`.
pub(crate) fn step(point: &'static str, path: &Path) {
    // Nothing can fail here; a process can only stop or end.
    let _ = hit(point, path);
}

#[cfg(any(test, feature = "failpoints"))]
mod armed {
    use std::{
        path::PathBuf,
        sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    };

    use super::{Path, io};

    /// What happens at an armed point.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Action {
        /// Nothing: the hits are counted.
        #[cfg(test)]
        Count,
        /// The work fails with this error of the operating system.
        Fail(i32),
        /// The process ends at once.
        Abort,
        /// The work does not come to an end before the point is disarmed.
        Hang,
        /// The process is stopped before it goes on, at one hit only.
        Stop,
    }

    const ENOSPC: i32 = 28;
    const EIO: i32 = 5;

    #[derive(Debug)]
    struct Point {
        id: u64,
        name: String,
        dir: PathBuf,
        action: Action,
        /// So many hits pass first.
        skip: u64,
        hits: u64,
    }

    #[derive(Debug, Default)]
    struct Points {
        points: Vec<Point>,
        next_id: u64,
    }

    fn points() -> MutexGuard<'static, Points> {
        static POINTS: OnceLock<Mutex<Points>> = OnceLock::new();
        POINTS
            .get_or_init(|| Mutex::new(from_environment()))
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn from_environment() -> Points {
        let mut points = Points::default();
        let text = std::env::var("FAILPOINTS").unwrap_or_default();
        for item in text.split(',').filter(|item| !item.is_empty()) {
            let (name, rest) = item.split_once('=').expect("FAILPOINTS: point=action[@n]");
            let (action, nth) = rest.split_once('@').unwrap_or((rest, "1"));
            let nth: u64 = nth.parse().expect("FAILPOINTS: @n is a number from 1 on");
            points.next_id += 1;
            points.points.push(Point {
                id: points.next_id,
                name: name.to_owned(),
                dir: PathBuf::new(),
                action: match action {
                    "abort" => Action::Abort,
                    "enospc" => Action::Fail(ENOSPC),
                    "eio" => Action::Fail(EIO),
                    "hang" => Action::Hang,
                    "stop" => Action::Stop,
                    other => {
                        panic!("FAILPOINTS: {other:?} is not abort, enospc, eio, hang or stop")
                    }
                },
                skip: nth.saturating_sub(1),
                hits: 0,
            });
        }
        points
    }

    pub(crate) fn hit(name: &'static str, path: &Path) -> io::Result<()> {
        let mut points = points();
        for point in &mut points.points {
            // Of a process's own points the directory is empty, with which every path starts.
            let is_meant = point.name == name || point.name == "*";
            if !is_meant || !path.starts_with(&point.dir) {
                continue;
            }
            point.hits += 1;
            if point.hits <= point.skip {
                continue;
            }
            match point.action {
                #[cfg(test)]
                Action::Count => {}
                Action::Fail(code) => return Err(io::Error::from_raw_os_error(code)),
                Action::Abort => std::process::abort(),
                Action::Hang => {
                    let id = point.id;
                    drop(points);
                    hang(id);
                    return Ok(());
                }
                Action::Stop if point.hits > point.skip + 1 => {}
                Action::Stop => {
                    drop(points);
                    stop()?;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Waits until the point with this id is disarmed.
    fn hang(id: u64) {
        while points().points.iter().any(|point| point.id == id) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Stops the process. This thread does not go on before all of it has been stopped.
    fn stop() -> io::Result<()> {
        use rustix::process::{Signal, getpid, kill_process};
        kill_process(getpid(), Signal::STOP)?;
        std::thread::sleep(std::time::Duration::from_millis(100));
        Ok(())
    }

    /// Disarms its point when dropped.
    #[cfg(test)]
    #[derive(Debug)]
    pub(crate) struct Armed(u64);

    /// Arms a point for the files below `dir`; `skip` hits pass first.
    #[cfg(test)]
    pub(crate) fn arm(name: &str, dir: &Path, action: Action, skip: u64) -> Armed {
        let mut points = points();
        points.next_id += 1;
        let id = points.next_id;
        points.points.push(Point {
            id,
            name: name.to_owned(),
            dir: dir.to_owned(),
            action,
            skip,
            hits: 0,
        });
        Armed(id)
    }

    /// How often an armed point was hit.
    #[cfg(test)]
    pub(crate) fn count(armed: &Armed) -> u64 {
        points()
            .points
            .iter()
            .find(|point| point.id == armed.0)
            .map_or(0, |point| point.hits)
    }

    #[cfg(test)]
    impl Drop for Armed {
        fn drop(&mut self) {
            points().points.retain(|point| point.id != self.0);
        }
    }
}
