//! Where things stand in `.ferryfs/`, the directory at a volume's root that is ours. `docs/on-drive-format.md` has the
//! whole of it.

use crate::base::{BatchNo, ForeignText, Name, RelPath};
use crate::rules::names;
use crate::rules::steps::SlotNo;

/// The directory at a volume's root that belongs to ferryfs. Nothing in it belongs to the user's tree, and nothing
/// of the user's tree may take its name.
pub const DIR: &str = ".ferryfs";

/// The volume marker, see [`crate::rules::marker`].
pub const MARKER: &str = ".ferryfs/volume.json";

/// Empty file that keeps media scanners (Android, TVs) out.
pub const NOMEDIA: &str = ".ferryfs/.nomedia";

/// Empty file that keeps Spotlight out.
pub const NO_INDEX: &str = ".ferryfs/.metadata_never_index";

/// The directory with one staging directory per batch.
pub const STAGING: &str = ".ferryfs/staging";

/// The directory with one record per committed batch.
pub const BATCHES: &str = ".ferryfs/batches";

/// The directory with the catalog's segments.
pub const CATALOG: &str = ".ferryfs/catalog";

/// The lease: who has the directory at work, see [`crate::rules::lease`].
pub const LEASE: &str = ".ferryfs/lease";

/// A lease that is being written, to replace another one.
pub const LEASE_NEW: &str = ".ferryfs/lease.new";

/// Asks whoever has the lease for a sign of life, which is to take this away.
pub const KNOCK: &str = ".ferryfs/lease.knock";

/// Space that is held on the drive for the case that it is full: zeros, which anybody may remove.
pub const RESERVE: &str = ".ferryfs/reserve";

/// Name in a staging directory of the space that is held for the steps after the commit. No slot has this name.
pub const SPARE: &str = "spare";

/// Name of the barrier mark in a staging directory. No slot has this name.
pub const BARRIER: &str = "cleared";

/// The highest number that a batch can have: the index counts in signed 64 bits. A name with a higher one is nobody's.
pub const MAX_BATCH: BatchNo = BatchNo(i64::MAX as u64);

/// The highest number that a segment of the catalog can have: nobody gets there by counting.
pub const MAX_SEGMENT: u64 = i64::MAX as u64;

/// Name in a staging directory of the note that something was copied to, or kept in, the user's directories under names of
/// [`near_path`]: only then are these looked for.
pub const ACROSS: &str = "across";

/// Name in a staging directory of a file that only shows that the backend can be written to.
const PROBE: &str = "probe";

/// Suffix of what stood where a staged file was placed.
const OLD: &str = ".old";

/// How names of ours in the user's directories begin.
const NEAR: &str = ".ferryfs-";

/// Suffix of the note that a directory is lost.
const LOST: &str = ".lost";

/// Suffix of the note that the content of a slot was found under two names.
const TWIN: &str = ".twin";

/// The directory that ferryfs keeps at the root of a volume.
pub fn dir() -> RelPath {
    RelPath::fixed(DIR)
}

/// Where the volume marker stands.
pub fn marker_path() -> RelPath {
    RelPath::fixed(MARKER)
}

/// Where the lease stands.
pub fn lease_path() -> RelPath {
    RelPath::fixed(LEASE)
}

/// Where a lease is written that is to replace another one.
pub fn lease_new_path() -> RelPath {
    RelPath::fixed(LEASE_NEW)
}

/// Where whoever has the lease is asked for a sign of life.
pub fn knock_path() -> RelPath {
    RelPath::fixed(KNOCK)
}

/// The directory that holds the staging directories.
pub fn staging_root() -> RelPath {
    RelPath::fixed(STAGING)
}

/// The directory that holds the records of batches.
pub fn batches_dir() -> RelPath {
    RelPath::fixed(BATCHES)
}

/// The directory that holds the segments of the catalog.
pub fn catalog_dir() -> RelPath {
    RelPath::fixed(CATALOG)
}

/// Where the segment of the catalog with this number stands.
pub fn segment_path(number: u64) -> RelPath {
    catalog_dir().join(&own_name(&format!("{number:016x}.seg")))
}

