//! Runs a request and sends its reply: on the event thread first, and on a worker if the operation
//! would copy an object or wait for the drive. A panic replies EIO to its request only.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use fuser::{
    Errno, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyWrite,
};

use crate::fuse::convert::errno;
use crate::fuse::fatal::Caught;
use crate::fuse::request_times::Timer;
use crate::fuse::workers::Workers;
use crate::vfs::{Ctx, Fs, FsError, Result};

/// The common operation of all replies.
pub(super) trait Fails: Send + 'static {
    fn fail(self, errno: Errno);
}

macro_rules! fails {
    ($($reply:ty),*) => { $(impl Fails for $reply {
        fn fail(self, errno: Errno) { self.error(errno) }
    })* };
}

fails!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyEmpty,
    ReplyEntry,
    ReplyLseek,
    ReplyOpen,
    ReplyWrite
);

/// Runs `operation`; a panic counts as an error.
pub(super) fn guarded<T>(operation: impl FnOnce() -> Result<T>) -> Result<T> {
    let _caught = Caught::begin();
    catch_unwind(AssertUnwindSafe(operation)).unwrap_or_else(|_| {
        tracing::error!("a request panicked; it is answered with EIO");
        Err(FsError::Errno(libc::EIO))
    })
}

/// Panics if `FERRYFS_TEST_PANIC` names this kind of request, for tests of the real program.
fn panic_if_asked_to(request: &str) {
    if cfg!(feature = "testing")
        && std::env::var_os("FERRYFS_TEST_PANIC").is_some_and(|at| at == request)
    {
        panic!("asked to panic at {request}");
    }
}

/// Replies with `result`, and logs it if it is a fault.
pub(super) fn answer<R: Fails, T>(
    request: &'static str,
    reply: R,
    result: Result<T>,
    done: impl FnOnce(R, T),
) {
    match result {
        Ok(value) => done(reply, value),
        Err(error) => {
            if error.is_fault() {
                tracing::error!(request, %error, "request failed");
            }
            reply.fail(errno(&error));
        }
    }
}

/// Runs `operation` on a worker, with all permissions.
fn run_waiting<R, T, O, D>(
    workers: &Workers,
    fs: Arc<Fs>,
    (request, timer): (&'static str, Timer),
    ctx: Ctx,
    reply: R,
    operation: O,
    done: D,
) where
    R: Fails,
    O: Fn(&Fs, &Ctx) -> Result<T> + Send + 'static,
    D: FnOnce(R, T) + Send + 'static,
{
    workers.wait(move || {
        let ctx = Ctx {
            may_block: true,
            may_wait: true,
            ..ctx
        };
        let result = guarded(|| operation(&fs, &ctx));
        answer(request, reply, result, done);
        drop(timer);
    });
}

/// Runs `operation` on this thread. If it would copy or wait, runs it again on a worker that may.
/// `timer` measures the time until the answer.
pub(super) fn run<R, T, O, D>(
    (fs, workers): (&Arc<Fs>, &Workers),
    (request, timer): (&'static str, Timer),
    ctx: Ctx,
    reply: R,
    operation: O,
    done: D,
) where
    R: Fails,
    O: Fn(&Fs, &Ctx) -> Result<T> + Send + 'static,
    D: FnOnce(R, T) + Send + 'static,
{
    fs.note_request();
    match guarded(|| {
        panic_if_asked_to(request);
        operation(fs, &ctx)
    }) {
        Err(FsError::WouldBlock) => {
            let (fs, again) = (fs.clone(), workers.clone());
            workers.copy(move || {
                let ctx = Ctx {
                    may_block: true,
                    ..ctx
                };
                match guarded(|| operation(&fs, &ctx)) {
                    Err(FsError::WouldWait) => {
                        let request = (request, timer);
                        run_waiting(&again, fs, request, ctx, reply, operation, done);
                    }
                    result => {
                        answer(request, reply, result, done);
                        drop(timer);
                    }
                }
            });
        }
        Err(FsError::WouldWait) => {
            let request = (request, timer);
            run_waiting(workers, fs.clone(), request, ctx, reply, operation, done);
        }
        result => answer(request, reply, result, done),
    }
}
