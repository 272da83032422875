//! The daemon is killed in the middle of things. Whatever a close or a rename had acknowledged is
//! there after the next mount, the next flush carries it, and the drive is never left with a torn
//! file.

use crate::{lab, on_both_drives, writer};

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::lab::{Drive, Lab, Tree, assert_content, content, exit, text, write};
use writer::{Writer, body, expected};

on_both_drives!(
    kill_while_writing_keeps_everything_acknowledged,
    kill_while_flushing_keeps_everything_acknowledged,
    kill_while_flushing_and_writing_keeps_everything_acknowledged,
    recover_without_the_cache_gives_one_cut_or_the_other,
    dead_mount_point_is_cleared_by_the_next_mount,
);

const ROUNDS: usize = 5;

/// Random moments that can be had again: `FERRYFS_TEST_SEED` repeats a run.
struct Moments(u64);

impl Moments {
    fn new() -> Moments {
        let seed = std::env::var("FERRYFS_TEST_SEED")
            .ok()
            .and_then(|s| s.parse().ok())
            .unwrap_or_else(|| {
                let now = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .expect("a clock after 1970");
                u64::from(now.subsec_nanos()) | 1
            });
        eprintln!("FERRYFS_TEST_SEED={seed}");
        Moments(seed)
    }

    /// A pause of up to `most` milliseconds, short ones as likely as long ones.
    fn pause(&mut self, most: u64) {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let pause = Duration::from_millis(self.0 % most);
        eprintln!("kill after {pause:?}");
        std::thread::sleep(pause);
    }
}

fn log_path(lab: &Lab) -> PathBuf {
    lab.root().join("acknowledged.log")
}

fn wait_for_steps(log: &Path, more_than: usize) {
    lab::wait_until("the writer to get going", Duration::from_secs(30), || {
        expected(log).acknowledged > more_than
    });
}

fn flush_and_compare(lab: Lab) {
    // What a writer was at when the daemon was killed has its own test.
    lab.flush_interrupted();
    lab.assert_drive_is_mount();
    lab.finish();
}

fn kill_while_writing_keeps_everything_acknowledged(mut lab: Lab) {
    let mut moments = Moments::new();
    let log = log_path(&lab);
    for round in 1..=ROUNDS {
        let before = expected(&log).acknowledged;
        let writer = Writer::start(&lab, &log, round);
        wait_for_steps(&log, before + 3);
        moments.pause(400);
        lab.kill9();
        writer.ended();
        lab.remount();
        expected(&log).check(&lab, &log);
    }
    flush_and_compare(lab);
}

/// A flush in a process of its own, so that the daemon can be killed under it.
fn start_flush(lab: &Lab) -> Child {
    lab.command(&["flush", &text(&lab.mnt)])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start the flush")
}

/// The flush must end soon after its daemon did; whether it had been done before that is told by
/// its code.
fn flush_ended(mut flush: Child) {
    let mut code = None;
    lab::wait_until(
        "the flush to notice that the daemon died",
        Duration::from_secs(20),
        || {
            code = flush.try_wait().expect("wait");
            code.is_some()
        },
    );
    let code = code.and_then(|status| status.code());
    assert!(
        matches!(code, Some(exit::DONE | exit::FAILED | exit::LEFT_BEHIND)),
        "flush ended with {code:?}"
    );
}

fn kill_while_flushing_keeps_everything_acknowledged(mut lab: Lab) {
    let mut moments = Moments::new();
    for round in 0..ROUNDS as u64 {
        for file in 0..60 {
            write(
                &lab.m(format!("d{}/{file}", file % 5)),
                &content(round * 1000 + file, 30_000),
            );
        }
        fs::rename(lab.m("d0"), lab.m(format!("moved{round}"))).expect("rename");
        let tree = Tree::read(&lab.mnt);
        let flush = start_flush(&lab);
        moments.pause(250);
        lab.kill9();
        flush_ended(flush);
        lab.remount();
        tree.assert_same(&Tree::read(&lab.mnt), "the mount before", "the mount after");
    }
    flush_and_compare(lab);
}

