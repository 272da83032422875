//! The ferryfs mounts, from `/proc/self/mountinfo` (format: proc_pid_mountinfo(5)).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::core::{Failure, ForeignText, quoted};
use crate::sys;
use crate::sys::mounts::Mount;

/// The type that the kernel shows for ferryfs mounts.
pub const FSTYPE: &[u8] = b"fuse.ferryfs";

/// The file in which the kernel lists the mounts of this process.
const MOUNTINFO: &str = "/proc/self/mountinfo";

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// The kernel's number for it; another mount at the same place has another number.
    pub id: u64,
    /// `st_dev` of its files; all mounts of one file system have the same.
    pub dev: u64,
    /// The directory of the file system that it shows: `/`, or another for a bind mount.
    pub root: PathBuf,
    /// The user of the mount, if the file system reports one, as FUSE does.
    pub user: Option<u32>,
    /// The mount point.
    pub mountpoint: PathBuf,
    /// Its type, as in `ext4` or `fuse.sshfs`.
    pub fstype: Vec<u8>,
    /// The mounted source; for a ferryfs mount the backend's directory.
    pub source: PathBuf,
}

impl MountEntry {
    /// Returns whether it is a ferryfs mount.
    pub fn is_ferryfs(&self) -> bool {
        self.fstype == FSTYPE
    }
}

impl From<Mount> for MountEntry {
    fn from(mount: Mount) -> MountEntry {
        let user = (mount.super_options.split(','))
            .find_map(|option| option.strip_prefix("user_id=")?.parse().ok());
        MountEntry {
            id: mount.id,
            dev: mount.dev,
            root: mount.root,
            user,
            mountpoint: mount.mount_point,
            fstype: mount.fs_type.into_bytes(),
            source: mount.source.into(),
        }
    }
}

/// Returns all mounts in `mountinfo` that no later mount at the same place hides. It skips lines
/// that it cannot parse.
pub fn parse(mountinfo: &[u8]) -> Vec<MountEntry> {
    let mut mounts: Vec<MountEntry> = Vec::new();
    for entry in sys::mounts::parse(mountinfo)
        .into_iter()
        .map(MountEntry::from)
    {
        mounts.retain(|earlier| earlier.mountpoint != entry.mountpoint);
        mounts.push(entry);
    }
    mounts
}

/// Returns all mounts that this process sees.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn read() -> io::Result<Vec<MountEntry>> {
    fs::read(MOUNTINFO).map(|bytes| parse(&bytes))
}

/// Returns the innermost of `mounts` that holds `path`, which is absolute and without symbolic
/// links.
pub fn holding<'a>(mounts: &'a [MountEntry], path: &Path) -> Option<&'a MountEntry> {
    mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.mountpoint))
        .max_by_key(|mount| mount.mountpoint.as_os_str().len())
}

/// Returns `path` as the mount table spells it: absolute, without symbolic links. It also works for
/// a mount point without a daemon, which itself is not accessible.
///
/// # Errors
/// If `path` is empty, or is relative and the working directory is gone.
pub fn resolve(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    if let Ok(resolved) = fs::canonicalize(&path) {
        return Ok(resolved);
    }
    match (path.parent().map(fs::canonicalize), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => Ok(parent.join(name)),
        _ => Ok(path),
    }
}

/// Returns the mount that a command refers to: the one that contains `wanted`; without it, the one
/// that contains the working directory, or this user's only one.
///
/// # Errors
/// If there is none, or several and none is named.
pub fn find(wanted: Option<&Path>) -> Result<MountEntry, Failure> {
    let all =
        read().map_err(|error| Failure::failed(format!("cannot read {MOUNTINFO}: {error}")))?;
    let wanted = match wanted {
        None => None,
        Some(path) => Some(resolve(path).map_err(|error| {
            Failure::failed(format!("cannot look at {}: {error}", path.escaped()))
        })?),
    };
    let here = std::env::current_dir().ok();
    let user = nix::unistd::geteuid().as_raw();
    choose(&all, wanted.as_deref(), here.as_deref(), user).cloned()
}

/// Returns the mount of the whole file system that contains a path, also if a bind mount of a part
/// of it leads there.
fn of_path<'a>(all: &'a [MountEntry], path: &Path) -> Option<&'a MountEntry> {
    let innermost = holding(all, path).filter(|mount| mount.is_ferryfs())?;
    let whole =
        (all.iter()).find(|mount| mount.dev == innermost.dev && mount.root == Path::new("/"));
    Some(whole.unwrap_or(innermost))
}

