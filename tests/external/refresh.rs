//! Others work on the drive while it is mounted, or while it is away: `ferryfs refresh`,
//! `--refresh`, and plugging it in show it, past everything that the kernel remembers.

use crate::{lab, on_both_drives};

use std::fs;
use std::io::{Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use crate::lab::{Backend, Lab, assert_content, exit, text, wait_until, write};
use serde_json::Value;

on_both_drives!(
    what_others_do_is_seen_after_refresh_whatever_the_kernel_remembers,
    both_versions_are_kept_where_both_sides_have_changed_a_file,
    what_was_done_to_the_drive_elsewhere_is_seen_when_it_is_plugged_in,
    a_flush_takes_in_what_it_meets,
    a_drive_whose_clock_is_read_in_another_zone_is_as_it_was,
);

#[track_caller]
fn refresh(lab: &Lab, below: &str) -> Value {
    let path = text(&lab.m(below));
    lab.ferryfs(&["refresh", "--json", &path])
        .code(exit::DONE)
        .json()
}

/// The look that follows every attach is over: it is not to meet what a test does.
fn looked(lab: &Lab) {
    wait_until("the first look to end", Duration::from_secs(60), || {
        lab.status()["last_refresh"].is_object()
    });
}

fn names(lab: &Lab, dir: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(lab.m(dir))
        .expect("list")
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

fn what_others_do_is_seen_after_refresh_whatever_the_kernel_remembers(lab: Lab) {
    looked(&lab);
    write(&lab.m("d/changed"), b"before");
    write(&lab.m("d/deleted"), b"to go");
    write(&lab.m("d/moved"), b"to be moved somewhere else");
    write(&lab.m("d/sub/leaf"), b"leaf");
    lab.flush();
    // All of it is remembered: bytes, attributes, names, and that there is nothing.
    let mut reader = fs::File::open(lab.m("d/changed")).expect("open");
    let mut whole = Vec::new();
    reader.read_to_end(&mut whole).expect("read");
    assert_eq!(whole, b"before");
    let inode = fs::metadata(lab.m("d/moved")).expect("stat").ino();
    assert!(!lab.m("d/new").exists() && lab.m("d/deleted").exists());
    assert_eq!(names(&lab, "d"), ["changed", "deleted", "moved", "sub"]);

    fs::write(lab.d("d/changed"), b"and after").expect("write");
    fs::remove_file(lab.d("d/deleted")).expect("rm");
    fs::rename(lab.d("d/moved"), lab.d("d/sub/elsewhere")).expect("mv");
    fs::write(lab.d("d/new"), b"new").expect("write");
    fs::create_dir(lab.d("fresh")).expect("mkdir");
    fs::write(lab.d("fresh/inside"), b"inside").expect("write");
    let found = refresh(&lab, "");
    assert_eq!(found["changed"], 1, "{found}");
    assert_eq!(found["deleted"], 1, "{found}");
    assert_eq!(found["moved"], 1, "{found}");
    assert_eq!(found["conflicts"], 0, "{found}");

    assert_eq!(names(&lab, "d"), ["changed", "new", "sub"]);
    assert_content(lab.m("d/changed"), b"and after");
    assert_eq!(fs::metadata(lab.m("d/changed")).expect("stat").len(), 9);
    assert_content(lab.m("d/new"), b"new");
    assert_content(lab.m("fresh/inside"), b"inside");
    assert!(!lab.m("d/deleted").exists());
    let moved = fs::metadata(lab.m("d/sub/elsewhere")).expect("stat");
    assert_eq!(moved.ino(), inode);
    reader.rewind().expect("rewind");
    whole.clear();
    reader.read_to_end(&mut whole).expect("read");
    assert_eq!(
        whole, b"and after",
        "by a descriptor that was open all along"
    );
    drop(reader);
    assert!(lab.status()["last_refresh"]["time"].is_string());
    let again = refresh(&lab, "");
    for what in ["new", "changed", "moved", "deleted", "conflicts"] {
        assert_eq!(again[what], 0, "{again}");
    }
    lab.assert_drive_is_mount();
    lab.finish();
}

fn both_versions_are_kept_where_both_sides_have_changed_a_file(lab: Lab) {
    looked(&lab);
    write(&lab.m("d/report.txt"), b"first");
    lab.flush();
    write(&lab.m("d/report.txt"), b"ours, changed");
    fs::write(lab.d("d/report.txt"), b"theirs, changed as well").expect("write");
    let found = refresh(&lab, "d");
    assert_eq!(found["conflicts"], 1, "{found}");
    assert_eq!(lab.status()["conflicts"], 1);
    assert_content(lab.m("d/report.txt"), b"ours, changed");
    let other = names(&lab, "d")
        .into_iter()
        .find(|name| name.starts_with("report.sync-conflict-") && name.ends_with(".txt"))
        .expect("the other version");
    assert_content(lab.m("d").join(&other), b"theirs, changed as well");
    lab.flush();
    assert_content(lab.d("d/report.txt"), b"ours, changed");
    assert_content(lab.d("d").join(&other), b"theirs, changed as well");
    lab.assert_drive_is_mount();
    fs::remove_file(lab.m("d").join(&other)).expect("rm");
    assert_eq!(lab.status()["conflicts"], 0);
    lab.flush();
    lab.finish();
}

fn what_was_done_to_the_drive_elsewhere_is_seen_when_it_is_plugged_in(mut lab: Lab) {
    write(&lab.m("d/kept"), b"kept");
    write(&lab.m("d/changed"), b"before");
    write(&lab.m("d/deleted"), b"to go");
    lab.flush();
    assert_eq!(names(&lab, "d").len(), 3);
    lab.eject();
    // Elsewhere.
    fs::write(lab.d("d/changed"), b"changed while it was away").expect("write");
    fs::remove_file(lab.d("d/deleted")).expect("rm");
    fs::write(lab.d("d/new"), b"new").expect("write");
    lab.drive.take_away();
    write(&lab.m("d/made here"), b"meanwhile");
    assert!(lab.m("d/deleted").exists(), "absent is not deleted");
    lab.drive.put_back();
    wait_until("what is new to be seen", Duration::from_secs(60), || {
        lab.m("d/new").exists()
    });
    wait_until("the look to end", Duration::from_secs(60), || {
        lab.status()["last_refresh"]["new"] == 1
    });
    assert_content(lab.m("d/changed"), b"changed while it was away");
    assert_eq!(names(&lab, "d"), ["changed", "kept", "made here", "new"]);
    lab.finish_flushed();
}

/// As after a change to summer time, between an eject and an attach.
fn a_drive_whose_clock_is_read_in_another_zone_is_as_it_was(lab: Lab) {
    for n in 1..=5 {
        write(&lab.m(format!("album/p{n}")), &lab::content(n, 3000));
    }
    lab.flush();
    lab.eject();
    write(&lab.m("album/p1"), b"edited");
    fs::remove_file(lab.m("album/p2")).expect("rm");
    fs::rename(lab.m("album/p3"), lab.m("album/q3")).expect("mv");
    lab::sh(&lab.mnt, "chmod 600 album/p4");
    lab::sh(
        &lab.d("album"),
        "for f in *; do touch -d @$(($(stat -c %Y $f) + 3600)) $f; done",
    );
    let attach = ["attach", &text(lab.drive.path()), &text(&lab.mnt)];
    lab.ferryfs(&attach).code(exit::DONE);
    refresh(&lab, "");
    lab.flush();
    assert_eq!(names(&lab, "album"), ["p1", "p4", "p5", "q3"]);
    assert_content(lab.d("album/p1"), b"edited");
    assert_content(lab.d("album/q3"), lab::content(3, 3000));
    assert!(!lab.d("album/p2").exists() && !lab.d("album/p3").exists());
    lab.assert_drive_is_mount();
    lab.finish();
}

fn a_flush_takes_in_what_it_meets(lab: Lab) {
    looked(&lab);
    write(&lab.m("d/f"), b"first");
    lab.flush();
    write(&lab.m("d/f"), b"second, ours");
    fs::write(lab.d("d/f"), b"second, theirs, and longer").expect("write");
    fs::write(lab.d("d/beside"), b"beside").expect("write");
    lab.flush();
    assert_content(lab.d("d/f"), b"second, ours");
    assert_content(lab.m("d/beside"), b"beside");
    assert_eq!(
        names(&lab, "d").len(),
        3,
        "both versions, and what was beside"
    );
    lab.assert_drive_is_mount();
    lab.finish();
}

#[test]
fn a_mount_that_is_to_look_now_and_then_does_so() {
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    lab.mount(&["--refresh", "1s"]);
    write(&lab.m("d/f"), b"first");
    lab.flush();
    assert!(!lab.m("d/new").exists());
    fs::write(lab.d("d/new"), b"new").expect("write");
    wait_until("what is new to be seen", Duration::from_secs(60), || {
        lab.m("d/new").exists()
    });
    lab.finish();
}

#[test]
fn a_directory_that_is_not_asked_for_is_not_looked_at() {
    let Some(lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    write(&lab.m("one/f"), b"first");
    write(&lab.m("two/f"), b"first");
    lab.flush();
    looked(&lab);
    for dir in ["one", "two"] {
        fs::write(lab.d(dir).join("new"), b"new").expect("write");
    }
    assert_eq!(refresh(&lab, "one")["new"], 1);
    assert!(lab.m("one/new").exists() && !lab.m("two/new").exists());
    assert_eq!(refresh(&lab, "")["new"], 1);
    assert!(lab.m("two/new").exists());
    let elsewhere = text(lab.root());
    lab.ferryfs(&["refresh", &elsewhere]).code(exit::FAILED);
    lab.eject();
    let mount = text(&lab.mnt);
    lab.ferryfs(&["refresh", &mount]).code(exit::NO_BACKEND);
    let mut lab = lab;
    lab.drive.take_away();
    lab.drive.put_back();
    lab.finish();
}