/// The segment that has this name in [`catalog_dir`]; `None` for any name that [`segment_path`] does not form for a number from 1 to
/// [`MAX_SEGMENT`].
pub fn parse_segment_name(name: &Name) -> Option<u64> {
    let number = parse_hex(name.as_bytes().strip_suffix(b".seg")?, 16)?;
    (1..=MAX_SEGMENT).contains(&number).then_some(number)
}

/// The directory for what was found in a staging directory and may be somebody's.
pub fn lost_found() -> RelPath {
    dir().join(&own_name("lost+found"))
}

/// A name in [`lost_found`] for what stands at `at` and was met by `batch`.
pub fn kept_path(batch: BatchNo, at: &RelPath, number: u32) -> RelPath {
    let last = at
        .split_last()
        .map_or_else(String::new, |(_, name)| name.to_text());
    let plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let last: String = last.chars().filter(plain).take(100).collect();
    lost_found().join(&own_name(&format!(
        "{}-{number}-{last}",
        batch_digits(batch)
    )))
}

/// The directory in which `batch` keeps its slots.
pub fn staging_dir(batch: BatchNo) -> RelPath {
    staging_root().join(&own_name(&batch_digits(batch)))
}

/// Where a staged file, or what was set aside, waits.
pub fn slot_path(batch: BatchNo, slot: SlotNo) -> RelPath {
    staging_dir(batch).join(&own_name(&slot.file_name()))
}

/// Where the mark stands that says: the first phase of `batch` is done and synced, and must not be done again.
pub fn barrier_path(batch: BatchNo) -> RelPath {
    staging_dir(batch).join(&own_name(BARRIER))
}

/// Where the note [`ACROSS`] stands.
pub fn across_path(batch: BatchNo) -> RelPath {
    staging_dir(batch).join(&own_name(ACROSS))
}

/// Where a file is made and removed to see whether the backend can be written to.
pub fn probe_path(batch: BatchNo) -> RelPath {
    staging_dir(batch).join(&own_name(PROBE))
}

/// Whether a name in a staging directory is that of a note or mark: an empty file, or one that says nothing that would be
/// missed once the batch is over.
pub fn is_note_name(name: &Name) -> bool {
    [BARRIER, ACROSS, PROBE, SPARE]
        .iter()
        .any(|note| name.as_bytes() == note.as_bytes())
        || parse_lost_name(name).is_some()
        || parse_twin_name(name).is_some()
}

/// Where what the clear step with this number removes waits for the end of the batch.
pub fn removed_path(batch: BatchNo, step: usize) -> RelPath {
    staging_dir(batch).join(&own_name(&format!("r{step:08x}")))
}

/// Where what stood under the name that the content of `slot` gets waits for the end of the batch.
pub fn replaced_path(batch: BatchNo, slot: SlotNo) -> RelPath {
    staging_dir(batch).join(&own_name(&format!("{}{OLD}", slot.file_name())))
}

/// Whether this is the name in a staging directory of what a batch removes or replaces.
pub fn is_set_aside_name(name: &Name) -> bool {
    let bytes = name.as_bytes();
    let is_removed = bytes
        .strip_prefix(b"r")
        .is_some_and(|digits| parse_hex(digits, 8).is_some());
    let slot = bytes.strip_suffix(OLD.as_bytes());
    let is_replaced =
        slot.is_some_and(|slot| Name::new(slot).is_ok_and(|it| parse_slot_name(&it).is_some()));
    is_removed || is_replaced
}

/// A name in the directory `dir` of the user's tree for the content of `slot`: for where nothing can be moved from the
/// staging directory to there, because it is on another file system.
pub fn near_path(dir: &RelPath, batch: BatchNo, slot: SlotNo) -> RelPath {
    let name = format!("{NEAR}{}-{}", batch_digits(batch), slot.file_name());
    dir.join(&own_name(&name))
}

/// The same for what stands under the name that the content of `slot` gets.
pub fn near_old_path(dir: &RelPath, batch: BatchNo, slot: SlotNo) -> RelPath {
    let name = format!("{NEAR}{}-{}{OLD}", batch_digits(batch), slot.file_name());
    dir.join(&own_name(&name))
}

