//! A panic of `fuser` itself ends the daemon.
//!
//! What panics in an operation of ours is caught and answered. What panics while `fuser` takes a request apart is not: its event
//! thread is gone, the caller waits for an answer for ever and cannot even be killed, and once all event threads are gone so does
//! everybody. (Built with overflow checks, 0.18.0 does so at a time 2^63 seconds before 1970.) If the daemon ends instead, callers get an error, and the next
//! mount finds all that was acknowledged, as after any death.

use std::cell::Cell;
use std::sync::Once;

/// How `fuser` names its event threads.
const EVENT_THREAD: &str = "fuser-";

thread_local! {
    static CAUGHT: Cell<u32> = const { Cell::new(0) };
}

/// While it lives, a panic of this thread is caught by us.
pub(super) struct Caught;

impl Caught {
    pub(super) fn begin() -> Caught {
        CAUGHT.set(CAUGHT.get() + 1);
        Caught
    }
}

impl Drop for Caught {
    fn drop(&mut self) {
        CAUGHT.set(CAUGHT.get() - 1);
    }
}

fn is_fatal() -> bool {
    let is_event_thread = std::thread::current()
        .name()
        .is_some_and(|name| name.starts_with(EVENT_THREAD));
    is_event_thread && CAUGHT.get() == 0
}

/// From now on, a panic of an event thread that nobody catches ends the process.
pub(super) fn end_with_any_event_thread() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            before(panic);
            if is_fatal() {
                tracing::error!(%panic, "the kernel asked for something that cannot be read; the daemon ends, mount again");
                std::process::abort();
            }
        }));
    });
}
