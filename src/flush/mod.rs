//! Carrying changes over: the only writer of the backend.
//!
//! A batch goes through its phases as types that are consumed one by one: gathered, planned, [`stage::Staged`], committed,
//! applied. What a crash after each leaves, and who repairs it:
//!
//! | after | durable | a crash leaves | repaired by |
//! |---|---|---|---|
//! | cut | row of the batch, on the SSD | nothing on the backend | next start: given up, all stays dirty |
//! | stage | staged files (one sync), read back if asked for | a staging directory | next attach: removed, all stays dirty |
//! | journal | what to conclude of the batch, on the SSD | the same, and a journal | next attach: no record, so given up |
//! | commit | the record (one sync) | a committed batch, final names untouched | next attach: applied, from staging or the SSD |
//! | clear, mark | removals and moves, then the mark (two syncs, only if needed) | old names gone, new ones not there | next attach: placed |
//! | place | everything (one sync) | the cut, and a record | next attach: verified, confirmed |
//! | confirm | the index's conclusions, on the SSD | the cut, a record that the index calls done | next attach: removed |
//!
//! Errors before the journal give the batch up; after it, they leave it open, and the next attempt begins by recovering it.
//! Nothing is continued blindly.

mod apply;
mod attributes;
mod carry;
mod catalog;
mod confirm;
mod gather;
mod journal;
mod keep;
mod known;
mod limited;
mod mirror;
mod placing;
mod preflight;
mod real;
mod recover;
mod redo;
mod refresh;
mod refused;
mod report;
mod reserve;
mod room;
mod run;
mod stage;
mod subjects;
mod sweep;
mod told;
mod untrusted;
mod verify;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use uuid::Uuid;

use crate::backend::drive::Drive;
use crate::backend::{Backend, Capabilities};
use crate::base::{Clock, Ino};
use crate::cache::Store;
use crate::index::Index;
use crate::rules::merge::Changes;
use crate::rules::names::NameRules;
use crate::rules::touched::Touched;

pub use catalog::{CatalogLog, read_catalog};
pub(crate) use journal::Journal;
pub(crate) use recover::restore_records;
pub use recover::{RecoveredBatch, recover_without_cache};
pub use report::{Cancel, FlushError, Report, Result, Wish};
pub(crate) use reserve::free_reserve;
pub(crate) use run::phase;
pub(crate) use untrusted::read_small;

/// What a flush needs of the file system it serves.
pub trait Hooks: Send + Sync {
    /// Makes everything in the cache durable.
    ///
    /// # Errors
    /// A line that says what failed.
    fn sync_cache(&self) -> std::result::Result<(), String>;

    /// Brings what the index says of files that were written up to what they are.
    ///
    /// # Errors
    /// A line that says what failed; what could not be brought up stays behind.
    fn settle(&self) -> std::result::Result<(), String> {
        Ok(())
    }

    /// The catalog on the drive says something else than before, by another machine.
    ///
    /// # Errors
    /// A line that says what failed; some of it is then not shown.
    fn catalog_changed(&self) -> std::result::Result<(), String> {
        Ok(())
    }

    /// What a directory of the backend looks like beside what the index believes of it: whether anything differs, and the
    /// directories in it whose contents are known.
    ///
    /// # Errors
    /// If it cannot be read.
    fn look_at(&self, backend: &dyn Backend, dir: Ino) -> Result<(bool, Vec<Ino>)> {
        let _ = (backend, dir);
        Ok((false, Vec::new()))
    }

    /// Takes what others have changed in `dirs` into the index; no batch is under way. Before anything is concluded from what
    /// was listed, `still_right` is asked whether that was the volume.
    ///
    /// # Errors
    /// If it was not, or the backend or the index fails.
    fn take_in(
        &self,
        backend: &dyn Backend,
        dirs: &[Ino],
        still_right: &mut dyn FnMut() -> bool,
    ) -> Result<Changes> {
        let _ = (backend, dirs, still_right);
        Ok(Changes::default())
    }

    /// Opens what the batch is about to take off the backend for those who are still reading it.
    fn hold_open(&self, inos: &[Ino]);

