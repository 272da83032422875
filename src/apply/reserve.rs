//! Space on the backend that is held for the time when it is full.
//!
//! There are two files of zeros, really written. The *reserve* (`.ferryfs/reserve`) stays on the
//! drive, so that deletes, renames and their records fit when others have filled it. The *spare* of
//! a batch, in its staging directory, has the size that the steps after the commit may need; it is
//! only written if the reserve does not cover that. If the drive is full after the commit, the
//! spare is removed, then the reserve, and the call is repeated ([`Relieved`]).
//!
//! After a crash a spare is removed with its staging directory, and a reserve of another size is
//! used as it is. Both may be missing at any time, because anybody may remove them.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::core::{BatchNo, FileKind, RelPath, Space, Timestamp, Xattrs};
use crate::drive::{
    Backend, BackendError, ModifyFile, ReadFile, Result, WRITE, WriteFile, is_absent,
};
use crate::format::layout;

/// The reserve is at least this large if the drive is not small,
const LEAST: u64 = 1 << 20;

/// and holds this many clusters: a staging directory, a record, a segment, and some directories
/// that grow.
const UNITS: u64 = 16;

/// It never exceeds this part of the drive.
const PART: u64 = 100;

/// It is made if at least this many times its size is free beside the batch.
const PLENTY: u64 = 4;

/// Bytes written at a time.
const BUFFER: usize = 1 << 20;

/// Held space that a batch writes beside its files, and syncs with them. In bytes; 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// For the steps after the commit.
    pub(crate) spare: u64,
    /// For later batches.
    pub(crate) reserve: u64,
}

impl Held {
    /// Writes both. A missing reserve does no harm; without the spare the batch must not be
    /// committed.
    pub(crate) fn write(self, backend: &dyn Backend, batch: BatchNo) -> Result<()> {
        if self.spare > 0 {
            write_zeros(backend, &layout::spare_path(batch), self.spare)?;
        }
        if self.reserve > 0 && size_on(backend)? > 0 {
            // The next batch makes a larger one: it must not get the clusters of this one before
            // they are durably free.
            return remove(backend, &layout::reserve_path());
        }
        if self.reserve > 0 {
            make(backend, self.reserve)?;
        }
        Ok(())
    }
}

/// Returns the size of the reserve on the backend; 0 if there is none.
pub(crate) fn size_on(backend: &dyn Backend) -> Result<u64> {
    match backend.metadata(&layout::reserve_path()) {
        Ok(meta) if meta.kind == FileKind::Regular => Ok(meta.size),
        Ok(_) => Ok(0),
        Err(error) if is_absent(&error) => Ok(0),
        Err(error) => Err(error),
    }
}

/// Returns the size of the reserve that a batch should make if it leaves `left` bytes free and
/// there is a reserve of `there` bytes; 0 for none.
pub(crate) fn wanted(space: &Space, there: u64, left: u64) -> u64 {
    let size = full_size(space);
    let is_there = there >= size / 2 && there > 0;
    match is_there || left < size.saturating_mul(PLENTY) {
        true => 0,
        false => size,
    }
}

/// Returns the size of the reserve to be made again after one was given up; all free space, if that
/// is less. If this process is root's, blocks that only root may use count: they were the ones that
/// were freed.
pub(crate) fn restored(space: &Space) -> u64 {
    let unit = space.unit.max(1);
    let size = full_size(space).min(space.usable / unit * unit);
    if size < unit.saturating_mul(2) {
        0
    } else {
        size
    }
}

/// Returns the full size of a reserve; 0 if the drive is too small, or does not report its size.
fn full_size(space: &Space) -> u64 {
    let unit = space.unit;
    if unit == 0 {
        return 0;
    }
    let size = LEAST
        .max(UNITS.saturating_mul(unit))
        .min(space.total / PART);
    let size = size / unit * unit;
    if size < unit.saturating_mul(2) {
        0
    } else {
        size
    }
}

