//! The superblock of a block device: which file system is on it, and whether it was unmounted
//! cleanly.
//!
//! It is read straight from the device, so root or the group that owns disks can do it, with or
//! without udev. Nothing is written. The layouts are from "exFAT file system specification" (main
//! boot sector), "FAT: General Overview of On-Disk Format", and the kernel's
//! `Documentation/filesystems/ext4/super.rst`.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The number of bytes read: the superblock of ext4 begins at 1024 and has 1024 bytes.
const LOOKED_AT: usize = 2048;

/// The directory in which the kernel lists block devices by number.
const BY_NUMBER: &str = "/sys/dev/block";

/// A type of file system that this module recognizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// exFAT.
    Exfat,
    /// FAT12, FAT16 or FAT32.
    Fat,
    /// ext2, ext3 or ext4.
    Ext,
}

impl Kind {
    /// Returns the program that checks it, and the option that repairs without questions.
    pub fn checker(self) -> (&'static str, &'static str) {
        match self {
            Kind::Exfat => ("fsck.exfat", "-y"),
            Kind::Fat => ("fsck.fat", "-y"),
            Kind::Ext => ("e2fsck", "-y"),
        }
    }
}

/// The contents of a superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The type of the file system.
    pub kind: Kind,
    /// Its UUID or serial number, spelled as blkid(8) does.
    pub uuid: String,
    /// The flag for an unclean unmount or for errors found. Most drivers keep it set themselves
    /// while the file system is mounted: see [`Superblock::speaks_while_mounted`].
    pub dirty: bool,
}

impl Superblock {
    /// Returns whether `dirty` describes the time before the mount even while a file system of type
    /// `fs_type` is mounted. exFAT in the kernel sets the flag at the first change only, and ext4
    /// keeps its error flag. FAT in the kernel, and exFAT behind FUSE, set the flag when they
    /// mount.
    pub fn speaks_while_mounted(&self, fs_type: &str) -> bool {
        match self.kind {
            Kind::Exfat => fs_type == "exfat",
            Kind::Ext => fs_type.starts_with("ext"),
            Kind::Fat => false,
        }
    }
}

/// Parses the first bytes of a device; `None` if no known file system begins with them.
pub fn parse(bytes: &[u8]) -> Option<Superblock> {
    parse_exfat(bytes)
        .or_else(|| parse_ext(bytes))
        .or_else(|| parse_fat(bytes))
}

fn parse_exfat(bytes: &[u8]) -> Option<Superblock> {
    if bytes.get(3..11)? != b"EXFAT   " {
        return None;
    }
    let flags = u16::from_le_bytes(array(bytes, 106)?);
    Some(Superblock {
        kind: Kind::Exfat,
        uuid: serial(array(bytes, 100)?),
        // VolumeDirty. The bit beside it, MediaFailure, means that the medium itself is failing.
        dirty: flags & 0b110 != 0,
    })
}

fn parse_fat(bytes: &[u8]) -> Option<Superblock> {
    if bytes.get(510..512)? != [0x55, 0xaa] {
        return None;
    }
    // The extended boot record is further back in FAT32, whose tables may be larger.
    let record = match (bytes.get(82..87)?, bytes.get(54..58)?) {
        (b"FAT32", _) => 64,
        (_, b"FAT1") => 36,
        _ => return None,
    };
    Some(Superblock {
        kind: Kind::Fat,
        uuid: serial(array(bytes, record + 3)?),
        dirty: bytes.get(record + 1)? & 0b11 != 0,
    })
}

fn parse_ext(bytes: &[u8]) -> Option<Superblock> {
    const ERRORS: u16 = 2;
    let block = bytes.get(1024..)?;
    if u16::from_le_bytes(array(block, 0x38)?) != 0xef53 {
        return None;
    }
    let state = u16::from_le_bytes(array(block, 0x3a)?);
    let uuid = uuid::Uuid::from_bytes(array(block, 0x68)?);
    Some(Superblock {
        kind: Kind::Ext,
        uuid: uuid.to_string(),
        // The journal repairs an unclean unmount at the next mount; errors stay.
        dirty: state & ERRORS != 0,
    })
}

fn serial(bytes: [u8; 4]) -> String {
    let number = u32::from_le_bytes(bytes);
    format!("{:04X}-{:04X}", number >> 16, number & 0xffff)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// Returns whether the kernel has a block device of this number (`st_dev`) now. A drive that was
/// pulled out disappears from this list, although it is still in the mount table.
pub fn device_exists(dev: u64) -> bool {
    by_number(dev).exists()
}

pub(super) fn by_number(dev: u64) -> PathBuf {
    Path::new(BY_NUMBER).join(format!("{}:{}", libc::major(dev), libc::minor(dev)))
}

/// Returns the node of the block device with this number, if there is one.
pub fn device_node(dev: u64) -> Option<PathBuf> {
    let events = std::fs::read_to_string(by_number(dev).join("uevent")).ok()?;
    let name = events
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME="))?;
    let node = Path::new("/dev").join(name);
    // A node can be stale where no udev maintains them.
    let meta = std::fs::metadata(&node).ok()?;
    (meta.file_type().is_block_device() && meta.rdev() == dev).then_some(node)
}

/// A block device with the medium in it: `st_rdev`, and the sequence number of the disk. The kernel
/// gives each attached disk its own number and does not reuse it before the next boot (Linux 5.15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InsertedMedium {
    dev: u64,
    sequence: u64,
}

