//! The clock that file systems use, and setting the time of last change, to the nanosecond.
//!
//! When a time is set, the time of last access is set along with it, to the same point. Leaving it alone (`UTIME_OMIT`) would be more polite,
//! but drivers built on libfuse 2, exfat-fuse among them, then change neither time and report success.

use std::io;
use std::os::fd::AsFd;

use nix::sys::stat::{UtimensatFlags, futimens, utimensat};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

use crate::base::{Clock, Name, Timestamp, Utc};

/// The clock that the kernel takes file times from: it ticks with the scheduler. Times set by us and by the SSD's file system
/// are then in the order in which things happened.
#[derive(Clone, Copy, Debug, Default)]
pub struct CoarseClock;

impl Clock for CoarseClock {
    fn now(&self) -> Timestamp {
        match clock_gettime(ClockId::CLOCK_REALTIME_COARSE) {
            Ok(time) => Timestamp::from_parts(time.tv_sec(), time.tv_nsec() as u32),
            // Linux has this clock since 2.6.32.
            Err(_) => std::time::SystemTime::now().into(),
        }
    }
}

/// A time as the clock on the wall shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    /// The date and the time of day.
    pub at: Utc,
    /// How far ahead of UTC that is, in seconds.
    pub offset: i64,
}

/// `time` in the time zone of this process (`TZ`, else `/etc/localtime`); `None` where that cannot be told.
pub fn local(time: Timestamp) -> Option<Local> {
    let secs = libc::time_t::try_from(time.parts().0).ok()?;
    // SAFETY: tm is plain data, for which all zeros is a value; null is one for its pointer to the zone's name.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of this function. It reads the environment, as does every `std::env::var`;
    // nothing in this program sets a variable.
    let found = unsafe { libc::localtime_r(&raw const secs, &raw mut tm) };
    if found.is_null() {
        return None;
    }
    let offset: i64 = tm.tm_gmtoff as _;
    let shifted = Timestamp::from_parts(secs.checked_add(offset)?, 0);
    Some(Local {
        at: shifted.utc(),
        offset,
    })
}

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
    Ok(futimens(file, &spec(modified), &spec(modified))?)
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
        &spec(modified),
        &spec(modified),
        UtimensatFlags::NoFollowSymlink,
    )?)
}
