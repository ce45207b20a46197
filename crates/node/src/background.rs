//! Threads whose work can wait.

use std::{io, thread, time::Duration};

use rustix::{
    process::setpriority_process,
    time::{ClockId, Timespec, clock_gettime},
};
use tokio::sync::oneshot;

/// How nice such threads are. Where a request's thread wants the same core, they get a tenth of it.
const NICE: i32 = 10;

/// Runs `work` on a thread of its own that leaves the cores to requests where those want them. What it returns, or nothing after a panic,
/// comes out of the receiver.
///
/// # Errors
/// When the system has no room for a thread.
pub(crate) fn run<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<oneshot::Receiver<T>> {
    let (done, result) = oneshot::channel();
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            be_nice();
            // Perhaps nobody waits for it any more.
            let _ = done.send(work());
        })?;
    Ok(result)
}

/// This thread leaves the cores to requests from here on.
pub(crate) fn be_nice() {
    // On Linux this is the calling thread alone. Where it is not allowed, it goes on as it is.
    let _ = setpriority_process(None, NICE);
}

/// How long this thread has been on a core.
pub(crate) fn thread_time() -> Duration {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(tv_sec).unwrap_or(0),
        u32::try_from(tv_nsec).unwrap_or(0),
    )
}
