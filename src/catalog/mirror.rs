//! Brings the mirror of the catalog in the index up to date with the log on the drive: when a drive
//! is attached, and when the mirror reflects no log.
//!
//! All batches are finished before. During a replay the mirror is marked as reflecting no log
//! (`index::Mirror`), so after a crash the replay starts from the beginning.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use uuid::Uuid;

use crate::catalog::{CatalogLog, read_catalog};
use crate::core::ContentHash;
use crate::drive::Backend;
use crate::error::Result;
use crate::format::catalog::chain::{LogState, Replay};
use crate::format::catalog::store::CatalogStore;
use crate::format::catalog::{CatalogBatch, segment};
use crate::index::{Index, Mirror};

/// Changes that are written to the mirror under one hold of the index lock.
const CHUNK: usize = 256;

/// Follows the catalog log of one volume.
pub(crate) struct Follower {
    index: Arc<Index>,
    volume: Uuid,
    /// Lost entries found at the last read of the log, one line each.
    losses: Mutex<Vec<String>>,
    /// The log had entries of another machine, and not all files that they describe were known.
    has_news: AtomicBool,
}

impl Follower {
    pub(crate) fn new(index: Arc<Index>, volume: Uuid) -> Follower {
        Follower {
            index,
            volume,
            losses: Mutex::default(),
            has_news: AtomicBool::new(false),
        }
    }

    /// Reads the log and applies new entries to the mirror. Returns whether there were any.
    pub(crate) fn catch_up(&self, backend: &dyn Backend) -> Result<bool> {
        let known = self.index.lock().catalog_log()?;
        let log = read_catalog(backend, self.volume, known.head)?;
        self.report(&log);
        self.note_trust(&log)?;
        let is_anew = matches!(log.replay, Replay::Anew(_));
        let is_news = match &log.replay {
            Replay::Nothing => false,
            Replay::Forward(_) => true,
            // A drive that stores all attributes itself has no log.
            Replay::Anew(numbers) => {
                !numbers.is_empty() || self.index.lock().describes_anything()?
            }
        };
        if !is_news {
            let mut state = self.index.lock();
            if is_anew && log.trust.is_ours() && state.catalog_is_strangers()? {
                state.set_catalog_is_strangers(false)?;
            }
            if log.state != known {
                state.set_catalog_log(&log.state)?;
            }
            state.commit()?;
            return Ok(false);
        }
        let mut mirror = Mirror::begin(&self.index)?;
        log.replay(backend, &mut mirror)?;
        if log.trust.is_ours() && is_anew {
            // The mirror holds nothing older than this replay.
            self.index.lock().set_catalog_is_strangers(false)?;
        }
        mirror.end(&log.state)?;
        self.has_news.store(true, Ordering::Release);
        Ok(true)
    }

    /// The same, but only if the mirror reflects no log: the drive has none yet, or a replay was
    /// interrupted.
    pub(crate) fn catch_up_if_lost(&self, backend: &dyn Backend) -> Result<bool> {
        let known = self.index.lock().catalog_log()?;
        match known.head {
            Some(_) => Ok(false),
            None => self.catch_up(backend),
        }
    }

    fn report(&self, log: &CatalogLog) {
        for line in &log.mended {
            tracing::warn!(
                "{line}; no attribute is lost, and the next flush that changes the catalog \
                 rewrites it"
            );
        }
        for line in &log.lost {
            tracing::error!(
                "{line}: modes, owners and other attributes in it are lost; contents are unchanged"
            );
        }
        self.losses.lock().clone_from(&log.lost);
    }

    /// Records that others could have written the log, before any entry is applied.
    fn note_trust(&self, log: &CatalogLog) -> Result<()> {
        let mut state = self.index.lock();
        if log.trust.is_ours() || state.catalog_is_strangers()? {
            return Ok(());
        }
        tracing::info!(
            "users other than yours and root may write to .ferryfs/catalog on the drive: devices, set-user-ID and set-group-ID bits, and \
             attributes of security.* and trusted.* in it are ignored"
        );
        state.set_catalog_is_strangers(true)?;
        state.commit()?;
        Ok(())
    }

    /// Returns once whether entries of another machine arrived. After a scan of all files on the
    /// drive, more of the files that they describe may be known.
    pub(crate) fn take_news(&self) -> bool {
        self.has_news.swap(false, Ordering::AcqRel)
    }

    /// Returns the lost entries found at the last read of the log, one line each.
    pub(crate) fn losses(&self) -> Vec<String> {
        self.losses.lock().clone()
    }

    /// Applies the changes of a confirmed batch to the mirror. It uses several transactions and
    /// records its position in each, so it can be interrupted and repeated.
    pub(crate) fn confirm(&self, batch: &CatalogBatch) -> Result<()> {
        let bytes = segment::encode(self.volume, batch);
        let hash = segment::hash_of(&bytes).unwrap_or(ContentHash([0; 32]));
        let (log, taken) = {
            let state = self.index.lock();
            (state.catalog_log()?, state.catalog_taken(batch.segment)?)
        };
        let after = log.with(batch, hash, bytes.len() as u64);
        if after == log {
            return Ok(()); // Already applied.
        }
        if !batch.full && log.head.map(|head| head.hash) != batch.after {
            // Only a read of the drive can resolve this. The next flush or attach does it.
            tracing::warn!(
                segment = batch.segment,
                "the catalog has changed; the next flush or attach reads it again"
            );
            let mut state = self.index.lock();
            state.set_catalog_log(&LogState::default())?;
            state.commit()?;
            return Ok(());
        }
        let mut done = taken.min(batch.changes.len());
        if done == 0 && batch.full {
            self.index.lock().clear_catalog()?;
        }
        for chunk in batch.changes[done..].chunks(CHUNK) {
            let mut state = self.index.lock();
            for change in chunk {
                state.take(change)?;
            }
            done += chunk.len();
            state.set_catalog_taken(batch.segment, done)?;
            state.commit()?;
        }
        {
            let mut state = self.index.lock();
            state.empty_catalog_slots()?;
            state.set_catalog_log(&after)?;
            state.commit()?;
        }
        Ok(self.index.sweep_catalog()?)
    }
}
