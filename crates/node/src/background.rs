//! Threads whose work can wait.

use std::{fs::File, io, os::unix::fs::FileExt, thread, time::Duration};

use rustix::{
    process::setpriority_process,
    time::{ClockId, Timespec, clock_gettime},
};
use tokio::{runtime::Handle, sync::oneshot};
use tokio_util::sync::CancellationToken;

/// How nice such threads are. Where a request's thread wants the same core, they get a tenth of it.
const NICE: i32 = 10;

/// What is counted of a wait for a core, as a multiple of the work.
const WAITED_MAX: u32 = 3;

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

/// The same for a future, which is given up when what is returned is dropped; `is_over` says so to what blocks the thread. Nothing comes
/// out then, nor after a panic.
///
/// # Errors
/// When the system has no room for a thread.
pub(crate) async fn run_future<T, F>(
    name: &str,
    start: impl FnOnce(CancellationToken) -> F + Send + 'static,
) -> io::Result<Option<T>>
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    let is_over = CancellationToken::new();
    let _ended_with_this = is_over.clone().drop_guard();
    let runtime = Handle::current();
    let result = run(name, move || {
        let work = start(is_over.clone());
        runtime.block_on(is_over.run_until_cancelled(work))
    })?;
    Ok(result.await.ok().flatten())
}

/// This thread leaves the cores to requests from here on.
pub(crate) fn be_nice() {
    // On Linux this is the calling thread alone. Where it is not allowed, it goes on as it is.
    let _ = setpriority_process(None, NICE);
}

/// What the thread that has started it takes of the machine.
#[derive(Debug)]
pub(crate) struct ThreadUse {
    /// Where Linux says how long the thread has waited for a core.
    waits: Option<File>,
    ran: Duration,
    waited: Duration,
}

impl ThreadUse {
    pub(crate) fn start() -> Self {
        let mut started = Self {
            waits: File::open("/proc/thread-self/schedstat").ok(),
            ran: Duration::ZERO,
            waited: Duration::ZERO,
        };
        started.taken();
        started
    }

    /// What it has taken since the last time: how long it was on a core, and how long it has waited for one, since somebody else wants
    /// it then. Of long waits only [`WAITED_MAX`] times the work counts, so that it comes to its end on a machine that is never idle.
    pub(crate) fn taken(&mut self) -> Duration {
        let (ran, waited) = (thread_time(), self.waited());
        let work = ran.saturating_sub(self.ran);
        let wait = waited.saturating_sub(self.waited);
        (self.ran, self.waited) = (ran, waited);
        work + wait.min(work * WAITED_MAX)
    }

    fn waited(&self) -> Duration {
        let mut text = [0; 64];
        let read = self.waits.as_ref().and_then(|file| {
            let length = file.read_at(&mut text, 0).ok()?;
            // Nanoseconds on a core, nanoseconds of waiting for one, and how often it has had one.
            let text = str::from_utf8(&text[..length]).ok()?;
            text.split_ascii_whitespace().nth(1)?.parse().ok()
        });
        Duration::from_nanos(read.unwrap_or(0))
    }
}

/// How long this thread has been on a core.
fn thread_time() -> Duration {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(tv_sec).unwrap_or(0),
        u32::try_from(tv_nsec).unwrap_or(0),
    )
}
