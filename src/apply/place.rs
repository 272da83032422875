//! Gives and takes names on the backend, without destroying files of others.
//!
//! Others may change the drive at any moment, also after a batch was compared with it. So nothing
//! is replaced or removed unseen: the present file is first moved aside, or exchanged with its
//! replacement where the file system can, and then compared with what the batch expected. A file
//! that differs is somebody else's. It gets a conflict name in its directory
//! (`name.sync-conflict-<date>-<time>-<host>.ext`), or its own name back if the batch only removed
//! it. New names are given without replacing anything.
//!
//! Files that were set aside stay in the staging directory until the batch is confirmed: on a file
//! system without a journal, clusters must not be freed that a write before the next sync could
//! get.
//!
//! A crash in the middle leaves such a file there. The replay compares it again and does the same
//! ([`crate::recovery::replay`]).
//!
//! [`Placer`] has one file for each kind of work: `replace` an expected file, `fill` a free name,
//! `remove` a file, keep `theirs`.

mod fill;
mod remove;
mod replace;
mod theirs;

use crate::apply::Applied;
use crate::apply::refused::is_local;
use crate::core::{BatchNo, FileKind, Metadata, RelPath, Timestamp, is_told_oddly};
use crate::drive::{Backend, BackendError, Look, hash_file, is_absent};
use crate::error::{FlushError, Result};
use crate::format::expectations::ExpectedFile;
use crate::format::steps::SlotNo;

/// More attempts than others can interfere with in a row.
const TRIES: u32 = 64;

/// How conflicts are named, and times compared.
#[derive(Clone, Debug)]
pub(crate) struct Manners {
    /// When the batch was committed.
    pub(crate) time: Timestamp,
    /// The name of this machine.
    pub(crate) host: String,
    /// Times nearer than this, in nanoseconds, are equal.
    pub(crate) slack: u64,
    /// A step that finds the drive full is set aside like a refused one, so that the batch ends and
    /// changes that free space can follow. Otherwise the batch waits for space, so that the drive
    /// gets it as a whole.
    pub(crate) full_is_refusal: bool,
    /// The batch keeps what it replaces and removes ([`crate::apply::versions`]), so that is set
    /// aside and not removed before the end.
    pub(crate) keeps_versions: bool,
}

impl Manners {
    /// Returns whether the first run of a batch may treat this error as the refusal of one name.
    pub(crate) fn is_refusal(&self, error: &BackendError) -> bool {
        match error.is_full() {
            true => self.full_is_refusal,
            false => error.is_refusal(),
        }
    }

    /// The same for a replay, which checks the rest of the drive first.
    pub(crate) fn is_local(
        &self,
        backend: &dyn Backend,
        batch: BatchNo,
        error: &BackendError,
    ) -> bool {
        (self.full_is_refusal && error.is_full()) || is_local(backend, batch, error)
    }
}

/// Gives and takes names for one batch.
pub(crate) struct Placer<'a> {
    pub(crate) backend: &'a dyn Backend,
    pub(crate) batch: BatchNo,
    pub(crate) manners: &'a Manners,
}

impl Placer<'_> {
    /// Moves the content of `slot`, which is at `from`, to `to`, where `expected` is, or nothing.
    ///
    /// # Errors
    /// If the backend refuses, or fails. The file that was at `to` is back there, unless the
    /// backend refuses that as well.
    pub(crate) fn place(
        &self,
        slot: SlotNo,
        from: &RelPath,
        to: &RelPath,
        expected: Option<&ExpectedFile>,
        applied: &mut Applied,
    ) -> Result<()> {
        match expected {
            Some(expected) => self.replace(slot, from, to, expected, applied),
            None => self.fill(slot, from, to, applied),
        }
    }

    fn taken(&self, path: &RelPath) -> FlushError {
        let source = std::io::Error::from_raw_os_error(libc::EEXIST);
        BackendError::new("rename", path, source).into()
    }

    /// Returns whether the file at `path` is what the batch expected: of the same size, and of the
    /// same time or the same bytes.
    pub(crate) fn is_as_expected(
        &self,
        path: &RelPath,
        found: &Metadata,
        expected: &ExpectedFile,
    ) -> Result<bool> {
        if !expected.may_have_kind(found.kind) {
            return Ok(false);
        }
        // The time of a link or a special file says nothing: it has no contents that could have
        // changed.
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
        let hashed = (self.backend.open(path)).and_then(|file| hash_file(&*file, path));
        match hashed {
            Ok(found) => Ok(found == hash),
            // A file that cannot be read may be anybody's; unless nothing can be read.
            Err(error) if !error.is_stalled() && self.backend.check_alive(Look::Read).is_ok() => {
                tracing::warn!(%error, "counts as changed by another program");
                Ok(false)
            }
            Err(error) => Err(error.into()),
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

/// Returns whether two names are on different file systems.
pub(crate) fn is_across(error: &BackendError) -> bool {
    error.source.raw_os_error() == Some(libc::EXDEV)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drive::create_with;
    use crate::drive::memory::{MemNode, MemoryBackend, MemoryOptions};
    use crate::format::layout;

    fn put(backend: &MemoryBackend, path: &'static str, bytes: &[u8]) -> ExpectedFile {
        let path = RelPath::fixed(path);
        if backend.metadata(&path).is_ok() {
            backend.remove_file(&path).unwrap();
        }
        create_with(backend, &path, bytes).unwrap();
        let meta = backend.metadata(&path).unwrap();
        ExpectedFile {
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

    /// The three ways to replace a file: names are exchanged, a second name is given, the file is
    /// moved aside.
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

    fn place(backend: &MemoryBackend, expected: Option<&ExpectedFile>) -> Applied {
        let slot = layout::slot_path(BatchNo(1), SlotNo(0));
        create_with(backend, &slot, b"ours").unwrap();
        let manners = Manners {
            time: Timestamp(0),
            host: "here".into(),
            slack: 1,
            full_is_refusal: false,
            keeps_versions: false,
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
