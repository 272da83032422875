"""Does the same random calls in two directories and compares what they answer, and what then stands there.

    native.py DIRECTORY NATIVE SEED STEPS NAMES FERRYFS MOUNT

Now and then the MOUNT is flushed by the program FERRYFS between two calls, with nothing open, and sometimes it is waited for until
the cache has let go of all. Ends with 1 at the first difference, and prints it with the calls that led there. NAMES: `plain`, or `any` for names that a drive cannot hold.
"""
import ctypes
import errno
import hashlib
import json
import mmap
import os
import random
import stat
import subprocess
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, AT_SYMLINK_NOFOLLOW = -100, 0x100
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
NS = 10 ** 9
PLAIN = ['a', 'b', 'c', 'dir', 'sub', 'x.txt', 'é']
ANY = ['a', 'A', 'a.', 'a ', 'a:b', 'a?', 'dir', 'Dir', 'e\u0301', 'é', '‛', 'a：b', b'\xff', 'n' * 255, '...', '😀' * 60]
TIMES = [0, 1, -1, -NS, -500_000_000, 1_234_567_890_987_654_321, -2 ** 31 * NS, 2 ** 31 * NS + 5, 2 ** 32 * NS + 7, -86400 * 365 * 20 * NS + 3]
# Not -1, -1: that is where the kernel does not tell a chown from the last moment before a write.
OWNERS = [(uid, gid) for uid in (-1, 0, 1000, 2000) for gid in (-1, 0, 100, 1000)][1:]
USERS = [(0, 0, []), (0, 0, []), (0, 0, []), (1000, 1000, []), (1000, 1000, [100]), (2000, 100, [1000]), (1, 1, [])]
MODES = [0o000, 0o444, 0o644, 0o600, 0o666, 0o755, 0o777, 0o700, 0o070, 0o007, 0o1777, 0o2775, 0o2644, 0o2755, 0o4755, 0o6711, 0o7777]


def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), 'call')
    return result


class timespec(ctypes.Structure):
    _fields_ = [('sec', ctypes.c_long), ('nsec', ctypes.c_long)]


def spec(time):
    if time in (UTIME_NOW, UTIME_OMIT):
        return timespec(0, time)
    return timespec(time // NS, time % NS)


def renameat2(a, b, flags):
    check(libc.renameat2(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), flags))


def utimens(at, atime, mtime, follow):
    check(libc.utimensat(AT_FDCWD, os.fsencode(at), (timespec * 2)(spec(atime), spec(mtime)), 0 if follow else AT_SYMLINK_NOFOLLOW))


def fallocate(fd, mode, offset, length):
    check(libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)))


def mode_of(meta):
    """Without a set-group-id bit that means nothing: FUSE leaves it in place on a write, local file systems do so no more."""
    mode = meta.st_mode
    if not stat.S_ISDIR(mode) and not mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return oct(mode)


