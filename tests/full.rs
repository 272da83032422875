//! No room: on the SSD, on the drive. Writers hear of it, nothing that was acknowledged is lost, and it passes.

#[path = "support/lab/mod.rs"]
mod lab;

use std::fs;
use std::io::Write;

use lab::{Backend, Lab, SmallSsd, Tree, content, exit, skip, text, write};

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
    if !nix::unistd::geteuid().is_root() {
        return skip("a small SSD on a loop device needs root");
    }
    let Some(mut lab) = Lab::new(Backend::EXFAT) else {
        return;
    };
    let ssd = match SmallSsd::new(lab.root(), 96) {
        Ok(ssd) => ssd,
        Err(why) => return skip(&why),
    };
    lab.cache = ssd.path().join("cache");
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
    lab.unmount();
    // The lab's cache is on the small SSD, which goes first.
    drop(ssd);
    lab.finish();
}

#[test]
fn killed_with_a_full_ssd_it_starts_again_and_drains() {
    if !nix::unistd::geteuid().is_root() {
        return skip("a small SSD on a loop device needs root");
    }
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    let ssd = match SmallSsd::new(lab.root(), 64) {
        Ok(ssd) => ssd,
        Err(why) => return skip(&why),
    };
    lab.cache = ssd.path().join("cache");
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
    lab.unmount();
    drop(ssd);
    lab.finish();
}

/// A lab whose cache is on an SSD of `mib` MiB of its own.
fn on_small_ssd(backend: Backend, mib: u64) -> Option<(Lab, SmallSsd)> {
    if !nix::unistd::geteuid().is_root() {
        skip("a small SSD on a loop device needs root");
        return None;
    }
    let mut lab = Lab::new(backend)?;
    match SmallSsd::new(lab.root(), mib) {
        Ok(ssd) => {
            lab.cache = ssd.path().join("cache");
            Some((lab, ssd))
        }
        Err(why) => {
            skip(&why);
            None
        }
    }
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
    let Some((mut lab, ssd)) = on_small_ssd(Backend::Ext4Dir, 96) else {
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
    lab.unmount();
    drop(ssd);
    lab.finish();
}

#[test]
fn writers_are_slowed_rather_than_refused_while_a_flush_makes_room() {
    let Some((mut lab, ssd)) = on_small_ssd(Backend::Ext4Dir, 96) else {
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
    lab.unmount();
    drop(ssd);
    lab.finish();
}

#[test]
fn full_ssd_without_the_drive_refuses_promptly() {
    let Some((mut lab, ssd)) = on_small_ssd(Backend::Ext4Dir, 64) else {
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
