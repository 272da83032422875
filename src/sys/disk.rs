//! What the kernel counts of a disk (`Documentation/block/stat.rst`).

use std::path::{Path, PathBuf};

use super::superblock::by_number;

/// A sector of the statistics, whatever the disk's own sectors are.
const SECTOR: u64 = 512;

/// The place of the sectors that were read among the numbers.
const SECTORS_READ: usize = 2;

/// How many devices may be on top of each other: LUKS on LVM on RAID are three.
const DEEPEST: usize = 8;

/// A whole disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its directory in sysfs.
    dir: PathBuf,
}

impl Disk {
    /// Returns the disk that the block device with this number is, or is a partition of: all
    /// partitions share its head. Returns `None` if there is no such device.
    pub fn of(dev: u64) -> Option<Disk> {
        Disk::at(&by_number(dev))
    }

    fn at(device: &Path) -> Option<Disk> {
        let dir = std::fs::canonicalize(device).ok()?;
        let dir = match dir.join("partition").exists() {
            true => dir.parent()?.to_owned(),
            false => dir,
        };
        Some(Disk { dir })
    }

    /// Returns whether what is read from one of them is read from the other, too: LUKS, LVM and
    /// RAID are on disks that they name as their slaves.
    pub fn shares_with(&self, other: &Disk) -> bool {
        let ours = self.with_those_below(DEEPEST);
        let theirs = other.with_those_below(DEEPEST);
        ours.iter().any(|disk| theirs.contains(disk))
    }

    fn with_those_below(&self, deepest: usize) -> Vec<Disk> {
        let mut disks = vec![self.clone()];
        let slaves = std::fs::read_dir(self.dir.join("slaves"));
        for slave in slaves.into_iter().flatten().flatten() {
            if let Some(disk) = Disk::at(&slave.path()).filter(|_| deepest > 0) {
                disks.extend(disk.with_those_below(deepest - 1));
            }
        }
        disks
    }

    /// Returns the bytes that have been read from it; `None` once it is gone.
    pub fn bytes_read(&self) -> Option<u64> {
        bytes_read(&std::fs::read_to_string(self.dir.join("stat")).ok()?)
    }
}

fn bytes_read(statistics: &str) -> Option<u64> {
    let sectors: u64 = (statistics.split_ascii_whitespace().nth(SECTORS_READ)?)
        .parse()
        .ok()?;
    Some(sectors.saturating_mul(SECTOR))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_number_is_of_sectors_of_512_bytes() {
        let text = "    4180      912   281706     2310     1200      800    64000     9100\n";
        assert_eq!(bytes_read(text), Some(281_706 * 512));
        assert_eq!(bytes_read(""), None);
        assert_eq!(bytes_read("1 2 x 4"), None);
    }

    #[test]
    fn a_mapped_device_shares_the_disks_below_it() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["sda/sda2", "sdb", "dm-0/slaves", "dm-1/slaves"] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        std::fs::write(at("sda/sda2/partition"), "2\n").unwrap();
        std::os::unix::fs::symlink(at("sda/sda2"), at("dm-0/slaves/sda2")).unwrap();
        std::os::unix::fs::symlink(at("dm-0"), at("dm-1/slaves/dm-0")).unwrap();
        let disk = |name: &str| Disk::at(&at(name)).unwrap();
        assert_eq!(disk("sda/sda2"), disk("sda"));
        assert!(disk("dm-1").shares_with(&disk("sda")));
        assert!(disk("sda").shares_with(&disk("dm-1")));
        assert!(disk("sda").shares_with(&disk("sda")));
        assert!(!disk("dm-1").shares_with(&disk("sdb")));
    }

    #[test]
    fn a_number_without_a_device_has_no_disk() {
        assert_eq!(Disk::of(u64::MAX), None);
    }
}
