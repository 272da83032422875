//! No room: on the SSD, on the drive. Writers hear of it, nothing that was acknowledged is lost,
//! and it passes.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::lab::{
    Backend, Lab, SmallSsd, Tree, assert_content, content, exit, sh, small_disk, text, wait_until,
    write,
};

/// Writes numbered files until there is no room; returns how many are whole.
fn fill(lab: &Lab, dir: &str, size: usize, most: u64) -> u64 {
    fs::create_dir_all(lab.m(dir)).expect("mkdir");
    for n in 0..most {
        let path = lab.m(format!("{dir}/{n}"));
        let written =
            fs::File::create(&path).and_then(|mut file| file.write_all(&content(n, size)));
        if let Err(error) = written {
            assert_eq!(
                error.raw_os_error(),
                Some(libc::ENOSPC),
                "file {n}: {error}"
            );
            let _ = fs::remove_file(&path);
            return n;
        }
    }
    most
}

fn assert_whole(lab: &Lab, dir: &str, size: usize, count: u64, prefix: &str) {
    for n in 0..count {
        let path = format!("{dir}{prefix}{n}");
        let bytes = fs::read(lab.m(&path)).expect("read");
        assert!(
            bytes == content(n, size),
            "{path} changed, {count} were acknowledged"
        );
    }
}

#[test]
fn full_ssd_gives_enospc_and_a_flush_makes_room() {
    let Some((mut lab, ssd)) = Lab::on_small_ssd(Backend::EXFAT, 96) else {
        return;
    };
    lab.mount(&[]);
    let count = fill(&lab, "first", 1 << 20, 200);
    assert!(
        (10..200).contains(&count),
        "{count} MiB went into an SSD of 96 MiB"
    );
    assert_whole(&lab, "first/", 1 << 20, count, "");
    // A delete works on a full disk, and so does everything that asks for nothing.
    fs::rename(lab.m("first/0"), lab.m("renamed")).expect("rename on a full SSD");
    assert_eq!(fs::metadata(lab.m("renamed")).expect("stat").len(), 1 << 20);
    fs::rename(lab.m("renamed"), lab.m("first/0")).expect("rename back");

    lab.flush();
    lab.assert_drive_is_mount();
    // What is on the drive may leave the SSD: there is room again, more than once over.
    for round in 0..2 {
        let more = fill(&lab, &format!("more{round}"), 1 << 20, 40);
        assert!(more >= 20, "a flush freed room for {more} files only");
        assert_whole(&lab, &format!("more{round}/"), 1 << 20, more, "");
        lab.flush();
    }
    assert_whole(&lab, "first/", 1 << 20, count, "");
    lab.assert_drive_is_mount();
    lab.finish_on_small_ssd(ssd);
}

#[test]
fn killed_with_a_full_ssd_it_starts_again_and_drains() {
    let Some((mut lab, ssd)) = Lab::on_small_ssd(Backend::Ext4Dir, 64) else {
        return;
    };
    lab.mount(&[]);
    let count = fill(&lab, "f", 300_000, 1000);
    assert!(
        (20..1000).contains(&count),
        "{count} files went into an SSD of 64 MiB"
    );
    lab.kill9();
    lab.remount();
    assert_whole(&lab, "f/", 300_000, count, "");
    lab.flush_interrupted();
    lab.assert_drive_is_mount();
    lab.finish_on_small_ssd(ssd);
}

/// Takes every byte that is left on the SSD, as somebody else's.
fn hog(ssd: &SmallSsd) {
    let path = ssd.path().join("hog");
    let mut hog = fs::File::options()
        .append(true)
        .create(true)
        .open(path)
        .expect("the hog");
    for size in [1 << 20, 4096] {
        while hog.write(&vec![7; size]).is_ok() {}
    }
    hog.sync_all().expect("sync");
    while hog.write(&[7; 4096]).is_ok() {}
}

