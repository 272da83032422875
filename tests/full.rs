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

fn assert_whole(lab: &Lab, dir: &str, size: usize, count: u64) {
    for n in 0..count {
        let bytes = fs::read(lab.m(format!("{dir}/{n}"))).expect("read");
        assert!(
            bytes == content(n, size),
            "{dir}/{n} changed, {count} were acknowledged"
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
    assert_whole(&lab, "first", 1 << 20, count);
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
        assert_whole(&lab, &format!("more{round}"), 1 << 20, more);
        lab.flush();
    }
    assert_whole(&lab, "first", 1 << 20, count);
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
    assert_whole(&lab, "f", 300_000, count);
    lab.flush_interrupted();
    lab.assert_drive_is_mount();
    lab.unmount();
    drop(ssd);
    lab.finish();
}

#[test]
fn full_drive_fails_the_flush_by_name_and_is_retried_after_a_delete() {
    let Some(mut lab) = Lab::new(Backend::Exfat(48)) else {
        return;
    };
    lab.mount(&[]);
    write(&lab.m("old"), &content(1, 15 << 20));
    lab.flush();
    write(&lab.m("old"), &content(2, 15 << 20));
    for n in 0..5 {
        write(&lab.m(format!("big/{n}")), &content(10 + n, 10 << 20));
    }
    let mount_before = Tree::read(&lab.mnt);
    let done = lab.ferryfs(&["flush", "--json", &text(&lab.mnt)]);
    assert!(
        [exit::FAILED, exit::LEFT_BEHIND].contains(&done.code),
        "exit {}: {}",
        done.code,
        done.stderr
    );
    let said = format!("{}{}", done.stdout, done.stderr).to_lowercase();
    assert!(
        said.contains("space") || said.contains("full") || said.contains("room"),
        "says why: {said}"
    );
    assert!(said.contains("big/"), "names what does not fit: {said}");

    // The drive has whole files only: each the old version, or the new one, or none at all.
    let old = fs::read(lab.d("old")).expect("the old file is there");
    assert!(
        old == content(1, 15 << 20) || old == content(2, 15 << 20),
        "old is torn"
    );
    for n in 0..5 {
        if let Ok(bytes) = fs::read(lab.d(format!("big/{n}"))) {
            assert!(bytes == content(10 + n, 10 << 20), "big/{n} is torn");
        }
    }
    mount_before.assert_same(
        &Tree::read(&lab.mnt),
        "the mount before",
        "the mount after the failed flush",
    );
    let status = lab.status();
    assert_eq!(status["safe_to_unplug"], false, "{status}");
    assert!(status["dirty_files"].as_u64() > Some(0), "{status}");

    for n in 0..4 {
        fs::remove_file(lab.m(format!("big/{n}"))).expect("unlink");
    }
    lab.flush();
    lab.assert_drive_is_mount();
    lab.finish();
}
