//! The first contact with a directory, and every later one: what is enrolled and what is not, a
//! mount without its drive, with an unfinished batch, after our folder was deleted; and the
//! directory under the mount.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::lab::{
    self, Backend, Done, Lab, Tree, assert_content, content, exit, only_mounts_of, run, sh, skip,
    text, wait_until, write,
};

fn plain() -> Option<Lab> {
    Lab::new(Backend::Ext4Dir)
}

/// Mounts the lab's drive with the cache in `cache`.
fn mount_with(lab: &Lab, cache: &Path, extra: &[&str]) -> Done {
    let cache = text(cache);
    let extra: Vec<&str> = extra.iter().copied().chain(["--cache", &cache]).collect();
    lab.try_mount(&extra)
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn chattr(flag: &str, path: &Path) -> bool {
    run(Command::new("chattr").arg(flag).arg(path)).code == 0
}

#[test]
fn a_place_that_any_cache_knows_is_not_enrolled_while_its_drive_is_away() {
    for default_cache in [true, false] {
        let Some(mut lab) = plain() else { return };
        lab.mount(if default_cache {
            &["--default-cache"]
        } else {
            &[]
        });
        write(&lab.m("a"), b"a");
        lab.unmount();
        lab.drive.take_away();
        mount_with(&lab, &lab.root().join("new"), &[]).refuses(exit::NO_BACKEND, "drive");
        if !default_cache {
            // Without a cache named there is none for it, but it is known all the same; damage to
            // what tells so opens no door to the other ones.
            lab.try_mount(&["--default-cache"])
                .refuses(exit::NO_BACKEND, "drive");
            write(&lab.root().join("data/ferryfs/known-caches/x.json"), b"{");
            mount_with(&lab, &lab.root().join("new"), &[]).refuses(exit::NO_BACKEND, "drive");
        }
        assert!(!lab.d(".ferryfs").exists() && !lab.root().join("new").exists());
        // Said on purpose, it is a new volume.
        mount_with(&lab, &lab.root().join("new"), &["--enroll"]).code(exit::DONE);
        lab.adopt();
        lab.unmount();
        fs::remove_dir_all(lab.drive.path().join(".ferryfs")).expect("clean up");
        lab.drive.put_back();
        lab.finish();
    }
}

#[test]
fn a_mount_says_that_it_enrolls_and_where_and_only_the_first_time() {
    let Some(mut lab) = plain() else { return };
    let done = lab.try_mount(&[]).code(exit::DONE);
    let place = text(lab.drive.path());
    assert!(done.stdout.contains("enrolled a new volume"), "{done:?}");
    assert!(done.stdout.contains(&place), "{done:?}");
    lab.adopt();
    lab.unmount();
    let done = lab.try_mount(&[]).code(exit::DONE);
    assert_eq!(done.stdout, "");
    lab.adopt();
    lab.finish();
}

/// A directory of a test's own where drives are mounted.
struct BelowMnt(PathBuf);

impl Drop for BelowMnt {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn an_empty_directory_where_drives_are_mounted_is_not_enrolled_unless_that_is_said() {
    if !is_root() {
        return skip("making a directory in /mnt needs root");
    }
    let Some(mut lab) = plain() else { return };
    let name = format!("ferryfs-test.{}", std::process::id());
    let place = BelowMnt(Path::new("/mnt").join(name));
    fs::create_dir_all(&place.0).expect("mkdir");
    let args = |extra: &[&str]| {
        let mut args = lab.mount_args(extra);
        let at = args.len() - 2;
        args[at] = text(&place.0);
        args
    };
    lab.ferryfs(&args(&[])).refuses(exit::FAILED, "not mounted");
    assert_eq!(fs::read_dir(&place.0).expect("list").count(), 0);
    assert!(!lab.cache.exists());
    lab.ferryfs(&args(&["--enroll"])).code(exit::DONE);
    lab.adopt();
    lab.finish();
    // What is not empty is a directory that somebody means.
    let Some(mut lab) = plain() else { return };
    fs::remove_dir_all(place.0.join(".ferryfs")).expect("clean up");
    write(&place.0.join("film"), b"film");
    let mut args = lab.mount_args(&[]);
    let at = args.len() - 2;
    args[at] = text(&place.0);
    lab.ferryfs(&args).code(exit::DONE);
    lab.adopt();
    lab.finish();
}

#[test]
fn a_mount_that_fails_has_enrolled_nothing() {
    if !is_root() {
        return skip("hiding /dev/fuse needs root");
    }
    for cache in [&["--default-cache"][..], &[]] {
        let Some(mut lab) = plain() else { return };
        write(&lab.d("theirs"), b"theirs");
        let program = text(&lab::ferryfs_binary());
        let args = lab.mount_args(cache);
        let script = only_mounts_of(lab.root()) + "mount --bind /dev/null /dev/fuse; exec \"$@\"";
        let mut words = vec!["-m", "sh", "-c", &script, "sh", &program];
        words.extend(args.iter().map(String::as_str));
        let mut unshared = Command::new("unshare");
        unshared.args(&words);
        for (key, value) in lab.command::<&str>(&[]).get_envs() {
            if let Some(value) = value {
                unshared.env(key, value);
            }
        }
        run(&mut unshared).refuses(exit::FAILED, "cannot mount");
        assert!(!lab.d(".ferryfs").exists(), "the drive was enrolled");
        assert!(!lab.cache.exists(), "a cache was left");
        assert_content(lab.d("theirs"), b"theirs");
        let done = lab.try_mount(&[]).code(exit::DONE);
        assert!(done.stdout.contains("enrolled"), "{done:?}");
        lab.adopt();
        lab.finish();
    }
}

#[test]
fn without_its_drive_a_mount_serves_the_cache_and_takes_the_drive_up_when_it_is_back() {
    for backend in [Backend::Ext4Dir, Backend::EXFAT] {
        let Some(mut lab) = Lab::mounted(backend) else {
            return;
        };
        write(&lab.m("d/cached"), b"cached");
        lab.flush();
        write(&lab.m("d/waits"), b"waits");
        lab.unmount_with(&["--no-flush"]);
        lab.drive.take_away();
        let done = lab.try_mount(&[]).code(exit::DONE);
        assert!(done.stdout.contains("without the drive"), "{done:?}");
        lab.adopt();
        assert_eq!(lab.status()["backend_state"], "detached");
        assert!(lab.status()["last_error"].is_string());
        assert_content(lab.m("d/waits"), b"waits");
        write(&lab.m("d/new"), b"new");
        lab.flush_code(exit::NO_BACKEND);
        lab.drive.put_back();
        wait_until("the drive to be taken up", Duration::from_secs(30), || {
            lab.status()["backend_state"] == "attached"
        });
        lab.flush();
        assert_content(lab.d("d/new"), b"new");
        assert!(lab.status()["last_error"].is_null());
        lab.assert_drive_is_mount();
        lab.finish();
    }
}

#[test]
fn a_place_that_does_not_exist_any_more_is_a_drive_that_is_away() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    write(&lab.m("a"), b"a");
    lab.unmount();
    lab.drive.take_away();
    fs::remove_dir(lab.drive.path()).expect("rmdir");
    // What can be done only with the drive is not passed over in silence.
    lab.try_mount(&["--re-enroll"])
        .refuses(exit::NO_BACKEND, "--re-enroll");
    lab.remount();
    assert_content(lab.m("a"), b"a");
    fs::create_dir(lab.drive.path()).expect("mkdir");
    lab.drive.put_back();
    wait_until("the drive to be taken up", Duration::from_secs(30), || {
        lab.status()["backend_state"] == "attached"
    });
    lab.finish();
}

#[test]
fn an_unfinished_batch_does_not_keep_a_mount_from_coming_up_and_is_tried_again() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    write(&lab.m("a"), b"a");
    lab.flush();
    write(&lab.m("b"), b"b");
    lab.unmount_with(&["--no-flush"]);
    // A recovery cannot look at what batches have staged.
    let (staging, away) = (lab.d(".ferryfs/staging"), lab.d("away"));
    fs::rename(&staging, &away).expect("mv");
    write(&staging, b"");
    let done = lab.try_mount(&[]).code(exit::DONE);
    let told = [&done.stdout, &done.stderr];
    assert!(
        told.iter().any(|text| text.contains("not finished")),
        "{done:?}"
    );
    lab.adopt();
    let warned = lab.status()["warnings"].to_string();
    assert_content(lab.m("a"), b"a");
    write(&lab.m("c"), b"c");
    fs::remove_file(&staging).expect("rm");
    fs::rename(&away, &staging).expect("mv");
    assert!(warned.contains("not finished"), "{warned}");
    // Nobody flushes here, and it is finished all the same.
    wait_until(
        "what was left to be finished",
        Duration::from_secs(60),
        || lab.status()["warnings"] == serde_json::json!([]),
    );
    lab.finish_flushed();
}