fn kill_while_flushing_and_writing_keeps_everything_acknowledged(mut lab: Lab) {
    let mut moments = Moments::new();
    let log = log_path(&lab);
    for round in 1..=ROUNDS {
        let before = expected(&log).acknowledged;
        let writer = Writer::start(&lab, &log, 100 + round);
        wait_for_steps(&log, before + 10);
        let flush = start_flush(&lab);
        moments.pause(250);
        lab.kill9();
        writer.ended();
        flush_ended(flush);
        assert_no_torn_file(&lab.drive);
        lab.remount();
        expected(&log).check(&lab, &log);
    }
    flush_and_compare(lab);
}

/// Every file of the writer that is on the drive is one whole version.
fn assert_no_torn_file(drive: &Drive) {
    for path in Tree::read(drive.path())
        .without(".ferryfs")
        .plain()
        .0
        .keys()
    {
        let full = drive.path().join(path);
        if full.is_dir() {
            continue;
        }
        let bytes = fs::read(&full).expect("read");
        if bytes.is_empty() {
            // No version is empty: the writer had opened it, and was to write it when an earlier
            // kill came. So it was in the mount afterwards, closed by that kill, and so it has been
            // carried.
            continue;
        }
        let head: String = bytes
            .iter()
            .take_while(|b| **b != b';')
            .map(|b| *b as char)
            .collect();
        let (name, version) = head
            .rsplit_once(':')
            .unwrap_or_else(|| panic!("{path} is torn: starts {head:?}"));
        let whole = body(name, version.parse().expect("version"));
        assert!(
            bytes == whole,
            "{path} is torn: {} of {} bytes of {head}",
            bytes.len(),
            whole.len()
        );
    }
}

fn recover_without_the_cache_gives_one_cut_or_the_other(mut lab: Lab) {
    let mut moments = Moments::new();
    for file in 0..50 {
        write(
            &lab.m(format!("d{}/{file}", file % 5)),
            &content(file, 20_000),
        );
    }
    lab.flush();
    for round in 1..=ROUNDS as u64 {
        let before = Tree::read(lab.drive.path()).without(".ferryfs");
        for file in 0..50 {
            write(
                &lab.m(format!("d{}/{file}", (file + round) % 5)),
                &content(round * 1000 + file, 25_000),
            );
        }
        let _ = fs::remove_dir_all(lab.m(format!("d{}", round % 5)));
        let cut = Tree::read(&lab.mnt).plain();
        let flush = start_flush(&lab);
        moments.pause(250);
        lab.kill9();
        flush_ended(flush);
        // The mount point is dead and the cache is out of reach, as on another machine.
        lab.ferryfs(&["recover", &text(lab.drive.path())]).ok();
        let after = Tree::read(lab.drive.path()).without(".ferryfs");
        if after != before {
            cut.assert_same(&after, "the cut", "the recovered drive");
        }
        // Twice is once.
        lab.ferryfs(&["recover", &text(lab.drive.path())]).ok();
        after.assert_same(
            &Tree::read(lab.drive.path()).without(".ferryfs"),
            "recovered once",
            "recovered twice",
        );
        lab.remount();
        cut.assert_same(
            &Tree::read(&lab.mnt).plain(),
            "the mount before",
            "the mount after",
        );
        lab.flush_interrupted();
    }
    flush_and_compare(lab);
}

fn dead_mount_point_is_cleared_by_the_next_mount(mut lab: Lab) {
    write(&lab.m("kept"), b"kept");
    lab.kill9();
    let error = fs::read_dir(&lab.mnt)
        .map(|_| ())
        .expect_err("nobody answers");
    // The second of them while the kernel is still tearing the connection down.
    let dead = [libc::ENOTCONN, libc::ECONNABORTED].map(Some);
    assert!(dead.contains(&error.raw_os_error()), "{error}");
    let done = lab.ferryfs(&["status", &text(&lab.mnt)]).code(exit::FAILED);
    assert!(
        done.stderr.contains("ferryfs mount"),
        "says what to do: {}",
        done.stderr
    );
    lab.remount();
    assert_content(lab.m("kept"), b"kept");
    // The kill may have come before the close was known.
    lab.flush_interrupted();
    lab.finish();
}
