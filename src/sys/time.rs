//! The clock that file systems use, and setting modification times to the nanosecond.
//!
//! Each call that sets the modification time sets the access time to the same value. `UTIME_OMIT`
//! would leave the access time alone, but drivers built on libfuse 2, exfat-fuse among them, then
//! change neither time and report success.

use std::io;
use std::os::fd::AsFd;

use nix::sys::stat::{UtimensatFlags, futimens, utimensat};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

use crate::core::{Clock, Name, Timestamp, Utc};

/// The clock from which the kernel takes file times: it ticks with the scheduler. Times that this
/// program sets and times that the SSD's file system sets are then in the order of the events.
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

/// Returns the time since the machine was booted, with the time that it was asleep. Nothing sets
/// it.
pub fn since_boot() -> std::time::Duration {
    match clock_gettime(ClockId::CLOCK_BOOTTIME) {
        Ok(time) => std::time::Duration::from(time),
        // Linux has this clock since 2.6.39.
        Err(_) => std::time::Duration::ZERO,
    }
}

/// Returns how long the machine has slept since its boot.
pub fn asleep() -> std::time::Duration {
    // In this order: a pause between the two calls must not look like a sleep.
    let boot = since_boot();
    let awake = clock_gettime(ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from);
    boot.saturating_sub(awake.unwrap_or(boot))
}

/// A time in a local time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    /// The date and the time of day.
    pub at: Utc,
    /// The offset from UTC in seconds; positive is ahead.
    pub offset: i64,
}

/// Returns `time` in the time zone of this process (`TZ`, else `/etc/localtime`); `None` if the
/// system cannot convert it.
pub fn local(time: Timestamp) -> Option<Local> {
    let secs = libc::time_t::try_from(time.parts().0).ok()?;
    // SAFETY: tm is plain data, for which all zeros is a value; its pointer to the zone's name may
    // be null.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of this function. The call reads the environment, as
    // every `std::env::var` does; nothing in this program sets a variable.
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
    // `tv_sec` and `tv_nsec` have the platform's width; i64 seconds fit on all supported platforms.
    TimeSpec::new(secs as _, nanos.into())
}

/// Sets the modification time of an open file.
///
/// # Errors
/// What the system said.
pub fn set_modified_fd(file: impl AsFd, modified: Timestamp) -> io::Result<()> {
    Ok(futimens(file, &spec(modified), &spec(modified))?)
}

/// Sets the modification time of `name` in the directory `dir`; for a symbolic link, that of the
/// link itself. `None` means the directory.
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
