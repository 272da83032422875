#!/usr/bin/env python3
"""Times ferryfs beside the native file system and other FUSE file systems, interleaved, and prints medians and ratios.

Run it by scripts/bench.sh, which builds and installs what is needed.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import bench_work


def run(*command, **options):
    return subprocess.run([str(c) for c in command], check=True, stdin=subprocess.DEVNULL, **options)


def quiet(*command):
    return subprocess.run(
        [str(c) for c in command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ).returncode


def unmount(place):
    if os.path.ismount(place) and quiet("umount", place) and quiet("fusermount3", "-u", place):
        quiet("umount", "-l", place)


def wait_mounted(place):
    for _ in range(100):
        if os.path.ismount(place):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{place} was not mounted")


def native(root, stack, _args):
    place = f"{root}/native"
    os.makedirs(place)
    return place


def floor(root, stack, args):
    """A FUSE daemon that does nothing but make, write and remove objects."""
    place, objects = f"{root}/floor", f"{root}/floor-objects"
    os.makedirs(place)
    os.makedirs(objects)
    process = subprocess.Popen([args.floor, objects, place], stdin=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(unmount, place)
    wait_mounted(place)
    return place


def ferryfs(root, stack, args, io):
    place, drive = f"{root}/ferryfs-{io}", f"{root}/ferryfs-{io}-drive"
    os.makedirs(place)
    os.makedirs(drive)
    run(args.ferryfs, "mount", "--no-auto-flush", "--io", io, "--cache", f"{root}/ferryfs-{io}-cache", drive, place)
    stack.callback(unmount, place)
    stack.callback(quiet, args.ferryfs, "unmount", "--no-flush", place)
    return place


def rclone(root, stack, _args):
    place, remote = f"{root}/rclone", f"{root}/rclone-remote"
    os.makedirs(place)
    os.makedirs(remote)
    config = f"{root}/rclone.conf"
    open(config, "w", encoding="utf-8").close()
    process = subprocess.Popen(
        ["rclone", "mount", remote, place, "--config", config, "--vfs-cache-mode", "full", "--cache-dir",
         f"{root}/rclone-cache"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    stack.callback(process.wait)
    stack.callback(process.terminate)
    stack.callback(unmount, place)
    wait_mounted(place)
    return place


def mergerfs(root, stack, _args):
    place = f"{root}/mergerfs"
    for path in (place, f"{root}/mergerfs-a", f"{root}/mergerfs-b"):
        os.makedirs(path)
    run("mergerfs", "-o", "category.create=ff", f"{root}/mergerfs-a:{root}/mergerfs-b", place)
    stack.callback(unmount, place)
    wait_mounted(place)
    return place


def fuse_overlayfs(root, stack, _args):
    place = f"{root}/overlay"
    lower, upper, work = (f"{root}/overlay-{part}" for part in ("lower", "upper", "work"))
    for path in (place, lower, upper, work):
        os.makedirs(path)
    run("fuse-overlayfs", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", place)
    stack.callback(unmount, place)
    wait_mounted(place)
    return place


def sides(root, stack, args):
    """The mounted sides, by name; a side that cannot be mounted is named and left out."""
    made = {}
    makers = [("native", native, None)]
    if args.floor:
        makers.append(("floor", floor, None))
    for io in args.io.split(","):
        makers.append((f"ferryfs {io}", lambda r, s, a, io=io: ferryfs(r, s, a, io), None))
    makers += [
        ("rclone", rclone, "rclone"),
        ("mergerfs", mergerfs, "mergerfs"),
        ("fuse-overlayfs", fuse_overlayfs, "fuse-overlayfs"),
    ]
    for name, make, tool in makers:
        if tool and not shutil.which(tool):
            continue
        try:
            made[name] = make(root, stack, args)
        except (OSError, RuntimeError, subprocess.CalledProcessError) as e:
            print(f"{name} could not be mounted and is left out: {e}", file=sys.stderr)
    return made


def measure(places, work, args):
    """Operations per second of each side, one number a round. The order turns, so that nobody is always first."""
    rates = {name: [] for name in places}
    order = list(places)
    for turn in range(args.rounds):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            place = f"{places[name]}/round"
            try:
                count, seconds = work(place, args.scale)
                rates[name].append(count / seconds)
            except (OSError, subprocess.CalledProcessError) as e:
                print(f"{name}: {e}", file=sys.stderr)
            shutil.rmtree(place, ignore_errors=True)
    return {name: statistics.median(all_) for name, all_ in rates.items() if all_}


def row(cells, widths):
    print("  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths))))


def table(results, names):
    widths = [26] + [max(18, len(name)) for name in names]
    row(["operations per second", *names], widths)
    for what, rates in results.items():
        base = rates.get("native")
        cells = [f"{rates[n]:,.0f} {rates[n] / base:5.2f}x" if n in rates and base else "-" for n in names]
        row([what, *cells], widths)


@contextlib.contextmanager
def drive(root, size_mib):
    """An empty drive: exFAT on a loop device as root, else a directory."""
    place = f"{root}/slow"
    os.makedirs(place)
    device = None
    try:
        if os.geteuid() == 0 and shutil.which("mount.exfat-fuse"):
            image = f"{root}/slow.img"
            run("truncate", "-s", f"{size_mib}M", image)
            run("mkfs.exfat", image, stdout=subprocess.DEVNULL)
            found = run("losetup", "--find", "--show", image, capture_output=True, text=True)
            device = found.stdout.strip()
            quiet("mount.exfat-fuse", device, place)
            wait_mounted(place)
        yield place, "exFAT" if device else "a directory"
    finally:
        if device:
            unmount(place)
            quiet("losetup", "-d", device)
            os.unlink(f"{root}/slow.img")
        shutil.rmtree(place, ignore_errors=True)


def flush_once(root, args, make):
    """Seconds that ferryfs takes to bring one set of files to an empty drive."""
    with drive(root, 4096) as (slow, _), contextlib.ExitStack() as stack:
        mount, cache = f"{root}/flush-mount", f"{root}/flush-cache"
        os.makedirs(mount)
        stack.callback(shutil.rmtree, cache, ignore_errors=True)
        stack.callback(os.rmdir, mount)
        run(args.ferryfs, "mount", "--no-auto-flush", "--cache", cache, slow, mount)
        stack.callback(unmount, mount)
        stack.callback(quiet, args.ferryfs, "unmount", "--no-flush", mount)
        make(f"{mount}/set")
        os.sync()
        start = time.perf_counter()
        done = run(args.ferryfs, "flush", "--json", mount, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        assert not json.loads(done.stdout)["left_behind"]
        return seconds


def rsync_once(root, _args, make):
    """Seconds that `rsync -a` and `sync` take for the same."""
    with drive(root, 4096) as (slow, _):
        source = f"{root}/rsync-source"
        os.makedirs(source)
        try:
            make(f"{source}/set")
            os.sync()
            start = time.perf_counter()
            # exFAT has no owners and modes to set.
            run("rsync", "-a", "--no-o", "--no-g", "--no-p", f"{source}/", f"{slow}/")
            run("sync", "-f", slow)
            return time.perf_counter() - start
        finally:
            shutil.rmtree(source, ignore_errors=True)


def flushes(root, args):
    def small(place):
        bench_work.files(place, 5000 // args.scale)

    def big(place):
        os.makedirs(place)
        with open(f"{place}/big", "wb") as f:
            for _ in range(1024 // args.scale):
                f.write(bench_work.CHUNK)

    widths = [36, 14, 18, 8]
    row(["to the drive, seconds", "ferryfs flush", "rsync -a + sync", "ratio"], widths)
    for what, make in [(f"{5000 // args.scale} files of 4 KiB", small), (f"one file of {1024 // args.scale} MiB", big)]:
        times = {flush_once: [], rsync_once: []}
        for turn in range(max(1, args.rounds // 2)):
            for way in list(times)[:: 1 if turn % 2 == 0 else -1]:
                times[way].append(way(root, args, make))
        ours, theirs = (statistics.median(t) for t in times.values())
        row([what, f"{ours:.2f}", f"{theirs:.2f}", f"{ours / theirs:.2f}x"], widths)


def arguments():
    parser = argparse.ArgumentParser(description="Compare ferryfs with the native file system and its peers.")
    parser.add_argument("--ferryfs", required=True, help="the program, a release build")
    parser.add_argument("--floor", help="the floor of FUSE, tests/support/floor.rs; left out if not given")
    parser.add_argument("--one-cpu", action="store_true", help="all programs and daemons share one CPU")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds; medians are printed (default 5)")
    parser.add_argument("--quick", dest="scale", action="store_const", const=10, default=1, help="a tenth of the work")
    parser.add_argument("--only", default="", help="only work whose name has one of these words, comma-separated")
    parser.add_argument("--io", default="auto,daemon", help="ways of I/O of ferryfs to compare (default auto,daemon)")
    parser.add_argument("--dir", default=None, help="where to work: on the SSD that is to be measured")
    parser.add_argument("--no-flush", action="store_true", help="leave out the flush against rsync")
    args = parser.parse_args()
    args.ferryfs = os.path.abspath(args.ferryfs)
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    return args


def main():
    args = arguments()
    if args.one_cpu:
        # All that is started from here inherits it.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    words = [word for word in args.only.split(",") if word]
    chosen = {n: w for n, w in bench_work.WORK.items() if not words or any(word in n for word in words)}
    root = tempfile.mkdtemp(prefix="ferryfs-bench.", dir=args.dir)
    try:
        with contextlib.ExitStack() as stack:
            places = sides(root, stack, args)
            kernel = os.uname().release
            print(f"{args.rounds} rounds, medians; x = ratio to native; kernel {kernel}, {len(os.sched_getaffinity(0))} cores, {root}")
            results = {}
            for what, work in chosen.items():
                print(f"... {what}", file=sys.stderr)
                results[what] = measure(places, work, args)
            table(results, list(places))
        if not args.no_flush and not words:
            print()
            flushes(root, args)
    finally:
        if any(line.split()[1].startswith(root) for line in open("/proc/mounts", encoding="utf-8")):
            print(f"something is still mounted below {root}, left alone", file=sys.stderr)
        else:
            shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
