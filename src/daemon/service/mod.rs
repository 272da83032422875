//! A running daemon as the control socket sees it: the parts that a request works with, and the
//! requests.

mod automatic;
mod errors;
mod flushing;
mod keeping;
mod leaving;
mod scrubbing;
mod status;
mod unmounting;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use parking_lot::{Mutex, RwLock};
use uuid::Uuid;

pub(super) use self::errors::{control_error, hint};
pub(super) use self::unmounting::Place;
use super::external_changes::Refreshing;
use super::flush_job::Patience;
use super::hooks::Hooks;
use super::keep_clean::KeepClean;
use super::keeping::Keeper;
use super::metrics::{Running, Totals};
use super::monitor::{Monitor, Presence};
use super::options::{Live, Origin};
use super::scrub::Scrubber;
use super::shutdown::{Asked, Life};
use super::under_mount::Taken;
use super::when::Timing;
use crate::cache::Store;
use crate::control::protocol::{
    AttachReport, Automatic, ConfigOrigin, Conflict, ControlError, ErrorCode, FlushReport,
    FlushWish, LastFlush, LeavePlan, LocalReport, RefreshReport, ScrubStatus, ScrubWish, Status,
};
use crate::control::server::{Asker, Handler};
use crate::core::{RelPath, Timestamp, Utc, WhileOpen};
use crate::drive::connection::Drive;
use crate::error::FlushError;
use crate::flush::{Flusher, Wish};
use crate::index::Index;
use crate::vfs::Fs;

/// The parts of a running daemon.
pub(super) struct Service {
    pub(super) fs: Arc<Fs>,
    pub(super) index: Arc<Index>,
    pub(super) drive: Arc<Drive>,
    pub(super) flusher: Arc<Flusher>,
    pub(super) monitor: Arc<Monitor>,
    pub(super) volume: Uuid,
    pub(super) mountpoint: PathBuf,
    /// The options that may change while the mount is there.
    pub(super) live: RwLock<Live>,
    /// The configuration that they are from.
    pub(super) origin: Mutex<Option<Origin>>,
    /// When flushes begin by themselves.
    pub(super) timing: Timing,
    /// The user's commands.
    pub(super) hooks: Arc<Hooks>,
    /// The mount changes nothing.
    pub(super) read_only: bool,
    /// The drive is on a network file system.
    pub(super) on_network: bool,
    /// What the thread that brings, evicts and removes files has found.
    pub(super) keeper: Keeper,
    /// The scrubs of the drive.
    pub(super) scrubber: Scrubber,
    /// The last error, until a flush succeeds.
    pub(super) last_error: Arc<Mutex<Option<String>>>,
    /// How long a drive may not answer before `eject` and `unmount` give up on it.
    pub(super) patience: Duration,
    /// For the number of files in lost+found.
    pub(super) store: Arc<Store>,
    /// What the start of this daemon has found that the user must know.
    pub(super) attention: Vec<String>,
    /// What was moved into the mount from the directory under it.
    pub(super) from_below: Arc<Mutex<Taken>>,
    /// When external changes were last looked for, and what was found.
    pub(super) refreshing: Arc<Refreshing>,
    /// The cache directory.
    pub(super) cache: PathBuf,
    /// How much of the SSD the cache may take, in bytes.
    pub(super) cache_limit: u64,
    /// `st_dev` of the mount, once it is there.
    pub(super) device: OnceLock<u64>,
    /// What the last flush has left behind.
    pub(super) last_flush: Arc<Mutex<Option<LastFlush>>>,
    /// The flush under way.
    pub(super) running: Arc<Running>,
    /// What the batches have done together.
    pub(super) totals: Arc<Totals>,
    /// Keeps the drive's file system read-only between batches.
    pub(super) clean: Arc<KeepClean>,
    /// Wakes the thread that waits for the end of the mount.
    pub(super) ended: Sender<Asked>,
    /// Whether the kernel has ended the file system.
    pub(super) life: Life,
    /// No automatic flush begins any more.
    pub(super) ending: AtomicBool,
    /// A flush whose batch is not committed gives up.
    pub(super) closing: AtomicBool,
    /// When the last use of an unmounted file system ends, the rest is flushed.
    pub(super) flush_at_end: AtomicBool,
    /// The daemon ends during a flush, and no one may wait for that flush any more.
    pub(super) over: AtomicBool,
}

impl Service {
    /// Refuses what writes to the drive past the mount.
    fn refuse_on_read_only(&self, what: &str) -> Result<(), ControlError> {
        if !self.read_only {
            return Ok(());
        }
        let message = format!("this mount only reads the drive (--read-only): it does not {what}");
        let hint = "unmount it, and mount the drive without --read-only";
        Err(ControlError::new(ErrorCode::Failed, message).with_hint(hint))
    }
}

fn conflict((path, theirs): (String, String)) -> Conflict {
    Conflict { path, theirs }
}

