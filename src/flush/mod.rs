//! Writes the changes of the cache to the backend, in batches.
//!
//! A batch goes through its phases as types that are consumed one by one: gathered, planned,
//! [`crate::flush::stage::Staged`], committed, applied. What a crash after each phase leaves, and
//! who repairs it:
//!
//! | after | durable | a crash leaves | repaired by |
//! |---|---|---|---|
//! | cut | row of the batch, on the SSD | nothing on the backend | next start: given up, all stays dirty |
//! | stage | staged files (one sync), read back if asked for | a staging directory | next attach: removed, all stays dirty |
//! | journal | what the batch means for the index, on the SSD | the same, and a journal | next attach: no record, so given up |
//! | commit | the record (one sync) | a committed batch, final names untouched | next attach: applied, from staging or the SSD |
//! | clear, mark | removals and moves, then the mark (two syncs, only if needed) | old names gone, new ones not there | next attach: placed |
//! | place | everything (one sync) | the cut, and a record | next attach: verified, confirmed |
//! | confirm | the index's conclusions, on the SSD | the cut, a record that the index calls done | next attach: removed |
//!
//! A directory that the drive cannot move is copied in a batch of its own: [`across`].
//!
//! An error before the journal gives the batch up. An error after it leaves the batch open, and the
//! next flush begins with its recovery.
//!
//! [`Flusher`] is the facade. `flusher` runs a flush, `recover` a recovery, `external` a look for
//! external changes. The state belongs to parts, and only a part's own methods touch it:
//!
//! | part | owns |
//! |---|---|
//! | [`turn::Turn`] | the lock that separates flushes, recoveries and looks |
//! | [`refusals::Refusals`] | what the drive has refused, and when it is tried again |
//! | [`leftovers::Leftovers`] | ended batches that may have left something in `.ferryfs` |
//! | [`others_batches::OthersBatches`] | unfinished batches of other machines |
//! | [`drive_reserve::DriveReserve`] | whether the reserve on the drive must be made again |
//! | [`conflicts::Conflicts`] | conflicts to be named by the next report |
//! | [`versions::Versions`] | the sizes of kept versions |
//! | [`Follower`] | the catalog on the drive, followed by its mirror in the index |
//!
//! What belongs to one flush is a value: `flusher::Run`, [`Report`], and `batch::BatchWriter`.

mod across;
mod attributes;
pub(crate) mod batch;
pub(crate) mod batch_budget;
mod changes;
mod check;
mod conclusions;
mod confirm;
mod conflicts;
pub(crate) mod diff;
mod done_elsewhere;
mod drive_reserve;
pub(crate) mod expectations;
mod external;
mod flusher;
mod hold;
mod hooks;
mod leftovers;
mod look;
mod note;
mod open_batch;
mod open_copies;
mod others_batches;
mod patches;
mod recover;
mod refusals;
mod refused_names;
pub(crate) mod report;
mod space_check;
pub(crate) mod stage;
mod sweep;
mod turn;
mod verify;
mod versions;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use uuid::Uuid;

use crate::apply::move_backup::CacheSide;
use crate::cache::Store;
use crate::catalog::mirror::Follower;
use crate::core::cache_step::CacheStep;
use crate::core::{Capabilities, Clock, Ino};
use crate::drive::Backend;
use crate::drive::connection::Drive;
use crate::error::{FlushError, Result};
use crate::flush::conflicts::Conflicts;
use crate::flush::drive_reserve::DriveReserve;
use crate::flush::leftovers::Leftovers;
use crate::flush::others_batches::OthersBatches;
use crate::flush::refusals::Refusals;
use crate::flush::turn::Turn;
use crate::flush::versions::Versions;
use crate::index::{BatchSummary, Index};
use crate::plan::names::NameRules;
use crate::recovery::interrupted;

pub use crate::flush::changes::{Change, ChangeKind};
pub(crate) use crate::flush::flusher::phase;
pub use crate::flush::hold::{HoldIf, HoldIfError};
pub use crate::flush::hooks::Hooks;
pub use crate::flush::note::{BatchNote, NotedEnd};
pub use crate::flush::patches::Patching;
pub use crate::flush::report::{Cancel, OpenCopy, Report, Wish};
pub(crate) use crate::flush::versions::remove_below;
pub use crate::flush::versions::{VersionPolicy, kept_versions, versions_of_size};

/// The parts that a flusher works with.
pub struct FlusherParts {
    /// The index.
    pub index: Arc<Index>,
    /// The objects.
    pub store: Arc<Store>,
    /// The slot of the attached backend.
    pub drive: Arc<Drive>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The volume's id.
    pub volume: Uuid,
    /// The id of its enrollment.
    pub nonce: [u8; 16],
    /// The cache's id.
    pub origin: [u8; 16],
    /// The names that the backend can store.
    pub rules: NameRules,
    /// What else the backend can store.
    pub capabilities: Capabilities,
    /// The granularity of the backend's times, in nanoseconds.
    pub time_granularity_ns: u64,
    /// The directory of the journals, on the SSD.
    pub journals: PathBuf,
    /// Which files are written as patches.
    pub patching: Patching,
    /// Which replaced and removed files are kept on the backend.
    pub versions: VersionPolicy,
    /// When a flush is held back; `None` for never.
    pub hold_if: Option<HoldIf>,
    /// The served file system.
    pub hooks: Arc<dyn Hooks>,
}

