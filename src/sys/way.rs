//! Finds the directories that decide where a path leads, and the users who may change them.
//!
//! The path is resolved here name by name, as the kernel does it. A descriptor holds each
//! directory, so each fact is true of the very directory in which the next name is looked up. A
//! symbolic link is read from its descriptor, and the directories on its way count as well.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::Mode;
use nix::unistd::Uid;

use super::mounts::{KernelFacts, facts_of};
use crate::core::ForeignText;

/// The most links that are followed in one path, as in the kernel.
const MOST_LINKS: usize = 40;

/// Permission bits that let the group and all users write.
const GROUP_WRITES: u32 = 0o020;
const ALL_WRITE: u32 = 0o002;

/// Only owners may remove or rename names in the directory.
const STICKY: u32 = 0o1000;

/// The result of resolving a path.
#[derive(Debug)]
pub struct Way {
    /// The directory at its end. Serves to resolve names beneath and for `statx`, not for reading.
    pub dir: OwnedFd,
    /// Its path without symbolic links, `.` and `..`.
    pub place: PathBuf,
    exposed: Option<Exposed>,
    led: Option<Exposed>,
}

/// A directory on the way in which another user can replace the name that the path leads through.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} {by}, who can make {} lead elsewhere", dir.escaped(), next.escaped())]
pub struct Exposed {
    /// The directory.
    pub dir: PathBuf,
    /// The name in it that can be replaced.
    pub next: PathBuf,
    /// The user or group that can replace it.
    pub by: Writer,
}

/// A user or group that may change a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Writer {
    /// Its owner.
    #[error("belongs to user {0}")]
    Owner(u32),
    /// A group.
    #[error("can be written to by group {0}")]
    Group(u32),
    /// All users.
    #[error("can be written to by everybody")]
    All,
    /// All users may create names in it, and only owners may remove them; this user owns the name.
    #[error("lets everybody make names, and this one belongs to user {0}")]
    OwnerOfNext(u32),
}

impl Way {
    /// Returns the first directory on the way that a user other than root and this one can change.
    /// Returns `None` unless this process is root, since only root could be led where others may
    /// not go. The directory at the end does not count: its owner is checked elsewhere.
    pub fn danger(&self) -> Option<&Exposed> {
        self.exposed.as_ref().filter(|_| Uid::effective().is_root())
    }

    /// As [`Way::danger`], if a link was followed in that directory or further on: that user may be
    /// the one who redirects the path.
    pub fn lure(&self) -> Option<&Exposed> {
        self.led.as_ref().filter(|_| Uid::effective().is_root())
    }
}

