//! Counters of numbers, and sums over all inodes.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::inode::{Flags, Inode};
use super::{Context, Corruption, IndexError, IndexWriter, Result, int, statements};
use crate::core::FileKind;
use crate::plan::space::Allocation;

/// Numbers are reserved in the database in runs of this many, so that using one costs no write.
const RESERVE: u64 = 4096;

/// A number that only ever goes up, also over restarts.
pub(super) struct Counter {
    key: &'static str,
    pub(super) next: u64,
    pub(super) reserved: u64,
}

impl Counter {
    pub(super) fn load(conn: &Connection, key: &'static str, first: u64) -> Result<Counter> {
        let next: Option<i64> = conn
            .query_row("SELECT value FROM meta WHERE key=?", [key], |row| {
                row.get(0)
            })
            .optional()
            .context("read a counter")?;
        let next = next.map_or(first, |n| n as u64);
        Ok(Counter {
            key,
            next,
            reserved: next,
        })
    }

    /// Returns the next number; `None` if more must be reserved before, see
    /// [`Counter::to_reserve`].
    fn take(&mut self) -> Option<u64> {
        (self.next < self.reserved).then(|| {
            self.next += 1;
            self.next - 1
        })
    }

    /// Returns the end of the next run of reserved numbers.
    fn to_reserve(&self) -> Result<u64> {
        // Only an edited index gets that far.
        (self.next.checked_add(RESERVE))
            .filter(|reserved| i64::try_from(*reserved).is_ok())
            .ok_or_else(|| IndexError::Corrupt(Corruption::NumbersUsedUp(self.key)))
    }
}

impl IndexWriter {
    /// Takes a number from the counter that `of` finds.
    pub(super) fn take_number(&mut self, of: fn(&mut IndexWriter) -> &mut Counter) -> Result<u64> {
        self.begin()?;
        if let Some(number) = of(self).take() {
            return Ok(number);
        }
        let (key, reserved) = (of(self).key, of(self).to_reserve()?);
        self.change(
            "reserve numbers",
            statements::PUT_SETTING,
            params![key, int(reserved)],
        )?;
        let counter = of(self);
        counter.reserved = reserved;
        counter.next += 1;
        Ok(counter.next - 1)
    }
}

/// Sums over all inodes, kept up to date with every change. A larger sum is reported as the largest
/// number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Totals {
    /// Bytes of objects on the SSD.
    pub cached_bytes: u64,
    /// Bytes of files of which the backend does not have this version.
    pub dirty_bytes: u64,
    /// Bytes of files that stay on the SSD and can therefore not be evicted.
    pub local_bytes: u64,
    /// The space that these will take there, with new directories: whole clusters, and a copy for
    /// each name if the backend has no links.
    pub needed_bytes: u64,
}

/// The exact sums behind [`Totals`]. Sparse files can be 8 EiB each, so that two of them exceed 64
/// bits. A saturated sum would stay wrong after one of them is removed; 128 bits are enough for all
/// possible inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Sums {
    cached_bytes: u128,
    dirty_bytes: u128,
    local_bytes: u128,
    needed_bytes: u128,
}

/// The fields of an inode that the sums need.
struct Part {
    mode: u32,
    nlink: u32,
    size: u64,
    blocks: u64,
    has_object: bool,
    flags: Flags,
}

impl Part {
    fn of(inode: &Inode) -> Part {
        Part {
            mode: inode.mode,
            nlink: inode.nlink,
            size: inode.size,
            blocks: inode.blocks,
            has_object: inode.object.is_some(),
            flags: inode.flags,
        }
    }

    /// Reads a row. A number that does not fit is truncated: a sum is no reason not to start, and
    /// the check of the index reports a damaged row.
    #[allow(clippy::cast_possible_truncation)]
    fn from_row(row: &Row<'_>) -> rusqlite::Result<Part> {
        let number = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
        Ok(Part {
            mode: number(0)? as u32,
            nlink: number(1)? as u32,
            size: number(2)?,
            blocks: number(3)?,
            flags: Flags(number(4)? as u32),
            has_object: row.get(5)?,
        })
    }

    fn sums(&self, allocation: Allocation) -> Sums {
        let when = |is_counted: bool, bytes: u128| if is_counted { bytes } else { 0 };
        Sums {
            cached_bytes: when(self.has_object, u128::from(self.blocks) * 512),
            dirty_bytes: when(self.is_dirty(), self.size.into()),
            local_bytes: when(self.is_kept(), self.size.into()),
            needed_bytes: self.needed(allocation).into(),
        }
    }

