"""Builds a tree that has something of everything that Linux allows, below the directory named as the argument.

What cannot be made is printed, one JSON object a line, {"item", "path", "error"}; the rest of the tree is made all the same.
Everything is the same on each run: names, contents, times.
"""
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import random
import socket
import stat
import sys
import unicodedata

top = os.fsencode(sys.argv[1])
only = set(sys.argv[2:])
root = os.geteuid() == 0
libc = ctypes.CDLL(None, use_errno=True)
NS = 10 ** 9


def path(*parts):
    return b'/'.join((top,) + tuple(os.fsencode(part) for part in parts))


def content(seed, length):
    return random.Random(seed).randbytes(length)


def put(at, data=b''):
    with open(at, 'xb') as file:
        file.write(data)


class Item:
    """Names the part of the tree that is being made, and goes on after what cannot be."""
    name = None

    @classmethod
    def attempt(cls, at, call, *args, **more):
        try:
            call(*args, **more)
            return True
        except OSError as error:
            at = os.path.relpath(at, top)
            print(json.dumps(dict(item=cls.name, path=os.fsdecode(at[:200]).encode('utf-8', 'backslashreplace').decode(),
                                  error=errno.errorcode.get(error.errno, str(error)))))
            return False


attempt = Item.attempt
items = {}


def item(call):
    items[call.__name__] = call
    return call


SCRIPTS = [
    'latin é ü ß ñ', 'ελληνικά', 'русский', 'українська ї', 'עברית', 'العربية', 'فارسی‌نیم', 'हिन्दी', 'বাংলা', 'தமிழ்', 'ไทยไม่มีวรรค',
    '中文文件', '日本語ファイル', 'ｶﾀｶﾅ', '한국어', 'ქართული', 'Հայերեն', 'አማርኛ', 'ខ្មែរ', 'བོད་ཡིག', 'монгол ᠮᠣᠩᠭᠣᠯ', '𐐷 deseret', '𝔘𝔫𝔦𝔠𝔬𝔡𝔢',
    '😀', '👩‍👩‍👧‍👦', '🏳️‍🌈', '👍🏽', '🇩🇪', '☃️.txt', 'zero​width', 'right‮left', 'ligature ﬁ', 'ŉ', 'İstanbul', 'ıſK', 'ẞ', 'Ǆ ǅ ǆ', 'ﬆ',
    '￾ noncharacter', '﻿bom', '\u0301combining first', 'a' + '\u0301' * 30, 'Å', '½', '①', 'tilde~1', '𠀀 supplementary',
]
FORBIDDEN = ['a"b', 'a*b', 'a/b'.replace('/', ':'), 'a<b', 'a>b', 'a?b', 'a\\b', 'a|b', '"*:<>?\\|', ':', '?', '*', 'C:\\dir\\x', 'what?.txt',
             'NUL', 'con.txt', 'aux', 'com1', 'lpt1.log']
LOOKALIKES = ['a：b', 'a?b', 'a？b', 'a‛b', 'a‛：b', '‛', '‛‛', '‛~', '‛~3f2a91c0', 'x‛~3f2a91c0.ext', 'x‛~deadbeef.txt', '‛FF', '‛：', '␀', '␀b', '‛␀',
              'end．', 'end␠', 'end‛．', 'end‛␠', '．', '．．', '．．．', '␠', '＂＊＜＞？＼｜', '‛＂', '␊', '␟', '␡', '/'.replace('/', '／')]
ENDS = ['trailing.', 'trailing..', 'trailing ', 'trailing  ', 'trailing .', 'trailing. ', '...', '....', ' ', '  ', ' leading', '. .', '. ', ' .',
        '.hidden', '..hidden', '-rf', '--', '~', '#x#', '$HOME', '`x`', "'", '%41', '%', '&', ';', '!', '=', '+', '@', '[', '{x}']


@item
def names_scripts():
    os.mkdir(path('scripts'))
    for n, name in enumerate(SCRIPTS):
        at = path('scripts', name)
        attempt(at, put, at, content(n, n))
    at = path('scripts', 'каталог 目录 📁')
    os.mkdir(at)
    put(at + b'/inside', b'inside')


@item
def names_forbidden():
    os.mkdir(path('forbidden'))
    for n, name in enumerate(FORBIDDEN):
        at = path('forbidden', name)
        attempt(at, put, at, b'forbidden %d' % n)
    for n in list(range(1, 32)) + [127]:
        at = path('forbidden', b'control' + bytes([n]) + b'x')
        attempt(at, put, at, b'control %d' % n)
    at = path('forbidden', 'dir: what?')
    if attempt(at, os.mkdir, at):
        put(at + b'/inside', b'inside')
        attempt(at, put, at + b'/in:side', b'in side')


