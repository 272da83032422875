"""What bench.py times: each function does one kind of work in a directory and returns (operations, seconds).

Only the work itself is timed; making ready and clearing away are not. System calls are made straight from `os`, so that
the interpreter adds about a microsecond to each, on every side the same.
"""

import mmap
import os
import random
import sqlite3
import shutil
import subprocess
import tempfile
import threading
import time

BLOCK = b"x" * 4096
CHUNK = os.urandom(1 << 20)


class Clock:
    """Times a `with` block."""

    def __enter__(self):
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_):
        self.seconds = time.perf_counter() - self.start


def put(path, data):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(fd, data)
    os.close(fd)


def files(place, count, data=BLOCK):
    os.makedirs(place)
    names = [f"{place}/{n:05}" for n in range(count)]
    for name in names:
        put(name, data)
    return names


def create(place, scale):
    os.makedirs(place)
    names = [f"{place}/{n:05}" for n in range(2000 // scale)]
    with Clock() as clock:
        for name in names:
            put(name, BLOCK)
    return len(names), clock.seconds


def create_by_four(place, scale):
    """Four threads; the time counts until the last is done."""
    os.makedirs(place)
    count = 500 // scale
    data = BLOCK * 5

    def some(thread):
        for n in range(count):
            put(f"{place}/{thread}-{n:05}", data)

    threads = [threading.Thread(target=some, args=(thread,)) for thread in range(4)]
    with Clock() as clock:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return 4 * count, clock.seconds


def replace(place, scale):
    """What a careful program does to change a file: write another one, rename it over."""
    names = files(place, 1000 // scale)
    with Clock() as clock:
        for name in names:
            put(f"{place}/new", BLOCK)
            os.rename(f"{place}/new", name)
    return len(names), clock.seconds


def mkdir(place, scale):
    os.makedirs(place)
    names = [f"{place}/{n:05}" for n in range(2000 // scale)]
    with Clock() as clock:
        for name in names:
            os.mkdir(name)
    return len(names), clock.seconds


def stat(place, scale):
    names = files(place, 1000 // scale)
    with Clock() as clock:
        for _ in range(5):
            for name in names:
                os.stat(name)
    return 5 * len(names), clock.seconds


def open_read(place, scale):
    names = files(place, 1000 // scale)
    with Clock() as clock:
        for _ in range(3):
            for name in names:
                fd = os.open(name, os.O_RDONLY)
                os.read(fd, 4096)
                os.close(fd)
    return 3 * len(names), clock.seconds


def readdir(place, scale):
    files(place, 5000 // scale, b"")
    entries = 0
    with Clock() as clock:
        for _ in range(10):
            entries += len(os.listdir(place))
    return entries, clock.seconds


def rename(place, scale):
    names = files(place, 2000 // scale)
    with Clock() as clock:
        for name in names:
            os.rename(name, name + ".renamed")
    return len(names), clock.seconds


def unlink(place, scale):
    names = files(place, 2000 // scale)
    with Clock() as clock:
        for name in names:
            os.unlink(name)
    return len(names), clock.seconds


def write_fsync(place, scale):
    os.makedirs(place)
    count = 200 // scale
    with Clock() as clock:
        for n in range(count):
            fd = os.open(f"{place}/{n:05}", os.O_WRONLY | os.O_CREAT, 0o644)
            os.write(fd, BLOCK)
            os.fsync(fd)
            os.close(fd)
    return count, clock.seconds


def sequential_write(place, scale):
    os.makedirs(place)
    count = 256 // scale
    fd = os.open(f"{place}/big", os.O_WRONLY | os.O_CREAT, 0o644)
    with Clock() as clock:
        for _ in range(count):
            os.write(fd, CHUNK)
        os.fsync(fd)
    os.close(fd)
    return count, clock.seconds


def sequential_read(place, scale):
    sequential_write(place, scale)
    fd = os.open(f"{place}/big", os.O_RDONLY)
    # What was just written is in memory; the drive's own speed is not what is compared.
    with Clock() as clock:
        count = 0
        while os.read(fd, 1 << 20):
            count += 1
    os.close(fd)
    return count, clock.seconds


def random_io(place, scale, write):
    sequential_write(place, scale)
    blocks = 256 // scale * 256
    rng = random.Random(7)
    places = [rng.randrange(blocks) * 4096 for _ in range(8000 // scale)]
    fd = os.open(f"{place}/big", os.O_RDWR)
    with Clock() as clock:
        if write:
            for at in places:
                os.pwrite(fd, BLOCK, at)
        else:
            for at in places:
                os.pread(fd, 4096, at)
    os.close(fd)
    return len(places), clock.seconds


def random_read(place, scale):
    return random_io(place, scale, False)


def random_write(place, scale):
    return random_io(place, scale, True)


def mapped_write(place, scale):
    sequential_write(place, scale)
    fd = os.open(f"{place}/big", os.O_RDWR)
    length = os.fstat(fd).st_size
    with Clock() as clock:
        with mmap.mmap(fd, length) as view:
            for at in range(0, length, 4096):
                view[at] = 1
            view.flush()
    os.close(fd)
    return length // 4096, clock.seconds


def sqlite(place, scale):
    os.makedirs(place)
    db = sqlite3.connect(f"{place}/bench.db", isolation_level=None)
    db.execute("pragma journal_mode=wal")
    db.execute("pragma synchronous=normal")
    db.execute("create table t(id integer primary key, pad blob)")
    count = 1000 // scale
    with Clock() as clock:
        for n in range(count):
            db.execute("begin")
            db.execute("insert into t values(?,?)", (n, BLOCK[:500]))
            db.execute("commit")
    db.close()
    return count, clock.seconds


def untar(place, scale):
    os.makedirs(place)
    # The archive is made elsewhere: only taking it apart is this side's work.
    with tempfile.TemporaryDirectory() as elsewhere:
        source, archive = f"{elsewhere}/source", f"{elsewhere}/archive.tar"
        for d in range(20 // scale):
            os.makedirs(f"{source}/d{d}")
            for n in range(50):
                put(f"{source}/d{d}/{n}", BLOCK[: 100 + 60 * n])
        subprocess.run(["tar", "-cf", archive, "-C", source, "."], check=True)
        with Clock() as clock:
            subprocess.run(["tar", "-xf", archive, "-C", place], check=True)
    return 20 // scale * 50, clock.seconds


def tree(place, scale):
    """A tree of small files, as `cp -r` and `rm -rf` find it."""
    for d in range(20 // scale):
        files(f"{place}/d{d}", 50)
    return 20 // scale * 50


def copy_tree(place, scale):
    with tempfile.TemporaryDirectory() as elsewhere:
        count = tree(elsewhere, scale)
        os.makedirs(place)
        with Clock() as clock:
            subprocess.run(["cp", "-r", elsewhere, f"{place}/copy"], check=True)
    return count, clock.seconds


def remove_tree(place, scale):
    count = tree(place, scale)
    with Clock() as clock:
        shutil.rmtree(place)
    return count, clock.seconds


def git(place, scale):
    count = 500 // scale
    files(place, count, b"")
    for n in range(count):
        put(f"{place}/{n:05}", b"file %d\n" % n * 20)
    env = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_SYSTEM": "/dev/null",
        "GIT_AUTHOR_NAME": "b",
        "GIT_AUTHOR_EMAIL": "b@example.org",
        "GIT_COMMITTER_NAME": "b",
        "GIT_COMMITTER_EMAIL": "b@example.org",
    }

    def run(*args):
        subprocess.run(["git", "-C", place, *args], check=True, env=env)

    run("init", "-q")
    with Clock() as clock:
        run("add", "-A")
        run("commit", "-q", "-m", "bench")
    return count, clock.seconds


WORK = {
    "create+write 4 KiB+close": create,
    "4 threads create 20 KiB": create_by_four,
    "write new, rename over": replace,
    "mkdir": mkdir,
    "stat": stat,
    "open+read 4 KiB": open_read,
    "readdir (entries)": readdir,
    "rename": rename,
    "unlink": unlink,
    "write 4 KiB+fsync": write_fsync,
    "sequential write (MiB)": sequential_write,
    "sequential read (MiB)": sequential_read,
    "random read 4 KiB": random_read,
    "random write 4 KiB": random_write,
    "mapped write (pages)": mapped_write,
    "SQLite transactions": sqlite,
    "untar (files)": untar,
    "cp -r (files)": copy_tree,
    "rm -rf (files)": remove_tree,
    "git add+commit (files)": git,
}
