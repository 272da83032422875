//! Objects: plain files `objects/<id / 4096>/<id>`, each with the bytes of one file of the mount.
//! Numbers ascend, so files that are created one after another share a directory, and with it the
//! blocks in which the SSD's file system stores inodes. Objects spread over many directories would
//! make a create on ext4 several times as expensive.
//!
//! Invariant: the object of each row exists at every instant. An object is created before the row
//! that names it, and removed after the row is deleted. A crash can leave objects without a row:
//! [`Store::quarantine`] moves them to `lost+found` and deletes none. [`Store::sync_object`] makes
//! the name of a new object durable: it syncs the directory too while the object is new. For the
//! meaning of a failed sync see [`super::damage`].
//!
//! Locks: `fresh`, and those of the damaged objects and of the reserve. None is held while another
//! one is taken.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::Reserve;
use super::before_images::BeforeImages;
use super::damage::{Damage, Damaged};
use super::fault::Faults;
#[cfg(any(test, feature = "testing"))]
use super::fault::ObjectFault;
use crate::core::cache_step::{CacheStep, CacheSteps};
use crate::core::{ForeignText, ObjectId};
use crate::sys;

/// Objects in one directory.
const PER_DIRECTORY: u64 = 4096;

/// Permissions of an object, and of an object with the mark of [`Store::mark_whole`].
const PLAIN: u32 = 0o600;
const WHOLE: u32 = 0o700;

/// Size of the buffer of a plain copy.
const COPY_BUFFER: usize = 1 << 20;

/// A failed call on an object: the operation, the file, and what the system said.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}: {source}", path.escaped())]
pub struct StoreError {
    /// The operation, as a verb.
    pub operation: &'static str,
    /// The object's file.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// The result of a call to the store.
pub(super) type Result<T> = std::result::Result<T, StoreError>;

/// The objects of one cache.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    lost_found: PathBuf,
    /// Objects whose directory entry is not known to be durable.
    fresh: Mutex<HashSet<ObjectId>>,
    steps: CacheSteps,
    /// Open from the start: the kernel reports each error of the file system to the descriptors
    /// that were open at the time. To a descriptor opened later it only reports errors that no
    /// other one has seen.
    whole: File,
    damaged: Damaged,
    reserve: Reserve,
    faults: Faults,
    before_images: BeforeImages,
}

impl Store {
    /// Opens the store in the cache directory `cache`. Creates missing directories, for the owner
    /// only.
    ///
    /// # Errors
    /// If they cannot be created.
    pub fn open(cache: &Path) -> Result<Store> {
        let root = cache.join("objects");
        let lost_found = cache.join("lost+found");
        let make = |path: &Path| {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(failed("make", path))
        };
        make(&lost_found)?;
        make(&root)?;
        Ok(Store {
            whole: File::open(&root).map_err(failed("open", &root))?,
            root,
            lost_found,
            fresh: Mutex::new(HashSet::new()),
            steps: CacheSteps::default(),
            damaged: Damaged::default(),
            reserve: Reserve::open(cache),
            faults: Faults::default(),
            before_images: BeforeImages::default(),
        })
    }