/// Resolves `path` to a directory.
///
/// # Errors
/// ENOENT or ENOTDIR if there is none, ELOOP if there are too many links in it; else what the
/// system said.
pub fn walk(path: &Path) -> io::Result<Way> {
    let root = open(
        "/",
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let facts = facts_of(&root)?;
    let mut walker = Walker {
        trusted: [0, Uid::effective().as_raw(), facts.uid],
        root: (root, facts),
        reached: Vec::new(),
        links: 0,
        exposed: None,
        led: None,
    };
    walker.go(&std::path::absolute(path)?)?;
    walker.end()
}

/// A directory that was reached, its facts, and its name in the directory before it.
struct Reached {
    dir: OwnedFd,
    facts: KernelFacts,
    name: OsString,
}

struct Walker {
    root: (OwnedFd, KernelFacts),
    reached: Vec<Reached>,
    links: usize,
    /// The users who may change a directory on the way: root, this user, and the owner of the root
    /// directory, who controls all paths. In a user namespace that owner is often a user without a
    /// number.
    trusted: [u32; 3],
    exposed: Option<Exposed>,
    /// The value of `exposed` when the last link was followed.
    led: Option<Exposed>,
}

impl Walker {
    fn go(&mut self, path: &Path) -> io::Result<()> {
        let mut ahead = Vec::new();
        self.put_ahead(path, &mut ahead);
        while let Some(name) = ahead.pop() {
            if name == ".." {
                self.reached.pop();
                continue;
            }
            let (dir, facts) = self.step(&name)?;
            self.note_exposure(&name, &facts);
            if facts.mode & libc::S_IFMT != libc::S_IFLNK {
                self.reached.push(Reached { dir, facts, name });
                continue;
            }
            if self.is_lure(&facts) {
                return Err(Errno::EACCES.into());
            }
            self.links += 1;
            self.led = self.exposed.clone();
            if self.links > MOST_LINKS {
                return Err(Errno::ELOOP.into());
            }
            let target = readlinkat(&dir, "")?;
            self.put_ahead(Path::new(&target), &mut ahead);
        }
        Ok(())
    }

    /// Returns whether another user's link is in a directory in which all users may create names.
    /// Such a link is not followed, as with the kernel's `fs.protected_symlinks`.
    fn is_lure(&self, link: &KernelFacts) -> bool {
        let (_, here) = self.here();
        let is_shared = here.mode & STICKY != 0 && here.mode & ALL_WRITE != 0;
        is_shared && link.uid != Uid::effective().as_raw() && link.uid != here.uid
    }

    /// Puts the names of `path` before those that are still `ahead`.
    fn put_ahead(&mut self, path: &Path, ahead: &mut Vec<OsString>) {
        if path.has_root() {
            self.reached.clear();
        }
        let names = path
            .components()
            .rev()
            .filter_map(|component| match component {
                Component::Normal(name) => Some(name.to_owned()),
                Component::ParentDir => Some("..".into()),
                _ => None,
            });
        ahead.extend(names);
    }

    /// Opens `name` here: a directory or a symbolic link.
    fn step(&self, name: &OsString) -> io::Result<(OwnedFd, KernelFacts)> {
        let (here, _) = self.here();
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        // As a directory first: that makes the kernel mount a file system that is mounted on
        // demand.
        let opened = openat(
            here,
            name.as_os_str(),
            flags | OFlag::O_DIRECTORY,
            Mode::empty(),
        );
        let opened = match opened {
            Err(Errno::ENOTDIR | Errno::ELOOP) => {
                openat(here, name.as_os_str(), flags, Mode::empty())?
            }
            opened => opened?,
        };
        let facts = facts_of(&opened)?;
        match facts.mode & libc::S_IFMT {
            libc::S_IFDIR | libc::S_IFLNK => Ok((opened, facts)),
            _ => Err(Errno::ENOTDIR.into()),
        }
    }

    fn here(&self) -> (BorrowedFd<'_>, KernelFacts) {
        match self.reached.last() {
            Some(reached) => (reached.dir.as_fd(), reached.facts),
            None => (self.root.0.as_fd(), self.root.1),
        }
    }

    fn note_exposure(&mut self, name: &OsString, next: &KernelFacts) {
        let (dir, here) = self.here();
        let Some(by) = self.writer(&here, next) else {
            return;
        };
        // All files of such a file system belong to the user that its mount names, and it has no
        // links. A replacement can only be another directory of the same drive.
        if here.place == next.place && super::file::has_no_owners(dir) {
            return;
        }
        let dir = self.path();
        self.exposed.get_or_insert(Exposed {
            next: dir.join(name),
            dir,
            by,
        });
    }

    /// Returns who, except the trusted users, can replace `next` in the directory `here`.
    fn writer(&self, here: &KernelFacts, next: &KernelFacts) -> Option<Writer> {
        let is_trusted = |uid| self.trusted.contains(&uid);
        if !is_trusted(here.uid) {
            return Some(Writer::Owner(here.uid));
        }
        let open_to = match here.mode {
            mode if mode & ALL_WRITE != 0 => Writer::All,
            // Members of root's group are trusted, as in containers whose directories all have that
            // group.
            mode if mode & GROUP_WRITES != 0 && here.gid != 0 => Writer::Group(here.gid),
            _ => return None,
        };
        match here.mode & STICKY != 0 {
            true if is_trusted(next.uid) => None,
            true => Some(Writer::OwnerOfNext(next.uid)),
            false => Some(open_to),
        }
    }

    fn path(&self) -> PathBuf {
        let mut path = PathBuf::from("/");
        path.extend(self.reached.iter().map(|reached| &reached.name));
        path
    }

    fn end(mut self) -> io::Result<Way> {
        let place = self.path();
        let dir = match self.reached.pop() {
            Some(reached) => reached.dir,
            None => self.root.0,
        };
        Ok(Way {
            dir,
            place,
            exposed: self.exposed,
            led: self.led,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    const OTHER_USER: u32 = 12_345;
    const GROUP: u32 = 7;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    /// Makes a tree below a directory of this user and returns its resolved path.
    fn tree() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir_all(top.join("a/b/c")).unwrap();
        (dir, top)
    }

    #[test]
    fn a_path_leads_where_the_kernel_says() {
        let (_dir, top) = tree();
        symlink("a/b", top.join("relative")).unwrap();
        symlink(top.join("a"), top.join("absolute")).unwrap();
        symlink("../../relative/c/..", top.join("a/b/up")).unwrap();
        symlink("loop", top.join("loop")).unwrap();
        fs::write(top.join("file"), b"").unwrap();
        for path in [
            "a/b/c",
            "relative/c",
            "absolute/b/../b/c",
            "a/b/up",
            "a/./b/..",
            "../..",
        ] {
            let path = top.join(path);
            let way = walk(&path).unwrap();
            assert_eq!(way.place, fs::canonicalize(&path).unwrap(), "{path:?}");
            let expected = facts_of(fs::File::open(&path).unwrap()).unwrap();
            assert_eq!(facts_of(&way.dir).unwrap(), expected, "{path:?}");
        }
        assert_eq!(walk(Path::new("/../..")).unwrap().place, Path::new("/"));
        for (path, error) in [
            ("none/x", libc::ENOENT),
            ("file", libc::ENOTDIR),
            ("file/x", libc::ENOTDIR),
            ("loop", libc::ELOOP),
        ] {
            let found = walk(&top.join(path)).unwrap_err();
            assert_eq!(found.raw_os_error(), Some(error), "{path}");
        }
    }

    #[test]
    fn who_can_change_a_directory_on_the_way_is_named() {
        if !Uid::effective().is_root() {
            return;
        }
        let (_dir, top) = tree();
        let path = top.join("a/b/c");
        let danger = || {
            let found = walk(&path).unwrap().danger().cloned();
            found.map(|found| (found.dir.strip_prefix(&top).unwrap().to_owned(), found.by))
        };
        assert_eq!(danger(), None);
        // The owner of the directory at the end does not count.
        chown(&path, Some(OTHER_USER), None).unwrap();
        set_mode(&path, 0o777);
        assert_eq!(danger(), None);
        set_mode(&top.join("a/b"), 0o775);
        assert_eq!(danger(), None, "root's own group");
        chown(top.join("a/b"), None, Some(GROUP)).unwrap();
        for (mode, by) in [
            (0o775, Writer::Group(GROUP)),
            (0o777, Writer::All),
            (0o1777, Writer::OwnerOfNext(OTHER_USER)),
        ] {
            set_mode(&top.join("a/b"), mode);
            assert_eq!(danger(), Some(("a/b".into(), by)));
        }
        chown(&path, Some(0), None).unwrap();
        assert_eq!(danger(), None, "sticky, and the name is root's");
        set_mode(&top.join("a/b"), 0o755);
        chown(top.join("a"), Some(OTHER_USER), None).unwrap();
        assert_eq!(danger(), Some(("a".into(), Writer::Owner(OTHER_USER))));
    }

    #[test]
    fn the_directory_that_a_link_is_in_counts() {
        if !Uid::effective().is_root() {
            return;
        }
        let (_dir, top) = tree();
        let theirs = top.join("theirs");
        fs::create_dir(&theirs).unwrap();
        chown(&theirs, Some(OTHER_USER), None).unwrap();
        symlink(top.join("a/b"), theirs.join("link")).unwrap();
        let way = walk(&theirs.join("link/c")).unwrap();
        assert_eq!(way.place, top.join("a/b/c"));
        assert_eq!(way.danger().unwrap().by, Writer::Owner(OTHER_USER));
        assert_eq!(way.lure(), way.danger());
        fs::create_dir(theirs.join("plain")).unwrap();
        let way = walk(&theirs.join("plain")).unwrap();
        assert!(way.danger().is_some() && way.lure().is_none());
        // A path that only passes through `theirs` looks up no name in it.
        assert_eq!(walk(&theirs.join("../a")).unwrap().danger(), None);
    }
}
