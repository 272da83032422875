//! Scrubs: what has rotted on the drive is found and written again where its right bytes are known,
//! and nothing else is touched.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use serde_json::Value;

use crate::lab;
use crate::lab::{Backend, Lab, assert_content, content, exit, text, wait_until, write};
use crate::lossy_fuse::LossyFuse;

/// Longer than any of these waits takes on a loaded machine.
const LONG: Duration = Duration::from_secs(60);

/// As fast as it can.
const FAST: [&str; 4] = ["scrub", "--json", "--rate", "4G"];

/// Sets the time of a file on the drive. By its path, after it was closed: the close of a changed
/// file on exFAT would change its time.
fn set_time(path: &Path, to: SystemTime) {
    let since = to.duration_since(UNIX_EPOCH).expect("after 1970");
    let time = TimeSpec::new(since.as_secs() as i64, i64::from(since.subsec_nanos()));
    utimensat(AT_FDCWD, path, &time, &time, UtimensatFlags::FollowSymlink).expect("set the time");
}

fn modified(path: &Path) -> SystemTime {
    let meta = fs::metadata(path).expect("stat on the drive");
    meta.modified().expect("a time")
}

/// Changes a bit of a file on the drive; its size and time stay.
fn rot(path: &Path, at: u64) {
    let before = modified(path);
    let file = File::options().read(true).write(true).open(path);
    let file = file.expect("open on the drive");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 0x10], at).expect("write");
    file.sync_all().expect("sync");
    drop(file);
    set_time(path, before);
    assert_eq!(modified(path), before);
}

/// Makes a file on the drive look as if it was written some time ago.
fn age(path: &Path, seconds: u64) {
    let time = SystemTime::now() - Duration::from_secs(seconds);
    let time = UNIX_EPOCH + Duration::from_secs(time.duration_since(UNIX_EPOCH).unwrap().as_secs());
    set_time(path, time);
    assert!(modified(path) < SystemTime::now() - Duration::from_secs(seconds / 2));
}

/// Scrubs all of it; the command ends with `code`. Returns what was found.
#[track_caller]
fn scrub(lab: &Lab, code: i32) -> Value {
    let mnt = text(&lab.mnt);
    let done = lab.ferryfs(&[&FAST[..], &[&mnt]].concat()).code(code);
    done.json()["last"].clone()
}

/// The same, which also repairs what may be a change that kept its time.
#[track_caller]
fn scrub_steady(lab: &Lab, code: i32) -> Value {
    let mnt = text(&lab.mnt);
    let command = [&FAST[..], &["--repair-steady", &mnt]].concat();
    let done = lab.ferryfs(&command).code(code);
    done.json()["last"].clone()
}

#[track_caller]
fn assert_counts(found: &Value, counts: &[(&str, u64)]) {
    for (name, count) in counts {
        assert_eq!(found[name].as_u64(), Some(*count), "{name}: {found}");
    }
}

/// The one problem that was found.
#[track_caller]
fn problem(found: &Value) -> (String, String) {
    let problems = found["problems"].as_array().expect("an array");
    let [one] = &problems[..] else {
        panic!("{found}");
    };
    let text = |name: &str| one[name].as_str().expect("text").to_owned();
    (text("path"), text("problem"))
}

fn attention(lab: &Lab) -> String {
    lab.status()["attention"].to_string()
}

/// Waits until the cache has no file.
fn wait_until_evicted(lab: &Lab) {
    wait_until("the cache to be empty", LONG, || {
        lab.status()["cached_bytes"] == 0
    });
}

