"""The NAS falls silent: every packet is dropped, nothing is refused. Whatever is cached goes on, the rest ends with an error
in time, and a flush in progress waits and goes on when the cable is back.

The backend is a share of a server in the same guest; what is on the server is looked at there, not through the share."""
import os
import subprocess
import time

from . import lab, world, writer
from .check import Findings, Found
from .history import Log

SERVED = '/run/served'
# Linux itself would wait for ever (NFS) or for minutes (SMB).
OPTIONS = dict(nfs='hard,timeo=50,retrans=2', smb='cache=strict')
# The promise is 10 s (--io-timeout); an emulated machine takes its time.
READ_LIMIT, ANSWER_LIMIT = 30, 10
READERS = 12            # more than the daemon has workers


class Outages:
    def __init__(self, name, seed, kind):
        self.findings, self.slowest = Findings(name, seed), {}
        for place in (SERVED, world.SSD, world.DRIVE, world.LAB):
            os.makedirs(place, exist_ok=True)
        world.must('mount', '-t', 'tmpfs', 'tmpfs', SERVED)
        world.make_ssd()
        lab.command('nas', 'start', SERVED, kind)
        lab.command('nas', 'mount-' + kind, world.DRIVE, OPTIONS[kind])
        tree = writer.populate(world.DRIVE, seed, files=24 + 2 * READERS)
        self.only_there = sorted(tree.files)
        world.start()
        self.writer = writer.Writer(world.LAB, tree, Log(lab.SHARE + '/nas.log', tree), seed)

    def unplug(self):
        lab.command('nas', 'unplug')

    def plug(self):
        lab.command('nas', 'plug')

    def within(self, limit, what, action):
        """Does `action`; that it took longer than `limit` seconds is a finding."""
        start = time.monotonic()
        try:
            action()
        except (OSError, RuntimeError, world.Hung) as error:
            self.findings.add('broken', what, str(error))
        took = time.monotonic() - start
        self.slowest[what] = max(took, self.slowest.get(what, 0.0))
        if took > limit:
            self.findings.add('broken', what, 'took %.0f s' % took)

    def cached_files_go_on(self):
        """Writing, reading back, names and `status`, while nothing answers."""
        self.within(ANSWER_LIMIT, 'status in an outage', world.status)
        self.within(ANSWER_LIMIT, 'listing in an outage', lambda: list(os.walk(world.LAB)))

        def work():
            op = ['replace', self.writer.name(), 'a%d' % self.writer.serial, 1, 70000]
            self.writer.do(op)
            with open(os.path.join(world.LAB, op[1]), 'rb') as file:
                file.read()
        for _ in range(3):
            self.within(ANSWER_LIMIT, 'a cached file in an outage', work)

    def uncached_reads(self):
        """More readers of what only the NAS has than the daemon has workers: all end with an error, in time."""
        paths, self.only_there = self.only_there[:READERS], self.only_there[READERS:]
        start = time.monotonic()
        readers = [subprocess.Popen(['cat', os.path.join(world.LAB, path)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
                   for path in paths]
        time.sleep(2)
        self.cached_files_go_on()
        said = set()
        for reader in readers:
            try:
                said.add(reader.communicate(timeout=max(1, start + READ_LIMIT - time.monotonic()))[1].strip().rpartition(': ')[2])
            except subprocess.TimeoutExpired:
                said.add('no end in %d s' % READ_LIMIT)
        self.findings.note('reads of what only the NAS has', '%s, all after %.1f s' % (sorted(said), time.monotonic() - start))
        if 'no end in %d s' % READ_LIMIT in said:
            self.findings.add('broken', 'reads of what only the NAS has', str(sorted(said)))
        if '' in said:
            self.findings.note('reads of what only the NAS has', 'some were answered: from memory')
        return readers

    def idle_outage(self):
        self.unplug()
        readers = self.uncached_reads()
        self.plug()
        deadline = time.monotonic() + 120
        while any(reader.poll() is None for reader in readers) and time.monotonic() < deadline:
            time.sleep(0.2)
        for reader in readers:
            reader.kill()
        self.everything('after an outage')

    def outage_in_flush(self, after):
        """The cable goes `after` seconds into a flush, for 25 s."""
        for _ in range(20):
            self.writer.new()
        self.writer.run(15)
        flush = subprocess.Popen((world.FERRYFS, 'flush', world.LAB), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        time.sleep(after)
        early = flush.poll() is not None
        self.unplug()
        start = time.monotonic()
        while time.monotonic() < start + 25:
            self.cached_files_go_on()
            time.sleep(1)
        waits = flush.poll() is None
        self.plug()
        try:
            said = flush.communicate(timeout=world.PATIENCE)[0].strip()
        except subprocess.TimeoutExpired:
            flush.kill()
            raise world.Hung('flush: no end %d s after the cable was back' % world.PATIENCE) from None
        self.findings.note('flush in an outage', 'unplugged %.1f s into it%s; %s at its end; exit code %d: %s' % (
            after, ' (it was over)' if early else '', 'it waited' if waits else 'it had ended', flush.returncode, said))
        if flush.returncode not in (0, 3):
            self.findings.add('broken', 'flush in an outage', 'exit code %d: %s' % (flush.returncode, said))
        self.everything('after an outage in a flush')

    def everything(self, when):
        """With the NAS back: a flush carries all, and the server has exactly what the mount shows."""
        deadline = time.monotonic() + 120
        while world.status()['backend_state'] != 'attached' and time.monotonic() < deadline:
            time.sleep(0.5)
        code, said = world.ferry('flush', world.LAB)
        if code:
            self.findings.add('broken', 'flush ' + when, 'exit code %d: %s' % (code, said))
        self.findings.same(Found(SERVED), self.writer.tree, 'the NAS ' + when)
        self.findings.same(Found(world.LAB), self.writer.tree, 'the mount ' + when)

    def unmount_in_outage(self):
        """`unmount` ends, and what it left is there at the next mount."""
        self.writer.run(8)
        self.unplug()

        def unmount():
            code, said = world.ferry('unmount', '--no-flush', world.LAB, patience=120)
            self.findings.note('unmount in an outage', 'exit code %d: %s' % (code, said))
        self.within(60, 'unmount in an outage', unmount)
        self.plug()
        if world.run('mountpoint', '-q', world.LAB)[0] != 0:
            world.start()
        self.everything('after an unmount in an outage')


def main(name, seed, rounds, kind):
    outages = Outages(name, seed, kind)
    parts = (outages.idle_outage, lambda: outages.outage_in_flush(1.0), outages.unmount_in_outage, lambda: outages.outage_in_flush(0.3))
    for number in range(rounds):
        part = parts[number % len(parts)]
        outages.findings.round, outages.findings.bad = number, 0
        start = time.monotonic()
        try:
            part()
        except (world.Hung, RuntimeError, OSError, subprocess.SubprocessError) as error:
            outages.findings.add('broken', type(error).__name__, str(error))
            outages.plug()
        print('%s seed %d outage %d: %s (%.0f s)' % (name, seed, number, 'FAILED' if outages.findings.bad else 'ok', time.monotonic() - start), flush=True)
        outages.findings.note('slowest', ', '.join('%s %.1f s' % pair for pair in outages.slowest.items()))
        if outages.findings.bad:
            outages.findings.note('kernel', world.run('sh', '-c', 'dmesg | tail -15')[1])
