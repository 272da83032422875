//! Ends the daemon when `fuser` itself panics.
//!
//! A panic in an operation of ferryfs is caught and answered. A panic while `fuser` parses a
//! request is not: the event thread ends, and the caller waits for a reply for ever and cannot even
//! be killed. After the last event thread all callers do. (Built with overflow checks, 0.18.0
//! panics at a time 2^63 seconds before 1970.) If the daemon ends instead, callers get an error,
//! and the next mount has all acknowledged changes, as after any death.

use std::cell::Cell;
use std::sync::Once;

/// Prefix of the names of `fuser`'s event threads.
const EVENT_THREAD: &str = "fuser-";

thread_local! {
    static CAUGHT: Cell<u32> = const { Cell::new(0) };
}

/// While this lives, a panic of this thread is caught.
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

/// From now on, an uncaught panic of an event thread ends the process.
pub(super) fn end_with_any_event_thread() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            before(panic);
            if is_fatal() {
                tracing::error!(%panic, "a request of the kernel cannot be parsed; the daemon ends; mount again");
                std::process::abort();
            }
        }));
    });
}
