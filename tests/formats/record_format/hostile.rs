//! Records whose checksum is right and whose content is not.

use ferryfs::core::{FileKind, Timestamp};
use ferryfs::format::catalog::{CatalogChange, Description, Extent};
use ferryfs::format::record::{
    BatchRecord, MAX_PATH_BYTES, RecordError, check, decode, encode, seal,
};
use ferryfs::format::steps::{
    AttributeStep, ClearStep, FileContent, Node, PlaceStep, PlainKind, SlotNo,
};

use super::{
    FULL, SECTIONS, attach, body, bytes, content, detach, install, known_full, of_a_file,
    of_a_node, patched, path, removing, resealed, section, set, with_steps,
};

#[test]
fn a_truncated_body_under_a_right_checksum_is_refused() {
    for length in 0..body().len() {
        let error = decode(&resealed(body()[..length].to_vec())).expect_err("cut short");
        assert!(length < 8 || !error.is_torn(), "{length}: {error}");
    }
    // A whole section may be missing: that is another record, and no part of this one.
    let whole = &FULL[..FULL.len() - 32];
    for length in 0..whole.len() {
        let found = decode(&resealed(whole[..length].to_vec()));
        assert_ne!(found.as_ref(), Ok(&known_full()), "{length}");
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
    let mut record = with_steps(vec![], vec![]);
    record.steps.attributes = vec![AttributeStep::new(path(".FERRYFS/x"))];
    assert!(seal(&record).is_err());
    let theirs = with_steps(vec![], vec![install(0, "a/.ferryfs")]);
    assert_eq!(decode(&encode(&theirs)), Ok(theirs));
}

/// The first step that does not fit is named, whoever reads it.
fn assert_refused(record: &BatchRecord, problem: &str) {
    let error = check(record).expect_err(problem);
    assert!(error.to_string().contains(problem), "{error}");
    assert_eq!(decode(&encode(record)).map(drop), Err(error));
}

#[test]
fn nodes_further_names_and_attributes_that_cannot_be_meant_are_refused() {
    let node = |slot, to: &str, node| PlaceStep::InstallNode {
        slot: SlotNo(slot),
        to: path(to),
        node,
    };
    let link = |from: &str, to: &str| PlaceStep::Link {
        from: path(from),
        to: path(to),
    };
    let place = |steps| with_steps(vec![], steps);
    let to_nul = Node::Symlink {
        target: Box::from(&b"a\0"[..]),
    };
    assert_refused(&place(vec![node(0, "a", to_nul)]), "cannot point there");
    let twice = vec![node(0, "a", Node::Fifo), install(0, "b")];
    assert_refused(&place(twice), "two steps fill it");
    let same = vec![install(0, "a"), link("a", "a")];
    assert_refused(&place(same), "two steps put something there");
    let early = vec![link("a", "b"), install(0, "c")];
    assert_refused(&place(early), "after a further name");
    assert_refused(&place(vec![link("", "b")]), "no step acts on the root");

    let attributes = |paths: &[&str]| {
        let mut record = place(vec![]);
        let steps = paths.iter().map(|it| AttributeStep::new(path(it)));
        record.steps.attributes = steps.collect();
        record
    };
    assert_eq!(check(&attributes(&["a/b/c", "a/b", "ab", "a", ""])), Ok(()));
    for bad in [&["a", "a"][..], &["a", "a/b/c"], &["", "a"]] {
        assert_refused(&attributes(bad), "twice, or after the directory");
    }
    let mut record = attributes(&["a"]);
    record.steps.attributes[0].mode = Some(0o10000);
    assert_refused(&record, "permission bits");
    let mut record = attributes(&["a"]);
    let xattr = |name: &[u8]| (Box::from(name), Box::from(&b""[..]));
    record.steps.attributes[0].xattrs = Some(vec![xattr(b"b"), xattr(b"a")]);
    assert_refused(&record, "ascending order");
    record.steps.attributes[0].xattrs = Some(vec![xattr(b"")]);
    assert_refused(&record, "can be called so");
}

#[test]
fn changes_of_the_catalog_that_cannot_be_meant_are_refused() {
    let with = |full: bool, changes: Vec<CatalogChange>| {
        let mut record = known_full();
        let catalog = record.catalog.as_mut().expect("it has one");
        (catalog.full, catalog.changes) = (full, changes);
        record
    };
    let slot = SlotNo(1);
    let detach = |from: &str| CatalogChange::Detach {
        from: path(from),
        slot,
    };
    let attach = |to: &str| CatalogChange::Attach { slot, to: path(to) };
    let remove = |at: &str| CatalogChange::Remove { path: path(at) };
    let plain = || of_a_node(FileKind::Fifo, None, 0);
    let fine = vec![detach("a"), remove("b"), attach("b"), set("b", plain())];
    assert_eq!(check(&with(false, fine)), Ok(()));
    for (changes, problem) in [
        (vec![remove("")], "the root can only be described"),
        (
            vec![detach(""), attach("a")],
            "the root can only be described",
        ),
        (vec![set(".FerryFS/x", plain())], "belongs to ferryfs"),
        (vec![attach("a")], "never set aside"),
        (vec![detach("a")], "never put back"),
        (vec![detach("a"), detach("b"), attach("c")], "fill one slot"),
        (
            vec![detach("a"), attach("b"), attach("c")],
            "never set aside",
        ),
    ] {
        assert_refused(&with(false, changes), problem);
    }
    let whole = |paths: &[&str]| {
        let sets = paths.iter().map(|it| set(it, plain()));
        with(true, sets.collect())
    };
    // By names: what is in a directory follows it at once.
    assert_eq!(check(&whole(&["", "a", "a/b", "a b", "b"])), Ok(()));
    for bad in [&["a", "a"][..], &["b", "a"], &["a b", "a/b"], &["a", ""]] {
        assert_refused(&whole(bad), "not in order");
    }
    assert_refused(&with(true, vec![remove("a")]), "only describes");
    let mut first = with(false, vec![]);
    first.catalog.as_mut().expect("it has one").after = None;
    assert_refused(&first, "follows on none");
    let mut zeroth = with(false, vec![]);
    zeroth.catalog.as_mut().expect("it has one").segment = 0;
    assert_refused(&zeroth, "that number");
}

#[test]
fn descriptions_of_what_cannot_be_are_refused() {
    let hole = |offset, length| Extent { offset, length };
    type Edit = Box<dyn Fn(&mut Description)>;
    let edits: Vec<Edit> = vec![
        Box::new(|it| it.permissions = 0o10000),
        Box::new(|it| it.rdev = 1),
        Box::new(|it| it.target = Some(bytes("x"))),
        Box::new(|it| it.kind = FileKind::Symlink),
        Box::new(|it| it.kind = FileKind::Directory),
        Box::new(|it| it.kind = FileKind::Fifo),
        Box::new(|it| it.size = u64::MAX),
        Box::new(|it| it.owner.name = Some(bytes(""))),
        Box::new(|it| it.group.name = Some(bytes("a\0b"))),
        Box::new(|it| drop(it.xattrs.insert(bytes("a\0"), bytes("")))),
        Box::new(move |it| it.holes = vec![hole(0, 0)]),
        Box::new(move |it| it.holes = vec![hole(4, 4), hole(0, 2)]),
        Box::new(move |it| it.holes = vec![hole(0, 4), hole(4, 4)]),
        Box::new(move |it| it.holes = vec![hole(1 << 40, 1)]),
        Box::new(move |it| it.holes = vec![hole(u64::MAX, 2)]),
    ];
    for (nth, edit) in edits.iter().enumerate() {
        let mut description = of_a_file();
        edit(&mut description);
        let mut record = known_full();
        let catalog = record.catalog.as_mut().expect("it has one");
        catalog.changes = vec![set("a", description)];
        assert!(check(&record).is_err(), "edit {nth}");
        assert!(decode(&encode(&record)).is_err(), "edit {nth}");
    }
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

/// A patch is worth nothing without the bytes that it leaves as they are.
#[test]
fn patches_of_what_is_not_known_to_be_there_are_refused() {
    let full = known_full();
    let at = (full.steps.place.iter())
        .position(|step| matches!(step, PlaceStep::Patch { .. }))
        .expect("it has one");
    let edits: [&dyn Fn(&mut BatchRecord); 7] = [
        &|record| record.known.replaced.clear(),
        &|record| {
            for before in record.known.replaced.values_mut() {
                before.size = 0x78;
            }
        },
        &|record| {
            let path = path("vm.img");
            record.steps.clear.push(ClearStep::RemoveFile { path });
        },
        &|record| {
            if let PlaceStep::Patch { patch, .. } = &mut record.steps.place[at] {
                patch.size = 1 << 63;
            }
        },
        &|record| {
            if let PlaceStep::Patch { slot, .. } = &mut record.steps.place[at] {
                *slot = SlotNo(0);
            }
        },
        &|record| {
            if let PlaceStep::Patch { to, .. } = &mut record.steps.place[at] {
                *to = path(".ferryfs/volume.json");
            }
        },
        &|record| {
            let step = record.steps.place.remove(at);
            record.steps.place.push(step);
        },
    ];
    for (nth, edit) in edits.iter().enumerate() {
        let mut record = full.clone();
        edit(&mut record);
        assert!(check(&record).is_err(), "edit {nth}");
        assert!(decode(&encode(&record)).is_err(), "edit {nth}");
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
