//! The unmount: takes the mount away, and looks for what still uses its file system.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Service;
use super::errors::{not_unmounted, unmount_error};
use crate::control::protocol::{ControlError, ErrorCode, FlushReport, UsedBy, Users};
use crate::control::server::Asker;
use crate::core::ForeignText;
use crate::daemon::shutdown::{Asked, LAST_BREATH};
use crate::daemon::{dead_mount, tasks};
use crate::error::FlushError;
use crate::flush::Report;
use crate::sys::holders::{Holder, Use};
use crate::sys::{holders, mounts};

/// How much longer to wait for the end of the file system if no user of it is found.
const BUSY_MACHINE: Duration = Duration::from_secs(5);

/// Where the mount is, in the mount namespace of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::daemon) enum Place {
    /// At its mount point.
    There,
    /// Another file system is mounted over it.
    Covered,
    /// Not mounted any more.
    Gone,
}

impl Service {
    /// Where the mount is now.
    pub(in crate::daemon) fn place(&self) -> Place {
        let (Some(&device), Ok(table)) = (self.device.get(), mounts::mounts()) else {
            // Unknown: the system call fails if it is not there.
            return Place::There;
        };
        let at_place: Vec<u64> = (table.iter())
            .filter(|mount| mount.mount_point == self.mountpoint)
            .map(|mount| mount.dev)
            .collect();
        match at_place.last() {
            Some(&last) if last == device => Place::There,
            _ if at_place.contains(&device) => Place::Covered,
            _ => Place::Gone,
        }
    }

    /// What uses the file system, except for the mount itself.
    pub(super) fn users(&self) -> Users {
        let Some(&device) = self.device.get() else {
            return Users::default();
        };
        let holders = holders::of(device);
        let is_itself = |holder: &Holder| {
            holder.process.is_none() && holder.how == Use::Mount && holder.path == self.mountpoint
        };
        Users {
            some_unseen: holders.some_unseen,
            found: (holders.found.into_iter())
                .filter(|holder| !is_itself(holder))
                .map(used_by)
                .collect(),
        }
    }

    /// Flushes if asked to, and takes the mount away.
    pub(super) fn flush_and_unmount(
        &self,
        flush: bool,
        force: bool,
        asker: &Asker<'_>,
    ) -> Result<FlushReport, ControlError> {
        let flushed = if flush {
            self.flush_before_end(None, &|| false, asker)
        } else {
            Some(Ok(Report::default()))
        };
        let report = match flushed {
            None => self.unflushed(),
            Some(result) => result.map_err(|error| not_unmounted(&error))?,
        };
        if asker.has_cancelled() {
            return Err(not_unmounted(&FlushError::Cancelled));
        }
        self.ending.store(true, Ordering::Release);
        self.take_away(force)
            .inspect_err(|_| self.ending.store(false, Ordering::Release))?;
        let mut report = self.flush_report(report);
        report.still_used = self.remaining_users(flush, force);
        if !flush && report.still_used.is_none() {
            self.closing.store(true, Ordering::Release);
        }
        Ok(report)
    }

    /// Takes the mount away; with `force` even if it is in use.
    fn take_away(&self, force: bool) -> Result<(), ControlError> {
        let outcome = match self.place() {
            Place::Gone => return Ok(()),
            Place::Covered => {
                let message = format!(
                    "not unmounted: another file system is mounted over {}",
                    self.mountpoint.escaped()
                );
                return Err(ControlError::new(ErrorCode::Busy, message).with_hint(
                    "unmount that one first (`umount` with the same path), and try again",
                ));
            }
            Place::There => tasks::unmount(&self.mountpoint, self.device.get().copied()),
        };
        match outcome {
            Err(_) if force => {
                dead_mount::detach_device(&self.mountpoint, self.device.get().copied())
                    .map_err(|error| ControlError::new(ErrorCode::Failed, error.to_string()))
            }
            Err(error) => Err(unmount_error(&error, &self.mountpoint, &self.users())),
            Ok(()) => Ok(()),
        }
    }

    /// Returns what uses the file system after its mount has been taken away, if anything does.
    /// The daemon then keeps serving it.
    fn remaining_users(&self, flush: bool, force: bool) -> Option<Users> {
        let _ = self.ended.send(Asked::Look);
        if self.life.wait(LAST_BREATH) {
            return None;
        }
        if force {
            let _ = self.ended.send(Asked::CutOff);
            return None;
        }
        let users = self.users();
        // On a busy machine the last threads of a program may end late.
        if users.found.is_empty() && self.life.wait(BUSY_MACHINE) {
            return None;
        }
        self.ending.store(false, Ordering::Release);
        self.flush_at_end.store(flush, Ordering::Release);
        tracing::warn!(
            ?users,
            "unmounted, but the file system is still in use elsewhere"
        );
        Some(users)
    }
}

fn used_by(holder: Holder) -> UsedBy {
    let (pid, program) = holder.process.unzip();
    UsedBy {
        pid,
        program,
        path: holder.path.to_text(),
        is_mount: matches!(holder.how, Use::Mount | Use::Covered),
    }
}
