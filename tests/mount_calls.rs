//! What scripts and programs ask of a file system, one promise per test. None of it depends on the drive, so all run
//! on a plain directory. Each was first run on ext4 itself: what fails here would not fail there.

#[path = "support/lab/mod.rs"]
mod lab;

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use lab::{Lab, content, python, sh, write};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, fallocate, renameat2};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::Whence;

on_plain_directory!(
    inode_numbers_stay_across_remounts_and_are_not_used_again,
    unlinked_file_lives_while_it_is_open,
    listing_of_many_is_stable_while_entries_come_and_go,
    holes_stay_holes,
    punched_and_zeroed_ranges_read_as_zeros,
    preallocation_keeps_its_word_about_size,
    extended_attributes_survive_a_remount,
    hard_links_share_one_file,
    symlinks_point_where_they_were_told,
    fifo_carries_bytes_between_processes,
    shared_writable_mapping_is_seen_by_other_processes,
    appends_of_several_processes_do_not_overwrite_each_other,
    rename_noreplace_and_exchange,
    rename_over_an_open_file_leaves_the_reader_its_bytes,
    times_are_kept_to_the_nanosecond,
    statfs_speaks_of_the_cache_and_long_names,
    copy_file_range_copies,
    fsync_of_files_and_directories_succeeds,
    locks_exclude_other_processes,
    modes_owners_and_umask_are_kept,
    directories_that_are_not_empty_stay,
    names_up_to_255_bytes_and_no_longer,
    deep_trees_are_made_and_removed,
    large_sparse_offsets_work,
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

fn unlinked_file_lives_while_it_is_open(lab: Lab) {
    let mut file = fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(lab.m("gone"))
        .expect("create");
    file.write_all(b"before").expect("write");
    fs::remove_file(lab.m("gone")).expect("unlink");
    assert!(!lab.m("gone").exists());
    file.write_all(b" and after")
        .expect("write to what has no name");
    assert_eq!(file.metadata().expect("fstat").nlink(), 0);
    write(&lab.m("gone"), b"another file of that name");
    file.seek(SeekFrom::Start(0)).expect("seek");
    let mut bytes = String::new();
    file.read_to_string(&mut bytes).expect("read");
    assert_eq!(bytes, "before and after");
    lab.flush();
    assert_eq!(
        fs::read(lab.d("gone")).expect("read"),
        b"another file of that name"
    );
    drop(file);
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

fn holes_stay_holes(lab: Lab) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(lab.m("sparse"))
        .expect("create");
    file.write_all_at(b"start", 0).expect("write");
    file.write_all_at(b"end", 10 << 20).expect("write far on");
    file.sync_all().expect("fsync");
    let meta = file.metadata().expect("fstat");
    assert_eq!(meta.len(), (10 << 20) + 3);
    assert!(
        meta.blocks() * 512 < 1 << 20,
        "the hole takes {} blocks",
        meta.blocks()
    );
    let hole = nix::unistd::lseek(&file, 0, Whence::SeekHole).expect("SEEK_HOLE") as u64;
    assert!((5..=1 << 20).contains(&hole), "the first hole is at {hole}");
    let data = nix::unistd::lseek(&file, hole as i64, Whence::SeekData).expect("SEEK_DATA") as u64;
    assert!(
        (10 << 20) - data <= 1 << 20 && data <= 10 << 20,
        "data goes on at {data}"
    );
    let mut middle = [1; 4096];
    file.read_exact_at(&mut middle, 5 << 20)
        .expect("read the hole");
    assert_eq!(middle, [0; 4096]);
    drop(file);
    lab.flush();
    lab.assert_drive_is_mount();
    lab.finish();
}

fn punched_and_zeroed_ranges_read_as_zeros(lab: Lab) {
    let mut expected = content(3, 200_000);
    write(&lab.m("p"), &expected);
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(lab.m("p"))
        .expect("open");
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, punch, 10_000, 50_000).expect("punch");
    expected[10_000..60_000].fill(0);
    fallocate(
        &file,
        FallocateFlags::FALLOC_FL_ZERO_RANGE,
        150_000,
        100_000,
    )
    .expect("zero and grow");
    expected.resize(250_000, 0);
    expected[150_000..].fill(0);
    assert!(fs::read(lab.m("p")).expect("read") == expected);
    drop(file);
    lab.flush();
    assert!(fs::read(lab.d("p")).expect("read") == expected);
    lab.finish();
}

