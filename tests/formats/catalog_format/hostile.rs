//! Segments whose checksum is right and whose content is not, and any.

use ferryfs::core::ContentHash;
use ferryfs::format::catalog::segment::{SegmentError, encode};
use ferryfs::format::catalog::{
    CatalogBatch, CatalogChange, decode_description, encode_description,
};
use proptest::prelude::*;

use super::some::{VOLUME, attach, descriptions, detach, paths, remove, set};
use super::{CHANGES, FIXTURE, FULL, body, log, read, resealed};

fn patched(at: usize, bytes: &[u8]) -> Result<(), SegmentError> {
    let mut body = body(FIXTURE);
    body[at..at + bytes.len()].copy_from_slice(bytes);
    read(&resealed(body)).map(drop)
}

#[test]
fn a_truncated_body_under_a_right_checksum_is_refused() {
    for fixture in [FIXTURE, FULL] {
        let whole = body(fixture);
        for length in 8..whole.len() {
            let error = read(&resealed(whole[..length].to_vec())).expect_err("cut short");
            assert!(!error.is_torn(), "{length}: {error}");
        }
        let longer = [&whole[..], &[0]].concat();
        let error = read(&resealed(longer)).unwrap_err();
        assert!(error.to_string().contains("left over"), "{error}");
    }
}

#[test]
fn headers_that_were_never_written_are_refused() {
    assert!(patched(8, &[0, 0]).is_err());
    assert!(patched(12, &[1]).is_err());
    assert!(patched(32, &0_u64.to_le_bytes()).is_err());
    assert!(patched(32, &u64::MAX.to_le_bytes()).is_err());
    // Neither full nor following on anything; full, and with the hash of what it says not to follow
    // on.
    assert!(patched(10, &[0]).is_err());
    assert!(patched(10, &[1]).is_err());
    assert_eq!(patched(10, &[2]), Ok(()));
}

#[test]
fn absurd_counts_and_lengths_are_refused_without_allocating() {
    for absurd in [8, 1 << 20, u64::MAX / 2, u64::MAX] {
        assert!(patched(CHANGES - 8, &absurd.to_le_bytes()).is_err());
    }
    // Of the first path: what it shares, and how long its rest is.
    for absurd in [1, u16::MAX] {
        assert!(patched(CHANGES + 5, &absurd.to_le_bytes()).is_err());
    }
    for absurd in [1 << 16, u32::MAX] {
        assert!(patched(CHANGES + 7, &absurd.to_le_bytes()).is_err());
    }
}

#[test]
fn a_path_that_could_share_more_or_leaves_the_tree_is_refused() {
    let removing = |paths: &[(u16, &[u8])]| {
        let mut body = body(&encode(VOLUME, &log(2, ContentHash([1; 32]), vec![])));
        body[CHANGES - 8] = paths.len() as u8;
        for (shared, rest) in paths {
            body.push(3);
            body.extend(shared.to_le_bytes());
            body.extend((rest.len() as u32).to_le_bytes());
            body.extend(*rest);
        }
        read(&resealed(body))
    };
    assert!(removing(&[(0, b"ab"), (1, b"c")]).is_ok());
    assert!(removing(&[(0, b"ab"), (0, b"ac")]).is_err());
    assert!(removing(&[(0, b"ab"), (3, b"")]).is_err());
    assert!(removing(&[(0, b"a/b"), (2, b"../c")]).is_err());
    for bad in [&b".."[..], b"/etc", b"a//b", b"a\0", b"", b".FerryFS/x"] {
        assert!(removing(&[(0, bad)]).is_err(), "{bad:?}");
    }
}

fn changes() -> impl Strategy<Value = Vec<CatalogChange>> {
    let one = (paths(), descriptions(), 0..4);
    proptest::collection::vec(one, 0..20).prop_map(|all| {
        let mut changes = Vec::new();
        for (slot, (path, description, what)) in (0..).zip(all) {
            let at = path.to_string();
            match what {
                0 => changes.push(detach(&at, slot)),
                1 => changes.push(remove(&at)),
                _ => changes.push(set(&at, description)),
            }
        }
        let taken: Vec<_> = (changes.iter())
            .filter_map(|change| match change {
                CatalogChange::Detach { from, slot } => Some(attach(slot.0, &format!("{from}x"))),
                _ => None,
            })
            .collect();
        changes.extend(taken);
        changes
    })
}

fn batches() -> impl Strategy<Value = CatalogBatch> {
    (1..u64::MAX / 2, any::<[u8; 32]>(), changes())
        .prop_map(|(number, after, changes)| log(number, ContentHash(after), changes))
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(batch in batches()) {
        let (header, changes) = read(&encode(VOLUME, &batch)).unwrap();
        prop_assert_eq!(header.number, batch.segment);
        prop_assert_eq!(changes, batch.changes);
    }

    #[test]
    fn a_description_is_read_back_and_no_part_of_it_is_one(it in descriptions(), at: prop::sample::Index) {
        let bytes = encode_description(&it);
        prop_assert_eq!(decode_description(&bytes), Some(it));
        prop_assert_eq!(decode_description(&bytes[..at.index(bytes.len())]), None);
    }

    #[test]
    fn damage_to_any_segment_is_found(batch in batches(), at: prop::sample::Index, flip in 1_u8..) {
        let mut bytes = encode(VOLUME, &batch);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(read(&bytes).is_err_and(|e| e.is_torn()));
        prop_assert!(read(&bytes[..at]).is_err_and(|e| e.is_torn()));
    }

    /// A hostile hand alters bytes and makes the checksum right: what is then accepted is written
    /// alike.
    #[test]
    fn what_is_accepted_is_written_alike(whole: bool, edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = body(if whole { FULL } else { FIXTURE });
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let bytes = resealed(bytes);
        if let Ok((header, changes)) = read(&bytes) {
            let batch = CatalogBatch { segment: header.number, after: header.after, full: header.full, changes };
            prop_assert_eq!(encode(header.volume, &batch), bytes);
        }
    }
}
