//! Flushes: on request, by themselves, before an eject, and before the end of the mount.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::errors::{is_our_folder_closed, not_ejected};
use super::{Service, conflict, rfc3339};
use crate::control::protocol::{ControlError, CopiedOpen, FlushReport, LeftBehind};
use crate::control::server::Asker;
use crate::core::WhileOpen;
use crate::daemon::flush_job::Patience;
use crate::daemon::monitor::Presence;
use crate::daemon::options::Verify;
use crate::daemon::{flush_job, hooks, monitor};
use crate::drive::throttle::{DiskCounter, Manner};
use crate::error::FlushError;
use crate::flush::{OpenCopy, Report, Wish};
use crate::sys::disk::Disk;

use super::errors::control_error;
use super::status::last_flush;

impl Service {
    /// Flushes, and remembers the result, also if no one waits for it any more.
    pub(in crate::daemon) fn run_flush(
        &self,
        patience: &Patience<'_>,
        wish: Wish,
        asker: &Asker<'_>,
    ) -> Result<Report, FlushError> {
        self.run_flush_and(patience, wish, asker, || {})
    }

    /// The same; `then` runs after a flush that succeeded, before another one can begin.
    pub(super) fn run_flush_and(
        &self,
        patience: &Patience<'_>,
        wish: Wish,
        asker: &Asker<'_>,
        then: impl FnOnce() + Send + 'static,
    ) -> Result<Report, FlushError> {
        if self.closing.load(Ordering::Acquire) {
            return Err(FlushError::Ended { committed: false });
        }
        if self.read_only {
            then();
            return Ok(self.what_waits(
                "this mount only reads the drive; they wait in the cache and are flushed after a \
                 mount without --read-only",
            ));
        }
        // It may have to wait for a flush that is slowed down.
        let _hurry = (wish.manner == Manner::AtOnce).then(|| self.drive.throttle().hurry());
        if let Err(error) = self.prepare_flush(patience, asker) {
            // Those of a flush that goes on are reported by its own thread.
            let goes_on = matches!(error, FlushError::StillRunning { .. } | FlushError::TooLate);
            let failed = Err(error);
            if !goes_on {
                self.hooks.flush_ended(&failed, rfc3339(hooks::now()));
            }
            return failed;
        }
        let patience = Patience {
            deadline: patience.deadline,
            enough: &|silent| self.over.load(Ordering::Acquire) || (patience.enough)(silent),
        };
        let live = self.live.read().clone();
        let wish = Wish {
            deadline: patience.deadline,
            verify: wish.verify || live.verify == Verify::AfterFlush,
            while_open: match live.wait_closed {
                true => WhileOpen::Leave,
                false => wish.while_open,
            },
            ..wish
        };
        let cancel = wish.cancel.clone();
        let closing = || self.closing.load(Ordering::Acquire);
        let progress = |step| asker.tell(step);
        let cancelled = || {
            // A flush that ends with the mount was not cancelled by its caller, which learns below
            // how it ended.
            let closed = closing() && cancel.cancel();
            closed || asker.has_cancelled()
        };
        flush_job::flush(
            (&self.flusher, &self.drive, &self.running),
            wish,
            &patience,
            &Asker::new(&progress, &cancelled),
            then,
            self.after_flush(),
        )
        .map_err(|error| match error {
            FlushError::Cancelled if closing() && !asker.has_cancelled() => {
                FlushError::Ended { committed: false }
            }
            FlushError::StillRunning { .. } if self.over.load(Ordering::Acquire) => {
                FlushError::Ended {
                    committed: !cancel.cancel(),
                }
            }
            error => error,
        })
    }

    /// Lets the throttle see what is read from the drive's disk. Where the cache is on the same
    /// disk, the flush's own reads there would count. It may be, if its disk is unknown, as that of
    /// btrfs.
    pub(in crate::daemon) fn count_reads(&self) {
        let of_cache = std::fs::metadata(&self.cache).ok();
        let of_cache = of_cache.and_then(|meta| Disk::of(meta.dev()));
        let disk = self.monitor.block_device().and_then(Disk::of);
        let disk = disk.filter(|disk| of_cache.is_some_and(|cache| !disk.shares_with(&cache)));
        let counter = disk.map(|disk| -> DiskCounter { Box::new(move || disk.bytes_read()) });
        self.drive.throttle().set_disk(counter);
    }