fn preallocation_keeps_its_word_about_size(lab: Lab) {
    let file = fs::File::create_new(lab.m("p")).expect("create");
    fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, 1 << 20).expect("keep size");
    assert_eq!(file.metadata().expect("fstat").len(), 0);
    fallocate(&file, FallocateFlags::empty(), 0, 1 << 20).expect("allocate");
    assert_eq!(file.metadata().expect("fstat").len(), 1 << 20);
    assert_eq!(fs::metadata(lab.m("p")).expect("stat").len(), 1 << 20);
    drop(file);
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
    assert_eq!(fs::read(lab.m("a")).expect("read"), b"two");
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
    assert_eq!(fs::read(lab.m("d/b")).expect("read"), b"three");
    lab.flush();
    lab.assert_drive_is_mount();
    lab.finish();
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
    assert_eq!(fs::read(lab.m("rel")).expect("follow"), b"real");
    let error = fs::read(lab.m("dangling")).expect_err("dangling");
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    lab.finish();
}

fn fifo_carries_bytes_between_processes(lab: Lab) {
    sh(
        &lab.mnt,
        "mkfifo pipe; (printf 'through the pipe' > pipe) & timeout 20 cat pipe > out; wait; test -p pipe",
    );
    assert_eq!(fs::read(lab.m("out")).expect("read"), b"through the pipe");
    lab.finish();
}

