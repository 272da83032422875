//! Whatever is wrong with what we are given: one clear line, one hint, the right exit code, and
//! nothing lost.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::lab::{self, Backend, Lab, assert_content, content, exit, run, text, wait_until, write};

fn plain() -> Option<Lab> {
    Lab::new(Backend::Ext4Dir)
}

/// Mounts `backend` at `mountpoint` with `cache`, wherever those are.
fn mount(lab: &Lab, cache: &Path, backend: &Path, mountpoint: &Path) -> lab::Done {
    lab.ferryfs(&[
        "mount",
        "--no-auto-flush",
        "--cache",
        &text(cache),
        &text(backend),
        &text(mountpoint),
    ])
}

#[test]
fn mount_point_that_is_missing_is_refused() {
    let Some(lab) = plain() else { return };
    let nowhere = lab.root().join("nowhere");
    mount(&lab, &lab.cache, lab.drive.path(), &nowhere).refuses(exit::FAILED, "nowhere");
    assert!(!nowhere.exists());
    lab.finish();
}

#[test]
fn mount_point_that_is_a_file_is_refused() {
    let Some(lab) = plain() else { return };
    let file = lab.root().join("file");
    write(&file, b"");
    mount(&lab, &lab.cache, lab.drive.path(), &file).refuses(exit::FAILED, "not a directory");
    lab.finish();
}

#[test]
fn mount_point_that_is_not_empty_is_refused_and_untouched() {
    let Some(lab) = plain() else { return };
    write(&lab.m("mine"), b"mine");
    lab.try_mount(&[]).refuses(exit::FAILED, "not empty");
    assert_content(lab.m("mine"), b"mine");
    lab.finish();
}

#[test]
fn second_mount_on_one_mount_point_is_refused_and_the_first_works_on() {
    let Some(mut lab) = plain() else { return };
    lab.mount(&[]);
    write(&lab.m("a"), b"a");
    lab.try_mount(&[]).refuses(exit::FAILED, "mount");
    lab.flush();
    assert_content(lab.d("a"), b"a");
    lab.finish();
}

#[test]
fn backend_that_is_missing_is_exit_4() {
    let Some(lab) = plain() else { return };
    let absent = lab.root().join("absent");
    mount(&lab, &lab.cache, &absent, &lab.mnt).refuses(exit::NO_BACKEND, "absent");
    assert!(!absent.exists());
    lab.ferryfs(&["recover", &text(&absent)])
        .refuses(exit::NO_BACKEND, "absent");
    lab.finish();
}

#[test]
fn backend_that_is_a_file_is_refused() {
    let Some(lab) = plain() else { return };
    let file = lab.root().join("file");
    write(&file, b"");
    let done = mount(&lab, &lab.cache, &file, &lab.mnt);
    let code = done.code;
    assert!(
        [exit::FAILED, exit::NO_BACKEND].contains(&code),
        "exit {code}"
    );
    done.refuses(code, "not a directory");
    lab.finish();
}

#[test]
fn backend_that_is_read_only_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        return lab::skip("a read-only bind mount needs root");
    }
    let Some(lab) = plain() else { return };
    let place = lab.root().join("read-only");
    fs::create_dir(&place).expect("mkdir");
    run(Command::new("mount")
        .args(["--bind"])
        .arg(lab.drive.path())
        .arg(&place))
    .ok();
    run(Command::new("mount")
        .args(["-o", "remount,bind,ro"])
        .arg(&place))
    .ok();
    mount(&lab, &lab.cache, &place, &lab.mnt).refuses(exit::FAILED, "read-only");
    assert!(!lab.is_mounted());
    run(Command::new("umount").arg(&place)).ok();
    lab.finish();
}