class Side:
    """One of the two directories, and what is open in it."""

    def __init__(self, top):
        self.top, self.open = top, {}

    def path(self, parts):
        return os.path.join(os.fsencode(self.top), *[os.fsencode(part) for part in parts])

    def call(self, name, args):
        try:
            return ['ok', getattr(self, 'do_' + name)(*args)]
        except OSError as error:
            return ['error', errno.errorcode.get(error.errno, error.errno)]

    def do_create(self, parts, flags, mode, slot):
        fd = os.open(self.path(parts), flags | os.O_CREAT, mode)
        self.keep(slot, fd)

    def do_open(self, parts, flags, slot):
        self.keep(slot, os.open(self.path(parts), flags))

    def keep(self, slot, fd):
        self.do_close(slot)
        self.open[slot] = fd

    def do_close(self, slot):
        if slot in self.open:
            os.close(self.open.pop(slot))

    def do_write(self, slot, offset, data):
        if slot in self.open:
            if offset is None:
                return os.write(self.open[slot], data)
            return os.pwrite(self.open[slot], data, offset)

    def do_map(self, slot, offset, data):
        """Writes through a shared mapping."""
        if slot in self.open:
            meta = os.fstat(self.open[slot])
            # Directories have sizes of their own everywhere.
            size = meta.st_size if stat.S_ISREG(meta.st_mode) else 0
            data = data[:max(size - offset, 0)]
            if data:
                with mmap.mmap(self.open[slot], size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as mapping:
                    mapping[offset:offset + len(data)] = data
            return len(data)

    def do_read(self, slot, offset, length):
        if slot in self.open:
            return hashlib.sha256(os.pread(self.open[slot], length, offset)).hexdigest()

    def do_ftruncate(self, slot, size):
        if slot in self.open:
            os.ftruncate(self.open[slot], size)

    def do_fallocate(self, slot, mode, offset, length):
        if slot in self.open:
            fallocate(self.open[slot], mode, offset, length)

    def do_fstat(self, slot):
        if slot in self.open:
            meta = os.fstat(self.open[slot])
            return [mode_of(meta), meta.st_uid, meta.st_gid, meta.st_nlink if not stat.S_ISDIR(meta.st_mode) else None,
                    meta.st_size if not stat.S_ISDIR(meta.st_mode) else None]

    def do_fchmod(self, slot, mode):
        if slot in self.open:
            os.fchmod(self.open[slot], mode)

    def do_fsync(self, slot):
        if slot in self.open:
            os.fsync(self.open[slot])

    def do_copy(self, slot, other, offset, target, length):
        if slot in self.open and other in self.open and slot != other:
            return os.copy_file_range(self.open[slot], self.open[other], length, offset, target)

    def do_truncate(self, parts, size):
        os.truncate(self.path(parts), size)

    def do_mkdir(self, parts, mode):
        os.mkdir(self.path(parts), mode)

    def do_mknod(self, parts, mode, device):
        os.mknod(self.path(parts), mode, os.makedev(*device))

    def do_symlink(self, target, parts):
        os.symlink(os.fsencode(target), self.path(parts))

    def do_link(self, a, b, follow):
        os.link(self.path(a), self.path(b), follow_symlinks=follow)

    def do_unlink(self, parts):
        os.unlink(self.path(parts))

    def do_rmdir(self, parts):
        os.rmdir(self.path(parts))

    def do_rename(self, a, b, flags):
        renameat2(self.path(a), self.path(b), flags)

    def do_chmod(self, parts, mode):
        os.chmod(self.path(parts), mode)

    def do_chown(self, parts, uid, gid, follow):
        os.chown(self.path(parts), uid, gid, follow_symlinks=follow)

    def do_utimens(self, parts, atime, mtime, follow):
        utimens(self.path(parts), atime, mtime, follow)

    def do_setxattr(self, parts, name, value, flags, follow):
        os.setxattr(self.path(parts), name, value, flags, follow_symlinks=follow)

    def do_getxattr(self, parts, name, size):
        # Past os.getxattr, which asks for the size first.
        buffer = ctypes.create_string_buffer(max(size, 1))
        got = check(libc.getxattr(self.path(parts), name.encode(), buffer, size))
        return [got, buffer.raw[:got].hex() if size else None]

    def do_listxattr(self, parts, size):
        buffer = ctypes.create_string_buffer(max(size, 1))
        got = check(libc.listxattr(self.path(parts), buffer, size))
        return [got, sorted(buffer.raw[:got].split(b'\0')) if size else None]

    def do_removexattr(self, parts, name):
        os.removexattr(self.path(parts), name)

    def do_access(self, parts, mode):
        return os.access(self.path(parts), mode, effective_ids=True)

    def do_readlink(self, parts):
        return os.readlink(self.path(parts)).hex()

    def do_list(self, parts):
        return sorted(name.hex() for name in os.listdir(self.path(parts)))

    def do_stat(self, parts):
        meta = os.stat(self.path(parts))
        return [mode_of(meta), meta.st_uid, meta.st_gid]

    def do_slurp(self, parts):
        fd = os.open(self.path(parts), os.O_RDONLY | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return 'not regular'
            data = b''
            while chunk := os.read(fd, 1 << 20):
                data += chunk
            return hashlib.sha256(data).hexdigest()
        finally:
            os.close(fd)

    def tree(self):
        found = {}
        for where, dirs, files in os.walk(os.fsencode(self.top)):
            for name in dirs + files:
                at = os.path.join(where, name)
                if at == os.fsencode(self.top) + b'/.ferryfs':
                    continue
                meta = os.lstat(at)
                is_dir = stat.S_ISDIR(meta.st_mode)
                entry = [mode_of(meta), meta.st_uid, meta.st_gid, meta.st_nlink, None if is_dir else meta.st_size, meta.st_rdev]
                if stat.S_ISLNK(meta.st_mode):
                    entry.append(os.readlink(at).hex())
                if stat.S_ISREG(meta.st_mode):
                    with open(at, 'rb') as file:
                        entry.append(hashlib.sha256(file.read()).hexdigest())
                entry.append({n: os.getxattr(at, n, follow_symlinks=False).hex() for n in sorted(os.listxattr(at, follow_symlinks=False)) if n.startswith(('user.', 'trusted.'))})
                # Only a time that was set by hand: those begin or end with an odd number of
                # nanoseconds, or are old.
                entry.append(meta.st_mtime_ns if meta.st_mtime_ns in SET_TIMES else None)
                found[os.path.relpath(at, os.fsencode(self.top)).decode('utf-8', 'backslashreplace')] = entry
        return found


SET_TIMES = set(TIMES)


class Run:
    def __init__(self, seed, names):
        self.r, self.names, self.known = random.Random(seed), names, [()]

    def parts(self):
        """A path that was used before, or a new one below such."""
        r = self.r
        if r.random() < 0.6 and len(self.known) > 1:
            return r.choice(self.known)
        base = r.choice([()] + [known for known in self.known if len(known) < 4])
        parts = base + (r.choice(self.names),)
        if parts not in self.known:
            self.known.append(parts)
            if len(self.known) > 40:
                self.known.pop(r.randrange(1, len(self.known)))
        return parts

    def slot(self):
        return self.r.randrange(4)

    def data(self):
        return self.r.randbytes(self.r.choice([0, 1, 10, 100, 5000, 70000]))

    def offset(self):
        return self.r.choice([0, 0, 1, 4096, 5000, 65536, 200_000, self.r.randrange(300_000)])

    def step(self):
        r, p = self.r, self.parts
        accesses = [os.O_RDONLY, os.O_WRONLY, os.O_RDWR]
        flags = r.choice(accesses) | r.choice([0, 0, os.O_TRUNC, os.O_APPEND, os.O_NOFOLLOW, os.O_DIRECTORY]) | os.O_NONBLOCK
        attribute = r.choice(['user.a', 'user.b', 'user.' + 'n' * 250, 'trusted.t', 'user.', 'user.' + 'n' * 251, 'bogus'])
        length = r.choice([0, 1, 5000, 65536, 131072])
        choices = [
            (10, lambda: ('create', (p(), r.choice(accesses) | r.choice([0, os.O_EXCL, os.O_TRUNC, os.O_APPEND]) | os.O_NONBLOCK, r.choice(MODES), self.slot()))),
            (6, lambda: ('open', (p(), flags, self.slot()))), (6, lambda: ('close', (self.slot(),))),
            (10, lambda: ('write', (self.slot(), r.choice([None, self.offset()]), self.data()))),
            (4, lambda: ('map', (self.slot(), self.offset(), self.data()))),
            (5, lambda: ('read', (self.slot(), self.offset(), 100_000))), (3, lambda: ('ftruncate', (self.slot(), self.offset()))),
            (3, lambda: ('fallocate', (self.slot(), r.choice([0, 1, 3, 16, 17]), self.offset(), length))), (2, lambda: ('fstat', (self.slot(),))),
            (1, lambda: ('fchmod', (self.slot(), r.choice(MODES)))), (1, lambda: ('fsync', (self.slot(),))),
            (2, lambda: ('copy', (self.slot(), self.slot(), self.offset(), self.offset(), length))),
            (4, lambda: ('truncate', (p(), self.offset()))), (7, lambda: ('mkdir', (p(), r.choice(MODES)))),
            (3, lambda: ('mknod', (p(), r.choice([stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFREG]) | r.choice(MODES), r.choice([(0, 0), (1, 3), (259, 70000)])))),
            (4, lambda: ('symlink', (r.choice(['a', 'dir', '../a', 'nowhere', '.', '/nowhere/on/this/machine', 'x' * 4095, 'dir/a']), p()))),
            (5, lambda: ('link', (p(), p(), False))), (6, lambda: ('unlink', (p(),))), (4, lambda: ('rmdir', (p(),))),
            (10, lambda: ('rename', (p(), p(), r.choice([0, 0, 0, 1, 2, 2, 3, 8])))),
            (6, lambda: ('chmod', (p(), r.choice(MODES)))), (5, lambda: ('chown', (p(), *r.choice(OWNERS), r.random() < .7))),
            (5, lambda: ('utimens', (p(), r.choice(TIMES + [UTIME_NOW, UTIME_OMIT]), r.choice(TIMES + [UTIME_NOW, UTIME_OMIT]), r.random() < .5))),
            (5, lambda: ('setxattr', (p(), attribute, r.randbytes(r.choice([0, 1, 20, 200])), r.choice([0, 0, 1, 2]), r.random() < .5))),
            (2, lambda: ('getxattr', (p(), attribute, r.choice([0, 1, 50, 300])))), (2, lambda: ('listxattr', (p(), r.choice([0, 1, 8, 1000])))),
            (2, lambda: ('removexattr', (p(), attribute))), (3, lambda: ('access', (p(), r.randrange(8)))), (1, lambda: ('readlink', (p(),))), (2, lambda: ('list', (p(),))),
            (3, lambda: ('stat', (p(),))), (3, lambda: ('slurp', (p(),))),
        ]
        return r.choices([make for _, make in choices], [weight for weight, _ in choices])[0]()


def become(user):
    os.seteuid(0)
    os.setegid(0)
    uid, gid, groups = user
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)


def shown(call):
    name, args = call
    return '%s%s' % (name, tuple(arg[:40] if isinstance(arg, (bytes, str)) else arg for arg in args))


def flush(program, mount, evict):
    subprocess.run([program, 'flush', mount], check=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while evict and json.loads(subprocess.check_output([program, 'status', '--json', mount]))['cached_bytes'] > 0:
        assert time.monotonic() < deadline, 'the cache does not let go'
        time.sleep(0.2)


def main():
    mount, native, seed, steps, names = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
    ferryfs = sys.argv[6:]
    run = Run(seed, {'plain': PLAIN, 'any': ANY}[names])
    ours, theirs = Side(mount), Side(native)
    log, user = [], USERS[0]
    root = os.geteuid() == 0
    os.umask(0)
    for side in (ours, theirs):
        # One level down, so that links to `..` stay within.
        side.top = os.path.join(side.top, 'top')
        os.mkdir(side.top)
    for top in (ours.top, theirs.top):
        os.chmod(top, 0o1777 if root else 0o755)
    for n in range(steps):
        if root and run.r.random() < 0.1:
            user = run.r.choice(USERS)
        call = run.step()
        umask = run.r.choice([0, 0, 0o022, 0o077])
        log.append('%d %s %s umask %o' % (n, user[:2], shown(call), umask))
        answers = []
        for side in (ours, theirs):
            if root:
                become(user)
            os.umask(umask)
            answers.append(side.call(*call))
            if root:
                become(USERS[0])
        problem = None
        if answers[0] != answers[1]:
            problem = 'answers %r, native %r' % tuple(answers)
        elif n % 10 == 9 or n == steps - 1:
            a, b = ours.tree(), theirs.tree()
            if a != b:
                problem = 'the trees differ: ' + '; '.join('%s: %s, native %s' % (at, a.get(at), b.get(at)) for at in sorted(a.keys() | b.keys()) if a.get(at) != b.get(at))[:3000]
        if problem:
            print('seed %d: %s\n%s' % (seed, problem, '\n'.join(log[-400:])))
            sys.exit(1)
        if run.r.random() < 0.02:
            for side in (ours, theirs):
                for slot in list(side.open):
                    side.do_close(slot)
            evict = run.r.random() < 0.1
            log.append('%d flush%s' % (n, ' and evict' * evict))
            flush(*ferryfs, evict)
    for side in (ours, theirs):
        for slot in list(side.open):
            side.do_close(slot)


main()
