//! Scripts go on writing while a batch is cut: what lands on the drive is whole, and what could not
//! travel is named.

use crate::{lab, on_both_drives};

use std::fs;
use std::io::{Seek, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::lab::{Lab, assert_content, content, exit, write};
use serde_json::Value;

on_both_drives!(
    with_wait_closed_a_file_open_for_writing_stays_behind_whole_and_is_named,
    with_wait_closed_a_new_file_is_not_on_the_drive_in_part,
    every_version_on_the_drive_is_a_whole_one_while_writers_run,
    file_opened_after_the_cut_does_not_change_the_batch,
    with_wait_closed_an_open_file_makes_no_flush_due_before_it_is_closed,
    an_open_file_that_stays_behind_is_not_said_to_be_changed_by_others,
);

/// Paths that a report names as left behind, without a leading slash.
fn left_behind(report: &Value) -> Vec<String> {
    let list = report["left_behind"]
        .as_array()
        .unwrap_or_else(|| panic!("no left_behind in {report}"));
    list.iter()
        .map(|item| {
            assert!(
                item["reason"].as_str().is_some_and(|r| !r.is_empty()),
                "no reason in {item}"
            );
            item["path"]
                .as_str()
                .expect("path")
                .trim_start_matches('/')
                .to_owned()
        })
        .collect()
}

fn with_wait_closed_a_file_open_for_writing_stays_behind_whole_and_is_named(lab: Lab) {
    let old = content(1, 100_000);
    write(&lab.m("dir/live"), &old);
    write(&lab.m("quiet"), b"quiet");
    lab.flush();

    let mut live = fs::File::options()
        .write(true)
        .open(lab.m("dir/live"))
        .expect("open");
    live.seek(std::io::SeekFrom::Start(50_000)).expect("seek");
    live.write_all(b"half a thought").expect("write");
    write(&lab.m("quiet"), b"quiet, second version");
    assert_eq!(lab.status()["open_for_write"].as_u64(), Some(1));

    let report = lab.flush_closed();
    assert_eq!(left_behind(&report), ["dir/live"], "{report}");
    // The last flushed version, whole.
    assert_content(lab.d("dir/live"), old);
    assert_content(lab.d("quiet"), b"quiet, second version");
    assert_eq!(lab.status()["safe_to_unplug"], false);

    drop(live);
    lab.finish_flushed();
}

fn with_wait_closed_a_new_file_is_not_on_the_drive_in_part(lab: Lab) {
    let mut download = fs::File::create(lab.m("download")).expect("create");
    download.write_all(&content(1, 70_000)).expect("write");
    write(&lab.m("done"), b"done");
    let report = lab.flush_closed();
    assert_eq!(left_behind(&report), ["download"]);
    assert!(
        !lab.d("download").exists(),
        "half a download under its final name"
    );
    assert!(lab.d("done").exists());
    download.write_all(&content(2, 70_000)).expect("write on");
    drop(download);
    lab.finish_flushed();
}

/// One version of a file that says of itself which it is: any mix of two, or a part of one, is
/// seen.
fn version(n: u64) -> Vec<u8> {
    let mut bytes = n.to_le_bytes().to_vec();
    bytes.extend(content(n, 20_000 + (n as usize * 7919) % 60_000));
    bytes
}

fn assert_whole(path: &std::path::Path) -> u64 {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
    assert!(
        bytes.len() >= 8,
        "{} is {} bytes long",
        path.display(),
        bytes.len()
    );
    let n = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    assert!(
        bytes == version(n),
        "{} is no whole version (claims to be {n})",
        path.display()
    );
    n
}

fn every_version_on_the_drive_is_a_whole_one_while_writers_run(lab: Lab) {
    const FILES: u64 = 12;
    let stop = AtomicBool::new(false);
    for file in 0..FILES {
        write(&lab.m(format!("w/{file}")), &version(file));
    }
    lab.flush();
    std::thread::scope(|scope| {
        // Three ways to rewrite: in place after truncation, by rename, and in place over the old
        // bytes.
        for way in 0..3 {
            let (lab, stop) = (&lab, &stop);
            scope.spawn(move || {
                let mut n = 100 + way;
                while !stop.load(Ordering::Relaxed) {
                    for file in (way..FILES).step_by(3) {
                        rewrite(lab, way, file, n);
                        n += 3;
                    }
                }
            });
        }
        let mut batches = 0;
        for _ in 0..8 {
            std::thread::sleep(Duration::from_millis(60));
            let done = lab.ferryfs(&["flush", "--json", &lab::text(&lab.mnt)]);
            // Writers are often inside a file at the cut: then it is named, and that is no failure.
            let fair = done.code == exit::DONE || done.code == exit::LEFT_BEHIND;
            if !fair {
                stop.store(true, Ordering::Relaxed);
                panic!("flush beside writers: exit {}: {}", done.code, done.stderr);
            }
            batches += u64::from(done.json()["files"].as_u64() > Some(0));
            let torn = std::panic::catch_unwind(|| {
                for file in 0..FILES {
                    assert_whole(&lab.d(format!("w/{file}")));
                }
            });
            if let Err(why) = torn {
                stop.store(true, Ordering::Relaxed);
                std::panic::resume_unwind(why);
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(
            batches >= 2,
            "the flushes carried nothing although writers ran"
        );
    });
    lab.finish_flushed();
}

fn rewrite(lab: &Lab, way: u64, file: u64, n: u64) {
    let path = lab.m(format!("w/{file}"));
    match way {
        0 => fs::write(&path, version(n)).expect("rewrite"),
        1 => {
            let new = lab.m(format!("w/{file}.new"));
            fs::write(&new, version(n)).expect("write");
            fs::rename(&new, &path).expect("replace");
        }
        _ => {
            let bytes = version(n);
            let mut over = fs::File::options().write(true).open(&path).expect("open");
            over.write_all(&bytes).expect("overwrite");
            over.set_len(bytes.len() as u64).expect("cut to length");
        }
    }
}

fn file_opened_after_the_cut_does_not_change_the_batch(lab: Lab) {
    // Enough that the batch is still being staged when the rewriting starts.
    for file in 0..150 {
        write(&lab.m(format!("w/{file}")), &version(file));
    }
    std::thread::scope(|scope| {
        let flush = scope.spawn(|| lab.ferryfs(&["flush", "--json", &lab::text(&lab.mnt)]));
        std::thread::sleep(Duration::from_millis(30));
        for file in (0..150).rev() {
            rewrite(&lab, 2, file, 1000 + file);
        }
        let done = flush.join().expect("flush");
        assert!(
            done.code == exit::DONE || done.code == exit::LEFT_BEHIND,
            "{}: {}",
            done.code,
            done.stderr
        );
        let behind = left_behind(&done.json());
        for file in 0..150 {
            let path = format!("w/{file}");
            if !behind.contains(&path) {
                assert_whole(&lab.d(&path));
            }
        }
    });
    lab.flush();
    lab.assert_drive_is_mount();
    for file in 0..150 {
        assert_eq!(assert_whole(&lab.d(format!("w/{file}"))), 1000 + file);
    }
    lab.finish();
}

/// The number of the last batch, which each attempt of a flush takes, and when our directory on the
/// drive last changed.
fn attempts(lab: &Lab) -> (Option<u64>, Vec<std::time::SystemTime>) {
    let batch = lab.status()["last_batch"]["number"].as_u64();
    let changed = ["", "batches", "staging", "catalog"].map(|dir| {
        let meta = fs::metadata(lab.d(format!(".ferryfs/{dir}")));
        meta.and_then(|meta| meta.modified()).ok()
    });
    (batch, changed.into_iter().flatten().collect())
}

fn with_wait_closed_an_open_file_makes_no_flush_due_before_it_is_closed(mut lab: Lab) {
    write(&lab.m("dir/live"), b"one");
    lab.flush();
    lab.unmount();
    lab.mount(&["--flush-after", "1s", "--max-age", "2s", "--wait-closed"]);
    let before = attempts(&lab);

    let mut live = fs::File::options()
        .append(true)
        .open(lab.m("dir/live"))
        .expect("open");
    live.write_all(b" two three").expect("write");
    // Three times the age at which a change is due.
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(attempts(&lab), before, "an attempt in vain");
    assert_content(lab.d("dir/live"), b"one");

    // What is new travels, the open file or not.
    let limit = Duration::from_secs(30);
    write(&lab.m("dir/new"), b"new");
    lab::wait_until("the new file", limit, || lab.d("dir/new").exists());
    assert_content(lab.d("dir/live"), b"one");

    drop(live);
    lab::wait_until("the closed file", limit, || {
        fs::read(lab.d("dir/live")).is_ok_and(|bytes| bytes == b"one two three")
    });
    lab::wait_until("the end of the flush", limit, || {
        lab.status()["safe_to_unplug"] == true
    });
    lab.assert_drive_is_mount();
    lab.finish();
}

fn an_open_file_that_stays_behind_is_not_said_to_be_changed_by_others(lab: Lab) {
    write(&lab.m("live"), b"one");
    lab.flush();
    let mut live = fs::File::options()
        .append(true)
        .open(lab.m("live"))
        .expect("open");
    live.write_all(b" two").expect("write");
    write(&lab.m("other"), b"other");
    lab.flush_closed();
    drop(live);
    lab.flush();
    let log = fs::read_to_string(lab.cache.join("ferryfs.log")).expect("log");
    assert!(!log.contains("another program"), "{log}");
    lab.finish();
}