#[test]
fn a_bit_that_has_rotted_is_found_and_written_again_from_the_cache() {
    for backend in [Backend::Ext4Dir, Backend::EXFAT] {
        let Some(mut lab) = Lab::new(backend) else {
            continue;
        };
        lab.mount(&[]);
        // The last is large enough to be patched, if it were not for the damage.
        let files = [("small", 100), ("d/middle", 3_000_001), ("large", 9 << 20)];
        for (n, (name, size)) in files.into_iter().enumerate() {
            write(&lab.m(name), &content(n as u64, size));
        }
        write(&lab.m("empty"), b"");
        lab.flush();
        let found = scrub(&lab, exit::DONE);
        assert_counts(&found, &[("damaged", 0), ("compared", 4), ("left_out", 0)]);

        rot(&lab.d("d/middle"), 2_500_000);
        rot(&lab.d("large"), 4096);
        let before = fs::metadata(lab.d("small")).expect("stat");
        let found = scrub_steady(&lab, exit::DONE);
        assert_counts(&found, &[("damaged", 2), ("repaired", 2), ("compared", 2)]);
        assert_counts(&found, &[("waiting", 2), ("unsteady", 0)]);
        let said = attention(&lab);
        assert!(
            said.contains("2; the next flush writes them again"),
            "{said}"
        );
        // Nothing is written to the drive before the flush, and the mark outlives the daemon.
        assert!(fs::read(lab.d("large")).unwrap() != content(2, 9 << 20));
        lab.kill9();
        lab.remount();
        lab.flush();
        for (n, (name, size)) in files.into_iter().enumerate() {
            assert_content(lab.d(name), content(n as u64, size));
            assert_content(lab.m(name), content(n as u64, size));
        }
        let said = attention(&lab);
        assert!(said.contains("2; they were written again"), "{said}");
        let last = lab.status()["scrub"]["last"].clone();
        assert_counts(&last, &[("repaired", 2), ("waiting", 0)]);
        let after = fs::metadata(lab.d("small")).expect("stat");
        assert_eq!(after.modified().unwrap(), before.modified().unwrap());
        let found = scrub(&lab, exit::DONE);
        assert_counts(&found, &[("damaged", 0), ("compared", 4)]);
        assert!(!attention(&lab).contains("damaged"));
        assert_eq!(lab.status()["conflicts"], 0);
        lab.assert_drive_is_mount();
        lab.finish();
    }
}

#[test]
fn the_right_bytes_are_found_in_a_version_or_in_another_file() {
    for backend in [Backend::Ext4Dir, Backend::EXFAT] {
        let Some(mut lab) = Lab::new(backend) else {
            continue;
        };
        lab.mount(&["--versions", "--evict-after", "1s"]);
        write(&lab.m("was before"), &content(1, 70_000));
        write(&lab.m("twin"), &content(2, 80_000));
        write(&lab.m("d/twin"), &content(2, 80_000));
        lab.flush();
        write(&lab.m("was before"), &content(3, 60_000));
        lab.flush();
        write(&lab.m("was before"), &content(1, 70_000));
        lab.flush();
        wait_until_evicted(&lab);
        rot(&lab.d("was before"), 69_000);
        rot(&lab.d("twin"), 5);
        let found = scrub(&lab, exit::DONE);
        assert_counts(&found, &[("damaged", 2), ("repaired", 2)]);
        let all = found["problems"].to_string();
        assert!(all.contains("the kept version .ferryfs/versions/"), "{all}");
        assert!(all.contains("d/twin, which has the same bytes"), "{all}");
        assert_content(lab.m("was before"), content(1, 70_000));
        assert_content(lab.m("twin"), content(2, 80_000));
        let rotten = fs::read(lab.d("twin")).expect("read");
        lab.flush();
        assert_content(lab.d("was before"), content(1, 70_000));
        assert_content(lab.d("twin"), content(2, 80_000));
        // The damaged bytes are a version like any other that a flush replaces.
        let kept = lab.ferryfs(&["versions", "--json", &text(&lab.m("twin"))]);
        let kept = kept.code(exit::DONE).json();
        let version = kept["versions"][0]["version"].as_str().expect("a version");
        let kept = lab.d(format!(".ferryfs/versions/{version}/twin"));
        assert_content(kept, rotten);
        lab.assert_drive_is_mount();
        lab.finish();
    }
}