@item
def names_lookalikes():
    os.mkdir(path('lookalikes'))
    for n, name in enumerate(LOOKALIKES):
        at = path('lookalikes', name)
        attempt(at, put, at, b'lookalike %d' % n)


@item
def names_ends():
    os.mkdir(path('ends'))
    for n, name in enumerate(ENDS):
        at = path('ends', name)
        attempt(at, put, at, b'ends %d' % n)
    for name in ['dir.', 'dir ', 'dir']:
        at = path('ends', name)
        if attempt(at, os.mkdir, at):
            put(at + b'/inside', os.fsencode(name))


@item
def names_case():
    os.mkdir(path('case'))
    for name in ['README', 'readme', 'ReadMe', 'Readme', 'x.TXT', 'x.txt', 'ÄRGER', 'ärger', 'ΣΑΣ', 'σας', 'σασ', 'straße', 'STRASSE', 'ПРИВЕТ',
                 'привет', 'ｆｕｌｌ', 'ＦＵＬＬ', '𐐀', '𐐨', 'K', 'k', '\u212a', '\u01c5', '\u01c6', '\u01c4']:
        at = path('case', name)
        attempt(at, put, at, os.fsencode(name) * 3)
    for name in ['Dir', 'dir', 'DIR']:
        at = path('case', name)
        if attempt(at, os.mkdir, at):
            put(at + b'/same', os.fsencode(name))


@item
def names_forms():
    os.mkdir(path('forms'))
    for name in ['café', 'Åström', '한국', 'ệ', 'ﬁ', 'Ω', '①', 'ｱ']:
        for form in ['NFC', 'NFD', 'NFKC', 'NFKD']:
            at = path('forms', unicodedata.normalize(form, name))
            if not os.path.lexists(at):
                attempt(at, put, at, form.encode())
    at = path('forms', unicodedata.normalize('NFD', 'verzeichnisß ü'))
    os.mkdir(at)
    put(at + b'/inside', b'inside')
    at = path('forms', unicodedata.normalize('NFC', 'verzeichnisß ü'))
    if attempt(at, os.mkdir, at):
        put(at + b'/inside', b'other inside')


@item
def names_bytes():
    os.mkdir(path('bytes'))
    for name in [b'\xff', b'\xff' * 255, b'a\x80b', b'\xc0\xaf', b'\xed\xa0\x80', b'\xf5\x80\x80\x80', b'\xe2\x82', b'caf\xe9', b'caf\xe9.txt', b'\x80\x81\x82',
                 b'mixed \xc3\xa9 and \xe9', b'\xf0\x9f\x98', b'\xef\xbf\xbf', b'\xf4\x90\x80\x80']:
        at = path('bytes', name)
        attempt(at, put, at, hashlib.sha256(name).digest())
    at = path('bytes', b'dir \xff')
    if attempt(at, os.mkdir, at):
        put(at + b'/inside', b'inside')


@item
def names_long():
    os.mkdir(path('long'))
    for n, name in enumerate(['n' * 255, 'n' * 254 + 'm', 'é' * 127 + 'x', '漢' * 85, '😀' * 63 + 'abc', ':' * 255, '?' * 254 + 'x', '.' * 255, ' ' * 255,
                              'x' * 250 + '.jpeg', '‛' * 85, 'A' * 251 + '.txt', 'a' * 251 + '.txt', 'ü' * 125 + '.html']):
        at = path('long', name)
        attempt(at, put, at, b'long %d' % n)
    for name in ['d' * 255, 'D' * 255]:
        at = path('long', name)
        if attempt(at, os.mkdir, at):
            put(at + b'/inside', b'inside')


@item
def names_reserved():
    for name in ['.ferryfs', '.FERRYFS', '.Ferryfs', '.ferryfs ', '.nomedia', '.metadata_never_index']:
        at = path(name)
        attempt(at, put, at, b'mine: ' + name.encode())
    os.mkdir(path('reserved'))
    for name in ['.ferryfs', '.FERRYFS', '.ferryfs/marker', '.Trashes', 'System Volume Information', '$RECYCLE.BIN', '._file', '.DS_Store', 'Thumbs.db',
                 'lost+found', 'found.000', 'x.sync-conflict-20200101-000000-host.ext', 'f.tmp', 'f.part']:
        at = path('reserved', name)
        os.makedirs(os.path.dirname(at), exist_ok=True)
        if name == '.ferryfs':
            attempt(at, os.mkdir, at)
        else:
            attempt(at, put, at, name.encode())


