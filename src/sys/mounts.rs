//! The mount table of this process, from `/proc/self/mountinfo` (format: proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Statx, StatxAttributes, StatxFlags};

use crate::core::ForeignText;

/// Asks statx for a mount number that the kernel never reuses (Linux 6.8).
const UNIQUE_MOUNT_ID: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// One line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Number of the mount, unique while it exists.
    pub id: u64,
    /// Number of the mount that this one is mounted on.
    pub parent: u64,
    /// `st_dev` of the files on it.
    pub dev: u64,
    /// The mounted directory of the file system: `/`, or another for a bind mount.
    pub root: PathBuf,
    /// The mount point.
    pub mount_point: PathBuf,
    /// Options of this mount (`rw,noatime`).
    pub options: String,
    /// Type of the file system (`exfat`, `fuseblk`, `nfs4`).
    pub fs_type: String,
    /// The mounted source: a device node, `host:/export`, or any word.
    pub source: OsString,
    /// Options of the file system, shared by all its mounts.
    pub super_options: String,
}

impl Mount {
    /// Returns whether this mount or the file system refuses writes.
    pub fn is_read_only(&self) -> bool {
        self.is_read_only_itself() || self.is_file_system_read_only()
    }

    /// Returns whether this mount refuses writes, whatever other mounts of the file system do.
    pub fn is_read_only_itself(&self) -> bool {
        has_ro(&self.options)
    }

    /// Returns whether the file system refuses writes, by whatever mount.
    pub fn is_file_system_read_only(&self) -> bool {
        has_ro(&self.super_options)
    }

    /// Returns whether other machines may access the same files: a network file system, a cluster
    /// file system, or an unknown type.
    ///
    /// The type's name is the only evidence. An unknown type counts as shared unless it is on a
    /// block device. A disk taken for a share costs a few small files; a share taken for a disk may
    /// get two writers at once.
    pub fn is_shared(&self) -> bool {
        let fs_type = self.fs_type.as_str();
        if CLUSTERED.contains(&fs_type) {
            return true;
        }
        !LOCAL.contains(&fs_type) && self.block_device().is_none()
    }
}

impl Mount {
    /// Returns the number of the block device that the file system is on, if that device exists.
    /// The `st_dev` of a file system behind FUSE may be no device's number; then the mount's source
    /// decides.
    pub fn block_device(&self) -> Option<u64> {
        use std::os::unix::fs::{FileTypeExt, MetadataExt};
        if super::superblock::device_exists(self.dev) {
            return Some(self.dev);
        }
        let source = Path::new(&self.source);
        if !self.fs_type.starts_with("fuse") || !source.starts_with("/dev") {
            return None;
        }
        let node = fs::metadata(source).ok()?;
        let is_there =
            node.file_type().is_block_device() && super::superblock::device_exists(node.rdev());
        is_there.then(|| node.rdev())
    }
}

fn has_ro(options: &str) -> bool {
    options.split(',').any(|option| option == "ro")
}

/// Types that several machines mount from one block device.
const CLUSTERED: [&str; 3] = ["gfs2", "ocfs2", "vmfs"];

/// Types without a block device of their own that no other machine sees. `fuseblk` is FUSE on a
/// disk (exfat-fuse, ntfs-3g).
const LOCAL: [&str; 15] = [
    "bcachefs",
    "btrfs",
    "ecryptfs",
    "fuse.bindfs",
    "fuse.encfs",
    "fuse.exfat-fuse",
    "fuse.gocryptfs",
    "fuse.mergerfs",
    "fuse.unionfs",
    "fuseblk",
    "overlay",
    "ramfs",
    "rootfs",
    "tmpfs",
    "zfs",
];

