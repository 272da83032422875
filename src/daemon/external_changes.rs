//! Looks for changes that other machines and programs have made on the drive: after each attach,
//! regularly on network file systems, and on request.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::control::protocol::{LastRefresh, RefreshReport, Skipped};
use crate::core::{Ino, Name, RelPath, Timestamp};
use crate::daemon::monitor::Presence;
use crate::daemon::service::{Service, rfc3339};
use crate::daemon::stop::Stop;
use crate::error::{FlushError, Result};
use crate::plan::merge::Changes;

/// How long the kernel may take to process invalidations.
const INVALIDATING: Duration = Duration::from_secs(10);

/// How often a look is considered.
const CONSIDER_EVERY: Duration = Duration::from_millis(500);

/// The longest wait before a failed look is tried again.
const LONGEST_BACKOFF: Duration = Duration::from_secs(300);

/// The most unreadable directories that are listed.
const NAMED: usize = 100;

/// The last result of the looks.
pub(super) struct Refreshing {
    last: Mutex<Option<LastRefresh>>,
    /// How many times the drive was attached.
    attached: AtomicU64,
}

impl Refreshing {
    pub(super) fn new() -> Refreshing {
        Refreshing {
            last: Mutex::new(None),
            attached: AtomicU64::new(1),
        }
    }

    /// The drive has been attached: another machine may have changed it.
    pub(super) fn note_attached(&self) {
        self.attached.fetch_add(1, Ordering::AcqRel);
    }

    /// The result of the last look.
    pub(super) fn last(&self) -> Option<LastRefresh> {
        self.last.lock().clone()
    }
}

/// Looks when it is time to, until `stop`.
pub(super) fn run(service: &Service, stop: &Stop) {
    let mut seen = 0;
    // The start of the mount has counted already what waits.
    let mut tried = 1;
    let mut looked = Instant::now();
    let mut backoff = Duration::ZERO;
    while !stop.is_given() {
        stop.rest(CONSIDER_EVERY);
        let attached = service.refreshing.attached.load(Ordering::Acquire);
        if attached != tried {
            tried = attached;
            // The drive may now accept what it refused before.
            service.flusher.forget_refused();
            if let Err(error) = service.index.lock().try_again() {
                tracing::warn!(%error, "cannot read from the index what waits");
            }
        }
        let due = match service.refresh_every() {
            Some(every) => looked.elapsed() >= every,
            None => false,
        };
        let able = service.drive.is_attached()
            && service.monitor.presence() == Presence::Attached
            && service.drive.stalled().is_none()
            && !service.ending.load(Ordering::Acquire);
        if !able || !(due || seen != attached) || looked.elapsed() < backoff {
            continue;
        }
        match service.look_for_changes(Ino::ROOT, true, &|| stop.is_given()) {
            Ok(_) => {
                seen = attached;
                backoff = Duration::ZERO;
            }
            Err(error) => {
                // The monitor reports the loss of a drive. The next look is after its return.
                match error.is_gone() {
                    true => {
                        tracing::info!(
                            %error,
                            "the drive went away during the look for external changes"
                        )
                    }
                    false => tracing::warn!(%error, "cannot look for external changes"),
                }
                backoff = (backoff * 2).clamp(Duration::from_secs(2), LONGEST_BACKOFF);
            }
        }
        looked = Instant::now();
    }
}

impl Service {
    /// Looks for external changes, imports them, and remembers the result.
    pub(super) fn look_for_changes(
        &self,
        from: Ino,
        below: bool,
        enough: &dyn Fn() -> bool,
    ) -> Result<RefreshReport> {
        let begun = Instant::now();
        let is_over = || enough() || self.ending.load(Ordering::Acquire);
        let result = self.flusher.refresh(from, below, &is_over);
        let told = self.fs.invalidations().wait_until_told(INVALIDATING);
        if !told {
            tracing::warn!("the kernel has not yet processed all invalidations");
        }
        let changes = match result {
            Ok(changes) => changes,
            Err(error) => {
                if error.is_gone() || matches!(error, FlushError::WrongDrive(_)) {
                    self.monitor.look_now();
                }
                return Err(error);
            }
        };
        if !changes.is_nothing() {
            tracing::info!(?changes, "changed by another machine or program");
        }
        let report = report(changes, begun.elapsed());
        *self.refreshing.last.lock() = Some(LastRefresh {
            time: rfc3339(Timestamp::from(std::time::SystemTime::now())),
            report: report.clone(),
        });
        Ok(report)
    }

    /// The directory at `path` in the mount, and true; for a file its directory, and false.
    pub(super) fn directory_at(&self, path: &RelPath) -> Option<(Ino, bool)> {
        let mut state = self.index.lock();
        let mut at = Ino::ROOT;
        for bytes in path.components() {
            let name = Name::new(bytes).ok()?;
            match state.lookup(at, &name).ok()? {
                Some(ino) if state.inode(ino).ok()?.is_some_and(|inode| inode.is_dir()) => at = ino,
                // A file, or a name that is not known yet: comparing its directory finds it.
                _ => return Some((at, false)),
            }
        }
        Some((at, true))
    }

    /// Whether `path` may exist in the mount or on the drive. True if that cannot be found out.
    pub(super) fn is_anywhere(&self, path: &RelPath) -> bool {
        let in_mount = {
            let mut state = self.index.lock();
            (path.components())
                .try_fold(Ino::ROOT, |at, bytes| {
                    state.lookup(at, &Name::new(bytes).ok()?).ok()?
                })
                .is_some()
        };
        let Some(backend) = self.drive.get() else {
            return true;
        };
        in_mount
            || !backend
                .metadata(path)
                .is_err_and(|error| error.is_not_found())
    }

    /// The number of conflicts: other versions that are kept beside the mount's own.
    pub(super) fn conflicts(&self) -> u64 {
        let counted = self.index.lock().count_conflicts();
        counted.unwrap_or_else(|error| {
            tracing::warn!(%error, "conflicts cannot be counted");
            0
        })
    }
}

fn report(changes: Changes, took: Duration) -> RefreshReport {
    let skipped = changes.skipped.into_iter().take(NAMED);
    RefreshReport {
        new: changes.new,
        changed: changes.changed,
        moved: changes.moved,
        deleted: changes.deleted,
        conflicts: changes.conflicts,
        seconds: took.as_secs_f64(),
        skipped: skipped
            .map(|(path, reason)| Skipped { path, reason })
            .collect(),
    }
}
