//! `ferryfs rescue`: copies out everything that a cache still holds, under the names that are still
//! known.
//!
//! It needs neither mount nor backend, and writes nothing into the cache: it locks the cache
//! through a descriptor that cannot write, and reads the index from a copy. What it finds is
//! trusted only for naming bytes. Files that cannot be copied are named, and the rest goes on; only
//! a full target ends it.
//!
//! In the target: `files/` is the tree of the mount, `unnamed/` has objects whose names are not
//! known, by number, `old-versions/` has versions that were replaced or removed but not dropped
//! yet, `lost+found/` has the files of the cache's own.

mod copy;
mod paths;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::Uid;
use serde::Serialize;

use crate::apply::journal::Journal;
use crate::cache::private::PrivacyError;
use crate::cache::{CacheLock, LockError, id_of, private};
use crate::core::{Failure, FileKind, ForeignText, Ino, ObjectId};
use crate::index::{Flags, Inode, Location, Salvaged, salvage};
use crate::recovery::rescue::copy::{Copied, Owners, copy_file, finish_dir};
use crate::recovery::rescue::paths::Names;

/// A file that could not be copied as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// Its path below the target where it was copied, else in the mount or in the cache.
    pub path: String,
    /// What is wrong with it.
    pub problem: String,
}

/// What a rescue copied out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RescueReport {
    /// Files with their names; each name of a file that has several counts.
    pub files: u64,
    /// Bytes copied, holes included.
    pub bytes: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links.
    pub links: u64,
    /// Objects whose names are not known.
    pub unnamed: u64,
    /// Objects of replaced or removed versions.
    pub old_versions: u64,
    /// Files from the cache's own `lost+found`.
    pub lost_and_found: u64,
    /// Files of which the cache has only the name: their bytes are on the drive.
    pub on_drive_only: u64,
    /// Devices, pipes and sockets, which are not made again.
    pub special: u64,
    /// Files that were copied, but differ from the index.
    pub damaged: Vec<Trouble>,
    /// Files that could not be copied.
    pub failed: Vec<Trouble>,
    /// Parts of the index that could not be read.
    pub index: Vec<String>,
}

impl RescueReport {
    /// Returns whether everything that the cache should hold was copied, whole and under its name.
    pub fn is_whole(&self) -> bool {
        self.damaged.is_empty() && self.failed.is_empty() && self.index.is_empty()
    }
}

/// Copies everything that the cache in `cache` holds into the new or empty directory `out`. If root
/// runs it, the copies belong to the cache's owner; or, with `keep_owners`, to those that the index
/// names.
///
/// # Errors
/// If a daemon uses the cache, there is none, or `out` cannot be used or is full.
pub fn rescue(cache: &Path, out: &Path, keep_owners: bool) -> Result<RescueReport, Failure> {
    let cache = find_cache(cache)?;
    let _lock = CacheLock::acquire_to_read(&cache).map_err(locked)?;
    let out = prepare(&cache, out)?;
    let owner = fs::metadata(&cache)
        .map_err(|error| Failure::failed(format!("cannot look at the cache: {error}")))?;
    let mut rescuer = Rescuer {
        owners: Owners {
            cache: (owner.uid(), owner.gid()),
            as_in_index: keep_owners,
        },
        objects: BTreeMap::new(),
        report: RescueReport::default(),
        cache,
        out,
    };
    match rescuer.run() {
        Ok(()) => Ok(rescuer.report),
        Err(error) => Err(Failure::failed(format!(
            "cannot write to {}: {error}",
            rescuer.out.escaped()
        ))
        .hint("make room, empty the directory, and begin again; the cache is as it was")),
    }
}

fn find_cache(cache: &Path) -> Result<PathBuf, Failure> {
    let found = fs::canonicalize(cache).map_err(|error| {
        Failure::failed(format!("there is no cache at {}: {error}", cache.escaped())).hint(
            "the caches of a user are in ~/.local/share/ferryfs, unless --cache said otherwise",
        )
    })?;
    let known = ["objects", "index.db", "cache.json"];
    if known.iter().any(|name| found.join(name).exists()) {
        return Ok(found);
    }
    Err(
        Failure::failed(format!("{} is no cache of ferryfs", cache.escaped())).hint(
            "a cache holds `objects`, `index.db` and `cache.json`; those of a user are in \
            ~/.local/share/ferryfs",
        ),
    )
}

fn locked(error: LockError) -> Failure {
    let hint = match error {
        LockError::InUse { .. } => {
            "copy from the mount itself, or unmount first: rescue is for a cache that cannot be \
             mounted"
        }
        LockError::Io { .. } => "run it as the user whose cache it is",
    };
    Failure::failed(error.to_string()).hint(hint)
}