@item
def modes():
    os.mkdir(path('modes'))
    for mode in [0o000, 0o001, 0o400, 0o444, 0o600, 0o640, 0o644, 0o666, 0o700, 0o755, 0o777, 0o1644, 0o2644, 0o2755, 0o4711, 0o4755, 0o6755, 0o7777]:
        at = path('modes', 'file-%04o' % mode)
        put(at, b'mode %o' % mode)
        attempt(at, os.chmod, at, mode)
        at = path('modes', 'dir-%04o' % mode)
        os.mkdir(at)
        put(at + b'/inside', b'inside')
        attempt(at, os.chmod, at, mode)


@item
def owners():
    if not root:
        return
    os.mkdir(path('owners'))
    for uid, gid in [(0, 0), (1, 1), (1, 0), (0, 1), (65534, 65534), (12345, 54321), (2 ** 31, 2 ** 31 + 7), (2 ** 32 - 2, 2 ** 32 - 2), (1000, 100)]:
        at = path('owners', 'file-%d-%d' % (uid, gid))
        put(at, b'owned')
        attempt(at, os.chown, at, uid, gid)
        attempt(at, os.chmod, at, 0o4755)
        at = path('owners', 'dir-%d-%d' % (uid, gid))
        os.mkdir(at)
        attempt(at, os.chown, at, uid, gid)
        at = path('owners', 'link-%d-%d' % (uid, gid))
        if attempt(at, os.symlink, 'nowhere', at):
            attempt(at, os.chown, at, uid, gid, follow_symlinks=False)
        at = path('owners', 'fifo-%d-%d' % (uid, gid))
        if attempt(at, os.mkfifo, at):
            attempt(at, os.chown, at, uid, gid)


@item
def symlinks():
    os.mkdir(path('symlinks'))
    put(path('symlinks', 'target'), b'target')
    targets = {'relative': 'target', 'dangling': 'nothing/here', 'absolute': '/etc/passwd', 'up': '../../..', 'dot': '.', 'to-directory': '../scripts', 'loop-a': 'loop-b',
               'loop-b': 'loop-a', 'self': 'self', 'spaces': 'a b  c ', 'unicode': 'каталог/😀', 'forbidden': 'a:b?c*', 'newline': 'a\nb', 'bytes': b'\xff\xfe/\x80',
               'slashes': '//a//b///', 'long': b'/'.join([b'x' * 254] * 16) + b'/' + b'y' * 14, 'longest': b't' * 4095, 'one': 'x', 'to:colon': 'colon', 'case': 'A', 'CASE': 'a'}
    for name, target in targets.items():
        at = path('symlinks', name)
        attempt(at, os.symlink, os.fsencode(target), at)
    at = path('symlinks', 'timed')
    if attempt(at, os.symlink, 'timed', at):
        attempt(at, os.utime, at, ns=(11 * NS + 1, 1_234_567_890 * NS + 987_654_321), follow_symlinks=False)
    os.mkdir(path('symlinks', 'only-links'))
    attempt(path('symlinks', 'only-links'), os.symlink, 'x', path('symlinks', 'only-links', 'a'))


@item
def hardlinks():
    os.mkdir(path('hardlinks'))
    os.mkdir(path('hardlinks', 'many'))
    first = path('hardlinks', 'first')
    put(first, content(1, 5000))
    for n in range(999):
        at = path('hardlinks', 'many', 'name-%03d' % n)
        if not attempt(at, os.link, first, at):
            break
    os.mkdir(path('hardlinks', 'd1'))
    os.mkdir(path('hardlinks', 'd2'))
    put(path('hardlinks', 'd1', 'shared'), b'between directories')
    at = path('hardlinks', 'd2', 'other name')
    attempt(at, os.link, path('hardlinks', 'd1', 'shared'), at)
    at = path('hardlinks', 'd2', 'third: name?')
    attempt(at, os.link, path('hardlinks', 'd1', 'shared'), at)
    # Same bytes, same time, and yet two files.
    for name in ['twin-a', 'twin-b']:
        put(path('hardlinks', name), b'twins')
        os.utime(path('hardlinks', name), ns=(NS, NS))
    put(path('hardlinks', 'empty-1'))
    at = path('hardlinks', 'empty-2')
    attempt(at, os.link, path('hardlinks', 'empty-1'), at)
    for name, make in [('link', lambda at: os.symlink('x', at)), ('fifo', os.mkfifo)]:
        at = path('hardlinks', name + '-1')
        if attempt(at, make, at):
            at = path('hardlinks', name + '-2')
            attempt(at, os.link, path('hardlinks', name + '-1'), at, follow_symlinks=False)