#[test]
fn what_the_drive_refuses_to_have_removed_stops_nothing_and_goes_with_a_later_flush() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    write(&lab.m("a"), b"a");
    lab.flush();
    lab.unmount_with(&["--no-flush"]);
    let stuck = lab.d(".ferryfs/staging/00000000000000f0/0000");
    write(&stuck, b"staged");
    if !is_root() || !chattr("+i", &stuck) {
        return skip("an immutable file needs root and a file system that has it");
    }
    lab.mount(&[]);
    write(&lab.m("b"), b"b");
    let flushed = lab.flush_code(exit::LEFT_BEHIND).json();
    let is_there = stuck.exists();
    assert!(chattr("-i", &stuck));
    assert_eq!(flushed["left_behind"][0]["path"], ".ferryfs", "{flushed}");
    assert_content(lab.d("b"), b"b");
    assert!(is_there, "the drive did not refuse it");
    write(&lab.m("c"), b"c");
    lab.flush();
    assert!(!stuck.exists());
    lab.finish_flushed();
}

fn delete_our_folder(lab: &Lab) {
    fs::remove_dir_all(lab.d(".ferryfs")).expect("delete .ferryfs");
}

#[test]
fn a_drive_whose_folder_was_deleted_is_taken_up_again_with_its_cache() {
    for backend in [Backend::Ext4Dir, Backend::EXFAT] {
        let Some(mut lab) = Lab::mounted(backend) else {
            return;
        };
        write(&lab.m("d/old"), b"old");
        sh(&lab.mnt, "chmod 600 d/old; ln -s old d/link");
        lab.flush();
        write(&lab.m("d/waits"), b"waits");
        lab.unmount_with(&["--no-flush"]);
        delete_our_folder(&lab);
        write(&lab.d("d/theirs"), b"theirs");
        // Mounting says so, and serves what is in the cache.
        let done = lab.try_mount(&[]).code(exit::DONE);
        assert!(done.stdout.contains(".ferryfs was deleted"), "{done:?}");
        assert!(done.stdout.contains("--re-enroll"), "{done:?}");
        lab.adopt();
        assert_content(lab.m("d/waits"), b"waits");
        let told = lab.status()["last_error"].to_string();
        assert!(told.contains(".ferryfs was deleted"), "{told}");
        assert!(!lab.d(".ferryfs").exists(), "nothing is enrolled by itself");
        let (drive, mnt) = (text(lab.drive.path()), text(&lab.mnt));
        lab.ferryfs(&["attach", &drive, &mnt])
            .refuses(exit::NO_BACKEND, "deleted");
        lab.ferryfs(&["attach", "--re-enroll", &drive, &mnt])
            .code(exit::DONE);
        lab.flush();
        assert_content(lab.d("d/waits"), b"waits");
        wait_until(
            "the file of others to be found",
            Duration::from_secs(20),
            || lab.m("d/theirs").exists(),
        );
        lab.assert_drive_is_mount();
        // It is the same volume to this cache, and what the drive cannot say is on it again:
        // another machine sees it.
        lab.unmount();
        lab.remount();
        lab.unmount();
        lab.take_new_cache();
        lab.mount(&[]);
        let mode = fs::metadata(lab.m("d/old")).expect("stat").mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert_eq!(
            fs::read_link(lab.m("d/link")).expect("readlink"),
            Path::new("old")
        );
        lab.finish();
    }
}

