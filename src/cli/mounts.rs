//! Which ferryfs mounts there are, from `/proc/self/mountinfo` (format: proc_pid_mountinfo(5)).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::exit::Failure;
use super::render::quoted;
use crate::sys;
use crate::sys::mounts::Mount;

/// The type that the kernel shows for our mounts.
pub const FSTYPE: &[u8] = b"fuse.ferryfs";

/// Where the kernel lists the mounts of this process.
const MOUNTINFO: &str = "/proc/self/mountinfo";

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// The kernel's number of it; another mount at the same place has another one.
    pub id: u64,
    /// Where it is.
    pub mountpoint: PathBuf,
    /// Its type, as in `ext4` or `fuse.sshfs`.
    pub fstype: Vec<u8>,
    /// What is mounted; of a ferryfs mount its backend's directory.
    pub source: PathBuf,
}

impl MountEntry {
    /// Whether it is one of ours.
    pub fn is_ferryfs(&self) -> bool {
        self.fstype == FSTYPE
    }
}

impl From<Mount> for MountEntry {
    fn from(mount: Mount) -> MountEntry {
        MountEntry {
            id: mount.id,
            mountpoint: mount.mount_point,
            fstype: mount.fs_type.into_bytes(),
            source: mount.source.into(),
        }
    }
}

/// All mounts that `mountinfo` lists and that no later mount at the same place hides. Lines that make no sense are
/// passed over.
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

/// All mounts that this process sees.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn read() -> io::Result<Vec<MountEntry>> {
    fs::read(MOUNTINFO).map(|bytes| parse(&bytes))
}

/// The innermost of `mounts` that holds `path`, which is absolute and without symbolic links.
pub fn holding<'a>(mounts: &'a [MountEntry], path: &Path) -> Option<&'a MountEntry> {
    mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.mountpoint))
        .max_by_key(|mount| mount.mountpoint.as_os_str().len())
}

/// `path` as the mount table spells it: absolute, without symbolic links. Works for a mount point whose daemon is gone,
/// which itself cannot be looked into.
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

/// The mount that a command is meant for: the one at `wanted`, or the only one.
///
/// # Errors
/// If there is none, or several and none is named.
pub fn find(wanted: Option<&Path>) -> Result<MountEntry, Failure> {
    let all =
        read().map_err(|error| Failure::failed(format!("cannot read {MOUNTINFO}: {error}")))?;
    let wanted = match wanted {
        None => None,
        Some(path) => Some(resolve(path).map_err(|error| {
            Failure::failed(format!("cannot look at {}: {error}", path.display()))
        })?),
    };
    choose(&all, wanted.as_deref()).cloned()
}

fn choose<'a>(all: &'a [MountEntry], wanted: Option<&Path>) -> Result<&'a MountEntry, Failure> {
    let mut ours = all.iter().filter(|mount| mount.is_ferryfs());
    let Some(wanted) = wanted else {
        return match (ours.next(), ours.next()) {
            (Some(only), None) => Ok(only),
            (None, _) => Err(Failure::failed("there is no ferryfs mount")
                .hint("mount one with `ferryfs mount BACKEND MOUNTPOINT`")),
            (Some(_), Some(_)) => Err(Failure::failed("there are several ferryfs mounts")
                .hint(format!("name one of them: {}", list(all)))),
        };
    };
    if let Some(found) = ours.clone().find(|mount| mount.mountpoint == wanted) {
        return Ok(found);
    }
    let failure = Failure::failed(format!("{} is not a ferryfs mount", wanted.display()));
    Err(
        match holding(all, wanted).filter(|mount| mount.is_ferryfs()) {
            Some(outer) => failure.hint(format!(
                "it is inside of one: use {}",
                quoted(&outer.mountpoint)
            )),
            None if ours.next().is_some() => failure.hint(format!("these are: {}", list(all))),
            None => {
                failure.hint("there is none; mount one with `ferryfs mount BACKEND MOUNTPOINT`")
            }
        },
    )
}

fn list(all: &[MountEntry]) -> String {
    let ours = all.iter().filter(|mount| mount.is_ferryfs());
    let names: Vec<String> = ours.map(|mount| quoted(&mount.mountpoint)).collect();
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

    #[test]
    fn the_only_mount_needs_no_name_and_several_do() {
        let all = parse(TABLE);
        assert_eq!(
            choose(&all[..2], None).unwrap().source,
            Path::new("/media/me/HDD")
        );
        let several = choose(&all, None).unwrap_err();
        assert!(several.hint.unwrap().contains("/home/me/lab, '/mnt/two"));
        let none = choose(&all[..1], None).unwrap_err();
        assert!(none.message.contains("no ferryfs mount"));
    }

    #[test]
    fn a_path_inside_a_mount_is_told_its_mount() {
        let all = parse(TABLE);
        let found = choose(&all, Some(Path::new("/home/me/lab"))).unwrap();
        assert_eq!(found.id, 90);
        let inside = choose(&all, Some(Path::new("/home/me/lab/sub"))).unwrap_err();
        assert_eq!(
            inside.hint.unwrap(),
            "it is inside of one: use /home/me/lab"
        );
        let other = choose(&all, Some(Path::new("/mnt/ssh"))).unwrap_err();
        assert!(other.hint.unwrap().starts_with("these are: "));
    }
}
