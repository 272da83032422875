//! Links, pipes, devices and the like in the place of what is ours.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, mknod};

use super::stage::Stage;
use crate::lab::write;

/// What is put in the place of something.
#[derive(Clone, Copy, Debug)]
enum Plant {
    /// To the tree outside.
    Link,
    /// To a file outside.
    LinkToFile,
    /// To nothing; to be made by whoever follows it.
    Dangling,
    Pipe,
    Socket,
    Device,
    Directory,
    File,
}

const ALL: [Plant; 8] = [
    Plant::Link,
    Plant::LinkToFile,
    Plant::Dangling,
    Plant::Pipe,
    Plant::Socket,
    Plant::Device,
    Plant::Directory,
    Plant::File,
];

impl Plant {
    /// False if this machine does not let it be made.
    fn put(self, at: &Path, outside: &Path) -> bool {
        let mode = Mode::from_bits_truncate(0o666);
        match self {
            Plant::Link => symlink(outside, at).expect("symlink"),
            Plant::LinkToFile => symlink(outside.join("volume.json"), at).expect("symlink"),
            Plant::Dangling => symlink(outside.join("made"), at).expect("symlink"),
            Plant::Pipe => nix::unistd::mkfifo(at, mode).expect("mkfifo"),
            Plant::Socket => drop(UnixListener::bind(at).expect("bind")),
            // What /dev/zero is: bytes without an end.
            Plant::Device => {
                return mknod(at, SFlag::S_IFCHR, mode, nix::sys::stat::makedev(1, 5)).is_ok();
            }
            Plant::Directory => fs::create_dir(at).expect("mkdir"),
            Plant::File => write(at, b"planted"),
        }
        true
    }
}

fn remove(at: &Path) {
    match fs::symlink_metadata(at) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(at).expect("remove"),
        Ok(_) => fs::remove_file(at).expect("remove"),
        // Whoever met it has removed it, as garbage of ours.
        Err(_) => {}
    }
}

/// Puts each plant in the place of `ours`, if that is there, and takes it away again.
fn in_place_of(ours: &str) {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    let at = stage.lab.d(".ferryfs").join(ours);
    let at = if ours.is_empty() {
        stage.lab.d(".ferryfs")
    } else {
        at
    };
    let kept = stage.lab.root().join("kept");
    let was_there = at.exists();
    for plant in ALL {
        if was_there {
            fs::rename(&at, &kept).expect("move it away");
        }
        let outside = stage.outside();
        if plant.put(&at, &outside) {
            stage.ends_well(&format!("{plant:?} as {}", at.display()));
        }
        remove(&at);
        if was_there {
            fs::rename(&kept, &at).expect("move it back");
        }
    }
    stage.end_sound();
}

#[test]
fn our_directory() {
    in_place_of("");
}

#[test]
fn the_marker() {
    in_place_of("volume.json");
}

#[test]
fn the_directory_of_staged_files() {
    in_place_of("staging");
}

#[test]
fn the_directory_of_records() {
    in_place_of("batches");
}

#[test]
fn a_staging_directory() {
    in_place_of("staging/0000000000000063");
}

#[test]
fn a_record() {
    in_place_of("batches/0000000000000063.rec");
}

#[test]
fn a_receipt() {
    in_place_of("batches/0000000000000063.done");
}

#[test]
fn an_unfinished_record() {
    in_place_of("batches/0000000000000063.rec.tmp");
}

/// What is left in a staging directory is kept in lost+found, which here is somewhere else.
#[test]
fn lost_and_found_with_something_to_be_kept() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    for plant in ALL {
        let staging = stage.lab.d(".ferryfs/staging/0000000000000063");
        fs::create_dir_all(staging.join("s00000001/in")).expect("mkdir");
        write(&staging.join("s00000001/in/file"), b"somebody's");
        let at = stage.lab.d(".ferryfs/lost+found");
        let outside = stage.outside();
        if plant.put(&at, &outside) {
            stage.ends_well(&format!("{plant:?} as lost+found"));
        }
        let places = [
            staging.join("s00000001"),
            at.join("0000000000000063-s00000001"),
        ];
        let kept = places.iter().any(|place| place.join("in/file").exists());
        assert!(kept, "somebody's file is gone, {plant:?}");
        remove(&at);
        remove(&staging);
    }
    stage.end_sound();
}