#[test]
fn our_folder_deleted_under_a_running_mount_is_named_and_mended() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    write(&lab.m("a"), b"a");
    lab.flush();
    delete_our_folder(&lab);
    write(&lab.m("b"), b"b");
    wait_until("status to name it", Duration::from_secs(20), || {
        lab.status()["last_error"]
            .to_string()
            .contains(".ferryfs was deleted")
    });
    let told = lab.flush_code(exit::NO_BACKEND).stderr;
    let (drive, mnt) = (text(lab.drive.path()), text(&lab.mnt));
    assert!(told.contains(".ferryfs was deleted"), "{told}");
    assert!(
        told.contains(&format!("attach --re-enroll {drive}")),
        "{told}"
    );
    lab.ferryfs(&["attach", "--re-enroll", &drive, &mnt])
        .code(exit::DONE);
    lab.flush();
    lab.assert_drive_is_mount();
    // The same without a mount.
    write(&lab.m("c"), b"c");
    lab.unmount_with(&["--no-flush"]);
    delete_our_folder(&lab);
    lab.mount(&["--re-enroll"]);
    lab.finish_flushed();
}

#[test]
fn our_folder_deleted_during_a_flush_is_named_and_no_damage_is_suspected() {
    let Some(lab) = Lab::mounted(Backend::EXFAT) else {
        return;
    };
    write(&lab.m("a"), b"a");
    lab.flush();
    write(&lab.m("big"), &content(1, 64 << 20));
    fs::rename(lab.m("a"), lab.m("b")).expect("rename");
    let staging = lab.d(".ferryfs/staging");
    let flush = std::thread::scope(|scope| {
        let flush = scope.spawn(|| lab.ferryfs(&["flush", &text(&lab.mnt)]));
        wait_until("the flush to stage", Duration::from_secs(60), || {
            fs::read_dir(&staging).is_ok_and(|mut entries| entries.next().is_some())
        });
        // The flush may make a file in it meanwhile.
        wait_until("the folder to go", Duration::from_secs(20), || {
            let _ = fs::remove_dir_all(lab.d(".ferryfs"));
            !lab.d(".ferryfs").exists()
        });
        flush.join().expect("the flush")
    });
    let told = flush
        .refuses(exit::NO_BACKEND, ".ferryfs was deleted")
        .stderr;
    assert!(told.contains("attach --re-enroll"), "{told}");
    let (drive, mnt) = (text(lab.drive.path()), text(&lab.mnt));
    let done = lab
        .ferryfs(&["attach", "--re-enroll", &drive, &mnt])
        .code(exit::DONE);
    assert!(!done.stdout.contains("warning"), "{}", done.stdout);
    lab.finish_flushed();
}

