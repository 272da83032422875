//! The reserve on the drive: given up when the drive is full, made again when it has space.
//!
//! [`DriveReserve`] owns the mark that the reserve was given up. A batch sets it through the
//! backend that it writes to ([`DriveReserve::relieve`]); each flush and each recovery ends with
//! [`DriveReserve::restore`].
//!
//! The mark is in memory, and noted in the index for a later daemon. If a crash comes between the
//! two, a later batch makes the reserve once there is plenty of space (`apply/reserve.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::apply::reserve;
use crate::apply::reserve::Relieved;
use crate::core::BatchNo;
use crate::drive::Backend;
use crate::error::Result;
use crate::flush::{FlusherParts, Hooks};
use crate::index::Index;

/// Key of the index's setting that says that the reserve must be made again.
const GIVEN_UP: &str = "gave_reserve_up";

pub(super) struct DriveReserve {
    index: Arc<Index>,
    hooks: Arc<dyn Hooks>,
    /// The reserve was given up and must be made again.
    given_up: AtomicBool,
}

impl DriveReserve {
    pub(super) fn new(parts: &FlusherParts) -> DriveReserve {
        DriveReserve {
            index: parts.index.clone(),
            hooks: parts.hooks.clone(),
            given_up: AtomicBool::new(false),
        }
    }

    /// Returns `backend` for the writes of `batch`; it gives held space up when it is full.
    pub(super) fn relieve<'a>(&'a self, backend: &'a dyn Backend, batch: BatchNo) -> Relieved<'a> {
        Relieved::new(backend, batch, &self.given_up)
    }

    /// Makes the reserve again if it was given up, unless an open batch may need the space.
    pub(super) fn restore(&self, backend: &dyn Backend) {
        let is_batch_open = self.index.lock().active_batch().is_some();
        if is_batch_open || !self.given_up.load(Ordering::Acquire) {
            return;
        }
        match self.make(backend) {
            Ok(is_there) => self.given_up.store(!is_there, Ordering::Release),
            Err(error) => tracing::debug!(%error, "the reserve on the drive is not made again"),
        }
        if let Err(error) = self.note() {
            tracing::debug!(%error, "the next daemon does not learn of the missing reserve");
        }
    }

    /// Makes the reserve if there is none and the drive has space. Returns whether there is one.
    fn make(&self, backend: &dyn Backend) -> Result<bool> {
        self.hooks.may_write(backend)?;
        let space = backend.space()?;
        let size = reserve::restored(&space);
        if size > 0 && reserve::size_on(backend)? == 0 {
            reserve::make(backend, size)?;
            // Clusters that were just freed must not be found under two names.
            backend.sync()?;
        }
        Ok(reserve::size_on(backend)? > 0)
    }

    /// Notes the mark in the index, for a later daemon.
    fn note(&self) -> Result<()> {
        let given_up = self.given_up.load(Ordering::Acquire);
        let mut state = self.index.lock();
        if state.meta(GIVEN_UP)?.is_some() != given_up {
            state.set_meta(GIVEN_UP, if given_up { "1" } else { "" })?;
            state.commit()?;
        }
        Ok(())
    }

    /// Takes over the mark that an earlier daemon has noted in the index.
    pub(super) fn recall(&self) -> Result<()> {
        let noted = self.index.lock().meta(GIVEN_UP)?.is_some();
        self.given_up.fetch_or(noted, Ordering::AcqRel);
        Ok(())
    }
}
