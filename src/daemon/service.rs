//! What the control socket asks for.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use parking_lot::Mutex;
use uuid::Uuid;

use super::below::Taken;
use super::flight::{self, Patience};
use super::monitor::{Monitor, Presence};
use super::refresh::Refreshing;
use super::{dead_mount, tasks};
use crate::backend::drive::Drive;
use crate::base::{RelPath, Timestamp, Utc};
use crate::cache::Store;
use crate::control::protocol::{
    AttachReport, BackendState, BatchOutcome, ControlError, ErrorCode, FlushReport, FlushWish,
    ImportStatus, IoPath, LastBatch, LeftBehind, Progress, RefreshReport, Status,
};
use crate::control::server::Handler;
use crate::flush::{FlushError, Flusher, Report, Wish};
use crate::fs::Fs;
use crate::index::{BatchSummary, Index, Waiting};

/// Files held back that are named one by one.
const HELD_BACK_NAMED: u32 = 5;

/// Everything that a running daemon is made of, for those who look after it.
pub(super) struct Service {
    pub(super) fs: Arc<Fs>,
    pub(super) index: Arc<Index>,
    pub(super) drive: Arc<Drive>,
    pub(super) flusher: Arc<Flusher>,
    pub(super) monitor: Arc<Monitor>,
    pub(super) volume: Uuid,
    pub(super) mountpoint: PathBuf,
    /// The last thing that went wrong and has not been put right since.
    /// Every flush reads back what it has written.
    pub(super) verify: bool,
    pub(super) last_error: Arc<Mutex<Option<String>>>,
    /// How long a backend may not answer before `eject` and `unmount` go on without it.
    pub(super) patience: Duration,
    /// For what is in lost+found.
    pub(super) store: Arc<Store>,
    /// What the start of this daemon has found that its owner must know.
    pub(super) attention: Vec<String>,
    /// What was moved into the mount from the directory under it.
    pub(super) from_below: Arc<Mutex<Taken>>,
    /// What is known of looks for changes of others.
    pub(super) refreshing: Arc<Refreshing>,
    /// Told when the mount has been ended on request.
    pub(super) ended: Sender<()>,
    /// No new flush begins by itself.
    pub(super) ending: AtomicBool,
    /// The daemon ends in the middle of a flush: nobody is to wait for it any more.
    pub(super) over: AtomicBool,
}

/// What to do about a failed flush.
pub(super) fn hint(error: &FlushError) -> Option<&'static str> {
    Some(match error {
        FlushError::Detached => "plug the drive in and mount it; ferryfs goes on by itself",
        FlushError::WrongDrive(_) => {
            "mount the right drive there; nothing was written and nothing is lost"
        }
        FlushError::InUse(_) => {
            "nothing is lost: what waits is in the cache. When the other one has let go, this mount goes on by itself; to take the directory over: ferryfs attach --take-over DIR"
        }
        FlushError::Full { path: None, .. } => {
            "nothing was carried and nothing is lost; free as much on the drive itself, by hand, then flush again"
        }
        FlushError::Full { freed: 0, .. } => {
            "nothing was carried and nothing is lost; delete something in the mount, then run `ferryfs flush --removals-first`"
        }
        FlushError::Full { .. } => {
            "nothing was carried and nothing is lost; `ferryfs flush --removals-first` carries the deletions before the rest"
        }
        FlushError::Lies { .. } => {
            "nothing is lost, all of it is in the cache; check the drive and its cable before you trust it with more"
        }
        FlushError::Sync(_) => {
            "the SSD refuses to keep what it is given; see `ferryfs status`, and look at the health of the SSD"
        }
        FlushError::StillRunning { silent: Some(_) } => {
            "see whether the NAS or drive is well; `ferryfs status` tells when it answers again"
        }
        FlushError::StillRunning { silent: None } => "see `ferryfs status` for how it goes on",
        FlushError::Backend(error) if error.is_full() => {
            "nothing is lost, and the next flush goes on with it; free some space on the drive itself first, by hand"
        }
        FlushError::Backend(error) if error.is_stalled() => {
            "see whether the NAS or drive is well; what was not carried waits in the cache"
        }
        FlushError::TimedOut => "run `ferryfs flush` again with more time",
        FlushError::Unfinished { .. } => {
            "nothing was overwritten; put it right and run `ferryfs flush` again"
        }
        FlushError::Backend(error) if error.is_gone() => {
            "check the drive and its cable; what was not carried waits in the cache"
        }
        FlushError::NotOurs { .. } => {
            "somebody has put it there: look at it and move it away; it was not followed, and nothing was changed"
        }
        FlushError::Backend(error) if is_way_of_ours_blocked(error) => {
            "something that ferryfs did not make stands in .ferryfs on the drive, a link perhaps: look at it and move it away; \
             nothing was read or written through it"
        }
        _ => return None,
    })
}