#[test]
fn ssd_filled_by_somebody_else_leaves_room_for_what_gives_space_back() {
    let Some((mut lab, ssd)) = Lab::on_small_ssd(Backend::Ext4Dir, 96) else {
        return;
    };
    lab.mount(&[]);
    for n in 0..20 {
        write(&lab.m(format!("f{n}")), &content(n, 1 << 20));
    }
    for round in 0..4_u64 {
        hog(&ssd);
        let (one, two, three) = (round * 3, round * 3 + 1, round * 3 + 2);
        fs::rename(lab.m(format!("f{one}")), lab.m("moved")).expect("rename");
        let file = fs::File::options()
            .write(true)
            .open(lab.m(format!("f{two}")))
            .expect("open");
        file.set_len(1000).expect("truncate");
        file.sync_all().expect("fsync");
        fs::File::create(lab.m(format!("f{three}"))).expect("empty it");
        fs::remove_file(lab.m("moved")).expect("unlink");
        assert_eq!(lab.status()["backend_state"], "attached");
    }
    hog(&ssd);
    lab.flush();
    lab.assert_drive_is_mount();
    // Killed now, it must be able to start.
    hog(&ssd);
    lab.kill9();
    hog(&ssd);
    lab.remount();
    for n in 12..20 {
        let bytes = fs::read(lab.m(format!("f{n}"))).expect("read");
        assert!(bytes == content(n, 1 << 20), "f{n}");
    }
    lab.flush();
    fs::remove_file(ssd.path().join("hog")).expect("make room");
    write(&lab.m("after"), &content(99, 4 << 20));
    lab.flush();
    lab.assert_drive_is_mount();
    lab.finish_on_small_ssd(ssd);
}

#[test]
fn writers_are_slowed_rather_than_refused_while_a_flush_makes_room() {
    let Some((mut lab, ssd)) = Lab::on_small_ssd(Backend::Ext4Dir, 96) else {
        return;
    };
    // Nothing but the lack of space makes it flush.
    lab.mount(&[
        "--flush-after",
        "1h",
        "--max-age",
        "1h",
        "--cache-size",
        "1T",
    ]);
    let count = 240;
    for n in 0..count {
        write(&lab.m(format!("f{n}")), &content(n, 1 << 20));
    }
    assert_whole(&lab, "", 1 << 20, count, "f");
    lab.flush();
    lab.assert_drive_is_mount();
    lab.finish_on_small_ssd(ssd);
}

#[test]
fn full_ssd_without_the_drive_refuses_promptly() {
    let Some((mut lab, ssd)) = Lab::on_small_ssd(Backend::Ext4Dir, 64) else {
        return;
    };
    lab.mount(&["--flush-after", "1h", "--max-age", "1h"]);
    write(&lab.m("before"), &content(1, 1 << 20));
    lab.eject();
    let begun = std::time::Instant::now();
    let count = fill(&lab, "f", 1 << 20, 200);
    assert!((10..200).contains(&count), "{count} MiB in 64");
    assert!(
        begun.elapsed().as_secs() < 25,
        "it waited for what could not come"
    );
    assert_whole(&lab, "f/", 1 << 20, count, "");
    lab.unmount_with(&["--no-flush"]);
    drop(ssd);
    lab.finish();
}

#[test]
fn full_drive_says_how_much_is_missing_and_carries_nothing() {
    let Some(mut lab) = Lab::new(Backend::Exfat(48)) else {
        return;
    };
    lab.mount(&[]);
    write(&lab.m("old"), &content(1, 15 << 20));
    write(&lab.m("rubbish"), &content(3, 12 << 20));
    lab.flush();
    write(&lab.m("old"), &content(2, 15 << 20));
    write(&lab.m("big"), &content(4, 12 << 20));
    fs::remove_file(lab.m("rubbish")).expect("unlink");
    let mount_before = Tree::read(&lab.mnt);
    let drive_before = Tree::read(lab.drive.path()).without(".ferryfs");
    let done = lab
        .ferryfs(&["flush", &text(&lab.mnt)])
        .refuses(exit::FAILED, "not enough space on the drive");
    for part in [
        "27.0 MiB have to be written",
        "are missing (",
        "largest file is old (15.0 MiB)",
        "would free 12.0 MiB",
        "--removals-first",
    ] {
        assert!(done.stderr.contains(part), "no {part:?} in {}", done.stderr);
    }
    Tree::read(&lab.mnt).assert_same(&mount_before, "the mount", "the mount before");
    // P4: neither a part that fits nor the removals alone.
    Tree::read(lab.drive.path())
        .without(".ferryfs")
        .assert_same(&drive_before, "the drive", "the drive before");
    let status = lab.status();
    assert_eq!(status["safe_to_unplug"], false, "{status}");
    assert!(
        status["last_error"]
            .as_str()
            .is_some_and(|e| e.contains("not enough space")),
        "{status}"
    );

    lab.ferryfs(&["flush", "--removals-first", "--verify", &text(&lab.mnt)])
        .code(exit::DONE);
    lab.assert_drive_is_mount();
    lab.finish();
}

