//! What programs do to the bytes of files, one promise per test. None of it depends on the drive,
//! so all run on a plain directory. Each was first run on ext4 itself: what fails here would not
//! fail there.

use crate::{lab, on_plain_directory};

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use crate::lab::{Lab, assert_content, content, python, write};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::Whence;

on_plain_directory!(
    unlinked_file_lives_while_it_is_open,
    holes_stay_holes,
    punched_and_zeroed_ranges_read_as_zeros,
    preallocation_keeps_its_word_about_size,
    shared_writable_mapping_is_seen_by_other_processes,
    appends_of_several_processes_do_not_overwrite_each_other,
    statfs_speaks_of_the_cache_and_long_names,
    copy_file_range_copies,
    fsync_of_files_and_directories_succeeds,
    locks_exclude_other_processes,
    large_sparse_offsets_work,
);

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
    assert_content(lab.d("gone"), b"another file of that name");
    drop(file);
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
    lab.finish_flushed();
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
    lab.finish_flushed();
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
    lab.finish_flushed();
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
