//! Every name that Linux allows, on a real exFAT volume: made, flushed, and read back by a machine
//! that has only the drive.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::lab::{Backend, Lab, assert_content, write};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

fn os(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

/// Names that exFAT does not hold, or holds only one of, or that look like what ferryfs makes of
/// such. All can be read back from the drive alone.
fn nasty() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = Vec::new();
    for byte in (0x01..0x20).chain(*b"\"*:<>?\\|\x7f") {
        names.push(vec![byte]);
        names.push([b"x", &[byte][..], b"y"].concat());
    }
    let texts = [
        "dot.",
        "dots...",
        "...",
        "space ",
        "spaces  ",
        " ",
        ". ",
        " lead",
        ".hidden",
        "tab\t.",
        "README",
        "readme",
        "ReadMe",
        "README.md",
        "readme.MD",
        "STRASSE",
        "\u{e9}t\u{e9}",
        "e\u{301}te\u{301}",
        "\u{c9}T\u{c9}",
        "\u{201b}",
        "\u{201b}\u{201b}",
        "\u{ff1a}",
        "a\u{ff1a}b",
        "a:b",
        "A:B",
        "dot\u{ff0e}",
        "space\u{2420}",
        "\u{2401}",
        "\u{201b}\u{ff1a}",
        "\u{201b}FF",
        "\u{201b}~deadbeef",
        "x\u{201b}~deadbeef.txt",
        "\u{ff0e}ferryfs",
        "con",
        "NUL.txt",
        "\u{1f980}\u{200d}\u{2764}\u{fe0f}",
        "\u{65e5}\u{672c}\u{8a9e}",
        "\u{5e2}\u{5d1}\u{5e8}\u{5d9}\u{5ea}",
        "\u{130}",
        "\u{131}",
    ];
    names.extend(texts.map(|text| text.as_bytes().to_vec()));
    names.push("\u{1f980}".repeat(63).into_bytes());
    names.push("\u{20ac}".repeat(85).into_bytes());
    names.push(vec![b'n'; 255]);
    names.extend(
        [
            &b"\xff"[..],
            b"a\x80",
            b"caf\xe9.txt",
            b"\xe2\x80",
            b"\xed\xa0\x80",
        ]
        .map(<[u8]>::to_vec),
    );
    names
}

/// What stands in `dir`: files by name with their bytes, and directories without any.
#[track_caller]
fn listing(dir: &Path) -> BTreeMap<Vec<u8>, Option<Vec<u8>>> {
    let entries = fs::read_dir(dir).expect("list");
    entries
        .map(|entry| {
            let entry = entry.expect("an entry");
            let is_file = entry.file_type().expect("a type").is_file();
            let bytes = is_file.then(|| fs::read(entry.path()).expect("read"));
            (entry.file_name().as_bytes().to_vec(), bytes)
        })
        .collect()
}

/// The drive at another machine: nothing is known but what is on it.
fn move_to_another_machine(lab: &mut Lab) {
    lab.unmount();
    lab.take_new_cache();
    lab.mount(&[]);
}

fn fill(dir: &Path, names: &[Vec<u8>]) -> BTreeMap<Vec<u8>, Option<Vec<u8>>> {
    for name in names {
        fs::write(dir.join(os(name)), name)
            .unwrap_or_else(|e| panic!("{}: {e}", name.escape_ascii()));
    }
    let expected = names.iter().map(|name| (name.clone(), Some(name.clone())));
    expected.collect()
}

#[test]
fn every_name_that_linux_allows_is_the_same_on_another_machine() {
    let Some(mut lab) = Lab::mounted(Backend::EXFAT) else {
        return;
    };
    let mut at_the_root = nasty();
    at_the_root.extend([".ferryfs", ".FERRYFS", "\u{201b}\u{ff0e}ferryfs"].map(Vec::from));
    let expected_root = fill(&lab.mnt, &at_the_root);
    fs::create_dir(lab.m("d")).expect("mkdir");
    let mut below = nasty();
    below.push(b".ferryfs".to_vec());
    let expected_below = fill(&lab.m("d"), &below);
    let check = |lab: &Lab| {
        let mut root = listing(&lab.mnt);
        assert_eq!(root.remove(&b"d"[..]), Some(None));
        assert_eq!(root, expected_root);
        assert_eq!(listing(&lab.m("d")), expected_below);
    };
    check(&lab);
    lab.flush();
    check(&lab);
    // The rest is for people at the TV.
    assert_content(lab.d("a\u{ff1a}b"), "a:b");
    assert_content(lab.d("README"), "README");
    assert_content(lab.d("\u{ff0e}ferryfs"), ".ferryfs");
    assert!(lab.d(".ferryfs/volume.json").is_file());
    lab.assert_drive_is_mount();
    move_to_another_machine(&mut lab);
    check(&lab);
    for name in &at_the_root {
        fs::remove_file(lab.m(os(name))).unwrap_or_else(|e| panic!("{}: {e}", name.escape_ascii()));
    }
    lab.flush();
    assert_eq!(listing(&lab.mnt).len(), 1);
    lab.assert_drive_is_mount();
    lab.finish();
}