    /// Returns whether the bytes wait for the backend.
    fn is_dirty(&self) -> bool {
        self.flags.has(Flags::DATA_DIRTY) && !self.flags.has(Flags::LOCAL)
    }

    /// Returns whether the bytes stay on the SSD, and are nowhere else.
    fn is_kept(&self) -> bool {
        self.flags.has(Flags::DATA_DIRTY) && self.flags.has(Flags::LOCAL)
    }

    /// Returns the space that the backend will need for an inode, if it does not have this version.
    /// Further names of a file that it has are counted separately, see
    /// [`super::Snapshot::copies_needed`].
    fn needed(&self, allocation: Allocation) -> u64 {
        match FileKind::from_mode(self.mode).unwrap_or(FileKind::Regular) {
            _ if self.nlink == 0 => 0,
            FileKind::Regular if self.is_dirty() => allocation.copies(self.size, self.nlink),
            FileKind::Directory if !self.flags.any(Flags(Flags::ON_BACKEND.0 | Flags::LOCAL.0)) => {
                allocation.directory(0)
            }
            _ => 0,
        }
    }
}

impl Sums {
    pub(super) fn replace(
        &mut self,
        before: Option<&Inode>,
        after: Option<&Inode>,
        allocation: Allocation,
    ) {
        if let Some(after) = after {
            self.add(Part::of(after).sums(allocation));
        }
        if let Some(before) = before {
            let gone = Part::of(before).sums(allocation);
            self.cached_bytes = self.cached_bytes.saturating_sub(gone.cached_bytes);
            self.dirty_bytes = self.dirty_bytes.saturating_sub(gone.dirty_bytes);
            self.local_bytes = self.local_bytes.saturating_sub(gone.local_bytes);
            self.needed_bytes = self.needed_bytes.saturating_sub(gone.needed_bytes);
        }
    }

    fn add(&mut self, more: Sums) {
        self.cached_bytes = self.cached_bytes.saturating_add(more.cached_bytes);
        self.dirty_bytes = self.dirty_bytes.saturating_add(more.dirty_bytes);
        self.local_bytes = self.local_bytes.saturating_add(more.local_bytes);
        self.needed_bytes = self.needed_bytes.saturating_add(more.needed_bytes);
    }

    /// Sums up the rows. SQLite's own `sum` fails above 64 bits.
    pub(super) fn load(conn: &Connection, allocation: Allocation) -> Result<Sums> {
        let sql = "SELECT mode, nlink, size, blocks, flags, object IS NOT NULL FROM inodes";
        let mut statement = conn.prepare(sql).context("sum up")?;
        let mut sums = Sums::default();
        for part in statement.query_map([], Part::from_row).context("sum up")? {
            sums.add(part.context("sum up")?.sums(allocation));
        }
        Ok(sums)
    }

    /// Returns the sums as they are reported: the largest number stands for all larger ones.
    pub(super) fn told(self) -> Totals {
        let told = |sum: u128| u64::try_from(sum).unwrap_or(u64::MAX);
        Totals {
            cached_bytes: told(self.cached_bytes),
            dirty_bytes: told(self.dirty_bytes),
            local_bytes: told(self.local_bytes),
            needed_bytes: told(self.needed_bytes),
        }
    }
}

/// Key of the setting that says how the backend allocates space.
const ALLOCATION: &str = "allocation";

/// Returns how the backend allocates space, as last noted.
pub(super) fn load_allocation(conn: &Connection) -> Result<Allocation> {
    let sql = "SELECT CAST(value AS TEXT) FROM meta WHERE key=?";
    let noted: Option<String> = conn
        .query_row(sql, [ALLOCATION], |row| row.get(0))
        .optional()
        .context("read a setting")?;
    let parse = |noted: &str| {
        let (unit, links) = noted.split_once(' ')?;
        Some(Allocation {
            unit: unit.parse().ok()?,
            hard_links: links == "links",
        })
    };
    Ok(noted.as_deref().and_then(parse).unwrap_or_default())
}

