//! Opens paths below a directory and never leaves it: no `..`, no absolute path, no symbolic link
//! in any component.
//!
//! There are two ways with the same result. With `openat2` the kernel refuses links in one call.
//! Kernels before 5.6 do not have it, and some sandboxes answer EPERM to calls they do not know.
//! There the path is walked name by name, each with `O_NOFOLLOW`. The walk is as safe: a
//! [`RelPath`] holds no `..`, so no step leads upwards. If the current directory of the walk is
//! moved, the walk still reaches what it was meant to reach.
//!
//! The walk also reaches paths that are too long for one call (`PATH_MAX`): renames can make a tree
//! that deep.
//!
//! Mount points are crossed on purpose (no `RESOLVE_NO_XDEV`): the exports of a NAS contain others,
//! and only root can mount something there. A bind mount of something else is root's own choice, as
//! the root of the backend is.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::Mode;

use crate::core::{Name, RelPath};

/// Returns the flags that reach a directory without opening it for reading.
fn pass_through() -> OFlag {
    OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC
}

/// Opens the directory at the absolute path `place`, in which no component may be a symbolic link.
/// The caller has resolved the path before. A link in it was put there since, by a user who wants
/// another directory to be used.
///
/// The descriptor serves to resolve names beneath it and for `statx`, not for reading.
///
/// # Errors
/// ELOOP or ENOTDIR if a component is a symbolic link; else what the system said.
pub fn open_place(place: &Path) -> io::Result<OwnedFd> {
    open_place_for(place, pass_through())
}

/// As [`open_place`], with `flags` (`O_CLOEXEC` and `O_NOFOLLOW` are added).
///
/// # Errors
/// As for [`open_place`].
pub fn open_place_for(place: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(complete(flags))
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    match openat2(AT_FDCWD, place, how) {
        Err(Errno::ENOSYS | Errno::EPERM | Errno::ENAMETOOLONG) => {
            let root = open("/", pass_through(), Mode::empty())?;
            let below = place.strip_prefix("/").unwrap_or(place).as_os_str();
            let path = RelPath::parse(below.as_bytes()).map_err(|_| Errno::EINVAL)?;
            Ok(open_by_walking(root.as_fd(), &path, flags, 0)?)
        }
        answer => Ok(answer?),
    }
}

/// Opens `path` below `root`, with `flags` (`O_CLOEXEC` and `O_NOFOLLOW` are added) and, for a new
/// file, `permissions` (`0o7777`, less the umask). An empty path opens the root itself.
///
/// # Errors
/// ELOOP or ENOTDIR if a component is a symbolic link; else what the system said.
pub fn open_beneath(
    root: BorrowedFd<'_>,
    path: &RelPath,
    flags: OFlag,
    permissions: u32,
) -> io::Result<OwnedFd> {
    match open_in_one_call(root, path, flags, permissions) {
        // EPERM may also be the true answer, and ENAMETOOLONG may mean a name instead of the path.
        // Then the walk gets the same error.
        Err(Errno::ENOSYS | Errno::EPERM | Errno::ENAMETOOLONG) => {
            Ok(open_by_walking(root, path, flags, permissions)?)
        }
        answer => Ok(answer?),
    }
}

/// Opens, without read access, the directory that holds `path`, and returns it with the last name
/// of `path`, as the calls ending in `at` need them. Returns `None` for the root, which has no
/// name.
///
/// # Errors
/// If that directory is missing, or a component on the way is a symbolic link or a file.
pub fn open_parent(root: BorrowedFd<'_>, path: &RelPath) -> io::Result<Option<(OwnedFd, Name)>> {
    let Some((parent, name)) = path.split_last() else {
        return Ok(None);
    };
    let dir = open_beneath(root, &parent, pass_through(), 0)?;
    Ok(Some((dir, name)))
}

/// Opens the directory `path` below `root`, without read access. Also returns whether it is known
/// to be on the mount of `root`.
///
/// # Errors
/// If it is missing, or a component is a symbolic link or a file.
pub fn open_dir(root: BorrowedFd<'_>, path: &RelPath) -> io::Result<(OwnedFd, bool)> {
    let how = OpenHow::new()
        .flags(complete(pass_through()))
        .resolve(beneath() | ResolveFlag::RESOLVE_NO_XDEV);
    match openat2(root, spelled(path), how) {
        Ok(dir) => Ok((dir, true)),
        // There is a mount point on the way, or the call cannot do it: see [`open_beneath`].
        Err(Errno::EXDEV | Errno::ENOSYS | Errno::EPERM | Errno::ENAMETOOLONG) => {
            Ok((open_beneath(root, path, pass_through(), 0)?, false))
        }
        Err(error) => Err(error.into()),
    }
}

fn beneath() -> ResolveFlag {
    // RESOLVE_NO_SYMLINKS implies the magic ones today; the manual says not to rely on it.
    ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS
}

/// Opens the directory `name`, one component of a path, in `dir`.
///
/// # Errors
/// If it is missing, or is a symbolic link or a file.
pub fn open_next(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let step = pass_through() | OFlag::O_NOFOLLOW;
    Ok(openat(dir, OsStr::from_bytes(name), step, Mode::empty())?)
}

fn open_in_one_call(
    root: BorrowedFd<'_>,
    path: &RelPath,
    flags: OFlag,
    permissions: u32,
) -> nix::Result<OwnedFd> {
    let mut how = OpenHow::new().flags(complete(flags)).resolve(beneath());
    if flags.contains(OFlag::O_CREAT) {
        // openat2 refuses a mode unless it creates a file.
        how = how.mode(Mode::from_bits_truncate(permissions));
    }
    openat2(root, spelled(path), how)
}