/// Makes the reserve. Failing to is no error, unless the backend is gone. A partial file is
/// removed.
pub(crate) fn make(backend: &dyn Backend, size: u64) -> Result<()> {
    let path = layout::reserve_path();
    match write_zeros(backend, &path, size) {
        Err(error) if error.is_gone() || error.is_stalled() => Err(error),
        Err(error) => {
            tracing::debug!(%error, "no space is held on the drive");
            // A file of others is left alone.
            if error.source.kind() != std::io::ErrorKind::AlreadyExists {
                remove(backend, &path)?;
            }
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

fn remove(backend: &dyn Backend, path: &RelPath) -> Result<()> {
    match backend.remove_file(path) {
        Err(error) if error.is_gone() || error.is_stalled() => Err(error),
        Err(error) if !is_absent(&error) => {
            tracing::debug!(%error, "held space is not freed");
            Ok(())
        }
        _ => Ok(()),
    }
}

fn write_zeros(backend: &dyn Backend, path: &RelPath, size: u64) -> Result<()> {
    let mut file = backend.create(path)?;
    let failed = |source| BackendError::new(WRITE, path, source);
    let zeros = vec![0; BUFFER.min(usize::try_from(size).unwrap_or(BUFFER))];
    let mut left = size;
    while left > 0 {
        let now = zeros.len().min(usize::try_from(left).unwrap_or(BUFFER));
        file.append(&zeros[..now]).map_err(failed)?;
        left -= now as u64;
    }
    file.finish(Timestamp::from(std::time::SystemTime::now()))
        .map_err(failed)
}

/// Gives the reserve up, for something small that must be written to a full backend. Returns false
/// if there is none.
pub(crate) fn free_reserve(backend: &dyn Backend) -> Result<bool> {
    free(backend, &layout::reserve_path())
}

/// Frees the file of zeros at `path`. Returns false if there is none. The sync comes before
/// anything gets its clusters: otherwise a crash could bring the name back, on the clusters of a
/// new file.
fn free(backend: &dyn Backend, path: &RelPath) -> Result<bool> {
    let gone = |error: &BackendError| error.is_gone() || error.is_stalled();
    match backend.metadata(path) {
        Ok(meta) if meta.kind == FileKind::Regular && meta.size > 0 => {}
        Err(error) if gone(&error) => return Err(error),
        _ => return Ok(false),
    }
    match backend.remove_file(path) {
        Err(error) if gone(&error) => return Err(error),
        Err(_) => return Ok(false),
        Ok(()) => {}
    }
    backend.sync()?;
    tracing::info!(%path, "the drive is full: gave up space that was held there");
    Ok(true)
}

/// A backend that gives up held space when it is full, and repeats the call: first the spare of the
/// batch, then the reserve.
pub(crate) struct Relieved<'a> {
    inner: &'a dyn Backend,
    batch: BatchNo,
    /// Set when the reserve is given up.
    gave_reserve_up: &'a AtomicBool,
}

impl<'a> Relieved<'a> {
    pub(crate) fn new(
        inner: &'a dyn Backend,
        batch: BatchNo,
        gave_reserve_up: &'a AtomicBool,
    ) -> Relieved<'a> {
        Relieved {
            inner,
            batch,
            gave_reserve_up,
        }
    }

    fn retry<T>(&self, call: impl Fn(&dyn Backend) -> Result<T>) -> Result<T> {
        loop {
            match call(self.inner) {
                Err(error) if error.is_full() => match self.relieve() {
                    Ok(true) => {}
                    Ok(false) => return Err(error),
                    Err(worse) => return Err(worse),
                },
                answer => return answer,
            }
        }
    }

    /// Returns whether the backend has space after all, so that ENOSPC means something else: no
    /// space for attributes.
    fn has_space(&self) -> bool {
        (self.inner.space()).is_ok_and(|space| space.available >= UNITS * space.unit.max(4096))
    }
}

impl Backend for Relieved<'_> {
    crate::drive::pass_on::pass_on_looks!();

    fn relieve(&self) -> Result<bool> {
        if free(self.inner, &layout::spare_path(self.batch))? {
            return Ok(true);
        }
        let freed = free_reserve(self.inner)?;
        self.gave_reserve_up.fetch_or(freed, Ordering::AcqRel);
        Ok(freed)
    }

    fn open(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        self.inner.open(path)
    }

    fn open_uncached(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        self.inner.open_uncached(path)
    }

    /// Appends to the file are not repeated here: see [`crate::drive::create_with`].
    fn create(&self, path: &RelPath) -> Result<Box<dyn WriteFile>> {
        self.retry(|inner| inner.create(path))
    }

    /// Writes are not repeated here: see [`crate::apply::patch`].
    fn modify(&self, path: &RelPath) -> Result<Box<dyn ModifyFile>> {
        self.retry(|inner| inner.modify(path))
    }

    fn make_dir(&self, path: &RelPath) -> Result<()> {
        self.retry(|inner| inner.make_dir(path))
    }

    fn rename(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        self.retry(|inner| inner.rename(from, to))
    }

    fn rename_new(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        self.retry(|inner| inner.rename_new(from, to))
    }

    fn exchange(&self, one: &RelPath, other: &RelPath) -> Result<bool> {
        self.retry(|inner| inner.exchange(one, other))
    }

    fn remove_file(&self, path: &RelPath) -> Result<()> {
        self.retry(|inner| inner.remove_file(path))
    }

    fn remove_dir(&self, path: &RelPath) -> Result<()> {
        self.retry(|inner| inner.remove_dir(path))
    }

    fn set_modified(&self, path: &RelPath, modified: Timestamp) -> Result<()> {
        self.retry(|inner| inner.set_modified(path, modified))
    }

    fn make_symlink(&self, target: &[u8], path: &RelPath) -> Result<()> {
        self.retry(|inner| inner.make_symlink(target, path))
    }

    fn make_hard_link(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        self.retry(|inner| inner.make_hard_link(from, to))
    }

    fn set_permissions(&self, path: &RelPath, mode: u32) -> Result<()> {
        self.retry(|inner| inner.set_permissions(path, mode))
    }

    fn make_node(&self, kind: FileKind, rdev: u32, path: &RelPath) -> Result<()> {
        self.retry(|inner| inner.make_node(kind, rdev, path))
    }

    fn set_owner(&self, path: &RelPath, owner: Option<u32>, group: Option<u32>) -> Result<()> {
        self.retry(|inner| inner.set_owner(path, owner, group))
    }

    fn set_xattrs(&self, path: &RelPath, xattrs: &Xattrs) -> Result<()> {
        match self.inner.set_xattrs(path, xattrs) {
            Err(error) if error.is_full() && !self.has_space() => {
                self.retry(|inner| inner.set_xattrs(path, xattrs))
            }
            answer => answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drive::memory::{MemoryBackend, MemoryOptions};

    fn space(total: u64, unit: u64) -> Space {
        Space {
            total,
            available: total,
            usable: total,
            unit,
        }
    }

    #[test]
    fn the_reserve_is_a_small_part_of_the_drive() {
        let large = space(1 << 40, 4096);
        assert_eq!(wanted(&large, 0, large.total), 1 << 20);
        let clusters = space(1 << 40, 128 << 10);
        assert_eq!(wanted(&clusters, 0, clusters.total), 2 << 20);
        let small = space(64 << 20, 32 << 10);
        assert_eq!(wanted(&small, 0, small.total), 20 * (32 << 10));
        assert_eq!(wanted(&space(1 << 20, 32 << 10), 0, 1 << 20), 0);
        assert_eq!(wanted(&large, 0, 3 << 20), 0, "it is nearly full");
        assert_eq!(wanted(&large, 1 << 20, large.total), 0, "it is there");
        assert_eq!(wanted(&large, 4096, large.total), 1 << 20, "it is small");
        assert_eq!(wanted(&Space::default(), 0, u64::MAX), 0);
    }

    #[test]
    fn a_reserve_that_was_given_up_takes_what_is_left() {
        let full = |usable| Space {
            available: usable,
            usable,
            ..space(64 << 20, 32 << 10)
        };
        assert_eq!(restored(&full(1 << 30)), 20 * (32 << 10));
        assert_eq!(restored(&full(200_000)), 6 * (32 << 10));
        assert_eq!(restored(&full(40_000)), 0);
        // The rest is reserved for root, and this process is root's.
        let for_root = Space {
            available: 0,
            ..full(200_000)
        };
        assert_eq!(restored(&for_root), 6 * (32 << 10));
    }

    #[test]
    fn a_full_drive_takes_what_held_space_makes_room_for() {
        let memory = MemoryBackend::new(MemoryOptions {
            capacity: Some(20 * 4096),
            cluster: Some(4096),
            ..MemoryOptions::exfat_like()
        });
        let batch = BatchNo(1);
        for dir in [
            layout::dir(),
            layout::staging_root(),
            layout::staging_dir(batch),
        ] {
            memory.make_dir(&dir).unwrap();
        }
        let held = Held {
            spare: 2 * 4096,
            reserve: 3 * 4096,
        };
        held.write(&memory, batch).unwrap();
        let free = memory.space().unwrap().available;
        write_zeros(&memory, &RelPath::fixed("theirs"), free).unwrap();
        assert!(memory.make_dir(&RelPath::fixed("d")).unwrap_err().is_full());
        let flag = AtomicBool::new(false);
        let relieved = Relieved::new(&memory, batch, &flag);
        for (nth, name) in ["a", "b", "c", "d", "e"].into_iter().enumerate() {
            relieved.make_dir(&RelPath::fixed(name)).unwrap();
            assert_eq!(flag.load(Ordering::Acquire), nth >= 2, "{name}");
        }
        let full = relieved.make_dir(&RelPath::fixed("f")).unwrap_err();
        assert!(full.is_full() && !relieved.relieve().unwrap());
    }

    #[test]
    fn what_somebody_else_has_put_in_its_place_stays_there() {
        let memory = MemoryBackend::new(MemoryOptions::default());
        memory.make_dir(&layout::dir()).unwrap();
        memory.make_dir(&layout::reserve_path()).unwrap();
        make(&memory, 4096).unwrap();
        assert_eq!(size_on(&memory).unwrap(), 0);
        let flag = AtomicBool::new(false);
        assert!(!Relieved::new(&memory, BatchNo(1), &flag).relieve().unwrap());
        let there = memory.metadata(&layout::reserve_path()).unwrap();
        assert_eq!(there.kind, FileKind::Directory);
    }
}
