//! The answer to `ferryfs status`.

use std::time::SystemTime;

use super::{Place, Service, conflict, rfc3339};
use crate::control::protocol::{
    BackendState, BatchOutcome, ImportStatus, IoPath, KeptClean, LastBatch, LastFlush, LeftBehind,
    RunningFlush, Space, Status, Users,
};
use crate::core::{Failure, ForeignText, Timestamp};
use crate::daemon::monitor::Presence;
use crate::flush::Report;
use crate::index::{BatchEnd, BatchSummary, WaitingCounts};

/// The most files held back that are named one by one.
const HELD_BACK_NAMED: u32 = 5;

/// The most left-behind files that `status` lists.
const NAMED: usize = 100;

impl Service {
    /// The state of the mount and of the drive.
    pub(in crate::daemon) fn current_status(&self) -> Status {
        let waiting = self.waiting();
        self.fs.count_needed();
        let (totals, writing, last, oldest) = {
            let state = self.index.lock();
            (
                state.totals(),
                state.writing_count(),
                state.last_batch().ok().flatten(),
                state.dirty_since().map(|(_, oldest)| oldest.elapsed()),
            )
        };
        // A drive counts as attached when its recovery is over: before that no file is opened
        // there.
        let attached = self.monitor.presence() == Presence::Attached;
        let busy = self.flusher.is_running();
        let dirty_files = waiting.names + waiting.inodes;
        let mounted = self.place() != Place::Gone;
        let on_drive = self.drive.space();
        let safe_to_unplug = dirty_files == 0
            && !busy
            && !self.flusher.is_untidy()
            && !self.clean.is_held_writable();
        Status {
            mountpoint: self.mountpoint.to_text(),
            backend: self.monitor.path().to_text(),
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
            safe_to_unplug,
            batch_in_progress: busy,
            kept_local: waiting.kept_local,
            local: self.local_counts(),
            warnings: self.monitor.warnings(),
            last_error: self.what_is_wrong(),
            attention: self.attention(),
            import: self.import(&waiting),
            io: IoPath::Daemon,
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            cache: self.cache.to_text(),
            mounted,
            users: match mounted {
                true => Users::default(),
                false => self.users(),
            },
            ejected: self.monitor.ejected(),
            last_flush: self.last_flush.lock().clone(),
            ssd: (self.store.space().ok()).and_then(|(total, free)| space(free, total)),
            cache_limit_bytes: self.cache_limit,
            drive: attached
                .then(|| space(on_drive.available, on_drive.total))
                .flatten(),
            kept_clean: attached.then(|| self.kept_clean()).flatten(),
            running: self.running.get().map(|(progress, time)| RunningFlush {
                progress,
                seconds: time.as_secs_f64(),
                slowed: self.drive.throttle().slowed(),
            }),
            oldest_change: oldest
                .and_then(|age| SystemTime::now().checked_sub(age))
                .map(|at| rfc3339(at.into())),
            read_only: self.read_only,
            config: self.config_origin(),
            automatic: self.automatic(),
            versions: self.flusher.keeps_versions(),
            scrub: self.scrub_status(),
        }
    }

    /// Whether the drive's file system is read-only now, as it is to be between batches.
    fn kept_clean(&self) -> Option<KeptClean> {
        if !self.clean.is_on() {
            return None;
        }
        let (path, dir) = {
            let site = self.monitor.site.lock();
            (site.path.clone(), site.dir.clone())
        };
        Some(KeptClean {
            read_only: dir.mount().is_ok_and(|mount| mount.is_read_only()),
            problem: self.clean.line(&path),
        })
    }

    /// One line: first the problems that last until the user does something about them, then the
    /// last error.
    fn what_is_wrong(&self) -> Option<String> {
        let mut wrong = self.fs.troubles();
        let last = self.last_error.lock().clone();
        wrong.extend(last.or_else(|| self.monitor.trouble().map(in_one_line)));
        (!wrong.is_empty()).then(|| wrong.join("; "))
    }