fn shared_writable_mapping_is_seen_by_other_processes(lab: Lab) {
    let script = r"
import mmap, os, sys, time
path = sys.argv[1]
with open(path, 'wb') as f: f.truncate(1 << 16)
pid = os.fork()
f = open(path, 'r+b')
m = mmap.mmap(f.fileno(), 1 << 16, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
end = time.time() + 30
def wait(at, value):
    while m[at] != value:
        if time.time() > end: os._exit(9)
        time.sleep(0.001)
if pid == 0:
    wait(0, 1); m[40000:40005] = b'child'; m[1] = 2; os._exit(0)
m[5000:5006] = b'parent'; m[0] = 1; wait(1, 2)
assert m[40000:40005] == b'child'
_, status = os.waitpid(pid, 0)
assert status == 0, status
# What is read is what is mapped, also without an msync.
with open(path, 'rb') as r:
    data = r.read()
assert data[5000:5006] == b'parent' and data[40000:40005] == b'child'
with open(path, 'r+b') as w:
    w.seek(60000); w.write(b'written')
assert m[60000:60007] == b'written'
m.flush(); m.close()
";
    python(script, &[&lab.m("shared")]);
    let bytes = fs::read(lab.m("shared")).expect("read");
    assert_eq!(
        (&bytes[5000..5006], &bytes[40000..40005]),
        (&b"parent"[..], &b"child"[..])
    );
    lab.flush();
    lab.assert_drive_is_mount();
    lab.finish();
}

fn appends_of_several_processes_do_not_overwrite_each_other(lab: Lab) {
    const LINES: usize = 400;
    let script = "for n in $(seq 400); do printf 'writer %s line %s and some more text\\n' $1 $n >> log; done";
    let mut writers: Vec<_> = (0..4)
        .map(|writer| {
            Command::new("bash")
                .args(["-c", script, "-", &writer.to_string()])
                .current_dir(&lab.mnt)
                .spawn()
                .expect("start a writer")
        })
        .collect();
    for writer in &mut writers {
        assert!(writer.wait().expect("wait").success());
    }
    let log = fs::read_to_string(lab.m("log")).expect("read");
    for writer in 0..4 {
        let own = log
            .lines()
            .filter(|line| line.starts_with(&format!("writer {writer} ")))
            .count();
        assert_eq!(own, LINES, "lines of writer {writer}");
    }
    assert!(
        log.lines()
            .all(|line| line.ends_with(" and some more text")),
        "a torn line"
    );
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
    assert_eq!(fs::read(lab.m("d/b")).expect("read"), b"b");
    rename("a", "d/new", RenameFlags::RENAME_NOREPLACE).expect("nothing is there");
    rename("d/new", "d/b", RenameFlags::RENAME_EXCHANGE).expect("exchange");
    assert_eq!(fs::read(lab.m("d/new")).expect("read"), b"b");
    assert_eq!(fs::read(lab.m("d/b")).expect("read"), b"a");
    assert_eq!(
        rename("d/b", "none", RenameFlags::RENAME_EXCHANGE),
        Err(Errno::ENOENT)
    );
    write(&lab.m("file"), b"file");
    rename("d", "file", RenameFlags::RENAME_EXCHANGE).expect("exchange a directory with a file");
    assert_eq!(fs::read(lab.m("file/b")).expect("read"), b"a");
    assert_eq!(fs::read(lab.m("d")).expect("read"), b"file");
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
    assert_eq!(
        fs::read(lab.m("config")).expect("read"),
        b"new config, longer"
    );
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

fn statfs_speaks_of_the_cache_and_long_names(lab: Lab) {
    let ours = nix::sys::statvfs::statvfs(&lab.mnt).expect("statvfs");
    assert_eq!(ours.name_max(), 255);
    assert!(ours.blocks() > 0 && ours.block_size() >= 512);
    assert!(
        ours.blocks_available() > 0,
        "df must not say full, installers believe it"
    );
    assert!(
        ours.files_available() > 0,
        "no inodes left, says statfs; some installers believe it"
    );
    lab.finish();
}

fn copy_file_range_copies(lab: Lab) {
    let bytes = content(8, 500_000);
    write(&lab.m("from"), &bytes);
    let script = r"
import os, sys
source, target = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_EXCL)
at, left = 1000, 400000
while left:
    n = os.copy_file_range(source, target, left, at, at - 1000)
    assert n > 0, left
    at += n; left -= n
assert os.copy_file_range(source, target, 10, 500000, 0) == 0, 'beyond the end there is nothing to copy'
";
    python(script, &[&lab.m("from"), &lab.m("to")]);
    assert!(fs::read(lab.m("to")).expect("read") == bytes[1000..401_000]);
    lab.flush();
    lab.assert_drive_is_mount();
    lab.finish();
}

fn fsync_of_files_and_directories_succeeds(lab: Lab) {
    let mut file = fs::File::create_new(lab.m("f")).expect("create");
    file.write_all(b"durable").expect("write");
    file.sync_all().expect("fsync");
    file.sync_data().expect("fdatasync");
    fs::File::open(&lab.mnt)
        .and_then(|dir| dir.sync_all())
        .expect("fsync of the directory");
    fs::remove_file(lab.m("f")).expect("unlink");
    file.sync_all().expect("fsync of what has no name");
    drop(file);
    lab.finish();
}

fn locks_exclude_other_processes(lab: Lab) {
    let file = fs::File::create_new(lab.m("lock")).expect("create");
    let try_flock = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)";
    let locked = |script: &str| {
        let mut command = Command::new("python3");
        command.args(["-c", script]).arg(lab.m("lock"));
        lab::run(&mut command).code != 0
    };
    file.lock().expect("flock");
    assert!(locked(try_flock), "flock excludes nobody");
    file.unlock().expect("unlock");
    assert!(!locked(try_flock));
    // Record locks belong to processes: one process holds it, its child may not have it.
    let record = r"
import fcntl, os, sys
f = open(sys.argv[1], 'r+')
fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
pid = os.fork()
if pid == 0:
    g = open(sys.argv[1], 'r+')
    fcntl.lockf(g, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 20)
    try: fcntl.lockf(g, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)
    except OSError: os._exit(0)
    os._exit(1)
assert os.waitpid(pid, 0)[1] == 0, 'a record lock excludes nobody'
";
    python(record, &[&lab.m("lock")]);
    drop(file);
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
    assert_eq!(fs::read(lab.m("e/f")).expect("read"), b"f");
    lab.finish();
}

fn names_up_to_255_bytes_and_no_longer(lab: Lab) {
    let longest = "n".repeat(255);
    write(&lab.m(&longest), b"x");
    assert_eq!(fs::read(lab.m(&longest)).expect("read"), b"x");
    let error = fs::write(lab.m("n".repeat(256)), b"x").expect_err("too long");
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    lab.flush();
    lab.assert_drive_is_mount();
    lab.finish();
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
    lab.flush();
    lab.assert_drive_is_mount();
    lab.finish();
}

fn large_sparse_offsets_work(lab: Lab) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(lab.m("huge"))
        .expect("create");
    let far = 6 << 30;
    file.write_all_at(b"beyond four GiB", far).expect("write");
    let mut bytes = [0; 15];
    file.read_exact_at(&mut bytes, far).expect("read");
    assert_eq!(&bytes, b"beyond four GiB");
    file.set_len(100).expect("truncate");
    assert_eq!(fs::metadata(lab.m("huge")).expect("stat").len(), 100);
    drop(file);
    fs::remove_file(lab.m("huge")).expect("unlink");
    lab.finish();
}