#[test]
fn file_larger_than_the_ssd_is_refused_at_once_and_status_says_why() {
    let Some((mut lab, ssd)) = Lab::on_small_ssd(Backend::Ext4Dir, 96) else {
        return;
    };
    lab.mount(&["--flush-after", "1h", "--max-age", "1h"]);
    // What is closed is carried to make room, as long as there is any.
    for n in 0..10 {
        write(&lab.m(format!("f{n}")), &content(n, 1 << 20));
    }
    let mut film = fs::File::create(lab.m("film.mkv")).expect("create");
    let chunk = content(99, 1 << 20);
    let mut written = 0;
    let refused = loop {
        let begun = std::time::Instant::now();
        match film.write_all(&chunk) {
            Ok(()) => written += 1,
            Err(error) => break (error, begun.elapsed()),
        }
        assert!(written < 96, "{written} MiB on an SSD of 96");
    };
    assert_eq!(
        refused.0.raw_os_error(),
        Some(libc::ENOSPC),
        "{}",
        refused.0
    );
    assert!(written >= 40, "refused after {written} MiB of 96");
    // And again, without waiting for what cannot come.
    let begun = std::time::Instant::now();
    for _ in 0..3 {
        film.write_all(&chunk).expect_err("there is no room");
    }
    let took = begun.elapsed() + refused.1;
    assert!(took.as_secs() < 15, "four refusals took {took:?}");
    let batches = lab.status()["last_batch"]["number"].as_u64();
    std::thread::sleep(std::time::Duration::from_secs(3));
    let status = lab.status();
    assert_eq!(
        status["last_batch"]["number"].as_u64(),
        batches,
        "flushes go on that can carry nothing: {status}"
    );
    assert_fits_not(&status, true);
    assert_whole(&lab, "", 1 << 20, 10, "f");
    // What gives space back works, and then there is room for others.
    drop(film);
    fs::remove_file(lab.m("film.mkv")).expect("unlink");
    for n in 10..20 {
        write(&lab.m(format!("f{n}")), &content(n, 1 << 20));
    }
    assert_fits_not(&lab.status(), false);
    lab.flush();
    assert_whole(&lab, "", 1 << 20, 20, "f");
    lab.assert_drive_is_mount();
    lab.finish_on_small_ssd(ssd);
}

/// Whether `status` tells of the film that does not fit.
fn assert_fits_not(status: &serde_json::Value, told: bool) {
    let lines = status["attention"].as_array().expect("a list").iter();
    let lines: Vec<&str> = lines.filter_map(|line| line.as_str()).collect();
    let line = lines.iter().find(|line| line.contains("does not fit"));
    assert_eq!(line.is_some(), told, "{lines:?}");
    for part in ["film.mkv", "still open", "--cache"] {
        assert!(line.is_none_or(|line| line.contains(part)), "{line:?}");
    }
}

/// An exFAT drive of 64 MiB with clusters of 32 KiB, mounted, with something on it.
fn small_drive() -> Option<Lab> {
    let mut lab = Lab::new(Backend::ExfatClusters(64, 32))?;
    lab.mount(&[]);
    fs::create_dir(lab.m("old")).expect("mkdir");
    for n in 0..20 {
        write(&lab.m(format!("old/{n}")), &content(n, 100));
    }
    write(&lab.m("keep"), &content(100, 5 << 20));
    lab.flush();
    Some(lab)
}