    /// Counts what waits for a flush.
    pub(super) fn waiting(&self) -> WaitingCounts {
        let counted = self
            .sort_local()
            .and_then(|()| self.index.commit())
            .and_then(|()| self.index.snapshot())
            .and_then(|snapshot| snapshot.waiting());
        counted.unwrap_or_else(|error| {
            tracing::error!(%error, "cannot count what waits");
            // Not zero: an unknown number must not make the drive safe to unplug.
            WaitingCounts {
                unlisted_dirs: 1,
                names: 1,
                inodes: 0,
                kept_local: 0,
            }
        })
    }

    fn import(&self, waiting: &WaitingCounts) -> ImportStatus {
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

    /// What the user should look at, a line each.
    pub(super) fn attention(&self) -> Vec<String> {
        let mut lines = self.attention.clone();
        lines.extend(self.from_below.lock().lines(&self.mountpoint));
        lines.extend(self.flusher.catalog_losses().into_iter().map(|line| {
            format!(
                "{line}: the modes, owners and other attributes in it are lost, contents are not"
            )
        }));
        lines.extend(self.flusher.left_of_others());
        lines.extend(self.held_back());
        lines.extend(self.fs.refusal());
        lines.extend(self.clean.line(&self.monitor.path()));
        lines.extend(self.keeper.lines());
        lines.extend(self.scrubber.lines(&self.index));
        match self.store.lost_and_found() {
            Ok((0, _)) => {}
            Ok((count, path)) => lines.push(format!(
                "{count} files that belong to no file of the mount are in {}: look at them, and \
                 delete those that you do not need",
                path.escaped()
            )),
            Err(error) => lines.push(error.to_string()),
        }
        lines
    }

    /// The files that were being written when a daemon was killed, and what to do about them.
    fn held_back(&self) -> Vec<String> {
        let mut state = self.index.lock();
        let held = state.interrupted(HELD_BACK_NAMED);
        let (some, count) = held.unwrap_or_else(|error| {
            tracing::error!(%error, "cannot read which files are held back");
            (Vec::new(), 0)
        });
        let mut lines: Vec<String> = Vec::new();
        for ino in &some {
            let path = state.mount_path(*ino).ok().flatten();
            let path = path.map_or_else(|| format!("inode {}", ino.0), |path| path.to_string());
            lines.push(format!(
                "{path} was being written when the daemon was killed; it ends where the writing \
                 ended, and is held back from the drive. Look at it, then write it again, or \
                 `touch` it to have it flushed as it is; all of them: ferryfs flush \
                 --include-interrupted"
            ));
        }
        if count > some.len() as u64 {
            let more = count - some.len() as u64;
            lines.push(format!("and {more} more files are held back likewise"));
        }
        lines
    }
}

fn in_one_line(failure: Failure) -> String {
    match failure.hint {
        Some(hint) => format!("{}; {hint}", failure.message),
        None => failure.message,
    }
}

/// What `status` says of a flush that has ended with `report`.
pub(super) fn last_flush(report: &Report) -> LastFlush {
    let named = report.left_behind.iter().take(NAMED).cloned();
    LastFlush {
        time: rfc3339(Timestamp::from(std::time::SystemTime::now())),
        left_behind: named
            .map(|(path, reason)| LeftBehind { path, reason })
            .collect(),
        left_behind_count: report.left_behind.len() as u64,
        conflicts: (report.conflicts.iter().take(NAMED).cloned())
            .map(conflict)
            .collect(),
    }
}

fn space(available: u64, total: u64) -> Option<Space> {
    (total > 0).then_some(Space {
        free_bytes: available,
        total_bytes: total,
    })
}

fn last_batch(summary: BatchSummary) -> LastBatch {
    LastBatch {
        number: summary.batch.0,
        time: rfc3339(summary.time),
        files: summary.files,
        bytes: summary.bytes,
        outcome: match summary.end {
            BatchEnd::Complete | BatchEnd::Nothing => BatchOutcome::Complete,
            BatchEnd::LeftBehind => BatchOutcome::LeftBehind,
            BatchEnd::GivenUp => BatchOutcome::Failed,
        },
    }
}
