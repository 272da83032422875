//! Records whose checksum is right and whose content is not.

use ferryfs::base::Timestamp;
use ferryfs::rules::record::{MAX_PATH_BYTES, RecordError, check, decode, encode, seal};
use ferryfs::rules::steps::{ClearStep, FileContent, PlaceStep, PlainKind, SlotNo};

use crate::{
    SECTIONS, attach, body, content, detach, install, patched, path, removing, resealed, section,
    with_steps,
};

#[test]
fn a_truncated_body_under_a_right_checksum_is_refused() {
    for length in 0..body().len() {
        let error = decode(&resealed(body()[..length].to_vec())).expect_err("cut short");
        assert!(length < 8 || !error.is_torn(), "{length}: {error}");
    }
    let mut longer = body();
    longer.push(0);
    assert!(decode(&resealed(longer)).is_err());
}

#[test]
fn sections_missing_doubled_out_of_order_or_overfull_are_refused() {
    let empty = 0_u64.to_le_bytes();
    let (clear, place) = (section(1, 0, &empty), section(2, 0, &empty));
    let header = body()[..SECTIONS].to_vec();
    let with = |sections: &[&Vec<u8>]| {
        let mut bytes = header.clone();
        sections.iter().for_each(|s| bytes.extend_from_slice(s));
        decode(&resealed(bytes))
    };
    assert!(with(&[&clear, &place]).is_ok());
    let skippable = section(1, 1, &empty);
    let left_over = section(1, 0, &[0; 9]);
    for bad in [
        &[][..],
        &[&clear],
        &[&place],
        &[&place, &clear],
        &[&clear, &clear, &place],
        &[&skippable, &place],
        &[&left_over, &place],
    ] {
        let found = with(bad);
        assert!(
            matches!(found, Err(RecordError::Malformed { .. })),
            "{found:?}"
        );
    }
}

#[test]
fn absurd_counts_and_lengths_are_refused_without_allocating() {
    for absurd in [4, 1 << 20, u64::MAX / 2, u64::MAX] {
        // The first section's length, then its count.
        for at in [SECTIONS + 8, SECTIONS + 16] {
            let found = decode(&patched(at, &absurd.to_le_bytes()));
            assert!(
                matches!(found, Err(RecordError::Malformed { .. })),
                "{found:?}"
            );
        }
    }
    // The length of the first path, behind count, tag, kind and slot.
    for absurd in [MAX_PATH_BYTES as u32 + 1, u32::MAX] {
        let found = decode(&patched(SECTIONS + 30, &absurd.to_le_bytes()));
        assert!(
            matches!(found, Err(RecordError::Malformed { .. })),
            "{found:?}"
        );
    }
}

#[test]
fn tags_and_header_bytes_that_were_never_written_are_refused() {
    let at_tag = SECTIONS + 24;
    for (at, byte) in [
        (9, 0xff),
        (10, 1),
        (at_tag, 0),
        (at_tag, 4),
        (at_tag + 1, 3),
    ] {
        assert!(decode(&patched(at, &[byte])).is_err(), "{at}");
    }
    assert!(decode(&patched(8, &[0, 0])).is_err());
}

#[test]
fn a_path_that_leaves_the_tree_is_refused() {
    assert!(decode(&removing(b"fine/..name")).is_ok());
    for bad in [
        &b".."[..],
        b"a/../../b",
        b"/etc/passwd",
        b"a//b",
        b"./a",
        b"a\0b",
        b"a/",
    ] {
        let found = decode(&removing(bad));
        assert!(
            matches!(found, Err(RecordError::BadPath { .. })),
            "{found:?}"
        );
    }
    let root = decode(&removing(b""));
    assert!(root.is_err(), "{root:?}");
}

#[test]
fn our_own_directory_is_out_of_reach_of_every_step() {
    for ours in [".ferryfs", ".FerryFS/x", ".FERRYFS/volume.json"] {
        let touch = PlaceStep::Touch {
            path: path(ours),
            modified: Timestamp(0),
        };
        let to_ours = |slot| attach(slot, ours, PlainKind::File);
        for record in [
            with_steps(vec![ClearStep::RemoveFile { path: path(ours) }], vec![]),
            with_steps(vec![ClearStep::RemoveDir { path: path(ours) }], vec![]),
            with_steps(
                vec![detach(ours, 0, PlainKind::File)],
                vec![attach(0, "a", PlainKind::File)],
            ),
            with_steps(vec![detach("a", 0, PlainKind::File)], vec![to_ours(0)]),
            with_steps(vec![], vec![PlaceStep::MakeDir { path: path(ours) }]),
            with_steps(vec![], vec![install(0, ours)]),
            with_steps(vec![], vec![touch]),
        ] {
            let reserved = Err(RecordError::Reserved { path: path(ours) });
            assert_eq!(decode(&encode(&record)), reserved);
            assert!(seal(&record).is_err());
        }
    }
    let theirs = with_steps(vec![], vec![install(0, "a/.ferryfs")]);
    assert_eq!(decode(&encode(&theirs)), Ok(theirs));
}

#[test]
fn steps_that_disagree_over_a_slot_are_refused() {
    use PlainKind::{Directory, File};
    let set_aside = || detach("a", 7, File);
    for record in [
        with_steps(
            vec![set_aside(), detach("b", 7, File)],
            vec![attach(7, "c", File)],
        ),
        with_steps(vec![set_aside()], vec![install(7, "c")]),
        with_steps(vec![], vec![install(7, "c"), install(7, "d")]),
        with_steps(vec![], vec![attach(7, "c", File)]),
        with_steps(vec![], vec![install(7, "c"), attach(7, "d", File)]),
        with_steps(
            vec![set_aside()],
            vec![attach(7, "c", File), attach(7, "d", File)],
        ),
        with_steps(vec![set_aside()], vec![attach(7, "c", Directory)]),
        with_steps(vec![set_aside()], vec![]),
    ] {
        let found = decode(&encode(&record));
        let seven = matches!(
            found,
            Err(RecordError::BadSlot {
                slot: SlotNo(7),
                ..
            })
        );
        assert!(seven, "{found:?}");
        assert_eq!(check(&record), found.map(drop));
    }
}

#[test]
fn steps_of_which_one_would_undo_another_are_refused() {
    let huge = PlaceStep::Install {
        slot: SlotNo(0),
        to: path("a"),
        content: FileContent {
            size: 1 << 63,
            ..content(0)
        },
    };
    let long = path(&vec!["x".repeat(255); MAX_PATH_BYTES / 256 + 1].join("/"));
    let (dir, file) = (path("a"), path("a"));
    for record in [
        with_steps(vec![], vec![install(0, "a"), install(1, "a")]),
        with_steps(
            vec![
                ClearStep::RemoveDir { path: dir },
                ClearStep::RemoveFile { path: file },
            ],
            vec![],
        ),
        with_steps(vec![], vec![huge]),
        with_steps(vec![ClearStep::RemoveFile { path: long }], vec![]),
    ] {
        assert!(decode(&encode(&record)).is_err(), "{record:?}");
        assert!(seal(&record).is_err());
    }
}
