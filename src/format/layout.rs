//! The paths in `.ferryfs/`, the directory of ferryfs at the root of a volume.
//! `docs/on-drive-format.md` describes all of it.

use crate::core::{BatchNo, ForeignText, Name, RelPath};
use crate::format::steps::SlotNo;

/// The directory of ferryfs at the root of a volume. It is not part of the user's tree, and no name
/// of the user's tree may equal it.
pub const DIR: &str = ".ferryfs";

/// The volume marker, see [`crate::format::marker`].
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

/// The lease: the daemon that uses the directory, see [`crate::format::lease`].
pub const LEASE: &str = ".ferryfs/lease";

/// A new lease that will replace the current one.
pub const LEASE_NEW: &str = ".ferryfs/lease.new";

/// A request for a sign of life: the holder of the lease removes it.
pub const KNOCK: &str = ".ferryfs/lease.knock";

/// Space held for a full drive: a file of zeros that anyone may remove.
pub const RESERVE: &str = ".ferryfs/reserve";

/// Name in a staging directory of the space held for the steps after the commit. Not a slot name.
pub const SPARE: &str = "spare";

/// Name of the barrier mark in a staging directory. Not a slot name.
pub const BARRIER: &str = "cleared";

/// Name in a staging directory of the list of the refused steps of the first phase. Not a slot
/// name.
const REFUSED: &str = "refused";

/// The highest batch number: the index uses signed 64-bit integers. Names with a higher number are
/// ignored.
pub const MAX_BATCH: BatchNo = BatchNo(i64::MAX as u64);

/// The highest number of a catalog segment; no counter gets there.
pub const MAX_SEGMENT: u64 = i64::MAX as u64;

/// Name in a staging directory of the note that the user's directories may contain names of
/// [`near_path`]. Only then recovery searches for them.
pub const ACROSS: &str = "across";

/// Name in a staging directory of a file that tests whether the backend can be written.
const PROBE: &str = "probe";

/// The directory of replaced and deleted files that are kept, see [`crate::format::versions`].
pub const VERSIONS: &str = ".ferryfs/versions";

/// Name in a staging directory of the list of what a batch keeps. Not a slot name.
const KEPT: &str = "versions";

/// Suffix of a replaced file.
const OLD: &str = ".old";

/// Prefix of temporary names in the user's directories.
const NEAR: &str = ".ferryfs-";

/// Suffix of the note that a directory is lost.
const LOST: &str = ".lost";

/// Suffix of the note that the content of a slot was found under two names.
const TWIN: &str = ".twin";

/// Suffix of the note that the patch of a slot may have been begun.
const BEGUN: &str = ".begun";

/// Path of the directory of ferryfs.
pub fn dir() -> RelPath {
    RelPath::fixed(DIR)
}

/// Path of the volume marker.
pub fn marker_path() -> RelPath {
    RelPath::fixed(MARKER)
}

/// Path of the lease.
pub fn lease_path() -> RelPath {
    RelPath::fixed(LEASE)
}

/// Path of a new lease that will replace the current one.
pub fn lease_new_path() -> RelPath {
    RelPath::fixed(LEASE_NEW)
}

/// Path of the request for a sign of life.
pub fn knock_path() -> RelPath {
    RelPath::fixed(KNOCK)
}

/// Directory of the staging directories.
pub fn staging_root() -> RelPath {
    RelPath::fixed(STAGING)
}

/// Directory of the records.
pub fn batches_dir() -> RelPath {
    RelPath::fixed(BATCHES)
}

/// Directory of the catalog's segments.
pub fn catalog_dir() -> RelPath {
    RelPath::fixed(CATALOG)
}

/// Path of the catalog segment with this number.
pub fn segment_path(number: u64) -> RelPath {
    catalog_dir().join(&own_name(&format!("{number:016x}.seg")))
}

/// Returns the number of the segment with this name in [`catalog_dir`]; `None` unless
/// [`segment_path`] makes the name for a number from 1 to [`MAX_SEGMENT`].
pub fn parse_segment_name(name: &Name) -> Option<u64> {
    let number = parse_hex(name.as_bytes().strip_suffix(b".seg")?, 16)?;
    (1..=MAX_SEGMENT).contains(&number).then_some(number)
}

/// Directory of files found in a staging directory that may belong to the user.
pub fn lost_found() -> RelPath {
    dir().join(&own_name("lost+found"))
}

/// Path in [`lost_found`] for the file at `at` that `batch` found.
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

/// Staging directory of `batch`.
pub fn staging_dir(batch: BatchNo) -> RelPath {
    staging_root().join(&own_name(&batch_digits(batch)))
}