/// Returns the medium in the block device with this number; `None` if there is none, or if the
/// kernel is older. Needs no right to read the device.
pub fn medium(dev: u64) -> Option<InsertedMedium> {
    let dir = by_number(dev);
    // A partition uses the number of its disk, whose directory contains the partition's.
    let text = std::fs::read_to_string(dir.join("diskseq"))
        .or_else(|_| std::fs::read_to_string(std::fs::canonicalize(&dir)?.join("../diskseq")))
        .ok()?;
    let sequence = text.trim().parse().ok()?;
    Some(InsertedMedium { dev, sequence })
}

/// Returns whether an unmount removes the device: a loop device that mount(8) has set up.
pub fn vanishes_when_unmounted(dev: u64) -> bool {
    std::fs::read_to_string(by_number(dev).join("loop/autoclear"))
        .is_ok_and(|flag| flag.trim() == "1")
}

/// Returns the superblock of the block device with this number; `None` if it is of no known type.
///
/// # Errors
/// If there is no such device or this user may not read it.
pub fn read(dev: u64) -> io::Result<Option<Superblock>> {
    let node = device_node(dev).ok_or(io::ErrorKind::NotFound)?;
    let device = File::open(node)?;
    let mut bytes = [0; LOOKED_AT];
    device.read_exact_at(&mut bytes, 0)?;
    Ok(parse(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exfat(flags: u16) -> Vec<u8> {
        let mut bytes = vec![0; LOOKED_AT];
        bytes[3..11].copy_from_slice(b"EXFAT   ");
        bytes[100..104].copy_from_slice(&0xff23_fc9f_u32.to_le_bytes());
        bytes[106..108].copy_from_slice(&flags.to_le_bytes());
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        bytes
    }

    #[test]
    fn the_dirty_flag_of_exfat_is_read_and_the_serial_spelled_as_blkid_does() {
        let clean = parse(&exfat(0)).unwrap();
        assert_eq!((clean.kind, clean.dirty), (Kind::Exfat, false));
        assert_eq!(clean.uuid, "FF23-FC9F");
        assert!(parse(&exfat(2)).unwrap().dirty);
        assert!(parse(&exfat(4)).unwrap().dirty, "a failing medium");
        assert!(
            !parse(&exfat(1)).unwrap().dirty,
            "the second FAT being active"
        );
    }

    #[test]
    fn fat_and_ext_are_told_apart() {
        let mut fat = vec![0; LOOKED_AT];
        fat[510..512].copy_from_slice(&[0x55, 0xaa]);
        fat[82..87].copy_from_slice(b"FAT32");
        fat[65] = 1;
        fat[67..71].copy_from_slice(&[0x78, 0x56, 0x34, 0x12]);
        let found = parse(&fat).unwrap();
        assert_eq!(
            (found.kind, &*found.uuid, found.dirty),
            (Kind::Fat, "1234-5678", true)
        );

        let mut ext = vec![0; LOOKED_AT];
        ext[1024 + 0x38..][..2].copy_from_slice(&[0x53, 0xef]);
        ext[1024 + 0x3a] = 0;
        ext[1024 + 0x68..][..16].copy_from_slice(&[0x11; 16]);
        let found = parse(&ext).unwrap();
        assert_eq!(found.uuid, "11111111-1111-1111-1111-111111111111");
        assert!(!found.dirty, "its journal puts an unclean end right");
        ext[1024 + 0x3a] = 3;
        assert!(parse(&ext).unwrap().dirty, "errors stay");
    }

    #[test]
    fn garbage_and_short_reads_are_nothing() {
        assert_eq!(parse(&[]), None);
        assert_eq!(parse(&[0xff; 100]), None);
        assert_eq!(parse(&[0xff; LOOKED_AT]), None);
        assert_eq!(parse(&exfat(0)[..50]), None);
    }

    #[test]
    fn a_flag_that_the_driver_sets_itself_is_not_believed_while_mounted() {
        let exfat = parse(&exfat(2)).unwrap();
        assert!(exfat.speaks_while_mounted("exfat"));
        assert!(!exfat.speaks_while_mounted("fuseblk"));
    }

    #[test]
    fn a_device_that_is_not_there_has_no_node_and_no_medium() {
        let dev = libc::makedev(240, 77);
        assert_eq!(medium(dev), None);
        assert!(!device_exists(dev));
        assert_eq!(device_node(dev), None);
        assert!(read(dev).is_err());
    }
}