fn choose<'a>(
    all: &'a [MountEntry],
    wanted: Option<&Path>,
    here: Option<&Path>,
    user: u32,
) -> Result<&'a MountEntry, Failure> {
    if let Some(wanted) = wanted {
        return of_path(all, wanted).ok_or_else(|| no_mount_at(all, wanted, user));
    }
    if let Some(found) = here.and_then(|here| of_path(all, here)) {
        return Ok(found);
    }
    let own = belonging(all, user);
    // Root may command the daemons of all users, but its own come first.
    let (own, is_root) = match own.is_empty() && user == 0 {
        true => (whole(all, |_| true), true),
        false => (own, user == 0),
    };
    match own[..] {
        [only] => Ok(only),
        [] => Err(none_at_all(all, is_root)),
        _ => Err(Failure::failed("there are several ferryfs mounts")
            .hint(format!("name one of them: {}", list(&own)))),
    }
}

/// Returns the ferryfs mounts that this user may command, each file system once: its own, and all
/// of them for root.
///
/// # Errors
/// If the table cannot be read.
pub fn commanded() -> io::Result<Vec<MountEntry>> {
    let all = read()?;
    let found = match nix::unistd::geteuid().as_raw() {
        0 => whole(&all, |_| true),
        user => belonging(&all, user),
    };
    Ok(found.into_iter().cloned().collect())
}

/// Returns the ferryfs mount that the working directory is in.
pub fn here() -> Option<MountEntry> {
    let here = std::env::current_dir().ok()?;
    of_path(&read().ok()?, &here).cloned()
}

/// Returns the ferryfs mounts of a user, each file system once.
fn belonging(all: &[MountEntry], user: u32) -> Vec<&MountEntry> {
    whole(all, |mount| mount.user.is_none_or(|owner| owner == user))
}

/// Returns the ferryfs mounts that are `wanted`, each file system once.
fn whole(all: &[MountEntry], wanted: impl Fn(&MountEntry) -> bool) -> Vec<&MountEntry> {
    let mut found: Vec<&MountEntry> = Vec::new();
    for mount in all
        .iter()
        .filter(|mount| mount.is_ferryfs() && wanted(mount))
    {
        match found.iter_mut().find(|other| other.dev == mount.dev) {
            None => found.push(mount),
            // A bind mount of it may precede it in the table.
            Some(other) if other.root != Path::new("/") => *other = mount,
            Some(_) => {}
        }
    }
    found
}

/// Returns whether something is mounted at `path` itself. An unreadable table counts as that.
pub fn is_mount_point(path: &Path) -> bool {
    let path = resolve(path).unwrap_or_else(|_| path.into());
    read().map_or(true, |all| all.iter().any(|mount| mount.mountpoint == path))
}

/// Returns whether a command of this user without a path can refer to a mount: one of its own, and
/// for root any. An unreadable table counts as having one.
pub fn has_any() -> bool {
    let user = nix::unistd::geteuid().as_raw();
    read().map_or(true, |all| is_any_meant(&all, user))
}

fn is_any_meant(all: &[MountEntry], user: u32) -> bool {
    match user {
        0 => all.iter().any(MountEntry::is_ferryfs),
        _ => !belonging(all, user).is_empty(),
    }
}

fn none_at_all(all: &[MountEntry], is_root: bool) -> Failure {
    let others = whole(all, |_| true).len();
    let message = match others {
        0 => "there is no ferryfs mount".to_owned(),
        _ if is_root => "there is no ferryfs mount".to_owned(),
        _ => "there is no ferryfs mount of yours, only of other users".to_owned(),
    };
    Failure::failed(message).hint("mount one with `ferryfs mount DRIVE MOUNTPOINT`")
}

fn no_mount_at(all: &[MountEntry], wanted: &Path, user: u32) -> Failure {
    let failure = Failure::failed(format!("{} is not a ferryfs mount", wanted.escaped()));
    let own = belonging(all, user);
    match own.is_empty() {
        false => failure.hint(format!("these are: {}", list(&own))),
        true => failure.hint("there is none; mount one with `ferryfs mount DRIVE MOUNTPOINT`"),
    }
}