/// Returns all mounts that this process sees.
///
/// # Errors
/// If the table cannot be read.
pub fn mounts() -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// Returns the mount that `path` is on. It follows links in `path` where it can.
///
/// Resolving `path` asks the file systems on the way, so this may wait for one that does not
/// answer.
///
/// # Errors
/// If the table cannot be read.
pub fn find_mount(path: &Path) -> io::Result<Option<Mount>> {
    // A drive that was pulled out refuses to resolve its own root. The path is then used as it is
    // spelled.
    let path = fs::canonicalize(path).or_else(|_| std::path::absolute(path))?;
    Ok(covering(&mounts()?, &path).cloned())
}

/// Returns the mount of `table` that the absolute path `path`, free of links, is on.
///
/// It walks down from mount to mount as the kernel does, so that it never returns a mount that a
/// later one hides.
pub fn covering<'a>(table: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let over = |mount: &&Mount| path.starts_with(&mount.mount_point);
    let is_top = |mount: &&Mount| {
        table
            .iter()
            .all(|m| m.id != mount.parent || m.id == mount.id)
    };
    let by_depth = |mount: &&Mount| mount.mount_point.as_os_str().len();
    let start = table
        .iter()
        .filter(|m| m.mount_point == Path::new("/"))
        .find(is_top);
    let Some(mut current) = start else {
        // In a chroot whose root is no mount point the topmost mounts have no common parent in the
        // table.
        return table.iter().filter(over).max_by_key(by_depth);
    };
    // A table in which a mount is its own ancestor is broken; the bound ends the walk in any case.
    for _ in 0..table.len() {
        let next = table
            .iter()
            .filter(|m| m.parent == current.id && m.id != current.id)
            .filter(over)
            .min_by_key(by_depth);
        match next {
            Some(mount) => current = mount,
            None => break,
        }
    }
    Some(current)
}

/// Returns the mounts of `table` that no other mount hides.
pub fn visible(table: &[Mount]) -> Vec<&Mount> {
    table
        .iter()
        .filter(|mount| covering(table, &mount.mount_point).is_some_and(|top| top.id == mount.id))
        .collect()
}

/// The location of a file: its mount and its file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Place {
    /// Number of the mount through which the file was reached. Before Linux 6.8 the kernel may
    /// reuse the number of a mount that is gone; before 5.8 it is always 0.
    pub mount: u64,
    /// `st_dev`.
    pub device: u64,
}

/// Returns the mount through which `file` was reached, and its file system. It asks the kernel
/// only, never the file system, so an answer does not show that the file system is alive.
///
/// # Errors
/// What the system said.
pub fn place_of(file: impl AsFd) -> io::Result<Place> {
    look(file, StatxFlags::empty()).map(|found| place(&found))
}

/// The facts that the kernel has about a file: location, inode number, type, and owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelFacts {
    /// The location.
    pub place: Place,
    /// `st_ino`.
    pub inode: u64,
    /// Whether this is the directory that its mount shows at its mount point. Always `false` before
    /// Linux 5.8.
    pub is_mount_root: bool,
    /// Type and permission bits, as in `st_mode`.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// Returns the facts of `file`. The kernel asks the file system only for facts that it does not
/// have itself.
///
/// # Errors
/// What the system said.
pub fn facts_of(file: impl AsFd) -> io::Result<KernelFacts> {
    let wanted =
        StatxFlags::TYPE | StatxFlags::MODE | StatxFlags::INO | StatxFlags::UID | StatxFlags::GID;
    let found = look(file, wanted)?;
    Ok(KernelFacts {
        place: place(&found),
        inode: found.stx_ino,
        is_mount_root: is_mount_root(&found),
        mode: found.stx_mode.into(),
        uid: found.stx_uid,
        gid: found.stx_gid,
    })
}

/// Returns the location of `file`, and whether it is the directory that its mount shows at its
/// mount point. Asks the kernel only.
///
/// # Errors
/// What the system said.
pub fn mount_root(file: impl AsFd) -> io::Result<(Place, bool)> {
    let found = look(file, StatxFlags::empty())?;
    Ok((place(&found), is_mount_root(&found)))
}

