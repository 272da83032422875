//! What a block device's first bytes tell of the file system on it: which one it is, and whether it was let go of in order.
//!
//! Read straight from the device, so root or the group that owns disks can do it, with or without udev. Nothing is written.
//! The layouts: "exFAT file system specification" (main boot sector), "FAT: General Overview of On-Disk Format", and the
//! kernel's `Documentation/filesystems/ext4/super.rst`.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// How much of a device is looked at, in bytes: the superblock of ext4 begins at 1024 and is as long.
const LOOKED_AT: usize = 2048;

/// The directory in which the kernel lists block devices by number.
const BY_NUMBER: &str = "/sys/dev/block";

/// A kind of file system that is known here.
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
    /// The program that checks it, with the option that has it repair what it can without asking.
    pub fn checker(self) -> (&'static str, &'static str) {
        match self {
            Kind::Exfat => ("fsck.exfat", "-y"),
            Kind::Fat => ("fsck.fat", "-y"),
            Kind::Ext => ("e2fsck", "-y"),
        }
    }
}

/// What a superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Which kind it is.
    pub kind: Kind,
    /// Its UUID or serial number, spelled as blkid(8) does.
    pub uuid: String,
    /// The flag that says that it was not let go of in order, or that errors were met. While it is mounted most drivers keep
    /// it set themselves: see [`Superblock::speaks_while_mounted`].
    pub dirty: bool,
}

impl Superblock {
    /// Whether `dirty` tells of the time before the mount even while a file system of type `fs_type` serves it: exFAT in the
    /// kernel sets the flag at the first change only, and ext4 keeps the note of errors. FAT in the kernel, and exFAT behind
    /// FUSE, set it when they mount.
    pub fn speaks_while_mounted(&self, fs_type: &str) -> bool {
        match self.kind {
            Kind::Exfat => fs_type == "exfat",
            Kind::Ext => fs_type.starts_with("ext"),
            Kind::Fat => false,
        }
    }
}

/// What `bytes`, the beginning of a device, are the beginning of; `None` if of nothing that is known here.
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
        // VolumeDirty. The bit beside it, MediaFailure, says that the medium itself is failing.
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
        // An unclean end is put right by its journal at the next mount; errors stay.
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

/// Whether the kernel has a block device of this number (`st_dev`) now. A drive that was pulled is gone from the list though
/// it still is in the mount table.
pub fn device_exists(dev: u64) -> bool {
    by_number(dev).exists()
}

fn by_number(dev: u64) -> PathBuf {
    Path::new(BY_NUMBER).join(format!("{}:{}", libc::major(dev), libc::minor(dev)))
}

/// The node of the block device with this number, if there is one.
pub fn device_node(dev: u64) -> Option<PathBuf> {
    let events = std::fs::read_to_string(by_number(dev).join("uevent")).ok()?;
    let name = events
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME="))?;
    let node = Path::new("/dev").join(name);
    // A node can be stale where nothing like udev looks after them.
    let meta = std::fs::metadata(&node).ok()?;
    (meta.file_type().is_block_device() && meta.rdev() == dev).then_some(node)
}

/// A block device with the medium that is in it: `st_rdev`, and the number that the kernel gives to each disk that is attached, and
/// to none again before the next boot (Linux 5.15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Medium {
    dev: u64,
    sequence: u64,
}

/// What is in the block device with this number; `None` if there is none, or the kernel is older. Needs no right to read it.
pub fn medium(dev: u64) -> Option<Medium> {
    let dir = by_number(dev);
    // A partition has it from its disk, whose directory it is in.
    let text = std::fs::read_to_string(dir.join("diskseq"))
        .or_else(|_| std::fs::read_to_string(std::fs::canonicalize(&dir)?.join("../diskseq")))
        .ok()?;
    let sequence = text.trim().parse().ok()?;
    Some(Medium { dev, sequence })
}

/// Whether the device goes away by itself when it is unmounted: a loop device that mount(8) has set up.
pub fn vanishes_when_unmounted(dev: u64) -> bool {
    std::fs::read_to_string(by_number(dev).join("loop/autoclear"))
        .is_ok_and(|flag| flag.trim() == "1")
}

/// What is on the block device with this number; `None` if it is nothing known here.
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
