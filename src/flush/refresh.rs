//! Changed elsewhere, as the flusher sees it: between batches the backend is compared with the index, and what others have done
//! there is taken in. The comparing is the served file system's business ([`super::Hooks`]); here is when it may be done.
//!
//! The lock that keeps flushes apart is held meanwhile, and handed to a flush that waits after each directory. A batch that was
//! carried in between is no harm: [`super::Hooks::take_in`] lists again what differs, and under one hold of the lock. The marker
//! is read before that and after it, so a directory that is not the volume's is never taken for one that somebody has emptied.

use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::MutexGuard;

use super::Flusher;
use super::recover::check_marker;
use super::report::{FlushError, Result};
use crate::backend::Backend;
use crate::base::Ino;
use crate::rules::merge::Changes;

/// Directories whose changes are taken in together: what has moved from one to another of them is seen to have moved.
const TOGETHER: usize = 1024;

/// How long a flush under way is waited for in one go.
const SLICE: Duration = Duration::from_millis(200);

impl Flusher {
    /// Looks for changes of others in `from` and, if `below`, in everything below it that the index knows, and takes them in.
    /// Given up when `enough` says so; what was taken in by then stays.
    ///
    /// # Errors
    /// If there is no backend, it is the wrong one, does not answer, or the index fails; [`FlushError::TimedOut`] if it was
    /// enough.
    pub fn refresh(&self, from: Ino, below: bool, enough: &dyn Fn() -> bool) -> Result<Changes> {
        let mut running = loop {
            match self.running.try_lock_for(SLICE) {
                Some(running) => break running,
                None if enough() => return Err(FlushError::TimedOut),
                None => {}
            }
        };
        let refreshed = self.refresh_between(&mut running, from, below, enough);
        if refreshed.is_ok() && from == Ino::ROOT && below {
            self.believe_of_what_was_found();
        }
        self.refreshing.store(false, Ordering::Release);
        refreshed
    }

    fn refresh_between(
        &self,
        running: &mut MutexGuard<'_, ()>,
        from: Ino,
        below: bool,
        enough: &dyn Fn() -> bool,
    ) -> Result<Changes> {
        self.come_to_rest()?;
        let mut open = vec![from];
        let mut differing = Vec::new();
        while let Some(dir) = open.pop() {
            if enough() {
                return Err(FlushError::TimedOut);
            }
            let backend = self.for_reading()?;
            match self.parts.hooks.look_at(&*backend, dir) {
                Ok((differs, dirs)) => {
                    if differs {
                        differing.push(dir);
                    }
                    if below {
                        open.extend(dirs);
                    }
                }
                // It may be damaged, or just gone: taking it in tells, and names it.
                Err(FlushError::Backend(error)) if !error.is_stalled() => {
                    tracing::debug!(%error, "to be looked at again");
                    differing.push(dir);
                }
                Err(error) => return Err(error),
            }
            self.let_flush_pass(running)?;
        }
        let mut changes = Changes::default();
        for together in differing.chunks(TOGETHER) {
            let backend = self.for_reading()?;
            changes.add(self.take_in(&*backend, together)?);
            self.let_flush_pass(running)?;
        }
        Ok(changes)
    }

    /// Takes in what others have changed in `dirs`. The caller holds the lock that keeps flushes apart, and no batch is open.
    pub(super) fn take_in(&self, backend: &dyn Backend, dirs: &[Ino]) -> Result<Changes> {
        let check = || check_marker(backend, self.parts.volume, self.nonce());
        check()?;
        let dirs = self.with_those_above(dirs)?;
        let mut wrong = None;
        let taken = self.parts.hooks.take_in(backend, &dirs, &mut || {
            wrong = check().err();
            wrong.is_none()
        });
        match wrong {
            Some(wrong) => Err(wrong),
            None => taken,
        }
    }

    /// A directory that is gone shows in the one above it.
    fn with_those_above(&self, dirs: &[Ino]) -> Result<Vec<Ino>> {
        let mut all: std::collections::BTreeSet<Ino> = dirs.iter().copied().collect();
        for dir in dirs {
            let mut at = *dir;
            while at != Ino::ROOT {
                let place = self.parts.index.lock().a_place_of(at)?;
                match place {
                    Some((key, _)) if all.insert(key.parent) => at = key.parent,
                    _ => break,
                }
            }
        }
        Ok(all.into_iter().collect())
    }

    /// Names on the backend are what the index says, once the batch that was open is finished.
    fn come_to_rest(&self) -> Result<()> {
        let backend = self.backend()?;
        check_marker(&*backend, self.parts.volume, self.nonce())?;
        self.recover_open_batch(&*backend)?;
        self.refreshing.store(true, Ordering::Release);
        Ok(())
    }

    fn let_flush_pass(&self, running: &mut MutexGuard<'_, ()>) -> Result<()> {
        self.refreshing.store(false, Ordering::Release);
        MutexGuard::bump(running);
        if self.parts.index.lock().active_batch().is_some() {
            return self.come_to_rest();
        }
        self.refreshing.store(true, Ordering::Release);
        Ok(())
    }

    /// By the face for readers, whose calls end in bounded time: a look is given up where a flush would wait.
    fn for_reading(&self) -> Result<std::sync::Arc<dyn Backend>> {
        self.parts.drive.get().ok_or(FlushError::Detached)
    }
}