#[test]
fn folders_of_ours_that_were_removed_while_empty_are_made_again() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    for remounts in [false, true] {
        write(&lab.m("a"), b"a");
        lab.flush();
        for dir in ["staging", "batches"] {
            fs::remove_dir(lab.d(".ferryfs").join(dir)).expect("rmdir");
        }
        write(&lab.m("b"), if remounts { b"1" } else { b"2" });
        if remounts {
            lab.unmount_with(&["--no-flush"]);
            lab.mount(&[]);
        }
        lab.flush();
        lab.assert_drive_is_mount();
        assert_eq!(lab.status()["warnings"], serde_json::json!([]));
    }
    fs::remove_dir(lab.d(".ferryfs/batches")).expect("rmdir");
    write(&lab.m("c"), b"c");
    lab.eject();
    assert_content(lab.d("c"), b"c");
    lab.finish();
}

#[test]
fn a_folder_of_ours_that_cannot_be_changed_is_said_to_be_so_and_ejected() {
    if !is_root() {
        return skip("immutable directories need root");
    }
    for dir in ["staging", "batches"] {
        let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
            return;
        };
        write(&lab.m("a"), b"a");
        lab.flush();
        let dir = lab.d(".ferryfs").join(dir);
        if !chattr("+i", &dir) {
            return skip("the file system of temporary files knows no immutable files");
        }
        write(&lab.m("b"), b"b");
        let flush = lab.ferryfs(&["flush", &text(&lab.mnt)]);
        let eject = lab.ferryfs(&["eject", &text(&lab.mnt)]);
        let (drive, mnt) = (text(lab.drive.path()), text(&lab.mnt));
        let attach = lab.ferryfs(&["attach", &drive, &mnt]);
        chattr("-i", &dir);
        assert!(flush.stderr.contains("lsattr"), "{}", flush.stderr);
        flush.code(exit::FAILED);
        assert!(
            eject.stdout.contains("cannot be changed"),
            "{}",
            eject.stdout
        );
        eject.code(exit::LEFT_BEHIND);
        assert!(!attach.stdout.contains("warning"), "{}", attach.stdout);
        attach.code(exit::DONE);
        lab.flush();
        lab.assert_drive_is_mount();
        lab.unmount();
        lab.finish();
    }
}

