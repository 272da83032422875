//! Descriptors that a process was born with.

use std::io;

/// Closes every descriptor above stderr, so that a daemon does not keep its caller's locks and pipes for days.
///
/// To be called first thing in a fresh process, before it opened anything itself.
///
/// # Errors
/// What the system said (`ENOSYS` before Linux 5.9); nothing is closed then.
pub(crate) fn close_inherited() -> io::Result<()> {
    // SAFETY: no memory is touched. That nobody in this process owns one of the descriptors is the caller's promise:
    // the process has just begun and opened none.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