#[test]
fn names_too_long_for_the_drive_are_cut_there_and_not_here() {
    let Some(mut lab) = Lab::mounted(Backend::EXFAT) else {
        return;
    };
    let names = [
        vec![0xff; 255],
        [&[0xff; 251][..], b".mkv"].concat(),
        [&[0xfe; 251][..], b".mkv"].concat(),
        [&b"?"[..], &[b'n'; 254]].concat(),
        vec![b':'; 255],
    ];
    let expected = fill(&lab.mnt, &names);
    lab.flush();
    assert_eq!(listing(&lab.mnt), expected);
    lab.unmount();
    lab.remount();
    assert_eq!(listing(&lab.mnt), expected);
    let videos = fs::read_dir(lab.drive.path()).expect("list the drive");
    let videos = videos.filter(|entry| {
        let name = entry.as_ref().expect("an entry").file_name();
        name.as_bytes().ends_with(b".mkv")
    });
    assert_eq!(videos.count(), 2);
    // What was cut is not on the drive's entry; the bytes are.
    move_to_another_machine(&mut lab);
    let mut found: Vec<_> = listing(&lab.mnt).into_values().collect();
    let mut wanted: Vec<_> = expected.into_values().collect();
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted);
    lab.flush();
    lab.finish();
}

#[test]
fn directories_with_such_names_are_moved_with_all_in_them() {
    let Some(mut lab) = Lab::mounted(Backend::EXFAT) else {
        return;
    };
    let dir = |name: &[u8]| lab.m(os(name));
    for name in [&b"a:b"[..], b"A:B", b"Series ", b"\xff\xfe", b".FerryFS"] {
        fs::create_dir(dir(name)).expect("mkdir");
        write(&dir(name).join("what?"), name);
        fs::create_dir(dir(name).join("end.")).expect("mkdir");
        write(&dir(name).join("end.").join("README"), b"large");
        write(&dir(name).join("end.").join("readme"), b"small");
    }
    lab.flush();
    lab.assert_drive_is_mount();
    fs::rename(dir(b"a:b"), dir(b"a:b.")).expect("rename");
    fs::rename(dir(b"A:B"), dir(b"a:b")).expect("rename to what was just free");
    fs::rename(dir(b"\xff\xfe"), dir(b"Series ").join("in:side")).expect("move into another");
    fs::rename(dir(b".FerryFS"), dir(b".ferryfs")).expect("rename our own name's twin");
    let swapped = dir(b"a:b.").join("end.");
    let flags = RenameFlags::RENAME_EXCHANGE;
    renameat2(
        AT_FDCWD,
        &swapped.join("README"),
        AT_FDCWD,
        &swapped.join("readme"),
        flags,
    )
    .expect("exchange");
    let check = |lab: &Lab| {
        let dir = |name: &[u8]| lab.m(os(name));
        assert_content(dir(b"a:b.").join("what?"), b"a:b");
        assert_content(dir(b"a:b").join("what?"), b"A:B");
        assert_content(dir(b"Series ").join("in:side/what?"), b"\xff\xfe");
        assert_content(dir(b".ferryfs").join("what?"), b".FerryFS");
        assert_content(dir(b"a:b.").join("end./README"), b"small");
        assert_content(dir(b"a:b.").join("end./readme"), b"large");
        assert_content(dir(b"a:b").join("end./readme"), b"small");
        assert!(!dir(b"A:B").exists() && !dir(b".FerryFS").exists());
    };
    check(&lab);
    lab.flush();
    lab.assert_drive_is_mount();
    move_to_another_machine(&mut lab);
    check(&lab);
    lab.finish();
}

#[test]
fn a_replaced_file_keeps_its_place_on_the_drive() {
    let Some(lab) = Lab::mounted(Backend::EXFAT) else {
        return;
    };
    write(&lab.m("README"), b"one");
    write(&lab.m("readme"), b"two");
    lab.flush();
    let names = |lab: &Lab| -> Vec<Vec<u8>> { listing(lab.drive.path()).into_keys().collect() };
    let before = names(&lab);
    for round in [&b"three"[..], b"four"] {
        write(&lab.m("readme.tmp"), round);
        fs::rename(lab.m("readme.tmp"), lab.m("readme")).expect("replace");
        lab.flush();
        assert_eq!(names(&lab), before);
        assert_content(lab.m("readme"), round);
        assert_content(lab.m("README"), b"one");
    }
    // The sibling goes: the spelling stays.
    fs::remove_file(lab.m("README")).expect("unlink");
    write(&lab.m("readme.tmp"), b"five");
    fs::rename(lab.m("readme.tmp"), lab.m("readme")).expect("replace");
    lab.flush();
    assert_eq!(names(&lab).len(), before.len() - 1);
    assert!(names(&lab).iter().all(|name| before.contains(name)));
    // A rename is a new name, which may have the better spelling.
    fs::rename(lab.m("readme"), lab.m("Readme")).expect("change of case");
    lab.flush();
    assert_content(lab.d("Readme"), b"five");
    fs::rename(lab.m("Readme"), lab.m("README")).expect("change of case");
    lab.flush();
    assert!(names(&lab).contains(&b"README".to_vec()));
    lab.assert_drive_is_mount();
    lab.finish();
}