@item
def special():
    os.mkdir(path('special'))
    at = path('special', 'fifo')
    if attempt(at, os.mkfifo, at, 0o640):
        attempt(at, os.utime, at, ns=(5 * NS + 5, 6 * NS + 6))
    at = path('special', 'fi:fo')
    attempt(at, os.mkfifo, at, 0o600)
    at = path('special', 'socket')
    here = os.open(path('special'), os.O_RDONLY)
    back = os.open('.', os.O_RDONLY)
    os.fchdir(here)
    attempt(at, socket.socket(socket.AF_UNIX).bind, 'socket')
    os.fchdir(back)
    if root:
        for name, kind, device in [('null', stat.S_IFCHR, (1, 3)), ('big-char', stat.S_IFCHR, (511, 1048575)), ('loop7', stat.S_IFBLK, (7, 7)),
                                   ('zero', stat.S_IFCHR, (0, 0))]:
            at = path('special', name)
            attempt(at, os.mknod, at, kind | 0o604, os.makedev(*device))


@item
def xattrs():
    os.mkdir(path('xattrs'))

    def attributes(at, values, follow=True):
        for name, value in values.items():
            attempt(at, os.setxattr, at, name, value, follow_symlinks=follow)
    at = path('xattrs', 'some')
    put(at, b'some')
    attributes(at, {b'user.colour': b'blue', b'user.empty': b'', b'user.binary': bytes(range(256)), 'user.ünïcode 😀': 'wert'.encode(), b'user.' + b'n' * 250: b'longest name',
                    b'user.bytes\xff': b'x', b'user.a b': b'space'})
    for size in [4095, 4096, 65535, 65536]:
        at = path('xattrs', 'size-%d' % size)
        put(at, b'x')
        attributes(at, {b'user.big': content(size, size)})
    at = path('xattrs', 'two-big')
    put(at)
    attributes(at, {b'user.one': content(1, 65536), b'user.two': content(2, 65536)})
    at = path('xattrs', 'many')
    put(at)
    attributes(at, {b'user.number.%d' % n: b'%d' % n for n in range(300)})
    at = path('xattrs', 'directory')
    os.mkdir(at)
    attributes(at, {b'user.of': b'a directory'})
    if root:
        at = path('xattrs', 'trusted')
        put(at)
        attributes(at, {b'trusted.overlay.opaque': b'y', b'trusted.x': b'\0\1\2'})
        at = path('xattrs', 'program')
        put(at, b'#!/bin/sh\n')
        os.chmod(at, 0o755)
        attributes(at, {b'security.capability': bytes.fromhex('0100000200040000000000000000000000000000')})
        at = path('xattrs', 'trusted-link')
        if attempt(at, os.symlink, 'x', at):
            attributes(at, {b'trusted.on': b'a link'}, follow=False)
        at = path('xattrs', 'trusted-fifo')
        if attempt(at, os.mkfifo, at):
            attributes(at, {b'trusted.on': b'a fifo'})


FALLOC_KEEP, FALLOC_PUNCH = 1, 2


def fallocate(file, mode, offset, length):
    if libc.fallocate(file.fileno(), mode, ctypes.c_long(offset), ctypes.c_long(length)) != 0:
        raise OSError(ctypes.get_errno(), 'fallocate')


@item
def sparse():
    os.mkdir(path('sparse'))
    with open(path('sparse', 'only-hole'), 'xb') as file:
        file.truncate(8 << 20)
    with open(path('sparse', 'hole-in-front'), 'xb') as file:
        file.seek(4 << 20)
        file.write(content(1, 70000))
    with open(path('sparse', 'hole-behind'), 'xb') as file:
        file.write(content(2, 70000))
        file.truncate(6 << 20)
    with open(path('sparse', 'hole-between'), 'xb') as file:
        file.write(content(3, 65536))
        file.seek(3 << 20)
        file.write(content(4, 65536))
        file.seek(5 << 20)
        file.write(content(5, 1))
    with open(path('sparse', 'punched'), 'xb') as file:
        file.write(content(6, 2 << 20))
        file.flush()
        attempt(path('sparse', 'punched'), fallocate, file, FALLOC_KEEP | FALLOC_PUNCH, 256 << 10, 1 << 20)
    with open(path('sparse', 'zeros-written'), 'xb') as file:
        file.write(bytes(1 << 20))
    with open(path('sparse', 'many-holes'), 'xb') as file:
        for n in range(200):
            file.seek(n * 65536)
            file.write(content(n, 4096))