#[test]
fn a_drive_that_has_become_read_only_is_ejected_and_mounted_all_the_same() {
    if !is_root() {
        return skip("mounting a tmpfs needs root");
    }
    let Some(mut lab) = plain() else { return };
    let drive = text(lab.drive.path());
    let mount = |options: &str| {
        sh(
            lab.root(),
            &format!("mount -t tmpfs -o {options} none '{drive}'"),
        )
        .ok();
    };
    mount("size=16m");
    fs::write(lab.d("old"), b"old").expect("write");
    lab.mount(&[]);
    write(&lab.m("a"), b"a");
    lab.flush();
    write(&lab.m("new"), b"new");
    sh(lab.root(), &format!("mount -o remount,ro '{drive}'")).ok();
    lab.flush_code(exit::NO_BACKEND);
    let done = lab
        .ferryfs(&["eject", &text(&lab.mnt)])
        .code(exit::LEFT_BEHIND);
    assert!(done.stdout.contains("read-only"), "{}", done.stdout);
    assert_eq!(lab.status()["backend_state"], "detached");
    lab.ferryfs(&["attach", &drive, &text(&lab.mnt)])
        .code(exit::DONE);
    lab.unmount_with(&["--no-flush"]);
    let done = lab.try_mount(&[]).code(exit::DONE);
    assert!(done.stderr.contains("read-only"), "{}", done.stderr);
    lab.adopt();
    assert_content(lab.m("new"), b"new");
    assert_content(lab.m("old"), b"old");
    assert!(lab.status()["warnings"].to_string().contains("read-only"));
    sh(lab.root(), &format!("mount -o remount,rw '{drive}'")).ok();
    lab.flush();
    lab.assert_drive_is_mount();
    wait_until("the warning to go", Duration::from_secs(10), || {
        lab.status()["warnings"] == serde_json::json!([])
    });
    lab.unmount();
    sh(lab.root(), &format!("mount -o remount,ro '{drive}'")).ok();
    // A cache that has never tried the drive out cannot begin so.
    mount_with(&lab, &lab.root().join("another"), &[]).refuses(exit::FAILED, "read-only");
    assert!(!lab.root().join("another").exists());
    sh(lab.root(), &format!("umount '{drive}'")).ok();
    lab.finish();
}

#[test]
fn only_the_volume_itself_is_taken_up_again() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    write(&lab.m("a"), b"a");
    lab.unmount();
    lab.drive.take_away();
    // An empty place is a drive that is not mounted, and another directory is another one.
    lab.try_mount(&["--re-enroll"])
        .refuses(exit::NO_BACKEND, "empty");
    assert!(!lab.d(".ferryfs").exists());
    lab.remount();
    let other = lab.root().join("other");
    write(&other.join("file"), b"x");
    let place = text(&lab.root().join("drive-away"));
    for place in [&text(lab.drive.path()), &text(&other)] {
        let done = lab.ferryfs(&["attach", "--re-enroll", place, &text(&lab.mnt)]);
        if place.ends_with("other") {
            // It is on the same file system, and nothing else speaks for it.
            done.refuses(exit::NO_BACKEND, "never");
        } else {
            done.refuses(exit::NO_BACKEND, "empty");
        }
    }
    assert!(!other.join(".ferryfs").exists() && !lab.d(".ferryfs").exists());
    // The real one, elsewhere, is whole and is simply attached.
    lab.ferryfs(&["attach", "--re-enroll", &place, &text(&lab.mnt)])
        .code(exit::DONE);
    lab.unmount();
    lab.drive.put_back();
    lab.finish();
}

/// Writes files into the mount by one name after the other, retrying as programs do, until told to
/// stop.
struct Retrier {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Vec<u64>>,
}

impl Retrier {
    fn start(dir: PathBuf) -> Retrier {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut acknowledged = Vec::new();
            let mut n = 0;
            while !stopped.load(Ordering::Acquire) {
                let written = fs::create_dir_all(&dir).and_then(|()| {
                    let file = fs::File::create(dir.join(n.to_string()))?;
                    std::io::Write::write_all(&mut &file, format!("data {n}").as_bytes())?;
                    file.sync_all()
                });
                if written.is_ok() {
                    acknowledged.push(n);
                    n += 1;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            acknowledged
        });
        Retrier { stop, thread }
    }

    fn stop(self) -> Vec<u64> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("the writer panicked")
    }
}

fn assert_all_in(lab: &Lab, acknowledged: &[u64]) {
    assert!(acknowledged.len() > 10, "the writer got nowhere");
    let lost: Vec<u64> = acknowledged
        .iter()
        .copied()
        .filter(|n| fs::read(lab.m(format!("out/{n}"))).ok() != Some(format!("data {n}").into()))
        .collect();
    assert!(
        lost.is_empty(),
        "acknowledged and not in the mount: {lost:?}"
    );
}

#[test]
fn a_program_that_retries_across_a_kill_and_a_remount_loses_nothing() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    sh(&lab.mnt, "mkdir many; cd many; seq 3000 | xargs touch");
    let writer = Retrier::start(lab.m("out"));
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(300));
        lab.kill9();
        std::thread::sleep(Duration::from_millis(100));
        lab.remount();
    }
    std::thread::sleep(Duration::from_millis(200));
    assert_all_in(&lab, &writer.stop());
    lab.unmount_with(&["--no-flush"]);
    assert_eq!(fs::read_dir(&lab.mnt).expect("list").count(), 0);
    lab.finish();
}

