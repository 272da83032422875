//! Bringing the mirror of the catalog to where the drive's log is: when the drive is attached, and when nobody knows where it is.
//!
//! All batches have been finished before. While the log is replayed the mirror is of no log (`index::Mirror`), so a crash has it
//! replayed from the start.

use std::sync::atomic::Ordering;

use super::catalog::{CatalogLog, read_catalog};
use super::{Flusher, Result};
use crate::backend::Backend;
use crate::index::Mirror;
use crate::rules::catalog::chain::Replay;

impl Flusher {
    /// Looks at the drive's log and takes in what is new there.
    pub(super) fn catch_up(&self, backend: &dyn Backend) -> Result<()> {
        let known = self.parts.index.lock().catalog_log()?;
        let log = read_catalog(backend, self.parts.volume, known.head)?;
        for line in &log.mended {
            tracing::warn!(
                "{line}; nothing is lost, and the next flush that has to writes the catalog anew"
            );
        }
        for line in &log.lost {
            tracing::error!(
                "{line}: modes, owners and other attributes told there are lost; contents are not touched"
            );
        }
        self.catalog_losses.lock().clone_from(&log.lost);
        self.note_whose_word(&log)?;
        match log.replay {
            Replay::Nothing if log.state == known => {}
            Replay::Nothing => {
                let mut state = self.parts.index.lock();
                state.set_catalog_log(&log.state)?;
                state.commit()?;
            }
            Replay::Forward(_) | Replay::Anew(_) => {
                let mut mirror = Mirror::begin(&self.parts.index)?;
                log.replay(backend, &mut mirror)?;
                if log.trust.is_ours() && matches!(log.replay, Replay::Anew(_)) {
                    // Nothing in the mirror is older than what was replayed.
                    self.parts.index.lock().set_catalog_is_strangers(false)?;
                }
                mirror.end(&log.state)?;
                self.catalog_news.store(true, Ordering::Release);
                self.believe_catalog();
            }
        }
        Ok(())
    }

    /// Remembers, before any of it is taken in, that others could have written the log.
    fn note_whose_word(&self, log: &CatalogLog) -> Result<()> {
        let mut state = self.parts.index.lock();
        if log.trust.is_ours() || state.catalog_is_strangers()? {
            return Ok(());
        }
        tracing::info!(
            "users other than yours and root may write to .ferryfs/catalog on the drive: devices, set-user-ID and set-group-ID bits, and \
             attributes of security.* and trusted.* that it tells of are not believed"
        );
        state.set_catalog_is_strangers(true)?;
        state.commit()?;
        Ok(())
    }

    /// The same, if the mirror is of no log: the drive has none yet, or the mirror was cut short.
    pub(super) fn catch_up_if_lost(&self, backend: &dyn Backend) -> Result<()> {
        let known = self.parts.index.lock().catalog_log()?;
        match known.head {
            Some(_) => Ok(()),
            None => self.catch_up(backend),
        }
    }

    fn believe_catalog(&self) {
        if let Err(error) = self.parts.hooks.catalog_changed() {
            tracing::warn!(error, "what the catalog says anew is not shown yet");
        }
    }

    /// All that is new on the drive has been found: what the catalog says of it, and of the directories it is in, is believed now.
    /// What is known of a machine that wrote both is whole only then.
    pub(super) fn believe_of_what_was_found(&self) {
        if self.catalog_news.swap(false, Ordering::AcqRel) {
            self.believe_catalog();
        }
    }

    /// What of the drive's catalog was found to be lost when it was last read, a line each.
    pub fn catalog_losses(&self) -> Vec<String> {
        self.catalog_losses.lock().clone()
    }
}
