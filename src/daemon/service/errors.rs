//! Errors of a request: the code for the exit status, the message, and what the user can do.

use std::path::Path;

use super::Service;
use crate::control::protocol::{ControlError, ErrorCode, Users};
use crate::core::{Failure, ForeignText, quoted};
use crate::daemon::dead_mount::DetachError;
use crate::drive::BackendError;
use crate::error::FlushError;
use crate::format::layout;

/// What the user can do about a flush that failed.
pub(in crate::daemon) fn hint(error: &FlushError) -> Option<&'static str> {
    Some(match error {
        FlushError::Detached => {
            "plug the drive in and mount it; ferryfs attaches it without a command"
        }
        FlushError::WrongDrive(_) => {
            "mount the right drive there; nothing was written and nothing is lost"
        }
        FlushError::InUse(_) => {
            "nothing is lost: what waits is in the cache. When the other machine releases the \
             directory, this mount attaches it without a command; to take it over: ferryfs attach \
             --take-over DIR"
        }
        FlushError::Full { path: None, .. } => {
            "nothing was flushed and nothing is lost; delete files on the drive itself until as \
             much is free, then flush again"
        }
        FlushError::Full { freed: 0, .. } => {
            "nothing was flushed and nothing is lost; delete something in the mount, then run \
             `ferryfs flush --removals-first`"
        }
        FlushError::Full { .. } => {
            "nothing was flushed and nothing is lost; `ferryfs flush --removals-first` flushes the \
             deletions first"
        }
        FlushError::Held { .. } => {
            "nothing was written and nothing is lost: what waits is in the cache. If that is what \
             you want: ferryfs flush --release; else put it right in the mount first"
        }
        FlushError::Lies { .. } => {
            "nothing is lost, all of it is in the cache; check the drive and its cable before you \
             write more to it"
        }
        FlushError::Sync(_) => {
            "the SSD does not store what is written to it; see `ferryfs status`, and check the SSD"
        }
        FlushError::StillRunning { silent: Some(_) } => {
            "check the NAS or drive; `ferryfs status` says when it answers again"
        }
        FlushError::TooLate | FlushError::StillRunning { silent: None } => {
            "`ferryfs status` says when it is done"
        }
        FlushError::Backend(error) if error.is_full() => {
            "nothing is lost, and the next flush finishes the batch; free some space on the drive \
             itself first, or leave behind what does not fit: `ferryfs flush --removals-first`"
        }
        FlushError::Backend(error) if error.is_stalled() => {
            "check the NAS or drive; what was not flushed waits in the cache"
        }
        FlushError::TimedOut => "run `ferryfs flush` again with more time",
        FlushError::Cancelled => "what waits is in the cache; the next flush writes it",
        FlushError::Ended { .. } => {
            "nothing is lost: what was not flushed waits in the cache and is flushed after the \
             next mount"
        }
        FlushError::Unfinished { .. } => {
            "nothing was overwritten; correct that and run `ferryfs flush` again"
        }
        FlushError::Backend(error) if error.source.raw_os_error() == Some(libc::EROFS) => {
            "the drive is read-only: check its write protection and how it is mounted; what was \
             not flushed waits in the cache"
        }
        FlushError::Backend(error) if error.is_gone() => {
            "check the drive and its cable; what was not flushed waits in the cache"
        }
        FlushError::NotOurs { .. } => {
            "ferryfs did not make it: look at it and move it away; it was not followed, and \
             nothing was changed"
        }
        FlushError::Backend(error) if is_way_of_ours_blocked(error) => {
            "something that ferryfs did not make is in .ferryfs on the drive, perhaps a link: look \
             at it and move it away; nothing was read or written through it"
        }
        FlushError::Backend(error) if is_our_folder_closed(error) => {
            "the folder .ferryfs on the drive cannot be changed: it belongs to another user, or is \
             marked immutable (see lsattr). Correct that and flush again; nothing is lost, what \
             waits is in the cache"
        }
        _ => return None,
    })
}

/// Whether a path of our own on the drive leads through a link or a file, or something is in the
/// way at its end.
fn is_way_of_ours_blocked(error: &BackendError) -> bool {
    layout::is_reserved(&error.path)
        && matches!(
            error.source.raw_os_error(),
            Some(libc::ELOOP | libc::ENOTDIR | libc::EISDIR | libc::EEXIST | libc::ENOTEMPTY)
        )
}

