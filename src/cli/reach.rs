//! From a mount to the daemon behind it.
//!
//! The mount itself tells where its daemon's socket is: its root has a virtual extended attribute with the cache
//! directory. So nothing has to be remembered elsewhere, and a dead daemon shows by the kernel's own word.

use std::ffi::{CStr, OsString};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::exit::Failure;
use super::mounts::{self, MountEntry};
use super::progress::Bar;
use super::render::quoted;
use crate::control::client::{Client, ClientError};
use crate::control::protocol::{Answer, FlushReport, Request};
use crate::sys::xattr;

/// The virtual attribute of the mount's root; its value is the cache directory, in bytes.
pub const CACHE_ATTRIBUTE: &CStr = c"user.ferryfs.cache";

/// Why there is no way to a mount's daemon.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// The daemon died, and its mount is still in the table.
    #[error("the ferryfs daemon of {} is gone; nothing is lost", mountpoint.display())]
    DaemonGone {
        /// The mount.
        mountpoint: PathBuf,
        /// Its backend.
        backend: PathBuf,
    },
    /// The mount is another user's.
    #[error("{} is the mount of another user", .0.display())]
    NotOurs(PathBuf),
    /// The mount does not tell where its daemon is.
    #[error("{} does not tell where its daemon is: {source}", mountpoint.display())]
    Attribute {
        /// The mount.
        mountpoint: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The daemon does not listen.
    #[error(transparent)]
    Connect(#[from] ClientError),
}

impl From<ReachError> for Failure {
    fn from(error: ReachError) -> Failure {
        let failure = Failure::failed(error.to_string());
        match error {
            ReachError::DaemonGone {
                mountpoint,
                backend,
            } => failure.hint(format!(
                "run `ferryfs mount {} {}` again",
                quoted(&backend),
                quoted(&mountpoint)
            )),
            ReachError::NotOurs(_) => {
                failure.hint("run this as the user who mounted it, or as root")
            }
            ReachError::Attribute { .. } => {
                failure.hint("its daemon may be of another version: unmount, and mount again")
            }
            ReachError::Connect(error) => error.into(),
        }
    }
}

/// Connects to the daemon of `mount`.
///
/// # Errors
/// [`ReachError`].
pub fn daemon_of(mount: &MountEntry) -> Result<Client, ReachError> {
    let mountpoint = mount.mountpoint.clone();
    match xattr::get(&mountpoint, CACHE_ATTRIBUTE) {
        Ok(cache) => Ok(Client::connect(&PathBuf::from(OsString::from_vec(cache)))?),
        Err(source) => Err(match source.raw_os_error() {
            Some(libc::ENOTCONN | libc::ECONNABORTED) => ReachError::DaemonGone {
                mountpoint,
                backend: mount.source.clone(),
            },
            Some(libc::EACCES | libc::EPERM) => ReachError::NotOurs(mountpoint),
            _ => ReachError::Attribute { mountpoint, source },
        }),
    }
}

/// Asks the daemon of the mount at `wanted` (or of the only one) for something that carries files over, showing `bar`.
///
/// # Errors
/// A [`Failure`] if there is no such mount, no daemon, or the daemon's own.
pub(super) fn ask_for_report(
    wanted: Option<&Path>,
    request: &Request,
    timeout: Option<Duration>,
    bar: &mut Bar,
) -> Result<FlushReport, Failure> {
    let mount = mounts::find(wanted)?;
    let mut client = daemon_of(&mount)?;
    report(&mut client, request, timeout, bar)
}

/// As [`ask_for_report`], on a connection that is there.
pub(super) fn report(
    client: &mut Client,
    request: &Request,
    timeout: Option<Duration>,
    bar: &mut Bar,
) -> Result<FlushReport, Failure> {
    let answer = client.call(request, timeout, &mut |step| bar.show(step));
    bar.clear();
    match answer? {
        Answer::Report(report) => Ok(report),
        _ => Err(unexpected()),
    }
}

pub(super) fn unexpected() -> Failure {
    Failure::failed("the daemon answered something else than it was asked")
        .hint("unmount, and mount again with this version of ferryfs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_daemon_is_said_with_the_command_that_revives_it() {
        let failure = Failure::from(ReachError::DaemonGone {
            mountpoint: "/home/me/my lab".into(),
            backend: "/media/HDD".into(),
        });
        assert_eq!(
            failure.to_string(),
            "ferryfs: the ferryfs daemon of /home/me/my lab is gone; nothing is lost\n  \
             hint: run `ferryfs mount /media/HDD '/home/me/my lab'` again"
        );
    }
}