    /// Asked before anything of a batch is written to `backend`, and again before its record: whether no other machine has it at
    /// work.
    ///
    /// # Errors
    /// A line that says who has.
    fn may_write(&self, backend: &dyn Backend) -> std::result::Result<(), String> {
        let _ = backend;
        Ok(())
    }

    /// Frees a part of what is held of the SSD for when it is full, so that the batch can be noted; false if there is none.
    fn give_up_reserve(&self) -> bool {
        false
    }
}

/// What a flusher is given to work with.
pub struct Parts {
    /// The index.
    pub index: Arc<Index>,
    /// The objects.
    pub store: Arc<Store>,
    /// The backend's slot.
    pub drive: Arc<Drive>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Which volume this is.
    pub volume: Uuid,
    /// Which enrollment of it.
    pub nonce: [u8; 16],
    /// Which cache this is.
    pub origin: [u8; 16],
    /// What the backend can hold.
    pub rules: NameRules,
    /// The same for everything that is not about names.
    pub capabilities: Capabilities,
    /// Step of the backend's times, in nanoseconds.
    pub time_granularity_ns: u64,
    /// Where journals are kept, on the SSD.
    pub journals: PathBuf,
    /// The file system that is served.
    pub hooks: Arc<dyn Hooks>,
}

/// Carries changes over, one batch at a time.
pub struct Flusher {
    parts: Parts,
    /// Which enrollment of the volume counts: that of `parts`, until its marker is written anew.
    nonce: Mutex<[u8; 16]>,
    running: Mutex<()>,
    catalog_losses: Mutex<Vec<String>>,
    /// Another machine has written to the catalog; what it says is to be believed once more when all that is new on the drive has been
    /// found.
    catalog_news: AtomicBool,
    /// What finds no space after the commit is set aside: what the user wants is that removals come through.
    full_is_refusal: AtomicBool,
    /// What a batch of another machine touches that could not be finished here.
    of_others: Mutex<Touched>,
    /// What was not done of batches of other machines.
    left_of_others: Mutex<Vec<String>>,
    /// Files that the backend has refused, when, and why.
    refused: Mutex<HashMap<Ino, (Instant, String)>>,
    /// When a flush first left something behind because the backend refuses it; see [`Flusher::is_retry_due`].
    refusal_met: Mutex<Option<Instant>>,
    /// Conflicts that were met while an interrupted batch was finished, for the next flush to tell.
    conflicts_met: Mutex<Vec<(String, String)>>,
    /// Whoever holds that looks for changes of others and writes nothing.
    refreshing: AtomicBool,
    /// The space that is held on the backend for the case that it is full was given up, and is to be taken again.
    gave_reserve_up: AtomicBool,
}

impl Flusher {
    /// A flusher over `parts`.
    pub fn new(parts: Parts) -> Flusher {
        Flusher {
            nonce: Mutex::new(parts.nonce),
            parts,
            running: Mutex::new(()),
            catalog_losses: Mutex::default(),
            catalog_news: AtomicBool::new(false),
            full_is_refusal: AtomicBool::new(false),
            of_others: Mutex::default(),
            left_of_others: Mutex::default(),
            refused: Mutex::default(),
            refusal_met: Mutex::default(),
            conflicts_met: Mutex::default(),
            refreshing: AtomicBool::new(false),
            gave_reserve_up: AtomicBool::new(false),
        }
    }

    /// The volume's marker was deleted and has been written anew, with this nonce. The log of the catalog went with it, so the next
    /// flush is to write it as a whole.
    ///
    /// # Errors
    /// If SQLite cannot.
    pub fn renewed(&self, nonce: [u8; 16]) -> Result<()> {
        *self.nonce.lock() = nonce;
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
        // Whoever asked forgets next that there was another nonce.
        Ok(self.parts.index.sync()?)
    }

    fn nonce(&self) -> [u8; 16] {
        *self.nonce.lock()
    }

    /// Whether a flush is under way.
    pub fn is_running(&self) -> bool {
        self.running.is_locked() && !self.refreshing.load(Ordering::Acquire)
    }
}