    /// What must be done before a flush can begin.
    fn prepare_flush(&self, patience: &Patience<'_>, asker: &Asker<'_>) -> Result<(), FlushError> {
        if self.drive.is_attached() {
            self.monitor.look_at_inner_mounts()?;
        }
        self.finish_first(patience, asker)
    }

    /// What is done with the result of a flush, on the flush's own thread.
    fn after_flush(&self) -> impl FnOnce(&Result<Report, FlushError>) + Send + 'static {
        let started = Instant::now();
        let (last_error, monitor) = (self.last_error.clone(), self.monitor.clone());
        let (index, fs) = (self.index.clone(), self.fs.clone());
        let (remembered, hooks) = (self.last_flush.clone(), self.hooks.clone());
        move |result| {
            hooks.flush_ended(result, rfc3339(hooks::now()));
            match result {
                Ok(report) => {
                    *last_error.lock() = None;
                    *remembered.lock() = Some(last_flush(report));
                }
                // The state of the drive says so, and only as long as it lasts.
                Err(FlushError::Detached) => {}
                Err(FlushError::Cancelled) => tracing::info!("a flush was cancelled"),
                Err(error) => {
                    tracing::error!(%error, "flush failed");
                    *last_error.lock() = Some(error.to_string());
                    if error.is_gone() || matches!(error, FlushError::WrongDrive(_)) {
                        monitor.look_now();
                    }
                }
            }
            fs.count_needed();
            // The batch may have moved directories that have mount points below them.
            if result.is_ok() && monitor.presence() == Presence::Attached {
                monitor.look_at_top_directory();
                if let Err(error) = monitor.look_at_inner_mounts() {
                    tracing::error!(%error, "cannot note what is mounted inside the drive");
                }
            }
            let mut state = index.lock();
            if result.is_ok() {
                state.note_flushed(started);
            } else if let Err(error) = state.try_again() {
                tracing::error!(%error, "cannot read from the index what waits");
            }
        }
    }

    /// Finishes what a recovery has left unfinished on the drive, because nothing may be written
    /// beside a committed batch. Neither a cancelled request nor the end of the daemon waits for
    /// it.
    fn finish_first(&self, patience: &Patience<'_>, asker: &Asker<'_>) -> Result<(), FlushError> {
        if !self.monitor.is_unfinished() || !self.drive.is_attached() {
            return Ok(());
        }
        let flusher = self.flusher.clone();
        let silent = || self.drive.stalled().map(|stall| stall.lasts());
        let is_unwanted = || asker.has_cancelled() || self.closing.load(Ordering::Acquire);
        let enough = || {
            let is_late = patience.deadline.is_some_and(|end| Instant::now() > end);
            is_late
                || is_unwanted()
                || self.over.load(Ordering::Acquire)
                || (patience.enough)(silent())
        };
        let Some(outcome) = flush_job::within(move || flusher.recover(), enough) else {
            if is_unwanted() {
                return Err(FlushError::TooLate);
            }
            return Err(FlushError::StillRunning { silent: silent() });
        };
        let why = outcome.as_ref().err().map(ToString::to_string);
        self.monitor.set_unfinished(why);
        match outcome {
            // Only garbage of an ended batch could not be removed. The flush itself finishes a
            // batch of its own that is open.
            Err(FlushError::Backend(error)) if !error.is_gone() && !error.is_stalled() => Ok(()),
            Err(error) => {
                *self.last_error.lock() = Some(error.to_string());
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    /// Whether the drive has not answered for so long that an eject or unmount gives up.
    pub(in crate::daemon) fn is_hopeless(&self, silent: Option<Duration>) -> bool {
        silent.is_some_and(|silent| silent >= self.patience)
    }

    /// Flushes before the mount ends: until `deadline` at the latest, until `enough`, or until the
    /// drive has not answered for too long. Returns `None` if no drive is attached, or it does not
    /// answer.
    pub(in crate::daemon) fn flush_before_end(
        &self,
        deadline: Option<Instant>,
        enough: &dyn Fn() -> bool,
        asker: &Asker<'_>,
    ) -> Option<Result<Report, FlushError>> {
        let silent = self.drive.stalled().map(|stall| stall.lasts());
        if !self.drive.is_attached() || self.is_hopeless(silent) {
            return None;
        }
        let patience = Patience {
            deadline,
            enough: &|silent| self.is_hopeless(silent) || enough(),
        };
        match self.run_flush(&patience, Wish::asked_for(), asker) {
            Err(FlushError::StillRunning { silent: Some(_) }) => None,
            result => Some(result),
        }
    }

    /// Flushes, then detaches the drive before another flush can begin.
    pub(super) fn flush_and_eject(&self, asker: &Asker<'_>) -> Result<FlushReport, ControlError> {
        if !self.drive.is_attached() {
            return Err(self.absent());
        }
        let silent = self.drive.stalled().map(|stall| stall.lasts());
        if self.is_hopeless(silent) {
            let error = FlushError::StillRunning { silent };
            return Err(not_ejected(&error, control_error(&error)));
        }
        let monitor = self.monitor.clone();
        let eject = move || monitor.eject();
        let patience = Patience {
            deadline: None,
            enough: &|silent| self.is_hopeless(silent),
        };
        let report = self
            .run_flush_and(&patience, Wish::asked_for(), asker, eject)
            .or_else(|error| match self.eject_unwritable(&error) {
                Some(report) => Ok(report),
                None => Err(not_ejected(&error, self.explained(&error))),
            })?;
        Ok(self.flush_report(report))
    }

    /// Detaches a drive that can be read but not written, to which no flush would ever succeed.
    /// The report says what waits. Returns `None` if `error` is of another kind.
    fn eject_unwritable(&self, error: &FlushError) -> Option<Report> {
        let FlushError::Backend(cause) = error else {
            return None;
        };
        let why = match cause.source.raw_os_error() {
            Some(libc::EROFS) => "the drive is read-only",
            _ if is_our_folder_closed(cause) => {
                "the folder .ferryfs on the drive cannot be changed"
            }
            _ => return None,
        };
        self.monitor.eject();
        let mut report = self.what_waits(&format!(
            "{why}; they wait in the cache and are flushed when it can be written to"
        ));
        if monitor::has_open_batch(&self.cache) {
            report.left_behind.push((
                "a batch".into(),
                "it is not finished on the drive; it is finished when the drive is attached again"
                    .into(),
            ));
        }
        Some(report)
    }

    /// The report of an unmount without the drive, or with one that does not answer: all that is
    /// dirty is left behind, in the cache.
    pub(super) fn unflushed(&self) -> Report {
        let why = match self.drive.is_attached() {
            true => "the drive does not answer",
            false => "the drive is not attached",
        };
        self.what_waits(&format!(
            "{why}; they wait in the cache and are flushed after the next mount"
        ))
    }

    /// A report that says, with the reason, how much is not on the drive.
    fn what_waits(&self, why: &str) -> Report {
        let waiting = self.waiting();
        let mut report = Report::default();
        if waiting.names + waiting.inodes > 0 {
            let what = format!("{} changed files and names", waiting.names + waiting.inodes);
            report.left_behind.push((what, why.into()));
        }
        report
    }

    /// `report` as the answer to a request.
    pub(super) fn flush_report(&self, report: Report) -> FlushReport {
        FlushReport {
            batch: report.batch.map(|batch| batch.0),
            files: report.files,
            bytes: report.bytes,
            removed: report.removed,
            moved: report.moved,
            seconds: report.took.as_secs_f64(),
            left_behind: report
                .left_behind
                .into_iter()
                .map(|(path, reason)| LeftBehind { path, reason })
                .collect(),
            copied_open: report.copied_open.into_iter().map(copied_open).collect(),
            kept_local: self.waiting().kept_local,
            local: self.local_counts(),
            conflicts: report.conflicts.into_iter().map(conflict).collect(),
            still_used: None,
        }
    }
}

fn copied_open(copy: OpenCopy) -> CopiedOpen {
    CopiedOpen {
        path: copy.path,
        as_of: rfc3339(copy.as_of),
        database: copy.is_database,
    }
}