/// Returns whether `path` is the staging directory of a batch.
pub fn is_staging_dir(path: &RelPath) -> bool {
    let below = path.as_bytes().strip_prefix(STAGING.as_bytes());
    let name = below.and_then(|below| below.strip_prefix(b"/"));
    name.is_some_and(|name| parse_batch(name).is_some())
}

/// Path of a slot: a staged or detached entry.
pub fn slot_path(batch: BatchNo, slot: SlotNo) -> RelPath {
    staging_dir(batch).join(&own_name(&slot.file_name()))
}

/// Path of the mark that the first phase of `batch` is complete and synced, and must not be
/// repeated.
pub fn barrier_path(batch: BatchNo) -> RelPath {
    staging_dir(batch).join(&own_name(BARRIER))
}

/// Path of the list of the refused steps of the first phase.
pub fn refused_path(batch: BatchNo) -> RelPath {
    staging_dir(batch).join(&own_name(REFUSED))
}

/// Path of the note [`ACROSS`].
pub fn across_path(batch: BatchNo) -> RelPath {
    staging_dir(batch).join(&own_name(ACROSS))
}

/// Path of a file that is created and removed to test whether the backend can be written.
pub fn probe_path(batch: BatchNo) -> RelPath {
    staging_dir(batch).join(&own_name(PROBE))
}

/// Path of the list of the versions that `batch` keeps. Without it the batch keeps none.
pub fn kept_list_path(batch: BatchNo) -> RelPath {
    staging_dir(batch).join(&own_name(KEPT))
}

/// Directory of the kept versions.
pub fn versions_root() -> RelPath {
    RelPath::fixed(VERSIONS)
}

/// Returns whether a name in a staging directory is that of a note or mark: a file without content
/// that matters after the batch.
pub fn is_note_name(name: &Name) -> bool {
    [BARRIER, REFUSED, ACROSS, PROBE, SPARE, KEPT]
        .iter()
        .any(|note| name.as_bytes() == note.as_bytes())
        || parse_lost_name(name).is_some()
        || parse_twin_name(name).is_some()
        || parse_begun_name(name).is_some()
        || is_patch_name(name)
}

/// Path of the file that the clear step with this number removed, until the end of the batch.
pub fn removed_path(batch: BatchNo, step: usize) -> RelPath {
    staging_dir(batch).join(&own_name(&format!("r{step:08x}")))
}

/// Path of the file that the content of `slot` replaced, until the end of the batch.
pub fn replaced_path(batch: BatchNo, slot: SlotNo) -> RelPath {
    staging_dir(batch).join(&own_name(&format!("{}{OLD}", slot.file_name())))
}

/// Returns whether a name in a staging directory is that of a removed or replaced file.
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

/// Temporary path in the user's directory `dir` for the content of `slot`, if `dir` is on another
/// file system, so that nothing can be moved there from the staging directory.
pub fn near_path(dir: &RelPath, batch: BatchNo, slot: SlotNo) -> RelPath {
    let name = format!("{NEAR}{}-{}", batch_digits(batch), slot.file_name());
    dir.join(&own_name(&name))
}

/// The same for the file that the content of `slot` replaces.
pub fn near_old_path(dir: &RelPath, batch: BatchNo, slot: SlotNo) -> RelPath {
    let name = format!("{NEAR}{}-{}{OLD}", batch_digits(batch), slot.file_name());
    dir.join(&own_name(&name))
}

/// Returns whether this is a name of [`near_path`] or [`near_old_path`], outside the user's tree.
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

/// Path of the space that is released when the drive is full.
pub fn reserve_path() -> RelPath {
    RelPath::fixed(RESERVE)
}

/// Path of the space held for the steps of `batch` after its commit.
pub fn spare_path(batch: BatchNo) -> RelPath {
    staging_dir(batch).join(&own_name(SPARE))
}

/// Path of the record of `batch`.
pub fn record_path(batch: BatchNo) -> RelPath {
    batches_dir().join(&own_name(&format!("{}.rec", batch_digits(batch))))
}

/// Path of the list of the steps of `batch` that were refused to the machine that finished it
/// without its cache.
pub fn left_path(batch: BatchNo) -> RelPath {
    batches_dir().join(&own_name(&format!("{}.left", batch_digits(batch))))
}

/// Path beside [`record_path`] where a record does not count as committed.
pub fn record_tmp_path(batch: BatchNo) -> RelPath {
    batches_dir().join(&own_name(&format!("{}.rec.tmp", batch_digits(batch))))
}

