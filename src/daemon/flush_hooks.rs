//! What a flush needs of the file system that is served.

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use crate::core::{BatchNo, Clock, Ino, WhileOpen};
use crate::daemon::changes::Feed;
use crate::daemon::history::History;
use crate::daemon::inhibit::Inhibitor;
use crate::daemon::keep_clean::KeepClean;
use crate::daemon::lease::{Keeper, LeaseFailure};
use crate::daemon::metrics::Totals;
use crate::drive::Backend;
use crate::error::FlushError;
use crate::flush::{BatchNote, Change, Hooks};
use crate::index::{IndexWriter, LeftOut};
use crate::plan::merge::Changes;
use crate::sys;
use crate::vfs::{Fs, FsError};

pub(super) struct FlushHooks {
    pub(super) fs: Arc<Fs>,
    pub(super) lease: Arc<Keeper>,
    pub(super) clean: Arc<KeepClean>,
    pub(super) inhibitor: Inhibitor,
    pub(super) mountpoint: PathBuf,
    pub(super) history: History,
    pub(super) feed: Feed,
    pub(super) totals: Arc<Totals>,
    pub(super) clock: Arc<dyn Clock>,
}

/// Whether these are the bytes that SQLite locks for writing while it changes a database in place:
/// SHARED, and before it RESERVED and PENDING, which the kernel joins to one range. Other engines
/// lock the whole file for as long as they have it open, and are not meant
/// (<https://www.sqlite.org/lockingv3.html>; `PENDING_BYTE`, `SHARED_FIRST`, `SHARED_SIZE`).
fn is_sqlite_exclusive(range: RangeInclusive<u64>) -> bool {
    (0x4000_0000..=0x4000_0002).contains(range.start()) && *range.end() == 0x4000_01ff
}

impl FlushHooks {
    /// The files of the mount that a program has locked to change them in place, as far as can be
    /// seen.
    fn locked(&self) -> HashSet<Ino> {
        let mounts = sys::mounts::mounts().unwrap_or_default();
        let ours = mounts
            .iter()
            .rev()
            .find(|mount| mount.mount_point == self.mountpoint);
        let locked =
            ours.and_then(|mount| sys::locks::write_locked(mount.dev, is_sqlite_exclusive).ok());
        locked.unwrap_or_default().into_iter().map(Ino).collect()
    }
}

impl Hooks for FlushHooks {
    fn sync_cache(&self) -> Result<(), FlushError> {
        let synced = self.fs.sync();
        synced.map_err(|error| FlushError::Sync(Box::new(error)))
    }

    fn settle(&self) -> Result<(), FlushError> {
        let settled = self.fs.settle_for_batch();
        settled.map_err(failed_to("bring the written files up to date"))
    }

    fn at_rest(
        &self,
        while_open: WhileOpen,
        cut: &mut dyn FnMut(LeftOut, &mut IndexWriter) -> Result<(), FlushError>,
    ) -> Result<(), FlushError> {
        self.fs.at_rest(while_open, &|| self.locked(), cut)
    }

    fn look_at(&self, backend: &dyn Backend, dir: Ino) -> Result<(bool, Vec<Ino>), FlushError> {
        let look = self.fs.look_at(backend, dir).map_err(failed_to(IMPORT))?;
        Ok((look.differs, look.dirs))
    }

    fn take_in(
        &self,
        backend: &dyn Backend,
        dirs: &[Ino],
        still_right: &mut dyn FnMut() -> bool,
    ) -> Result<Changes, FlushError> {
        let taken = self.fs.take_in(backend, dirs, still_right);
        taken.map_err(failed_to(IMPORT))
    }

    fn catalog_changed(&self) -> Result<(), FlushError> {
        let shown = self.fs.believe_anew();
        shown.map_err(failed_to("show what the catalog says"))
    }

    fn hold_open(&self, inos: &[Ino]) {
        self.fs.hold_open_for_readers(inos);
    }

    fn may_write(&self, backend: &dyn Backend) -> Result<(), FlushError> {
        self.lease.check(backend).map_err(|failure| match failure {
            // The drive has been detached meanwhile; no other machine has taken it.
            LeaseFailure::NotHeld => FlushError::Detached,
            LeaseFailure::Backend(error) => FlushError::Backend(error),
            failure => FlushError::InUse(failure.to_string()),
        })
    }

    fn prepares_writing(&self) -> bool {
        self.clean.is_on()
    }

    /// Nothing depends on it, but until it is on the medium, exFAT and FAT count as not cleanly
    /// unmounted.
    fn tidied_up(&self, backend: &dyn Backend) {
        if let Err(error) = backend.sync() {
            tracing::debug!(%error, "the drive may be marked as not cleanly unmounted");
        }
    }

    fn begin_writing(&self, backend: &dyn Backend) {
        self.inhibitor.begin();
        self.clean.begin(backend);
    }

    fn end_writing(&self, backend: &dyn Backend) {
        self.clean.end(backend);
        self.inhibitor.end();
    }

    fn give_up_reserve(&self) -> bool {
        self.fs.give_up_reserve()
    }

    fn batch_changed(&self, batch: BatchNo, after: Option<BatchNo>, changes: &[Change]) {
        self.feed.note(batch, after, changes, self.clock.now());
    }

    fn batch_ended(&self, note: &BatchNote) {
        let now = self.clock.now();
        self.totals.note(note, now);
        self.history.note(note, now);
    }
}

/// What failed when the flush imports changes made by another machine or program.
const IMPORT: &str = "import what another machine or program has changed";

/// The error of a flush for an operation of the file system that failed.
fn failed_to(operation: &'static str) -> impl Fn(FsError) -> FlushError {
    move |error| match error {
        FsError::Backend(error) => FlushError::Backend(error),
        FsError::Index(error) => FlushError::Index(error),
        FsError::Store(error) => FlushError::Store(error),
        FsError::Detached => FlushError::Detached,
        other => FlushError::Cache {
            operation: operation.into(),
            source: std::io::Error::other(other),
        },
    }
}