#[test]
fn places_inside_one_another_are_refused() {
    let Some(lab) = plain() else { return };
    let inside = |place: &Path| {
        let path = place.join("inside");
        fs::create_dir_all(&path).expect("mkdir");
        path
    };
    fs::create_dir_all(&lab.cache).expect("mkdir");
    let drive = lab.drive.path().to_owned();
    for (what, cache, backend, mountpoint) in [
        (
            "the mount in the drive",
            &lab.cache,
            &drive,
            &inside(&drive),
        ),
        ("the cache in the drive", &inside(&drive), &drive, &lab.mnt),
        (
            "the drive in the cache",
            &lab.cache,
            &inside(&lab.cache),
            &lab.mnt,
        ),
        (
            "the mount in the cache",
            &lab.cache,
            &drive,
            &inside(&lab.cache),
        ),
        ("one place for both", &lab.cache, &lab.mnt, &lab.mnt),
    ] {
        let done = mount(&lab, cache, backend, mountpoint);
        assert_eq!(done.code, exit::FAILED, "{what}: {}", done.stderr);
        done.refuses(exit::FAILED, "");
        assert!(!lab.is_mounted(), "{what}");
    }
    // These two make the mount point not empty; which of the two faults is named is all the same.
    for (cache, backend) in [(&inside(&lab.mnt), &drive), (&lab.cache, &inside(&lab.mnt))] {
        mount(&lab, cache, backend, &lab.mnt).refuses(exit::FAILED, "");
    }
    assert!(
        !drive.join(".ferryfs").exists(),
        "nothing was enrolled by a refused mount"
    );
    lab.finish();
}

#[test]
fn cache_in_use_by_another_daemon_is_refused() {
    let Some(mut lab) = plain() else { return };
    lab.mount(&[]);
    let second = lab.root().join("second");
    fs::create_dir(&second).expect("mkdir");
    mount(&lab, &lab.cache, lab.drive.path(), &second).refuses(exit::FAILED, "in use");
    write(&lab.m("a"), b"a");
    lab.flush();
    lab.finish();
}

#[test]
fn cache_of_another_volume_is_refused_and_kept() {
    let Some(mut lab) = plain() else { return };
    lab.mount(&[]);
    write(&lab.m("only here"), b"dirty");
    lab.unmount_with(&["--no-flush"]);
    let other = lab.root().join("other drive");
    fs::create_dir(&other).expect("mkdir");
    mount(&lab, &lab.cache, &other, &lab.mnt).refuses(exit::FAILED, "volume");
    assert!(!other.join("only here").exists());
    lab.remount();
    assert_content(lab.m("only here"), b"dirty");
    lab.finish();
}

#[test]
fn two_daemons_on_one_drive_are_refused() {
    let Some(mut lab) = plain() else { return };
    lab.mount(&[]);
    let (second, cache) = (lab.root().join("second"), lab.root().join("second-cache"));
    fs::create_dir(&second).expect("mkdir");
    mount(&lab, &cache, lab.drive.path(), &second).refuses(exit::FAILED, "");
    lab.finish();
}

/// A lab whose drive is enrolled and has one file, unmounted.
fn enrolled() -> Option<Lab> {
    let mut lab = plain()?;
    lab.mount(&[]);
    write(&lab.m("a"), b"a");
    lab.flush();
    write(&lab.m("dirty"), b"dirty");
    lab.unmount_with(&["--no-flush"]);
    Some(lab)
}

#[test]
fn volume_of_a_newer_format_is_refused_and_untouched() {
    let Some(lab) = enrolled() else { return };
    let marker = lab.d(".ferryfs/volume.json");
    let mut volume: serde_json::Value =
        serde_json::from_slice(&fs::read(&marker).expect("read the marker"))
            .expect("the marker is JSON");
    assert!(
        volume["format"].is_u64(),
        "the marker names its format: {volume}"
    );
    volume["format"] = 99.into();
    let newer = volume.to_string();
    write(&marker, newer.as_bytes());
    lab.try_mount(&[]).refuses(exit::FAILED, "newer");
    let done = lab.ferryfs(&["recover", &text(lab.drive.path())]);
    done.refuses(exit::FAILED, "newer");
    assert_eq!(fs::read_to_string(&marker).expect("read"), newer);
    lab.finish();
}

#[test]
fn garbage_in_the_volume_marker_is_refused_and_untouched() {
    let Some(lab) = enrolled() else { return };
    for garbage in [
        &b""[..],
        b"{",
        b"\0\0\0\0\0\0\0\0",
        b"[1,2]",
        &content(1, 70_000),
    ] {
        write(&lab.d(".ferryfs/volume.json"), garbage);
        lab.try_mount(&[]).refuses(exit::FAILED, "volume");
        assert_content(lab.d(".ferryfs/volume.json"), garbage);
    }
    assert_content(lab.d("a"), b"a");
    lab.finish();
}