#[test]
fn what_cannot_be_repaired_is_named_until_it_is_written_again() {
    let Some(mut lab) = Lab::new(Backend::EXFAT) else {
        return;
    };
    // Two of them were on the drive before: their hashes are noted by the first scrub.
    write(&lab.d("old/first"), &content(1, 50_000));
    write(&lab.d("second"), &content(2, 50_000));
    age(&lab.d("old/first"), 5000);
    age(&lab.d("second"), 5000);
    lab.mount(&["--evict-after", "1s"]);
    write(&lab.m("third"), &content(3, 50_000));
    lab.flush();
    wait_until_evicted(&lab);
    let found = scrub(&lab, exit::DONE);
    assert_counts(&found, &[("recorded", 2), ("compared", 1), ("damaged", 0)]);

    rot(&lab.d("old/first"), 49_999);
    let rotten = fs::read(lab.d("old/first")).expect("read");
    let found = scrub_steady(&lab, exit::LEFT_BEHIND);
    assert_counts(&found, &[("damaged", 1), ("repaired", 0), ("compared", 2)]);
    let (path, why) = problem(&found);
    assert_eq!(path, "old/first");
    assert!(why.contains("no right copy is known"), "{why}");
    assert!(attention(&lab).contains("old/first"));
    let shown = lab.ferryfs(&["status", &text(&lab.mnt)]).code(exit::DONE);
    assert!(shown.stdout.contains("1 damaged"), "{}", shown.stdout);
    // It is not guessed, and nothing waits.
    lab.flush();
    assert_content(lab.d("old/first"), rotten);
    assert_eq!(lab.status()["dirty_files"], 0);
    // It is found again, also after a new start.
    lab.unmount();
    lab.remount();
    assert!(attention(&lab).contains("old/first"));
    let found = scrub(&lab, exit::LEFT_BEHIND);
    assert_counts(&found, &[("damaged", 1), ("compared", 2)]);

    // From a backup.
    write(&lab.m("old/first"), &content(1, 50_000));
    lab.flush();
    assert!(!attention(&lab).contains("old/first"));
    let found = scrub(&lab, exit::DONE);
    assert_counts(&found, &[("damaged", 0), ("compared", 3)]);
    lab.assert_drive_is_mount();
    lab.finish();
}

#[test]
fn a_change_that_kept_its_time_is_named_and_not_undone_unasked() {
    for backend in [Backend::Ext4Dir, Backend::EXFAT] {
        let Some(lab) = Lab::mounted(backend) else {
            continue;
        };
        write(&lab.m("photo"), &content(1, 40_000));
        lab.flush();
        // As exiftool -P does.
        let before = modified(&lab.d("photo"));
        write(&lab.d("photo"), &content(2, 40_000));
        set_time(&lab.d("photo"), before);
        let found = scrub(&lab, exit::LEFT_BEHIND);
        assert_counts(&found, &[("damaged", 1), ("repaired", 0)]);
        let (_, why) = problem(&found);
        assert!(why.contains("changed on purpose"), "{why}");
        assert!(why.contains("--repair-steady"), "{why}");
        assert_eq!(lab.status()["dirty_files"], 0);
        lab.flush();
        assert_content(lab.d("photo"), content(2, 40_000));
        // It is accepted by a touch, as the message says.
        age(&lab.d("photo"), 9000);
        lab.ferryfs(&["refresh", &text(&lab.mnt)]).code(exit::DONE);
        assert_content(lab.m("photo"), content(2, 40_000));
        let found = scrub(&lab, exit::DONE);
        assert_counts(&found, &[("damaged", 0)]);
        lab.finish();
    }
}

/// The files of a directory and all below with these bytes.
fn files_with(dir: &Path, bytes: &[u8]) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("list").flatten() {
        match entry.file_type().expect("a type") {
            kind if kind.is_dir() => found.extend(files_with(&entry.path(), bytes)),
            kind if kind.is_file() && fs::read(entry.path()).is_ok_and(|it| it == bytes) => {
                found.push(entry.path());
            }
            _ => {}
        }
    }
    found
}