/// Where somebody else puts what fills the drive: beside our own files, so that it is no part of
/// the tree.
fn theirs(drive: &Path) -> PathBuf {
    drive.join(".ferryfs/theirs")
}

/// Somebody else takes every cluster that is free, and goes away at the first refusal.
fn fill_drive(drive: &Path) {
    let Ok(mut file) = fs::File::create(theirs(drive)) else {
        return; // Not even a name is to be had.
    };
    for size in [1 << 20, 32 << 10, 4 << 10] {
        while file.write_all(&vec![7; size]).is_ok() {}
    }
    // A file system that allocates late tells of it only here.
    let _ = file.sync_all();
}

fn assert_full(drive: &Path) {
    let left = nix::sys::statvfs::statvfs(drive).expect("statvfs");
    // ext4 keeps some blocks to itself.
    assert!(left.blocks_available() < 8, "the drive is not full");
}

/// The free space that the mount tells of, in bytes.
fn available(lab: &Lab) -> u64 {
    let space = nix::sys::statvfs::statvfs(&lab.mnt).expect("statvfs");
    space.blocks_available() as u64 * space.fragment_size() as u64
}

#[test]
fn directories_that_do_not_fit_are_not_begun_and_leave_a_way_on() {
    let Some(mut lab) = small_drive() else {
        return;
    };
    let make = |first: u64, last: u64| {
        for n in first..last {
            let dir = lab.m(format!("t/{}/{n}", n / 30));
            fs::create_dir_all(&dir).expect("mkdir");
            write(&dir.join("f"), &content(n, 10));
        }
    };
    make(0, 1050);
    let on_drive = Tree::read(lab.drive.path()).without(".ferryfs");
    let done = lab
        .ferryfs(&["flush", &text(&lab.mnt)])
        .refuses(exit::FAILED, "not enough space on the drive");
    assert!(done.stderr.contains(" MiB have to be written"), "{done:?}");
    Tree::read(lab.drive.path())
        .without(".ferryfs")
        .assert_same(&on_drive, "the drive", "the drive before");
    lab.unmount_with(&["--no-flush"]);
    lab.remount();
    assert_content(lab.m("t/0/1/f"), content(1, 10));
    for n in 5..35 {
        fs::remove_dir_all(lab.m(format!("t/{n}"))).expect("remove");
    }
    lab.finish_flushed();
}

/// Deletes and renames on a drive that others have filled.
fn deletes_and_renames_on_a_full(lab: &Lab) {
    for round in 0..3 {
        fill_drive(lab.drive.path());
        assert_full(lab.drive.path());
        let name = |n| lab.m(format!("old/{n}"));
        fs::rename(name(round), lab.m(format!("renamed{round}"))).expect("rename");
        lab.flush();
        fs::remove_file(name(10 + round)).expect("unlink");
        lab.flush();
        fill_drive(lab.drive.path());
        // With something new beside it that does not fit.
        write(&lab.m("new"), &content(7, 6 << 20));
        fs::remove_file(name(15 + round)).expect("unlink");
        lab.ferryfs(&["flush", &text(&lab.mnt)])
            .refuses(exit::FAILED, "not enough space on the drive");
        let removals = ["flush", "--removals-first", &text(&lab.mnt)];
        lab.ferryfs(&removals)
            .refuses(exit::FAILED, "not enough space on the drive");
        assert!(!lab.d(format!("old/{}", 15 + round)).exists());
        fs::remove_file(lab.m("new")).expect("unlink");
        lab.flush();
        fs::remove_file(theirs(lab.drive.path())).expect("relent");
        lab.assert_drive_is_mount();
    }
    fill_drive(lab.drive.path());
    fs::remove_file(lab.m("keep")).expect("unlink");
    write(&lab.m("new"), &content(8, 4 << 20));
    let removals = ["flush", "--removals-first", &text(&lab.mnt)];
    lab.ferryfs(&removals).code(exit::DONE);
    lab.assert_drive_is_mount();
}