/// Every file of ours on the drive in turn is garbage. The program may go on or refuse, but it
/// ends, it does not crash, and it neither loses what is in the cache nor touches the files of the
/// user.
#[test]
fn garbage_in_any_file_of_ours_on_the_drive_harms_no_file_of_the_user() {
    let Some(lab) = enrolled() else { return };
    let tree = lab::Tree::read(&lab.d(".ferryfs")).plain();
    let mut lab = lab;
    for name in tree
        .0
        .iter()
        .filter(|(_, node)| matches!(node, lab::Node::File(..)))
        .map(|(name, _)| name)
    {
        let path = lab.d(".ferryfs").join(name);
        let Ok(sound) = fs::read(&path) else { continue };
        for garbage in [content(9, 777), sound[..sound.len() / 2].to_vec()] {
            write(&path, &garbage);
            let done = lab.ferryfs(&["recover", &text(lab.drive.path())]);
            assert!(
                [exit::DONE, exit::FAILED].contains(&done.code),
                "recover, {name}: exit {}",
                done.code
            );
            assert!(!done.stderr.contains("panicked"), "{name}: {}", done.stderr);
            let done = lab.try_mount(&[]);
            if done.code == exit::DONE {
                lab.adopt();
                assert_eq!(
                    fs::read(lab.m("dirty")).expect("read"),
                    b"dirty",
                    "after garbage in {name}"
                );
                lab.unmount_with(&["--no-flush"]);
            } else {
                done.refuses(exit::FAILED, "");
            }
            assert_eq!(
                fs::read(lab.d("a")).expect("read"),
                b"a",
                "after garbage in {name}"
            );
        }
        write(&path, &sound);
    }
    lab.mount(&[]);
    lab.finish_flushed();
}

/// A record of a batch that was never ours, beside the ones that are.
#[test]
fn garbage_as_a_batch_record_is_not_applied() {
    let Some(mut lab) = enrolled() else { return };
    for folder in ["batches", "journal", "records", "batch"] {
        let place = lab.d(".ferryfs").join(folder);
        if place.is_dir() {
            write(&place.join("99999999"), &content(4, 500));
            write(
                &place.join("99999998.json"),
                b"{\"steps\":[{\"remove\":\"a\"}]}",
            );
        }
    }
    write(
        &lab.d(".ferryfs/batch.json"),
        b"{\"steps\":[{\"remove\":\"a\"}]}",
    );
    let done = lab.try_mount(&[]);
    assert_content(lab.d("a"), b"a");
    if done.code == exit::DONE {
        lab.adopt();
        assert_content(lab.m("dirty"), b"dirty");
    } else {
        done.refuses(exit::FAILED, "");
    }
    if lab.is_mounted() {
        lab.unmount_with(&["--no-flush"]);
    }
    lab.finish();
}

#[test]
fn usage_errors_are_exit_2() {
    let Some(lab) = plain() else { return };
    let (drive, mnt) = (text(lab.drive.path()), text(&lab.mnt));
    for args in [
        vec![],
        vec!["fluhs"],
        vec!["mount"],
        vec!["mount", &drive],
        vec!["mount", "--io", "magic", &drive, &mnt],
        vec!["mount", "--cache-size", "much", &drive, &mnt],
        vec!["mount", "--flush-after", "soon", &drive, &mnt],
        vec!["flush", "--timeout", "-1s", &mnt],
        vec!["status", "--yaml"],
        vec!["unmount", &mnt, &mnt],
        vec!["recover"],
    ] {
        let done = lab.ferryfs(&args);
        assert_eq!(done.code, exit::USAGE, "{args:?}: {}", done.stderr);
        assert!(!done.stderr.is_empty(), "{args:?} says nothing");
    }
    assert!(!lab.is_mounted());
    lab.finish();
}

#[test]
fn commands_for_what_is_no_mount_of_ours_say_so() {
    let Some(lab) = plain() else { return };
    for command in ["flush", "status", "eject", "unmount"] {
        lab.ferryfs(&[command, &text(&lab.mnt)])
            .refuses(exit::FAILED, &text(&lab.mnt));
        lab.ferryfs(&[command, "/proc"])
            .refuses(exit::FAILED, "/proc");
    }
    lab.finish();
}