TIMES = {'epoch': 0, 'first-ns': 1, 'before-1970': -1, 'before-1970-half': -500_000_000, 'a-second-before': -NS, '1969': -86400 * 180 * NS + 123_456_789, '1901': -2 ** 31 * NS,
         '1900': -2_208_988_800 * NS + 1, '1800': -5_364_662_400 * NS + 999_999_999, '1700': -8_520_336_000 * NS + 42, '1979': 300_000_000 * NS + 7, '1980': 315_532_800 * NS + 5,
         '2000': 951_782_400 * NS + 999_999_999, 'odd-second': 1_234_567_891 * NS, 'ten-ms': 1_234_567_890 * NS + 10_000_000, 'ns': 1_600_000_000 * NS + 123_456_789,
         '2038': 2 ** 31 * NS + 1, '2106': 2 ** 32 * NS + 3, '2107': 4_354_819_199 * NS + 990_000_000, '2108': 4_354_819_200 * NS + 1, '2200': 7_258_118_400 * NS + 17,
         '2261': 9_214_646_400 * NS + 5}


@item
def times():
    os.mkdir(path('times'))
    for name, mtime in TIMES.items():
        at = path('times', name)
        put(at, name.encode())
        attempt(at, os.utime, at, ns=(mtime + 1, mtime))
        at = path('times', name + '-dir')
        os.mkdir(at)
        put(at + b'/inside', b'inside')
        attempt(at, os.utime, at, ns=(mtime + 1, mtime))
        at = path('times', name + '-link')
        if attempt(at, os.symlink, name, at):
            attempt(at, os.utime, at, ns=(mtime + 1, mtime), follow_symlinks=False)


@item
def deep():
    """A path of 4,000 bytes and more, reached step by step, as no call takes one that long."""
    os.mkdir(path('deep'))
    back = os.open('.', os.O_RDONLY)
    os.chdir(path('deep'))
    for n in range(19):
        name = ('%02d-' % n) + 'd' * 197
        os.mkdir(name)
        os.chdir(name)
    put(b'at the end ' + b'e' * 150, b'deep')
    attempt(path('deep'), os.symlink, '../' * 19, 'link')
    for n in range(3):
        os.mkdir('beyond-%d-' % n + 'b' * 200)
        os.chdir('beyond-%d-' % n + 'b' * 200)
    put(b'beyond PATH_MAX', b'beyond')
    os.fchdir(back)
    os.mkdir(path('deep', 'narrow'))
    os.chdir(path('deep', 'narrow'))
    for _ in range(300):
        os.mkdir('n')
        os.chdir('n')
    put(b'bottom', b'bottom')
    os.fchdir(back)


@item
def empties():
    os.mkdir(path('empties'))
    for n in range(3):
        put(path('empties', 'file-%d' % n))
        os.mkdir(path('empties', 'dir-%d' % n))
    os.makedirs(path('empties', 'a', 'b', 'c'))


@item
def contents():
    os.mkdir(path('contents'))
    for size in [1, 511, 512, 4095, 4096, 4097, 65536, 131071, 131073, 1 << 20, (1 << 20) + 1, 5_000_000]:
        put(path('contents', str(size)), content(size, size))
    at = path('contents', 'fan')
    os.mkdir(at)
    for n in range(500):
        put(at + b'/%03d' % n, b'%d' % n)


for name, call in items.items():
    if not only or name in only:
        Item.name = name
        try:
            call()
        except OSError as error:
            print(json.dumps(dict(item=name, path='*', error=repr(error))))
# Last of all, as making anything in a directory changes its time.
for n, (where, dirs, _) in enumerate(os.walk(top)):
    for name in dirs:
        at = os.path.join(where, name)
        if at.startswith(path('times') + b'/') or len(at) > 3000 or os.path.islink(at):
            continue
        n += 1
        os.utime(at, ns=(1_500_000_000 * NS + n, (1_400_000_000 + n) * NS + 1000 * n + 7))