impl FlusherParts {
    /// Returns the parts that a backup of moved files needs.
    pub(crate) fn cache_side(&self) -> CacheSide<'_> {
        CacheSide {
            index: &self.index,
            store: &self.store,
            journals: &self.journals,
        }
    }

    /// Ends the batch under way, and drops the old bytes that were kept for it.
    ///
    /// # Errors
    /// If SQLite cannot; the batch is then still under way.
    fn end_batch(&self, summary: &BatchSummary) -> Result<()> {
        self.index.lock().end_batch(summary)?;
        self.store.end_images();
        Ok(())
    }
}

/// Writes changes to the backend, one batch at a time.
pub struct Flusher {
    // What all parts share; each has locks of its own, or does not change.
    parts: FlusherParts,
    /// The valid enrollment of the volume: that of `parts`, until its marker is written again.
    nonce: Mutex<[u8; 16]>,
    /// The size limit of a batch, see [`batch_budget`].
    batch_bytes: AtomicU64,

    turn: Turn,
    refusals: Refusals,
    leftovers: Leftovers,
    others: OthersBatches,
    reserve: DriveReserve,
    conflicts: Conflicts,
    catalog: Follower,
    versions: Versions,
}

impl Flusher {
    /// Creates a flusher over `parts`.
    pub fn new(parts: FlusherParts) -> Flusher {
        Flusher {
            nonce: Mutex::new(parts.nonce),
            batch_bytes: AtomicU64::new(batch_budget::BATCH_BYTES),
            turn: Turn::default(),
            refusals: Refusals::default(),
            leftovers: Leftovers::new(&parts),
            others: OthersBatches::default(),
            reserve: DriveReserve::new(&parts),
            conflicts: Conflicts::default(),
            catalog: Follower::new(Arc::clone(&parts.index), parts.volume),
            versions: Versions::default(),
            parts,
        }
    }

    /// Sets the nonce of the volume's marker, which was deleted and has been written again. The log
    /// of the catalog was deleted, too, so the next flush writes it as a whole.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn renewed(&self, nonce: [u8; 16]) -> Result<()> {
        *self.nonce.lock() = nonce;
        self.parts.index.commit()?;
        if self.parts.index.snapshot()?.catalog_is_empty()? {
            return Ok(());
        }
        let mut state = self.parts.index.lock();
        if let Some(mut root) = state.inode(Ino::ROOT)? {
            state.note_attributes(&mut root)?;
            state.put_inode(root);
        }
        state.commit()?;
        drop(state);
        // Synced, because the caller next forgets the old nonce.
        Ok(self.parts.index.sync()?)
    }

    /// For tests: limits a batch to `bytes`, as they are counted in [`batch_budget`].
    #[doc(hidden)]
    pub fn limit_batches(&self, bytes: u64) {
        self.batch_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Returns the size limit of a batch.
    fn budget(&self) -> u64 {
        self.batch_bytes.load(Ordering::Relaxed)
    }

    /// Returns whether the drive has refused to remove what an ended batch has left in `.ferryfs`.
    pub fn is_untidy(&self) -> bool {
        self.leftovers.are_there()
    }

    /// Returns whether a flush or a recovery is running.
    pub fn is_running(&self) -> bool {
        self.turn.is_flush_running()
    }

    /// Returns whether it is time to try again what the drive has refused: once an hour while
    /// flushes meet refusals.
    pub fn is_retry_due(&self) -> bool {
        self.refusals.is_retry_due()
    }

    /// Forgets what was refused, so that the next flush tries all of it: the drive was attached.
    pub fn forget_refused(&self) {
        self.refusals.forget_files();
    }

    /// Returns what was not done of batches of other machines that this one has finished since the
    /// start, a line each.
    pub fn left_of_others(&self) -> Vec<String> {
        self.others.not_done()
    }

    /// Returns the lost entries of the drive's catalog, as found when it was last read, a line
    /// each.
    pub fn catalog_losses(&self) -> Vec<String> {
        self.catalog.losses()
    }

    /// Returns the backend for calls that take as long as they take. A call that changes something
    /// must not be given up: it might take effect after recovery has gone another way.
    fn backend(&self) -> Result<Arc<dyn Backend>> {
        self.parts.drive.get_patient().ok_or(FlushError::Detached)
    }

    /// Checks that `backend` is the volume of this cache.
    fn check_marker(&self, backend: &dyn Backend) -> Result<()> {
        let nonce = *self.nonce.lock();
        interrupted::check_marker(backend, self.parts.volume, nonce)
    }

    /// Checks that no other machine uses `backend`.
    fn may_write(&self, backend: &dyn Backend) -> Result<()> {
        self.parts.hooks.may_write(backend)
    }

    /// Marks a point before a change of the journals, where a test may stop.
    fn before(&self, step: CacheStep) -> Result<()> {
        let stopped = self.parts.store.steps().before(step);
        stopped.map_err(|source| FlushError::Cache {
            operation: "change a journal".into(),
            source,
        })
    }
}
