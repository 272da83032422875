//! Who changes a program takes away the privileges that it gave, and nobody who runs it afterwards
//! gets them.

use super::{python, stage};
use crate::lab::{Backend, Lab, skip};

/// Every way to change a file, by its owner, by root and by others, for every kind of privilege.
const MATRIX: &str = r#"
native, mount = sys.argv[1:3]
PROGRAM = open('/usr/bin/id', 'rb').read()
CAPABILITY = struct.pack('<5I', 0x02000001, 1 << 13, 0, 0, 0)
libc = ctypes.CDLL(None, use_errno=True)

def opened(path, flags, call):
    f = os.open(path, flags)
    try: return call(f)
    finally: os.close(f)
def punch(f):
    if libc.fallocate(f, 3, ctypes.c_long(40960), ctypes.c_long(4096)): raise OSError(ctypes.get_errno(), 'fallocate')
W = os.O_WRONLY
OPS = {
    'write': lambda p: opened(p, W, lambda f: os.pwrite(f, PROGRAM[:4], 0)),
    'append': lambda p: opened(p, W | os.O_APPEND, lambda f: os.write(f, b'x')),
    'synced': lambda p: opened(p, W | os.O_SYNC, lambda f: os.pwrite(f, PROGRAM[:4], 0)),
    'truncate': lambda p: os.truncate(p, len(PROGRAM) + 1),
    'ftruncate': lambda p: opened(p, W, lambda f: os.ftruncate(f, len(PROGRAM) + 1)),
    'empty': lambda p: opened(p, W | os.O_TRUNC, lambda f: None),
    'allocate': lambda p: opened(p, W, lambda f: os.posix_fallocate(f, 0, 4096)),
    'punch': lambda p: opened(p, W, punch),
    'copy': lambda p: opened(p, os.O_RDWR, lambda f: os.copy_file_range(f, f, 4096, 0, 40960)),
    'open': lambda p: opened(p, os.O_RDWR, lambda f: None),
    'chown nothing': lambda p: os.chown(p, -1, -1),
    'chown same': lambda p: os.chown(p, os.stat(p).st_uid, os.stat(p).st_gid),
    'chgrp own': lambda p: os.chown(p, -1, os.getgid()),
    'chmod': lambda p: os.chmod(p, 0o6777),
    'xattr': lambda p: os.setxattr(p, 'user.x', b'1'),
}

def run(path):
    try: return subprocess.run([path, '-u'], capture_output=True, text=True).stdout.strip()
    except OSError as e: return tell(e)

def outcome(base, owner, mode, has_capability, op, who, groups):
    path = base + '/program'
    with open(path, 'wb') as f: f.write(PROGRAM)
    os.chown(path, owner, owner)
    os.chmod(path, mode)
    if has_capability: os.setxattr(path, 'security.capability', CAPABILITY)
    # The kernel has seen it all.
    os.stat(path); as_user(1003, lambda: run(path))
    told = as_user(who, lambda: OPS[op](path), groups)
    ran = as_user(1003, lambda: run(path))
    # `stat -c %a` asks for nothing else, which the kernel may still remember.
    shown = subprocess.run(['stat', '-c', '%a', path], capture_output=True, text=True).stdout.strip()
    kept = 'security.capability' in os.listxattr(path)
    os.unlink(path)
    return told, ran, shown, kept

os.chmod(native, 0o755); os.chmod(mount, 0o755)
assert outcome(native, 0, 0o4777, False, 'open', 1002, ())[1] == "'0'", 'the directory for tests is nosuid'
wrong = []
cases = [(who, groups, owner, mode, cap) for who, groups in [(1002, ()), (1002, (7, 0)), (0, ())]
         for owner in (0, 1002) for mode in (0o4777, 0o2767, 0o6777, 0o777) for cap in (False, True)
         if mode & 0o6000 or cap]
for who, groups, owner, mode, cap in cases:
    for op in OPS:
        case = owner, mode, cap, op, who, groups
        wanted, found = outcome(native, *case), outcome(mount, *case)
        # FUSE does not tell a chown(2) of nothing, by a user who is not the owner, from the
        # announcement of a write, so the answer differs. It removes nothing here; on Linux any user
        # can remove capabilities with it.
        if op == 'chown nothing' and who not in (0, owner): wanted, found = wanted[1:3], found[1:3]
        if wanted != found: wrong.append('%s of %o (owner %d, capability %s) by %d %s: natively %s, here %s'
            % (op, mode, owner, cap, who, groups, wanted, found))
assert not wrong, '\n'.join(wrong)
"#;

