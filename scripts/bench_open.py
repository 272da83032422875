#!/usr/bin/env python3
"""Measures how long the writer of a database waits while flushes copy it.

bench_open.py [--size MB]... [--seconds N] [--mode wal|delete] FERRYFS DIRECTORY

Makes a cache, a drive (a plain directory) and a mount in DIRECTORY, fills a database of each size,
and commits small transactions all the time: natively, in the mount, and in the mount while flushes
run one after another. Prints percentiles of the time of a commit, in milliseconds.
"""
import argparse
import os
import random
import shutil
import sqlite3
import subprocess
import threading
import time


def connect(path, mode):
    c = sqlite3.connect(path, isolation_level=None, timeout=60)
    c.execute(f"pragma journal_mode={mode}")
    c.execute("pragma synchronous=normal")
    return c


def fill(path, mode, megabytes):
    c = connect(path, mode)
    c.execute("create table t(n integer primary key, b blob)")
    block = os.urandom(1 << 20)
    c.execute("begin")
    for n in range(megabytes * 16):
        at = random.randrange(len(block) - 65_000)
        c.execute("insert into t values(?, ?)", (n, block[at : at + 64_000]))
        if n % 1000 == 999:
            c.execute("commit")
            c.execute("begin")
    c.execute("commit")
    c.close()


def commits(path, mode, seconds, rows):
    c = connect(path, mode)
    took = []
    end = time.time() + seconds
    while time.time() < end:
        begun = time.perf_counter()
        c.execute("begin immediate")
        for _ in range(4):
            c.execute(
                "update t set b=randomblob(3000) where n=?", (random.randrange(rows),)
            )
        c.execute("commit")
        took.append((time.perf_counter() - begun) * 1000)
    c.close()
    took.sort()
    at = lambda share: took[min(len(took) - 1, int(len(took) * share))]
    return len(took) / seconds, at(0.5), at(0.99), took[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, action="append", help="in MB, again and again")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--mode", default="wal")
    parser.add_argument("ferryfs")
    parser.add_argument("directory")
    args = parser.parse_args()
    print("| database | where | commits/s | p50 ms | p99 ms | worst ms | flushes | s each |")
    print("|---|---|---|---|---|---|---|---|")
    for size in args.size or [10, 1000]:
        root = os.path.join(args.directory, f"bench-open-{size}")
        shutil.rmtree(root, ignore_errors=True)
        for name in ("native", "drive", "mnt"):
            os.makedirs(os.path.join(root, name))
        mnt, cache = os.path.join(root, "mnt"), os.path.join(root, "cache")
        mount = [args.ferryfs, "mount", "--enroll", "--no-auto-flush", "--cache", cache]
        subprocess.run(mount + [os.path.join(root, "drive"), mnt], check=True)
        try:
            measure(args, size, root, mnt)
        finally:
            subprocess.run([args.ferryfs, "unmount", "--no-flush", mnt], check=True)
            shutil.rmtree(root, ignore_errors=True)


def measure(args, size, root, mnt):
    native = os.path.join(root, "native", "lab.db")
    fill(native, args.mode, size)
    database = os.path.join(mnt, "lab.db")
    shutil.copy(native, database)
    flush = lambda: subprocess.run(
        [args.ferryfs, "flush", mnt], check=True, stdout=subprocess.DEVNULL
    )
    flush()
    rows = size * 16
    say(size, "native", commits(native, args.mode, args.seconds, rows), [])
    say(size, "mount", commits(database, args.mode, args.seconds, rows), [])
    flushes = []
    done = threading.Event()

    def keep_flushing():
        while not done.is_set():
            begun = time.time()
            flush()
            flushes.append(time.time() - begun)

    thread = threading.Thread(target=keep_flushing)
    thread.start()
    try:
        result = commits(database, args.mode, args.seconds, rows)
    finally:
        done.set()
        thread.join()
    say(size, "mount, flushing", result, flushes)


def say(size, where, result, flushes):
    rate, p50, p99, worst = result
    each = sum(flushes) / len(flushes) if flushes else 0
    print(
        f"| {size} MB | {where} | {rate:.0f} | {p50:.2f} | {p99:.2f} | {worst:.1f} "
        f"| {len(flushes)} | {each:.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
