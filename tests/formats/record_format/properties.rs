//! Any record, any damage, any bytes.

use ferryfs::core::{BatchNo, ContentHash, RelPath, Timestamp};
use ferryfs::format::expectations::{Expectations, ExpectedFile};
use ferryfs::format::record::{BatchRecord, decode, encode, seal};
use ferryfs::format::steps::{
    ClearStep, FileContent, PatchFile, PlaceStep, PlainKind, SlotNo, Steps,
};
use proptest::prelude::*;
use uuid::Uuid;

use super::{FULL, body, resealed};

fn paths() -> impl Strategy<Value = RelPath> {
    let name = proptest::collection::vec(any::<u8>(), 1..12);
    proptest::collection::vec(name, 1..5)
        .prop_filter_map("no path", |names| RelPath::parse(&names.join(&b'/')).ok())
}

/// What is done with one path: a step, or a pair of steps with a slot of their own.
fn deeds() -> impl Strategy<Value = (u8, PlainKind, u64, i64, [u8; 32])> {
    let kind = prop_oneof![Just(PlainKind::File), Just(PlainKind::Directory)];
    (
        0_u8..7,
        kind,
        0..u64::MAX / 2,
        any::<i64>(),
        any::<[u8; 32]>(),
    )
}

fn records() -> impl Strategy<Value = BatchRecord> {
    let by_path = proptest::collection::btree_map(paths(), deeds(), 0..40);
    let ids = (any::<u128>(), any::<u64>(), any::<i64>(), any::<[u8; 16]>());
    (by_path, ids, any::<u32>()).prop_map(|(by_path, (volume, batch, created, origin), first)| {
        let mut steps = Steps::default();
        for (nth, (path, (deed, kind, size, time, hash))) in (0..).zip(by_path) {
            let slot = SlotNo(first.wrapping_add(nth));
            let modified = Timestamp(time);
            let content = FileContent {
                size,
                hash: ContentHash(hash),
                modified,
            };
            let to = path.clone();
            match deed {
                0 => {
                    steps.clear.push(ClearStep::Detach {
                        from: path,
                        slot,
                        kind,
                    });
                    steps.place.push(PlaceStep::Attach { slot, to, kind });
                }
                1 => steps.clear.push(ClearStep::RemoveFile { path }),
                2 => steps.clear.push(ClearStep::RemoveDir { path }),
                3 => steps.place.push(PlaceStep::MakeDir { path }),
                4 => steps.place.push(PlaceStep::Install { slot, to, content }),
                5 => steps.place.push(PlaceStep::Patch {
                    slot,
                    to,
                    content: FileContent {
                        size: size.max(believed(slot.0).size),
                        ..content
                    },
                    patch: PatchFile {
                        size,
                        hash: ContentHash(hash),
                    },
                }),
                _ => steps.place.push(PlaceStep::Touch { path, modified }),
            }
        }
        let mut known = Expectations::default();
        for step in &steps.clear {
            match step {
                ClearStep::Detach { slot, .. } => {
                    known.moved.insert(*slot, believed(slot.0));
                }
                ClearStep::RemoveFile { path } => {
                    known
                        .removed
                        .insert(path.clone(), believed(known.removed.len() as u32));
                }
                ClearStep::RemoveDir { .. } => {}
            }
        }
        for step in &steps.place {
            if let PlaceStep::Install { slot, .. } | PlaceStep::Patch { slot, .. } = step {
                known.replaced.insert(*slot, believed(slot.0));
            }
        }
        BatchRecord {
            volume: Uuid::from_u128(volume),
            batch: BatchNo(batch),
            created: Timestamp(created),
            origin,
            steps,
            known,
            catalog: None,
        }
    })
}

/// What is known of a file; some have a hash.
fn believed(seed: u32) -> ExpectedFile {
    ExpectedFile {
        size: u64::from(seed) * 1000,
        modified: Timestamp(-i64::from(seed)),
        hash: seed.is_multiple_of(2).then_some(ContentHash([7; 32])),
    }
}

proptest! {
    #[test]
    fn what_is_sealed_is_read_back(record in records()) {
        let bytes = seal(&record).unwrap();
        prop_assert_eq!(decode(&bytes), Ok(record));
    }

    #[test]
    fn damage_to_any_record_is_found(record in records(), at: prop::sample::Index, flip in 1_u8..) {
        let mut bytes = encode(&record);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(decode(&bytes).is_err_and(|e| e.is_torn()));
        prop_assert!(decode(&bytes[..at]).is_err_and(|e| e.is_torn()));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(decode(&bytes).is_err());
        let sealed = resealed([&b"ferryrec\x03\0\0\0\0\0\0\0"[..], &bytes].concat());
        let _ = decode(&sealed);
    }

    /// A hostile hand alters bytes and makes the checksum right: whatever is then accepted is still
    /// within bounds.
    #[test]
    fn what_is_accepted_is_always_fit_to_be_sealed(full: bool, edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = match full {
            false => body(),
            true => FULL[..FULL.len() - 32].to_vec(),
        };
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(record) = decode(&resealed(bytes.clone())) {
            let sealed = seal(&record).unwrap();
            prop_assert_eq!(sealed, resealed(bytes));
        }
    }
}
