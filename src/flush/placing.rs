//! Giving and taking names on the backend without destroying what somebody else has put there.
//!
//! Others may change the drive at any moment, also after a batch was compared with it. So nothing is replaced or removed unseen:
//! what stands under a name is first moved aside, or swapped with what replaces it where the file system can, and then compared with
//! what the batch knew. What differs is somebody else's and keeps a name in its directory
//! (`name.sync-conflict-<date>-<time>-<host>.ext`), or gets its own back if the batch only removed it. New names are given so
//! that nothing is replaced.
//!
//! What is set aside stays in the staging directory until the batch is confirmed: on a file system without a journal no clusters
//! may be freed that something written before the next sync could get.
//!
//! A crash in the middle leaves what was set aside there; a redo compares it again and does the same ([`super::redo`]).

use super::report::{FlushError, Result};
use super::stage::{SlotSource, give_attributes, make_lost_found, restage};
use crate::backend::{Backend, BackendError, Look, Metadata};
use crate::base::{BatchNo, FileKind, RelPath, Timestamp};
use crate::rules::describe::is_told_oddly;
use crate::rules::known::Believed;
use crate::rules::layout;
use crate::rules::merge::conflict_name;
use crate::rules::steps::SlotNo;

use super::apply::{Applied, create_with, exists, hash_file, is_absent};
use super::real::{make_node, node_of};
use super::refused::is_local;

/// More tries than others can be faster than we are.
const TRIES: u32 = 64;

/// The first of the slots that take copies of what stands under two names. No batch has so many.
const PARTED: u32 = 1 << 31;

/// How conflicts are named, and times compared.
#[derive(Clone, Debug)]
pub(super) struct Manners {
    /// When the batch was committed.
    pub(super) time: Timestamp,
    /// The name of this machine.
    pub(super) host: String,
    /// Times nearer than this, in nanoseconds, are equal.
    pub(super) slack: u64,
    /// A step that finds the drive full is set aside like one that is refused, so that the batch ends and what makes space can
    /// follow. Else the batch waits for space, so that the drive has it as a whole.
    pub(super) full_is_refusal: bool,
}

impl Manners {
    /// Whether the first run of a batch may take this error for a refusal of one name.
    pub(super) fn is_refusal(&self, error: &BackendError) -> bool {
        match error.is_full() {
            true => self.full_is_refusal,
            false => error.is_refusal(),
        }
    }

    /// The same for a redo, which looks at the rest of the drive before it does so.
    pub(super) fn is_local(
        &self,
        backend: &dyn Backend,
        batch: BatchNo,
        error: &BackendError,
    ) -> bool {
        (self.full_is_refusal && error.is_full()) || is_local(backend, batch, error)
    }
}

/// Gives and takes names for one batch.
pub(super) struct Placer<'a> {
    pub(super) backend: &'a dyn Backend,
    pub(super) batch: BatchNo,
    pub(super) manners: &'a Manners,
}