#[test]
fn things_in_a_staging_directory_are_removed_themselves_and_not_what_they_point_to() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    let staging = stage.lab.d(".ferryfs/staging/0000000000000063");
    fs::create_dir(&staging).expect("mkdir");
    let outside = stage.outside();
    for (number, plant) in ALL.into_iter().enumerate() {
        plant.put(&staging.join(format!("s{number:08x}")), &outside);
    }
    assert!(stage.ends_well("links and the like in a staging directory"));
    assert!(!staging.exists());
    stage.end_sound();
}

#[test]
fn files_of_any_size_in_the_place_of_ours() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    let (marker, record) = (
        stage.lab.d(".ferryfs/volume.json"),
        stage.lab.d(".ferryfs/batches/0000000000000063.rec"),
    );
    let sound = fs::read(&marker).expect("read");
    let huge = |path: &Path, size: u64, begins: &[u8]| {
        write(path, begins);
        let file = File::options().write(true).open(path).expect("open");
        file.set_len(size).expect("a file with a hole");
    };
    huge(&marker, 1 << 30, &sound);
    assert!(!stage.ends_well("a marker of 1 GiB"));
    write(&marker, &sound);
    for (size, begins) in [
        (1_u64 << 30, &b""[..]),
        (900 << 20, b"ferryrec\x01\0"),
        (3 << 40, b"ferryrec\x01\0"),
        (3 << 40, b""),
    ] {
        huge(&record, size, begins);
        stage.ends_well(&format!("a record of {size} bytes"));
        remove(&record);
    }
    stage.end_sound();
}

/// Numbers go up from the highest that is found, so nobody may bring them to their end.
#[test]
fn numbers_at_the_end_of_what_can_be_counted_keep_no_batch_from_beginning() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    let ours = stage.lab.d(".ferryfs");
    for number in [
        u64::MAX,
        i64::MAX as u64 + 1,
        i64::MAX as u64,
        (1 << 62) + 1,
        1 << 62,
    ] {
        for suffix in ["rec", "done"] {
            let name = ours.join(format!("batches/{number:016x}.{suffix}"));
            write(&name, b"garbage");
        }
        fs::create_dir_all(ours.join(format!("staging/{number:016x}"))).expect("mkdir");
        assert!(stage.ends_well(&format!("batch {number:x}")));
        let round = format!("round{}", stage.rounds());
        assert!(
            stage.lab.d(&round).exists(),
            "{number:x}: nothing is carried"
        );
    }
    stage.end_sound();
}

#[test]
fn names_that_no_batch_has_are_left_alone() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    let ours = stage.lab.d(".ferryfs");
    let longest = "x".repeat(255);
    let names: [&[u8]; 6] = [
        b"..x.rec",
        b"1.rec",
        b"000000000000006G.rec",
        b"\xff\xfe\x1b[2J.rec",
        b"\n.rec",
        longest.as_bytes(),
    ];
    for dir in ["batches", "staging", "."] {
        for name in names {
            write(&ours.join(dir).join(OsStr::from_bytes(name)), b"theirs");
        }
    }
    assert!(stage.ends_well("names of nobody"));
    for dir in ["batches", "staging", "."] {
        for name in names {
            let there = ours.join(dir).join(OsStr::from_bytes(name));
            assert!(there.exists(), "{there:?}");
            fs::remove_file(there).expect("remove");
        }
    }
    stage.end_sound();
}

/// A cache that meets the volume for the first time tries it out in a directory of ours.
#[test]
fn the_place_where_a_new_cache_tries_the_drive_out() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    let (at, first) = (stage.lab.d(".ferryfs/probe"), stage.lab.cache.clone());
    let outside = stage.outside();
    for plant in ALL {
        plant.put(&at, &outside);
        stage.a_new_cache_helps(&format!("{plant:?} as probe"));
        remove(&at);
    }
    fs::create_dir_all(at.join("not/ours")).expect("mkdir");
    for (number, plant) in ALL.into_iter().enumerate() {
        plant.put(&at.join(number.to_string()), &outside);
    }
    stage.a_new_cache_helps("a directory that is not ours in probe");
    assert!(at.join("not/ours").exists());
    remove(&at);
    stage.lab.cache = first;
    stage.end_sound();
}
