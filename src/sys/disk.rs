//! What the kernel counts of a disk (`Documentation/block/stat.rst`).

use std::path::PathBuf;

use super::superblock::by_number;

/// A sector of the statistics, whatever the disk's own sectors are.
const SECTOR: u64 = 512;

/// The place of the sectors that were read among the numbers.
const SECTORS_READ: usize = 2;

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
        let dir = std::fs::canonicalize(by_number(dev)).ok()?;
        let dir = match dir.join("partition").exists() {
            true => dir.parent()?.to_owned(),
            false => dir,
        };
        Some(Disk { dir })
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
    fn a_number_without_a_device_has_no_disk() {
        assert_eq!(Disk::of(u64::MAX), None);
    }
}
