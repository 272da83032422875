//! Threads that may wait for the backend, so that those that answer the kernel never have to.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use crossbeam_channel::{Sender, unbounded};

type Job = Box<dyn FnOnce() + Send>;

/// A pool of workers. Clones share it; it ends with the last of them.
#[derive(Clone)]
pub struct Workers {
    queue: Sender<Job>,
}

impl Workers {
    /// Starts `count` workers.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(count: usize) -> io::Result<Workers> {
        let (queue, jobs) = unbounded::<Job>();
        for n in 0..count {
            let jobs = jobs.clone();
            thread::Builder::new()
                .name(format!("ferryfs-work-{n}"))
                .spawn(move || {
                    for job in jobs {
                        if catch_unwind(AssertUnwindSafe(job)).is_err() {
                            tracing::error!("a request panicked; it is answered with EIO");
                        }
                    }
                })?;
        }
        Ok(Workers { queue })
    }

    /// Runs `job` on the next free worker. A job that is dropped unrun takes its reply along, which answers EIO.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        // Sending fails only when every worker is gone, and then the job is dropped.
        let _ = self.queue.send(Box::new(job));
    }
}
