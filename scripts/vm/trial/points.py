"""Exact crash points: copies of both disks at each write of one small flush, as a power cut then would leave them, each
mounted, recovered and looked at. The copies are made while the flush runs; it notices nothing."""
import os
import random

from . import cuts, lab, recovery, world
from .check import Findings
from .history import History, Log
from .writer import Writer

# Which unflushed writes are lost: none, all, and random ones, which find the most.
LOSE = ('none', 'all', 'random:%d', 'random:%d')
OPERATIONS = 12


def copies(seed, most):
    """A flush, with copies made at some of its writes. Those: [(name, write, lose)], at most `most`."""
    tree = world.fresh(seed)
    # A batch of the same kind first: how many writes does it take? And some files are in the cache
    # then, others not.
    writer = Writer(world.LAB, tree, Log(cuts.LOG, tree), seed)
    writer.run(OPERATIONS)
    writes = flush()
    writer.log = Log(cuts.LOG, tree)
    writer.run(OPERATIONS)
    writer.log.flush('begun')
    armed = choose(seed, writes, most)
    for name, write, lose in armed:
        lab.ask('at usb %d snap usb-%s ssd-%s lose=%s' % (write, name, name, lose))
    flush()
    world.must(world.FERRYFS, 'unmount', world.LAB)
    for place in (world.DRIVE, world.SSD):
        world.must('umount', place)
    return [copy for copy in armed if os.path.exists('%s/ssd-%s' % (lab.SHARE, copy[0]))]


def choose(seed, writes, most):
    """At which writes, and in which ways: three quarters of them in the second half, where names are moved and the record goes."""
    every = [('%03d-%d.img' % (write, way), write, lose % (seed * 10000 + write * 10 + way) if way > 1 else lose)
             for write in range(1, writes + 1) for way, lose in enumerate(LOSE)]
    late = [copy for copy in every if copy[1] > writes // 2]
    early = [copy for copy in every if copy[1] <= writes // 2]
    chance = random.Random(seed)
    picked = chance.sample(late, min(len(late), most - most // 4)) + chance.sample(early, min(len(early), most // 4))
    return sorted(picked, key=lambda copy: copy[1])


def flush():
    """A flush; how many writes to the drive it was."""
    before = lab.stat('usb')['writes']
    code, said = world.ferry('flush', world.LAB)
    lab.ask('at usb off')
    if code:
        raise RuntimeError('flush: exit code %d: %s' % (code, said))
    return lab.stat('usb')['writes'] - before


def remove(name):
    for disk in ('usb', 'ssd'):
        os.unlink('%s/%s-%s' % (lab.SHARE, disk, name))


def main(name, seed, most, repair):
    findings = Findings(name, seed)
    points = copies(seed, most)
    for name, write, lose in points:
        findings.round, findings.bad = write, 0
        findings.note('copy', 'lose=%s at write %d' % (lose, write))
        for disk in ('usb', 'ssd'):
            lab.ask('spare %s-%s' % (disk, name))
            world.DEVICES[disk] = world.must('losetup', '-f', '--show', '%s/%s-%s' % (lab.SHARE, disk, name))
        try:
            cuts.after(findings, History(cuts.LOG), repair)
        except (world.Hung, RuntimeError, OSError) as error:
            findings.add('broken', type(error).__name__, str(error))
        print('%s seed %d write %d lose=%s: %s' % (findings.scenario, seed, write, lose, 'FAILED' if findings.bad else 'ok'), flush=True)
        if findings.bad:
            recovery.facts(findings)
        world.tear_down()
        for disk in ('usb', 'ssd'):
            world.run('losetup', '-d', world.DEVICES.pop(disk))
            if not findings.bad:
                os.unlink('%s/kept/%s-%s' % (lab.SHARE, disk, name))
        remove(name)
    print('%s seed %d: %d crash points' % (findings.scenario, seed, len(points)), flush=True)
