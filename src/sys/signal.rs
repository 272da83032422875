//! Notification of SIGINT (Ctrl-C).

use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

/// The flag that the handler sets. A static pointer, because a handler takes no arguments.
static TO_SET: AtomicPtr<AtomicBool> = AtomicPtr::new(std::ptr::null_mut());

extern "C" fn note(_: libc::c_int) {
    let flag = TO_SET.load(Ordering::Acquire);
    // SAFETY: it is null or was made from a `&'static AtomicBool`. Storing to an atomic is safe in
    // a signal handler.
    if let Some(flag) = unsafe { flag.as_ref() } {
        flag.store(true, Ordering::Release);
    }
}

/// Makes the next SIGINT set `flag`; the one after it has its usual effect again. Does nothing
/// where SIGINT is ignored, as for a background job of a shell without job control.
pub fn note_once(flag: &'static AtomicBool) {
    TO_SET.store(std::ptr::from_ref(flag).cast_mut(), Ordering::Release);
    // SAFETY: sigaction is plain data, for which all zeros is a value.
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live value; a null pointer for the new action only queries.
    let asked = unsafe { libc::sigaction(libc::SIGINT, std::ptr::null(), &raw mut before) };
    if asked != 0 || before.sa_sigaction == libc::SIG_IGN {
        return;
    }
    // SAFETY: as above.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = note as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // Without SA_RESTART a read that waits returns at once.
    action.sa_flags = libc::SA_RESETHAND;
    // SAFETY: the handler only makes calls that are allowed in one, and lives as long as the
    // program.
    unsafe { libc::sigaction(libc::SIGINT, &raw const action, std::ptr::null_mut()) };
}
