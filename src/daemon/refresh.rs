//! When the daemon looks for what others have changed on the backend: after each attach, now and then where others may be at
//! work all the time, and when it is asked to.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::monitor::Presence;
use super::service::{Service, rfc3339};
use crate::base::{Ino, Name, RelPath, Timestamp};
use crate::control::protocol::{LastRefresh, RefreshReport, Skipped};
use crate::flush::{FlushError, Result};
use crate::rules::merge::Changes;

/// How long the kernel is given to take in what it is told.
const TELLING: Duration = Duration::from_secs(10);

/// How often it is considered.
const CONSIDER_EVERY: Duration = Duration::from_millis(200);

/// Longest wait before a look that failed is tried again.
const LONGEST_BACKOFF: Duration = Duration::from_secs(300);

/// Directories that cannot be read are named up to this number.
const NAMED: usize = 100;

/// What is remembered of looks.
pub(super) struct Refreshing {
    /// Time between two looks; `None` for only at attach.
    pub(super) every: Option<Duration>,
    last: Mutex<Option<LastRefresh>>,
    /// Counts the times that the backend was attached.
    attached: AtomicU64,
}

impl Refreshing {
    pub(super) fn new(every: Option<Duration>) -> Refreshing {
        Refreshing {
            every,
            last: Mutex::new(None),
            attached: AtomicU64::new(1),
        }
    }

    /// The backend has been attached: others may have had it.
    pub(super) fn note_attached(&self) {
        self.attached.fetch_add(1, Ordering::AcqRel);
    }

    /// What the last look has found.
    pub(super) fn last(&self) -> Option<LastRefresh> {
        self.last.lock().clone()
    }
}

/// Looks when it is time to, until `stop`.
pub(super) fn run(service: &Service, stop: &AtomicBool) {
    let mut seen = 0;
    // What waited when the mount began is counted already.
    let mut tried = 1;
    let mut looked = Instant::now();
    let mut backoff = Duration::ZERO;
    while !stop.load(Ordering::Acquire) {
        super::tasks::rest(stop, CONSIDER_EVERY);
        let attached = service.refreshing.attached.load(Ordering::Acquire);
        if attached != tried {
            tried = attached;
            // What the drive refused before it may take now, and it may be another one.
            service.flusher.forget_refused();
            if let Err(error) = service.index.lock().try_again() {
                tracing::warn!(%error, "the index cannot be asked what waits");
            }
        }
        let due = match service.refreshing.every {
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
        match service.look_for_changes(Ino::ROOT, true, &|| stop.load(Ordering::Acquire)) {
            Ok(_) => {
                seen = attached;
                backoff = Duration::ZERO;
            }
            Err(error) => {
                // Whether that is an alarm is told by who watches the drive; it is looked at again when it is back.
                match error.is_gone() {
                    true => {
                        tracing::info!(%error, "the drive went while it was looked at for changes of others")
                    }
                    false => tracing::warn!(%error, "cannot look for changes of others"),
                }
                backoff = (backoff * 2).clamp(Duration::from_secs(2), LONGEST_BACKOFF);
            }
        }
        looked = Instant::now();
    }
}

impl Service {
    /// Looks for changes of others, takes them in, and remembers what was found.
    pub(super) fn look_for_changes(
        &self,
        from: Ino,
        below: bool,
        enough: &dyn Fn() -> bool,
    ) -> Result<RefreshReport> {
        let begun = Instant::now();
        let is_over = || enough() || self.ending.load(Ordering::Acquire);
        let result = self.flusher.refresh(from, below, &is_over);
        let told = self.fs.notices().wait_until_told(TELLING);
        if !told {
            tracing::warn!("the kernel has not yet taken in what others have changed");
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
            tracing::info!(?changes, "changed by others");
        }
        let report = report(changes, begun.elapsed());
        *self.refreshing.last.lock() = Some(LastRefresh {
            time: rfc3339(Timestamp::from(std::time::SystemTime::now())),
            report: report.clone(),
        });
        Ok(report)
    }

    /// The directory at `path` in the mount; for a file, the one that it is in, and false.
    pub(super) fn directory_at(&self, path: &RelPath) -> Option<(Ino, bool)> {
        let mut state = self.index.lock();
        let mut at = Ino::ROOT;
        for bytes in path.components() {
            let name = Name::new(bytes).ok()?;
            match state.lookup(at, &name).ok()? {
                Some(ino) if state.inode(ino).ok()?.is_some_and(|inode| inode.is_dir()) => at = ino,
                // A file, or what is not known yet: whatever it is shows in the directory that it is in.
                _ => return Some((at, false)),
            }
        }
        Some((at, true))
    }

    /// Whether there is something at `path` in the mount, or on the drive. Where that cannot be told, it may be.
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

    /// How many versions of others are kept beside the mount's own.
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