#[test]
fn a_cache_that_others_could_have_prepared_is_refused_and_nothing_is_opened_through_it() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let Some(lab) = plain() else { return };
    let victim = lab.root().join("victim");
    write(&victim, b"precious");
    let before = fs::metadata(&victim).expect("stat").permissions();
    // Whether others may still write there, or could once.
    for mode in [0o777, 0o700] {
        for name in [
            "lock",
            "ferryfs.log",
            "index.db",
            "cache.json",
            "mountpoint.json.tmp",
            "objects",
        ] {
            let cache = lab.root().join("planted");
            fs::create_dir(&cache).expect("mkdir");
            fs::set_permissions(&cache, fs::Permissions::from_mode(mode)).expect("chmod");
            symlink(&victim, cache.join(name)).expect("symlink");
            mount(&lab, &cache, lab.drive.path(), &lab.mnt).refuses(exit::FAILED, "cache");
            assert_content(&victim, b"precious");
            assert_eq!(fs::metadata(&victim).expect("stat").permissions(), before);
            let entries = fs::read_dir(&cache).expect("list").count();
            assert_eq!(entries, 1, "something was made beside {name}");
            assert!(!lab.d(".ferryfs").exists(), "the drive was touched");
            fs::remove_dir_all(&cache).expect("remove");
        }
    }
    lab.finish();
}

#[test]
fn root_does_not_use_the_cache_of_another_user_nor_an_index_that_he_has_put_into_its_own() {
    use std::os::unix::fs::chown;
    if !nix::unistd::geteuid().is_root() {
        return lab::skip("giving files to another user needs root");
    }
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    write(&lab.m("file"), b"bytes");
    lab.unmount();
    for theirs in ["", "index.db", "objects", "cache.json"] {
        let theirs = lab.cache.join(theirs);
        chown(&theirs, Some(12_345), None).expect("chown");
        lab.try_mount(&[]).refuses(exit::FAILED, "user 12345");
        chown(&theirs, Some(0), None).expect("chown");
    }
    lab.mount(&[]);
    assert_content(lab.m("file"), b"bytes");
    lab.unmount();
    lab.finish();
}

/// Makes directories one in the other, each by its own name in the one before. Tells how far that
/// went.
const CHAIN: &str = r#"
import errno, os, sys
at = os.open(sys.argv[1], os.O_RDONLY)
made = 0
try:
    while made < int(sys.argv[2]):
        os.mkdir("d", dir_fd=at)
        made += 1
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
except OSError as error:
    print(errno.errorcode[error.errno], end=" ")
print(made)
"#;

/// How many directories are one in the other.
const LEVELS: &str = r#"
import os, sys
at = os.open(sys.argv[1], os.O_RDONLY)
levels = 0
try:
    while True:
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
        levels += 1
except OSError:
    print(levels)
"#;

fn python_at(script: &str, dir: &Path, number: &str) -> String {
    let mut python = Command::new("python3");
    python.args(["-c", script]).arg(dir).arg(number);
    run(&mut python).ok().stdout.trim().to_string()
}

#[test]
fn directories_are_as_deep_as_the_bound_whoever_makes_them_and_all_else_is_carried() {
    let Some(mut lab) = plain() else { return };
    // Somebody else has made deeper ones, and under names that no path in one call holds.
    fs::create_dir(lab.d("deep")).expect("mkdir");
    assert_eq!(python_at(CHAIN, &lab.d("deep"), "2060"), "2060");
    lab.mount(&[]);
    fs::create_dir(lab.m("own")).expect("mkdir");
    assert_eq!(python_at(CHAIN, &lab.m("own"), "2060"), "ENAMETOOLONG 2047");
    wait_until(
        "the deep directory to be named",
        Duration::from_secs(300),
        || {
            let import = &lab.status()["import"];
            let named = &import["unreadable"][0]["reason"];
            named.as_str().is_some_and(|reason| reason.contains("2048"))
        },
    );
    write(&lab.m("beside"), b"beside");
    lab.flush();
    assert_content(lab.d("beside"), b"beside");
    assert_eq!(python_at(LEVELS, &lab.d("own"), ""), "2047");
    assert_eq!(python_at(LEVELS, &lab.m("deep"), ""), "2047");
    // What takes directories away one by one holds a descriptor of each.
    lab.unmount();
    run(Command::new("rm")
        .arg("-rf")
        .args([lab.d("deep"), lab.d("own")]))
    .ok();
    lab.finish();
}

