//! What the drive has refused, and when it is tried again.
//!
//! An automatic flush would meet the same refusal every few seconds and write the same bytes each
//! time. So [`Refusals`] remembers files that were refused, and directories that could be neither
//! moved nor copied, and automatic flushes leave them alone for an hour. A flush on request, or
//! after an attach, tries all of it. All of it is in memory: after a start everything is tried
//! once.
//!
//! Batches and recoveries note what they met, a batch asks what to leave out, and the daemon asks
//! when to flush again ([`Refusals::is_retry_due`]). Each lock is held for one access; no other
//! lock is taken under it.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::apply::Applied;
use crate::apply::explain::explain;
use crate::apply::journal::Journal;
use crate::apply::refused::StepNo;
use crate::core::Ino;

/// How long automatic flushes leave alone what the drive has refused.
const PAUSE: Duration = Duration::from_secs(3600);

#[derive(Default)]
pub(super) struct Refusals {
    /// Refused files, since when, and why.
    files: Mutex<HashMap<Ino, (Instant, String)>>,
    /// When a flush first met a refusal, since the last retry was due.
    met: Mutex<Option<Instant>>,
    /// Directories that could be neither moved nor copied, and since when.
    not_copied: Mutex<HashMap<Ino, Instant>>,
}

impl Refusals {
    /// Notes what the drive has refused of the batch of `journal`, and forgets its other files.
    pub(super) fn note_applied(&self, journal: &Journal, applied: &Applied) {
        let mut files = self.files.lock();
        for (_, ino) in &journal.keys.place {
            // It is refused again now, or placed.
            files.remove(ino);
        }
        for refusal in &applied.refused.steps {
            if let StepNo::Place(number) = refusal.step
                && let Some((_, ino)) = journal.keys.place.get(number)
            {
                let reason = explain(refusal.step, &refusal.why, None);
                files.insert(*ino, (Instant::now(), reason));
            }
        }
        drop(files);
        let not_given = [&applied.not_set, &applied.not_touched];
        if !applied.refused.is_empty() || not_given.iter().any(|paths| !paths.is_empty()) {
            self.note_met();
        }
    }

    /// Notes that a flush leaves something behind because the drive refuses it.
    pub(super) fn note_met(&self) {
        self.met.lock().get_or_insert_with(Instant::now);
    }

    /// Returns whether it is time to try everything again: once an hour while flushes meet
    /// refusals. The cause is removed on the drive, and nothing reports that.
    pub(super) fn is_retry_due(&self) -> bool {
        let mut met = self.met.lock();
        met.take_if(|since| since.elapsed() >= PAUSE).is_some()
    }

    /// Forgets the refused files, so that the next flush tries all of them.
    pub(super) fn forget_files(&self) {
        self.files.lock().clear();
    }

    /// Returns those of `files` that were refused within the last hour, with the reason.
    pub(super) fn refused_lately<'a>(
        &self,
        files: impl Iterator<Item = &'a Ino>,
    ) -> BTreeMap<Ino, String> {
        let mut refused = self.files.lock();
        refused.retain(|_, (since, _)| since.elapsed() < PAUSE);
        files
            .filter_map(|ino| Some((*ino, refused.get(ino)?.1.clone())))
            .collect()
    }

    /// Notes that the directory `dir` could be neither moved nor copied.
    pub(super) fn note_not_copied(&self, dir: Ino) {
        self.not_copied.lock().insert(dir, Instant::now());
    }

    /// Forgets that, because `dir` is about to be copied.
    pub(super) fn forget_not_copied(&self, dir: Ino) {
        self.not_copied.lock().remove(&dir);
    }

    /// Returns whether that was noted of `dir` within the last hour.
    pub(super) fn was_not_copied_lately(&self, dir: Ino) -> bool {
        let mut failed = self.not_copied.lock();
        failed.retain(|_, since| since.elapsed() < PAUSE);
        failed.contains_key(&dir)
    }
}
