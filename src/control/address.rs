//! The path of the socket, also where it is too long for a socket address.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::protocol::SOCKET_NAME;

/// The longest path in `sun_path`: 108 bytes with the closing NUL.
const LONGEST: usize = 107;

/// Calls `act` with a path to the socket in `dir` that is short enough to bind or connect to.
///
/// A longer one is reached through a descriptor of its directory, which stays open while `act`
/// runs.
pub(super) fn at_socket<T>(dir: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let path = dir.join(SOCKET_NAME);
    if path.as_os_str().as_bytes().len() <= LONGEST {
        return act(&path);
    }
    let held = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC)
        .open(dir)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd())).join(SOCKET_NAME);
    act(&short)
}