/// Sizes, offsets and times at and beyond what can be counted. Whatever is refused is refused with
/// an error.
const EXTREMES: &str = r#"
import ctypes, errno, os, sys
top = sys.argv[1]
most = 2**63 - 1
libc = ctypes.CDLL(None, use_errno=True)
told = set()
def attempt(call, *args, **named):
    try:
        call(*args, **named)
    except (OSError, OverflowError) as error:
        told.add(getattr(error, "errno", 0))
for name in ["one", "other"]:
    os.close(os.open("%s/%s" % (top, name), os.O_CREAT | os.O_WRONLY))
    os.truncate("%s/%s" % (top, name), most)
    assert os.stat("%s/%s" % (top, name)).st_size == most
small = os.open(top + "/small", os.O_CREAT | os.O_RDWR)
os.write(small, b"small")
sizes = [0, 1, 5, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, most - 4096, most - 1, most]
for fd in [os.open(top + "/one", os.O_RDWR), small]:
    for at in sizes:
        attempt(os.pread, fd, 4096, at)
        attempt(os.pwrite, fd, b"x" * 8192, most - 100)
        attempt(os.lseek, fd, at, os.SEEK_DATA)
        attempt(os.lseek, fd, at, os.SEEK_HOLE)
        for length in sizes:
            for mode in [0, 1, 2 | 1, 8, 0x10 | 1, 0x10]:
                # Not so that it would fill the disk.
                if mode in (0, 1) and 2**20 < length < most - 2**20:
                    continue
                if libc.fallocate(fd, mode, ctypes.c_long(at), ctypes.c_long(length)):
                    told.add(ctypes.get_errno())
            attempt(os.copy_file_range, fd, small, min(length, 4096), at, max(0, most - length))
os.ftruncate(small, 5)
os.truncate(top + "/one", most)
for seconds in [0, 1, -1, 2**31, -2**31, 2**33, 9223372036, 9223372037, -9223372036, 2**40, 2**62]:
    attempt(os.utime, top + "/small", (seconds, seconds))
    attempt(os.utime, top, (seconds, seconds))
    os.stat(top + "/small")
os.utime(top + "/small", (1700000000, 1700000000))
attempt(os.truncate, top + "/small", -1)
space = os.statvfs(top)
assert space.f_bavail <= space.f_blocks
assert not told & {errno.EIO, errno.ENOTCONN, errno.ECONNABORTED}, told
print("done")
"#;

#[test]
fn sizes_offsets_and_times_at_the_edge_of_what_can_be_counted_break_nothing() {
    let Some(mut lab) = plain() else { return };
    // Where a file may have as many bytes as a number has.
    let shm = Path::new("/dev/shm");
    if !shm.is_dir() {
        return lab::skip("there is no tmpfs");
    }
    let ssd = tempfile::tempdir_in(shm).expect("a directory");
    lab.cache = ssd.path().join("cache");
    lab.mount(&[]);
    assert_eq!(python_at(EXTREMES, &lab.mnt, ""), "done");
    for round in 0..2 {
        let status = lab.status();
        assert!(status.to_string().contains("18446744073709551"), "{status}");
        // They are too large for any drive.
        let refused = lab.ferryfs(&["flush", &text(&lab.mnt)]);
        assert_ne!(refused.code, exit::DONE, "{}", refused.stdout);
        let size = fs::metadata(lab.m("other")).expect("stat").len();
        assert_eq!(size, i64::MAX.unsigned_abs());
        if round == 0 {
            lab.unmount_with(&["--no-flush"]);
            lab.mount(&[]);
        }
    }
    for name in ["one", "other"] {
        fs::remove_file(lab.m(name)).expect("unlink");
    }
    lab.flush();
    let small = fs::read(lab.m("small")).expect("read");
    assert_content(lab.d("small"), &small);
    lab.finish();
}