/// The time as RFC 3339 in UTC, to the second.
pub(super) fn rfc3339(time: Timestamp) -> String {
    let Utc {
        year,
        month,
        day,
        hour,
        minute,
        second,
    } = time.utc();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

fn check_absolute(path: &Path) -> Result<(), ControlError> {
    match path.is_absolute() {
        true => Ok(()),
        false => Err(ControlError::new(
            ErrorCode::BadRequest,
            "the path to attach is not absolute",
        )),
    }
}

impl Handler for Service {
    fn status(&self) -> Status {
        self.current_status()
    }

    fn flush(&self, wish: &FlushWish, asker: &Asker<'_>) -> Result<FlushReport, ControlError> {
        let timeout = wish.timeout_ms.map(Duration::from_millis);
        let patience = Patience {
            // A timeout that the clock cannot represent is no deadline.
            deadline: timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            enough: &|_| false,
        };
        let wish = Wish {
            verify: wish.verify,
            removals_first: wish.removals_first,
            release: wish.release,
            while_open: match wish.wait_closed {
                true => WhileOpen::Leave,
                false => WhileOpen::ON_REQUEST,
            },
            ..Wish::asked_for()
        };
        self.run_flush(&patience, wish, asker)
            .map(|report| self.flush_report(report))
            .map_err(|error| self.flush_failed(&error))
    }

    fn include_interrupted(&self) -> Result<u64, ControlError> {
        let included = self.index.lock().include_interrupted();
        included.map_err(|error| ControlError::new(ErrorCode::Failed, error.to_string()))
    }

    fn eject(&self, asker: &Asker<'_>) -> Result<FlushReport, ControlError> {
        self.flush_and_eject(asker)
    }

    fn attach(
        &self,
        path: &Path,
        accept_copy: bool,
        fsck: bool,
        take_over: bool,
    ) -> Result<AttachReport, ControlError> {
        check_absolute(path)?;
        if fsck {
            self.refuse_on_read_only("repair the drive's file system")?;
        }
        self.monitor.attach(path, accept_copy, fsck, take_over)
    }

    fn re_enroll(&self, path: &Path, accept_copy: bool) -> Result<AttachReport, ControlError> {
        check_absolute(path)?;
        self.refuse_on_read_only("write the drive's marker again")?;
        self.monitor.re_enroll(path, accept_copy)
    }

    fn refresh(&self, path: &str) -> Result<RefreshReport, ControlError> {
        if self.monitor.presence() != Presence::Attached || !self.drive.is_attached() {
            return Err(self.absent());
        }
        if let Some(stall) = self.drive.stalled() {
            let message = format!(
                "the drive has not answered for {} s",
                stall.lasts().as_secs()
            );
            return Err(ControlError::new(ErrorCode::BackendAbsent, message)
                .with_hint("check the NAS or drive, and try again"));
        }
        let wrong = || ControlError::new(ErrorCode::BadRequest, "not a path below the mount");
        let path = RelPath::parse(path.as_bytes()).map_err(|_| wrong())?;
        let (dir, below) = self.directory_at(&path).ok_or_else(wrong)?;
        if !self.is_anywhere(&path) {
            let message = format!("there is no {path} in the mount or on the drive");
            return Err(ControlError::new(ErrorCode::Failed, message)
                .with_hint("check the spelling; no directory was compared"));
        }
        let over = || self.over.load(Ordering::Acquire);
        // It may have to wait for a flush that is slowed down.
        let _hurry = self.drive.throttle().hurry();
        self.look_for_changes(dir, below, &over)
            .map_err(|error| match error {
                FlushError::TimedOut => ControlError::new(ErrorCode::Busy, "the mount is ending"),
                error => control_error(&error),
            })
    }

    fn pause(&self, time: Option<Duration>) -> Result<Automatic, ControlError> {
        self.pause_automatic(time)
    }

    fn resume(&self) -> Result<Automatic, ControlError> {
        self.resume_automatic()
    }

    fn reload(
        &self,
        live: &serde_json::Value,
        config: &ConfigOrigin,
    ) -> Result<Automatic, ControlError> {
        self.take_up(live, config)
    }

    fn scrub(&self, wish: &ScrubWish, asker: &Asker<'_>) -> Result<ScrubStatus, ControlError> {
        self.scrub_and_wait(*wish, asker)
    }

    fn stop_scrub(&self) -> Result<ScrubStatus, ControlError> {
        self.scrubber.stop();
        Ok(self.scrub_status())
    }

    fn leave_plan(&self) -> Result<LeavePlan, ControlError> {
        self.plan_to_leave()
    }

    fn local(&self, instead: Option<&[String]>) -> Result<LocalReport, ControlError> {
        self.local_report(instead)
    }

    fn unmount(
        &self,
        flush: bool,
        force: bool,
        asker: &Asker<'_>,
    ) -> Result<FlushReport, ControlError> {
        self.flush_and_unmount(flush, force, asker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339_in_utc() {
        for (secs, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_132_800, "2026-11-20T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(Timestamp::from_parts(secs, 0)), text);
        }
    }
}