/// Makes the target, which must not be in the cache, and must be empty: nothing is overwritten, and
/// two rescues are not mixed.
fn prepare(cache: &Path, out: &Path) -> Result<PathBuf, Failure> {
    let refused = |error: io::Error| {
        Failure::failed(format!("cannot use {}: {error}", out.escaped()))
            .hint("choose an empty directory with enough room: --to DIR")
    };
    let absolute = std::path::absolute(out).map_err(refused)?;
    let stands = absolute
        .ancestors()
        .find_map(|at| fs::canonicalize(at).ok());
    if stands.is_some_and(|at| at.starts_with(cache)) {
        return Err(Failure::failed(format!(
            "{} is in the cache, to which nothing must be written",
            out.escaped()
        ))
        .hint("choose a directory elsewhere: --to DIR"));
    }
    private::make_dir(&absolute).map_err(|exposed| match exposed {
        PrivacyError::Io { source, .. } => refused(source),
        exposed => Failure::failed(format!("cannot use {}: {exposed}", out.escaped())).hint(
            "nothing was copied. As root, choose a place that only root can change: --to DIR",
        ),
    })?;
    let meta = fs::metadata(&absolute).map_err(refused)?;
    if meta.uid() != Uid::effective().as_raw() || meta.mode() & 0o022 != 0 {
        return Err(Failure::failed(format!(
            "others may write to {}, and could have the copies made elsewhere",
            out.escaped()
        ))
        .hint("nothing was copied. Choose a new directory: --to DIR"));
    }
    if fs::read_dir(&absolute).map_err(refused)?.next().is_some() {
        return Err(
            Failure::failed(format!("{} is not empty", out.escaped())).hint(
                "choose a new directory: nothing is overwritten, and two rescues are not mixed",
            ),
        );
    }
    fs::canonicalize(&absolute).map_err(refused)
}

/// Makes a directory and those above it, closed to other users.
fn make_dirs(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|entry| entry.path()).collect()
}

struct Rescuer {
    cache: PathBuf,
    out: PathBuf,
    owners: Owners,
    /// Objects that no row has named so far, with their files.
    objects: BTreeMap<ObjectId, PathBuf>,
    report: RescueReport,
}

impl Rescuer {
    fn run(&mut self) -> io::Result<()> {
        let salvaged = self.read_index()?;
        let strangers = self.list_objects();
        let names = Names::new(&salvaged);
        let dirs = self.directories(&names)?;
        let mut links = Vec::new();
        for (ino, paths) in names.files() {
            match salvaged.inodes.get(ino) {
                Some(inode) if inode.kind() == FileKind::Regular => self.file(inode, paths)?,
                Some(inode) if inode.kind() == FileKind::Symlink => links.push((inode, paths)),
                Some(_) => self.report.special += 1,
                None => self.nameless(*ino, paths),
            }
        }
        self.without_names(&salvaged)?;
        for path in strangers {
            self.loose("unnamed", &path, None)?;
        }
        self.kept_for_batches()?;
        self.lost_and_found()?;
        // Last, so that no name leads through one of them.
        for (inode, paths) in links {
            self.link(inode, paths);
        }
        for (ino, path) in dirs.iter().rev() {
            finish_dir(path, salvaged.inodes.get(ino), self.owners);
        }
        // Until here only the caller could reach the files below them.
        for top in ["old-versions", "lost+found", "unnamed", "files"] {
            for below in subdirectories(&self.out.join(top)) {
                if top != "files" {
                    finish_dir(&below, None, self.owners);
                }
            }
            finish_dir(&self.out.join(top), None, self.owners);
        }
        finish_dir(&self.out, None, self.owners);
        Ok(())
    }

    /// Salvages a copy of the index, which is removed again.
    fn read_index(&mut self) -> io::Result<Salvaged> {
        let index = self.cache.join("index.db");
        if fs::metadata(&index).map_or(0, |meta| meta.len()) == 0 {
            self.report.index.push("it is missing or empty".into());
            return Ok(Salvaged::default());
        }
        let dir = self.out.join(".index");
        DirBuilder::new().mode(0o700).create(&dir)?;
        for name in ["index.db", "index.db-wal", "index.db-redo"] {
            let from = self.cache.join(name);
            if !from.exists() {
                continue;
            }
            match copy_file(&from, &dir.join(name), None, self.owners) {
                Ok(Copied { unread: 0, .. }) => {}
                Ok(copied) => {
                    let line = format!("{} bytes of {name} cannot be read", copied.unread);
                    self.report.index.push(line);
                }
                Err(error) if copy::is_full(&error) => return Err(error),
                Err(error) => self.report.index.push(format!("{name}: {error}")),
            }
        }
        let mut salvaged = salvage(&dir.join("index.db"));
        self.report.index.append(&mut salvaged.problems);
        fs::remove_dir_all(&dir)?;
        Ok(salvaged)
    }

