"""How often a drive is clean when nobody expects it: a working day, shortened, with and without --keep-clean.

A lab writes as it does all day: a scraper in bursts, a database that gets a row each second, now and then a film. Flushes
begin by themselves. Meanwhile the drive's own boot sector is read past every cache, ten times a second: the share of looks
at which exFAT's VolumeDirty is clear is the share of the day in which a yank would have found a clean drive. Then ejects
are timed, and recoveries after yanks in the middle of batches of several sizes. Everything is a line of the output and in
`day.json` of the share.
"""
import json
import mmap
import os
import random
import sqlite3
import subprocess
import threading
import time

from . import lab, world

DAY = 120               # seconds
LOOK_EVERY = 0.1
EJECTS = 25
SIZES = (1, 8, 48)      # MiB of a batch that is interrupted
OPTIONS = ('--flush-after', '3s', '--max-age', '30s')


def is_marked(node):
    """Whether VolumeDirty is set on the device itself."""
    fd = os.open(node, os.O_RDONLY | os.O_DIRECT)
    try:
        sector = mmap.mmap(-1, 4096)
        os.preadv(fd, [sector], 0)
        return bool(sector[106] & 2)
    finally:
        os.close(fd)


class Watch(threading.Thread):
    """Looks at the mark, and counts."""

    def __init__(self, node):
        super().__init__(daemon=True)
        self.node, self.looks, self.clean, self.over = node, 0, 0, threading.Event()

    def run(self):
        while not self.over.wait(LOOK_EVERY):
            self.looks += 1
            self.clean += not is_marked(self.node)

    def share(self):
        self.over.set()
        self.join()
        return 100.0 * self.clean / max(1, self.looks)


def work(chance, seconds):
    """What a lab does, for so many seconds."""
    end, number = time.monotonic() + seconds, 0
    database = sqlite3.connect(world.LAB + '/rows.db', isolation_level=None)
    database.execute('pragma journal_mode=wal')
    database.execute('create table if not exists rows (n integer, words text)')
    while time.monotonic() < end:
        burst = time.monotonic() + chance.uniform(1, 6)
        while time.monotonic() < min(burst, end):
            number += 1
            place = '%s/scraped/%d' % (world.LAB, number % 7)
            os.makedirs(place, exist_ok=True)
            with open('%s/page%d' % (place, number), 'wb') as file:
                file.write(chance.randbytes(chance.choice((500, 5000, 60000))))
            database.execute('insert into rows values (?, ?)', (number, 'x' * 200))
            time.sleep(chance.uniform(0.05, 0.3))
        if chance.random() < 0.3:
            with open(world.LAB + '/film%d' % (number % 3), 'wb') as file:
                for _ in range(chance.randrange(4, 16)):
                    file.write(chance.randbytes(1 << 20))
        # People think, programs wait.
        time.sleep(min(chance.uniform(4, 16), max(0, end - time.monotonic())))
    database.close()


def quantile(times, share):
    return sorted(times)[min(len(times) - 1, int(share * len(times)))]


def ejects(chance):
    """Seconds from `ferryfs eject` to its end, after which the drive may be pulled."""
    times, marked = [], 0
    for number in range(EJECTS):
        with open('%s/eject%d' % (world.LAB, number), 'wb') as file:
            file.write(chance.randbytes(chance.choice((1000, 100000, 2 << 20))))
        begun = time.monotonic()
        code, said = world.ferry('eject', world.LAB)
        times.append(time.monotonic() - begun)
        if code:
            raise RuntimeError('eject: %d %s' % (code, said))
        marked += is_marked(world.device('usb'))
        world.must(world.FERRYFS, 'attach', world.DRIVE, world.LAB)
    return dict(p50=quantile(times, 0.5), p99=quantile(times, 0.99), marked=marked)


def recovery(chance, mib, options):
    """Seconds from the mount of a drive that was pulled in the middle of a batch to the end of its recovery."""
    with open('%s/batch%d' % (world.LAB, mib), 'wb') as file:
        for _ in range(mib):
            file.write(chance.randbytes(1 << 20))
    # Near the end of the contents, or behind them.
    lab.ask('at usb %d yank lose=none' % (mib * 8 + 15))
    flush = subprocess.run((world.FERRYFS, 'flush', world.LAB), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if lab.stat('usb')['plugged'] and lab.stat('usb')['armed']:
        lab.ask('at usb off')
        lab.ask('yank lose=none')
    while lab.stat('usb')['plugged']:
        time.sleep(0.05)
    world.wait_for('detached')
    world.unmount(world.DRIVE)
    lab.command('plug')
    marked = is_marked(world.device('usb'))
    world.fsck(repair=True)
    begun = time.monotonic()
    world.mount_drive()
    world.wait_for('attached')
    took = time.monotonic() - begun
    world.must(world.FERRYFS, 'flush', world.LAB)
    return dict(mib=mib, interrupted=flush.returncode != 0, marked=marked, seconds=took)


def one(seed, options):
    chance = random.Random(seed)
    world.fresh(seed)
    world.must(world.FERRYFS, 'unmount', world.LAB)
    world.must(world.FERRYFS, 'mount', *OPTIONS, *options, '--cache', world.CACHE, world.DRIVE, world.LAB)
    watch = Watch(world.device('usb'))
    watch.start()
    work(chance, DAY)
    batches = world.status()['last_batch']['number']
    found = dict(clean=watch.share(), looks=watch.looks, batches=batches)
    world.must(world.FERRYFS, 'pause', world.LAB)
    found['eject'] = ejects(chance)
    found['recovery'] = [recovery(chance, mib, options) for mib in SIZES]
    # No file is damaged, and all is on the drive.
    world.must(world.FERRYFS, 'unmount', world.LAB)
    world.must('umount', world.DRIVE)
    found['fsck'] = world.fsck()[0]
    world.tear_down()
    return found


def main(seed, share):
    table = {}
    for name, options in (('as ever', ()), ('keep_clean', ('--keep-clean',))):
        table[name] = one(seed, options)
        print('%-10s %s' % (name, json.dumps(table[name])), flush=True)
    with open(share + '/day.json', 'w') as file:
        json.dump(table, file, indent=1)
