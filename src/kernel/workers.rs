//! Threads that do what takes its time, so that those that answer the kernel never have to: some for copies within the SSD,
//! others for what waits for the backend, so that the first never wait behind the second.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use crossbeam_channel::{Sender, unbounded};

/// Threads that copy. They are bound by the SSD, so more would not be faster.
const COPYING: usize = 8;

/// Threads that wait for the backend. They sleep, so many cost little; each waits for a bounded time.
const WAITING: usize = 32;

type Job = Box<dyn FnOnce() + Send>;

/// The workers of both kinds. Clones share them; they end with the last of them.
#[derive(Clone)]
pub struct Workers {
    copying: Sender<Job>,
    waiting: Sender<Job>,
}

impl Workers {
    /// Starts them.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start() -> io::Result<Workers> {
        Ok(Workers {
            copying: start("ferryfs-work", COPYING)?,
            waiting: start("ferryfs-wait", WAITING)?,
        })
    }

    /// Runs `job`, which may copy objects but not wait for the backend, on the next free worker. A job that is dropped unrun
    /// takes its reply along, which answers EIO.
    pub fn copy(&self, job: impl FnOnce() + Send + 'static) {
        // Sending fails only when every worker is gone, and then the job is dropped.
        let _ = self.copying.send(Box::new(job));
    }

    /// The same for one that may wait for the backend.
    pub fn wait(&self, job: impl FnOnce() + Send + 'static) {
        let _ = self.waiting.send(Box::new(job));
    }
}

fn start(name: &str, count: usize) -> io::Result<Sender<Job>> {
    let (queue, jobs) = unbounded::<Job>();
    for n in 0..count {
        let jobs = jobs.clone();
        thread::Builder::new()
            .name(format!("{name}-{n}"))
            .spawn(move || {
                for job in jobs {
                    if catch_unwind(AssertUnwindSafe(job)).is_err() {
                        tracing::error!("a request panicked; it is answered with EIO");
                    }
                }
            })?;
    }
    Ok(queue)
}
