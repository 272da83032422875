//! Flushes that are slowed down: by a limit, and by those who read from the drive.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::lab::{
    Backend, Lab, alive, assert_content, content, exit, run, text, wait_until, write,
};

/// Longer than any of these waits takes on a loaded machine.
const LONG: Duration = Duration::from_secs(60);

/// A limit with which the file of a test would take ten minutes.
const SLOW: [&str; 4] = ["--flush-after", "100ms", "--limit-rate", "64K"];

const FILE: usize = 40 << 20;

/// Removes the file's bytes from the kernel's memory, so that the next read asks the drive.
fn forget(path: &Path) {
    let file = fs::File::open(path).expect("open");
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("fadvise");
}

/// Mounts, and waits until a flush of the file "large" is slow.
fn slow_flush() -> Option<(Lab, Vec<u8>)> {
    let mut lab = Lab::new(Backend::Ext4Dir)?;
    lab.mount(&SLOW);
    let bytes = content(7, FILE);
    write(&lab.m("large"), &bytes);
    wait_until("the flush to be slow", LONG, || {
        lab.status()["running"]["slowed"] == "limit"
    });
    Some((lab, bytes))
}

#[test]
fn an_automatic_flush_keeps_to_its_limit_and_status_says_so() {
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    lab.mount(&["--flush-after", "100ms", "--limit-rate", "2M"]);
    let bytes = content(3, 6 << 20);
    let begun = Instant::now();
    write(&lab.m("film"), &bytes);
    let mut is_said = false;
    wait_until("the flush", LONG, || {
        let said = lab.ferryfs(&["status", &text(&lab.mnt)]).stdout;
        is_said |= said.contains("writing slowly: limit_rate is reached");
        lab.d("film").exists()
    });
    // The first request is free, and the last one need not be waited for.
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(2400), "{took:?}");
    assert!(is_said);
    assert_content(lab.d("film"), &bytes);
    wait_until("the end of the flush", LONG, || {
        lab.status()["running"].is_null()
    });
    lab.finish();
}

#[test]
fn a_flush_on_request_lifts_the_limit_of_the_one_under_way() {
    let Some((lab, bytes)) = slow_flush() else {
        return;
    };
    lab.flush();
    assert_content(lab.d("large"), &bytes);
    // It has no limit itself.
    let more = content(8, FILE);
    write(&lab.m("more"), &more);
    lab.flush();
    assert_content(lab.d("more"), &more);
    lab.finish();
}

#[test]
fn an_eject_lifts_the_limit_of_the_flush_under_way() {
    let Some((lab, bytes)) = slow_flush() else {
        return;
    };
    lab.eject();
    assert_content(lab.d("large"), &bytes);
    lab.finish();
}

#[test]
fn an_unmount_lifts_the_limit_of_the_flush_under_way() {
    let Some((mut lab, bytes)) = slow_flush() else {
        return;
    };
    lab.unmount();
    assert_content(lab.d("large"), &bytes);
    lab.finish();
}

#[test]
fn a_plain_umount_lifts_the_limit_of_the_flush_under_way() {
    let Some((mut lab, bytes)) = slow_flush() else {
        return;
    };
    let pid = lab.pid();
    run(Command::new("umount").arg(&lab.mnt)).ok();
    wait_until("the daemon to end", LONG, || !alive(pid));
    assert_content(lab.d("large"), &bytes);
    lab.remount();
    lab.finish();
}

#[test]
fn a_refresh_on_request_lifts_the_limit_of_the_flush_under_way() {
    let Some((lab, bytes)) = slow_flush() else {
        return;
    };
    let begun = Instant::now();
    lab.ferryfs(&["refresh", &text(&lab.mnt)]).code(exit::DONE);
    assert!(begun.elapsed() < LONG);
    assert_content(lab.d("large"), &bytes);
    lab.finish();
}

#[test]
fn a_scrub_on_request_lifts_the_limit_of_the_flush_under_way() {
    let Some((lab, bytes)) = slow_flush() else {
        return;
    };
    let begun = Instant::now();
    lab.ferryfs(&["scrub", &text(&lab.mnt)]).code(exit::DONE);
    assert!(begun.elapsed() < LONG);
    assert_content(lab.d("large"), &bytes);
    lab.finish();
}

#[test]
fn an_automatic_flush_yields_to_a_program_that_reads_through_the_mount() {
    let Some(lab) = Lab::mounted(Backend::EXFAT) else {
        return;
    };
    let mut lab = lab.with_an_uncached_film(64 << 20, &["--flush-after", "100ms"]);
    let film = lab.m("shelf/film");
    let stop = AtomicBool::new(false);
    let bytes = content(9, FILE);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                let _ = fs::read(&film);
                forget(&film);
            }
        });
        write(&lab.m("large"), &bytes);
        wait_until("the flush to yield", LONG, || {
            lab.status()["running"]["slowed"] == "others_read"
        });
        // It goes on all the same.
        wait_until("the flush", LONG, || lab.d("large").exists());
        stop.store(true, Ordering::Release);
    });
    wait_until("the end of the flush", LONG, || {
        lab.status()["running"].is_null()
    });
    assert_content(lab.d("large"), &bytes);
    lab.unmount();
    lab.finish();
}
