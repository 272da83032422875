//! Moves the files of one directory into another: a pass from the bare mount point into the mount.
//!
//! Each file is copied beside its final name, synced, named without replacing anything, and only
//! then removed from the bare directory. A crash leaves it in both places at worst; the next pass
//! finds the same bytes and removes the lower ones. If the mount has another file of the name, the
//! moved file gets a conflict name.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, readlinkat, renameat, renameat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};

use super::Taken;
use crate::core::{ForeignText, Name, Timestamp};
use crate::plan::merge::conflict_name;
use crate::sys;
use crate::sys::mounts;
use crate::sys::mounts::Place;

/// How long to wait for a program that still writes to a file.
const WRITER: Duration = Duration::from_secs(5);

/// How old the last change of a file must be for it to be moved, if the system does not say whether
/// a program has it open for writing.
const OLD: Duration = Duration::from_secs(600);

/// Bytes that are copied between two checks whether to stop.
const PIECE: usize = 1 << 20;

/// How many conflict names are tried.
const ATTEMPTS: u32 = 1000;

/// Moves the contents of `bare` into the directory `mount`. Conflict names contain `host`.
pub(super) fn move_all(bare: &File, mount: &File, host: &str, watch: Watch<'_>) -> Taken {
    let mut mover = Mover {
        now: Timestamp::from(SystemTime::now()),
        host,
        watch,
        place: Place::default(),
        taken: Taken::default(),
    };
    let moved = mounts::place_of(bare).and_then(|place| {
        mover.place = place;
        mover.directory(bare.as_fd(), mount.as_fd(), Path::new(""))
    });
    if let Err(error) = moved {
        mover.leave(Path::new("."), &error);
    }
    mover.taken
}

/// What a pass must know of the mount.
pub(super) struct Watch<'a> {
    /// The files below are newer than those in the mount: the previous daemon died.
    pub(super) is_later: bool,
    /// Whether a program has this file of the mount open for writing.
    pub(super) is_written: &'a dyn Fn(u64) -> bool,
    /// Whether to stop.
    pub(super) stop: &'a dyn Fn() -> bool,
}

/// Whether `bare` is empty.
pub(super) fn is_empty(bare: &File) -> bool {
    names(bare.as_fd()).is_ok_and(|names| names.is_empty())
}

/// One pass.
struct Mover<'a> {
    now: Timestamp,
    host: &'a str,
    watch: Watch<'a>,
    /// Where the bare directory is.
    place: Place,
    taken: Taken,
}

fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
    // Opened again: a descriptor that was read once is at its end.
    sys::dir::read_names(openat(
        dir,
        ".",
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?)
}

fn directory_in(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(dir, name, flags, Mode::empty())?.into())
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT)
}