/// Returns the batch whose record has this name in [`batches_dir`]; `None` unless [`record_path`]
/// makes the name for a number up to [`MAX_BATCH`].
pub fn parse_record_name(name: &Name) -> Option<BatchNo> {
    parse_batch(name.as_bytes().strip_suffix(b".rec")?)
}

/// Returns whether a name in [`batches_dir`] is that of an unfinished record, which is garbage.
pub fn is_record_tmp(name: &Name) -> bool {
    name.as_bytes().ends_with(b".tmp")
}

/// Returns the batch whose staging directory has this name in [`staging_root`].
pub fn parse_staging_name(name: &Name) -> Option<BatchNo> {
    parse_batch(name.as_bytes())
}

/// Returns the slot with this name in a staging directory; `None` for other names.
pub fn parse_slot_name(name: &Name) -> Option<SlotNo> {
    let number = parse_hex(name.as_bytes().strip_prefix(b"s")?, 8)?;
    u32::try_from(number).ok().map(SlotNo)
}

/// Path of the note that the directory detached into `slot` is lost from the drive.
pub fn lost_path(batch: BatchNo, slot: SlotNo) -> RelPath {
    staging_dir(batch).join(&own_name(&format!("{}{LOST}", slot.file_name())))
}

/// Returns the slot for which a name in a staging directory notes a lost directory.
pub fn parse_lost_name(name: &Name) -> Option<SlotNo> {
    let slot = name.as_bytes().strip_suffix(LOST.as_bytes())?;
    parse_slot_name(&Name::new(slot).ok()?)
}

/// Path of the note that the content of `slot` was found under two names that may share clusters:
/// the removal of one marks the other's clusters as free.
pub fn twin_path(batch: BatchNo, slot: SlotNo) -> RelPath {
    staging_dir(batch).join(&own_name(&format!("{}{TWIN}", slot.file_name())))
}

/// Returns the slot for which a name in a staging directory notes two names.
pub fn parse_twin_name(name: &Name) -> Option<SlotNo> {
    let slot = name.as_bytes().strip_suffix(TWIN.as_bytes())?;
    parse_slot_name(&Name::new(slot).ok()?)
}

/// Path of the patch of `slot`. It has a name of its own, because no file of the user's is ever
/// there.
pub fn patch_path(batch: BatchNo, slot: SlotNo) -> RelPath {
    staging_dir(batch).join(&own_name(&format!("p{:08x}", slot.0)))
}

/// Returns whether a name in a staging directory is that of a patch.
fn is_patch_name(name: &Name) -> bool {
    let digits = name.as_bytes().strip_prefix(b"p");
    digits.is_some_and(|digits| parse_hex(digits, 8).is_some())
}

/// Path of the note that blocks of the patch of `slot` may be in its file: until the patch is
/// complete, the file may be neither the old version nor the new one.
pub fn begun_path(batch: BatchNo, slot: SlotNo) -> RelPath {
    staging_dir(batch).join(&own_name(&format!("{}{BEGUN}", slot.file_name())))
}

/// Returns the slot whose patch a name in a staging directory notes as begun.
pub fn parse_begun_name(name: &Name) -> Option<SlotNo> {
    let slot = name.as_bytes().strip_suffix(BEGUN.as_bytes())?;
    parse_slot_name(&Name::new(slot).ok()?)
}

/// Returns whether `path` is `.ferryfs` or below it, in upper or lower case.
///
/// The same on every backend: a record must mean the same wherever the drive is plugged in, and a
/// tree copied from a case-sensitive volume must not end up in this directory.
pub fn is_reserved(path: &RelPath) -> bool {
    path.components().next().is_some_and(is_reserved_name)
}

/// Returns whether a name in the root directory is `.ferryfs`, in upper or lower case.
pub fn is_reserved_name(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(DIR.as_bytes())
}

fn batch_digits(batch: BatchNo) -> String {
    format!("{:016x}", batch.0)
}

fn parse_batch(bytes: &[u8]) -> Option<BatchNo> {
    let batch = BatchNo(parse_hex(bytes, 16)?);
    (batch <= MAX_BATCH).then_some(batch)
}

/// Parses exactly `digits` lower-case hexadecimal digits. A number has one spelling, so that no two
/// names mean the same batch.
fn parse_hex(bytes: &[u8], digits: usize) -> Option<u64> {
    let ours = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    if bytes.len() != digits || !bytes.iter().all(ours) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(bytes).ok()?, 16).ok()
}

/// Returns a name composed in this file: letters, digits and dots, far below the limit.
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