/// Returns whether something is mounted at the directory `dir`, which is below `root`. Before Linux
/// 5.8, where the kernel does not say, another file system than that of `root` counts as mounted
/// there.
///
/// # Errors
/// What the system said.
pub fn is_mount_point(root: impl AsFd, dir: impl AsFd) -> io::Result<bool> {
    let found = look(dir, StatxFlags::empty())?;
    match found
        .stx_attributes_mask
        .contains(StatxAttributes::MOUNT_ROOT)
    {
        true => Ok(is_mount_root(&found)),
        false => Ok(place(&found).device != place_of(root)?.device),
    }
}

fn is_mount_root(found: &Statx) -> bool {
    found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
}

fn place(found: &Statx) -> Place {
    Place {
        mount: found.stx_mnt_id,
        device: libc::makedev(found.stx_dev_major, found.stx_dev_minor),
    }
}

/// Calls statx(2) once, for the mount and the fields `wanted`.
fn look(file: impl AsFd, wanted: StatxFlags) -> io::Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let wanted = wanted | UNIQUE_MOUNT_ID | StatxFlags::MNT_ID;
    Ok(rustix::fs::statx(file, c"", flags, wanted)?)
}

/// Parses the table. It skips lines that do not have the format.
pub fn parse(table: &[u8]) -> Vec<Mount> {
    table
        .split(|&b| b == b'\n')
        .filter_map(parse_line)
        .collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&b| b == b' ');
    let mut next = || fields.next();
    let id = number(next()?)?;
    let parent = number(next()?)?;
    let dev = next()?;
    let colon = dev.iter().position(|&b| b == b':')?;
    let (major, minor) = (number(&dev[..colon])?, number(&dev[colon + 1..])?);
    let root = unescape(next()?);
    let mount_point = unescape(next()?);
    let options = text(next()?);
    // Optional fields, any number of them, end with a lone dash.
    while next()? != b"-" {}
    let fs_type = text(next()?);
    let source = unescape(next()?);
    let super_options = text(next().unwrap_or_default());
    Some(Mount {
        id,
        parent,
        dev: libc::makedev(u32::try_from(major).ok()?, u32::try_from(minor).ok()?),
        root: OsString::from_vec(root).into(),
        mount_point: OsString::from_vec(mount_point).into(),
        options,
        fs_type,
        source: OsString::from_vec(source),
        super_options,
    })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn text(field: &[u8]) -> String {
    unescape(field).to_text()
}

/// Undoes the kernel's escapes: a backslash and three octal digits for space, tab, newline,
/// backslash and `#`.
pub fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        match (first, octal(tail)) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    bytes
}

