"""The drive is pulled in the middle of flushes, over and over; the daemon lives on, or dies meanwhile.

Each round: operations, a flush, a yank at a chosen write of it, the drive back under another device node, fsck, mount,
attach, recovery, flush. Whatever was acknowledged must be in the mount all the time, exactly. Two
databases stay open and get rows all the time, also during the flushes: on the drive each must be
whole, with each row that was acknowledged before the last flush began. A large file, of which
little changes, is patched on the drive. With `keep_clean` every other yank comes between two
batches, and must find a drive that is clean by its own mark and for its checker.
"""
import random
import subprocess
import time

from . import day, lab, recovery, world
from .check import Findings, Found
from .database import Databases
from .history import Log
from .large import Large
from .writer import Writer


class Yanks:
    def __init__(self, name, seed, repair, keep_clean):
        self.findings, self.seed, self.repair = Findings(name, seed), seed, repair
        self.keep_clean = keep_clean
        world.OPTIONS = ['--keep-clean'] if keep_clean else []
        self.flush_writes = 60          # how many writes a flush does, about; measured
        self.restart(seed)

    def restart(self, seed):
        tree = world.fresh(seed)
        self.flushed = tree.copy()
        self.writer = Writer(world.LAB, tree, Log(lab.SHARE + '/yank.log', tree), seed)
        self.databases = Databases()
        self.large = Large(random.Random(seed))
        for _ in range(2):
            self.whole_flush(random.Random('first %d' % seed))

    def whole_flush(self, chance):
        """A flush without a yank, to know how many writes one has that patches the large file."""
        self.writer.run(15)
        self.databases.add(3)
        self.large.change(chance)
        tree, rows, large = self.writer.tree, self.databases.state(), self.large.state()
        before = lab.stat('usb')['writes']
        recovery.flushed(self.findings, tree)
        self.flush_writes = max(4, lab.stat('usb')['writes'] - before)
        self.databases.flushed(rows)
        self.large.flushed(large)
        self.flushed = tree.copy()

    def round(self, number):
        chance = random.Random('%d %d' % (self.seed, number))
        self.findings.round, self.findings.bad = number, 0
        lose = ('none', 'all', 'random:%d' % chance.randrange(10000))[number % 3]
        beside = chance.random() < 0.3
        self.writer.run(chance.randrange(8, 30))
        self.databases.add(3)
        self.large.change(chance)
        if self.keep_clean and number % 2:
            self.idle(lose)
            self.away(chance)
            self.back(chance, [self.flushed], {self.large.on_drive}, must_be_clean=True)
            return self.whole(self.writer.tree)
        cut, rows, large = self.writer.tree.copy(), self.databases.state(), self.large.state()
        # The last third of the writes is where names are moved.
        share = chance.choice((chance.random(), chance.uniform(0.6, 1.05)))
        at = max(1, int(self.flush_writes * share))
        code, said, fired = self.flush(at, lose, beside)
        self.findings.note('yank', 'lose=%s at write %d of about %d%s; flush ended with %s: %s' % (
            lose, at, self.flush_writes, ', writing beside it' if beside else '', code, said))
        trees = None if beside else [cut] if code == 0 else [self.flushed, cut]
        may_be = {large, self.large.on_drive}
        if code == 0:
            self.databases.flushed(rows)
            self.large.flushed(large)
            may_be = {large}
        if code not in (0, 4) and fired:
            self.findings.note('flush', 'exit code %d on a yank' % code)
        self.away(chance)
        self.back(chance, trees, may_be)
        self.whole(self.writer.tree, may_be)

    def whole(self, tree, may_be=None):
        """After the recovery: a flush carries everything."""
        rows, large = self.databases.state(), self.large.state()
        self.databases.check_drive(self.findings, 'the drive after recovery')
        if may_be:
            self.large.check(self.findings, world.DRIVE, may_be, 'the drive after recovery')
        recovery.flushed(self.findings, tree)
        self.databases.flushed(rows)
        self.databases.check_drive(self.findings, 'the drive after the flush')
        self.large.flushed(large)
        self.large.check(self.findings, world.DRIVE, {large}, 'the drive after the flush')
        self.findings.same(Found(world.LAB), tree, 'the mount at the end')
        self.databases.check_mount(self.findings, 'the mount at the end')
        self.large.check(self.findings, world.LAB, {large}, 'the mount at the end')
        self.flushed = tree.copy()
        if self.keep_clean and not world.status()['kept_clean']['read_only']:
            self.findings.add('broken', 'the drive after the flush', 'it is writable')

    def idle(self, lose):
        """A yank between two batches, while changes wait in the cache."""
        self.findings.note('yank', 'lose=%s between two batches' % lose)
        if day.is_marked(world.device('usb')):
            self.findings.add('broken', 'the drive between two batches', 'VolumeDirty is set')
        lab.ask('yank lose=' + lose)
        while lab.stat('usb')['plugged']:
            time.sleep(0.05)

    def flush(self, at, lose, beside):
        """A flush with a yank at its write `at`; else right behind it. Exit code, output, whether it was hit."""
        before = lab.stat('usb')['writes']
        lab.ask('at usb %d yank lose=%s' % (at, lose))
        flush = subprocess.Popen((world.FERRYFS, 'flush', world.LAB), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        deadline = time.monotonic() + world.PATIENCE
        while flush.poll() is None:
            self.databases.add()
            if beside:
                self.writer.step()
            else:
                time.sleep(0.05)
            if time.monotonic() > deadline:
                raise world.Hung('ferryfs flush: no end %d s after a yank' % world.PATIENCE)
        said = flush.stdout.read().strip()
        now = lab.stat('usb')
        fired = now['armed'] == 0
        if not fired:
            lab.ask('at usb off')
            if flush.returncode == 0:
                self.flush_writes = max(4, now['writes'] - before)
            lab.ask('yank lose=' + lose)
        while lab.stat('usb')['plugged']:
            time.sleep(0.05)
        return flush.returncode, said, fired

    def away(self, chance):
        """While the drive is gone: noticed, names and changes go on, the dead file system can be unmounted."""
        try:
            world.wait_for('detached', patience=30)
        except world.Hung as error:                     # it will be when the dead file system is unmounted
            self.findings.add('broken', 'detach is noticed', str(error))
        if chance.random() < 0.5:
            self.writer.run(6)
            self.databases.add()
        self.daemon_dies = chance.random() < 0.4
        if self.daemon_dies:
            world.kill()
        busy = world.unmount(world.DRIVE)
        if busy:
            self.findings.add('broken', 'the dead file system of the drive', 'busy after 20 s: %s' % busy)

    def back(self, chance, trees, large, must_be_clean=False):
        lab.command('plug')
        if must_be_clean:
            code, said = world.fsck()
            if code or day.is_marked(world.device('usb')):
                self.findings.add('broken', 'a drive that was pulled between two batches', 'not clean: %s' % ' | '.join(said[:12]))
        recovery.look_at_drive(self.findings, self.repair, lambda place: self.large.look(self.findings, place, large))
        world.mount_drive()
        if self.daemon_dies:
            world.start()
            self.databases.open()
        recovery.attached(self.findings, trees)


def main(name, seed, rounds, repair, keep_clean):
    yanks, start = Yanks(name, seed, repair, keep_clean), time.monotonic()
    for number in rounds:
        try:
            yanks.round(number)
        except (world.Hung, RuntimeError, OSError) as error:
            yanks.findings.add('broken', type(error).__name__, str(error))
        print('%s seed %d round %d: %s (%.0f s)' % (name, seed, number, 'FAILED' if yanks.findings.bad else 'ok', time.monotonic() - start), flush=True)
        if yanks.findings.bad:
            recovery.facts(yanks.findings)
            lab.ask('keep %s-seed%d-round%d' % (name, seed, number))
            if not lab.stat('usb')['plugged']:
                lab.command('plug')
            world.tear_down()
            yanks.restart(seed + 7919 * (number + 1))
