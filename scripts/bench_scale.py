#!/usr/bin/env python3
"""Measures what grows with the number of files on the drive, and what is written to the SSD.

  scripts/bench_scale.py files [--ferryfs PROGRAM] [--files N] [--dir DIR]
  scripts/bench_scale.py ssd   [--ferryfs PROGRAM] [--dir DIR]        (as root)

`files` makes a drive of N empty files, 1,000 to a directory, and prints seconds. `ssd` prints how
many bytes reach the SSD's device for the same work, on a fresh ext4 image and through ferryfs with
its cache on that image. Use a directory in memory (/dev/shm) to take the disk out of the picture.
"""
import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time

PER_DIRECTORY = 1000


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 3):
        sys.exit(f"{' '.join(command)}: {done.returncode}\n{done.stderr}")
    return done.stdout


def timed(name, *command):
    begun = time.monotonic()
    run(*command)
    print(f"{name:34} {time.monotonic() - begun:8.2f} s", flush=True)


class Lab:
    """A drive, a mount and a cache below `root`; the cache may be elsewhere."""

    def __init__(self, program, root, cache):
        self.program, self.cache = program, cache
        self.drive, self.mnt = os.path.join(root, "drive"), os.path.join(root, "mnt")
        os.makedirs(self.drive)
        os.makedirs(self.mnt)

    def mount_command(self):
        options = ("--no-auto-flush", "--no-protect-mountpoint")
        return self.program, "mount", "--cache", self.cache, *options, self.drive, self.mnt

    def ferryfs(self, command):
        return self.program, command, self.mnt

    def import_is_over(self):
        status = json.loads(run(self.program, "status", "--json", self.mnt))
        return status["import"]["complete"]

    def rename(self, old, new):
        os.rename(os.path.join(self.mnt, old), os.path.join(self.mnt, new))


def files(args, root):
    lab = Lab(args.ferryfs, root, os.path.join(root, "cache"))
    directories = max(1, args.files // PER_DIRECTORY)
    for number in range(directories):
        directory = os.path.join(lab.drive, f"d{number}")
        os.mkdir(directory)
        for name in range(PER_DIRECTORY):
            open(os.path.join(directory, f"file number {name}"), "wb").close()
    # As they are on a drive: not made a moment ago.
    run("find", lab.drive, "-depth", "-exec", "touch", "-d", "2020-01-01", "{}", "+")
    timed("find, native", "find", lab.drive)
    timed("du -s, native", "du", "-s", lab.drive)
    timed("first mount", *lab.mount_command())
    begun = time.monotonic()
    while not lab.import_is_over():
        time.sleep(0.1)
    print(f"{'import':34} {time.monotonic() - begun:8.2f} s", flush=True)
    for turn in ("first", "again"):
        timed(f"find, {turn}", "find", lab.mnt)
        timed(f"du -s, {turn}", "du", "-s", lab.mnt)
    timed("unmount", *lab.ferryfs("unmount"))
    timed("second mount", *lab.mount_command())
    changed = min(directories, 100)
    for number in range(changed):
        with open(os.path.join(lab.mnt, f"d{number}", "file number 5"), "w") as file:
            file.write("changed")
    timed(f"flush of {changed} files", *lab.ferryfs("flush"))
    lab.rename("d0", "renamed")
    timed("flush of a renamed directory", *lab.ferryfs("flush"))
    timed("refresh", *lab.ferryfs("refresh"))
    timed("unmount", *lab.ferryfs("unmount"))


def small_files(place):
    """5,000 files of 4 KiB in 10 seconds."""
    begun = time.monotonic()
    for number in range(5000):
        with open(os.path.join(place, f"f{number}"), "wb") as file:
            file.write(os.urandom(4096))
        time.sleep(max(0, begun + number / 500 - time.monotonic()))


def commits(place):
    """4,000 commits of one row, WAL."""
    database = sqlite3.connect(os.path.join(place, "db"))
    database.execute("pragma journal_mode=wal")
    database.execute("create table t(a, b)")
    for number in range(4000):
        database.execute("insert into t values(?, ?)", (number, "x" * 100))
        database.commit()
    database.close()


def one_large_file(place):
    """512 MiB."""
    with open(os.path.join(place, "large"), "wb") as file:
        for _ in range(512):
            file.write(os.urandom(1 << 20))


def ssd(args, root):
    if os.geteuid() != 0:
        sys.exit("this needs root, to mount an image and read its device's counter")
    image, place = os.path.join(root, "image"), os.path.join(root, "ssd")
    os.mkdir(place)
    run("truncate", "-s", "3G", image)
    run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
    device = run("losetup", "--find", "--show", image).strip()
    try:
        run("mount", device, place)
        lab = Lab(args.ferryfs, root, os.path.join(place, "cache"))

        def written():
            os.sync()
            with open(f"/sys/block/{os.path.basename(device)}/stat") as stat:
                return int(stat.read().split()[6]) * 512

        def measure(name, top):
            for work in (small_files, commits, one_large_file):
                at = os.path.join(top, work.__name__)
                os.makedirs(at)
                before = written()
                work(at)
                time.sleep(6)  # The interval in which ferryfs syncs, and ext4 commits.
                mib = (written() - before) / (1 << 20)
                print(f"{name:8} {work.__doc__:34} {mib:8.1f} MiB", flush=True)

        measure("native", os.path.join(place, "native"))
        run(*lab.mount_command())
        try:
            measure("ferryfs", lab.mnt)
        finally:
            run(*lab.ferryfs("unmount"))
    finally:
        subprocess.run(["umount", "-l", place])
        run("losetup", "-d", device)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["files", "ssd"])
    parser.add_argument("--ferryfs", default="target/release/ferryfs", help="a release build")
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--dir", help="where to work; the default is the directory for temporary files")
    args = parser.parse_args()
    if not os.access(args.ferryfs, os.X_OK):
        sys.exit(f"there is no {args.ferryfs}: cargo build --release")
    root = tempfile.mkdtemp(prefix="ferryfs-bench.", dir=args.dir)
    try:
        {"files": files, "ssd": ssd}[args.what](args, root)
    finally:
        subprocess.run(["umount", "-lq", os.path.join(root, "mnt")], stderr=subprocess.DEVNULL)
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