    /// Notes every object, and returns the other files among them.
    fn list_objects(&mut self) -> Vec<PathBuf> {
        let mut strangers = Vec::new();
        for shard in self.list(&self.cache.join("objects")) {
            for path in self.list(&shard) {
                match id_of(&path) {
                    Some(id) => {
                        self.objects.insert(id, path);
                    }
                    None => strangers.push(path),
                }
            }
        }
        strangers
    }

    fn list(&mut self, dir: &Path) -> Vec<PathBuf> {
        if fs::symlink_metadata(dir).is_ok_and(|meta| meta.is_symlink()) {
            self.fail(dir, &"it is a symbolic link, which is not followed");
            return Vec::new();
        }
        match fs::read_dir(dir) {
            Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                self.fail(dir, &error);
                Vec::new()
            }
        }
    }

    /// Makes every known directory, outermost first.
    fn directories(&mut self, names: &Names) -> io::Result<Vec<(Ino, PathBuf)>> {
        let mut made = Vec::new();
        for (ino, path) in names.directories() {
            let path = self.out.join("files").join(path);
            match make_dirs(&path) {
                Ok(()) => {
                    self.report.directories += 1;
                    made.push((ino, path));
                }
                Err(error) if copy::is_full(&error) => return Err(error),
                Err(error) => self.fail(&path, &error),
            }
        }
        Ok(made)
    }

    fn file(&mut self, inode: &Inode, paths: &[PathBuf]) -> io::Result<()> {
        let first = &paths[0];
        let object = match (inode.object, inode.location()) {
            (Some(object), _) => match self.objects.remove(&object) {
                Some(path) => Some((object, path)),
                None if inode.flags.has(Flags::ON_BACKEND)
                    && !inode.flags.has(Flags::DATA_DIRTY) =>
                {
                    self.report.on_drive_only += 1;
                    return Ok(());
                }
                None => {
                    self.fail(first, &"the cache should have its bytes, and has not");
                    return Ok(());
                }
            },
            (None, Location::Backend) if inode.size > 0 => {
                self.report.on_drive_only += 1;
                return Ok(());
            }
            (None, _) => None,
        };
        let Some(target) = self.bytes(object, inode, first)? else {
            return Ok(());
        };
        self.report.files += 1;
        for path in &paths[1..] {
            let link = self.out.join("files").join(path);
            match copy::make_parents(&link).and_then(|()| fs::hard_link(&target, &link)) {
                Ok(()) => self.report.files += 1,
                Err(error) => self.fail(
                    path,
                    &format!("a further name of {}: {error}", first.escaped()),
                ),
            }
        }
        Ok(())
    }

    /// Copies the bytes of a file under its name; if the target cannot have that name, by number.
    /// Returns the path of the copy.
    fn bytes(
        &mut self,
        object: Option<(ObjectId, PathBuf)>,
        inode: &Inode,
        name: &Path,
    ) -> io::Result<Option<PathBuf>> {
        let from = object
            .as_ref()
            .map_or(Path::new("/dev/null"), |(_, path)| path);
        let target = self.out.join("files").join(name);
        let (target, copied) = match copy_file(from, &target, Some(inode), self.owners) {
            Err(error) if copy::is_full(&error) => return Err(error),
            Err(error) => {
                self.fail(name, &error);
                let Some((object, _)) = object else {
                    return Ok(None);
                };
                let other = self.out.join("unnamed").join(object.to_string());
                match copy_file(from, &other, Some(inode), self.owners) {
                    Err(error) if copy::is_full(&error) => return Err(error),
                    Err(_) => return Ok(None),
                    Ok(copied) => (other, copied),
                }
            }
            Ok(copied) => (target, copied),
        };
        self.count(&target, copied, Some(inode));
        Ok(Some(target))
    }

    /// Notes a name without its row: its bytes are not known.
    fn nameless(&mut self, ino: Ino, paths: &[PathBuf]) {
        let problem = format!(
            "what is known of it (inode {}) is lost; its bytes may be in unnamed/",
            ino.0
        );
        self.fail(&paths[0], &problem);
    }

    fn link(&mut self, inode: &Inode, paths: &[PathBuf]) {
        use std::os::unix::ffi::OsStrExt;
        let target = inode.target.as_deref().unwrap_or_default();
        for path in paths {
            let link = self.out.join("files").join(path);
            let made = copy::make_parents(&link).and_then(|()| {
                std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), &link)
            });
            match made {
                Ok(()) => self.report.links += 1,
                Err(error) => self.fail(path, &error),
            }
        }
    }

    /// Copies the objects that no row has named: old versions, those that a journal has a name for,
    /// and the rest by number.
    fn without_names(&mut self, salvaged: &Salvaged) -> io::Result<()> {
        let hints = self.names_in_journals();
        let inodes = salvaged.inodes.values();
        let rows: BTreeMap<ObjectId, &Inode> = inodes
            .filter_map(|inode| Some((inode.object?, inode)))
            .collect();
        for (object, path) in std::mem::take(&mut self.objects) {
            let inode = rows.get(&object).copied();
            let target = hints
                .get(&object)
                .map(|name| self.out.join("files").join(name));
            if salvaged.dead.contains(&object) {
                self.loose("old-versions", &path, None)?;
            } else if let Some(target) = target.filter(|target| !target.exists())
                && let Ok(copied) = copy_file(&path, &target, inode, self.owners)
            {
                self.report.files += 1;
                self.count(&target, copied, inode);
            } else {
                self.loose("unnamed", &path, inode)?;
            }
        }
        Ok(())
    }

    fn names_in_journals(&mut self) -> BTreeMap<ObjectId, PathBuf> {
        let mut names = BTreeMap::new();
        let mut files: BTreeSet<PathBuf> =
            self.list(&self.cache.join("batches")).into_iter().collect();
        files.extend(self.list(&self.cache.join("lost+found")));
        for file in files {
            if file
                .extension()
                .is_some_and(|extension| extension == "journal")
                && let Ok(bytes) = private::read(&file)
            {
                let found = Journal::names_in(&bytes).into_iter();
                names.extend(found.map(|(object, path)| (object, PathBuf::from(path.as_os_str()))));
            }
        }
        names
    }

    /// Copies what an interrupted batch may need to finish: older or moved files, some of which may
    /// be nowhere else.
    fn kept_for_batches(&mut self) -> io::Result<()> {
        for dir in self.list(&self.cache.join("batches")) {
            if !fs::symlink_metadata(&dir).is_ok_and(|meta| meta.is_dir()) {
                continue;
            }
            let batch = dir
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let place = format!("old-versions/{batch}");
            for path in self.list(&dir) {
                self.loose(&place, &path, None)?;
            }
        }
        Ok(())
    }

    fn lost_and_found(&mut self) -> io::Result<()> {
        for path in self.list(&self.cache.join("lost+found")) {
            self.loose("lost+found", &path, None)?;
        }
        Ok(())
    }

    /// Copies a file of the cache into the directory `place`, under its present name.
    fn loose(&mut self, place: &str, path: &Path, inode: Option<&Inode>) -> io::Result<()> {
        let target = self
            .out
            .join(place)
            .join(path.file_name().unwrap_or_default());
        match copy_file(path, &target, inode, self.owners) {
            Ok(copied) => {
                match place {
                    _ if place.starts_with("old-versions") => self.report.old_versions += 1,
                    "lost+found" => self.report.lost_and_found += 1,
                    _ => self.report.unnamed += 1,
                }
                self.count(&target, copied, inode);
                Ok(())
            }
            Err(error) if copy::is_full(&error) => Err(error),
            Err(error) => {
                self.fail(path, &error);
                Ok(())
            }
        }
    }

    /// Counts a copy, and notes if it differs from the index.
    fn count(&mut self, target: &Path, copied: Copied, inode: Option<&Inode>) {
        self.report.bytes = self.report.bytes.saturating_add(copied.size);
        let differs =
            |inode: &&Inode| inode.size != copied.size && !inode.flags.has(Flags::WRITING);
        if copied.unread > 0 {
            self.damage(target, format!("{} bytes cannot be read", copied.unread));
        } else if let Some(inode) = inode.filter(differs) {
            let problem = format!("{} bytes, where the index has {}", copied.size, inode.size);
            self.damage(target, problem);
        }
    }

    fn fail(&mut self, path: &Path, problem: &impl ToString) {
        self.report.failed.push(Trouble {
            path: path.to_text(),
            problem: problem.to_string(),
        });
    }

    fn damage(&mut self, target: &Path, problem: String) {
        let path = target.strip_prefix(&self.out).unwrap_or(target);
        let path = path.to_text();
        self.report.damaged.push(Trouble { path, problem });
    }
}