/// Whether a path of our own on the drive leads through a link or what is no directory, or ends at something in the way.
fn is_way_of_ours_blocked(error: &crate::backend::BackendError) -> bool {
    crate::rules::layout::is_reserved(&error.path)
        && matches!(
            error.source.raw_os_error(),
            Some(libc::ELOOP | libc::ENOTDIR | libc::EISDIR | libc::EEXIST | libc::ENOTEMPTY)
        )
}

pub(super) fn control_error(error: &FlushError) -> ControlError {
    let code = if error.is_gone() || matches!(error, FlushError::WrongDrive(_)) {
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

/// Why the backend is still held. One that does not answer is none for whoever wants to unplug it.
fn not_ejected(error: &FlushError) -> ControlError {
    let control = control_error(error);
    match error {
        FlushError::StillRunning { .. } => ControlError {
            code: ErrorCode::BackendAbsent,
            message: format!("not ejected: {}", control.message),
            ..control
        },
        _ => control,
    }
}

impl Service {
    /// Flushes, and remembers how it went, also if it is no longer waited for.
    pub(super) fn run_flush(
        &self,
        patience: &Patience<'_>,
        progress: &dyn Fn(Progress),
    ) -> Result<Report, FlushError> {
        self.run_flush_and(patience, &Wish::default(), progress, || {})
    }

    fn run_flush_and(
        &self,
        patience: &Patience<'_>,
        wish: &Wish,
        progress: &dyn Fn(Progress),
        then: impl FnOnce() + Send + 'static,
    ) -> Result<Report, FlushError> {
        self.finish_first(patience)?;
        let started = Instant::now();
        let (last_error, monitor) = (self.last_error.clone(), self.monitor.clone());
        let (index, fs) = (self.index.clone(), self.fs.clone());
        let after = move |result: &Result<Report, FlushError>| {
            match result {
                Ok(_) => *last_error.lock() = None,
                // The state says so itself, and says no more so when the drive is back.
                Err(FlushError::Detached) => {}
                Err(error) => {
                    tracing::error!(%error, "flush failed");
                    *last_error.lock() = Some(error.to_string());
                    if error.is_gone() || matches!(error, FlushError::WrongDrive(_)) {
                        monitor.look_now();
                    }
                }
            }
            fs.count_needed();
            let mut state = index.lock();
            if result.is_ok() {
                state.note_flushed(started);
            } else if let Err(error) = state.try_again() {
                tracing::error!(%error, "the index cannot be asked what waits");
            }
        };
        let patience = Patience {
            deadline: patience.deadline,
            enough: &|silent| self.over.load(Ordering::Acquire) || (patience.enough)(silent),
        };
        let wish = Wish {
            deadline: patience.deadline,
            verify: wish.verify || self.verify,
            ..*wish
        };
        flight::flush(
            (&self.flusher, &self.drive),
            wish,
            &patience,
            progress,
            then,
            after,
        )
    }

    /// Finishes what a recovery has left unfinished on the drive, if it has: nothing is written beside a committed batch.
    fn finish_first(&self, patience: &Patience<'_>) -> Result<(), FlushError> {
        if !self.monitor.is_unfinished() || !self.drive.is_attached() {
            return Ok(());
        }
        let flusher = self.flusher.clone();
        let silent = || self.drive.stalled().map(|stall| stall.lasts());
        let enough = || {
            let is_late = patience.deadline.is_some_and(|end| Instant::now() > end);
            is_late || self.over.load(Ordering::Acquire) || (patience.enough)(silent())
        };
        let Some(outcome) = flight::within(move || flusher.recover(), enough) else {
            return Err(FlushError::StillRunning { silent: silent() });
        };
        let why = outcome.as_ref().err().map(ToString::to_string);
        self.monitor.set_unfinished(why);
        match outcome {
            // Only something that a batch has left cannot be tidied up; the flush looks after its own batch itself.
            Err(FlushError::Backend(error)) if !error.is_gone() && !error.is_stalled() => Ok(()),
            Err(error) => {
                *self.last_error.lock() = Some(error.to_string());
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    /// Whether a backend has not answered for so long that nobody should wait for it who wants to end something.
    pub(super) fn is_hopeless(&self, silent: Option<Duration>) -> bool {
        silent.is_some_and(|silent| silent >= self.patience)
    }

    /// Flushes before an end that must come: not longer than until `deadline`, nor if the backend does not answer, nor once
    /// `enough`. `None` if there is no backend, or it does not answer.
    pub(super) fn flush_before_end(
        &self,
        deadline: Option<Instant>,
        enough: &dyn Fn() -> bool,
        progress: &dyn Fn(Progress),
    ) -> Option<Result<Report, FlushError>> {
        let silent = self.drive.stalled().map(|stall| stall.lasts());
        if !self.drive.is_attached() || self.is_hopeless(silent) {
            return None;
        }
        let patience = Patience {
            deadline,
            enough: &|silent| self.is_hopeless(silent) || enough(),
        };
        match self.run_flush(&patience, progress) {
            Err(FlushError::StillRunning { silent: Some(_) }) => None,
            result => Some(result),
        }
    }

    /// What lasts until somebody does something about it, then what went wrong last; one line.
    fn what_is_wrong(&self) -> Option<String> {
        let mut wrong = self.fs.troubles();
        let last = self.last_error.lock().clone();
        wrong.extend(last.or_else(|| self.monitor.trouble()));
        (!wrong.is_empty()).then(|| wrong.join("; "))
    }

    fn waiting(&self) -> Waiting {
        let counted = self
            .index
            .commit()
            .and_then(|()| self.index.snapshot())
            .and_then(|snapshot| snapshot.waiting());
        counted.unwrap_or_else(|error| {
            tracing::error!(%error, "cannot count what waits");
            // Unknown is not nothing: it must not read as safe.
            Waiting {
                unlisted_dirs: 1,
                names: 1,
                inodes: 0,
                kept_local: 0,
            }
        })
    }

    fn import(&self, waiting: &Waiting) -> ImportStatus {
        let progress = self.fs.import_progress_with(waiting.unlisted_dirs);
        let item = |(path, reason)| LeftBehind { path, reason };
        ImportStatus {
            complete: progress.dirs_left == 0,
            directories_done: progress.dirs_done,
            directories_known: progress.dirs_done + progress.dirs_left,
            files: progress.entries,
            unreadable: progress.unreadable.into_iter().map(item).collect(),
            unreadable_count: progress.unreadable_count,
        }
    }

    fn attention(&self) -> Vec<String> {
        let mut lines = self.attention.clone();
        lines.extend(self.from_below.lock().lines(&self.mountpoint));
        lines.extend(self.flusher.catalog_losses().into_iter().map(|line| {
            format!(
                "{line}: modes, owners and other attributes told there are lost, contents are not"
            )
        }));
        lines.extend(self.held_back());
        lines.extend(self.fs.refusal());
        match self.store.lost_and_found() {
            Ok((0, _)) => {}
            Ok((count, path)) => lines.push(format!(
                "{count} files that nothing accounts for are kept in {}: look at them, and remove what you do not miss",
                path.display()
            )),
            Err(error) => lines.push(error.to_string()),
        }
        lines
    }

    /// What was being written when a daemon was killed, and what to do about it.
    fn held_back(&self) -> Vec<String> {
        let mut state = self.index.lock();
        let held = state.interrupted(HELD_BACK_NAMED);
        let (some, count) = held.unwrap_or_else(|error| {
            tracing::error!(%error, "cannot tell what is held back");
            (Vec::new(), 0)
        });
        let mut lines: Vec<String> = Vec::new();
        for ino in &some {
            let path = state.mount_path(*ino).ok().flatten();
            let path = path.map_or_else(|| format!("inode {}", ino.0), |path| path.to_string());
            lines.push(format!(
                "{path} was being written when the daemon was killed; it is as far as it got, and is held back from the drive. \
                 Look at it, then write it anew, or `touch` it to have it carried as it is; all of them: ferryfs flush --include-interrupted"
            ));
        }
        if count > some.len() as u64 {
            let more = count - some.len() as u64;
            lines.push(format!("and {more} more files are held back likewise"));
        }
        lines
    }

    /// The report of an unmount without the backend, or with one that does not answer: whatever is dirty stays behind, in the
    /// cache.
    fn what_must_wait(&self) -> Report {
        let waiting = self.waiting();
        let mut report = Report::default();
        if waiting.names + waiting.inodes > 0 {
            let what = format!("{} changed files and names", waiting.names + waiting.inodes);
            let why = if self.drive.is_attached() {
                "the backend does not answer"
            } else {
                "the backend is not attached"
            };
            let why = format!("{why}; they wait in the cache and follow after the next mount");
            report.left_behind.push((what, why));
        }
        report
    }

    fn flush_report(&self, report: Report) -> FlushReport {
        FlushReport {
            batch: report.batch.map(|batch| batch.0),
            files: report.files,
            bytes: report.bytes,
            seconds: report.took.as_secs_f64(),
            left_behind: report
                .left_behind
                .into_iter()
                .map(|(path, reason)| LeftBehind { path, reason })
                .collect(),
            kept_local: self.waiting().kept_local,
        }
    }
}

fn last_batch(summary: BatchSummary) -> LastBatch {
    LastBatch {
        number: summary.batch.0,
        time: rfc3339(summary.time),
        files: summary.files,
        bytes: summary.bytes,
        outcome: match summary.outcome.as_str() {
            "complete" | "nothing to carry" => BatchOutcome::Complete,
            "left behind" => BatchOutcome::LeftBehind,
            _ => BatchOutcome::Failed,
        },
    }
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

impl Handler for Service {
    fn status(&self) -> Status {
        let waiting = self.waiting();
        self.fs.count_needed();
        let (totals, writing, last) = {
            let state = self.index.lock();
            (
                state.totals(),
                state.writing_count(),
                state.last_batch().ok().flatten(),
            )
        };
        // Not before what was interrupted has been finished: until then nothing is opened there.
        let attached = self.monitor.presence() == Presence::Attached;
        let busy = self.flusher.is_running();
        let dirty_files = waiting.names + waiting.inodes;
        Status {
            mountpoint: self.mountpoint.to_string_lossy().into_owned(),
            backend: self.monitor.path().to_string_lossy().into_owned(),
            volume_id: self.volume.to_string(),
            backend_state: if attached {
                BackendState::Attached
            } else {
                BackendState::Detached
            },
            stalled_since: self
                .drive
                .stalled()
                .map(|stall| rfc3339(Timestamp::from(stall.since))),
            dirty_files,
            dirty_bytes: totals.dirty_bytes,
            needed_bytes: self.fs.needed_on_drive(),
            open_for_write: writing as u64,
            cached_bytes: totals.cached_bytes,
            last_batch: last.map(last_batch),
            last_refresh: self.refreshing.last(),
            conflicts: self.conflicts(),
            safe_to_unplug: dirty_files == 0 && !busy,
            batch_in_progress: busy,
            kept_local: waiting.kept_local,
            warnings: self.monitor.warnings(),
            last_error: self.what_is_wrong(),
            attention: self.attention(),
            import: self.import(&waiting),
            io: IoPath::Daemon,
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
        }
    }

    fn flush(
        &self,
        timeout: Option<Duration>,
        progress: &dyn Fn(Progress),
    ) -> Result<FlushReport, ControlError> {
        let patience = Patience {
            // A time that no clock reaches is no deadline.
            deadline: timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            enough: &|_| false,
        };
        self.run_flush(&patience, progress)
            .map(|report| self.flush_report(report))
            .map_err(|error| control_error(&error))
    }

    fn flush_as(
        &self,
        wish: &FlushWish,
        progress: &dyn Fn(Progress),
    ) -> Result<FlushReport, ControlError> {
        let timeout = wish.timeout_ms.map(Duration::from_millis);
        let patience = Patience {
            deadline: timeout.map(|timeout| Instant::now() + timeout),
            enough: &|_| false,
        };
        let wish = Wish {
            deadline: None,
            verify: wish.verify,
            removals_first: wish.removals_first,
            retry_refused: true,
        };
        self.run_flush_and(&patience, &wish, progress, || {})
            .map(|report| self.flush_report(report))
            .map_err(|error| control_error(&error))
    }

    fn include_interrupted(&self) -> Result<u64, ControlError> {
        let included = self.index.lock().include_interrupted();
        included.map_err(|error| ControlError::new(ErrorCode::Failed, error.to_string()))
    }

    fn eject(&self, progress: &dyn Fn(Progress)) -> Result<FlushReport, ControlError> {
        if !self.drive.is_attached() {
            return Err(control_error(&FlushError::Detached));
        }
        let silent = self.drive.stalled().map(|stall| stall.lasts());
        if self.is_hopeless(silent) {
            return Err(not_ejected(&FlushError::StillRunning { silent }));
        }
        let monitor = self.monitor.clone();
        let let_go = move || monitor.eject();
        let patience = Patience {
            deadline: None,
            enough: &|silent| self.is_hopeless(silent),
        };
        let report = self
            .run_flush_and(&patience, &Wish::default(), progress, let_go)
            .map_err(|error| not_ejected(&error))?;
        Ok(self.flush_report(report))
    }

    fn attach(
        &self,
        path: &Path,
        accept_copy: bool,
        fsck: bool,
        take_over: bool,
    ) -> Result<AttachReport, ControlError> {
        if !path.is_absolute() {
            let message = "the path to attach is not absolute";
            return Err(ControlError::new(ErrorCode::BadRequest, message));
        }
        self.monitor.attach(path, accept_copy, fsck, take_over)
    }

    fn re_enroll(&self, path: &Path, accept_copy: bool) -> Result<AttachReport, ControlError> {
        if !path.is_absolute() {
            let message = "the path to attach is not absolute";
            return Err(ControlError::new(ErrorCode::BadRequest, message));
        }
        self.monitor.re_enroll(path, accept_copy)
    }

    fn refresh(&self, path: &str) -> Result<RefreshReport, ControlError> {
        if self.monitor.presence() != Presence::Attached || !self.drive.is_attached() {
            return Err(control_error(&FlushError::Detached));
        }
        if let Some(stall) = self.drive.stalled() {
            let message = format!(
                "the backend has not answered for {} s",
                stall.lasts().as_secs()
            );
            return Err(ControlError::new(ErrorCode::BackendAbsent, message)
                .with_hint("see whether the NAS or drive is well, and try again"));
        }
        let wrong = || ControlError::new(ErrorCode::BadRequest, "not a path below the mount");
        let path = RelPath::parse(path.as_bytes()).map_err(|_| wrong())?;
        let (dir, below) = self.directory_at(&path).ok_or_else(wrong)?;
        let over = || self.over.load(Ordering::Acquire);
        self.look_for_changes(dir, below, &over)
            .map_err(|error| match error {
                FlushError::TimedOut => ControlError::new(ErrorCode::Busy, "the mount is ending"),
                error => control_error(&error),
            })
    }

    fn unmount(
        &self,
        flush: bool,
        progress: &dyn Fn(Progress),
    ) -> Result<FlushReport, ControlError> {
        let flushed = if flush {
            self.flush_before_end(None, &|| false, progress)
        } else {
            Some(Ok(Report::default()))
        };
        let report = match flushed {
            None => self.what_must_wait(),
            Some(result) => result.map_err(|error| {
                let hint = "nothing is lost: it waits in the cache. To unmount without flushing: ferryfs unmount --no-flush";
                let control = control_error(&error);
                ControlError {
                    message: format!("not unmounted, because the flush failed: {}", control.message),
                    hint: Some(hint.into()),
                    ..control
                }
            })?,
        };
        self.ending.store(true, Ordering::Release);
        tasks::unmount(&self.mountpoint).map_err(|error| {
            self.ending.store(false, Ordering::Release);
            unmount_error(&error)
        })?;
        let report = self.flush_report(report);
        let _ = self.ended.send(());
        Ok(report)
    }
}

fn unmount_error(error: &dead_mount::DetachError) -> ControlError {
    ControlError::new(ErrorCode::Busy, error.to_string()).with_hint(
        "somebody still uses it: `fuser -vm MOUNTPOINT` tells who; end that and try again",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_people_and_scripts_expect() {
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