/// Whether this is a name of [`near_path`] or [`near_old_path`]. It is not of the user's tree.
pub fn is_near_name(name: &Name) -> bool {
    let parse = || {
        let rest = name.as_bytes().strip_prefix(NEAR.as_bytes())?;
        let rest = rest.strip_suffix(OLD.as_bytes()).unwrap_or(rest);
        let (batch, slot) = rest.split_at_checked(16)?;
        parse_batch(batch)?;
        parse_slot_name(&Name::new(slot.strip_prefix(b"-")?).ok()?)
    };
    parse().is_some()
}

/// Where the space is held that is given up when the drive is full.
pub fn reserve_path() -> RelPath {
    RelPath::fixed(RESERVE)
}

/// Where the space is held that the steps of `batch` may need after its commit.
pub fn spare_path(batch: BatchNo) -> RelPath {
    staging_dir(batch).join(&own_name(SPARE))
}

/// Where the record of `batch` stands once it is committed.
pub fn record_path(batch: BatchNo) -> RelPath {
    batches_dir().join(&own_name(&format!("{}.rec", batch_digits(batch))))
}

/// A name beside [`record_path`] under which nothing counts as committed.
pub fn record_tmp_path(batch: BatchNo) -> RelPath {
    batches_dir().join(&own_name(&format!("{}.rec.tmp", batch_digits(batch))))
}

/// The batch whose record has this name in [`batches_dir`]; `None` for any name that [`record_path`] does not form for a number
/// up to [`MAX_BATCH`].
pub fn parse_record_name(name: &Name) -> Option<BatchNo> {
    parse_batch(name.as_bytes().strip_suffix(b".rec")?)
}

/// Whether a name in [`batches_dir`] is that of an unfinished record, which is garbage.
pub fn is_record_tmp(name: &Name) -> bool {
    name.as_bytes().ends_with(b".tmp")
}

/// The batch whose staging directory has this name in [`staging_root`].
pub fn parse_staging_name(name: &Name) -> Option<BatchNo> {
    parse_batch(name.as_bytes())
}

/// The slot that has this name in a staging directory; `None` for the barrier mark and for what is not ours.
pub fn parse_slot_name(name: &Name) -> Option<SlotNo> {
    let number = parse_hex(name.as_bytes().strip_prefix(b"s")?, 8)?;
    u32::try_from(number).ok().map(SlotNo)
}

/// Where it is noted that what was set aside in `slot`, a directory, is nowhere on the drive.
pub fn lost_path(batch: BatchNo, slot: SlotNo) -> RelPath {
    staging_dir(batch).join(&own_name(&format!("{}{LOST}", slot.file_name())))
}

/// The slot of which a name in a staging directory says that its directory is lost.
pub fn parse_lost_name(name: &Name) -> Option<SlotNo> {
    let slot = name.as_bytes().strip_suffix(LOST.as_bytes())?;
    parse_slot_name(&Name::new(slot).ok()?)
}

/// Where it is noted that the content of `slot` was found under two names that may share clusters: whichever of them is removed first
/// marks the other's clusters free.
pub fn twin_path(batch: BatchNo, slot: SlotNo) -> RelPath {
    staging_dir(batch).join(&own_name(&format!("{}{TWIN}", slot.file_name())))
}

/// The slot of which a name in a staging directory says so.
pub fn parse_twin_name(name: &Name) -> Option<SlotNo> {
    let slot = name.as_bytes().strip_suffix(TWIN.as_bytes())?;
    parse_slot_name(&Name::new(slot).ok()?)
}

/// Whether `path` is `.ferryfs` or below it, in upper or lower case.
///
/// The same on every backend: the record of a batch must mean the same wherever the drive is plugged in, and a tree
/// copied from a case-sensitive volume to another must not land in our directory.
pub fn is_reserved(path: &RelPath) -> bool {
    path.components().next().is_some_and(names::is_reserved)
}

fn batch_digits(batch: BatchNo) -> String {
    format!("{:016x}", batch.0)
}

fn parse_batch(bytes: &[u8]) -> Option<BatchNo> {
    let batch = BatchNo(parse_hex(bytes, 16)?);
    (batch <= MAX_BATCH).then_some(batch)
}

/// Reads exactly `digits` lower-case hexadecimal digits: one spelling per number, so that no two names mean one batch.
fn parse_hex(bytes: &[u8], digits: usize) -> Option<u64> {
    let ours = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    if bytes.len() != digits || !bytes.iter().all(ours) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(bytes).ok()?, 16).ok()
}

