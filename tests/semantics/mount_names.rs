//! What programs do to names, links and attributes, one promise per test. None of it depends on the
//! drive, so all run on a plain directory. Each was first run on ext4 itself; only inode numbers
//! are used again there.

use crate::{lab, on_plain_directory};

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::lab::{Lab, assert_content, python, sh, write};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

on_plain_directory!(
    inode_numbers_stay_across_remounts_and_are_not_used_again,
    listing_of_many_is_stable_while_entries_come_and_go,
    extended_attributes_survive_a_remount,
    hard_links_share_one_file,
    symlinks_point_where_they_were_told,
    fifo_carries_bytes_between_processes,
    rename_noreplace_and_exchange,
    rename_over_an_open_file_leaves_the_reader_its_bytes,
    times_are_kept_to_the_nanosecond,
    no_time_that_a_program_sets_ends_the_daemon,
    modes_owners_and_umask_are_kept,
    directories_that_are_not_empty_stay,
    names_up_to_255_bytes_and_no_longer,
    deep_trees_are_made_and_removed,
);

fn inode_numbers_stay_across_remounts_and_are_not_used_again(mut lab: Lab) {
    let mut seen = HashMap::new();
    for n in 0..50 {
        write(&lab.m(format!("d{}/{n}", n % 5)), b"x");
    }
    let ino = |lab: &Lab, path: &str| fs::metadata(lab.m(path)).expect("stat").ino();
    for n in 0..50 {
        let path = format!("d{}/{n}", n % 5);
        seen.insert(path.clone(), ino(&lab, &path));
    }
    fs::rename(lab.m("d0/0"), lab.m("renamed")).expect("rename");
    assert_eq!(ino(&lab, "renamed"), seen["d0/0"]);
    lab.flush();
    lab.unmount();
    lab.remount();
    assert_eq!(ino(&lab, "renamed"), seen["d0/0"]);
    for (path, number) in seen.iter().filter(|(path, _)| *path != "d0/0") {
        assert_eq!(ino(&lab, path), *number, "{path}");
    }
    fs::remove_file(lab.m("renamed")).expect("unlink");
    for n in 0..20 {
        write(&lab.m(format!("later{n}")), b"x");
        assert!(
            !seen
                .values()
                .any(|old| *old == ino(&lab, &format!("later{n}"))),
            "a number was used again"
        );
    }
    lab.finish();
}