#[test]
fn deletes_and_renames_reach_an_exfat_drive_filled_to_the_last_byte() {
    let Some(lab) = small_drive() else {
        return;
    };
    deletes_and_renames_on_a_full(&lab);
    lab.finish();
}

#[test]
fn deletes_and_renames_reach_an_ext4_drive_filled_to_the_last_byte() {
    deletes_and_renames_on_a_full_ext4(0);
}

/// Whoever fills it is root, as the daemon is: what root may use is all that ever gets free.
#[test]
fn deletes_and_renames_reach_a_full_ext4_drive_with_blocks_reserved_for_root() {
    deletes_and_renames_on_a_full_ext4(5);
}

fn deletes_and_renames_on_a_full_ext4(reserved: u64) {
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    let Some(disk) = small_disk(lab.root(), 64, reserved) else {
        return;
    };
    sh(
        lab.root(),
        &format!("mount --bind '{}' drive", disk.path().display()),
    )
    .ok();
    fs::remove_dir(lab.d("lost+found")).expect("an empty directory");
    lab.mount(&[]);
    fs::create_dir(lab.m("old")).expect("mkdir");
    for n in 0..20 {
        write(&lab.m(format!("old/{n}")), &content(n, 5000));
    }
    write(&lab.m("keep"), &content(100, 9 << 20));
    lab.flush();
    deletes_and_renames_on_a_full(&lab);
    lab.unmount();
    sh(lab.root(), "umount drive").ok();
    drop(disk);
    lab.finish();
}

#[test]
fn tiny_files_on_large_clusters_are_counted_as_what_they_take() {
    let Some(mut lab) = Lab::new(Backend::ExfatClusters(100, 128)) else {
        return;
    };
    lab.mount(&[]);
    let before = available(&lab);
    fs::create_dir(lab.m("nm")).expect("mkdir");
    for n in 0..900 {
        write(&lab.m(format!("nm/{n}")), b"tiny");
    }
    let needed = 901 * (128 << 10);
    wait_until("df to tell of it", Duration::from_secs(30), || {
        available(&lab) == before.saturating_sub(needed)
    });
    let status = lab.status();
    assert_eq!(status["dirty_bytes"], 3600, "{status}");
    assert_eq!(status["needed_bytes"], needed, "{status}");
    let told = lab.ferryfs(&["status", &text(&lab.mnt)]).code(exit::DONE);
    assert!(told.stdout.contains("(113 MiB on the drive)"), "{told:?}");
    let done = lab
        .ferryfs(&["flush", &text(&lab.mnt)])
        .refuses(exit::FAILED, "not enough space on the drive");
    assert!(
        done.stderr.contains("114 MiB have to be written"),
        "{done:?}"
    );
    assert!(!lab.d("nm").exists(), "it was begun");
    for n in 500..900 {
        fs::remove_file(lab.m(format!("nm/{n}"))).expect("unlink");
    }
    lab.flush();
    lab.assert_drive_is_mount();
    assert_eq!(lab.status()["needed_bytes"], 0);
    lab.finish();
}