#[test]
fn a_copy_in_the_cache_that_has_rotted_too_does_not_hide_the_right_bytes() {
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    lab.mount(&["--versions"]);
    for (n, size) in [(1, 70_000), (2, 60_000), (1, 70_000)] {
        write(&lab.m("a"), &content(n, size));
        lab.flush();
    }
    rot(&lab.d("a"), 69_000);
    let objects = files_with(&lab.cache, &content(1, 70_000));
    // That of the first version may not be removed yet.
    assert!(!objects.is_empty());
    for object in objects {
        rot(&object, 12);
    }
    // A handle has the old object.
    let open = File::open(lab.m("a")).expect("open");
    let found = scrub(&lab, exit::LEFT_BEHIND);
    let (_, why) = problem(&found);
    assert!(why.contains("a program has it open"), "{why}");
    assert_eq!(lab.status()["dirty_files"], 0);
    drop(open);
    let mnt = text(&lab.mnt);
    wait_until("the handle to be closed", LONG, || {
        let done = lab.ferryfs(&[&FAST[..], &[&mnt]].concat());
        done.code == exit::DONE
    });
    let found = lab.status()["scrub"]["last"].clone();
    assert_counts(&found, &[("damaged", 1), ("repaired", 1)]);
    let (_, how) = problem(&found);
    assert!(how.contains("from the kept version"), "{how}");
    assert_content(lab.m("a"), content(1, 70_000));
    lab.flush();
    assert_content(lab.d("a"), content(1, 70_000));
    assert_content(lab.m("a"), content(1, 70_000));
    let found = scrub(&lab, exit::DONE);
    assert_counts(&found, &[("damaged", 0), ("compared", 1)]);
    lab.assert_drive_is_mount();
    lab.finish();
}

#[test]
fn a_file_that_would_stay_local_is_named_and_stays_as_it_is() {
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    lab.mount(&[]);
    write(&lab.m("a.tmp"), &content(1, 5000));
    lab.flush();
    lab.unmount();
    lab.mount(&["--local", "*.tmp"]);
    rot(&lab.d("a.tmp"), 7);
    let rotten = fs::read(lab.d("a.tmp")).expect("read");
    let found = scrub_steady(&lab, exit::LEFT_BEHIND);
    assert_counts(&found, &[("damaged", 1), ("repaired", 0)]);
    let (_, why) = problem(&found);
    assert!(why.contains("stays local here"), "{why}");
    lab.flush();
    assert_content(lab.d("a.tmp"), rotten);
    lab.finish();
}