    /// Returns whether the cache directory `cache` contains an object. An unreadable directory
    /// counts as one with objects.
    pub fn holds_objects(cache: &Path) -> bool {
        match list(&cache.join("objects")) {
            Ok(shards) => shards
                .iter()
                .any(|shard| list(shard).map_or(true, |objects| !objects.is_empty())),
            Err(error) => error.source.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Returns the points at which a test may stop the changes of this cache.
    pub fn steps(&self) -> &CacheSteps {
        &self.steps
    }

    fn before(&self, step: CacheStep, path: &Path) -> Result<()> {
        let stopped = self.steps.before(step);
        stopped.map_err(failed("change", path))
    }

    /// Returns the path of an object, whether it exists or not.
    pub fn path(&self, object: ObjectId) -> PathBuf {
        self.shard(object).join(object.to_string())
    }

    fn shard(&self, object: ObjectId) -> PathBuf {
        self.root.join(format!("{:08x}", object.0 / PER_DIRECTORY))
    }

    /// Creates a new, empty object.
    ///
    /// # Errors
    /// If it exists, or the SSD is full.
    pub fn create(&self, object: ObjectId) -> Result<File> {
        let path = self.path(object);
        self.before(CacheStep::CreateObject, &path)?;
        let create = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(PLAIN)
                .open(&path)
        };
        let file = match create() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make_shard(object).and_then(|()| create())
            }
            made => made,
        }
        .map_err(failed("create", &path))?;
        self.fresh.lock().insert(object);
        Ok(file)
    }

    fn make_shard(&self, object: ObjectId) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(self.shard(object)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => File::open(&self.root)?.sync_all(),
        }
    }

    /// Opens an object for reading and writing.
    ///
    /// # Errors
    /// If it does not exist.
    pub fn open_object(&self, object: ObjectId) -> Result<File> {
        let path = self.path(object);
        super::private::own()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed("open", &path))
    }

    /// Sets or removes the mark "whole" of an object. A marked object has the bytes of the last
    /// close or sync by a program, and no write has followed. The mark serves the start after a
    /// daemon was killed. It costs no sync, and means nothing after a power failure.
    ///
    /// # Errors
    /// If the SSD's file system refuses.
    pub fn mark_whole(&self, object: ObjectId, file: &File, whole: bool) -> Result<()> {
        let mode = if whole { WHOLE } else { PLAIN };
        let set = file.set_permissions(fs::Permissions::from_mode(mode));
        match set {
            // A file system without permissions has never stored the mark, see `is_marked_whole`.
            Err(error)
                if !whole
                    && matches!(
                        error.raw_os_error(),
                        Some(libc::EPERM | libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS)
                    ) =>
            {
                Ok(())
            }
            set => set.map_err(failed("mark", &self.path(object))),
        }
    }

    /// Returns whether an object has the mark. On a file system that does not store permissions no
    /// object has it.
    ///
    /// # Errors
    /// If the object cannot be inspected.
    pub fn is_marked_whole(&self, object: ObjectId, file: &File) -> Result<bool> {
        let is_marked = || {
            let meta = file
                .metadata()
                .map_err(failed("stat", &self.path(object)))?;
            Ok(meta.mode() & 0o777 == WHOLE)
        };
        if !is_marked()? {
            return Ok(false);
        }
        self.mark_whole(object, file, false)?;
        let stays = is_marked()?;
        self.mark_whole(object, file, true)?;
        Ok(!stays)
    }

    /// Removes an object. Succeeds if it is already gone.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove(&self, object: ObjectId) -> Result<()> {
        let path = self.path(object);
        self.before(CacheStep::RemoveObject, &path)?;
        self.fresh.lock().remove(&object);
        self.damaged.remove(object);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(e)),
            _ => Ok(()),
        }
    }

    /// Keeps the bytes of `object`, which has `size` bytes, as they are now, for the batch under
    /// way. The caller ensures that nobody changes them meanwhile, and calls
    /// [`Store::keep_before`] before each change.
    ///
    /// # Errors
    /// If the SSD gives no space for what changes.
    pub fn begin_image(&self, object: ObjectId, size: u64) -> Result<()> {
        let side = self.nameless().map_err(failed("create in", &self.root))?;
        self.before_images.begin(object, size, side);
        Ok(())
    }

    /// Ends all of [`Store::begin_image`].
    pub fn end_images(&self) {
        self.before_images.end();
    }

    /// Keeps the bytes of the open object in `range`, which are about to change, if the batch under
    /// way reads them.
    pub fn keep_before(&self, object: ObjectId, file: &File, range: Range<u64>) {
        let allowed = self.faults.check("keep", object);
        self.before_images.keep(object, file, range, allowed);
    }

    /// Reads the open object as it was at the cut of the batch under way.
    ///
    /// # Errors
    /// What the system says.
    pub fn read_as_of_cut(
        &self,
        object: ObjectId,
        file: &File,
        buffer: &mut [u8],
        offset: u64,
    ) -> io::Result<usize> {
        self.before_images.read(object, file, buffer, offset)
    }

    /// Whether the object cannot be read as it was at the cut any more, because the SSD had no
    /// space for its old bytes.
    pub fn is_torn(&self, object: ObjectId) -> bool {
        self.before_images.is_torn(object)
    }

    /// Creates a file without a name.
    fn nameless(&self) -> io::Result<File> {
        let open = |flags, path: &Path| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .mode(PLAIN)
                .custom_flags(flags)
                .open(path)
        };
        match open(libc::O_TMPFILE, &self.root) {
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)
                ) =>
            {
                // A crash in between leaves an empty file, which the next one takes.
                let path = self.root.join("before-images");
                let file = open(libc::O_CREAT | libc::O_NOFOLLOW, &path)?;
                fs::remove_file(&path)?;
                Ok(file)
            }
            result => result,
        }
    }

    /// Makes `to` a copy of the open object `from`. It shares the blocks if the SSD's file system
    /// can; else it copies the bytes and keeps the holes.
    ///
    /// # Errors
    /// If the copy is incomplete; it is then removed.
    pub fn clone_object(&self, from: &File, to: ObjectId) -> Result<File> {
        let target = self.create(to)?;
        let copied = match sys::file::clone_file(from, &target) {
            Ok(true) => Ok(()),
            Ok(false) => copy_sparse(from, &target),
            Err(e) => Err(e),
        };
        match copied {
            Ok(()) => Ok(target),
            Err(source) => {
                let error = failed("copy to", &self.path(to))(source);
                self.remove(to)?;
                Err(error)
            }
        }
    }

    /// Makes the object's bytes durable, and its name if the object is new. After a failure the
    /// object counts as damaged.
    ///
    /// # Errors
    /// If a write has failed since the last sync, or the object was damaged before; its bytes then
    /// do not count as written.
    pub fn sync_object(&self, object: ObjectId, file: &File) -> Result<()> {
        let before = self.damaged.get(object);
        let path = self.path(object);
        self.before(CacheStep::SyncObject, &path)?;
        // Opened before the sync: a failed open says nothing about the object.
        let dir = self.directory_if_fresh(object, &path)?;
        self.sync_bytes_and_name(object, file, dir.as_ref(), &path)
            .inspect_err(|error| {
                let errno = error.source.raw_os_error().unwrap_or(libc::EIO);
                self.damaged.add(object, Damage { errno }, false);
            })?;
        match before {
            // This sync may cover the bytes written since, but not those that were lost before.
            Some(damage) => {
                let source = io::Error::from_raw_os_error(damage.errno);
                Err(failed("fsync", &path)(source))
            }
            None => Ok(()),
        }
    }

    /// Opens the directory of an object whose name is not known to be durable.
    fn directory_if_fresh(&self, object: ObjectId, path: &Path) -> Result<Option<File>> {
        if !self.fresh.lock().contains(&object) {
            return Ok(None);
        }
        let dir = path.parent().unwrap_or(&self.root);
        File::open(dir).map(Some).map_err(failed("open", dir))
    }

    fn sync_bytes_and_name(
        &self,
        object: ObjectId,
        file: &File,
        dir: Option<&File>,
        path: &Path,
    ) -> Result<()> {
        self.faults
            .check("fsync", object)
            .and_then(|()| file.sync_data())
            .map_err(failed("fsync", path))?;
        if let Some(dir) = dir {
            let parent = path.parent().unwrap_or(&self.root);
            dir.sync_all().map_err(failed("fsync", parent))?;
            self.fresh.lock().remove(&object);
        }
        Ok(())
    }

    /// Returns the damage of the object, see [`super::damage`].
    pub fn damage(&self, object: ObjectId) -> Option<Damage> {
        self.damaged.get(object)
    }

    /// Returns all damaged objects, each with whether the index has it.
    pub fn damaged(&self) -> Vec<(ObjectId, Damage, bool)> {
        self.damaged.all()
    }

    /// Marks the object as damaged, and as noted in the index.
    pub fn note_damage(&self, object: ObjectId, damage: Damage) {
        self.damaged.add(object, damage, true);
    }

    /// Forgets the damage of an object whose bytes are replaced or no longer needed. Returns
    /// whether it was damaged.
    pub fn forget_damage(&self, object: ObjectId) -> bool {
        self.damaged.remove(object)
    }

    /// Returns the reserved space of the SSD.
    pub fn reserve(&self) -> &Reserve {
        &self.reserve
    }

    /// Makes calls on objects fail.
    #[cfg(any(test, feature = "testing"))]
    pub fn inject(&self, fault: Option<ObjectFault>) {
        self.faults.set(fault);
    }

    /// Checks whether a test makes `operation` on `object` fail.
    ///
    /// # Errors
    /// The injected error.
    pub(crate) fn check_fault(&self, operation: &'static str, object: ObjectId) -> io::Result<()> {
        self.faults.check(operation, object)
    }

    /// As [`Store::sync_object`], for an object that is not open. Succeeds if it is gone, since
    /// nothing then needs it.
    ///
    /// # Errors
    /// As for [`Store::sync_object`].
    pub fn sync_closed_object(&self, object: ObjectId) -> Result<()> {
        match self.open_object(object) {
            Ok(file) => self.sync_object(object, &file),
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes the bytes and names of all of `objects` durable with one sync of the whole file
    /// system.
    ///
    /// # Errors
    /// If a write anywhere on the file system has failed since the last call. The error says
    /// nothing about one object: the caller must sync each object by itself.
    pub fn sync_all(&self, objects: &[ObjectId]) -> Result<()> {
        self.before(CacheStep::SyncObject, &self.root)?;
        objects
            .iter()
            .try_for_each(|object| self.faults.check("fsync", *object))
            .and_then(|()| sys::file::sync_file_system(&self.whole))
            .map_err(failed("syncfs", &self.root))?;
        let mut fresh = self.fresh.lock();
        for object in objects {
            fresh.remove(object);
        }
        Ok(())
    }

    /// Returns the total bytes of the SSD's file system, and those free for an unprivileged user.
    ///
    /// # Errors
    /// If the file system does not report them.
    pub fn space(&self) -> Result<(u64, u64)> {
        let space = sys::file::space(&self.whole).map_err(failed("statfs", &self.root))?;
        Ok((space.total, space.available))
    }

    /// Returns all objects.
    ///
    /// # Errors
    /// If the directories cannot be read.
    pub fn present(&self) -> Result<HashSet<ObjectId>> {
        let mut present = HashSet::new();
        for shard in list(&self.root)? {
            present.extend(list(&shard)?.iter().filter_map(|path| id_of(path)));
        }
        Ok(present)
    }

    /// Returns the number of files in `lost+found`, and its path.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn lost_and_found(&self) -> Result<(usize, &Path)> {
        Ok((list(&self.lost_found)?.len(), &self.lost_found))
    }

    /// Moves every object that is not `known` to `lost+found` and returns their new paths.
    ///
    /// # Errors
    /// If the directories cannot be read or a file cannot be moved.
    pub fn quarantine(&self, known: &HashSet<ObjectId>) -> Result<Vec<PathBuf>> {
        let mut moved = Vec::new();
        for shard in list(&self.root)? {
            for path in list(&shard)? {
                if id_of(&path).is_some_and(|id| known.contains(&id) && path == self.path(id)) {
                    continue;
                }
                moved.push(self.move_to_lost_found(&path)?);
            }
        }
        Ok(moved)
    }

    fn move_to_lost_found(&self, path: &Path) -> Result<PathBuf> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let target = (0..)
            .map(|n| match n {
                0 => self.lost_found.join(&*name),
                n => self.lost_found.join(format!("{name}.{n}")),
            })
            .find(|candidate| !candidate.exists())
            .unwrap_or_else(|| self.lost_found.join(&*name));
        self.before(CacheStep::KeepObject, path)?;
        fs::rename(path, &target).map_err(failed("move to lost+found", path))?;
        Ok(target)
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_path_buf();
    move |source| StoreError {
        operation,
        path,
        source,
    }
}