impl Placer<'_> {
    /// Moves the content of `slot`, which stands at `from`, to `to`, where `expected` stands, or nothing.
    ///
    /// # Errors
    /// If the backend refuses, or fails. What stood at `to` is there again, unless the backend refuses that as well.
    pub(super) fn place(
        &self,
        slot: SlotNo,
        from: &RelPath,
        to: &RelPath,
        expected: Option<&Believed>,
        applied: &mut Applied,
    ) -> Result<()> {
        match expected {
            Some(expected) => self.replace(slot, from, to, expected, applied),
            None => self.fill(slot, from, to, applied),
        }
    }

    fn replace(
        &self,
        slot: SlotNo,
        from: &RelPath,
        to: &RelPath,
        expected: &Believed,
        applied: &mut Applied,
    ) -> Result<()> {
        let swapped = match self.backend.renames_atomically() {
            true => self.backend.exchange(from, to),
            false => Ok(false),
        };
        match swapped {
            Ok(true) => {
                match self.look(from) {
                    Err(FlushError::Backend(error))
                        if is_local(self.backend, self.batch, &error) =>
                    {
                        // As if nothing had been done.
                        return match self.backend.exchange(from, to) {
                            Ok(true) => Err(error.into()),
                            _ => self.keep_aside(from, to, applied),
                        };
                    }
                    found => self.keep_or_drop_found((from, found?), to, expected, applied)?,
                }
                // With a journal what is freed now is given to nothing that a crash could mix it up with.
                return match applied.garbage.pop_if(|last| last == from) {
                    Some(old) => self.drop_now(&old, applied),
                    None => Ok(()),
                };
            }
            Ok(false) => {}
            Err(error) if is_absent(&error) || is_across(&error) => {}
            Err(error) => return Err(error.into()),
        }
        if self.backend.renames_atomically()
            && self.replace_linked(slot, (from, to), expected, applied)?
        {
            return Ok(());
        }
        let old = match self.set_aside(slot, to) {
            Ok(Some(old)) => old,
            Ok(None) => return self.fill(slot, from, to, applied),
            // The staging directory cannot grow. The window is between these two calls.
            Err(error) if error.is_full() => {
                return self.replace_in_place(from, to, expected, applied);
            }
            Err(error) => return Err(error.into()),
        };
        if let Err(error) = self.fill(slot, from, to, applied) {
            // Its directory may be gone from under it: then it ends like anything that is replaced, as the new version is in the cache.
            if let Err(refused) = self.backend.rename_new(&old, to) {
                tracing::warn!(error = %refused, path = %to, "the old version could not be put back");
                self.keep_or_drop(&old, to, expected, applied)?;
            }
            return Err(error);
        }
        match self.look(&old) {
            Err(FlushError::Backend(error)) if is_local(self.backend, self.batch, &error) => {
                // As if nothing had been done.
                let undone = (self.backend.rename_new(to, from))
                    .and_then(|()| self.backend.rename_new(&old, to));
                match undone {
                    Ok(()) => Err(error.into()),
                    Err(_) => self.keep_aside(&old, to, applied),
                }
            }
            found => self.keep_or_drop_found((&old, found?), to, expected, applied),
        }
    }

    /// The same where names cannot be swapped, but one rename replaces a file at once, as on NFS: what stands at `to` gets a second
    /// name before that, so that the name is never empty. Somebody who replaces the file itself between the two calls is not
    /// noticed; who writes into it is. False if the backend has no links, or there is nothing to be replaced.
    fn replace_linked(
        &self,
        slot: SlotNo,
        (from, to): (&RelPath, &RelPath),
        expected: &Believed,
        applied: &mut Applied,
    ) -> Result<bool> {
        let old = layout::replaced_path(self.batch, slot);
        match self.backend.make_hard_link(to, &old) {
            Ok(()) => {}
            Err(error) if error.is_refusal() => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        if let Err(error) = self.backend.rename(from, to) {
            // Only a second name.
            let _ = self.backend.remove_file(&old);
            return match is_across(&error) || error.is_taken() {
                true => Ok(false),
                false => Err(error.into()),
            };
        }
        self.keep_or_drop(&old, to, expected, applied)?;
        Ok(true)
    }

    fn drop_now(&self, old: &RelPath, applied: &mut Applied) -> Result<()> {
        match self.backend.remove_file(old) {
            Err(error) if error.is_refusal() && !is_absent(&error) => {
                applied.garbage.push(old.clone());
                Ok(())
            }
            Err(error) if !is_absent(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Moves what stands at `path` out of the way of the content of `slot`; `None` if nothing does.
    fn set_aside(
        &self,
        slot: SlotNo,
        path: &RelPath,
    ) -> std::result::Result<Option<RelPath>, BackendError> {
        let mut old = layout::replaced_path(self.batch, slot);
        let mut moved = self.backend.rename(path, &old);
        if moved.as_ref().is_err_and(is_across)
            && let Some((dir, _)) = path.split_last()
        {
            self.note_across()?;
            old = layout::near_old_path(&dir, self.batch, slot);
            moved = self.backend.rename(path, &old);
        }
        match moved {
            Ok(()) => Ok(Some(old)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn replace_in_place(
        &self,
        from: &RelPath,
        to: &RelPath,
        expected: &Believed,
        applied: &mut Applied,
    ) -> Result<()> {
        let found = self.look(to)?;
        if let Some(found) = &found
            && !self.is_as_expected(to, found, expected)?
        {
            self.keep_theirs(to, to, applied)?;
        }
        Ok(self.backend.rename(from, to)?)
    }

    /// Moves what stands at `from` to `to`, where nothing is expected.
    fn fill(
        &self,
        slot: SlotNo,
        from: &RelPath,
        to: &RelPath,
        applied: &mut Applied,
    ) -> Result<()> {
        for _ in 0..TRIES {
            match self.backend.rename_new(from, to) {
                Ok(()) => return Ok(()),
                Err(error) if error.is_taken() && exists(self.backend, to)? => {
                    self.keep_theirs(to, to, applied)?;
                }
                Err(error) if is_across(&error) => {
                    return self.fill_across(slot, from, to, applied);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(self.taken(to))
    }

    /// The same to another file system: what is to be there is copied beside it first.
    fn fill_across(
        &self,
        slot: SlotNo,
        from: &RelPath,
        to: &RelPath,
        applied: &mut Applied,
    ) -> Result<()> {
        let Some((dir, _)) = to.split_last() else {
            return Err(self.taken(to));
        };
        self.note_across()?;
        let near = layout::near_path(&dir, self.batch, slot);
        let placed = self.copy(from, &near).and_then(|()| {
            for _ in 0..TRIES {
                match self.backend.rename_new(&near, to) {
                    Ok(()) => return Ok(()),
                    Err(error) if error.is_taken() && exists(self.backend, to)? => {
                        self.keep_theirs(to, to, applied)?;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Err(self.taken(to))
        });
        let placed = placed.map_err(|error| match error {
            FlushError::Backend(error) if error.is_full() => {
                FlushError::FullThere { path: to.clone() }
            }
            error => error,
        });
        if placed.is_ok() {
            applied.garbage.push(from.clone());
        } else {
            // What stays is known by its name, and removed by the redo or the end of the batch.
            let _ = self.backend.remove_file(&near);
        }
        placed
    }

    /// Copies a file or node to a name of ours; what stands there is part of an earlier attempt. A directory is not copied.
    pub(super) fn copy(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        let meta = self.backend.metadata(from)?;
        if meta.kind == FileKind::Directory {
            let source = std::io::Error::from_raw_os_error(libc::EXDEV);
            return Err(BackendError::new("rename", from, source).into());
        }
        match self.backend.remove_file(to) {
            Err(error) if !is_absent(&error) => return Err(error.into()),
            _ => {}
        }
        if let Some(node) = node_of(&meta) {
            return Ok(make_node(self.backend, &node, to)?);
        }
        let file = self.backend.open(from)?;
        let source = SlotSource::OnBackend(file, meta.modified);
        let copied = restage(self.backend, None, source, to, Some(meta.size))
            .and_then(|_| give_attributes(self.backend, from, &meta, to));
        if copied.is_err() {
            let _ = self.backend.remove_file(to);
        }
        copied
    }

    /// Notes, durably, that there may be names of ours in the user's directories.
    pub(super) fn note_across(&self) -> std::result::Result<(), BackendError> {
        let note = layout::across_path(self.batch);
        match self.backend.metadata(&note) {
            Ok(_) => return Ok(()),
            Err(error) if !is_absent(&error) => return Err(error),
            Err(_) => {}
        }
        create_with(self.backend, &note, b"").map_err(|error| match error {
            FlushError::Backend(error) => error,
            other => BackendError::new("create", &note, std::io::Error::other(other.to_string())),
        })?;
        self.backend.sync()
    }

    /// Sees to what stood under `name` and was moved to `aside`: what was expected there ends with the batch, anything else is
    /// somebody else's version.
    pub(super) fn keep_or_drop(
        &self,
        aside: &RelPath,
        name: &RelPath,
        expected: &Believed,
        applied: &mut Applied,
    ) -> Result<()> {
        match self.look(aside) {
            // What cannot be looked at may be anybody's.
            Err(FlushError::Backend(error)) if is_local(self.backend, self.batch, &error) => {
                self.keep_aside(aside, name, applied)
            }
            found => self.keep_or_drop_found((aside, found?), name, expected, applied),
        }
    }

    fn keep_or_drop_found(
        &self,
        (aside, found): (&RelPath, Option<Metadata>),
        name: &RelPath,
        expected: &Believed,
        applied: &mut Applied,
    ) -> Result<()> {
        let Some(found) = found else {
            return Ok(());
        };
        if self.is_as_expected(aside, &found, expected)? {
            applied.garbage.push(aside.clone());
            return Ok(());
        }
        self.keep_aside(aside, name, applied)
    }

    /// Keeps what stands at `aside`, in our own directory, and is somebody else's version of `name`: as a conflict, or where
    /// that is refused in `.ferryfs/lost+found`.
    ///
    /// # Errors
    /// If it can be kept nowhere; no refusal, as the batch must not end before it is.
    pub(super) fn keep_aside(
        &self,
        aside: &RelPath,
        name: &RelPath,
        applied: &mut Applied,
    ) -> Result<()> {
        let refused = match self.keep_theirs(aside, name, applied) {
            Err(FlushError::Backend(error)) if error.is_refusal() => error,
            result => return result,
        };
        let kept = self.to_lost_found(aside).map_err(|error| match error {
            FlushError::Backend(error) if error.is_refusal() => FlushError::NotKept {
                path: name.clone(),
                problem: refused.to_string(),
            },
            other => other,
        })?;
        applied.conflicts.push((name.clone(), kept));
        Ok(())
    }

    /// Moves what stands at `at` to `.ferryfs/lost+found`, and tells where it is there.
    pub(super) fn to_lost_found(&self, at: &RelPath) -> Result<RelPath> {
        let dir = layout::lost_found();
        make_lost_found(self.backend)?;
        let kept = self.name_in_lost_found(at);
        if kept.is_err() {
            // Fails if there is anything in it.
            let _ = self.backend.remove_dir(&dir);
        }
        kept
    }

    fn name_in_lost_found(&self, at: &RelPath) -> Result<RelPath> {
        for number in 0..TRIES {
            let kept = layout::kept_path(self.batch, at, number);
            match self.backend.rename_new(at, &kept) {
                Ok(()) => {
                    tracing::error!(path = %at, kept = %kept, "kept on the drive, not under its name");
                    return Ok(kept);
                }
                Err(error) if error.is_taken() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(self.taken(at))
    }

    /// Removes the file at `path`, where `expected` stands. What somebody else has changed meanwhile stays, and so does what is
    /// no file any more.
    ///
    /// # Errors
    /// If the backend refuses, or fails.
    pub(super) fn remove(
        &self,
        step: usize,
        path: &RelPath,
        expected: Option<&Believed>,
        applied: &mut Applied,
    ) -> Result<()> {
        let aside = layout::removed_path(self.batch, step);
        match self.backend.rename(path, &aside) {
            Ok(()) => self.removed_or_back(&aside, path, expected, applied),
            Err(error) if is_absent(&error) => Ok(()),
            // It may be only the move that is refused.
            Err(error) if error.is_refusal() => self.remove_in_place(path, expected, applied),
            Err(error) => Err(error.into()),
        }
    }

    /// Sees to what was moved from `path` to `aside` to be removed.
    pub(super) fn removed_or_back(
        &self,
        aside: &RelPath,
        path: &RelPath,
        expected: Option<&Believed>,
        applied: &mut Applied,
    ) -> Result<()> {
        let may_go = match self.look(aside) {
            Ok(None) => return Ok(()),
            Ok(Some(found)) => self.may_go(aside, &found, expected),
            Err(error) => Err(error),
        };
        match may_go {
            Ok(true) => {
                applied.garbage.push(aside.clone());
                return Ok(());
            }
            Ok(false) => {}
            // It cannot be looked at: it stays where it was, as if it had never been moved.
            Err(error) => {
                if let FlushError::Backend(refused) = &error
                    && is_local(self.backend, self.batch, refused)
                {
                    self.back_or_aside(aside, path, applied)?;
                }
                return Err(error);
            }
        }
        match self.backend.rename_new(aside, path) {
            Ok(()) => {
                applied.theirs.push(path.clone());
                Ok(())
            }
            // They have made another one meanwhile, or its directory is gone.
            Err(error) if error.is_refusal() => self.keep_aside(aside, path, applied),
            Err(error) => Err(error.into()),
        }
    }

    /// Moves what was taken from `path` back there; if that is refused it is kept beside it.
    pub(super) fn back_or_aside(
        &self,
        aside: &RelPath,
        path: &RelPath,
        applied: &mut Applied,
    ) -> Result<()> {
        match self.backend.rename_new(aside, path) {
            Err(error) if error.is_refusal() && !is_absent(&error) => {
                self.keep_aside(aside, path, applied)
            }
            Err(error) if !is_absent(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn remove_in_place(
        &self,
        path: &RelPath,
        expected: Option<&Believed>,
        applied: &mut Applied,
    ) -> Result<()> {
        let Some(found) = self.look(path)? else {
            return Ok(());
        };
        if !self.may_go(path, &found, expected)? {
            applied.theirs.push(path.clone());
            return Ok(());
        }
        match self.backend.remove_file(path) {
            Err(error) if !is_absent(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn may_go(
        &self,
        path: &RelPath,
        found: &Metadata,
        expected: Option<&Believed>,
    ) -> Result<bool> {
        match expected {
            _ if found.kind == FileKind::Directory => Ok(false),
            Some(expected) => self.is_as_expected(path, found, expected),
            None => Ok(true),
        }
    }

    /// Gives what stands at `at`, and is somebody else's version of `name`, the name of a conflict beside `name`.
    pub(super) fn keep_theirs(
        &self,
        at: &RelPath,
        name: &RelPath,
        applied: &mut Applied,
    ) -> Result<()> {
        let Some((dir, last)) = name.split_last() else {
            return Err(self.taken(name));
        };
        let is_dir = match self.look(at) {
            Ok(found) => found.is_some_and(|meta| meta.kind == FileKind::Directory),
            // Only its name depends on it.
            Err(FlushError::Backend(error)) if is_local(self.backend, self.batch, &error) => false,
            Err(error) => return Err(error),
        };
        let Manners { time, host, .. } = self.manners;
        for attempt in 0..TRIES {
            let Some(conflict) = conflict_name(&last, *time, host, attempt, is_dir) else {
                break;
            };
            let kept = dir.join(&conflict);
            match self.backend.rename_new(at, &kept) {
                Ok(()) => {
                    tracing::warn!(path = %name, kept = %kept, "somebody else has changed it on the drive meanwhile; both are kept");
                    applied.conflicts.push((name.clone(), kept));
                    return Ok(());
                }
                // They have taken it away themselves.
                Err(error) if is_absent(&error) && !exists(self.backend, at)? => return Ok(()),
                Err(error) if error.is_taken() => {
                    if self.is_ghost(at, &kept)? {
                        self.part(at, &kept)?;
                        applied.conflicts.push((name.clone(), kept));
                        return Ok(());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(self.taken(name))
    }

    /// Whether an interrupted rename may have left one file under both names, on the same clusters.
    fn is_ghost(&self, at: &RelPath, kept: &RelPath) -> Result<bool> {
        if self.backend.renames_atomically() {
            return Ok(false);
        }
        let (Some(one), Some(other)) = (self.look(at)?, self.look(kept)?) else {
            return Ok(false);
        };
        let is_file = one.kind == FileKind::Regular && other.kind == FileKind::Regular;
        if !is_file || (one.size, one.modified) != (other.size, other.modified) {
            return Ok(false);
        }
        let hash = |path: &RelPath| hash_file(&*self.backend.open(path)?, path);
        Ok(hash(at)? == hash(kept)?)
    }

    /// Gives what stands at `at` and at `kept` clusters of its own, and the second name only. A crash leaves both, or a copy in the
    /// staging directory, which is kept in `.ferryfs/lost+found`.
    fn part(&self, at: &RelPath, kept: &RelPath) -> Result<()> {
        for number in 0..TRIES {
            let copy = layout::slot_path(self.batch, SlotNo(PARTED + number));
            if exists(self.backend, &copy)? {
                continue;
            }
            self.copy(at, &copy)?;
            self.backend.sync()?;
            self.backend.remove_file(at)?;
            self.backend.remove_file(kept)?;
            self.backend.sync()?;
            return Ok(self.backend.rename_new(&copy, kept)?);
        }
        Err(self.taken(kept))
    }

    fn taken(&self, path: &RelPath) -> FlushError {
        let source = std::io::Error::from_raw_os_error(libc::EEXIST);
        BackendError::new("rename", path, source).into()
    }

    /// Whether what was found at `path` is what the batch knew: of the same size, and the same time or the same bytes.
    pub(super) fn is_as_expected(
        &self,
        path: &RelPath,
        found: &Metadata,
        expected: &Believed,
    ) -> Result<bool> {
        if !expected.may_have_kind(found.kind) {
            return Ok(false);
        }
        // Of a link or a special file the time says nothing: there is nothing in it that could have changed.
        if found.kind != FileKind::Regular {
            return Ok(true);
        }
        if found.size != expected.size {
            return Ok(false);
        }
        if found.modified.0.abs_diff(expected.modified.0) <= self.manners.slack
            || is_told_oddly(expected.modified, found.modified)
        {
            return Ok(true);
        }
        let Some(hash) = expected.hash else {
            return Ok(false);
        };
        let hashed = (self.backend.open(path).map_err(FlushError::from))
            .and_then(|file| hash_file(&*file, path));
        match hashed {
            Ok(found) => Ok(found == hash),
            // What cannot be read may be anybody's; unless nothing can be read.
            Err(FlushError::Backend(error))
                if !error.is_stalled() && self.backend.check_alive(Look::Read).is_ok() =>
            {
                tracing::warn!(%error, "counts as changed by somebody else");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn look(&self, path: &RelPath) -> Result<Option<Metadata>> {
        match self.backend.metadata(path) {
            Ok(meta) => Ok(Some(meta)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether two names are not on one file system.
pub(super) fn is_across(error: &BackendError) -> bool {
    error.source.raw_os_error() == Some(libc::EXDEV)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::memory::{MemNode, MemoryBackend, MemoryOptions};

    fn put(backend: &MemoryBackend, path: &'static str, bytes: &[u8]) -> Believed {
        let path = RelPath::fixed(path);
        if backend.metadata(&path).is_ok() {
            backend.remove_file(&path).unwrap();
        }
        create_with(backend, &path, bytes).unwrap();
        let meta = backend.metadata(&path).unwrap();
        Believed {
            size: meta.size,
            modified: meta.modified,
            hash: None,
        }
    }

    fn bytes(backend: &MemoryBackend, path: &str) -> Option<Vec<u8>> {
        match backend
            .tree()
            .get(&RelPath::parse(path.as_bytes()).unwrap())
        {
            Some(MemNode::File { bytes, .. }) => Some(bytes.to_vec()),
            _ => None,
        }
    }

    /// The three ways in which a file is replaced: names are swapped, a second name is given, it is moved aside.
    fn drives() -> [MemoryBackend; 3] {
        let linked = MemoryOptions {
            exchanges: false,
            ..MemoryOptions::linux_like()
        };
        let options = [
            MemoryOptions::linux_like(),
            linked,
            MemoryOptions::exfat_like(),
        ];
        options.map(|options| {
            let backend = MemoryBackend::new(options);
            let batch = BatchNo(1);
            for dir in [
                layout::dir(),
                layout::staging_root(),
                layout::staging_dir(batch),
            ] {
                backend.make_dir(&dir).unwrap();
            }
            backend
        })
    }

    fn place(backend: &MemoryBackend, expected: Option<&Believed>) -> Applied {
        let slot = layout::slot_path(BatchNo(1), SlotNo(0));
        create_with(backend, &slot, b"ours").unwrap();
        let manners = Manners {
            time: Timestamp(0),
            host: "here".into(),
            slack: 1,
            full_is_refusal: false,
        };
        let placer = Placer {
            backend,
            batch: BatchNo(1),
            manners: &manners,
        };
        let mut applied = Applied::default();
        let to = RelPath::fixed("f");
        placer
            .place(SlotNo(0), &slot, &to, expected, &mut applied)
            .unwrap();
        applied
    }

    #[test]
    fn what_is_replaced_as_it_was_known_ends_with_the_batch() {
        for backend in drives() {
            let known = put(&backend, "f", b"before");
            let applied = place(&backend, Some(&known));
            assert_eq!(bytes(&backend, "f").as_deref(), Some(&b"ours"[..]));
            assert_eq!(applied.conflicts, []);
            for garbage in &applied.garbage {
                assert_eq!(
                    bytes(&backend, &garbage.to_string()).as_deref(),
                    Some(&b"before"[..])
                );
            }
        }
    }

    #[test]
    fn what_somebody_has_changed_or_put_there_is_kept_beside_ours() {
        for (backend, is_known) in drives()
            .into_iter()
            .zip([true, true, true])
            .chain(drives().into_iter().zip([false, false, false]))
        {
            let known = is_known.then(|| put(&backend, "f", b"before"));
            put(&backend, "f", b"theirs, and longer");
            let applied = place(&backend, known.as_ref());
            assert_eq!(bytes(&backend, "f").as_deref(), Some(&b"ours"[..]));
            let [(path, kept)] = &applied.conflicts[..] else {
                panic!("{:?}", applied.conflicts);
            };
            assert_eq!(path.to_string(), "f");
            let theirs = bytes(&backend, &kept.to_string());
            assert_eq!(theirs.as_deref(), Some(&b"theirs, and longer"[..]));
            assert_eq!(applied.garbage, []);
        }
    }
}