fn listing_of_many_is_stable_while_entries_come_and_go(lab: Lab) {
    const MANY: usize = 20_000;
    let dir = lab.m("many");
    fs::create_dir(&dir).expect("mkdir");
    for n in 0..MANY {
        fs::File::create_new(dir.join(format!("stays-{n:05}"))).expect("create");
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let path = dir.join(format!("comes-{}", n % 500));
                fs::write(&path, b"").expect("create beside the listing");
                fs::remove_file(&path).expect("remove beside the listing");
            }
        });
        for _ in 0..3 {
            let mut times_seen = vec![0; MANY];
            for entry in fs::read_dir(&dir).expect("list") {
                let name = entry
                    .expect("entry")
                    .file_name()
                    .into_string()
                    .expect("UTF-8");
                if let Some(number) = name.strip_prefix("stays-") {
                    times_seen[number.parse::<usize>().expect("number")] += 1;
                }
            }
            let wrong = times_seen.iter().filter(|times| **times != 1).count();
            if wrong > 0 {
                stop.store(true, Ordering::Relaxed);
                panic!("{wrong} of {MANY} entries were not listed exactly once");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    lab.finish();
}

fn extended_attributes_survive_a_remount(mut lab: Lab) {
    write(&lab.m("f"), b"x");
    let set = r"
import os, sys, errno
f = sys.argv[1]
os.setxattr(f, 'user.colour', b'blue\0\xff')
os.setxattr(f, 'user.empty', b'')
os.setxattr(f, 'user.big', b'v' * 3000)
os.setxattr(f, 'user.gone', b'x'); os.removexattr(f, 'user.gone')
def fails(error, call, *args):
    try: call(*args)
    except OSError as e: assert e.errno == error, (e, error)
    else: raise AssertionError(args)
fails(errno.EEXIST, os.setxattr, f, 'user.colour', b'', os.XATTR_CREATE)
fails(errno.ENODATA, os.setxattr, f, 'user.none', b'', os.XATTR_REPLACE)
fails(errno.ENODATA, os.getxattr, f, 'user.gone')
";
    let check = r"
import os, sys
f = sys.argv[1]
names = sorted(n for n in os.listxattr(f) if n.startswith('user.'))
assert names == ['user.big', 'user.colour', 'user.empty'], names
assert os.getxattr(f, 'user.colour') == b'blue\0\xff'
assert os.getxattr(f, 'user.empty') == b''
assert os.getxattr(f, 'user.big') == b'v' * 3000
";
    let file = lab.m("f");
    python(set, &[&file]);
    python(check, &[&file]);
    lab.flush();
    lab.unmount();
    lab.remount();
    python(check, &[&file]);
    lab.finish();
}

fn hard_links_share_one_file(mut lab: Lab) {
    write(&lab.m("a"), b"one");
    fs::create_dir(lab.m("d")).expect("mkdir");
    fs::hard_link(lab.m("a"), lab.m("d/b")).expect("link");
    let same = |lab: &Lab| {
        let (a, b) = (
            fs::metadata(lab.m("a")).expect("stat"),
            fs::metadata(lab.m("d/b")).expect("stat"),
        );
        assert_eq!((a.ino(), a.nlink()), (b.ino(), 2), "two names of one file");
    };
    same(&lab);
    fs::write(lab.m("d/b"), b"two").expect("write through one name");
    assert_content(lab.m("a"), b"two");
    lab.flush();
    lab.assert_drive_is_mount();
    lab.unmount();
    lab.remount();
    same(&lab);
    fs::write(lab.m("a"), b"three").expect("write through the other");
    lab.flush();
    assert_eq!(
        fs::read(lab.d("d/b")).expect("read"),
        b"three",
        "every name on the drive follows"
    );
    fs::remove_file(lab.m("a")).expect("unlink");
    assert_eq!(fs::metadata(lab.m("d/b")).expect("stat").nlink(), 1);
    assert_content(lab.m("d/b"), b"three");
    lab.finish_flushed();
}

fn symlinks_point_where_they_were_told(lab: Lab) {
    write(&lab.m("d/real"), b"real");
    let long = "x".repeat(4000);
    for (name, target) in [
        ("rel", "d/real"),
        ("dangling", "nowhere"),
        ("long", long.as_str()),
        ("up", "../outside"),
    ] {
        symlink(target, lab.m(name)).expect("symlink");
        assert_eq!(
            fs::read_link(lab.m(name)).expect("readlink"),
            std::path::Path::new(target)
        );
        assert_eq!(
            fs::symlink_metadata(lab.m(name)).expect("lstat").len(),
            target.len() as u64
        );
    }
    assert_content(lab.m("rel"), b"real");
    let error = fs::read(lab.m("dangling")).expect_err("dangling");
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    lab.finish();
}

fn fifo_carries_bytes_between_processes(lab: Lab) {
    sh(
        &lab.mnt,
        "mkfifo pipe; (printf 'through the pipe' > pipe) & timeout 20 cat pipe > out; wait; test -p pipe",
    );
    assert_content(lab.m("out"), b"through the pipe");
    lab.finish();
}

fn rename_noreplace_and_exchange(lab: Lab) {
    write(&lab.m("a"), b"a");
    write(&lab.m("d/b"), b"b");
    let rename = |from: &str, to: &str, flags| {
        renameat2(AT_FDCWD, &lab.m(from), AT_FDCWD, &lab.m(to), flags)
    };
    assert_eq!(
        rename("a", "d/b", RenameFlags::RENAME_NOREPLACE),
        Err(Errno::EEXIST)
    );
    assert_content(lab.m("d/b"), b"b");
    rename("a", "d/new", RenameFlags::RENAME_NOREPLACE).expect("nothing is there");
    rename("d/new", "d/b", RenameFlags::RENAME_EXCHANGE).expect("exchange");
    assert_content(lab.m("d/new"), b"b");
    assert_content(lab.m("d/b"), b"a");
    assert_eq!(
        rename("d/b", "none", RenameFlags::RENAME_EXCHANGE),
        Err(Errno::ENOENT)
    );
    write(&lab.m("file"), b"file");
    rename("d", "file", RenameFlags::RENAME_EXCHANGE).expect("exchange a directory with a file");
    assert_content(lab.m("file/b"), b"a");
    assert_content(lab.m("d"), b"file");
    lab.flush();
    lab.assert_drive_is_mount();
    let error = fs::rename(lab.m("file"), lab.m("file/below")).expect_err("into itself");
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    lab.finish();
}

fn rename_over_an_open_file_leaves_the_reader_its_bytes(lab: Lab) {
    write(&lab.m("config"), b"old config");
    let mut reader = fs::File::open(lab.m("config")).expect("open");
    write(&lab.m("config.new"), b"new config, longer");
    fs::rename(lab.m("config.new"), lab.m("config")).expect("replace");
    lab.flush();
    let mut old = String::new();
    reader.read_to_string(&mut old).expect("read");
    assert_eq!(old, "old config");
    assert_content(lab.m("config"), b"new config, longer");
    assert!(!lab.m("config.new").exists());
    drop(reader);
    lab.finish();
}

fn times_are_kept_to_the_nanosecond(mut lab: Lab) {
    write(&lab.m("t"), b"t");
    let path = lab.m("t");
    let set = |atime, mtime| {
        utimensat(
            AT_FDCWD,
            &path,
            &atime,
            &mtime,
            UtimensatFlags::NoFollowSymlink,
        )
        .expect("utimensat");
    };
    set(
        TimeSpec::new(1_000_000_000, 123_456_789),
        TimeSpec::new(1_234_567_890, 987_654_321),
    );
    let times = |path: &std::path::Path| {
        let meta = fs::metadata(path).expect("stat");
        (
            (meta.atime(), meta.atime_nsec()),
            (meta.mtime(), meta.mtime_nsec()),
        )
    };
    assert_eq!(
        times(&path),
        ((1_000_000_000, 123_456_789), (1_234_567_890, 987_654_321))
    );
    set(TimeSpec::UTIME_OMIT, TimeSpec::new(1_300_000_000, 1));
    assert_eq!(
        times(&path),
        ((1_000_000_000, 123_456_789), (1_300_000_000, 1))
    );
    set(TimeSpec::new(1_400_000_000, 2), TimeSpec::UTIME_OMIT);
    assert_eq!(times(&path), ((1_400_000_000, 2), (1_300_000_000, 1)));
    lab.flush();
    lab.unmount();
    lab.remount();
    assert_eq!(
        times(&path).1,
        (1_300_000_000, 1),
        "to the nanosecond, also after a flush and a remount"
    );
    let before = fs::metadata(&path).expect("stat").ctime();
    assert!(
        before > 1_400_000_000,
        "ctime is ours to keep, not the caller's to set"
    );
    lab.finish();
}

/// As a `Timestamp` holds it: from 1677 to 2262.
fn held(secs: i64, nanos: i64) -> (i64, i64) {
    let exact = i128::from(secs) * 1_000_000_000 + i128::from(nanos);
    let held = exact.clamp(i64::MIN.into(), i64::MAX.into());
    let (secs, nanos) = (
        held.div_euclid(1_000_000_000),
        held.rem_euclid(1_000_000_000),
    );
    (secs as i64, nanos as i64)
}

fn no_time_that_a_program_sets_ends_the_daemon(mut lab: Lab) {
    let pid = lab.pid();
    write(&lab.m("file"), b"t");
    fs::create_dir(lab.m("dir")).expect("mkdir");
    symlink("file", lab.m("link")).expect("symlink");
    let open = fs::File::open(lab.m("file")).expect("open");
    // The ends of what a number holds and the one beside; before 1901 and after 2038, before 1677
    // and after 2262 and 2446.
    let seconds = [
        i64::MIN,
        i64::MIN + 1,
        i64::MIN / 2,
        -1 << 40,
        -9_300_000_000,
        -3_000_000_000,
        -2,
        -1,
        0,
        1 << 31,
    ];
    let seconds = seconds.into_iter().chain([
        9_300_000_000,
        15_100_000_000,
        1 << 40,
        i64::MAX - 1,
        i64::MAX,
    ]);
    for secs in seconds {
        for nanos in [0, 1, 500_000_000, 999_999_999] {
            let time = TimeSpec::new(secs, nanos);
            for name in ["file", "dir", "link"] {
                let flags = UtimensatFlags::NoFollowSymlink;
                utimensat(AT_FDCWD, &lab.m(name), &time, &time, flags)
                    .unwrap_or_else(|errno| panic!("{name}, {secs}.{nanos}: {errno}"));
                let meta = fs::symlink_metadata(lab.m(name)).expect("stat");
                let found = [
                    (meta.atime(), meta.atime_nsec()),
                    (meta.mtime(), meta.mtime_nsec()),
                ];
                // Linux has no fraction at either end of what a number holds.
                let nanos = if [i64::MIN, i64::MAX].contains(&secs) {
                    0
                } else {
                    nanos
                };
                assert_eq!(found, [held(secs, nanos); 2], "{name}, {secs}.{nanos}");
            }
            nix::sys::stat::futimens(&open, &time, &time).expect("futimens");
        }
        assert_eq!(lab.status()["pid"], pid, "the same daemon, after {secs}");
    }
    drop(open);
    // A drive takes what it can of such times; that is no reason to leave bytes behind.
    write(&lab.m("other"), b"other");
    lab.ferryfs(&["flush", &lab::text(&lab.mnt)]);
    assert_content(lab.d("other"), b"other");
    assert_content(lab.d("file"), b"t");
    assert_eq!(lab.status()["pid"], pid);
    lab.unmount();
    lab.remount();
    lab.finish();
}

fn modes_owners_and_umask_are_kept(mut lab: Lab) {
    sh(
        &lab.mnt,
        "umask 027; touch f; mkdir d; chmod 2770 d; touch x; chmod 7755 x; ln -s f l",
    );
    let mode =
        |lab: &Lab, path: &str| fs::symlink_metadata(lab.m(path)).expect("lstat").mode() & 0o7777;
    let expect = |lab: &Lab| {
        assert_eq!(mode(lab, "f"), 0o640);
        assert_eq!(mode(lab, "d"), 0o2770);
        assert_eq!(mode(lab, "x"), 0o7755);
    };
    expect(&lab);
    let root = nix::unistd::geteuid().is_root();
    if root {
        std::os::unix::fs::chown(lab.m("f"), Some(12), Some(34)).expect("chown");
    }
    lab.flush();
    lab.unmount();
    lab.remount();
    expect(&lab);
    if root {
        let meta = fs::metadata(lab.m("f")).expect("stat");
        assert_eq!((meta.uid(), meta.gid()), (12, 34));
    }
    lab.finish();
}

fn directories_that_are_not_empty_stay(lab: Lab) {
    write(&lab.m("d/f"), b"f");
    fs::create_dir(lab.m("e")).expect("mkdir");
    let error = fs::remove_dir(lab.m("d")).expect_err("rmdir");
    assert_eq!(error.raw_os_error(), Some(libc::ENOTEMPTY));
    let error = fs::rename(lab.m("e"), lab.m("d")).expect_err("rename over it");
    assert_eq!(error.raw_os_error(), Some(libc::ENOTEMPTY));
    let links = |path: &str| fs::metadata(lab.m(path)).expect("stat").nlink();
    assert_eq!(links("e"), 2);
    fs::create_dir(lab.m("e/below")).expect("mkdir");
    assert_eq!(links("e"), 3, "a directory counts its subdirectories");
    fs::rename(lab.m("e/below"), lab.m("d/below")).expect("move");
    assert_eq!((links("e"), links("d")), (2, 3));
    fs::rename(lab.m("d"), lab.m("e")).expect("rename over an empty directory");
    assert_content(lab.m("e/f"), b"f");
    lab.finish();
}

fn names_up_to_255_bytes_and_no_longer(lab: Lab) {
    let longest = "n".repeat(255);
    write(&lab.m(&longest), b"x");
    assert_content(lab.m(&longest), b"x");
    let error = fs::write(lab.m("n".repeat(256)), b"x").expect_err("too long");
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    lab.finish_flushed();
}

fn deep_trees_are_made_and_removed(lab: Lab) {
    let deep = "d/".repeat(60) + "file";
    write(&lab.m(&deep), b"deep");
    lab.flush();
    lab.assert_drive_is_mount();
    fs::rename(lab.m("d"), lab.m("moved")).expect("move the whole tree");
    lab.flush();
    lab.assert_drive_is_mount();
    fs::remove_dir_all(lab.m("moved")).expect("remove the whole tree");
    lab.finish_flushed();
}