#[test]
fn what_others_put_on_the_drive_in_our_spelling_is_shown_and_never_lost() {
    let Some(mut lab) = Lab::new(Backend::EXFAT) else {
        return;
    };
    let long = "\u{20ac}".repeat(200);
    let foreign = [
        ("a\u{ff1a}b", "a:b"),
        ("x\u{201b}~deadbeef.txt", "x\u{201b}~deadbeef.txt"),
        ("\u{201b}\u{201b}", "\u{201b}"),
        ("\u{201b}41", "\u{201b}41"),
        ("\u{201b}ff", "\u{201b}ff"),
        // Both are read as one name: the one that we would write gets it.
        ("dot\u{ff0e}", "dot."),
    ];
    for (stored, _) in foreign {
        write(&lab.d(stored), stored.as_bytes());
    }
    write(&lab.d("dot."), b"with a real dot");
    write(&lab.d(&long), b"long");
    lab.mount(&[]);
    let found = listing(&lab.mnt);
    assert_eq!(found.len(), foreign.len() + 2);
    for (stored, shown) in foreign {
        assert_content(lab.m(shown), stored);
    }
    let by_content = |bytes: &[u8]| -> PathBuf {
        let found = found
            .iter()
            .find(|(_, found)| found.as_deref() == Some(bytes));
        lab.m(os(found.expect("it is shown").0))
    };
    let (dotted, cut) = (by_content(b"with a real dot"), by_content(b"long"));
    assert!(dotted.to_string_lossy().contains("/dot.\u{201b}~"));
    // Now names of ours that are spelled like these.
    let ours = [
        "a\u{ff1a}b",
        "A\u{ff1a}B",
        "A:B",
        "\u{201b}\u{201b}",
        "\u{201b}A1",
        "X\u{201b}~deadbeef.txt",
        "dot\u{ff0e}",
        "DOT.",
        "A",
    ];
    let mut expected = found.clone();
    for name in ours {
        write(&lab.m(name), name.as_bytes());
        expected.insert(name.as_bytes().to_vec(), Some(name.as_bytes().to_vec()));
    }
    assert_eq!(listing(&lab.mnt), expected);
    lab.flush();
    assert_eq!(listing(&lab.mnt), expected);
    for (stored, _) in foreign {
        assert_content(lab.d(stored), stored);
    }
    // What has a safe name can be written and moved like any other.
    fs::write(&cut, b"long, and longer").expect("write");
    fs::rename(&dotted, lab.m("dotted")).expect("rename");
    lab.flush();
    assert_content(lab.d(&long), b"long, and longer");
    assert!(!lab.d("dot.").exists());
    let expected = listing(&lab.mnt);
    move_to_another_machine(&mut lab);
    assert_eq!(listing(&lab.mnt), expected);
    lab.finish();
}

#[test]
fn a_name_of_more_than_255_bytes_is_refused_as_by_any_file_system() {
    let Some(lab) = Lab::mounted(Backend::EXFAT) else {
        return;
    };
    for name in ["\u{20ac}".repeat(86), "n".repeat(256), ":".repeat(256)] {
        let error = fs::write(lab.m(&name), b"").expect_err("too long");
        assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
        let error = fs::metadata(lab.m(&name)).expect_err("too long");
        assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    }
    lab.finish();
}

#[test]
fn our_own_name_can_be_used_on_a_file_system_of_linux_and_nothing_else_is_respelled() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    let mut names = nasty();
    names.extend([".ferryfs", ".FERRYFS", "\u{201b}\u{ff0e}ferryfs"].map(Vec::from));
    let expected = fill(&lab.mnt, &names);
    lab.flush();
    let respelled = ["\u{201b}~", "\u{ff0e}ferryfs", "\u{ff0e}FERRYFS"];
    for name in &names {
        let text = String::from_utf8_lossy(name);
        if !text.eq_ignore_ascii_case(".ferryfs")
            && !respelled.iter().any(|part| text.contains(part))
        {
            assert_eq!(fs::read(lab.d(os(name))).expect("read"), *name);
        }
    }
    move_to_another_machine(&mut lab);
    assert_eq!(listing(&lab.mnt), expected);
    lab.finish();
}
