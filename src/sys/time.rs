//! Setting the time of last change, to the nanosecond, and leaving the time of last access alone.

use std::io;
use std::os::fd::AsFd;

use nix::sys::stat::{UtimensatFlags, futimens, utimensat};
use nix::sys::time::TimeSpec;

use crate::base::{Name, Timestamp};

fn spec(time: Timestamp) -> TimeSpec {
    let (secs, nanos) = time.parts();
    // `tv_sec` and `tv_nsec` are as wide as the platform has them; i64 seconds fit on all that this is built for.
    TimeSpec::new(secs as _, nanos.into())
}

/// Sets the time of last change of an open file.
///
/// # Errors
/// What the system said.
pub fn set_modified_fd(file: impl AsFd, modified: Timestamp) -> io::Result<()> {
    Ok(futimens(file, &TimeSpec::UTIME_OMIT, &spec(modified))?)
}

/// Sets the time of last change of `name` in the directory `dir`, of a symbolic link itself if it is one.
/// `None` stands for the directory.
///
/// # Errors
/// What the system said.
pub fn set_modified_at(dir: impl AsFd, name: Option<&Name>, modified: Timestamp) -> io::Result<()> {
    let name = name.map_or(".".as_ref(), Name::as_os_str);
    Ok(utimensat(
        dir,
        name,
        &TimeSpec::UTIME_OMIT,
        &spec(modified),
        UtimensatFlags::NoFollowSymlink,
    )?)
}