/// A name put together in this file: letters, digits and dots, far below the longest.
fn own_name(name: &str) -> Name {
    Name::new(name.as_bytes()).expect("names formed here are well formed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text.as_bytes()).unwrap()
    }

    fn last(path: RelPath) -> Name {
        path.split_last().unwrap().1
    }

    #[test]
    fn paths_of_a_batch_are_those_of_the_format_document() {
        let batch = BatchNo(0x2a);
        let text = |path: RelPath| path.to_string();
        assert_eq!(
            text(slot_path(batch, SlotNo(0x1f))),
            ".ferryfs/staging/000000000000002a/s0000001f"
        );
        assert_eq!(
            text(barrier_path(batch)),
            ".ferryfs/staging/000000000000002a/cleared"
        );
        assert_eq!(
            text(record_path(batch)),
            ".ferryfs/batches/000000000000002a.rec"
        );
        for fixed in [
            DIR, MARKER, NOMEDIA, NO_INDEX, STAGING, BATCHES, LEASE, LEASE_NEW, KNOCK, RESERVE,
        ] {
            assert!(is_reserved(&RelPath::fixed(fixed)), "{fixed}");
        }
    }

    #[test]
    fn every_name_that_is_formed_is_parsed_back() {
        for number in [0, 1, 0xabcdef, MAX_BATCH.0] {
            let batch = BatchNo(number);
            assert_eq!(parse_record_name(&last(record_path(batch))), Some(batch));
            assert_eq!(parse_staging_name(&last(staging_dir(batch))), Some(batch));
            let tmp = last(record_tmp_path(batch));
            assert!(is_record_tmp(&tmp) && parse_record_name(&tmp).is_none());
        }
        for slot in [SlotNo(0), SlotNo(u32::MAX)] {
            let found = parse_slot_name(&last(slot_path(BatchNo(1), slot)));
            assert_eq!(found, Some(slot));
        }
    }

    #[test]
    fn a_foreign_name_is_no_batch_and_no_slot() {
        for bad in [
            "1.rec",
            "000000000000002A.rec",
            "+00000000000002a.rec",
            "000000000000002a",
            "000000000000002a.rec.tmp",
            "00000000000000002a.rec",
            "8000000000000000.rec",
            "ffffffffffffffff.rec",
        ] {
            assert_eq!(parse_record_name(&name(bad)), None, "{bad}");
        }
        for bad in [BARRIER, SPARE, "s1", "s0000001F", "s+000001f", "t0000001f"] {
            assert_eq!(parse_slot_name(&name(bad)), None, "{bad}");
        }
    }

    #[test]
    fn what_is_set_aside_is_known_by_its_name() {
        let (batch, slot) = (BatchNo(0x2a), SlotNo(0x1f));
        let dir = RelPath::fixed("a");
        for aside in [removed_path(batch, 7), replaced_path(batch, slot)] {
            assert!(is_set_aside_name(&last(aside.clone())), "{aside}");
            assert_eq!(parse_slot_name(&last(aside)), None);
        }
        for near in [
            near_path(&dir, batch, slot),
            near_old_path(&dir, batch, slot),
        ] {
            assert!(is_near_name(&last(near.clone())), "{near}");
            assert!(!is_reserved(&near));
        }
        for other in ["s0000001f", "r1", "r0000001G", "s0000001f.old2", ".old"] {
            assert!(!is_set_aside_name(&name(other)), "{other}");
        }
        for other in [
            ".ferryfs",
            ".ferryfs-1-s0000001f",
            ".ferryfs-x",
            ".ferryfs-",
        ] {
            assert!(!is_near_name(&name(other)), "{other}");
        }
    }

    #[test]
    fn our_directory_is_reserved_in_every_case_and_only_at_the_root() {
        for ours in [".ferryfs", ".FerryFS/x", ".FERRYFS/a/b"] {
            assert!(is_reserved(&RelPath::fixed(ours)), "{ours}");
        }
        for theirs in ["", ".ferryfsx", "ferryfs", "a/.ferryfs", ".ferryf"] {
            assert!(!is_reserved(&RelPath::fixed(theirs)), "{theirs}");
        }
    }
}
