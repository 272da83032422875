//! The space that the backend needs for a batch. No I/O.
//!
//! A file takes whole units (clusters of exFAT, blocks), each name of a hard link one copy if the
//! backend has no links, a directory at least one unit. The check before a batch, `status` and the
//! free space of the mount use the same numbers.

/// How a backend allocates space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Allocation {
    /// Size of an allocation unit; 0 if it is unknown: then bytes are not rounded.
    pub unit: u64,
    /// The names of one file share its bytes.
    pub hard_links: bool,
}

impl Allocation {
    /// Returns the space of a file of `size` bytes.
    pub fn file(self, size: u64) -> u64 {
        match self.unit {
            0 | 1 => size,
            unit => size.div_ceil(unit).saturating_mul(unit),
        }
    }

    /// Returns the space of the copies of a changed file with `names` names.
    pub fn copies(self, size: u64, names: u32) -> u64 {
        let copies = match self.hard_links {
            true => names.min(1),
            false => names,
        };
        self.file(size).saturating_mul(copies.into())
    }

    /// Returns the space of a new directory whose entries take `entries` bytes.
    pub fn directory(self, entries: u64) -> u64 {
        match self.unit {
            0 => 0,
            _ => self.file(entries.max(1)),
        }
    }

    /// Returns the growth of directories that get new entries of `entries` bytes in total. Their
    /// last units are about half full, so this is the expected value, not the largest.
    pub fn growth(self, entries: u64) -> u64 {
        match self.unit {
            0 => 0,
            _ => self.file(entries),
        }
    }
}

/// Returns the bytes of a directory's entry for a name of `bytes` bytes: on exFAT 32 bytes each for
/// the file, its stream, and each 15 characters of the name. Other file systems take about as much
/// or less.
pub fn entry_bytes(bytes: usize) -> u64 {
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    bytes.div_ceil(15).saturating_add(2).saturating_mul(32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXFAT: Allocation = Allocation {
        unit: 32 << 10,
        hard_links: false,
    };

    #[test]
    fn a_file_takes_whole_clusters_for_each_of_its_names() {
        assert_eq!(EXFAT.file(0), 0);
        assert_eq!(EXFAT.file(1), 32 << 10);
        assert_eq!(EXFAT.copies((32 << 10) + 1, 3), 192 << 10);
        assert_eq!(EXFAT.copies(1, 0), 0);
        let linked = Allocation {
            hard_links: true,
            ..EXFAT
        };
        assert_eq!(linked.copies(1, 3), 32 << 10);
    }

    #[test]
    fn an_empty_directory_takes_a_cluster_and_many_names_more() {
        assert_eq!(EXFAT.directory(0), 32 << 10);
        assert_eq!(EXFAT.directory(1000 * entry_bytes(8)), 96 << 10);
        assert_eq!(EXFAT.growth(0), 0);
    }

    #[test]
    fn no_size_and_no_number_of_names_wraps() {
        for unit in [0, 1, 4096, u64::MAX] {
            for hard_links in [false, true] {
                let any = Allocation { unit, hard_links };
                assert!(any.copies(u64::MAX, u32::MAX) >= any.copies(1, 1));
                assert!(any.directory(u64::MAX) >= any.directory(0));
                assert!(any.growth(u64::MAX) >= any.growth(1));
            }
        }
        assert_eq!(entry_bytes(usize::MAX), u64::MAX);
    }

    #[test]
    fn where_nothing_is_known_bytes_count_as_they_are() {
        let unknown = Allocation::default();
        assert_eq!((unknown.file(7), unknown.directory(7)), (7, 0));
        assert_eq!(EXFAT.file(u64::MAX), u64::MAX);
    }
}
