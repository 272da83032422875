#!/usr/bin/env python3
"""What a small change of a large file costs an exFAT drive: bytes written to its device, and seconds.

    scripts/bench_delta.py [--ferryfs PATH] [--dir DIR] [--only image,log,sqlite] [--scale 0.1]

Compares `ferryfs flush` with `--delta auto` and `--delta never` with `rsync --inplace
--no-whole-file` and a sync, each on a fresh exFAT file system (exfat-fuse) on a loop device, with
the same file and the same change. Each result is compared with the source. Needs root, rsync,
exfatprogs and exfat-fuse, and space for three copies of the largest file. Prints rows of a table
in Markdown. Measure with a release build.
"""
import argparse
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time

MIB = 1 << 20
WAYS = ('auto', 'never', 'rsync')


def run(*words):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit('%s: exit code %d: %s' % (' '.join(words), done.returncode, done.stdout))
    return done.stdout.strip()


class Drive:
    """An exFAT file system on a loop device. The image is written once before, as a drive that is in use."""

    def __init__(self, place, size):
        self.image, self.mount = place + '/drive.img', place + '/drive'
        with open(self.image, 'wb') as file:
            file.truncate(size // MIB * MIB)
        run('mkfs.exfat', self.image)
        self.device = run('losetup', '--find', '--show', self.image)
        os.makedirs(self.mount, exist_ok=True)
        run('mount.exfat-fuse', self.device, self.mount)

    def written(self):
        """Bytes written to the device."""
        with open('/sys/block/%s/stat' % os.path.basename(self.device)) as stat:
            return int(stat.read().split()[6]) * 512

    def end(self):
        subprocess.run(('umount', self.mount))
        subprocess.run(('losetup', '-d', self.device))
        os.remove(self.image)


# ---- the files: how each is made, and changed. Bytes that do not repeat, made fast.

def fill(path, size):
    chance = random.Random(size)
    some = chance.randbytes(16 * MIB)
    with open(path, 'wb') as file:
        at = 0
        while at < size:
            part = min(len(some), size - at)
            file.write(at.to_bytes(8, 'little') + some[8:part])
            at += part


def change_image(path):
    """4 KiB in the middle."""
    with open(path, 'r+b') as file:
        file.seek(os.path.getsize(path) // 2)
        file.write(random.Random(1).randbytes(4096))


def change_log(path):
    """1 MB at the end."""
    with open(path, 'ab') as file:
        file.write(random.Random(2).randbytes(1_000_000))


def fill_sqlite(path, size):
    base = sqlite3.connect(path, isolation_level=None)
    base.execute('PRAGMA synchronous=OFF')
    base.execute('PRAGMA journal_mode=MEMORY')
    base.execute('CREATE TABLE t(n INTEGER PRIMARY KEY, text BLOB)')
    base.execute('BEGIN')
    chance = random.Random(3)
    for n in range(size // 1000):
        base.execute('INSERT INTO t VALUES(?, ?)', (n, chance.randbytes(960)))
    base.execute('COMMIT')
    base.close()


def change_sqlite(path):
    """1,000 rows, anywhere, in one transaction."""
    base = sqlite3.connect(path, isolation_level=None)
    base.execute('BEGIN')
    rows = base.execute('SELECT max(n) FROM t').fetchone()[0]
    chance = random.Random(4)
    for _ in range(1000):
        base.execute('UPDATE t SET text = ? WHERE n = ?', (chance.randbytes(960), chance.randrange(rows)))
    base.execute('COMMIT')
    base.close()


CASES = {
    'image': ('image, 4 KiB changed', 4096 * MIB, fill, change_image),
    'log': ('log, 1 MB appended', 10_000_000_000, fill, change_log),
    'sqlite': ('SQLite database, 1,000 rows changed', 2_000_000_000, fill_sqlite, change_sqlite),
}


def settle(drive):
    """Nothing of before is written any more when the clock starts."""
    run('sync', '-f', drive.mount)
    time.sleep(2)


def measured(drive, work):
    before, start = drive.written(), time.monotonic()
    work()
    return drive.written() - before, time.monotonic() - start


def with_ferryfs(ferryfs, place, drive, delta, size, make, change):
    mount, cache = place + '/mount', place + '/cache'
    os.makedirs(mount, exist_ok=True)
    run(ferryfs, 'mount', '--no-auto-flush', '--enroll', '--delta', delta, '--cache', cache, drive.mount, mount)
    try:
        make(mount + '/file', size)
        run(ferryfs, 'flush', mount)
        settle(drive)
        change(mount + '/file')
        result = measured(drive, lambda: run(ferryfs, 'flush', mount))
        run('cmp', mount + '/file', drive.mount + '/file')
    finally:
        subprocess.run((ferryfs, 'unmount', mount), stdout=subprocess.DEVNULL)
        shutil.rmtree(cache, ignore_errors=True)
    return result


def with_rsync(place, drive, size, make, change):
    source, copy = place + '/file', drive.mount + '/file'
    make(source, size)
    run('rsync', '--inplace', '-t', source, copy)
    settle(drive)
    change(source)

    def work():
        run('rsync', '--inplace', '--no-whole-file', '-t', source, copy)
        run('sync', '-f', drive.mount)
    result = measured(drive, work)
    run('cmp', source, copy)
    os.remove(source)
    return result


def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument('--ferryfs', default='target/release/ferryfs')
    words.add_argument('--dir', help='where the files and the drive go')
    words.add_argument('--only', default=','.join(CASES))
    words.add_argument('--scale', type=float, default=1.0, help='smaller files')
    given = words.parse_args()
    print('| | `--delta auto` | `--delta never` | `rsync --inplace` |')
    print('|---|---|---|---|')
    for name in given.only.split(','):
        what, size, make, change = CASES[name]
        size = int(size * given.scale)
        row = []
        for way in WAYS:
            place = tempfile.mkdtemp(prefix='ferryfs-bench-', dir=given.dir)
            drive = Drive(place, int(size * (2.2 if way != 'rsync' else 1.2)) + 512 * MIB)
            try:
                if way == 'rsync':
                    wrote, took = with_rsync(place, drive, size, make, change)
                else:
                    wrote, took = with_ferryfs(os.path.abspath(given.ferryfs), place, drive, way, size, make, change)
            finally:
                drive.end()
                shutil.rmtree(place, ignore_errors=True)
            row.append('%.1f MiB, %.1f s' % (wrote / MIB, took))
        print('| %.1f GB %s | %s |' % (size / 1e9, what, ' | '.join(row)), flush=True)


if __name__ == '__main__':
    main()
