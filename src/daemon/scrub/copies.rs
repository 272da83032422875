//! Where the right bytes of a damaged file may be: in the cache, in another file of the drive with
//! the same hash, or in a version that a flush has kept. A copy counts only if it has the hash that
//! the file had.

use std::cell::Cell;
use std::time::Duration;

use super::file::{Reading, TRIES};
use super::pass::{Halt, Pass};
use crate::core::{ForeignText, RelPath};
use crate::drive::BackendError;
use crate::flush::versions_of_size;
use crate::vfs::{Damage, FsError, Rewritten};

/// The most files that are read because they may be copies.
const MOST: u32 = 8;

/// The pause before a file is marked again, after a batch was under way.
const AGAIN: Duration = Duration::from_millis(200);

/// What became of a damaged file.
#[derive(Debug)]
pub(super) enum Repair {
    /// It is written again, from there.
    Waits(String),
    /// It is not, for this reason.
    Not(String),
    /// It was changed meanwhile.
    Changed,
}

impl Pass<'_> {
    /// Has a damaged file written again by the next flush, if its right bytes are known.
    ///
    /// # Errors
    /// If the scrub is halted.
    pub(super) fn repair(&mut self, damage: &Damage, path: &RelPath) -> Result<Repair, Halt> {
        if !self.repairs()? {
            return Ok(Repair::Not(
                "it was not repaired, as it was only looked for".into(),
            ));
        }
        // Two equal reads may also be a change of somebody who has kept the time.
        let is_steady = damage.found.is_some();
        if is_steady && !self.repairs_steady()? && !self.service.flusher.keeps_version_of(path) {
            return Ok(Repair::Not(STEADY.into()));
        }
        let repair = self.find_and_mark(damage, path)?;
        if let Repair::Waits(_) = &repair {
            // Before the progress says so: after a power cut it would be passed over.
            self.service.fs.sync_files(&[damage.was.ino])?;
        }
        Ok(repair)
    }

    fn find_and_mark(&mut self, damage: &Damage, path: &RelPath) -> Result<Repair, Halt> {
        let fs = &self.service.fs.clone();
        match self.until_now(|_| Ok(fs.rewrite_cached(damage)?))? {
            Rewritten::Waits => return Ok(Repair::Waits("from the cache".into())),
            Rewritten::NoCopy | Rewritten::NotNow => {}
            other => return Ok(not(other)),
        }
        let Some(hash) = damage.was.hash else {
            return Ok(Repair::Not(
                "the cache does not have it, and no hash of it is known; restore it from a backup"
                    .into(),
            ));
        };
        let mut last = Rewritten::NoCopy;
        for (copy, name) in self.copies(damage, hash, path)? {
            let tries = Cell::new(TRIES);
            let outcome = self.until_now(|pass| pass.copy(damage, &copy, &tries))?;
            match outcome {
                Rewritten::Waits => return Ok(Repair::Waits(format!("from {name}"))),
                Rewritten::NoCopy => {}
                Rewritten::NoSpace | Rewritten::InUse | Rewritten::NotNow => last = outcome,
                other => return Ok(not(other)),
            }
        }
        Ok(not(last))
    }

    /// Tries until no batch is under way.
    fn until_now(
        &mut self,
        attempt: impl Fn(&Self) -> Result<Rewritten, Halt>,
    ) -> Result<Rewritten, Halt> {
        loop {
            self.gate()?;
            match attempt(self)? {
                Rewritten::NotNow => self.stop.rest(AGAIN),
                outcome => return Ok(outcome),
            }
        }
    }

    /// Copies one of them into the cache. One that cannot be read is no copy; if the drive only
    /// does not answer, that is tried so many times.
    fn copy(&self, damage: &Damage, copy: &RelPath, tries: &Cell<u32>) -> Result<Rewritten, Halt> {
        let unread = |error: BackendError| {
            tries.set(tries.get().saturating_sub(1));
            Ok(match self.judge(error)? {
                Reading::Again if tries.get() > 0 => Rewritten::NotNow,
                _ => Rewritten::NoCopy,
            })
        };
        let file = match self.backend.open(copy) {
            Ok(file) => file,
            Err(error) => return unread(error),
        };
        match self.service.fs.rewrite_from(damage, &*file) {
            Err(FsError::Backend(error)) => unread(error),
            Err(error) if is_full(&error) => Ok(Rewritten::NoSpace),
            outcome => Ok(outcome?),
        }
    }

    /// Returns paths of what may be copies, with a name for each.
    fn copies(
        &self,
        damage: &Damage,
        hash: crate::core::ContentHash,
        path: &RelPath,
    ) -> Result<Vec<(RelPath, String)>, Halt> {
        let size = damage.was.size;
        let mut found = Vec::new();
        self.service.index.commit()?;
        let snapshot = self.service.index.snapshot()?;
        for key in snapshot.placed_with(hash, size, MOST)? {
            let dir = snapshot.backend_dir(key.parent)?;
            if let Some(dir) = dir.filter(|_| key != damage.key) {
                let copy = dir.join(&key.name);
                let name = format!("{}, which has the same bytes", copy.as_os_str().escaped());
                found.push((copy, name));
            }
        }
        match versions_of_size(&*self.backend, path, size, MOST as usize) {
            Ok(versions) => {
                let named = |copy: RelPath| {
                    let name = format!("the kept version {}", copy.as_os_str().escaped());
                    (copy, name)
                };
                found.extend(versions.into_iter().map(named));
            }
            Err(error) => tracing::warn!(%error, "the kept versions cannot be looked at"),
        }
        Ok(found)
    }
}

const STEADY: &str = "it was not repaired, as it may have been changed on purpose with its time \
    kept, and no old version would be kept: look at it. If it is damage, `ferryfs scrub \
    --repair-steady` repairs it; if not, `touch` it on the drive";

/// Returns whether the SSD has no space.
fn is_full(error: &FsError) -> bool {
    matches!(error.errno(), libc::ENOSPC | libc::EDQUOT)
}

fn not(outcome: Rewritten) -> Repair {
    let why = match outcome {
        Rewritten::NoSpace => "its copy does not fit into the cache: raise --cache-size",
        Rewritten::Local => {
            "it matches what stays local here, so nothing is written to the drive under its name"
        }
        Rewritten::InUse => {
            "its copy in the cache is damaged, too, and a program has it open: close it, and scrub \
             again"
        }
        Rewritten::Changed => return Repair::Changed,
        Rewritten::Waits | Rewritten::NoCopy | Rewritten::NotNow => {
            "no right copy is known; restore it from a backup, through the mount"
        }
    };
    Repair::Not(why.into())
}