impl IndexWriter {
    /// Sums the totals up from the rows of the last commit. For checks.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn reckon_totals(&self) -> Result<Totals> {
        Ok(Sums::load(&self.conn, self.allocation)?.told())
    }

    /// Notes how the backend allocates space, and computes the needed space again.
    ///
    /// # Errors
    /// If SQLite fails; then the sums are the old ones.
    pub fn set_allocation(&mut self, allocation: Allocation) -> Result<()> {
        if allocation == self.allocation {
            return Ok(());
        }
        let links = if allocation.hard_links {
            "links"
        } else {
            "copies"
        };
        self.set_meta(ALLOCATION, &format!("{} {links}", allocation.unit))?;
        self.commit()?;
        self.totals = Sums::load(&self.conn, allocation)?;
        self.finished_totals = self.totals;
        self.allocation = allocation;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::{Capabilities, Ino, ObjectId, Seq, Timestamp};
    use crate::index::Index;
    use crate::plan::names::NameRules;

    /// The largest file of Linux.
    const LARGEST: u64 = i64::MAX as u64;

    fn open(dir: &tempfile::TempDir) -> Index {
        let rules = NameRules::new(&Capabilities::everything());
        Index::open(&dir.path().join("index.db"), rules).unwrap()
    }

    fn dirty(state: &mut IndexWriter, size: u64) -> Inode {
        let ino = state.new_ino().unwrap();
        let mut inode = Inode::new(ino, libc::S_IFREG | 0o644, 0, 0, Timestamp(0));
        inode.flags.set(Flags::DATA_DIRTY);
        inode.size = size;
        state.put_inode(inode.clone());
        inode
    }

    #[test]
    fn an_index_opens_however_large_its_files_are_together_and_counts_what_is_left_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let allocation = Allocation {
            unit: 4096,
            hard_links: false,
        };
        let large = {
            let index = open(&dir);
            let mut state = index.lock();
            state.set_allocation(allocation).unwrap();
            dirty(&mut state, 5);
            let large: Vec<Inode> = (0..3).map(|_| dirty(&mut state, LARGEST)).collect();
            state.commit().unwrap();
            assert_eq!(state.totals().dirty_bytes, u64::MAX);
            assert_eq!(state.totals().needed_bytes, u64::MAX);
            large
        };
        let index = open(&dir);
        let mut state = index.lock();
        assert_eq!(state.totals().dirty_bytes, u64::MAX);
        state
            .set_allocation(Allocation {
                unit: 1 << 20,
                ..allocation
            })
            .unwrap();
        state.set_allocation(allocation).unwrap();
        assert_eq!(state.reckon_totals().unwrap(), state.totals());
        for inode in large {
            state.remove_inode(inode.ino).unwrap();
        }
        assert_eq!(state.totals().dirty_bytes, 5);
        assert_eq!(state.totals().needed_bytes, 4096);
    }

    #[test]
    fn numbers_that_are_used_up_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        for next in [i64::MAX, -1] {
            let index = open(&dir);
            let sql = "INSERT OR REPLACE INTO meta VALUES('next_ino', ?)";
            index.lock().conn.execute(sql, [next]).unwrap();
            drop(index);
            let index = open(&dir);
            index.lock().new_ino().unwrap_err();
        }
    }

    fn extreme() -> impl Strategy<Value = u64> {
        prop_oneof![
            Just(0),
            Just(1),
            Just(LARGEST),
            LARGEST - 5000..=LARGEST,
            0..10_000_u64,
            0..=LARGEST
        ]
    }

    prop_compose! {
        fn inode()(
            ino in 2..6_u64, size in extreme(), blocks in extreme(), nlink in prop_oneof![Just(0), Just(1), Just(u32::MAX)],
            flags in 0..1024_u32, object in any::<bool>(), is_dir in any::<bool>(),
            times in prop::array::uniform5(prop_oneof![Just(i64::MIN), Just(i64::MAX), any::<i64>()]),
        ) -> Inode {
            let kind = if is_dir { libc::S_IFDIR } else { libc::S_IFREG };
            Inode {
                nlink, size, blocks,
                flags: Flags(flags),
                object: object.then_some(ObjectId(ino)),
                atime: Timestamp(times[0]), mtime: Timestamp(times[1]), ctime: Timestamp(times[2]), btime: Timestamp(times[3]),
                used: times[4],
                data_seq: Seq(size),
                ..Inode::new(Ino(ino), kind | 0o644, u32::MAX, u32::MAX, Timestamp(0))
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn sums_kept_per_change_are_those_of_the_rows_and_of_the_next_start(
            inodes in prop::collection::vec(inode(), 1..20),
            unit in prop_oneof![Just(0_u64), Just(1), Just(4096), Just(LARGEST), Just(u64::MAX)],
            hard_links in any::<bool>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let kept = {
                let index = open(&dir);
                let mut state = index.lock();
                state.set_allocation(Allocation { unit, hard_links }).unwrap();
                for inode in inodes {
                    state.inode(inode.ino).unwrap();
                    state.put_inode(inode);
                }
                state.commit().unwrap();
                prop_assert_eq!(state.reckon_totals().unwrap(), state.totals());
                state.totals()
            };
            let index = open(&dir);
            prop_assert_eq!(index.lock().totals(), kept);
        }
    }
}