fn list(mounts: &[&MountEntry]) -> String {
    let names: Vec<String> = mounts
        .iter()
        .map(|mount| quoted(&mount.mountpoint))
        .collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    const TABLE: &[u8] = b"\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
90 22 0:50 / /home/me/lab rw,nosuid,nodev,relatime shared:7 master:2 - fuse.ferryfs /media/me/HDD rw,user_id=1000\n\
91 22 0:51 / /mnt/two\\040words\\134n\\011\\043 rw - fuse.ferryfs /media/a\\040b rw\n\
92 22 0:52 / /mnt/ssh rw - fuse.sshfs host:/ rw\n\
broken line\n\
93 22 0:53 / /mnt/cut rw -\n";

    #[test]
    fn the_table_is_read_with_escapes_undone_and_broken_lines_passed_over() {
        let mounts = parse(TABLE);
        assert_eq!(mounts.len(), 4);
        assert_eq!(mounts[1].mountpoint, Path::new("/home/me/lab"));
        assert_eq!(mounts[1].source, Path::new("/media/me/HDD"));
        assert_eq!(
            mounts[2].mountpoint.as_os_str().as_bytes(),
            b"/mnt/two words\\n\t#"
        );
        assert_eq!(mounts[2].source, Path::new("/media/a b"));
        assert_eq!(mounts.iter().filter(|m| m.is_ferryfs()).count(), 2);
    }

    #[test]
    fn what_only_looks_like_an_escape_stays() {
        for text in ["a\\", "a\\04", "a\\999", "a\\777"] {
            let table = format!("1 0 0:1 / {text} rw - ext4 {text} rw");
            let mounts = parse(table.as_bytes());
            assert_eq!(mounts[0].mountpoint, Path::new(text));
            assert_eq!(mounts[0].source, Path::new(text));
        }
    }

    #[test]
    fn a_later_mount_hides_an_earlier_one_at_the_same_place() {
        let mounts =
            parse(b"1 0 0:1 / /m rw - fuse.ferryfs /old rw\n2 0 0:2 / /m rw - tmpfs none rw\n");
        assert_eq!(mounts.len(), 1);
        assert!(!mounts[0].is_ferryfs());
    }

    fn chosen(
        all: &[MountEntry],
        wanted: Option<&str>,
        here: &str,
        user: u32,
    ) -> Result<u64, Failure> {
        let wanted = wanted.map(Path::new);
        choose(all, wanted, Some(Path::new(here)), user).map(|mount| mount.id)
    }

    #[test]
    fn the_only_mount_of_a_user_needs_no_name_and_several_do() {
        let all = parse(
            b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
              90 22 0:50 / /home/me/lab rw - fuse.ferryfs /hdd rw,user_id=1000,group_id=1000\n\
              91 22 0:51 / /home/you/lab rw - fuse.ferryfs /nas rw,user_id=1001,group_id=1001\n\
              92 22 0:52 / /a rw - fuse.ferryfs /a1 rw,user_id=1002\n\
              93 22 0:53 / /b rw - fuse.ferryfs /b1 rw,user_id=1002\n",
        );
        assert_eq!(chosen(&all, None, "/home/me", 1000).unwrap(), 90);
        assert_eq!(chosen(&all, None, "/", 1001).unwrap(), 91);
        let several = chosen(&all, None, "/", 1002).unwrap_err();
        assert_eq!(several.hint.unwrap(), "name one of them: /a, /b");
        let none = chosen(&all, None, "/", 1003).unwrap_err();
        assert!(none.message.contains("only of other users"), "{none}");
        assert!(chosen(&all, None, "/", 0).is_err(), "root is asked which");
        assert!(
            is_any_meant(&all, 0),
            "no daemon without a mount is picked instead"
        );
        assert!(
            !is_any_meant(&all, 1003),
            "other users' mounts are not meant"
        );
        assert_eq!(chosen(&all[..2], None, "/", 0).unwrap(), 90);
        let empty = chosen(&all[..1], None, "/", 0).unwrap_err();
        assert_eq!(empty.message, "there is no ferryfs mount");
    }

    #[test]
    fn the_working_directory_tells_which_mount_is_meant() {
        let all = parse(TABLE);
        assert_eq!(chosen(&all, None, "/home/me/lab/deep/down", 7).unwrap(), 90);
        let named = all[2].mountpoint.to_str();
        assert_eq!(
            chosen(&all, named, "/home/me/lab", 7).unwrap(),
            91,
            "a name counts more"
        );
    }

    #[test]
    fn a_path_inside_a_mount_means_that_mount() {
        let all = parse(TABLE);
        assert_eq!(chosen(&all, Some("/home/me/lab"), "/", 0).unwrap(), 90);
        assert_eq!(chosen(&all, Some("/home/me/lab/a/b"), "/", 0).unwrap(), 90);
        let other = chosen(&all, Some("/mnt/ssh"), "/", 0).unwrap_err();
        assert!(other.hint.unwrap().starts_with("these are: "));
    }

    #[test]
    fn a_bind_mount_of_a_part_means_the_whole_and_counts_once() {
        let all = parse(
            b"80 22 0:50 /app /srv/app rw - fuse.ferryfs /hdd rw,user_id=0\n\
              90 22 0:50 / /lab rw - fuse.ferryfs /hdd rw,user_id=0\n",
        );
        assert_eq!(chosen(&all, Some("/srv/app/x"), "/", 0).unwrap(), 90);
        assert_eq!(chosen(&all, None, "/", 0).unwrap(), 90);
    }
}