fn stat_in(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<FileStat> {
    Ok(fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?)
}

fn is_taken(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AlreadyExists
}

impl Mover<'_> {
    fn is_over(&self) -> bool {
        (self.watch.stop)()
    }

    /// Checks that `file` is in the bare directory itself. Files of a file system that is mounted
    /// in it are there on purpose.
    fn check_place(&self, file: impl AsFd) -> io::Result<()> {
        match mounts::place_of(file)? == self.place {
            true => Ok(()),
            false => Err(io::Error::other("another file system is mounted there")),
        }
    }

    /// Notes that `path` stays below because of `error`.
    fn leave(&mut self, path: &Path, error: &io::Error) {
        tracing::warn!(path = %path.escaped(), %error, "a file under the mount stays there");
        self.taken.left.push((path.into(), error.to_string()));
    }

    /// Notes that `wanted` was moved, under the conflict name `got` if it has one.
    fn note(&mut self, wanted: &Path, got: Option<Name>) {
        let path = match &got {
            Some(name) => wanted.with_file_name(name.as_os_str()),
            None => wanted.to_path_buf(),
        };
        tracing::info!(path = %path.escaped(), "moved into the mount from under it");
        if got.is_some() {
            self.taken.conflicts.push(path.clone());
        }
        self.taken.files.push(path);
    }

    /// Moves the contents of `from` into `to`; both are the directory `at`.
    fn directory(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, at: &Path) -> io::Result<()> {
        for name in names(from)? {
            if self.is_over() {
                return Err(io::Error::other("the mount is ending"));
            }
            let name = OsStr::from_bytes(&name);
            let path = at.join(name);
            if let Err(error) = self.entry(from, to, name, &path) {
                self.leave(&path, &error);
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
    ) -> io::Result<()> {
        let stat = match stat_in(from, name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            stat => stat?,
        };
        let own = Name::new(name.as_bytes())
            .map_err(|_| io::Error::other("a mount cannot have this name"))?;
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        self.check_place(openat(from, name, flags, Mode::empty())?)?;
        match kind(&stat) {
            SFlag::S_IFDIR => return self.subdirectory(from, to, &own, path, &stat),
            SFlag::S_IFREG => self.file(from, to, &own, path)?,
            SFlag::S_IFLNK => {
                let target = readlinkat(from, name)?;
                let is_same = |name: &Name| {
                    readlinkat(to, name.as_os_str()).is_ok_and(|there| there == target)
                };
                let got = self.named(&own, false, is_same, |name| {
                    Ok(symlinkat(target.as_os_str(), to, name.as_os_str())?)
                })?;
                self.note(path, got);
            }
            other => {
                let permissions = Mode::from_bits_truncate(stat.st_mode & 0o7777);
                let got = self.named(
                    &own,
                    false,
                    |_| false,
                    |name| {
                        Ok(mknodat(
                            to,
                            name.as_os_str(),
                            other,
                            permissions,
                            stat.st_rdev,
                        )?)
                    },
                )?;
                self.note(path, got);
            }
        }
        Ok(unlinkat(from, name, UnlinkatFlags::NoRemoveDir)?)
    }

    /// Makes something under the name `wanted`, or under the first free conflict name, with `make`.
    /// Returns the conflict name; `None` if it has the name itself, or if the file of that name
    /// `is_same`.
    fn named(
        &self,
        wanted: &Name,
        is_dir: bool,
        is_same: impl Fn(&Name) -> bool,
        make: impl Fn(&Name) -> io::Result<()>,
    ) -> io::Result<Option<Name>> {
        match make(wanted) {
            Err(error) if is_taken(&error) && is_same(wanted) => return Ok(None),
            Err(error) if is_taken(&error) => {}
            result => return result.map(|()| None),
        }
        for attempt in 0..ATTEMPTS {
            let Some(name) = conflict_name(wanted, self.now, self.host, attempt, is_dir) else {
                break;
            };
            match make(&name) {
                Err(error) if is_taken(&error) => {}
                result => return result.map(|()| Some(name)),
            }
        }
        Err(io::Error::other("no free name was found for it"))
    }

    fn subdirectory(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &Name,
        path: &Path,
        stat: &FileStat,
    ) -> io::Result<()> {
        let lower = directory_in(from, name.as_os_str())?;
        self.check_place(&lower)?;
        let permissions = Mode::from_bits_truncate(stat.st_mode & 0o7777);
        let is_directory = |name: &Name| {
            stat_in(to, name.as_os_str()).is_ok_and(|there| kind(&there) == SFlag::S_IFDIR)
        };
        let is_new = std::cell::Cell::new(false);
        let got = self.named(name, true, is_directory, |name| {
            mkdirat(to, name.as_os_str(), permissions | Mode::S_IRWXU)?;
            is_new.set(true);
            Ok(())
        })?;
        let target = got.as_ref().unwrap_or(name);
        let upper = directory_in(to, target.as_os_str())?;
        let path = path.with_file_name(target.as_os_str());
        self.directory(lower.as_fd(), upper.as_fd(), &path)?;
        if is_new.get() {
            give_owner(to, target, stat);
            upper.set_permissions(std::fs::Permissions::from_mode(stat.st_mode & 0o7777))?;
            upper.set_modified(modified(stat))?;
        }
        match unlinkat(from, name.as_os_str(), UnlinkatFlags::RemoveDir) {
            // It contains what could not be moved, or a new file, which the next pass moves.
            Err(nix::Error::ENOTEMPTY) => Ok(()),
            result => Ok(result?),
        }
    }

    fn file(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &Name,
        path: &Path,
    ) -> io::Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let mut source = File::from(openat(from, name.as_os_str(), flags, Mode::empty())?);
        self.check_place(&source)?;
        let meta = self.wait_for_writers(&source)?;
        let stat = stat_in(from, name.as_os_str())?;
        let temporary = format!(".ferryfs-moving-{}", meta.ino());
        // A crash may have left one. A file that another program has made must not become the copy:
        // that program may have it open.
        let _ = unlinkat(to, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
        let flags =
            OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut copy = File::from(openat(
            to,
            temporary.as_str(),
            flags,
            Mode::S_IRUSR | Mode::S_IWUSR,
        )?);
        let copied = self.copy(&mut source, &mut copy).and_then(|()| {
            let own = Name::new(temporary.as_bytes()).map_err(io::Error::other)?;
            give_xattrs((from, name), (to, &own));
            give_owner(to, &own, &stat);
            copy.set_permissions(meta.permissions())?;
            copy.set_modified(meta.modified()?)?;
            copy.sync_all()?;
            let now = source.metadata()?;
            match (now.len(), now.mtime(), now.mtime_nsec())
                == (meta.len(), meta.mtime(), meta.mtime_nsec())
            {
                true => Ok(()),
                false => Err(io::Error::other("a program is writing to it")),
            }
        });
        drop(copy);
        let placed = copied.and_then(|()| {
            let is_same = |name: &Name| compare(&source, to, name) == Some(Overlap::Same);
            self.named(name, false, is_same, |name| {
                let named = renameat2(
                    to,
                    temporary.as_str(),
                    to,
                    name.as_os_str(),
                    RenameFlags::RENAME_NOREPLACE,
                );
                // The daemon's death cut it off in the mount, and the program that retried wrote
                // all of it below.
                if named == Err(nix::Error::EEXIST)
                    && self.watch.is_later
                    && !stat_in(to, name.as_os_str())
                        .is_ok_and(|there| (self.watch.is_written)(there.st_ino))
                    && compare(&source, to, name) == Some(Overlap::Beginning)
                {
                    return Ok(renameat(to, temporary.as_str(), to, name.as_os_str())?);
                }
                Ok(named?)
            })
        });
        // It exists only if the rename failed.
        let _ = unlinkat(to, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
        self.note(path, placed?);
        Ok(())
    }

    /// Waits a while until no program has the file open for writing. If the system does not say
    /// so, as for files of other users and on some network file systems, only a file that has not
    /// changed for long counts as unwritten.
    fn wait_for_writers(&self, file: &File) -> io::Result<std::fs::Metadata> {
        let end = Instant::now() + WRITER;
        while !is_unwritten(sys::file::is_unwritten(file), &file.metadata()?)? {
            if Instant::now() > end || self.is_over() {
                return Err(io::Error::other("a program has it open for writing"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        file.metadata()
    }

    fn copy(&self, source: &mut File, copy: &mut File) -> io::Result<()> {
        let mut piece = vec![0; PIECE];
        loop {
            if self.is_over() {
                return Err(io::Error::other("the mount is ending"));
            }
            match source.read(&mut piece)? {
                0 => return Ok(()),
                length => copy.write_all(&piece[..length])?,
            }
        }
    }
}

/// Whether no program writes to the file with `meta`; `answer` is what the system says.
fn is_unwritten(answer: io::Result<bool>, meta: &std::fs::Metadata) -> io::Result<bool> {
    // A time in the future is not old.
    let age = |time: SystemTime| time.elapsed().unwrap_or_default();
    let is_old = || meta.modified().is_ok_and(|time| age(time) > OLD);
    match answer {
        Err(_) if is_old() => Ok(true),
        Err(error) => Err(io::Error::other(format!(
            "it has changed in the last {} minutes, and it is not known whether a program still \
             writes to it ({error})",
            OLD.as_secs() / 60
        ))),
        answer => answer,
    }
}

fn modified(stat: &FileStat) -> SystemTime {
    Timestamp::from_parts(
        stat.st_mtime,
        u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
    )
    .into()
}

/// Sets the owner of `name` in `dir`, if this process may.
fn give_owner(dir: BorrowedFd<'_>, name: &Name, stat: &FileStat) {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    let _ = fchownat(
        dir,
        name.as_os_str(),
        Some(uid),
        Some(gid),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    );
}

/// Copies the extended attributes that the mount accepts.
fn give_xattrs((from, source): (BorrowedFd<'_>, &Name), (to, copy): (BorrowedFd<'_>, &Name)) {
    for attribute in sys::xattr::list_at(&from, Some(source)).unwrap_or_default() {
        if let Ok(Some(value)) = sys::xattr::get_at(&from, Some(source), &attribute) {
            let _ = sys::xattr::set_at(&to, Some(copy), &attribute, &value);
        }
    }
}

/// How the bytes of a file in the mount compare with those of the file below.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Overlap {
    /// They are the same: an earlier pass has moved it.
    Same,
    /// They are the beginning of them, perhaps none, and older.
    Beginning,
}

/// Compares the file `name` in `dir` with `source`. Returns `None` if it has other bytes.
fn compare(source: &File, dir: BorrowedFd<'_>, name: &Name) -> Option<Overlap> {
    use std::os::unix::fs::FileExt;
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let there = File::from(openat(dir, name.as_os_str(), flags, Mode::empty()).ok()?);
    let (ours, theirs) = (there.metadata().ok()?, source.metadata().ok()?);
    if !ours.is_file() || ours.len() > theirs.len() {
        return None;
    }
    let (mut a, mut b) = (vec![0; PIECE], vec![0; PIECE]);
    let mut at = 0;
    while at < ours.len() {
        let step = PIECE.min(usize::try_from(ours.len() - at).unwrap_or(PIECE));
        there.read_exact_at(&mut a[..step], at).ok()?;
        source.read_exact_at(&mut b[..step], at).ok()?;
        if a[..step] != b[..step] {
            return None;
        }
        at += step as u64;
    }
    if ours.len() == theirs.len() {
        return Some(Overlap::Same);
    }
    (ours.modified().ok()? <= theirs.modified().ok()?).then_some(Overlap::Beginning)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;

    const ALL: Watch<'static> = Watch {
        is_later: true,
        is_written: &|_| false,
        stop: &|| false,
    };

    struct Scene {
        _dir: tempfile::TempDir,
        bare: PathBuf,
        mount: PathBuf,
    }

    impl Scene {
        fn new() -> Scene {
            let dir = tempfile::tempdir().unwrap();
            let (bare, mount) = (dir.path().join("bare"), dir.path().join("mount"));
            fs::create_dir(&bare).unwrap();
            fs::create_dir(&mount).unwrap();
            Scene {
                _dir: dir,
                bare,
                mount,
            }
        }

        fn move_all(&self, watch: Watch<'_>) -> Taken {
            let (bare, mount) = (File::open(&self.bare), File::open(&self.mount));
            super::move_all(&bare.unwrap(), &mount.unwrap(), "host", watch)
        }
    }

    #[test]
    fn a_file_that_is_open_for_writing_in_the_mount_is_not_replaced() {
        for is_open in [true, false] {
            let scene = Scene::new();
            fs::write(scene.mount.join("a"), b"abc").unwrap();
            fs::write(scene.bare.join("a"), b"abcdef").unwrap();
            let number = fs::metadata(scene.mount.join("a")).unwrap().ino();
            let taken = scene.move_all(Watch {
                is_written: &|ino| is_open && ino == number,
                ..ALL
            });
            assert_eq!(taken.left, []);
            assert_eq!(taken.conflicts.len(), usize::from(is_open));
            let expected: &[u8] = if is_open { b"abc" } else { b"abcdef" };
            assert_eq!(fs::read(scene.mount.join("a")).unwrap(), expected);
            let moved = fs::read(scene.mount.join(&taken.files[0])).unwrap();
            assert_eq!(moved, b"abcdef");
            assert!(!scene.bare.join("a").exists());
        }
    }

    #[test]
    fn a_planted_file_with_the_name_of_the_copy_does_not_get_the_bytes() {
        use std::io::Seek;
        let scene = Scene::new();
        fs::write(scene.bare.join("secret"), b"secret").unwrap();
        let number = fs::metadata(scene.bare.join("secret")).unwrap().ino();
        let planted = scene.mount.join(format!(".ferryfs-moving-{number}"));
        let mut planted = File::create_new(planted).unwrap();
        planted.write_all(b"x").unwrap();
        scene.move_all(ALL);
        let moved = scene.mount.join("secret");
        assert_eq!(fs::read(&moved).unwrap(), b"secret");
        planted.rewind().unwrap();
        planted.write_all(b"forged").unwrap();
        assert_eq!(fs::read(&moved).unwrap(), b"secret");
    }

    #[test]
    fn what_is_mounted_in_the_bare_directory_stays_whole() {
        use nix::mount::{MntFlags, MsFlags, mount, umount2};
        if !Uid::effective().is_root() {
            return;
        }
        let scene = Scene::new();
        let (theirs, place) = (
            scene.mount.with_file_name("theirs"),
            scene.bare.join("d/in"),
        );
        fs::create_dir(&theirs).unwrap();
        fs::create_dir_all(&place).unwrap();
        fs::write(theirs.join("film"), b"film").unwrap();
        fs::write(scene.bare.join("d/ours"), b"ours").unwrap();
        // Of the same file system: the device number does not show the mount.
        let none = None::<&str>;
        mount(Some(&theirs), &place, none, MsFlags::MS_BIND, none).unwrap();
        let taken = scene.move_all(ALL);
        umount2(&place, MntFlags::MNT_DETACH).unwrap();
        assert_eq!(taken.left.len(), 1, "{taken:?}");
        assert_eq!(taken.left[0].0, Path::new("d/in"));
        assert!(taken.left[0].1.contains("mounted"), "{taken:?}");
        assert_eq!(fs::read(theirs.join("film")).unwrap(), b"film");
        assert!(!scene.mount.join("d/in").exists());
        assert_eq!(fs::read(scene.mount.join("d/ours")).unwrap(), b"ours");
    }

    #[test]
    fn where_writers_cannot_be_seen_only_an_old_file_counts_as_unwritten() {
        let file = tempfile::tempfile().unwrap();
        let unknown = || Err(io::Error::from_raw_os_error(libc::EACCES));
        let now = SystemTime::now();
        for (time, is_old) in [
            (now, false),
            (now - OLD / 2, false),
            (now + 2 * OLD, false),
            (now - 2 * OLD, true),
        ] {
            file.set_modified(time).unwrap();
            let meta = file.metadata().unwrap();
            assert_eq!(is_unwritten(unknown(), &meta).is_ok_and(|is| is), is_old);
            assert!(!is_unwritten(Ok(false), &meta).unwrap());
            assert!(is_unwritten(Ok(true), &meta).unwrap());
        }
    }
}