/// Somebody takes the dead mount away by hand, so that programs do write into the bare directory.
#[test]
fn what_was_written_below_after_a_death_is_in_the_mount_afterwards() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    write(&lab.m("d/both.txt"), b"of the mount");
    write(&lab.m("d/same"), b"same");
    write(&lab.m("d/begun"), b"");
    lab.flush();
    lab.kill9();
    run(Command::new("umount").arg("-l").arg(&lab.mnt)).ok();
    write(&lab.m("d/both.txt"), b"of below");
    write(&lab.m("d/same"), b"same");
    // A program that was cut off after it had made its file has written it again.
    write(&lab.m("d/begun"), b"begun again");
    write(&lab.m("d/new/deep"), b"deep");
    sh(
        &lab.mnt,
        "chmod 640 d/new/deep; touch -d '2001-02-03 04:05:06 UTC' d/new/deep; ln -s deep d/new/link",
    );
    let done = lab.try_mount(&[]).code(exit::DONE);
    assert!(done.stdout.contains("in the mount now"), "{done:?}");
    lab.adopt();
    let told = lab.status()["attention"].to_string();
    assert!(
        told.contains("d/new/deep") && told.contains("sync-conflict"),
        "{told}"
    );
    assert_content(lab.m("d/both.txt"), b"of the mount");
    assert_content(lab.m("d/begun"), b"begun again");
    assert_content(lab.m("d/new/deep"), b"deep");
    let meta = fs::metadata(lab.m("d/new/deep")).expect("stat");
    assert_eq!((meta.mode() & 0o777, meta.mtime()), (0o640, 981_173_106));
    assert_eq!(
        fs::read_link(lab.m("d/new/link")).expect("readlink"),
        Path::new("deep")
    );
    let names: Vec<String> = fs::read_dir(lab.m("d"))
        .expect("list")
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .into_string()
                .expect("text")
        })
        .collect();
    let conflicts: Vec<&String> = names
        .iter()
        .filter(|n| n.contains("sync-conflict"))
        .collect();
    assert_eq!(conflicts.len(), 1, "{names:?}");
    assert!(conflicts[0].starts_with("both.") && conflicts[0].ends_with(".txt"));
    assert_content(lab.m("d").join(conflicts[0]), b"of below");
    assert_eq!(names.len(), 5, "{names:?}");
    lab.flush();
    lab.assert_drive_is_mount();
    lab.unmount();
    assert_eq!(fs::read_dir(&lab.mnt).expect("list").count(), 0);
    lab.finish();
}

#[test]
fn what_lies_in_a_mount_point_is_named_and_taken_in_when_that_is_asked_for() {
    let Some(mut lab) = plain() else { return };
    write(&lab.m("notes/today.txt"), b"today");
    let done = lab.try_mount(&[]).refuses(exit::FAILED, "notes");
    assert!(done.stderr.contains("--adopt"), "{done:?}");
    assert_content(lab.m("notes/today.txt"), b"today");
    assert!(!lab.d(".ferryfs").exists());
    let done = lab.try_mount(&["--adopt"]).code(exit::DONE);
    assert!(done.stdout.contains("notes/today.txt"), "{done:?}");
    lab.adopt();
    assert_content(lab.m("notes/today.txt"), b"today");
    lab.flush();
    assert_content(lab.d("notes/today.txt"), b"today");
    lab.unmount();
    assert_eq!(fs::read_dir(&lab.mnt).expect("list").count(), 0);
    lab.finish();
}

#[test]
fn a_file_that_is_still_being_written_below_is_not_cut_short() {
    let Some(mut lab) = plain() else { return };
    let open = fs::File::create(lab.m("log")).expect("create");
    let args = lab.mount_args(&["--adopt"]);
    let mount = std::thread::spawn({
        let mut command = lab.command(&args);
        move || run(&mut command)
    });
    wait_until("the mount", Duration::from_secs(30), || lab.is_mounted());
    std::thread::sleep(Duration::from_millis(300));
    std::io::Write::write_all(&mut &open, b"to the end").expect("write");
    drop(open);
    mount.join().expect("mount").code(exit::DONE);
    lab.adopt();
    wait_until("the file to come in", Duration::from_secs(30), || {
        lab.m("log").exists()
    });
    assert_content(lab.m("log"), b"to the end");
    lab.unmount();
    assert_eq!(fs::read_dir(&lab.mnt).expect("list").count(), 0);
    lab.finish();
}