fn octal(digits: &[u8]) -> Option<u8> {
    let digits = digits.get(..3)?;
    digits.iter().try_fold(0u8, |value, &digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(digit - b'0'),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 27 8:17 / /media/me/My\\040Disk\\134\\011x rw,nosuid shared:2 master:9 - fuseblk /dev/sdb1 rw,user_id=0
41 27 0:50 /sub /mnt/nas ro,relatime - nfs4 nas:/export rw,vers=4.2
nonsense
42 27 0:51 / /cut short
43 27 0:52 / /a/b rw - tmpfs none rw
44 27 0:53 / /a rw - tmpfs none ro
45 44 0:54 / /a rw - tmpfs stacked rw
";

    fn fs_type_and_source(path: &str) -> (String, OsString) {
        let table = parse(TABLE);
        let mount = covering(&table, Path::new(path)).unwrap();
        (mount.fs_type.clone(), mount.source.clone())
    }

    #[test]
    fn escapes_in_names_are_undone_and_broken_lines_left_out() {
        let table = parse(TABLE);
        assert_eq!(table.len(), 6);
        let disk = &table[1];
        assert_eq!(disk.mount_point, Path::new("/media/me/My Disk\\\tx"));
        assert_eq!(disk.dev, libc::makedev(8, 17));
        assert_eq!(disk.super_options, "rw,user_id=0");
        assert_eq!(table[2].root, Path::new("/sub"));
        assert_eq!(unescape(b"a\\9zz\\777\\04"), b"a\\9zz\\777\\04");
    }

    #[test]
    fn read_only_is_seen_on_the_mount_and_on_the_file_system() {
        let table = parse(TABLE);
        let read_only: Vec<bool> = table.iter().map(Mount::is_read_only).collect();
        assert_eq!(read_only, [false, false, true, false, true, false]);
        assert!(table[2].is_read_only_itself() && !table[2].is_file_system_read_only());
        assert!(table[4].is_file_system_read_only() && !table[4].is_read_only_itself());
    }

    #[test]
    fn a_share_is_told_from_a_disk() {
        let shared = |fs_type: &str| {
            let line = format!("40 27 0:999 / /x rw - {fs_type} y rw\n");
            parse(line.as_bytes())[0].is_shared()
        };
        for fs_type in ["nfs4", "cifs", "smb3", "ceph", "fuse.sshfs", "9p", "gfs2"] {
            assert!(shared(fs_type), "{fs_type}");
        }
        for fs_type in ["fuseblk", "btrfs", "zfs", "overlay", "tmpfs"] {
            assert!(!shared(fs_type), "{fs_type}");
        }
    }

    #[test]
    fn a_drive_behind_fuse_is_known_by_the_device_that_is_mounted() {
        use std::os::unix::fs::MetadataExt;
        let devices = fs::read_dir("/sys/dev/block")
            .into_iter()
            .flatten()
            .flatten();
        let Some((node, dev)) = devices
            .filter_map(|entry| {
                let number = entry.file_name().into_string().ok()?;
                let (major, minor) = number.split_once(':')?;
                let dev = libc::makedev(major.parse().ok()?, minor.parse().ok()?);
                Some((super::super::superblock::device_node(dev)?, dev))
            })
            .next()
        else {
            return;
        };
        let mount = |fs_type: &str, source: &str| {
            let line = format!("40 27 0:999 / /x rw - {fs_type} {source} rw\n");
            parse(line.as_bytes())[0].clone()
        };
        let node = node.to_str().unwrap();
        assert_eq!(fs::metadata(node).unwrap().rdev(), dev);
        assert_eq!(mount("fuse.exfat", node).block_device(), Some(dev));
        assert!(!mount("fuse.exfat", node).is_shared());
        assert_eq!(mount("tmpfs", node).block_device(), None);
        assert_eq!(mount("fuse.exfat", "/dev/null").block_device(), None);
        assert_eq!(mount("fuse.sshfs", "host:/").block_device(), None);
    }

    #[test]
    fn a_path_is_on_the_innermost_mount_by_whole_names() {
        assert_eq!(fs_type_and_source("/mnt/nas/x").0, "nfs4");
        assert_eq!(fs_type_and_source("/mnt/nasty").0, "ext4");
        assert_eq!(fs_type_and_source("/").0, "ext4");
    }

    #[test]
    fn a_mount_hidden_under_a_later_one_is_not_found() {
        assert_eq!(fs_type_and_source("/a/b/c").1, "stacked");
    }

    #[test]
    fn what_another_mount_hides_is_not_visible() {
        let table = parse(TABLE);
        let sources: Vec<_> = visible(&table).iter().map(|m| m.source.clone()).collect();
        assert_eq!(sources, ["/dev/vda", "/dev/sdb1", "nas:/export", "stacked"]);
    }

    #[test]
    fn mounts_have_different_numbers() {
        let number = |path: &str| place_of(fs::File::open(path).unwrap()).unwrap().mount;
        assert_eq!(number("/proc/self"), number("/proc/1"));
        assert_ne!(number("/proc/self"), number("/dev/null"));
    }

    #[test]
    fn this_process_finds_what_its_own_files_are_on() {
        use std::os::unix::fs::MetadataExt;
        let mount = find_mount(Path::new("/proc/self")).unwrap().unwrap();
        assert_eq!(mount.fs_type, "proc");
        assert_eq!(mount.dev, fs::metadata("/proc/self/").unwrap().dev());
    }
}