fn open_by_walking(
    root: BorrowedFd<'_>,
    path: &RelPath,
    flags: OFlag,
    permissions: u32,
) -> nix::Result<OwnedFd> {
    let mode = Mode::from_bits_truncate(permissions);
    let mut reached: Option<OwnedFd> = None;
    let Some((parent, last)) = path.split_last() else {
        return openat(root, ".", complete(flags), mode);
    };
    for component in parent.components() {
        let here = reached.as_ref().map_or(root, AsFd::as_fd);
        let step = pass_through() | OFlag::O_NOFOLLOW;
        reached = Some(openat(
            here,
            OsStr::from_bytes(component),
            step,
            Mode::empty(),
        )?);
    }
    let here = reached.as_ref().map_or(root, AsFd::as_fd);
    openat(here, last.as_os_str(), complete(flags), mode)
}

fn complete(flags: OFlag) -> OFlag {
    flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW
}

fn spelled(path: &RelPath) -> &OsStr {
    if path.is_root() {
        OsStr::new(".")
    } else {
        path.as_os_str()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    type Opener = fn(BorrowedFd<'_>, &RelPath, OFlag, u32) -> nix::Result<OwnedFd>;

    /// Runs `check` with both openers on a tree with links that lead out of it.
    fn with_both(check: impl Fn(Opener, BorrowedFd<'_>)) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/file"), b"inside").unwrap();
        fs::write(dir.path().join("secret"), b"outside").unwrap();
        symlink("../../secret", root.join("a/out")).unwrap();
        symlink("..", root.join("up")).unwrap();
        symlink("a", root.join("within")).unwrap();
        let fd = open_place(&root).unwrap();
        check(open_in_one_call, fd.as_fd());
        check(open_by_walking, fd.as_fd());
    }

    #[test]
    fn what_stands_below_is_opened_either_way() {
        with_both(|opener, root| {
            for path in ["a", "a/b", "a/b/file", ""] {
                let path = RelPath::fixed(path);
                assert!(opener(root, &path, OFlag::O_RDONLY, 0).is_ok(), "{path}");
            }
            let missing = opener(root, &RelPath::fixed("a/x/y"), OFlag::O_RDONLY, 0);
            assert_eq!(missing.unwrap_err(), Errno::ENOENT);
        });
    }

    #[test]
    fn no_link_is_followed_either_way_not_even_one_that_stays_inside() {
        with_both(|opener, root| {
            for path in ["a/out", "up/secret", "within/b/file", "within"] {
                let path = RelPath::fixed(path);
                let refused = opener(root, &path, OFlag::O_RDONLY, 0).unwrap_err();
                assert!(
                    matches!(refused, Errno::ELOOP | Errno::ENOTDIR),
                    "{path}: {refused}"
                );
            }
        });
    }

    #[test]
    fn nothing_is_made_through_a_dangling_link() {
        with_both(|opener, root| {
            nix::unistd::symlinkat("../made", root, "dangling").unwrap();
            let flags = OFlag::O_CREAT | OFlag::O_WRONLY;
            assert!(opener(root, &RelPath::fixed("dangling"), flags, 0o644).is_err());
            nix::unistd::unlinkat(root, "dangling", nix::unistd::UnlinkatFlags::NoRemoveDir)
                .unwrap();
        });
    }

    #[test]
    fn where_the_kernel_or_a_sandbox_has_no_openat2_the_walk_answers_alike() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("a")).unwrap();
        fs::write(root.join("a/file"), b"inside").unwrap();
        symlink("..", root.join("up")).unwrap();
        let fd = open_place(&root).unwrap();
        for errno in [Errno::ENOSYS, Errno::EPERM] {
            crate::sys::forbid::without_openat2(errno, || {
                let open = |path| open_beneath(fd.as_fd(), &path, OFlag::O_RDONLY, 0);
                let denied = open_in_one_call(fd.as_fd(), &RelPath::root(), OFlag::O_RDONLY, 0);
                assert_eq!(denied.unwrap_err(), errno, "the call is denied");
                assert!(open(RelPath::fixed("a/file")).is_ok());
                let refused = open(RelPath::fixed("up/root/a/file")).unwrap_err();
                assert!(matches!(
                    refused.raw_os_error(),
                    Some(libc::ELOOP | libc::ENOTDIR)
                ));
            });
        }
    }

    #[test]
    fn a_directory_is_opened_without_links_and_said_to_be_on_the_mount() {
        with_both(|_, root| {
            assert!(open_dir(root, &RelPath::fixed("a/b")).unwrap().1);
            assert!(open_dir(root, &RelPath::root()).unwrap().1);
            for path in ["within/b", "within", "up", "a/b/file"].map(RelPath::fixed) {
                assert!(open_dir(root, &path).is_err(), "{path}");
            }
        });
        // Something is mounted on these of every system.
        let system = open_place(Path::new("/")).unwrap();
        assert!(!open_dir(system.as_fd(), &RelPath::fixed("proc/self/fd")).is_ok_and(|it| it.1));
        assert!(!open_dir(system.as_fd(), &RelPath::fixed("proc")).unwrap().1);
    }

    #[test]
    fn the_parent_of_the_root_is_not_offered() {
        with_both(|_, root| {
            assert!(open_parent(root, &RelPath::root()).unwrap().is_none());
            let (_, name) = open_parent(root, &RelPath::fixed("a/b")).unwrap().unwrap();
            assert_eq!(name.as_bytes(), b"b");
        });
    }
}