#[test]
fn whoever_changes_a_program_takes_its_privileges_as_on_ext4() {
    let Some((lab, native)) = stage(Backend::Ext4Dir) else {
        return;
    };
    if !std::path::Path::new("/usr/bin/id").exists() {
        return skip("there is no /usr/bin/id");
    }
    python(MATRIX, &[&native, &lab.mnt]);
    lab.finish();
}

/// Privileges come and go while the same files are read, mapped, listed and looked up: nothing may
/// wait for ever for anything.
const STRESS: &str = r#"
import mmap, signal, time
base = sys.argv[1]
os.chmod(base, 0o777)
END = time.time() + 4
def path(n): return '%s/f%d' % (base, n % 3)
for n in range(3):
    with open(path(n), 'wb') as f: f.write(b'x' * 100000)
    os.chmod(path(n), 0o4777)
def write(n):
    f = os.open(path(n), os.O_RDWR)
    os.pwrite(f, b'y', n % 100000)
    os.posix_fallocate(f, 0, 4096)
    os.copy_file_range(f, f, 100, 0, 50000)
    os.close(f)
def empty(n):
    os.close(os.open(path(n), os.O_RDWR | os.O_TRUNC))
    os.truncate(path(n), 100000)
def chmod(n): os.chmod(path(n), 0o6777); os.stat(path(n))
def read(n):
    with open(path(n), 'rb') as f: f.read()
    for entry in os.scandir(base): entry.stat()
def map(n):
    # Whoever touches a mapping of what has just been emptied gets SIGBUS, on any file system.
    pid = os.fork()
    if pid == 0:
        f = os.open(path(n), os.O_RDWR)
        try:
            with mmap.mmap(f, 4096) as m: m[n % 4096] = 65; m.flush()
        except (ValueError, OSError): pass  # It is empty just now.
        os._exit(0)
    assert os.waitpid(pid, 0)[1] in (0, signal.SIGBUS)
def forget(n):
    with open('/proc/sys/vm/drop_caches', 'w') as f: f.write('2')
    time.sleep(0.2)
pids = []
for uid, work in [(1002, write), (1002, empty), (1003, write), (0, chmod), (0, chmod), (1003, read), (1002, map), (0, forget)]:
    pid = os.fork()
    if pid == 0:
        os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
        n = 0
        while time.time() < END:
            work(n); n += 1
        os._exit(0)
    pids.append(pid)
for pid in pids: assert os.waitpid(pid, 0)[1] == 0
"#;

#[test]
fn nothing_hangs_while_privileges_come_and_go() {
    let Some((lab, _)) = stage(Backend::Ext4Dir) else {
        return;
    };
    python(STRESS, &[&lab.mnt]);
    lab.finish();
}

/// A user of the mount whose file is rewritten by another through a descriptor that root opened:
/// who writes has not opened it.
const PASSED: &str = r#"
base = sys.argv[1]
path = base + '/program'
with open(path, 'wb') as f: f.write(open('/usr/bin/id', 'rb').read())
os.chmod(path, 0o4755)
os.stat(path)
f = os.open(path, os.O_WRONLY)
assert as_user(1002, lambda: os.pwrite(f, b'\x7fELF', 0)) == '4'
os.close(f)
told = subprocess.run(['stat', '-c', '%a', path], capture_output=True, text=True).stdout.strip()
assert told == '755', told
assert as_user(1002, lambda: subprocess.run([path, '-u'], capture_output=True).stdout) == repr(b'1002\n')
"#;

#[test]
fn a_descriptor_that_was_passed_on_is_no_way_around_it() {
    let Some((lab, native)) = stage(Backend::Ext4Dir) else {
        return;
    };
    for dir in [&native, &lab.mnt] {
        python(PASSED, &[dir]);
    }
    lab.finish();
}

#[test]
fn what_was_taken_away_does_not_reach_the_drive() {
    let Some((lab, _)) = stage(Backend::Ext4Dir) else {
        return;
    };
    let script = r#"
path = sys.argv[1] + '/program'
open(path, 'wb').close()
os.chmod(path, 0o4777)
os.setxattr(path, 'security.capability', struct.pack('<5I', 0x02000001, 1 << 13, 0, 0, 0))
"#;
    python(script, &[&lab.mnt]);
    lab.flush();
    let write = r#"
path = sys.argv[1] + '/program'
def write():
    with open(path, 'ab') as f: f.write(b'x')
as_user(1002, write)
"#;
    python(write, &[&lab.mnt]);
    lab.flush();
    assert_on_drive(&lab);
    lab.finish();
}

fn assert_on_drive(lab: &Lab) {
    let check = r#"
path = sys.argv[1] + '/program'
assert os.stat(path).st_mode & 0o7777 == 0o777, oct(os.stat(path).st_mode)
assert os.listxattr(path) == [], os.listxattr(path)
"#;
    python(check, &[&lab.d("")]);
}