#[test]
fn only_a_look_repairs_nothing() {
    let Some(lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    write(&lab.m("a"), &content(1, 5000));
    lab.flush();
    rot(&lab.d("a"), 7);
    let rotten = fs::read(lab.d("a")).expect("read");
    let mnt = text(&lab.mnt);
    lab.ferryfs(&["scrub", "--no-repair", &mnt])
        .code(exit::LEFT_BEHIND);
    assert_eq!(lab.status()["dirty_files"], 0);
    assert_content(lab.d("a"), rotten);
    scrub_steady(&lab, exit::DONE);
    lab.flush();
    assert_content(lab.d("a"), content(1, 5000));
    lab.finish();
}

#[test]
fn what_others_have_changed_is_no_damage_and_stays_theirs() {
    for backend in [Backend::Ext4Dir, Backend::EXFAT] {
        let Some(lab) = Lab::mounted(backend) else {
            continue;
        };
        for name in ["time", "size", "gone", "waits"] {
            write(&lab.m(name), &content(1, 40_000));
        }
        lab.flush();
        // The same size, another time; another size, the same time.
        write(&lab.d("time"), &content(2, 40_000));
        age(&lab.d("time"), 9000);
        let before = modified(&lab.d("size"));
        write(&lab.d("size"), &content(3, 41_000));
        set_time(&lab.d("size"), before);
        fs::remove_file(lab.d("gone")).expect("rm");
        // A newer version waits here.
        rot(&lab.d("waits"), 1);
        write(&lab.m("waits"), &content(4, 40_000));
        let found = scrub(&lab, exit::DONE);
        assert_counts(&found, &[("damaged", 0), ("compared", 0)]);
        // What is gone may have been noticed before.
        let left_out = found["left_out"].as_u64();
        assert!(matches!(left_out, Some(3 | 4)), "{found}");
        assert_content(lab.d("time"), content(2, 40_000));
        let mnt = text(&lab.mnt);
        lab.ferryfs(&["refresh", &mnt]).code(exit::DONE);
        assert_content(lab.m("time"), content(2, 40_000));
        assert_content(lab.m("size"), content(3, 41_000));
        assert!(!lab.m("gone").exists());
        lab.flush();
        assert_content(lab.d("waits"), content(4, 40_000));
        lab.assert_drive_is_mount();
        lab.finish();
    }
}

#[test]
fn a_file_that_cannot_be_read_is_written_again_or_named() {
    if !nix::unistd::geteuid().is_root() {
        return lab::skip("mounting a FUSE drive needs root");
    }
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    let drive = LossyFuse::mount(lab.drive.path()).expect("mount the FUSE drive");
    write(&lab.d("foreign"), &content(1, 20_000));
    age(&lab.d("foreign"), 5000);
    lab.mount(&[]);
    write(&lab.m("cached"), &content(2, 20_000));
    write(&lab.m("well"), &content(3, 20_000));
    lab.flush();
    drive.break_reads("cached");
    drive.break_reads("foreign");
    let found = scrub(&lab, exit::LEFT_BEHIND);
    assert_counts(&found, &[("damaged", 2), ("repaired", 1), ("compared", 1)]);
    let all = found["problems"].to_string();
    assert!(all.contains("input/output error"), "{all}");
    assert!(all.contains("no hash of it is known"), "{all}");
    // The drive as a whole is well.
    assert_eq!(lab.status()["backend_state"], "attached");
    lab.flush();
    assert_content(lab.d("cached"), content(2, 20_000));
    assert!(fs::read(lab.d("foreign")).is_err());
    let found = scrub(&lab, exit::LEFT_BEHIND);
    assert_counts(&found, &[("damaged", 1), ("compared", 2)]);
    lab.unmount();
    drop(drive);
    lab.finish();
}

/// A slow scrub in the background.
fn slowly(lab: &Lab) -> Child {
    let mnt = text(&lab.mnt);
    let mut command = lab.command(&["scrub", "--repair-steady", "--rate", "64K", &mnt]);
    let silent = command.stdout(Stdio::null()).stderr(Stdio::null());
    silent.spawn().expect("start a scrub")
}

fn files_read(lab: &Lab) -> u64 {
    let read = lab.status()["scrub"]["current"]["read"]["files"].as_u64();
    read.unwrap_or_default()
}

#[test]
fn a_scrub_that_was_stopped_or_killed_goes_on_where_it_was() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    for n in 0..40 {
        write(&lab.m(format!("f{n:02}")), &content(n, 60_000));
    }
    lab.flush();
    rot(&lab.d("f00"), 9);
    let mut first = slowly(&lab);
    wait_until("some files to be read", LONG, || files_read(&lab) >= 2);
    let mnt = text(&lab.mnt);
    lab.ferryfs(&["scrub", "--stop", &mnt]).code(exit::DONE);
    let ended = first.wait().expect("wait");
    assert_eq!(ended.code(), Some(exit::CANCELLED));
    let stopped = lab.status()["scrub"].clone();
    assert_eq!(stopped["running"], false, "{stopped}");
    assert_eq!(stopped["last"], Value::Null, "{stopped}");
    let (so_far, begun) = (files_read(&lab), stopped["current"]["started"].clone());
    assert!((2..40).contains(&so_far), "{stopped}");

    // Ctrl-C stops it, too.
    let mut second = slowly(&lab);
    wait_until("more files to be read", LONG, || files_read(&lab) > so_far);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(second.id() as i32),
        nix::sys::signal::Signal::SIGINT,
    )
    .expect("interrupt");
    assert_eq!(second.wait().expect("wait").code(), Some(exit::CANCELLED));
    assert_eq!(lab.status()["scrub"]["running"], false);

    // A client that is killed stops nothing, and neither does the death of the daemon.
    let mut third = slowly(&lab);
    wait_until("it to go on", LONG, || {
        lab.status()["scrub"]["running"] == true
    });
    third.kill().expect("kill");
    third.wait().expect("wait");
    assert_eq!(lab.status()["scrub"]["running"], true);
    lab.kill9();
    lab.remount();
    assert_eq!(lab.status()["scrub"]["running"], true);
    assert!(files_read(&lab) >= so_far);
    let found = scrub(&lab, exit::DONE);
    assert_eq!(found["started"], begun);
    // What was found before the stop is in the report of the whole.
    assert_counts(&found, &[("damaged", 1), ("repaired", 1)]);
    assert_eq!(found["read"]["files"], 40, "{found}");

    let mut fourth = slowly(&lab);
    wait_until("it to begin", LONG, || files_read(&lab) >= 1);
    lab.ferryfs(&["scrub", "--stop", &mnt]).code(exit::DONE);
    fourth.wait().expect("wait");
    let again = lab.ferryfs(&[&FAST[..], &["--restart", &mnt]].concat());
    let again = again.code(exit::DONE).json()["last"].clone();
    assert_eq!(
        again["read"]["files"], 39,
        "one waits for the flush: {again}"
    );
    lab.flush();
    assert_content(lab.d("f00"), content(0, 60_000));
    lab.finish();
}