#[test]
fn hard_links_that_become_copies_on_the_drive_are_counted_before_and_after() {
    let Some(mut lab) = Lab::new(Backend::ExfatClusters(100, 32)) else {
        return;
    };
    lab.mount(&[]);
    fs::create_dir(lab.m("daily.0")).expect("mkdir");
    for n in 0..5 {
        write(&lab.m(format!("daily.0/{n}")), &content(n, 4 << 20));
    }
    assert_eq!(lab.status()["needed_bytes"], (20 << 20) + (32 << 10));
    lab.flush();
    assert_eq!(lab.status()["needed_bytes"], 0);
    let before = available(&lab);
    let copy = |to: &str| sh(&lab.mnt, &format!("cp -al daily.0 {to}")).ok();
    copy("daily.1");
    copy("daily.2");
    let needed = (40 << 20) + 2 * (32 << 10);
    wait_until("df to tell of it", Duration::from_secs(30), || {
        available(&lab) == before - needed
    });
    assert_eq!(lab.status()["needed_bytes"], needed);
    lab.flush();
    lab.assert_drive_is_mount();
    // Attributes alone are no copies.
    sh(&lab.mnt, "chmod 600 daily.0/*").ok();
    assert_eq!(lab.status()["needed_bytes"], 0);
    for n in 3..6 {
        copy(&format!("daily.{n}"));
    }
    let done = lab
        .ferryfs(&["flush", &text(&lab.mnt)])
        .refuses(exit::FAILED, "not enough space on the drive");
    assert!(
        done.stderr.contains("drive: 60.") && done.stderr.contains(" MiB have to be written"),
        "{done:?}"
    );
    assert!(!lab.d("daily.3").exists(), "it was begun");
    lab.unmount_with(&["--no-flush"]);
    lab.drive.take_away();
    lab.drive.assert_clean();
}

/// What of a batch another program waits for before it fills the drive.
#[derive(Clone, Copy, Debug)]
enum Moment {
    Staging,
    HalfStaged,
    Record,
    FirstName,
}

impl Moment {
    fn has_come(self, drive: &Path) -> bool {
        let holds = |path: &Path, least: usize| {
            fs::read_dir(path).is_ok_and(|entries| entries.count() >= least)
        };
        match self {
            Moment::Staging => holds(&drive.join(".ferryfs/staging"), 1),
            Moment::HalfStaged => fs::read_dir(drive.join(".ferryfs/staging"))
                .is_ok_and(|all| all.flatten().any(|batch| holds(&batch.path(), 30))),
            Moment::Record => holds(&drive.join(".ferryfs/batches"), 1),
            Moment::FirstName => holds(&drive.join("t"), 1),
        }
    }
}

#[test]
fn another_program_that_fills_the_drive_during_a_flush_costs_nothing() {
    for moment in [
        Moment::Staging,
        Moment::HalfStaged,
        Moment::Record,
        Moment::FirstName,
    ] {
        let Some(lab) = small_drive() else {
            return;
        };
        // More directories than the reserve has room for.
        for n in 0..60 {
            fs::create_dir_all(lab.m(format!("t/{n}"))).expect("mkdir");
            write(&lab.m(format!("t/{n}/f")), &content(n, 50_000));
        }
        fs::rename(lab.m("old/1"), lab.m("t/moved")).expect("rename");
        fs::remove_file(lab.m("old/2")).expect("unlink");
        let mount = Tree::read(&lab.mnt);
        let on_drive = Tree::read(lab.drive.path()).without(".ferryfs");
        let over = AtomicBool::new(false);
        let done = thread::scope(|scope| {
            let (drive, over) = (lab.drive.path(), &over);
            scope.spawn(move || {
                while !over.load(Ordering::Acquire) {
                    if moment.has_come(drive) {
                        return fill_drive(drive);
                    }
                }
            });
            let done = lab.ferryfs(&["flush", &text(&lab.mnt)]);
            over.store(true, Ordering::Release);
            done
        });
        Tree::read(&lab.mnt).assert_same(&mount, "the mount", "the mount before");
        match done.code {
            exit::DONE => lab.assert_drive_is_mount(),
            // Before the commit, or the other program was quick enough to take what had been held
            // for it.
            exit::FAILED if done.stderr.contains("not enough space on the drive") => {
                Tree::read(lab.drive.path())
                    .without(".ferryfs")
                    .assert_same(
                        &on_drive,
                        &format!("the drive, {moment:?}"),
                        "the drive before",
                    );
            }
            _ => eprintln!("{moment:?}: {done:?}"),
        }
        let _ = fs::remove_file(theirs(lab.drive.path()));
        lab.flush();
        lab.assert_drive_is_mount();
        let left = fs::read_dir(lab.d(".ferryfs/staging")).expect("list");
        assert_eq!(left.count(), 0, "{moment:?}");
        lab.finish();
    }
}
