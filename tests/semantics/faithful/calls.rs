//! What programs rely on, over a drive that can do nothing of it: bytes, names and attributes stay
//! what they were through flushes and through a cache that keeps nothing.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::Command;
use std::time::Duration;

use crate::lab::{
    Backend, Lab, assert_content, content, exit, ferryfs_binary, python, run_for, text, wait_until,
    write,
};

/// A lab over exFAT whose cache lets go of whatever is on the drive.
fn lab() -> Option<Lab> {
    let mut lab = Lab::new(Backend::EXFAT)?;
    lab.mount(&["--cache-size", "1K"]);
    Some(lab)
}

/// Flushes and waits until nothing is in the cache any more.
#[track_caller]
fn flush_and_evict(lab: &Lab) {
    lab.flush();
    wait_until("the cache to let go", Duration::from_secs(60), || {
        lab.status()["cached_bytes"] == 0
    });
}

#[test]
fn a_shared_mapping_is_carried_and_read_back() {
    let Some(mut lab) = lab() else { return };
    let bytes = content(11, 1 << 20);
    write(&lab.m("db"), &bytes);
    flush_and_evict(&lab);
    // The mapping holds the file, closed or not: a flush writes what was synced, or leaves it
    // behind, whole, and says so.
    let script = r"
import mmap, os, subprocess, sys
path, ferryfs, mount, on_drive = sys.argv[1:5]
fd = os.open(path, os.O_RDWR)
m = mmap.mmap(fd, 1 << 20, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
os.close(fd)
def flush(*how):
    return subprocess.run([ferryfs, 'flush', *how, mount], capture_output=True).returncode
m[1000:1004] = b'ONE.'
m.flush()
assert flush('--wait-closed') == 3
assert open(on_drive, 'rb').read()[1000:1004] != b'ONE.'
assert flush() == 0
assert open(on_drive, 'rb').read()[1000:1004] == b'ONE.'
m[500000:500004] = b'TWO.'
with open(path, 'rb') as f:
    f.seek(500000); assert f.read(4) == b'TWO.'
m.flush(); m[900000:900004] = b'END.'
m.close()
assert flush() == 0
";
    python(
        script,
        &[&lab.m("db"), &ferryfs_binary(), &lab.mnt, &lab.d("db")],
    );
    let mut wanted = bytes;
    wanted[1000..1004].copy_from_slice(b"ONE.");
    wanted[500_000..500_004].copy_from_slice(b"TWO.");
    wanted[900_000..900_004].copy_from_slice(b"END.");
    assert_content(lab.d("db"), &wanted);
    flush_and_evict(&lab);
    assert_content(lab.m("db"), &wanted);
    lab.unmount();
    lab.take_new_cache();
    lab.mount(&[]);
    // Mapped as it comes from the drive.
    let read = "import mmap, sys; f = open(sys.argv[1], 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); \
                assert m[1000:1004] == b'ONE.' and m[900000:900004] == b'END.' and len(m) == 1 << 20";
    python(read, &[&lab.m("db")]);
    lab.finish();
}

#[test]
fn lines_appended_by_eight_processes_are_all_there() {
    const LINES: usize = 300;
    let Some(mut lab) = lab() else { return };
    let script = r"
import os, sys
path, writer, lines = sys.argv[1], sys.argv[2], int(sys.argv[3])
for n in range(lines):
    # Opened anew each time, as shells do, so that batches are cut in between.
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    line = ('%s %d ' % (writer, n)).encode() + b'x' * (n % 200) + b'\n'
    assert os.write(fd, line) == len(line)
    os.close(fd)
";
    let mut writers: Vec<_> = (0..8)
        .map(|n| {
            let mut command = Command::new("python3");
            command.args(["-c", script]).arg(lab.m("log"));
            command.args([&format!("w{n}"), &LINES.to_string()]);
            command.spawn().expect("start a writer")
        })
        .collect();
    let mut flushes = 0;
    while writers
        .iter_mut()
        .any(|w| w.try_wait().expect("wait").is_none())
    {
        let done = lab.ferryfs(&["flush", &text(&lab.mnt)]);
        assert!(
            [exit::DONE, exit::LEFT_BEHIND].contains(&done.code),
            "{done:?}"
        );
        flushes += 1;
    }
    for writer in &mut writers {
        assert!(writer.wait().expect("wait").success());
    }
    assert!(flushes > 1);
    let check = |lab: &Lab| {
        let log = fs::read_to_string(lab.m("log")).expect("read");
        for writer in 0..8 {
            let own: Vec<usize> = log
                .lines()
                .filter_map(|line| line.strip_prefix(&format!("w{writer} ")))
                .map(|line| {
                    line.split(' ')
                        .next()
                        .expect("a number")
                        .parse()
                        .expect("a number")
                })
                .collect();
            assert!(
                own.iter().copied().eq(0..LINES),
                "the lines of writer {writer}: {own:?}"
            );
        }
        assert_eq!(log.lines().count(), 8 * LINES);
    };
    check(&lab);
    flush_and_evict(&lab);
    check(&lab);
    lab.unmount();
    lab.take_new_cache();
    lab.mount(&[]);
    check(&lab);
    lab.finish();
}

#[test]
fn holes_survive_edits_flushes_and_eviction() {
    let Some(lab) = lab() else { return };
    let script = r"
import ctypes, os, sys
path, step = sys.argv[1], sys.argv[2]
libc = ctypes.CDLL(None, use_errno=True)
M = 1 << 20
def punch(fd, at, n):
    assert libc.fallocate(fd, 3, ctypes.c_long(at), ctypes.c_long(n)) == 0, os.strerror(ctypes.get_errno())
data = bytearray(8 * M)
fd = os.open(path, os.O_RDWR | os.O_CREAT)
def both(at, bytes):
    os.pwrite(fd, bytes, at)
if step == 'make':
    os.pwrite(fd, b'a' * 4 * M, 0); punch(fd, M, M); os.ftruncate(fd, 8 * M)
elif step == 'edit':
    os.pwrite(fd, b'b' * 4096, 6 * M); punch(fd, 3 * M, M); os.ftruncate(fd, 7 * M); os.ftruncate(fd, 8 * M)
want = bytearray(8 * M)
want[0:M] = b'a' * M; want[2 * M:4 * M] = b'a' * 2 * M
if step != 'make':
    want[6 * M:6 * M + 4096] = b'b' * 4096; want[3 * M:4 * M] = bytes(M)
got = b''.join(iter(lambda: os.read(fd, M), b''))
assert got == bytes(want), step
if step in ('make', 'edit'):
    assert os.lseek(fd, 0, os.SEEK_HOLE) == M and os.lseek(fd, M, os.SEEK_DATA) == 2 * M
    assert os.fstat(fd).st_blocks * 512 < 5 * M, os.fstat(fd).st_blocks
assert os.lseek(fd, 0, os.SEEK_DATA) == 0
assert os.lseek(fd, 7 * M, os.SEEK_HOLE) in (7 * M, 8 * M)
";
    let run = |step: &str| {
        let mut command = Command::new("python3");
        command.args(["-c", script]).arg(lab.m("sparse")).arg(step);
        run_for(&mut command, Duration::from_secs(60)).ok();
    };
    run("make");
    flush_and_evict(&lab);
    run("edit");
    flush_and_evict(&lab);
    run("look");
    assert_eq!(fs::metadata(lab.d("sparse")).expect("stat").len(), 8 << 20);
    lab.finish();
}

#[test]
fn exchanged_names_are_exchanged_on_the_drive() {
    let Some(lab) = lab() else { return };
    let exchange = |a: &str, b: &str| {
        use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
        let (a, b) = (lab.m(a), lab.m(b));
        renameat2(AT_FDCWD, &a, AT_FDCWD, &b, RenameFlags::RENAME_EXCHANGE).expect("exchange");
    };
    write(&lab.m("file"), b"a file");
    write(&lab.m("dir/inside"), b"inside");
    write(&lab.m("other/deep/twin"), b"twin");
    flush_and_evict(&lab);
    exchange("file", "dir");
    assert_content(lab.m("file/inside"), b"inside");
    lab.flush();
    lab.assert_drive_is_mount();
    // Across directories, one of them of another kind, and back in the same batch.
    exchange("file", "other/deep/twin");
    assert_content(lab.m("other/deep/twin/inside"), b"inside");
    lab.flush();
    lab.assert_drive_is_mount();
    exchange("dir", "other");
    exchange("dir/deep", "other");
    lab.flush();
    lab.assert_drive_is_mount();
    for _ in 0..2 {
        exchange("dir", "other");
    }
    lab.flush();
    lab.assert_drive_is_mount();
    let into_itself = {
        use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
        renameat2(
            AT_FDCWD,
            &lab.m("dir"),
            AT_FDCWD,
            &lab.m("dir/deep"),
            RenameFlags::RENAME_EXCHANGE,
        )
    };
    assert_eq!(into_itself, Err(nix::errno::Errno::EINVAL));
    lab.finish();
}

#[test]
fn a_file_that_is_a_directory_for_a_while_is_what_it_was() {
    let Some(lab) = lab() else { return };
    write(&lab.m("name"), b"a file");
    flush_and_evict(&lab);
    for round in 0..3 {
        fs::remove_file(lab.m("name")).expect("unlink");
        write(&lab.m("name/below/inside"), b"inside");
        if round != 1 {
            lab.flush();
            lab.assert_drive_is_mount();
        }
        fs::remove_dir_all(lab.m("name")).expect("remove");
        write(&lab.m("name"), format!("a file, {round}").as_bytes());
        lab.flush();
        lab.assert_drive_is_mount();
    }
    assert_content(lab.d("name"), b"a file, 2");
    lab.finish();
}

#[test]
fn a_thousand_names_of_one_file_are_one_file() {
    const NAMES: u64 = 1000;
    let Some(lab) = lab() else { return };
    write(&lab.m("first"), b"version 1");
    fs::create_dir(lab.m("more")).expect("mkdir");
    for n in 1..NAMES {
        fs::hard_link(lab.m("first"), lab.m(format!("more/{n}"))).expect("link");
    }
    flush_and_evict(&lab);
    let stat = |name: &str| fs::metadata(lab.m(name)).expect("stat");
    assert_eq!(stat("more/500").nlink(), NAMES);
    // Through any name, all of them.
    fs::write(lab.m("more/7"), b"version two").expect("write");
    assert_content(lab.m("more/999"), b"version two");
    for n in 1..400 {
        fs::remove_file(lab.m(format!("more/{n}"))).expect("unlink");
    }
    fs::rename(lab.m("more/400"), lab.m("apart")).expect("rename");
    flush_and_evict(&lab);
    lab.assert_drive_is_mount();
    assert_eq!(stat("first").nlink(), NAMES - 399);
    assert_eq!(stat("apart").ino(), stat("first").ino());
    assert_content(lab.m("apart"), b"version two");
    assert_content(lab.d("apart"), b"version two");
    lab.finish();
}

#[test]
fn links_that_lead_nowhere_say_so() {
    let Some(lab) = lab() else { return };
    symlink("b", lab.m("a")).expect("symlink");
    symlink("a", lab.m("b")).expect("symlink");
    symlink("self/self", lab.m("self")).expect("symlink");
    symlink("nothing", lab.m("dangling")).expect("symlink");
    let errno = |name: &str| fs::read(lab.m(name)).expect_err("a loop").raw_os_error();
    for _ in 0..2 {
        assert_eq!(errno("a"), Some(libc::ELOOP));
        assert_eq!(errno("a/x"), Some(libc::ELOOP));
        assert_eq!(errno("self"), Some(libc::ELOOP));
        assert_eq!(errno("dangling"), Some(libc::ENOENT));
        lab.flush();
    }
    write(&lab.m("dangling"), b"made through the link");
    assert_content(lab.m("nothing"), b"made through the link");
    lab.finish();
}

#[test]
fn extended_attributes_have_the_limits_of_linux() {
    let Some(lab) = lab() else { return };
    write(&lab.m("f"), b"x");
    let script = r"
import ctypes, errno, os, sys
f = sys.argv[1]
def fails(error, call, *args):
    try: call(*args)
    except OSError as e: assert e.errno == error, (e, errno.errorcode[error])
    else: assert False, errno.errorcode[error]
big = os.urandom(65536)
os.setxattr(f, 'user.big', big)
assert os.getxattr(f, 'user.big') == big
fails(errno.E2BIG, os.setxattr, f, 'user.bigger', big + b'x')
fails(errno.ERANGE, os.setxattr, f, 'user.' + 'n' * 251, b'')
os.setxattr(f, 'user.' + 'n' * 250, b'')
fails(errno.EOPNOTSUPP, os.setxattr, f, 'nothing.known', b'')
fails(errno.EINVAL, os.setxattr, f, 'user.', b'')
fails(errno.ENODATA, os.getxattr, f, 'user.none')
libc = ctypes.CDLL(None, use_errno=True)
def get(size):
    got = libc.getxattr(f.encode(), b'user.big', ctypes.create_string_buffer(max(size, 1)), size)
    return got if got >= 0 else -ctypes.get_errno()
assert get(0) == 65536 and get(65536) == 65536 and get(65535) == -errno.ERANGE and get(1) == -errno.ERANGE
def listed(size):
    got = libc.listxattr(f.encode(), ctypes.create_string_buffer(max(size, 1)), size)
    return got if got >= 0 else -ctypes.get_errno()
length = listed(0)
assert length == len('user.big') + 1 + 256, length
assert listed(length) == length and listed(length - 1) == -errno.ERANGE
# What can be made can be listed: the kernel lists no more than 64 KiB of names.
made = 0
try:
    for n in range(400):
        os.setxattr(f, 'user.%03d' % n + 'n' * 240, b'')
        made += 1
except OSError as e:
    assert e.errno == errno.ENOSPC, e
assert 200 < made < 300, made
assert len(os.listxattr(f)) == made + 2
# One that is there can still be changed, and be removed.
os.setxattr(f, 'user.big', b'small')
os.removexattr(f, 'user.big')
os.setxattr(f, 'user.big', big)
";
    python(script, &[&lab.m("f")]);
    lab.flush();
    assert_eq!(
        python(
            "import os, sys; print(len(os.getxattr(sys.argv[1], 'user.big')))",
            &[&lab.m("f")]
        )
        .stdout
        .trim(),
        "65536"
    );
    lab.finish();
}
