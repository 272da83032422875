//! Descriptors that a process inherits.

use std::io;

/// Closes every descriptor above stderr, so that a daemon does not keep the locks and pipes of its
/// caller open for days.
///
/// A fresh process calls this first, before it opens anything itself.
///
/// # Errors
/// What the system said (`ENOSYS` before Linux 5.9); nothing is closed then.
pub(crate) fn close_inherited() -> io::Result<()> {
    // SAFETY: the call touches no memory. The caller promises that no code in this process owns one
    // of the descriptors: the process has just begun and has opened none.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