/// Whether the drive refuses to change our own folder.
pub(super) fn is_our_folder_closed(error: &BackendError) -> bool {
    layout::is_reserved(&error.path)
        && matches!(
            error.source.raw_os_error(),
            Some(libc::EPERM | libc::EACCES)
        )
}

/// A failure that means that the drive is not attached, as the answer to a request.
fn absent(absence: Failure) -> ControlError {
    ControlError {
        code: ErrorCode::BackendAbsent,
        message: absence.message,
        hint: absence.hint,
    }
}

/// A failed flush as the answer to a request.
pub(in crate::daemon) fn control_error(error: &FlushError) -> ControlError {
    let code = if matches!(error, FlushError::Cancelled | FlushError::TooLate) {
        ErrorCode::Cancelled
    } else if error.is_gone() || matches!(error, FlushError::WrongDrive(_)) {
        ErrorCode::BackendAbsent
    } else {
        ErrorCode::Failed
    };
    let control = ControlError::new(code, error.to_string());
    match hint(error) {
        Some(hint) => control.with_hint(hint),
        None => control,
    }
}

/// `control`, which explains `error`, as the answer to an eject. A drive that does not answer
/// counts as absent: the user wants to unplug it.
pub(super) fn not_ejected(error: &FlushError, control: ControlError) -> ControlError {
    let message = format!("not ejected: {}", control.message);
    match error {
        FlushError::StillRunning { .. } => ControlError {
            code: ErrorCode::BackendAbsent,
            message,
            ..control
        },
        FlushError::Cancelled | FlushError::TooLate => ControlError { message, ..control },
        _ => control,
    }
}

/// `error` of the flush before an unmount, as the answer to the unmount.
pub(super) fn not_unmounted(error: &FlushError) -> ControlError {
    let control = control_error(error);
    match error {
        FlushError::Cancelled | FlushError::TooLate => ControlError {
            message: format!("not unmounted: {}", control.message),
            ..control
        },
        _ => ControlError {
            message: format!(
                "not unmounted, because the flush failed: {}",
                control.message
            ),
            hint: Some(
                "nothing is lost: what waits is in the cache. To unmount without flushing: \
                 ferryfs unmount --no-flush"
                    .into(),
            ),
            ..control
        },
    }
}

/// `error` of the unmount itself, with the `users` of the file system.
pub(super) fn unmount_error(error: &DetachError, mountpoint: &Path, users: &Users) -> ControlError {
    if users.is_empty() {
        return ControlError::new(ErrorCode::Busy, error.to_string())
            .with_hint("something still uses it: end that and try again");
    }
    let message = format!(
        "not unmounted: {} is in use by {}",
        mountpoint.escaped(),
        crate::control::users::users(users)
    );
    ControlError::new(ErrorCode::Busy, message).with_hint(format!(
        "end that, or leave the directory, and try again; to cut it off: ferryfs unmount --force \
         {}",
        quoted(mountpoint)
    ))
}

impl Service {
    /// Why the drive is not attached, as the answer to a request that needs it.
    pub(super) fn absent(&self) -> ControlError {
        absent(self.monitor.absence())
    }

    /// A failed flush as the answer to a request, with what the monitor knows of the drive.
    pub(super) fn explained(&self, error: &FlushError) -> ControlError {
        match error {
            FlushError::Detached => self.absent(),
            error if matches!(error, FlushError::WrongDrive(_)) || error.is_gone() => {
                match self.monitor.look_at_its_place() {
                    Some(trouble) => absent(trouble),
                    None => control_error(error),
                }
            }
            error => control_error(error),
        }
    }

    /// A failed flush as the answer to `ferryfs flush`. If the mount ended before the flush was
    /// done, the answer says how much waits.
    pub(super) fn flush_failed(&self, error: &FlushError) -> ControlError {
        let control = self.explained(error);
        if !matches!(error, FlushError::Ended { .. }) {
            return control;
        }
        let waiting = self.waiting();
        let message = format!(
            "{}; {} changed files and names wait",
            control.message,
            waiting.names + waiting.inodes
        );
        ControlError { message, ..control }
    }
}
