//! A mount that only reads: it answers EROFS, and leaves the drive as it is to the last byte.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::lab::{Backend, Lab, assert_content, exit, text, write};

/// All that a change on the drive would show in: of every name below `dir`, `.ferryfs` included,
/// inode, size, mode, and the times of the last changes.
fn facts(dir: &Path, found: &mut BTreeMap<PathBuf, String>) {
    let meta = fs::symlink_metadata(dir).expect("stat");
    let (ino, size, mode) = (meta.ino(), meta.size(), meta.mode());
    let times = [
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec(),
    ];
    found.insert(dir.into(), format!("{ino} {size} {mode:o} {times:?}"));
    if meta.is_dir() {
        for entry in fs::read_dir(dir).expect("list") {
            facts(&entry.expect("an entry").path(), found);
        }
    }
}

fn drive_of(lab: &Lab) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    facts(lab.drive.path(), &mut found);
    found
}

#[track_caller]
fn assert_refused<T>(result: io::Result<T>) {
    let error = result.err().expect("a change of a read-only mount");
    assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{error}");
}

#[test]
fn nothing_is_changed_in_the_mount_or_on_the_drive() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    write(&lab.m("dir/a"), b"a");
    lab.flush();
    lab.unmount();
    write(&lab.d("dir/by another program"), b"new");
    let before = drive_of(&lab);
    lab.mount(&[
        "--read-only",
        "--flush-after",
        "100ms",
        "--schedule",
        "* * * * *",
    ]);
    assert_eq!(lab.status()["read_only"], true);
    let mnt = text(&lab.mnt);
    lab.ferryfs(&["refresh", &mnt]).code(exit::DONE);
    assert_content(lab.m("dir/a"), b"a");
    assert_content(lab.m("dir/by another program"), b"new");
    assert_refused(fs::write(lab.m("b"), b"b"));
    assert_refused(fs::write(lab.m("dir/a"), b"b"));
    assert_refused(fs::create_dir(lab.m("made")));
    assert_refused(fs::remove_file(lab.m("dir/a")));
    assert_refused(fs::rename(lab.m("dir"), lab.m("moved")));
    lab.flush();
    lab.eject();
    lab.ferryfs(&["attach", &text(lab.drive.path()), &mnt])
        .code(exit::DONE);
    assert_content(lab.m("dir/by another program"), b"new");
    lab.unmount();
    assert_eq!(drive_of(&lab), before);
    lab.finish();
}

#[test]
fn what_waits_is_shown_named_and_kept_for_the_next_mount() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    write(&lab.m("a"), b"a");
    lab.flush();
    write(&lab.m("waits"), b"waits");
    lab.unmount_with(&["--no-flush"]);
    let before = drive_of(&lab);
    lab.mount(&["--read-only"]);
    assert_content(lab.m("waits"), b"waits");
    let report = lab.flush_code(exit::LEFT_BEHIND).json();
    let reason = report["left_behind"][0]["reason"].to_string();
    assert!(reason.contains("only reads the drive"), "{reason}");
    assert_eq!(lab.status()["safe_to_unplug"], false);
    let mnt = text(&lab.mnt);
    lab.ferryfs(&["unmount", &mnt]).code(exit::LEFT_BEHIND);
    assert_eq!(drive_of(&lab), before);
    lab.mount(&[]);
    lab.finish_flushed();
}

#[test]
fn a_drive_that_the_cache_does_not_know_is_refused_and_not_enrolled() {
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    write(&lab.d("a"), b"a");
    let before = drive_of(&lab);
    lab.try_mount(&["--read-only"])
        .refuses(exit::FAILED, "no volume of ferryfs");
    lab.try_mount(&["--read-only", "--enroll"])
        .refuses(exit::USAGE, "--enroll");
    assert_eq!(drive_of(&lab), before);
    lab.mount(&[]);
    lab.unmount();
    lab.take_new_cache();
    let before = drive_of(&lab);
    lab.try_mount(&["--read-only"])
        .refuses(exit::FAILED, "does not know the drive");
    assert_eq!(drive_of(&lab), before);
    assert!(!lab.is_mounted());
    lab.finish();
}