#[test]
fn what_an_end_has_left_below_is_moved_by_the_next_mount() {
    let Some(mut lab) = plain() else { return };
    for by_signal in [false, true] {
        let open = fs::File::create(lab.mnt.join("log")).expect("create");
        lab.ferryfs(&lab.mount_args(&["--adopt", "--no-protect-mountpoint"]))
            .code(exit::DONE);
        lab.adopt();
        assert!(!lab.m("log").exists());
        if by_signal {
            let pid = nix::unistd::Pid::from_raw(lab.pid());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("kill");
            wait_until("the end", Duration::from_secs(30), || {
                fs::read_to_string(format!("/proc/{pid}/stat"))
                    .map_or(true, |stat| stat.contains(") Z "))
            });
        } else {
            lab.unmount_with(&["--no-flush"]);
        }
        std::io::Write::write_all(&mut &open, b"to the end").expect("write");
        drop(open);
        assert_content(lab.mnt.join("log"), b"to the end");
        // Nobody has to ask for it again.
        lab.mount(&["--no-protect-mountpoint"]);
        wait_until("the file to come in", Duration::from_secs(30), || {
            lab.m("log").exists()
        });
        assert_content(lab.m("log"), b"to the end");
        fs::remove_file(lab.m("log")).expect("rm");
        lab.unmount();
        assert_eq!(fs::read_dir(&lab.mnt).expect("list").count(), 0);
    }
    lab.finish();
}

#[test]
fn an_unmount_that_finds_the_mount_in_use_does_not_end_the_move() {
    let Some(mut lab) = plain() else { return };
    let below = fs::File::create(lab.m("log")).expect("create");
    let done = lab.try_mount(&["--adopt"]).code(exit::DONE);
    assert!(done.stdout.contains("being moved"), "{done:?}");
    lab.adopt();
    let busy = fs::File::create(lab.m("busy")).expect("create");
    assert_ne!(lab.ferryfs(&["unmount", &text(&lab.mnt)]).code, exit::DONE);
    drop(below);
    wait_until("the file to come in", Duration::from_secs(30), || {
        lab.m("log").exists()
    });
    drop(busy);
    lab.unmount();
    assert_eq!(fs::read_dir(&lab.mnt).expect("list").count(), 0);
    lab.finish();
}

#[test]
fn a_mount_point_in_which_something_is_mounted_is_refused_with_adopt_too() {
    if !is_root() {
        return skip("a bind mount needs root");
    }
    let Some(lab) = plain() else { return };
    let theirs = lab.root().join("theirs");
    write(&theirs.join("film"), b"film");
    let place = lab.m("in");
    fs::create_dir(&place).expect("mkdir");
    let bind = |args: &[&str]| run(Command::new("mount").args(args)).ok();
    bind(&["--bind", &text(&theirs), &text(&place)]);
    let (plain, adopting) = (lab.try_mount(&[]), lab.try_mount(&["--adopt"]));
    let is_whole = theirs.join("film").exists();
    run(Command::new("umount").arg("-l").arg(&place)).ok();
    assert!(is_whole);
    plain.refuses(exit::FAILED, "mounted");
    adopting.refuses(exit::FAILED, &text(&place));
    fs::remove_dir(&place).expect("rmdir");
    lab.finish();
}

#[test]
fn what_lies_at_the_place_of_a_drive_that_is_away_is_not_taken_for_it() {
    let Some(mut lab) = Lab::new(Backend::EXFAT) else {
        return;
    };
    lab.mount(&["--default-cache"]);
    write(&lab.m("a"), b"a");
    lab.unmount();
    lab.drive.take_away();
    write(&lab.d("another"), b"of another drive");
    let done = lab
        .try_mount(&["--default-cache"])
        .refuses(exit::NO_BACKEND, "not there");
    assert!(done.stderr.contains("--cache"), "{done:?}");
    assert!(!lab.is_mounted(), "{done:?}");
    fs::remove_file(lab.d("another")).expect("rm");
    // An empty place is a drive that is away.
    lab.remount();
    assert_content(lab.m("a"), b"a");
    lab.unmount();
    lab.drive.put_back();
    lab.finish();
}

/// The daemon died when the marker had its new nonce, and the cache had both yet.
#[test]
fn a_new_nonce_that_was_not_settled_is_settled_when_the_drive_comes() {
    for is_there in [true, false] {
        let Some(mut lab) = Lab::mounted(Backend::EXFAT) else {
            return;
        };
        write(&lab.m("a"), b"a");
        sh(&lab.mnt, "chmod 600 a");
        lab.flush();
        lab.unmount();
        let path = lab.cache.join("cache.json");
        let read = || -> serde_json::Value {
            serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON")
        };
        let mut facts = read();
        facts["renewed"] = facts["nonce"].take();
        facts["nonce"] = serde_json::json!(vec![7; 16]);
        fs::write(&path, facts.to_string()).expect("write");
        if is_there {
            lab.remount();
        } else {
            lab.drive.take_away();
            lab.remount();
            lab.drive.put_back();
            wait_until("the drive to be taken up", Duration::from_secs(30), || {
                lab.status()["backend_state"] == "attached"
            });
        }
        assert_eq!(read()["nonce"], facts["renewed"]);
        assert!(read()["renewed"].is_null());
        lab.flush();
        write(&lab.m("b"), b"b");
        lab.finish_flushed();
    }
}

