"""Prints what stands below a directory, one JSON object a line and entry, sorted by path: all that lstat and its like tell.

Paths are bytes, percent-encoded where they are no plain ASCII. Inode numbers are given as the first path with the same one.
"""
import errno
import hashlib
import json
import os
import stat
import sys
import urllib.parse

KINDS = {stat.S_IFREG: 'file', stat.S_IFDIR: 'dir', stat.S_IFLNK: 'link', stat.S_IFIFO: 'fifo', stat.S_IFSOCK: 'socket', stat.S_IFCHR: 'char', stat.S_IFBLK: 'block'}
SKIP = set(sys.argv[2:])


def quoted(data):
    return urllib.parse.quote_from_bytes(data, safe='/ !$&()+,;=@[]{}~^')


def digest(data):
    return '%d:%s' % (len(data), hashlib.sha256(data).hexdigest()[:16])


def xattrs(name):
    # Through the magic link, as no call takes a path that long.
    found = {}
    try:
        for attribute in os.listxattr(name, follow_symlinks=False):
            if not attribute.startswith(('system.', 'security.selinux')):
                found[quoted(os.fsencode(attribute))] = digest(os.getxattr(name, attribute, follow_symlinks=False))
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
            return {'error': errno.errorcode[error.errno]}
    return found


def data(name, size):
    """The hash of the bytes, and where there are any: runs in units of 64 KiB, as file systems round differently."""
    hasher, runs = hashlib.sha256(), []
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        at = 0
        while at < size:
            try:
                begin = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break
            at = os.lseek(fd, begin, os.SEEK_HOLE)
            run = [begin >> 16, (at + 65535) >> 16]
            if runs and runs[-1][1] >= run[0]:
                runs[-1][1] = run[1]
            else:
                runs.append(run)
        os.lseek(fd, 0, os.SEEK_SET)
        while chunk := os.read(fd, 1 << 20):
            hasher.update(chunk)
    finally:
        os.close(fd)
    return hasher.hexdigest()[:16], runs


def entry(name, at, inodes):
    meta = os.lstat(name)
    kind = KINDS[stat.S_IFMT(meta.st_mode)]
    found = dict(path=quoted(at), kind=kind, mode='%04o' % stat.S_IMODE(meta.st_mode), uid=meta.st_uid, gid=meta.st_gid, mtime=meta.st_mtime_ns, nlink=meta.st_nlink)
    if kind != 'dir':
        found['same_as'] = inodes.setdefault((meta.st_dev, meta.st_ino), quoted(at))
        found['size'] = meta.st_size
    if kind == 'file':
        try:
            found['sha256'], found['data'] = data(name, meta.st_size)
        except OSError as error:
            found['sha256'] = errno.errorcode[error.errno]
        # Half is what tells a sparse file from one that is not.
        found['sparse'] = meta.st_blocks * 512 < meta.st_size // 2
    if kind == 'link':
        found['target'] = quoted(os.readlink(os.fsencode(name)))
    if kind in ('char', 'block'):
        found['rdev'] = '%d:%d' % (os.major(meta.st_rdev), os.minor(meta.st_rdev))
    attributes = xattrs(name)
    if attributes:
        found['xattrs'] = attributes
    return found


def walk(at, inodes, out):
    """Lists the working directory, whose path is `at`."""
    names = sorted(os.listdir(b'.'))
    if len(set(names)) != len(names):
        out.append(dict(path=quoted(at) + ' LISTED TWICE'))
    for name in names:
        if not at and os.fsdecode(name) in SKIP:
            continue
        below = at + b'/' + name if at else name
        try:
            found = entry(name, below, inodes)
        except OSError as error:
            out.append(dict(path=quoted(below), kind='error ' + errno.errorcode[error.errno]))
            continue
        out.append(found)
        if found['kind'] == 'dir':
            here = os.open(b'.', os.O_RDONLY)
            os.chdir(name)
            walk(below, inodes, out)
            os.fchdir(here)
            os.close(here)
            # How many directories are in one may be known only once it has been listed.
            found['nlink'] = os.lstat(name).st_nlink


sys.setrecursionlimit(20000)
os.chdir(sys.argv[1])
entries = []
walk(b'', {}, entries)
for found in sorted(entries, key=lambda found: found['path']):
    print(json.dumps(found, sort_keys=True))
