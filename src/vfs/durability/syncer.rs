//! The threads that sync. Requests that arrive during a sync share the next one.
//!
//! One syncs everything, for the tick and for syncfs(2); the other one single files, so that
//! fsync(2) does not wait for the bytes of others. They own the queues of requests; a request that
//! is never answered would hold its program for ever, so a sync that panics is answered with EIO.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

use crate::core::Ino;
use crate::vfs::{Fs, Result};

/// The completion callback of a sync.
type Waiter = Box<dyn FnOnce(std::result::Result<(), i32>) + Send>;

/// A request: what to sync, and whom to tell.
type Request<T> = (T, Waiter);

/// The threads that sync.
pub struct Syncer {
    all: Sender<Request<()>>,
    files: Sender<Request<Option<Ino>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Syncer {
    /// Starts the threads.
    ///
    /// # Errors
    /// If a thread cannot be created.
    pub fn start(fs: &Fs) -> std::io::Result<Syncer> {
        let (all, all_requests) = unbounded();
        let (files, file_requests) = unbounded();
        let (one, other) = (fs.durability.clone(), fs.durability.clone());
        let sync_all = move |_: &[()]| one.sync();
        let sync_files = move |inos: &[Option<Ino>]| {
            let inos: Vec<Ino> = inos.iter().copied().flatten().collect();
            other.sync_files(&inos)
        };
        let threads = vec![
            spawn("ferryfs-sync", all_requests, sync_all)?,
            spawn("ferryfs-fsync", file_requests, sync_files)?,
        ];
        Ok(Syncer {
            all,
            files,
            threads: Mutex::new(threads),
        })
    }

    /// Requests a sync of all changes made before this call; `done` receives the errno of a
    /// failure.
    pub fn request(&self, done: impl FnOnce(std::result::Result<(), i32>) + Send + 'static) {
        send(&self.all, (), Box::new(done));
    }

    /// Requests a sync of all names and attributes, and of the bytes of `ino`, as they are before
    /// this call.
    pub fn request_file(
        &self,
        ino: Option<Ino>,
        done: impl FnOnce(std::result::Result<(), i32>) + Send + 'static,
    ) {
        send(&self.files, ino, Box::new(done));
    }

    /// Stops the threads after the requests in the queues.
    pub fn stop(self) {
        drop((self.all, self.files));
        for thread in self.threads.lock().drain(..) {
            let _ = thread.join();
        }
    }
}

fn send<T>(queue: &Sender<Request<T>>, what: T, done: Waiter) {
    if let Err(back) = queue.send((what, done)) {
        (back.0.1)(Err(libc::EIO));
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    requests: Receiver<Request<T>>,
    sync: impl Fn(&[T]) -> Result<()> + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || serve(&requests, sync))
}

fn serve<T>(requests: &Receiver<Request<T>>, sync: impl Fn(&[T]) -> Result<()>) {
    while let Ok(first) = requests.recv() {
        let (what, waiters): (Vec<T>, Vec<Waiter>) =
            std::iter::once(first).chain(requests.try_iter()).unzip();
        // A panic counts as an error: without this thread no fsync would return again.
        let synced = catch_unwind(AssertUnwindSafe(|| sync(&what)));
        let result = match synced {
            Ok(synced) => synced.map_err(|error| {
                tracing::error!(%error, "sync failed");
                error.errno()
            }),
            Err(_) => {
                tracing::error!("a sync panicked; it is answered with EIO");
                Err(libc::EIO)
            }
        };
        for waiter in waiters {
            waiter(result);
        }
    }
}