#[test]
fn the_bare_mount_point_loses_its_write_permission_and_gets_it_back() {
    let Some(mut lab) = plain() else { return };
    let mode = |lab: &Lab| fs::metadata(&lab.mnt).expect("stat").mode() & 0o7777;
    fs::set_permissions(&lab.mnt, fs::Permissions::from_mode(0o775)).expect("chmod");
    for is_first in [true, false] {
        let done = lab.try_mount(&[]).code(exit::DONE);
        let is_told = done.stdout.contains("--no-protect-mountpoint");
        assert_eq!(is_told, is_first, "{done:?}");
        lab.adopt();
        lab.unmount();
        assert_eq!(mode(&lab), 0o555);
    }
    lab.mount(&["--no-protect-mountpoint"]);
    lab.unmount();
    assert_eq!(mode(&lab), 0o775);
    // It can be removed like any other.
    lab.mount(&[]);
    lab.unmount();
    fs::remove_dir(&lab.mnt).expect("rmdir");
    fs::create_dir(&lab.mnt).expect("mkdir");
    lab.finish();
}

#[test]
fn root_has_the_bare_mount_point_made_immutable_if_that_is_asked_for() {
    if !is_root() {
        return skip("chattr +i needs root");
    }
    let Some(mut lab) = plain() else { return };
    if !chattr("+i", &lab.mnt) {
        return skip("this file system has no immutable files");
    }
    assert!(chattr("-i", &lab.mnt));
    struct Mutable(PathBuf);
    impl Drop for Mutable {
        fn drop(&mut self) {
            // A directory that cannot be removed would be left for ever.
            for _ in 0..2 {
                chattr("-i", &self.0);
                run(Command::new("umount").arg("-l").arg(&self.0));
            }
        }
    }
    let _mutable = Mutable(lab.mnt.clone());
    lab.mount(&["--protect-mountpoint"]);
    write(&lab.m("a"), b"a");
    lab.flush();
    lab.kill9();
    lab.remount();
    assert_content(lab.m("a"), b"a");
    lab.unmount();
    let refused = fs::write(lab.mnt.join("stray"), b"x").is_err();
    lab.mount(&["--no-protect-mountpoint"]);
    lab.unmount();
    assert!(refused, "root could write into it");
    fs::write(lab.mnt.join("stray"), b"x").expect("it is given back");
    fs::remove_file(lab.mnt.join("stray")).expect("rm");
    lab.finish();
}

/// The daemon dies in the middle of a flush, and our folder is deleted with all that the batch had
/// staged and set aside.
#[test]
fn our_folder_deleted_in_the_middle_of_a_batch_costs_nothing_that_is_cached() {
    for backend in [Backend::Ext4Dir, Backend::EXFAT] {
        let Some(mut lab) = Lab::mounted(backend) else {
            return;
        };
        for file in 0..60 {
            write(
                &lab.m(format!("old/{}/{file}", file % 5)),
                &content(file, 3000),
            );
        }
        lab.flush();
        for (round, pause) in [20, 60, 100, 140, 180, 250].into_iter().enumerate() {
            let script = format!(
                "rm -rf old/4; cp -r old/0 copy{round}; mv old moved; mkdir old; mv moved/0 moved/1 old
                 for n in 1 2 3 4 5; do echo {round} $n > old/0/$n; done; mv moved kept{round}
                 cp -r kept{round}/. old; cp -r copy{round} old/4; rm kept{round}/2/7"
            );
            sh(&lab.mnt, &script);
            let tree = Tree::read(&lab.mnt);
            let mut flush = lab
                .command(&["flush", &text(&lab.mnt)])
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .spawn()
                .expect("flush");
            std::thread::sleep(Duration::from_millis(pause));
            lab.kill9();
            flush.wait().expect("flush");
            delete_our_folder(&lab);
            lab.ferryfs(&lab.mount_args(&["--re-enroll"]))
                .code(exit::DONE);
            lab.adopt();
            lab.flush_interrupted();
            let now = Tree::read(&lab.mnt);
            tree.assert_same(&now, "the mount before", "the mount after");
            lab.assert_drive_is_mount();
        }
        lab.finish();
    }
}