#[test]
fn the_schedule_begins_a_scrub_and_makes_up_a_missed_one() {
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    let out = lab.root().join("told");
    let note = format!("cat > {}; mv {0} {0}.whole", text(&out));
    lab.mount(&[
        "--versions",
        "--scrub",
        "0 3 1 * *",
        "--on-attention",
        &note,
    ]);
    write(&lab.m("a"), &content(1, 5000));
    lab.flush();
    rot(&lab.d("a"), 7);
    let scrub = lab.status()["scrub"].clone();
    assert!(scrub["next_run"].is_string(), "{scrub}");
    assert_eq!(
        scrub["current"],
        Value::Null,
        "a new schedule missed nothing"
    );
    lab.unmount();
    // As after two months without a mount.
    let memory = lab.cache.join("scrub-when.json");
    let mut state: Value = serde_json::from_slice(&fs::read(&memory).expect("read")).expect("JSON");
    let done = state["done_until"].as_i64().expect("a time");
    state["done_until"] = (done - 62 * 86_400_000_000_000).into();
    fs::write(&memory, state.to_string()).expect("write");
    lab.remount();
    wait_until("the missed scrub", LONG, || {
        lab.status()["scrub"]["last"]["repaired"] == 1
    });
    assert_eq!(lab.status()["scrub"]["running"], false);
    let told = out.with_extension("whole");
    wait_until("the command to have run", LONG, || told.exists());
    let told = fs::read_to_string(told).expect("read");
    assert!(
        told.contains("1; the next flush writes them again"),
        "{told}"
    );
    lab.flush();
    assert_content(lab.d("a"), content(1, 5000));
    lab.finish();
}

#[test]
fn a_scrub_needs_the_drive_and_an_eject_does_not_wait_for_it() {
    let Some(lab) = Lab::mounted(Backend::EXFAT) else {
        return;
    };
    for n in 0..30 {
        write(&lab.m(format!("f{n:02}")), &content(n, 60_000));
    }
    lab.flush();
    let mut slow = slowly(&lab);
    wait_until("some files to be read", LONG, || files_read(&lab) >= 1);
    lab.eject();
    assert_eq!(slow.wait().expect("wait").code(), Some(exit::NO_BACKEND));
    let drive = text(lab.drive.path());
    lab::run(std::process::Command::new("umount").arg(&drive)).ok();
    let mnt = text(&lab.mnt);
    lab.ferryfs(&["scrub", &mnt]).code(exit::NO_BACKEND);
    wait_until("the scrub to wait", LONG, || {
        lab.status()["scrub"]["waits_for"] == "the drive"
    });
    lab.finish();
}