/// Returns the number in the name of an object's file.
pub(crate) fn id_of(path: &Path) -> Option<ObjectId> {
    let name = path.file_name()?.to_str()?;
    u64::from_str_radix(name, 16).ok().map(ObjectId)
}

fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| entry.map(|e| e.path())).collect())
        .map_err(failed("list", dir))
}

/// Copies the data of `from`, skips its holes, and gives `to` the same length.
fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    let length = from.metadata()?.size();
    to.set_len(length)?;
    let mut buffer = vec![0; COPY_BUFFER];
    let mut at = 0;
    while let Some(start) = sys::file::next_data(from, at)? {
        let end = sys::file::next_hole(from, start)?.unwrap_or(length);
        at = start;
        while at < end {
            let wanted = usize::try_from(end - at).map_or(COPY_BUFFER, |n| n.min(COPY_BUFFER));
            let got = from.read_at(&mut buffer[..wanted], at)?;
            if got == 0 {
                // The file became shorter meanwhile. The caller holds the lock that prevents this.
                return Ok(());
            }
            to.write_all_at(&buffer[..got], at)?;
            at += got as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_without_a_row_goes_to_lost_and_found_with_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.create(ObjectId(1)).unwrap();
        store
            .create(ObjectId(2))
            .unwrap()
            .write_all_at(b"precious", 0)
            .unwrap();
        let moved = store.quarantine(&HashSet::from([ObjectId(1)])).unwrap();
        assert_eq!(moved.len(), 1);
        assert_eq!(fs::read(&moved[0]).unwrap(), b"precious");
        assert!(store.open_object(ObjectId(1)).is_ok());
        assert!(store.open_object(ObjectId(2)).is_err());
    }

    #[test]
    fn a_clone_has_the_same_bytes_and_holes_and_is_independent() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let first = store.create(ObjectId(1)).unwrap();
        first.write_all_at(b"head", 0).unwrap();
        first.write_all_at(b"tail", 8 << 20).unwrap();
        first.set_len(9 << 20).unwrap();
        let second = store.clone_object(&first, ObjectId(2)).unwrap();
        first.write_all_at(b"HEAD", 0).unwrap();
        let mut buffer = [0; 4];
        second.read_exact_at(&mut buffer, 0).unwrap();
        assert_eq!(&buffer, b"head");
        second.read_exact_at(&mut buffer, 8 << 20).unwrap();
        assert_eq!(&buffer, b"tail");
        let meta = second.metadata().unwrap();
        assert_eq!(meta.size(), 9 << 20);
        assert!(
            meta.blocks() * 512 < 1 << 20,
            "holes were filled: {} blocks",
            meta.blocks()
        );
    }
}
